"""The example datasets are what the originals are, and their splits are clean."""

import hashlib
import json
import pickle
from pathlib import Path

import h5py
import numpy as np
import pytest

import medsegpy_example_datasets
from medsegpy_core import DatasetCatalog, MetadataCatalog, Record, open_scan, parse_slice_name

DATA = Path(medsegpy_example_datasets.__file__).parent / "data"
FACTS = json.loads((DATA / "facts.json").read_text())
SCANS = {int(subject): scan for subject, scan in FACTS["scans"].items()}
SUBJECT = {"train": 1, "val": 3, "test": 2}
# From the description of the originals: voxels of label 1 to 5.
VOXELS = {
    1: [38634, 9452, 4675, 997, 1368],
    2: [40764, 14698, 8133, 1200, 549],
    3: [18480, 1941, 4221, 672, 444],
}
DATASETS = ["abdomen_slices_train_aug"] + [
    f"abdomen_{form}_{split}" for form in ("slices", "volumes") for split in SUBJECT
]


def checksum(array):
    return hashlib.sha256(np.ascontiguousarray(array).tobytes()).hexdigest()


def as_files_say(dicts):
    """The scan of these dicts, read with h5py alone: image H x W x D, mask H x W x D x C."""
    if "slice_id" not in dicts[0]:
        (volume,) = dicts
        with h5py.File(volume["file_name"]) as file:
            return file["volume"][:], file["seg"][:]
    images, masks = [], []
    for d in sorted(dicts, key=lambda d: d["slice_id"]):
        with h5py.File(d["file_name"]) as file:
            images.append(file["data"][:])
        with h5py.File(d["sem_seg_file"]) as file:
            masks.append(file["data"][:])
    return np.concatenate(images, axis=2), np.concatenate(masks, axis=2)


def test_all_datasets_are_there():
    assert set(DATASETS) <= set(DatasetCatalog.list())
    assert [name for name in DatasetCatalog.list() if name.startswith("abdomen_")] == sorted(DATASETS)


@pytest.mark.parametrize("form", ["slices", "volumes"])
@pytest.mark.parametrize("split", SUBJECT)
def test_values_are_those_of_the_originals(form, split):
    subject = SUBJECT[split]
    image, mask = as_files_say(DatasetCatalog.get(f"abdomen_{form}_{split}"))
    assert image.dtype == np.int16
    assert list(image.shape) == SCANS[subject]["shape"]
    assert mask.sum(axis=(0, 1, 2)).tolist() == VOXELS[subject] == SCANS[subject]["voxels"]
    assert checksum(image) == SCANS[subject]["image_sha256"]
    assert checksum(mask) == SCANS[subject]["mask_sha256"]


@pytest.mark.parametrize("split", SUBJECT)
def test_the_readers_give_the_same_arrays(split):
    image, mask = as_files_say(DatasetCatalog.get(f"abdomen_slices_{split}"))
    with open_scan(DatasetCatalog.get(f"abdomen_volumes_{split}")[0]) as scan:
        assert np.array_equal(scan.image[...], image)
        assert np.array_equal(scan.mask[...], mask)
    with open_scan(DatasetCatalog.get(f"abdomen_slices_{split}")[4]) as scan:
        assert np.array_equal(scan.image[...], image[..., 4])
        assert np.array_equal(scan.mask[...], mask[:, :, 4])


@pytest.mark.parametrize("name", DATASETS)
def test_dicts_are_sound(name):
    dicts = DatasetCatalog.get(name)
    records = [Record.from_dict(d, name, index) for index, d in enumerate(dicts)]
    assert pickle.loads(pickle.dumps(records)) == records
    assert len({(one.scan_key, one.slice_id) for one in records}) == len(records)
    root = Path(MetadataCatalog.get(name).scan_root)
    for one in records:
        assert one.labelled
        assert one.file_name.is_file()
        assert one.file_name.is_relative_to(root)
        assert one.scan["scan_spacing"] == MetadataCatalog.get(name).spacing
        with open_scan(dicts[one.index]) as scan:
            assert scan.metadata["spacing"] == one.scan["scan_spacing"]
            assert np.array_equal(scan.metadata.get("affine", np.empty(0)), one.scan.get("scan_affine", np.empty(0)))
        if one.kind == "slice":
            assert parse_slice_name(one.file_name.stem).augmentation == one.augmentation
    assert dicts == DatasetCatalog.get(name)


