"""Slices without labels, and missing slices."""

import warnings

import numpy as np
import pytest
from scans import collated, everything, make_scan, save_slices, save_volume

from medsegpy_core import (
    DatasetCatalog,
    DataWarning,
    DefaultDataLoader,
    MetadataCatalog,
    N5dDataLoader,
    PatchDataLoader,
    RandomPatchDataLoader,
    RecordError,
    S25dDataLoader,
    build_loader,
)
from medsegpy_core.config import Config

pytestmark = pytest.mark.usefixtures("backend")

SHAPE = (4, 3, 6)
IMAGE, MASK = make_scan(SHAPE, 2)
LABELLED = [1, 2, 3, 5]


@pytest.fixture
def partly(tmp_path):
    return save_slices(tmp_path, IMAGE, MASK, labelled=LABELLED)


@pytest.fixture
def bare(tmp_path):
    return save_slices(tmp_path / "bare", IMAGE, None)


def config(**keys):
    return Config(CATEGORIES=[0, 1], NUM_WORKERS=0, **keys)


def labels(mask_dtype="float32", background=False):
    """The mask, -1 (uint8: 255) for slices without one."""
    expected = collated(MASK, [0, 1], background).astype(mask_dtype)
    expected[:, :, [3, 5]] = 255 if mask_dtype == "uint8" else -1
    return expected


def test_unlabelled_slices_are_neighbors_but_not_elements(partly):
    images, masks = everything(DefaultDataLoader(config(), partly, shuffle=False))
    np.testing.assert_array_equal(images[..., 0], np.moveaxis(IMAGE, 2, 0)[[0, 1, 2, 4]])
    np.testing.assert_array_equal(masks, np.moveaxis(MASK, 2, 0)[[0, 1, 2, 4]])
    images, masks = everything(S25dDataLoader(config(IMG_SIZE=(4, 3, 3)), partly, shuffle=False))
    whole = np.pad(IMAGE, [(0, 0), (0, 0), (1, 1)], "edge")
    np.testing.assert_array_equal(images, [whole[:, :, d : d + 3] for d in (0, 1, 2, 4)])
    np.testing.assert_array_equal(masks, np.moveaxis(MASK, 2, 0)[[0, 1, 2, 4]])
    images, _ = everything(N5dDataLoader(config(IMG_SIZE=(4, 3, 3)), partly, shuffle=False))
    np.testing.assert_array_equal(images, [IMAGE[:, :, d - 1 : d + 2] for d in (1, 2, 4)])


def test_patches_with_unlabelled_slices_are_left_out(partly):
    images, masks = everything(PatchDataLoader(config(IMG_SIZE=(4, 3, 2), IMG_STRIDE=(1, 1, 1)), partly, shuffle=False))
    np.testing.assert_array_equal(images[..., 0], [IMAGE[:, :, d : d + 2] for d in (0, 1)])
    assert set(np.unique(masks)) <= {0, 1}


@pytest.mark.parametrize("mask_dtype", ["float32", "uint8"])
@pytest.mark.parametrize("background", [False, True])
@pytest.mark.parametrize("preload", [False, True])
@pytest.mark.parametrize("mode", ["edge", "constant", "reflect"])
def test_keep_unlabelled(partly, mask_dtype, background, preload, mode):
    options = {"shuffle": False, "keep_unlabelled": True, "mask_dtype": mask_dtype, "batch_size": 1}
    cfg = config(INCLUDE_BACKGROUND=background, PRELOAD_DATA=preload, IMG_PAD_MODE=mode)
    expected = np.moveaxis(labels(mask_dtype, background), 2, 0)
    for tag, size in (("DefaultDataLoader", ()), ("S25dDataLoader", (4, 3, 5))):
        cfg.TAG, cfg.IMG_SIZE = tag, size
        loader = build_loader(cfg, partly, **options)
        _, masks = everything(loader)
        np.testing.assert_array_equal(masks, expected)
        assert masks.dtype == mask_dtype
    cfg.TAG, cfg.IMG_SIZE = "PatchDataLoader", SHAPE
    _, masks = everything(build_loader(cfg, partly, **options))
    np.testing.assert_array_equal(masks[0], labels(mask_dtype, background))


