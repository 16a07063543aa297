"""Names, constructors, grids and values that users of MedSegPy rely on."""

import inspect
import itertools
import os
import warnings

import numpy as np
import pytest
from scans import make_scan, save_slices, save_volume

import medsegpy_core
from medsegpy_core import (
    Config,
    DefaultDataLoader,
    N5dDataLoader,
    PatchDataLoader,
    RandomPatchDataLoader,
    S25dDataLoader,
    compute_patches,
)

SHAPE = (10, 20, 30)
IMAGE, MASK = make_scan(SHAPE, 4)
LOADERS = [DefaultDataLoader, S25dDataLoader, N5dDataLoader, PatchDataLoader, RandomPatchDataLoader]


@pytest.fixture(scope="module")
def dicts(tmp_path_factory):
    volume = save_volume(tmp_path_factory.mktemp("volume"), IMAGE, MASK)
    path = volume["file_name"]
    return [{"file_name": path, "sem_seg_file": path, "scan_id": os.path.basename(path)[:-3], "image_size": SHAPE}]


def config(size, **keys):
    cfg = Config("")
    cfg.IMG_SIZE = size
    cfg.CATEGORIES = (0, 1, 3)
    for key, value in keys.items():
        setattr(cfg, key, value)
    return cfg


def test_a_config_without_a_name():
    assert Config("").MODEL_NAME == ""
    assert Config("unet").MODEL_NAME == "unet"


@pytest.mark.parametrize("loader", LOADERS)
def test_the_constructor(loader):
    parameters = list(inspect.signature(loader).parameters.values())
    assert [p.name for p in parameters] == ["cfg", "dataset_dicts", "is_test", "shuffle", "drop_last", "batch_size"]
    assert [p.default for p in parameters[2:]] == [False, True, False, 1]


def test_patches_of_one_slice_are_the_slices_in_order(dicts):
    cfg = config((10, 20, 1))
    loader = PatchDataLoader(cfg, dicts, False, False)
    assert len(loader) == SHAPE[2]
    for depth in range(SHAPE[2]):
        image, seg = loader[depth]
        assert image.shape == (1, 10, 20, 1)
        np.testing.assert_array_equal(np.squeeze(image, axis=(0, 3)), IMAGE[..., depth])
        np.testing.assert_array_equal(np.squeeze(seg, axis=0), MASK[:, :, depth, cfg.CATEGORIES])


def test_windows_without_padding_omit_the_ends(dicts):
    cfg = config((10, 20, 5))
    loader = N5dDataLoader(cfg, dicts, is_test=False, shuffle=False)
    assert len(loader) == SHAPE[2] - 4
    for i, depth in enumerate(range(2, SHAPE[2] - 2)):
        image, seg = loader[i]
        np.testing.assert_array_equal(image[0], IMAGE[..., depth - 2 : depth + 3])
        np.testing.assert_array_equal(seg[0], MASK[:, :, depth, cfg.CATEGORIES])


@pytest.mark.parametrize("mode", ["edge", "reflect", "symmetric", "constant", "wrap"])
def test_windows_with_padding_have_one_for_each_slice(dicts, mode):
    cfg = config((10, 20, 3), IMG_PAD_SIZE=(0, 0, 1), IMG_PAD_MODE=mode)
    loader = N5dDataLoader(cfg, dicts, is_test=False, shuffle=False)
    whole = np.pad(IMAGE, ((0, 0), (0, 0), (1, 1)), mode)
    assert len(loader) == SHAPE[2]
    for depth in range(SHAPE[2]):
        image, seg = loader[depth]
        np.testing.assert_array_equal(image[0], whole[..., depth : depth + 3])
        np.testing.assert_array_equal(seg[0], MASK[:, :, depth, cfg.CATEGORIES])


def test_a_test_loader_has_the_raw_images_third(dicts):
    cfg = config((10, 20, 1), PREPROCESSING=["ZeroMeanNormalization"])
    loader = PatchDataLoader(cfg, dicts, is_test=True, shuffle=False, batch_size=7)
    assert len(loader) == 5
    image, _, raw = loader[4]
    assert raw.shape == (2, 10, 20, 1)
    np.testing.assert_array_equal(raw[..., 0], np.moveaxis(IMAGE[..., 28:], 2, 0))
    assert abs(float(image.mean())) < 1e-3


