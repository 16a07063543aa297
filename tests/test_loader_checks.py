"""Checks when a loader is built: augmented elements, subjects in two splits, differing categories."""

import itertools

import pytest
from scans import make_scan, save_slices, save_volume

from medsegpy_core import (
    AugmentationError,
    CategoryError,
    ConfigError,
    DatasetCatalog,
    DataWarning,
    LeakageError,
    MetadataCatalog,
    MetadataError,
    RecordError,
    build_loader,
    load_scan,
)
from medsegpy_core.config import Config


@pytest.fixture
def register(tmp_path):
    """Register a dataset of some subjects, each a small volume."""
    numbers = itertools.count()

    def make(name, subjects=(1,), **keys):
        root = tmp_path / f"set{next(numbers)}"
        dicts = [
            {**save_volume(root, *make_scan((3, 3, 2), 2, n), scan_id=f"scan of {s!r}", **keys), "subject_id": s}
            for n, s in enumerate(subjects)
        ]
        DatasetCatalog.register(name, lambda: dicts)
        MetadataCatalog.get(name).set(category_ids=[0, 1], categories=["a", "b"])
        return dicts

    return make


# -- augmentation


def test_augmented_elements_are_rejected_in_evaluation(register):
    dicts = register("set", augmentation=2)
    for options, cfg in (
        ({"is_test": True}, Config()),
        ({"is_test": False}, Config(VAL_DATASET="set")),
        ({"is_test": False}, Config(TEST_DATASET="set")),
        ({"is_test": False}, Config(TEST_DATASET=("other", "set"))),
    ):
        with pytest.raises(AugmentationError, match="allow_augmented") as caught:
            build_loader(cfg, "set", **options)
        assert isinstance(caught.value, ValueError)
        for part in ("'set'", dicts[0]["file_name"], "2"):
            assert part in str(caught.value)
        assert len(build_loader(cfg, "set", allow_augmented=True, batch_size=1, **options)) == 2
    assert len(build_loader(Config(TRAIN_DATASET="set"), "set", batch_size=1)) == 2
    with pytest.raises(AugmentationError):
        build_loader(Config(), dicts, is_test=True)


@pytest.mark.parametrize("split", ["train", "val", "test"])
def test_the_split_of_the_spec_is_used(split, site, plugins, tmp_path):
    volume = save_volume(tmp_path, *make_scan((3, 3, 2), 2), augmentation=1)
    site.add(
        "sets",
        f"""
        from medsegpy_core import DatasetSpec, hookimpl

        @hookimpl
        def medsegpy_register_datasets():
            metadata = {{"category_ids": [0], "categories": ["a"]}}
            dicts = [{ {**volume, "reader": "mine"}!r}]
            return [DatasetSpec(name="set", load=lambda: dicts, split={split!r}, metadata=metadata)]

        @hookimpl
        def medsegpy_register_readers():
            from medsegpy_h5_volumes import VolumesReader
            from attrs import evolve
            return [evolve(VolumesReader(), name="mine")]
        """,
    )
    plugins()
    if split == "train":
        assert len(build_loader(Config(), "set", batch_size=1)) == 2
    else:
        with pytest.raises(AugmentationError, match=split):
            build_loader(Config(), "set", batch_size=1)


def test_originals_and_augmented_copies_never_mix(register, tmp_path):
    image, mask = make_scan((3, 3, 2), 2)
    slices = save_slices(tmp_path / "a", image, mask)
    copies = [{**d, "augmentation": 1} for d in save_slices(tmp_path / "b", image + 1, mask)]
    loader = build_loader(Config(), [*slices, *copies], is_test=True, allow_augmented=True, batch_size=1)
    found = [inputs["x"] for inputs, _ in loader.inference(lambda x: x.repeat(2, -1))]
    assert len(found) == 2
    assert (found[0] == image).all()
    assert (found[1] == image + 1).all()


# -- leakage

ROLES = {"TRAIN_DATASET": "train", "VAL_DATASET": "val", "TEST_DATASET": "test"}


def test_a_subject_in_two_splits(register):
    for name, subjects in (("train", (1, 2)), ("val", (2, 3)), ("test", (4,))):
        register(name, subjects)
    cfg = Config(**ROLES)
    for name in ("train", "val"):
        with pytest.raises(LeakageError, match="allow_leakage") as caught:
            build_loader(cfg, name, is_test=name == "val")
        assert isinstance(caught.value, ValueError)
        for part in ("'train'", "'val'", "2", "collection"):
            assert part in str(caught.value)
        build_loader(cfg, name, is_test=name == "val", allow_leakage=True)
    build_loader(cfg, "test", is_test=True)
    build_loader(Config(), "train")
    build_loader(Config(TRAIN_DATASET="train"), "train")