@pytest.mark.parametrize("mode", ["edge", "constant"])
@pytest.mark.parametrize("background", [False, True])
@pytest.mark.parametrize("tag", ["DefaultDataLoader", "S25dDataLoader", "PatchDataLoader"])
def test_the_whole_row_of_an_unlabelled_slice_is_minus_one_in_the_padding_too(partly, mode, background, tag):
    size = {"DefaultDataLoader": (7, 8, 1), "S25dDataLoader": (7, 8, 3), "PatchDataLoader": (7, 8, 1)}[tag]
    cfg = config(IMG_SIZE=size, IMG_PAD_MODE=mode, INCLUDE_BACKGROUND=background, TAG=tag)
    _, masks = everything(build_loader(cfg, partly, shuffle=False, keep_unlabelled=True, batch_size=1))
    for i, mask in enumerate(masks, 1):
        if i in LABELLED:
            assert mask.min() >= 0
        else:
            np.testing.assert_array_equal(mask, -1)


@pytest.mark.parametrize("mode", ["edge", "constant"])
def test_an_unlabelled_volume(tmp_path, mode):
    volume = save_volume(tmp_path, IMAGE, None)
    cfg = config(IMG_SIZE=(6, 6, 8), IMG_PAD_MODE=mode, TAG="PatchDataLoader")
    images, masks = build_loader(cfg, [volume], keep_unlabelled=True, batch_size=1)[0]
    assert images.shape == (1, 6, 6, 8, 1)
    np.testing.assert_array_equal(masks, np.full((1, 6, 6, 8, 2), -1, np.float32))
    cfg.TAG = "RandomPatchDataLoader"
    for _, masks in build_loader(cfg, [volume], keep_unlabelled=True, batch_size=4):
        np.testing.assert_array_equal(masks, -1)


def test_is_test_batches_have_only_labelled_slices_by_default(partly):
    loader = build_loader(config(), partly, is_test=True, batch_size=1)
    assert len(loader) == 4
    assert len(build_loader(config(), partly, is_test=True, batch_size=1, keep_unlabelled=True)) == 6


def test_inference_covers_unlabelled_slices(partly, bare):
    for dicts in (partly, bare):
        ((inputs, outputs),) = build_loader(config(), dicts, is_test=True).inference(lambda x: np.repeat(x, 2, -1))
        np.testing.assert_array_equal(inputs["x"], IMAGE)
        np.testing.assert_array_equal(outputs["y_pred"], np.repeat(IMAGE[..., None], 2, -1))
        assert inputs["labelled"] is False
        assert outputs["y_true"] is None


def test_no_labels_at_all_is_an_error_that_names_the_dataset_and_the_remedy(bare):
    DatasetCatalog.register("bare", lambda: bare)
    MetadataCatalog.get("bare").set(category_ids=[0, 1], categories=["a", "b"])
    with pytest.raises(RecordError, match=r"'bare'.*keep_unlabelled"):
        build_loader(config(), "bare")
    loader = build_loader(config(), "bare", is_test=True)
    with pytest.raises(RecordError, match=r"'bare'.*keep_unlabelled"):
        next(iter(loader))
    with pytest.raises(RecordError, match=r"'bare'.*keep_unlabelled"):
        loader[0]
    assert len(list(loader.inference(lambda x: np.repeat(x, 2, -1)))) == 1
    images, masks = build_loader(config(), "bare", keep_unlabelled=True, batch_size=6, shuffle=False)[0]
    np.testing.assert_array_equal(images[..., 0], np.moveaxis(IMAGE, 2, 0))
    np.testing.assert_array_equal(masks, -1)


def test_no_elements_is_an_error_that_names_the_dataset():
    DatasetCatalog.register("empty", list)
    MetadataCatalog.get("empty").set(category_ids=[0, 1], categories=["a", "b"])
    with pytest.raises(RecordError, match="'empty'"):
        build_loader(config(), "empty")
    with pytest.raises(RecordError, match="no elements"):
        build_loader(config(), [])
    with pytest.raises(RecordError, match="no elements"):
        DefaultDataLoader(config(), [])


