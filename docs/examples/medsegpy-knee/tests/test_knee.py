"""The dataset plugin of the tutorial, installed as a package, on files written here."""

import os
import subprocess
import sys
from pathlib import Path

import numpy as np

from medsegpy_core import write_slices

PACKAGE = Path(__file__).parents[1]
CODE = """
from medsegpy_core import AugmentationError, Config, DatasetCatalog, MetadataCatalog, build_loader
assert [name for name in DatasetCatalog.list() if name.startswith("knee_")] == ["knee_test", "knee_train", "knee_val"]
assert {d["subject_id"] for d in DatasetCatalog.get("knee_test")} == {3}
assert MetadataCatalog.get("knee_val").spacing == (0.31, 0.31, 0.7)
cfg = Config(TRAIN_DATASET="knee_train", TEST_DATASET="knee_test", CATEGORIES=[(0, 1), 2], SEED=0)
images, masks = build_loader(cfg, "knee_train", batch_size=5)[0]
assert images.shape == (5, 8, 6, 1) and masks.shape == (5, 8, 6, 2)
for inputs, outputs in build_loader(cfg, "knee_test", is_test=True).inference(lambda x: 0 * x.repeat(2, -1)):
    assert inputs["scan_id"] == "0000003_V00" and outputs["y_true"].shape == (8, 6, 4, 2)
try:
    build_loader(cfg, "knee_train", is_test=True)
except AugmentationError as error:
    assert "knee_train" in str(error) and "number 1" in str(error)
    print("sound")
"""


def test_the_installed_plugin_works(tmp_path):
    target, root = tmp_path / "installed", tmp_path / "datasets"
    install = [sys.executable, "-m", "pip", "install", "--quiet", "--no-deps", "--no-build-isolation", "--no-index"]
    subprocess.run([*install, "--disable-pip-version-check", "--target", str(target), str(PACKAGE)], check=True)
    rng = np.random.default_rng(0)
    for subject, split in enumerate(("train", "val", "test"), start=1):
        image = rng.normal(size=(8, 6, 4)).astype(np.float32)
        mask = rng.integers(0, 2, (8, 6, 4, 3), dtype=np.uint8)
        write_slices(root / "knee" / split, image, mask, subject_id=subject)
        if split == "train":
            write_slices(root / "knee" / split, image**2, mask, subject_id=subject, augmentation=1)
    environment = os.environ | {
        "PYTHONPATH": str(target),
        "MEDSEGPY_DATASETS": str(root),
        "MEDSEGPY_LOAD_PLUGINS": "medsegpy-knee,medsegpy-h5-slices",
    }
    command = [sys.executable, "-W", "error", "-c", CODE]
    done = subprocess.run(command, env=environment, capture_output=True, text=True, check=False)
    assert done.stdout == "sound\n", done.stderr
