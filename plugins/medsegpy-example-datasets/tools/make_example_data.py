"""Make the example data from NIfTI files, with ``python make_example_data.py SOURCE``.

SOURCE holds ``sub-0000001_ct.nii.gz``, ``sub-0000001_seg.nii.gz``, ... (label maps 1 to 5), ``LICENSE``. The images
are turned so that an axial slice looks as on a screen (rows from front to back, columns from the person's right to
the left); no voxel value changes. Needs nibabel and SciPy: ``pip install "medsegpy-core[data]"``.
"""

from __future__ import annotations

import argparse
import hashlib
import json
import re
import shutil
from pathlib import Path
from typing import Any

import nibabel as nib
import numpy as np
from numpy.typing import NDArray
from scipy import ndimage

from medsegpy_core import write_slices, write_volume

DATA = Path(__file__).parents[1] / "medsegpy_example_datasets" / "data"
PEOPLE = {1: ("CT", "train"), 2: ("CT", "test"), 3: ("MR", "val")}
ORGANS = 5
# Flipping left and right would move the liver to the wrong side; a patient who lies a little turned, and a
# somewhat different contrast, are what a scanner sees every day.
ROTATION, GAMMA, WINDOW = 7.0, 0.9, (-200.0, 300.0)
AUGMENTATION = {
    "number": 1,
    "name": "rotation and gamma",
    "parameters": {"rotation_degrees": ROTATION, "gamma": GAMMA, "gamma_window_hu": list(WINDOW)},
}

Array = NDArray[Any]


def upright(path: Path) -> tuple[Array, Array, tuple[float, ...]]:
    """Return voxels as H x W x D (front to back, right to left, feet to head), affine to RAS+ mm, spacing in mm."""
    source = nib.load(path)
    turn = nib.orientations.ornt_transform(
        nib.io_orientation(source.affine), nib.orientations.axcodes2ornt(("P", "L", "S"))
    )
    turned = source.as_reoriented(turn)
    spacing = tuple(float(size) for size in turned.header.get_zooms())
    return np.asanyarray(turned.dataobj), turned.affine, spacing


def augmented(image: Array, labels: Array) -> tuple[Array, Array]:
    """Turn each slice by `ROTATION` degrees, and bend the gray values inside `WINDOW`."""
    plane: dict[str, Any] = {"angle": ROTATION, "axes": (0, 1), "reshape": False, "mode": "nearest"}
    turned = ndimage.rotate(image.astype(np.float64), order=1, **plane)
    low, high = WINDOW
    bent = low + (high - low) * ((np.clip(turned, low, high) - low) / (high - low)) ** GAMMA
    inside = (turned > low) & (turned < high)
    return np.rint(np.where(inside, bent, turned)).astype(image.dtype), ndimage.rotate(labels, order=0, **plane)


def channels(labels: Array) -> Array:
    """Return H x W x D x C with 0 and 1 from a label map."""
    return (labels[..., np.newaxis] == np.arange(1, ORGANS + 1)).astype(np.uint8)


def checksum(array: Array) -> str:
    """Return the SHA-256 of the values, C order, little endian."""
    return hashlib.sha256(np.ascontiguousarray(array, array.dtype.newbyteorder("<")).tobytes()).hexdigest()


def make(source: Path, subject: int) -> dict[str, Any]:
    """Write the files of one person and return the facts about them."""
    modality, split = PEOPLE[subject]
    image, affine, spacing = upright(source / f"sub-{subject:07d}_{modality.lower()}.nii.gz")
    labels, _, _ = upright(source / f"sub-{subject:07d}_seg.nii.gz")
    mask = channels(labels)
    stored: dict[str, Any] = {"compression": 9, "spacing": spacing}
    write_slices(DATA / "slices" / split, image, mask, subject_id=subject, affine=affine, **stored)
    write_volume(DATA / "volumes" / split / f"{subject:07d}_V00.h5", image, mask, affine=affine, **stored)
    if split == "train":
        image_1, labels_1 = augmented(image, labels)
        folder = DATA / "slices" / "train_aug"
        # A rotated copy lies nowhere in the person's own coordinates: no affine.
        write_slices(folder, image_1, channels(labels_1), subject_id=subject, augmentation=1, **stored)
    return {
        "modality": modality,
        "split": split,
        "shape": image.shape,
        "spacing": spacing,
        "affine": affine.tolist(),
        "voxels": mask.sum(axis=(0, 1, 2)).tolist(),
        "image_sha256": checksum(image),
        "mask_sha256": checksum(mask),
    }


def main() -> None:
    """Write ``data/`` anew."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("source", type=Path, help="the folder with the NIfTI files")
    source = parser.parse_args().source
    for form in ("slices", "volumes"):
        shutil.rmtree(DATA / form, ignore_errors=True)
    facts = {"augmentation": AUGMENTATION, "scans": {str(subject): make(source, subject) for subject in PEOPLE}}
    # Innermost lists on one line each.
    text = re.sub(r"\[([^\[\]{}]+)\]", lambda row: f"[{' '.join(row[1].split())}]", json.dumps(facts, indent=1))
    (DATA / "facts.json").write_text(text + "\n", encoding="utf-8")
    shutil.copyfile(source / "LICENSE", DATA / "LICENSE")
    size = sum(path.stat().st_size for path in DATA.rglob("*") if path.is_file())
    print(f"{DATA}: {size / 1e6:.2f} MB")


if __name__ == "__main__":
    main()
