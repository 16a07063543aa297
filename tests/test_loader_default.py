"""The default loader: batches of slices from both formats, equal to what h5py reads; other threads and processes."""

import pickle
import threading
import time
from contextlib import contextmanager
from types import SimpleNamespace

import h5py
import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from scans import everything, make_scan, same, save, save_slices, save_volume, sent_by_child

from medsegpy_core import (
    DatasetCatalog,
    DefaultDataLoader,
    MetadataCatalog,
    RecordError,
    UnknownNameError,
    build_loader,
    filter_dicts,
    load_scan,
    register_reader,
)
from medsegpy_core.config import Config

pytestmark = pytest.mark.usefixtures("backend")

SCANS = {1: make_scan((6, 5, 4), 3, 1), 2: make_scan((6, 5, 3), 3, 2), 3: make_scan((6, 5, 5), 3, 3)}


@pytest.fixture(scope="module")
def both(tmp_path_factory):
    """The same three scans as slices and as volumes."""
    root = tmp_path_factory.mktemp("both")
    slices = [d for n, (image, mask) in SCANS.items() for d in save_slices(root, image, mask, subject=n)]
    return slices, [save_volume(root, image, mask, subject=n) for n, (image, mask) in SCANS.items()]


def read(d):
    with h5py.File(d["file_name"]) as image, h5py.File(d["sem_seg_file"]) as mask:
        return image["data"][:, :, 0], mask["data"][:, :, 0]


def test_elements_come_in_the_order_of_the_dicts(both):
    slices, _ = both
    shuffled = [slices[i] for i in np.random.default_rng(0).permutation(len(slices))]
    images, masks = everything(DefaultDataLoader(Config(), shuffled, shuffle=False, batch_size=5))
    assert images.shape == (12, 6, 5, 1)
    assert masks.shape == (12, 6, 5, 3)
    for d, image, mask in zip(shuffled, images, masks, strict=True):
        expected = read(d)
        np.testing.assert_array_equal(image[..., 0], expected[0])
        np.testing.assert_array_equal(mask, expected[1])