def test_a_role_may_have_several_datasets(register):
    for name, subjects in (("a", (1,)), ("b", (2,)), ("v", (2,)), ("w", (9,))):
        register(name, subjects)
    for cfg in (Config(TRAIN_DATASET=("a", "b"), VAL_DATASET="v"), Config(TRAIN_DATASET="b", VAL_DATASET=("w", "v"))):
        with pytest.raises(LeakageError, match=r"'b'.*'v'"):
            build_loader(cfg, "v", is_test=True)
    assert (
        build_loader(Config(TRAIN_DATASET=("a", "b"), VAL_DATASET="w", TRAIN_BATCH_SIZE=1), ["a", "b"]).batch_size == 1
    )


def test_other_datasets_are_not_checked(register):
    for name in ("train", "test", "other"):
        register(name, (1,))
    build_loader(Config(**ROLES), "other")


def test_collections_distinguish_subjects(register):
    for name in ("train", "test"):
        register(name, (1,))
    cfg = Config(TRAIN_DATASET="train", TEST_DATASET="test")
    MetadataCatalog.get("train").set(collection="here")
    build_loader(cfg, "train")
    MetadataCatalog.get("test").set(collection="here")
    with pytest.raises(LeakageError, match="'here'"):
        build_loader(cfg, "train")


def test_the_collection_is_the_distribution_of_the_plugin(site, plugins, register):
    for name in ("one", "two"):
        site.add(
            name,
            f"""
            from medsegpy_core import DatasetSpec, hookimpl

            def load():
                return [{{"file_name": "x.h5", "sem_seg_file": "x.h5", "scan_id": "s", "subject_id": 1, "reader": "r"}}]

            @hookimpl
            def medsegpy_register_datasets():
                return [DatasetSpec(name="{name}_" + split, load=load) for split in ("train", "test")]

            @hookimpl
            def medsegpy_register_loaders():
                from medsegpy_core import LoaderSpec
                return [LoaderSpec(name="Raw_{name}", build=lambda request: request.dicts)]
            """,
        )
    plugins()
    register("mine", (1,))
    cfg = Config(TAG="Raw_one", TRAIN_DATASET="one_train", TEST_DATASET="two_test", VAL_DATASET="mine")
    build_loader(cfg, "one_train")
    cfg.TEST_DATASET = "one_test"
    with pytest.raises(LeakageError, match="medsegpy-one"):
        build_loader(cfg, "one_train")


def test_the_scan_id_replaces_a_missing_subject(tmp_path):
    dicts = [{k: v for k, v in d.items() if k != "subject_id"} for d in save_slices(tmp_path, *make_scan((3, 3, 2), 1))]
    for name, listed in (("train", dicts), ("test", dicts), ("val", [{**d, "scan_id": "other"} for d in dicts])):
        DatasetCatalog.register(name, lambda listed=listed: listed)
        MetadataCatalog.get(name).set(category_ids=[0], categories=["a"])
    with pytest.raises(LeakageError, match="0000001_V00"):
        build_loader(Config(TRAIN_DATASET="train", TEST_DATASET="test"), "train")
    with pytest.warns(DataWarning, match=r"'train', 'val' have no subject_id.*by scan_id instead") as caught:
        build_loader(Config(TRAIN_DATASET="train", VAL_DATASET="val"), "train")
    assert len(caught) == 1
    build_loader(Config(TRAIN_DATASET="train"), "train")  # nothing is compared


def test_subjects_are_compared_unchanged(register):
    register("train", (1, "sub-01"))
    register("val", ("1", "sub-1", "SUB-01"))
    register("test", ("sub-01",))
    build_loader(Config(TRAIN_DATASET="train", VAL_DATASET="val"), "train")
    with pytest.raises(LeakageError, match=r"1 subject is in both 'train'.*'test'.*: sub-01 \(collection"):
        build_loader(Config(TRAIN_DATASET="train", TEST_DATASET="test"), "train")


def test_an_unlistable_dataset_of_the_config_gives_a_warning(register):
    register("train")

    def broken():
        raise OSError("the disk is away")

    DatasetCatalog.register("val", broken)
    for cfg, part in (
        (Config(TRAIN_DATASET="train", VAL_DATASET="val"), "the disk is away"),
        (Config(TRAIN_DATASET="train", VAL_DATASET="nowhere"), "nowhere"),
    ):
        with pytest.warns(DataWarning, match=part) as caught:
            build_loader(cfg, "train", batch_size=1)
        assert len(caught) == 1


