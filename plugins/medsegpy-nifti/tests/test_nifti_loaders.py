"""All loaders give the same batches as for the same data in HDF5."""

import nibabel as nib
import numpy as np
import pytest

from medsegpy_core import (
    Config,
    DatasetCatalog,
    MetadataCatalog,
    build_loader,
    load_scan,
    scan_directory,
    write_volume,
)
from medsegpy_core.testing import example_scan

SHAPES = [(12, 10, 8), (12, 10, 9), (12, 10, 11)]
TAGS = [
    ("DefaultDataLoader", ()),
    ("S25dDataLoader", (12, 10, 3)),
    ("N5dDataLoader", (12, 10, 3)),
    ("PatchDataLoader", (4, 5, 4)),
    ("RandomPatchDataLoader", (4, 5, 4)),
]


@pytest.fixture(params=[".nii", ".nii.gz"])
def datasets(request, tmp_path):
    """The datasets ``as_h5`` and ``as_nifti``."""
    for number, shape in enumerate(SHAPES, start=1):
        image, mask = example_scan(shape, channels=3, dtype="int16", seed=number)
        name = f"{number:07d}_V00"
        write_volume(tmp_path / "h5" / f"{name}.h5", image, mask)
        folder = tmp_path / "nifti"
        folder.mkdir(exist_ok=True)
        nib.save(nib.Nifti1Image(image, np.eye(4)), folder / f"{name}{request.param}")
        labels = (mask * np.arange(1, 4)).sum(-1).astype(np.uint8)
        nib.save(nib.Nifti1Image(labels, np.eye(4)), folder / f"{name}_seg{request.param}")
    names = []
    for kind in ("h5", "nifti"):
        names.append(f"as_{kind}")
        DatasetCatalog.register(names[-1], lambda folder=tmp_path / kind: scan_directory(folder))
        MetadataCatalog.get(names[-1]).set(
            scan_root=str(tmp_path / kind),
            category_ids=[0, 1, 2],
            categories=["a", "b", "c"],
            category_id_to_contiguous_id={0: 0, 1: 1, 2: 2},
            evaluator_type="SemSegEvaluator",
        )
    yield names
    for name in names:
        DatasetCatalog.remove(name)
        MetadataCatalog.remove(name)


@pytest.mark.parametrize(("tag", "size"), TAGS)
def test_batches_equal_those_of_hdf5(datasets, tag, size):
    loaders = [
        build_loader(Config(TAG=tag, IMG_SIZE=size, SEED=3, CATEGORIES=[2, (0, 1)], NUM_WORKERS=2), name, batch_size=5)
        for name in datasets
    ]
    assert len(loaders[0]) == len(loaders[1]) > 1
    for ours, theirs in zip(*loaders, strict=True):
        assert all(np.array_equal(a, b) for a, b in zip(ours, theirs, strict=True))


@pytest.mark.parametrize(("tag", "size"), TAGS)
def test_whole_scans_equal_those_of_hdf5(datasets, tag, size):
    def model(batch):
        middle = batch[..., batch.shape[-1] // 2 : batch.shape[-1] // 2 + 1]
        return (middle > 100).astype(np.float32).repeat(3, -1)

    results = []
    for name in datasets:
        cfg = Config(TAG=tag, IMG_SIZE=size, TEST_DATASET=name, SEED=0)
        results.append(list(build_loader(cfg, name, is_test=True).inference(model)))
    assert len(results[0]) == len(results[1]) == 3
    for (inputs, outputs), (other_inputs, other_outputs) in zip(*results, strict=True):
        assert inputs["scan_id"] == other_inputs["scan_id"]
        assert np.array_equal(inputs["x"], other_inputs["x"])
        for key in ("y_true", "y_pred"):
            assert np.array_equal(outputs[key], other_outputs[key])


def test_load_scan(datasets):
    for number, shape in enumerate(SHAPES, start=1):
        image, mask = load_scan("as_nifti", f"{number:07d}_V00")
        expected = example_scan(shape, channels=3, dtype="int16", seed=number)
        assert np.array_equal(image, expected[0])
        assert np.array_equal(mask, expected[1])
