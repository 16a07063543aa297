"""Dicts from the catalog contain the name of their dataset, in any list."""

import collections
import pickle
import subprocess
import sys
import types

import h5py
import numpy as np
import pytest
from scans import make_scan, save_volume

from medsegpy_core import (
    AugmentationError,
    CategoryError,
    Config,
    DatasetCatalog,
    DataWarning,
    DefaultDataLoader,
    LeakageError,
    MetadataCatalog,
    Record,
    UnknownNameError,
    build_loader,
    filter_dicts,
    open_scan,
    scan_directory,
    split_by_subject,
)
from medsegpy_core.datasets import load_records, make_records

TAGGER = """
from medsegpy_core import DatasetSpec, hookimpl

DICTS = {dicts!r}

@hookimpl
def medsegpy_register_datasets():
    metadata = {{"category_ids": [0], "categories": ["a"]}}
    return [DatasetSpec(name=name, load=lambda: DICTS, split=split, metadata=metadata)
            for name, split in (("tagged", None), ("tagged_val", "val"))]

@hookimpl
def medsegpy_tag_augmentation(dataset, record):
    return 3 if record.file_name.stem.endswith("copy") else None
"""


def register(name, dicts, names=("a",), **metadata):
    DatasetCatalog.register(name, lambda: dicts)
    MetadataCatalog.get(name).set(category_ids=list(range(len(names))), categories=list(names), **metadata)
    return name


@pytest.fixture
def depth_first(tmp_path):
    """A dataset whose metadata declare D x H x W files, and the expected batch of all slices."""
    dicts, right = [], []
    for subject in range(3):
        image, mask = make_scan((6, 5, 4), channels=2, seed=subject)
        labels = (mask[..., 0] + 2 * (1 - mask[..., 0]) * mask[..., 1]).astype(np.uint8)
        path = str(tmp_path / f"{subject}.h5")
        with h5py.File(path, "w") as file:
            file["image"], file["label"] = image.transpose(2, 0, 1), labels.transpose(2, 0, 1)
        keys = {"image_key": "image", "sem_seg_key": "label", "scan_id": f"s{subject}", "subject_id": subject}
        dicts.append({"file_name": path, "sem_seg_file": path, **keys})
        right.append((image.transpose(2, 0, 1), np.stack([labels == 1, labels == 2], axis=-1).transpose(2, 0, 1, 3)))
    register("depth_first", dicts, ("a", "b"), image_axes="DHW", sem_seg_axes="DHW", label_map=True)
    return right


@pytest.fixture
def tagged(site, plugins, tmp_path):
    """Two datasets of a plugin with one list, in which only the tag hook marks files called `copy` as augmented."""
    dicts = []
    for subject in range(6):
        for ending in ("", "_copy"):
            d = save_volume(tmp_path, *make_scan((3, 3, 2), 1, subject), subject, f"scan{subject}{ending}")
            dicts.append({**d, "reader": "mine"})
    site.add("tagger", TAGGER.format(dicts=dicts) + READER)
    plugins()
    return dicts


READER = """
@hookimpl
def medsegpy_register_readers():
    from attrs import evolve
    from medsegpy_h5_volumes import VolumesReader
    return [evolve(VolumesReader(), name="mine")]
"""


# -- what the catalog returns


def test_each_mapping_is_a_copy_with_its_dataset():
    class Strict(dict):
        def __setitem__(self, key, value):
            raise TypeError("cannot be changed")

    with_default = collections.defaultdict(list, a=1)
    given = [{"a": 1, "dataset_name": "other"}, types.MappingProxyType({"b": 2}), with_default, Strict(c=3), "text", 5]
    before = [dict(member) if hasattr(member, "keys") else member for member in given]
    DatasetCatalog.register("x", lambda: given)
    found = DatasetCatalog.get("x")
    assert found[:4] == [{"a": 1, "dataset_name": "x"}, {"b": 2, "dataset_name": "x"},
                         {"a": 1, "dataset_name": "x"}, {"c": 3, "dataset_name": "x"}]  # fmt: skip
    assert found[4:] == ["text", 5]
    assert found[2]["new"] == []
    found[0]["a"] = found[2]["a"] = 99
    assert [dict(member) if hasattr(member, "keys") else member for member in given] == before


@pytest.mark.parametrize("form", [list, tuple, iter, collections.deque, lambda dicts: dict(enumerate(dicts)).values()])
def test_any_iterable_of_dicts(form):
    DatasetCatalog.register("x", lambda: form([{"a": 1}, {"a": 2}]))
    assert list(DatasetCatalog.get("x")) == [{"a": 1, "dataset_name": "x"}, {"a": 2, "dataset_name": "x"}]
    assert isinstance(DatasetCatalog.get("x"), tuple) == (form is tuple)


