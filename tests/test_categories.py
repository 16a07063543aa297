"""Category ids in loaders, compared with NumPy."""

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from scans import collated, everything, make_scan, save_slices, save_volume

from medsegpy_core import CategoryError, Config, DefaultDataLoader, MetadataCatalog, PatchDataLoader, build_loader
from medsegpy_core.data.categories import channels_of, normalize_category_id, normalize_category_ids, required_channels

IMAGE, MASK = make_scan((5, 4, 3), channels=5)

members = st.lists(st.integers(0, 4), min_size=1, max_size=5, unique=True)
ids = st.lists(st.one_of(st.integers(0, 4), members, members.map(tuple)), min_size=1, max_size=4)


@pytest.fixture(scope="module")
def scan(tmp_path_factory):
    root = tmp_path_factory.mktemp("scan")
    return save_slices(root, IMAGE, MASK), save_volume(root, IMAGE, MASK)


@settings(max_examples=40, deadline=None)
@given(ids, st.booleans())
def test_categories_are_picked_ordered_and_collated_by_or(scan, categories, background):
    keys = [c if isinstance(c, int) else tuple(c) for c in categories]
    if len(set(keys)) != len(keys):
        with pytest.raises(ValueError):
            Config(CATEGORIES=categories)
        return
    slices, volume = scan
    cfg = Config(CATEGORIES=categories, INCLUDE_BACKGROUND=background, IMG_SIZE=(5, 4, 3), NUM_WORKERS=0)
    expected = collated(MASK, categories, background)
    _, masks = PatchDataLoader(cfg, [volume], shuffle=False)[0]
    np.testing.assert_array_equal(masks[0], expected)
    assert masks.dtype == np.float32
    _, masks = everything(DefaultDataLoader(cfg, slices, shuffle=False))
    np.testing.assert_array_equal(np.moveaxis(masks, 0, 2), expected)


def test_an_overlap_stays_binary(tmp_path):
    mask = np.ones((2, 2, 1, 3), np.uint8)
    volume = save_volume(tmp_path, IMAGE[:2, :2, :1], mask)
    cfg = Config(CATEGORIES=[(0, 1, 2)], INCLUDE_BACKGROUND=True)
    _, masks = DefaultDataLoader(cfg, [volume])[0]
    np.testing.assert_array_equal(masks[0, ..., 1], 1)
    np.testing.assert_array_equal(masks[0, ..., 0], 0)


def test_without_categories_those_of_the_metadata_or_the_file_are_used(scan):
    slices, _ = scan
    _, masks = everything(build_loader(Config(), slices, shuffle=False, batch_size=1))
    np.testing.assert_array_equal(np.moveaxis(masks, 0, 2), MASK)
    MetadataCatalog.get("cats").set(category_ids=[4, (0, 2)], categories=["x", "y"])
    _, masks = everything(build_loader(Config(TRAIN_DATASET="cats"), slices, shuffle=False, batch_size=1))
    np.testing.assert_array_equal(np.moveaxis(masks, 0, 2), collated(MASK, [4, (0, 2)]))


def test_any_id_of_the_file_may_be_loaded(scan):
    slices, _ = scan
    MetadataCatalog.get("cats").set(category_ids=[0], categories=["x"])
    _, masks = everything(
        build_loader(Config(TRAIN_DATASET="cats", CATEGORIES=[3]), slices, shuffle=False, batch_size=1)
    )
    np.testing.assert_array_equal(np.moveaxis(masks, 0, 2), collated(MASK, [3]))


@pytest.mark.parametrize("category", [5, (0, 7)])
def test_an_id_beyond_the_file_names_id_file_and_count(scan, category):
    slices, volume = scan
    for dicts in (slices, [volume]):
        loader = build_loader(Config(CATEGORIES=[0, category]), dicts, shuffle=False, batch_size=1)
        with pytest.raises(CategoryError) as caught:
            next(iter(loader))
        for part in (repr(category), dicts[0]["sem_seg_file"], "5 channels"):
            assert part in str(caught.value)
        with pytest.raises(ValueError):
            loader[0]


@pytest.mark.parametrize("bad", [-1, True, 1.0, "1", None, (), (0, 0), (0, -1), ("a",), (0, (1,)), np.float32(1), b"0"])
def test_invalid_ids(bad):
    with pytest.raises(CategoryError):
        normalize_category_id(bad)
    with pytest.raises(ValueError):
        Config(CATEGORIES=[bad])


@pytest.mark.parametrize("bad", ["01", 3, None, [1, 1], [(0, 1), [0, 1]]])
def test_invalid_lists(bad):
    with pytest.raises(CategoryError):
        normalize_category_ids(bad)


def test_ids_are_normalized():
    assert normalize_category_ids([np.int64(2), [0, np.uint8(1)], (3,)]) == (2, (0, 1), (3,))
    assert normalize_category_id(np.array([0, 2])) == (0, 2)
    assert type(normalize_category_id(np.int64(2))) is int
    assert channels_of((0, 2)) == (0, 2)
    assert channels_of(3) == (3,)
    assert required_channels(()) == 0
    assert required_channels((0, (1, 4))) == 5