def test_no_person_is_in_two_splits():
    people = {
        split: {d["subject_id"] for name in DATASETS if f"_{split}" in name for d in DatasetCatalog.get(name)}
        for split in SUBJECT
    }
    assert people == {"train": {1}, "val": {3}, "test": {2}}
    assert {MetadataCatalog.get(name).collection for name in DATASETS} == {"abdomen"}


def test_only_the_augmented_dataset_is_augmented():
    numbers = {name: {Record.from_dict(d).augmentation for d in DatasetCatalog.get(name)} for name in DATASETS}
    assert numbers.pop("abdomen_slices_train_aug") == {0, 1}
    assert set().union(*numbers.values()) == {0}


def test_the_augmented_copy_is_what_its_declaration_says():
    (declared,) = medsegpy_example_datasets.medsegpy_register_augmentations()
    assert (declared.number, declared.dataset) == (1, "abdomen_slices_train_aug")
    assert declared.parameters["gamma"] == 0.9
    dicts = DatasetCatalog.get("abdomen_slices_train_aug")
    copy = [d for d in dicts if Record.from_dict(d).augmentation]
    original = [d for d in dicts if not Record.from_dict(d).augmentation]
    assert [d["slice_id"] for d in copy] == [d["slice_id"] for d in original]
    assert "scan_affine" in original[0]
    assert "scan_affine" not in copy[0]
    (image, mask), (turned, turned_mask) = as_files_say(original), as_files_say(copy)
    assert turned.shape == image.shape
    assert set(np.unique(turned_mask)) == {0, 1}
    # Turned about the middle: the same amount of liver, elsewhere; brighter inside, because gamma is below 1.
    liver, turned_liver = mask[..., 0].astype(bool), turned_mask[..., 0].astype(bool)
    assert abs(int(turned_liver.sum()) / int(liver.sum()) - 1) < 0.02
    assert 0.6 < 2 * (liver & turned_liver).sum() / (liver.sum() + turned_liver.sum()) < 0.98
    assert 5 < turned[turned_liver].mean() - image[liver].mean() < 20


@pytest.mark.parametrize("name", DATASETS)
def test_metadata_is_complete(name):
    metadata = MetadataCatalog.get(name)
    assert metadata.category_ids == [0, 1, 2, 3, 4, (3, 4)]
    assert metadata.categories[-1] == "great vessels"
    assert metadata.category_id_to_contiguous_id == {0: 0, 1: 1, 2: 2, 3: 3, 4: 4, (3, 4): 5}
    assert metadata.evaluator_type == "SemSegEvaluator"
    assert len(metadata.category_abbreviations) == len(set(metadata.category_colors)) == 6
    assert Path(metadata.attribution).is_file()


def test_affine_spacing_and_shape_agree():
    for scan in SCANS.values():
        affine = np.array(scan["affine"])
        assert np.allclose(np.linalg.norm(affine[:3, :3], axis=0), scan["spacing"])
        # Rows go back, columns to the person's left, slices up.
        assert np.array_equal(np.sign(affine[:3, :3]), [[0, -1, 0], [-1, 0, 0], [0, 0, 1]])


def test_license_attribution_and_citation_ship_with_the_images():
    notice = " ".join((DATA / "NOTICE.md").read_text().split())
    for words in ("TotalSegmentator 2.18.0", "University Hospital Basel", "not by a radiologist", "ryai.230024"):
        assert words in notice
        assert words in " ".join((Path(__file__).parents[1] / "README.md").read_text().split())
    assert "Not for clinical use." in notice
    assert "Apache License" in (DATA / "LICENSE").read_text()


def test_the_package_stays_small():
    assert sum(path.stat().st_size for path in DATA.rglob("*") if path.is_file()) < 4_000_000