def test_random_patches_come_from_completely_labelled_scans(partly, tmp_path):
    whole = save_slices(tmp_path, IMAGE + 1, MASK, subject=2)
    loader = RandomPatchDataLoader(config(IMG_SIZE=(3, 3, 2), SEED=0), [*partly, *whole], batch_size=8)
    assert loader.num_elements == 8
    assert {e.record.subject_id for e in loader.elements(0)} == {2}
    with pytest.raises(RecordError, match="keep_unlabelled"):
        RandomPatchDataLoader(config(IMG_SIZE=(3, 3, 2)), partly)


# -- gaps


@pytest.fixture
def gappy(tmp_path):
    return save_slices(tmp_path / "gappy", IMAGE, MASK, present=[1, 2, 5, 6])


def test_a_missing_slice_is_replaced_by_the_nearest_with_one_warning(gappy):
    nearest = [0, 1, 1, 4, 4, 5]
    filled = IMAGE[:, :, nearest]
    with warnings.catch_warnings(record=True) as caught:
        warnings.simplefilter("always")
        loader = S25dDataLoader(config(IMG_SIZE=(4, 3, 3)), gappy, shuffle=False)
        images, masks = everything(loader)
        list(loader)
    (warning,) = caught
    assert warning.category is DataWarning
    assert "0000001_V00" in str(warning.message)
    assert "3, 4" in str(warning.message)
    whole = np.pad(filled, [(0, 0), (0, 0), (1, 1)], "edge")
    np.testing.assert_array_equal(images, [whole[:, :, d : d + 3] for d in (0, 1, 4, 5)])
    np.testing.assert_array_equal(masks, np.moveaxis(MASK, 2, 0)[[0, 1, 4, 5]])
    with pytest.warns(DataWarning):
        loader = PatchDataLoader(config(IMG_SIZE=SHAPE), gappy, shuffle=False)
    images, masks = loader[0]
    np.testing.assert_array_equal(images[0, ..., 0], filled)
    np.testing.assert_array_equal(masks[0], MASK[:, :, nearest])


def test_single_slices_ignore_gaps(gappy):
    images, _ = everything(DefaultDataLoader(config(), gappy, shuffle=False))
    np.testing.assert_array_equal(images[..., 0], np.moveaxis(IMAGE, 2, 0)[[0, 1, 4, 5]])


@pytest.mark.filterwarnings("ignore::medsegpy_core.DataWarning")
@pytest.mark.parametrize(
    ("tag", "size"), [("DefaultDataLoader", ()), ("S25dDataLoader", (4, 3, 3)), ("PatchDataLoader", (4, 3, 2))]
)
def test_inference_on_gaps(gappy, tag, size):
    loader = build_loader(config(TAG=tag, IMG_SIZE=size), gappy, is_test=True, batch_size=4)

    def model(x):
        middle = x[..., x.shape[-1] // 2 : x.shape[-1] // 2 + 1]
        return np.repeat(middle, 2, -1)

    with pytest.raises(RecordError, match="3, 4") as caught:
        list(loader.inference(model))
    assert "allow_gaps" in str(caught.value)
    ((inputs, outputs),) = loader.inference(model, allow_gaps=True)
    assert inputs["slice_ids"] == [1, 2, 5, 6]
    np.testing.assert_array_equal(inputs["x"], IMAGE[:, :, [0, 1, 4, 5]])
    np.testing.assert_array_equal(outputs["y_true"], MASK[:, :, [0, 1, 4, 5]])
    np.testing.assert_array_equal(outputs["y_pred"], np.repeat(IMAGE[:, :, [0, 1, 4, 5], None], 2, -1))


def test_slice_ids_are_returned_if_gaps_are_allowed(gappy, tmp_path):
    dicts = [*gappy, *save_slices(tmp_path, IMAGE, MASK, subject=2), save_volume(tmp_path, IMAGE, MASK, subject=3)]
    loader = build_loader(config(), dicts, is_test=True)
    found = [inputs["slice_ids"] for inputs, _ in loader.inference(lambda x: np.repeat(x, 2, -1), allow_gaps=True)]
    assert found == [[1, 2, 5, 6], [1, 2, 3, 4, 5, 6], [1, 2, 3, 4, 5, 6]]
