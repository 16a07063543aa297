"""The reader of the tutorial, installed as a package, on files written here byte by byte."""

import json
import os
import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest

PACKAGE = Path(__file__).parents[1]
NAMES = {"int16": "MET_SHORT", "uint8": "MET_UCHAR", "float32": "MET_FLOAT"}


def write_mha(path, array, spacing=(1.0, 2.0, 3.0), extra=""):
    header = (
        f"ObjectType = Image\nNDims = 3\nBinaryData = True\n{extra}"
        f"DimSize = {' '.join(map(str, array.shape))}\nElementSpacing = {' '.join(map(str, spacing))}\n"
        f"ElementType = {NAMES[array.dtype.name]}\nElementDataFile = LOCAL\n"
    )
    path.write_bytes(header.encode() + array.tobytes(order="F"))


@pytest.fixture(scope="module")
def python(tmp_path_factory):
    """Run code in a process that has the package installed."""
    target = tmp_path_factory.mktemp("installed")
    install = [sys.executable, "-m", "pip", "install", "--quiet", "--no-deps", "--no-build-isolation"]
    subprocess.run(
        [*install, "--no-index", "--disable-pip-version-check", "--target", str(target), str(PACKAGE)], check=True
    )

    def run(code, *arguments):
        command = [sys.executable, "-W", "error", "-c", code, *map(str, arguments)]
        environment = os.environ | {"PYTHONPATH": str(target), "MEDSEGPY_LOAD_PLUGINS": "medsegpy-mha"}
        done = subprocess.run(command, env=environment, capture_output=True, text=True, check=False)
        assert done.returncode == 0, done.stderr
        return done.stdout.split()

    return run


@pytest.fixture
def scans(tmp_path):
    rng = np.random.default_rng(0)
    for number in range(3):
        image = rng.integers(-1000, 1000, (12, 10, 8 + number), dtype=np.int16)
        write_mha(tmp_path / f"scan{number}.mha", image)
        np.save(tmp_path / f"scan{number}.npy", image)
        labels = rng.integers(0, 3, image.shape, dtype=np.uint8)
        write_mha(tmp_path / f"scan{number}_seg.mha", labels)
        np.save(tmp_path / f"scan{number}_seg.npy", labels)
    return tmp_path


def test_values_spacing_and_masks(python, scans):
    code = """
import sys, numpy as np
from medsegpy_core import DatasetCatalog, MetadataCatalog, open_scan, scan_directory
dicts = scan_directory(sys.argv[1])
assert [d["scan_id"] for d in dicts] == ["scan0", "scan1", "scan2"]
for d in dicts:
    image, labels = (np.load(f"{sys.argv[1]}/{d['scan_id']}{end}.npy") for end in ("", "_seg"))
    with open_scan(d) as scan:
        assert scan.image.shape == image.shape and scan.image.dtype == np.int16
        assert np.array_equal(scan.image[...], image)
        assert np.array_equal(scan.image[2:5, :, 3], image[2:5, :, 3])
        assert np.array_equal(scan.mask[..., 0], labels == 1) and np.array_equal(scan.mask[..., 1], labels == 2)
        assert scan.metadata["spacing"] == (1.0, 2.0, 3.0)
        assert np.array_equal(scan.metadata["affine"], np.diag([-1.0, -2.0, 3.0, 1.0]))
print("sound")
"""
    assert python(code, scans) == ["sound"]


def test_all_loaders_work_on_it(python, scans):
    code = """
import sys, numpy as np
from medsegpy_core import Config, DatasetCatalog, MetadataCatalog, build_loader, scan_directory
DatasetCatalog.register("heads", lambda: scan_directory(sys.argv[1]))
MetadataCatalog.get("heads").set(scan_root=sys.argv[1], category_ids=[0, 1], categories=["a", "b"],
    category_id_to_contiguous_id={0: 0, 1: 1}, evaluator_type="SemSegEvaluator")
for tag, size in [("DefaultDataLoader", ()), ("S25dDataLoader", (12, 10, 3)), ("N5dDataLoader", (12, 10, 3)),
                  ("PatchDataLoader", (4, 4, 4)), ("RandomPatchDataLoader", (4, 4, 4))]:
    cfg = Config(TAG=tag, IMG_SIZE=size, TRAIN_DATASET="heads", SEED=0, NUM_WORKERS=1)
    loader = build_loader(cfg, "heads", batch_size=2)
    images, masks = loader[0]
    assert images.shape[0] == masks.shape[0] == 2 and images.dtype == np.float32, tag
    for inputs, outputs in loader.inference(lambda batch: np.zeros((*batch.shape[:3], 2) if tag[0] in "DSN"
                                                                   else (*batch.shape[:-1], 2), np.float32)):
        assert np.array_equal(inputs["x"], np.load(f"{sys.argv[1]}/{inputs['scan_id']}.npy"))
    print(tag)
"""
    assert len(python(code, scans)) == 5


@pytest.mark.parametrize(
    ("damage", "word"),
    [
        (lambda data: data[:-1], "asks"),
        (lambda data: data.replace(b"DimSize", b"DimSide"), "DimSize"),
        (lambda data: data.replace(b"MET_SHORT", b"MET_OTHER"), "MET_OTHER"),
        (lambda data: data.replace(b"BinaryData = True", b"CompressedData = True"), "compressed"),
        (lambda data: b"", "ElementDataFile"),
    ],
)
def test_a_broken_file_is_a_read_error(python, scans, damage, word):
    path = scans / "scan1.mha"
    path.write_bytes(damage(path.read_bytes()))
    code = """
import sys
from medsegpy_core import ReadError, open_scan
try:
    with open_scan({"file_name": sys.argv[1], "scan_id": "scan1", "reader": "mha"}) as scan:
        scan.image[...]
except ReadError as error:
    assert sys.argv[1] in str(error)
    print(error)
"""
    assert word in " ".join(python(code, path))


def test_the_plugin_is_listed(python):
    code = "import runpy, sys; sys.argv[1:] = 'plugins', '--json'; runpy.run_module('medsegpy_core', None, '__main__')"
    listed = {plugin["name"]: plugin for plugin in json.loads(" ".join(python(code)))}
    assert listed["mha"]["status"] == "active"
    assert listed["mha"]["provides"]["readers"] == ["mha"]