def test_batches_of_slices(tmp_path):
    slices = save_slices(tmp_path, IMAGE[..., :6], MASK[..., :6, :])
    cfg = config((10, 20, 1), INCLUDE_BACKGROUND=True)
    loader = DefaultDataLoader(cfg, slices, is_test=False, shuffle=False, drop_last=True, batch_size=4)
    assert len(loader) == 1
    image, seg = loader[0]
    chosen = np.moveaxis(MASK[..., :4, :], 2, 0)[..., cfg.CATEGORIES]
    np.testing.assert_array_equal(image[..., 0], np.moveaxis(IMAGE[..., :4], 2, 0))
    np.testing.assert_array_equal(seg[..., 1:], chosen)
    np.testing.assert_array_equal(seg[..., 0], ~chosen.any(axis=-1))


def test_inference_of_a_loader_made_by_hand(dicts):
    loader = PatchDataLoader(config((10, 20, 1)), dicts, is_test=True, shuffle=False, batch_size=4)
    ((inputs, outputs),) = loader.inference(lambda x: x.repeat(3, axis=-1))
    np.testing.assert_array_equal(inputs["x"], IMAGE)
    np.testing.assert_array_equal(outputs["y_true"], MASK[..., (0, 1, 3)])
    assert inputs["scan_id"] == dicts[0]["scan_id"]


# -- compute_patches


def axis(*bounds):
    return [slice(a, b) for a, b in bounds]


CASES = [
    # (patch, keywords, what each axis has inside, and what it is padded by)
    (SHAPE, {}, [axis((0, 10)), axis((0, 20)), axis((0, 30))], None),
    ((5, 10, 15), {}, [axis((0, 5), (5, 10)), axis((0, 10), (10, 20)), axis((0, 15), (15, 30))], None),
    ((5, 20, 30), {"strides": 2}, [axis((0, 5), (2, 7), (4, 9)), axis((0, 20)), axis((0, 30))], None),
    (
        (5, 10, 15),
        {"pad_size": 1},
        [axis((0, 4), (4, 9)), axis((0, 9), (9, 19)), axis((0, 14), (14, 29))],
        [[(1, 0), (0, 0)]] * 3,
    ),
    (
        (5, 10, 15),
        {"pad_size": (2, None, None), "strides": (3, 10, 15)},
        [axis((0, 3), (1, 6), (4, 9), (7, 10)), axis((0, 10), (10, 20)), axis((0, 15), (15, 30))],
        [[(2, 0), (0, 0), (0, 0), (0, 2)], [(0, 0)] * 2, [(0, 0)] * 2],
    ),
    (
        (5, 10, 30),
        {"pad_size": (4, 5, 0)},
        [axis((0, 1), (1, 6), (6, 10)), axis((0, 5), (5, 15), (15, 20)), axis((0, 30))],
        [[(4, 0), (0, 0), (0, 1)], [(5, 0), (0, 0), (0, 5)], [(0, 0)]],
    ),
]


@pytest.mark.parametrize(("patch", "keys", "inside", "pads"), CASES)
def test_compute_patches(patch, keys, inside, pads):
    found = compute_patches(SHAPE, patch, **keys)
    assert [where for where, _ in found] == list(itertools.product(*inside))
    pads = pads or [[(0, 0)] * len(windows) for windows in inside]
    assert [pad for _, pad in found] == [pad if any(map(any, pad)) else None for pad in itertools.product(*pads)]


def test_compute_patches_is_how_the_loader_cuts(dicts):
    patch, pad, stride = (4, 7, 11), (2, 3, 4), (3, 5, 6)
    cfg = config(patch, IMG_PAD_SIZE=pad, IMG_STRIDE=stride)
    patches = compute_patches(SHAPE, patch, pad, stride)
    loader = PatchDataLoader(cfg, dicts, shuffle=False, batch_size=len(patches))
    images, _ = loader[0]
    assert len(loader) == 1
    for image, (where, widths) in zip(images, patches, strict=True):
        part = IMAGE[where] if widths is None else np.pad(IMAGE[where], widths, "edge")
        np.testing.assert_array_equal(image[..., 0], part)


@pytest.mark.parametrize("keys", [{"pad_size": (1, 1)}, {"strides": (1, 1)}, {"pad_size": 5}, {"patch_size": (5, 5)}])
def test_compute_patches_rejects_inconsistent_arguments(keys):
    with pytest.raises(ValueError):
        compute_patches(SHAPE, **{"patch_size": (5, 5, 5), **keys})


def test_public_names():
    assert medsegpy_core.compute_patches is medsegpy_core.loading.compute_patches
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        for loader in LOADERS:
            assert getattr(medsegpy_core, loader.__name__) is loader