@settings(max_examples=25, deadline=None)
@given(
    batch_size=st.integers(1, 12),
    drop_last=st.booleans(),
    workers=st.integers(0, 3),
    preload=st.booleans(),
    shuffle=st.booleans(),
    is_test=st.booleans(),
    mask_dtype=st.sampled_from(["float32", "uint8"]),
    seed=st.integers(0, 5),
)
def test_slices_and_volumes_give_the_same_batches(
    both, batch_size, drop_last, workers, preload, shuffle, is_test, mask_dtype, seed
):
    cfg = Config(SEED=seed, NUM_WORKERS=workers, PRELOAD_DATA=preload, CATEGORIES=[2, (0, 1)], INCLUDE_BACKGROUND=True)
    settings = {
        "batch_size": batch_size,
        "shuffle": shuffle,
        "drop_last": drop_last,
        "is_test": is_test,
        "mask_dtype": mask_dtype,
    }
    loaders = [build_loader(cfg, dicts, **settings) for dicts in both]
    for loader in loaders:
        assert len(loader) == (12 // batch_size if drop_last and not is_test else -(-12 // batch_size))
        batches = list(loader)
        assert len(batches) == len(loader)
        assert same(batches, batches)
        for batch in batches:
            assert len(batch) == 2 + is_test
            assert all(array.flags.c_contiguous for array in batch)
            assert [array.dtype for array in batch] == [np.float32, mask_dtype, np.float32][: len(batch)]
            assert not is_test or batch[0].tobytes() == batch[2].tobytes()
        assert not is_test or not any(np.shares_memory(batch[0], batch[2]) for batch in batches)
    # The pass has moved the epoch on.
    for loader in loaders:
        loader.set_epoch(0)
    assert same(loaders[0], loaders[1])


def test_batches_by_number(both):
    loader = DefaultDataLoader(Config(SEED=0), both[0], batch_size=5)
    assert len(loader) == 3
    batches = list(loader)
    loader.set_epoch(0)
    assert same([loader[i] for i in range(3)], batches)
    assert same([loader[-1]], batches[-1:])
    for i in (3, -4):
        with pytest.raises(IndexError, match="3 batches"):
            loader[i]


def test_elements_describe_the_rows(both):
    for dicts in both:
        loader = DefaultDataLoader(Config(SEED=3), dicts, batch_size=5)
        for i in range(len(loader)):
            images, _ = loader[i]
            for element, image in zip(loader.elements(i), images, strict=True):
                whole, _ = SCANS[element.record.subject_id]
                depth = element.window[2].start
                assert element.record.slice_id in (depth + 1, None)
                np.testing.assert_array_equal(image[..., 0], whole[:, :, depth])


def test_channels(tmp_path):
    one, two = (make_scan((4, 3, 2), 1, n)[0] for n in (1, 2))
    mask = make_scan((4, 3, 2), 2)[1]
    path = save(tmp_path / "v.h5", T1=one, T2=two, seg=mask)
    base = {"file_name": path, "sem_seg_file": path, "scan_id": "s"}
    both = np.stack([one, two], axis=-1)
    images, masks = DefaultDataLoader(Config(), [{**base, "image_key": ("T1", "T2")}], shuffle=False, batch_size=2)[0]
    np.testing.assert_array_equal(images, np.moveaxis(both, 2, 0))
    np.testing.assert_array_equal(masks, np.moveaxis(mask, 2, 0))
    path = save(tmp_path / "c.h5", volume=both, seg=mask)
    d = {"file_name": path, "sem_seg_file": path, "scan_id": "s", "image_axes": "HWDC"}
    images, _ = DefaultDataLoader(Config(), [d], shuffle=False, batch_size=2)[0]
    np.testing.assert_array_equal(images, np.moveaxis(both, 2, 0))
    slices = []
    for i in range(2):
        image = save(tmp_path / f"{i}.im", data=both[:, :, i])
        label = save(tmp_path / f"{i}.seg", data=mask[:, :, i])
        slices.append(
            {
                "file_name": image,
                "sem_seg_file": label,
                "scan_id": "s",
                "slice_id": i + 1,
                "scan_num_slices": 2,
                "image_axes": "HWC",
            }
        )
    images, _ = DefaultDataLoader(Config(), slices, shuffle=False, batch_size=2)[0]
    np.testing.assert_array_equal(images, np.moveaxis(both, 2, 0))


def test_batch_sizes_by_role(both):
    for name in ("a", "b", "c", "d"):
        DatasetCatalog.register(name, lambda name=name: filter_dicts(both[0], "subject_id", [1]))
        MetadataCatalog.get(name).set(collection=name, category_ids=[0, 1, 2], categories=["x", "y", "z"])
    cfg = Config(
        TRAIN_DATASET="a", VAL_DATASET="b", TEST_DATASET="c", TRAIN_BATCH_SIZE=1, VALID_BATCH_SIZE=2, TEST_BATCH_SIZE=3
    )
    assert build_loader(cfg, "a").batch_size == 1
    assert build_loader(cfg, "b", is_test=True).batch_size == 2
    assert build_loader(cfg, "c", is_test=True).batch_size == 3
    assert build_loader(cfg, "d").batch_size == 1
    assert build_loader(cfg, "d", is_test=True).batch_size == 3
    assert build_loader(cfg, "a", batch_size=4).batch_size == 4


def test_shuffle_and_drop_last_follow_is_test(both):
    cfg = Config(SEED=1)
    train = build_loader(cfg, both[0], batch_size=5)
    assert len(train) == 2
    assert not same(train, build_loader(cfg, both[0], batch_size=5, shuffle=False, drop_last=True))
    test = build_loader(cfg, both[0], batch_size=5, is_test=True)
    assert len(test) == 3
    assert same(test, build_loader(cfg, both[0], batch_size=5, shuffle=False, is_test=True, drop_last=True))


def test_several_names(both):
    for n in (1, 2):
        DatasetCatalog.register(f"set{n}", lambda n=n: filter_dicts(both[n - 1], "subject_id", [n]))
        MetadataCatalog.get(f"set{n}").set(category_ids=[0, 1, 2], categories=["x", "y", "z"])
    loader = build_loader(Config(), ["set2", "set1"], batch_size=7, shuffle=False)
    images, _ = loader[0]
    expected = np.concatenate([np.moveaxis(SCANS[n][0], 2, 0) for n in (2, 1)])
    np.testing.assert_array_equal(images[..., 0], expected)
    assert [e.record.dataset for e in loader.elements(0)] == ["set2"] * 3 + ["set1"] * 4
    with pytest.raises(RecordError, match="twice"):
        build_loader(Config(), ["set1", "set1"])
    with pytest.raises(UnknownNameError, match="set1"):
        build_loader(Config(), ["set1", "set3"])
    with pytest.raises(TypeError):
        build_loader(Config(), ["set1", both[0][0]])


def test_the_loader_has_a_copy_of_the_config(both):
    cfg = Config(SEED=1, CATEGORIES=[0, 1])
    loader = build_loader(cfg, both[0], batch_size=5)
    before = list(loader)
    cfg.SEED, cfg.CATEGORIES, cfg.NUM_WORKERS = 2, [2], 0
    loader.set_epoch(0)
    assert same(loader, before)


def test_an_unknown_loader_names_the_closest(both):
    with pytest.raises(UnknownNameError, match="DefaultDataLoader"):
        build_loader(Config(TAG="DefaultDataLoadr"), both[0])


@pytest.mark.parametrize("value", ["float64", "int64", "bool", np.float32, None])
def test_unknown_mask_types(both, value):
    with pytest.raises(ValueError, match="mask_dtype"):
        build_loader(Config(), both[0], mask_dtype=value)


@pytest.mark.parametrize("value", [0, -1])
def test_invalid_batch_sizes(both, value):
    with pytest.raises(ValueError, match="batch size"):
        build_loader(Config(), both[0], batch_size=value)


def test_load_scan(both):
    DatasetCatalog.register("slices", lambda: both[0])
    DatasetCatalog.register("volumes", lambda: both[1])
    for name in ("slices", "volumes"):
        image, mask = load_scan(name, "0000002_V00")
        np.testing.assert_array_equal(image, SCANS[2][0])
        np.testing.assert_array_equal(mask, SCANS[2][1])
        assert mask.dtype == np.uint8
    with pytest.raises(UnknownNameError, match="0000002_V00"):
        load_scan("slices", "0000002_V01")


def test_filter_dicts(both):
    assert [d["slice_id"] for d in filter_dicts(both[0], "subject_id", [2])] == [1, 2, 3]
    assert filter_dicts(both[0], "gone", [None]) == both[0]
    assert filter_dicts(both[0], "subject_id", []) == []


def test_filter_dicts_knows_augmentations_as_loaders_do(tmp_path):
    numbers = {"0000001_V00-Aug00_001.im": 0, "0000001_V00-Aug02_001.im": 2, "other.im": 0}
    dicts = [{"file_name": name, "scan_id": "s", "slice_id": 1, "scan_num_slices": 1} for name in numbers]
    dicts += [{"file_name": "0000001_V00-Aug02_001.im", "augmentation": 3}, {"custom": 1}]
    assert filter_dicts(dicts, "augmentation", [0]) == [dicts[0], dicts[2]]
    assert filter_dicts(dicts, "augmentation", [2]) == [dicts[1]]
    assert filter_dicts(dicts, "augmentation", [3, None]) == dicts[3:]


class Probing:
    """A second reader of ".h5" files that recognizes its files by their content."""

    name, suffixes = "probing", (".h5",)

    def probe(self, path):
        with h5py.File(path) as file:
            return "mine" in file

    @contextmanager
    def open(self, record):
        with h5py.File(record.file_name) as file:
            yield SimpleNamespace(image=file["mine"][...] + 1000, mask=file["labels"][...], metadata={})


def test_files_are_probed_if_suffixes_are_ambiguous(tmp_path):
    register_reader(Probing())
    image, mask = SCANS[1]
    theirs = save_volume(tmp_path, image, mask, subject=1)
    path = save(tmp_path / "other.h5", mine=image, labels=mask)
    ours = {"file_name": path, "sem_seg_file": path, "scan_id": "other"}
    for dicts in ([theirs, ours], [ours, theirs]):
        images, _ = everything(build_loader(Config(), dicts, shuffle=False, batch_size=4))
        for d, found in zip(dicts, np.split(images[..., 0], 2), strict=True):
            np.testing.assert_array_equal(found, np.moveaxis(image + (1000 if d is ours else 0), 2, 0))


# -- other processes and threads


def _digest(loader, out):
    out.send([[array.tobytes() for array in batch] for batch in loader])


@pytest.mark.parametrize("method", ["fork", "spawn"])
def test_another_process_makes_the_same_batches_without_registrations(both, method):
    DatasetCatalog.register("here_only", lambda: both[0])
    MetadataCatalog.get("here_only").set(category_ids=[0, 2], categories=["x", "y"], label_map=False)
    loader = build_loader(Config(SEED=1, NUM_WORKERS=2), "here_only", batch_size=5)
    expected = [[array.tobytes() for array in batch] for batch in loader]
    loader.set_epoch(0)
    assert sent_by_child(method, _run, _pickled(loader, method)) == expected


def _pickled(loader, method):
    return pickle.dumps(loader) if method == "spawn" else loader


def _run(loader, out):
    _digest(pickle.loads(loader) if isinstance(loader, bytes) else loader, out)


def test_a_child_forked_in_the_middle_of_a_pass(both):
    cfg = Config(SEED=1, NUM_WORKERS=3, IMG_SIZE=(3, 3, 2))
    for tag in ("DefaultDataLoader", "RandomPatchDataLoader"):
        cfg.TAG = tag
        cfg.IMG_SIZE = () if tag == "DefaultDataLoader" else (3, 3, 2)
        loader = build_loader(cfg, both[0], batch_size=1)
        expected = [[array.tobytes() for array in batch] for batch in loader]
        loader.set_epoch(0)
        iterator = iter(loader)
        next(iterator)
        assert sent_by_child("fork", _digest, loader) == expected
        assert len(list(iterator)) == len(expected) - 1


def _slowly(image, mask):
    time.sleep(0.02)
    return image, mask


@pytest.mark.parametrize("reuse", [False, True])
def test_a_child_continues_the_pass_of_its_parent(both, reuse):
    cfg = Config(SEED=1, NUM_WORKERS=3)
    loader = build_loader(cfg, both[0], batch_size=1, transform=_slowly, reuse_buffers=reuse)
    expected = [[array.tobytes() for array in batch] for batch in loader]
    loader.set_epoch(0)
    iterator = iter(loader)
    next(iterator)
    assert sent_by_child("fork", _digest, iterator) == expected[1:]
    assert [[array.tobytes() for array in batch] for batch in iterator] == expected[1:]


@pytest.mark.parametrize("tag", ["DefaultDataLoader", "RandomPatchDataLoader"])
def test_a_pickled_loader_keeps_its_position(both, tag):
    cfg = Config(SEED=1, TAG=tag, IMG_SIZE=(6, 5, 2) if tag != "DefaultDataLoader" else ())
    loader = build_loader(cfg, both[0], batch_size=2)
    list(loader)
    copy = pickle.loads(pickle.dumps(loader))
    assert copy.epoch == 1
    assert copy.state_dict() == loader.state_dict()
    assert same(copy, loader)


def test_several_threads_use_one_loader(both):
    loader = build_loader(Config(SEED=1, NUM_WORKERS=2), both[1], batch_size=2)
    expected = [loader[i] for i in range(len(loader))]
    found = {}

    def work(n):
        found[n] = [loader[i] for i in range(len(loader))]

    threads = [threading.Thread(target=work, args=(n,)) for n in range(4)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert all(same(batches, expected) for batches in found.values())
    assert len(found) == 4