def test_a_dataset_with_dicts_of_another_one_is_separate(depth_first):
    register("part", None, ("a", "b"), image_axes="DHW", sem_seg_axes="DHW", label_map=True)
    whole = DatasetCatalog.get("depth_first")
    DatasetCatalog.register("part", lambda: whole[:1], replace=True)
    assert {d["dataset_name"] for d in DatasetCatalog.get("part")} == {"part"}
    assert [record.dataset for record in load_records("part")] == ["part"]


def test_records(depth_first):
    for d in DatasetCatalog.get("depth_first"):
        record = Record.from_dict(d)
        assert record.dataset == "depth_first"
        assert "dataset_name" not in record.extra
        assert record.to_dict()["dataset_name"] == "depth_first"
        assert Record.from_dict(d, "given").dataset == "given"


# -- equivalent to the name of the dataset


def lists():
    dicts = DatasetCatalog.get("depth_first")
    yield dicts
    yield filter_dicts(dicts, "subject_id", [0, 1, 2])
    yield [d for part in split_by_subject(dicts).values() for d in part]
    yield [record.to_dict() for record in load_records("depth_first")]


def test_file_layouts_apply_in_any_list(depth_first):
    order = np.concatenate([image for image, _ in depth_first])
    for dicts in lists():
        by_scan = sorted(dicts, key=lambda d: d["scan_id"])
        built = build_loader(Config(), by_scan, batch_size=12, shuffle=False, drop_last=False)
        classic = DefaultDataLoader(Config(), by_scan, shuffle=False, batch_size=12)
        for loader in (built, classic):
            images, masks = loader[0]
            assert np.array_equal(images[..., 0], order)
            assert np.array_equal(masks, np.concatenate([mask for _, mask in depth_first]))
            assert {e.record.dataset for e in loader.elements(0)} == {"depth_first"}
            assert list(loader.setup.metadata) == ["depth_first"]


def test_file_layouts_apply_to_a_single_dict(depth_first):
    d = DatasetCatalog.get("depth_first")[1]
    with open_scan(d) as scan:
        assert np.array_equal(np.moveaxis(scan.image[...], 2, 0), depth_first[1][0])
        assert scan.mask.shape == (6, 5, 4, 2)
    assert make_records([d], [""])[0].extra["image_axes"] == "DHW"


def test_lists_of_several_datasets(depth_first, tmp_path):
    image, mask = make_scan((6, 5, 4), channels=2, seed=9)
    register("plain", [save_volume(tmp_path, image, mask)], ("a", "b"))
    unnamed = save_volume(tmp_path, image + 1, mask, scan_id="unnamed")
    mixed = [*DatasetCatalog.get("plain"), *DatasetCatalog.get("depth_first")[:1], unnamed]
    loader = build_loader(Config(TRAIN_DATASET="plain"), mixed, batch_size=12, shuffle=False)
    expected = [image.transpose(2, 0, 1), depth_first[0][0], image.transpose(2, 0, 1) + 1]
    assert np.array_equal(loader[0][0][..., 0], np.concatenate(expected))  # in the order of the dicts
    assert [e.record.dataset for e in loader.elements(0)][::4] == ["plain", "depth_first", "plain"]
    register("others", [save_volume(tmp_path, image, mask, scan_id="o")], ("a", "c"))
    with pytest.raises(CategoryError, match=r"'others' and 'plain'"):
        build_loader(Config(), [*DatasetCatalog.get("plain"), *DatasetCatalog.get("others")])


def test_the_batch_size_is_that_of_the_role(depth_first):
    cfg = Config(VAL_DATASET="depth_first", VALID_BATCH_SIZE=5, TRAIN_BATCH_SIZE=7)
    assert build_loader(cfg, DatasetCatalog.get("depth_first")[:2]).batch_size == 5


def test_categories_come_from_the_metadata(depth_first):
    MetadataCatalog.get("depth_first").set(category_ids=[1, 0], categories=["b", "a"], replace=True)
    masks = build_loader(Config(), DatasetCatalog.get("depth_first"), batch_size=4, shuffle=False)[0][1]
    assert np.array_equal(masks, depth_first[0][1][..., ::-1])


# -- the tag hook


def test_the_tag_hook_is_called_for_any_list(tagged):
    dicts = DatasetCatalog.get("tagged")
    assert len(filter_dicts(dicts, "augmentation", [0])) == len(filter_dicts(dicts, "augmentation", [3])) == 6
    assert len(filter_dicts(tagged, "augmentation", [0])) == 12
    loader = build_loader(Config(), dicts, batch_size=24, shuffle=False)
    assert [e.record.augmentation for e in loader.elements(0)] == [0, 0, 3, 3] * 6
    with pytest.raises(AugmentationError, match="copy"):
        build_loader(Config(), dicts, is_test=True)
    with pytest.raises(AugmentationError, match="copy"):
        DefaultDataLoader(Config(), dicts, is_test=True)