def test_a_dataset_is_listed_once(register):
    calls = []
    dicts = register("train")
    DatasetCatalog.register("counted", lambda: calls.append(1) or dicts)
    MetadataCatalog.get("counted").set(category_ids=[0, 1], categories=["a", "b"])
    register("val", (7,))
    build_loader(Config(TRAIN_DATASET="counted", VAL_DATASET="val"), "counted", batch_size=1)
    assert len(calls) == 1


def test_custom_dicts_of_custom_loaders_are_checked_for_leakage(site, plugins):
    site.add(
        "custom",
        """
        from medsegpy_core import LoaderSpec, hookimpl

        @hookimpl
        def medsegpy_register_loaders():
            return [LoaderSpec(name="CustomLoader", build=lambda request: request.dicts)]
        """,
    )
    plugins()
    for name, subject in (("train", 1), ("val", 2), ("test", 1)):
        DatasetCatalog.register(name, lambda subject=subject: [{"my_file": "x", "subject_id": subject}, "no dict", {}])
    cfg = Config(TAG="CustomLoader", TRAIN_DATASET="train", VAL_DATASET="val")
    assert build_loader(cfg, "train")[0] == {"my_file": "x", "subject_id": 1, "dataset_name": "train"}
    cfg.TEST_DATASET = "test"
    with pytest.raises(LeakageError):
        build_loader(cfg, "train")


# -- categories


def test_datasets_that_are_loaded_together_agree_in_categories(register):
    for name in ("one", "two", "three"):
        register(name)
    assert len(build_loader(Config(), ["one", "two"], batch_size=1)) == 4
    MetadataCatalog.get("two").set(categories=["a", "c"], replace=True)
    MetadataCatalog.get("three").set(category_ids=[0, (0, 1)], replace=True)
    for pair in (["one", "two"], ["one", "three"]):
        with pytest.raises(CategoryError, match=rf"'{pair[0]}'.*'{pair[1]}'"):
            build_loader(Config(CATEGORIES=[0]), pair)


def test_all_missing_metadata_are_listed(register):
    dicts = register("one")
    DatasetCatalog.register("bare", lambda: dicts)
    with pytest.raises(MetadataError, match=r"'bare'.*category_ids"):
        build_loader(Config(), "bare")
    assert len(build_loader(Config(CATEGORIES=[1]), "bare", batch_size=1)) == 2


def test_no_categories_anywhere(tmp_path):
    volume = save_volume(tmp_path, make_scan((3, 3, 2), 1)[0], None)
    with pytest.raises(CategoryError, match="CATEGORIES"):
        build_loader(Config(), [volume], is_test=True)


def test_an_invalid_dict(register):
    dicts = register("one")
    DatasetCatalog.register("broken", lambda: [dicts[0], {"file_name": "x"}])
    with pytest.raises(RecordError, match=r"'broken', element 1.*scan_id"):
        build_loader(Config(CATEGORIES=[0], TRAIN_DATASET="broken", VAL_DATASET="one"), "broken", allow_leakage=True)


@pytest.mark.parametrize(("returned", "what"), [(None, "None"), (5, "a int"), ({"a": 1}, "a dict"), ("a", "a str")])
def test_a_function_that_does_not_return_a_list(returned, what):
    DatasetCatalog.register("x", lambda: returned)
    with pytest.raises(RecordError, match=f"dataset 'x' returned {what}, expected a list"):
        build_loader(Config(), "x")
    with pytest.raises(RecordError, match=f"dataset 'x' returned {what}, expected a list"):
        load_scan("x", "s")


def test_invalid_options(tmp_path):
    dicts = save_slices(tmp_path, *make_scan((4, 3, 2), channels=1))
    for size in (0, 1.5, True, "8"):
        with pytest.raises(ConfigError, match=f"The batch size is {size!r}, expected an int"):
            build_loader(Config(), dicts, batch_size=size)
    with pytest.raises(ValueError, match=r"mask_dtype is 'int8', expected one of 'float32', 'uint8'\.$"):
        build_loader(Config(), dicts, mask_dtype="int8")
    with pytest.raises(TypeError, match=r"mmap is 'no', expected a bool\.$"):
        build_loader(Config(), dicts, mmap="no")