def test_splits_keep_copies_known_to_the_tag_hook_out_of_evaluation(tagged):
    with pytest.warns(DataWarning, match="copy"):
        parts = split_by_subject(DatasetCatalog.get("tagged"))
    copies = {name: sum("copy" in d["file_name"] for d in part) for name, part in parts.items()}
    assert copies == {"train": len(parts["train"]) // 2, "val": 0, "test": 0}
    for name in ("val", "test"):
        build_loader(Config(), parts[name], is_test=True)


# -- guards


def test_evaluation_datasets_reject_augmented_dicts(tagged):
    copies = filter_dicts(DatasetCatalog.get("tagged"), "augmentation", [3])
    for cfg in (Config(VAL_DATASET="tagged"), Config(TEST_DATASET=("other", "tagged"))):
        with pytest.raises(AugmentationError, match="'tagged'"):
            build_loader(cfg, copies, allow_leakage=True)
    with pytest.raises(AugmentationError, match="val split"):
        build_loader(Config(), DatasetCatalog.get("tagged_val"))
    build_loader(Config(), copies)


def test_leakage_between_dicts_and_a_dataset_of_the_config(tmp_path):
    volumes = [save_volume(tmp_path, *make_scan((3, 3, 2), 1, s), subject=s) for s in (1, 2, 3)]
    register("train", volumes[:2])
    register("val", volumes[1:])
    cfg = Config(TRAIN_DATASET="train", VAL_DATASET="val")
    shared = filter_dicts(DatasetCatalog.get("train"), "subject_id", [2])
    for name in ("train", "val"):
        for build in (build_loader, DefaultDataLoader):
            with pytest.raises(LeakageError, match=r"'train'.*'val'.*2"):
                build(cfg, DatasetCatalog.get(name))
    for build in (build_loader, DefaultDataLoader):
        with pytest.raises(LeakageError, match=r"'train'.*'val'.*2"):
            build(cfg, shared)
    build_loader(cfg, shared, allow_leakage=True)
    build_loader(cfg, filter_dicts(DatasetCatalog.get("train"), "subject_id", [1]))
    build_loader(cfg, volumes)  # these belong to no dataset but by their role


def test_a_dataset_that_is_unknown_here_is_an_error(tmp_path):
    d = {**save_volume(tmp_path, *make_scan((3, 3, 2), 1)), "dataset_name": "abdomen_slices_trian"}
    register("known", [d])

    def opened(dicts):
        with open_scan(dicts[0]):
            pass

    for use in (
        lambda dicts: build_loader(Config(), dicts),
        lambda dicts: build_loader(Config(TRAIN_DATASET="known"), dicts),
        lambda dicts: DefaultDataLoader(Config(), dicts),
        lambda dicts: filter_dicts(dicts, "scan_id", ["s"]),
        lambda dicts: filter_dicts(dicts, "augmentation", [0]),
        split_by_subject,
        opened,
    ):
        with pytest.raises(UnknownNameError, match=r"abdomen_slices_trian.*Did you mean .*'dataset_name'"):
            use([d])
    (found,) = DatasetCatalog.get("known")
    build_loader(Config(), [found])
    DatasetCatalog.remove("known")
    with pytest.raises(UnknownNameError, match="'known'"):
        build_loader(Config(), [found])


def test_a_loader_needs_no_registration_in_another_process(depth_first, tmp_path):
    loader = build_loader(Config(SEED=0), DatasetCatalog.get("depth_first"), batch_size=4, shuffle=False)
    (tmp_path / "loader").write_bytes(pickle.dumps(loader))
    code = """
import pickle, sys, numpy as np
if __name__ == "__main__":
    loader = pickle.loads(open(sys.argv[1], "rb").read())
    np.save(sys.argv[2], np.stack([loader[i][0] for i in range(len(loader))]))
"""
    subprocess.run([sys.executable, "-c", code, tmp_path / "loader", tmp_path / "out.npy"], check=True, timeout=300)
    assert np.array_equal(np.load(tmp_path / "out.npy")[..., 0], np.stack([image for image, _ in depth_first]))


def test_dicts_of_a_folder_belong_to_no_dataset(depth_first, tmp_path):
    save_volume(tmp_path / "sub", *make_scan((3, 3, 2), 1))
    assert not any("dataset_name" in d for d in scan_directory(tmp_path / "sub"))
