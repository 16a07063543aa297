"""2.5D windows and patches, compared with crops of the whole scan padded by `numpy.pad`."""

import math

import numpy as np
import pytest
from hypothesis import example, given, settings
from hypothesis import strategies as st
from scans import collated, everything, make_scan, padding_of, patches_of, save, save_slices, save_volume

from medsegpy_core import (
    ConfigError,
    N5dDataLoader,
    PatchDataLoader,
    RandomPatchDataLoader,
    S25dDataLoader,
    build_loader,
    write_slices,
    write_volume,
)
from medsegpy_core.config import Config

pytestmark = pytest.mark.usefixtures("backend")

SHAPE = (6, 5, 7)
IMAGE, MASK = make_scan(SHAPE, 3)
MODES = ["constant", "edge", "reflect", "symmetric", "wrap"]
CATEGORIES = [2, (0, 1)]


@pytest.fixture(scope="module")
def both(tmp_path_factory):
    root = tmp_path_factory.mktemp("both")
    return save_slices(root, IMAGE, MASK), [save_volume(root, IMAGE, MASK)]


def check(loader, images, masks):
    found = everything(loader)
    assert len(found[0]) == len(images) == loader.num_elements
    np.testing.assert_array_equal(found[0], np.stack(images))
    np.testing.assert_array_equal(found[1], np.stack(masks))
    assert found[0].dtype == found[1].dtype == np.float32


triples = st.tuples(*[st.integers(0, 9)] * 3)
sizes = st.tuples(*[st.integers(1, 12)] * 3)


@settings(max_examples=80, deadline=None)
@given(
    patch=sizes,
    pad=triples,
    stride=st.one_of(st.none(), st.tuples(*[st.integers(1, 8)] * 3)),
    mode=st.sampled_from(MODES),
    background=st.booleans(),
    preload=st.booleans(),
    four=st.booleans(),
)
@example((4, 4, 4), (9, 9, 9), None, "reflect", True, False, True)
@example((12, 12, 12), (0, 0, 0), None, "reflect", True, False, True)
@example((20, 1, 30), (0, 0, 0), None, "symmetric", False, False, False)
@example((30, 30, 30), (0, 0, 0), None, "wrap", False, False, False)
@example((2, 2, 2), (3, 3, 3), (2, 2, 2), "constant", True, False, False)
def test_patches(both, patch, pad, stride, mode, background, preload, four):
    # A grid of thousands tests no more than one of tens.
    stride = tuple(max(s, 3) for s in (stride or patch)) if math.prod(pad) > 30 or stride else stride
    cfg = Config(
        IMG_SIZE=(*patch, 1) if four else patch,
        IMG_PAD_SIZE=pad,
        IMG_STRIDE=stride or (),
        IMG_PAD_MODE=mode,
        CATEGORIES=CATEGORIES,
        INCLUDE_BACKGROUND=background,
        PRELOAD_DATA=preload,
        NUM_WORKERS=0,
    )
    images = [p[..., None] for p in patches_of(IMAGE, patch, pad, stride, mode)]
    # Padding is of the scan as it is in the file: where 0 is padded, there is nothing, which is background.
    masks = [collated(p, CATEGORIES, background) for p in patches_of(MASK, patch, pad, stride, mode)]
    if patch[2] == 1:
        images, masks = [p[:, :, 0] for p in images], [p[:, :, 0] for p in masks]
    for dicts in both:
        check(PatchDataLoader(cfg, dicts, shuffle=False, batch_size=7), images, masks)


@settings(max_examples=40, deadline=None)
@given(depth=st.sampled_from([1, 3, 5, 7, 9, 15]), mode=st.sampled_from(MODES), background=st.booleans())
def test_a_slice_and_its_neighbors(both, depth, mode, background):
    cfg = Config(
        IMG_SIZE=(*SHAPE[:2], depth),
        IMG_PAD_MODE=mode,
        CATEGORIES=CATEGORIES,
        INCLUDE_BACKGROUND=background,
        NUM_WORKERS=0,
    )
    whole = np.pad(IMAGE, [(0, 0), (0, 0), (depth // 2, depth // 2)], mode)
    images = [whole[:, :, d : d + depth] for d in range(SHAPE[2])]
    masks = np.moveaxis(collated(MASK, CATEGORIES, background), 2, 0)
    for dicts in both:
        check(S25dDataLoader(cfg, dicts, shuffle=False, batch_size=3), images, masks)
        for i, element in enumerate(S25dDataLoader(cfg, dicts, shuffle=False, batch_size=7).elements(0)):
            assert element.record.slice_id in (None, i + 1)
            assert element.window[2] == slice(i - depth // 2, i - depth // 2 + depth)


@settings(max_examples=40, deadline=None)
@given(
    depth=st.sampled_from([1, 3, 5, 7, 9, 11]),
    pad=st.integers(0, 6),
    stride=st.integers(1, 4),
    mode=st.sampled_from(MODES),
)
def test_windows_of_a_volume(both, depth, pad, stride, mode):
    cfg = Config(
        IMG_SIZE=(*SHAPE[:2], depth),
        IMG_PAD_SIZE=(0, 0, pad),
        IMG_STRIDE=(1, 1, stride),
        IMG_PAD_MODE=mode,
        CATEGORIES=CATEGORIES,
        NUM_WORKERS=0,
    )
    args = ((*SHAPE[:2], depth), (0, 0, pad), (1, 1, stride), mode)
    images = patches_of(IMAGE, *args)
    masks = [collated(p[:, :, depth // 2], CATEGORIES) for p in patches_of(MASK, *args)]
    for dicts in both:
        check(N5dDataLoader(cfg, dicts, shuffle=False, batch_size=4), images, masks)
    if stride == 1:
        cfg.IMG_STRIDE = ()
        check(N5dDataLoader(cfg, both[1], shuffle=False), images, masks)


@settings(max_examples=30, deadline=None)
@given(patch=sizes, pad=st.tuples(*[st.integers(0, 5)] * 3), tag=st.sampled_from(["PatchDataLoader", "N5dDataLoader"]))
def test_elements_of_padded_windows_have_the_record_of_the_nearest_slice(both, patch, pad, tag):
    patch = (*SHAPE[:2], patch[2] | 1) if tag == "N5dDataLoader" else patch
    pad = (0, 0, pad[2]) if tag == "N5dDataLoader" else pad
    loader = build_loader(
        Config(IMG_SIZE=patch, IMG_PAD_SIZE=pad, TAG=tag, NUM_WORKERS=0),
        both[0],
        shuffle=False,
        batch_size=10**6,
        drop_last=False,
    )
    for element in loader.elements(0):
        window = element.window[2]
        middle = (window.start + window.stop) // 2
        assert element.record.slice_id == min(max(middle, 0), SHAPE[2] - 1) + 1


def test_several_scans_in_the_order_of_the_dicts(tmp_path):
    shapes = [(6, 5, 4), (3, 9, 5), (8, 2, 3)]
    scans = [make_scan(shape, 2, n) for n, shape in enumerate(shapes)]
    dicts = [save_volume(tmp_path, *scan, subject=9 - n) for n, scan in enumerate(scans)]
    cfg = Config(IMG_SIZE=(4, 4, 2), IMG_PAD_SIZE=(1, 0, 1), IMG_STRIDE=(2, 3, 2), NUM_WORKERS=0)
    args = ((4, 4, 2), (1, 0, 1), (2, 3, 2))
    images = [p[..., None] for image, _ in scans for p in patches_of(image, *args)]
    masks = [p for _, mask in scans for p in patches_of(mask, *args)]
    check(PatchDataLoader(cfg, dicts, shuffle=False, batch_size=5), images, masks)


def test_patches_of_several_channels(tmp_path):
    two = np.stack([IMAGE, IMAGE + 1], axis=-1)
    path = save(tmp_path / "x.h5", a=IMAGE, b=IMAGE + 1, seg=MASK)
    d = {"file_name": path, "sem_seg_file": path, "scan_id": "s", "image_key": ("a", "b")}
    for patch in ((4, 4, 3), (4, 4, 1)):
        for mode in MODES:
            cfg = Config(IMG_SIZE=patch, IMG_PAD_SIZE=(2, 1, 2), IMG_PAD_MODE=mode, NUM_WORKERS=0)
            images, masks = patches_of(two, patch, (2, 1, 2), mode=mode), patches_of(MASK, patch, (2, 1, 2), mode=mode)
            if patch[2] == 1:
                images, masks = [p[:, :, 0] for p in images], [p[:, :, 0] for p in masks]
            check(PatchDataLoader(cfg, [d], shuffle=False, batch_size=3), images, masks)


@pytest.mark.parametrize("mode", MODES)
@pytest.mark.parametrize("as_slices", [False, True])
def test_windows_of_several_channels_are_slice_major(tmp_path, mode, as_slices):
    cfg = Config(IMG_SIZE=(IMAGE.shape[0] + 2, IMAGE.shape[1], 3), IMG_PAD_MODE=mode, NUM_WORKERS=0)
    several = np.stack([IMAGE, IMAGE + 1, -IMAGE], axis=-1)
    if as_slices:
        dicts = write_slices(tmp_path, several, MASK, subject_id=1)
    else:
        dicts = [write_volume(tmp_path / "x.h5", several, MASK)]
    depth = IMAGE.shape[2]
    whole = np.pad(several, [(1, 1), (0, 0), (1, 1), (0, 0)], mode)
    mask = np.pad(MASK, [(1, 1), (0, 0), (0, 0), (0, 0)], mode)
    # The last axis of a window: of its first slice the channels, then of its second, ...
    images = [np.concatenate([whole[:, :, d + i] for i in range(3)], axis=-1) for d in range(depth)]
    masks = [mask[:, :, d] for d in range(depth)]
    check(S25dDataLoader(cfg, dicts, shuffle=False, batch_size=3), images, masks)
    check(N5dDataLoader(cfg, dicts, shuffle=False, batch_size=3), images[1:-1], masks[1:-1])

    def middle(x):
        return x.reshape(*x.shape[:-1], -1, 3)[..., x.shape[-1] // 6, :]

    for loader in (S25dDataLoader, N5dDataLoader):
        ((inputs, outputs),) = loader(cfg, dicts, is_test=True, batch_size=4).inference(middle)
        np.testing.assert_array_equal(inputs["x"], several)
        np.testing.assert_array_equal(outputs["y_pred"], several)


@settings(max_examples=30, deadline=None)
@given(
    patch=st.tuples(*[st.integers(1, 9)] * 3),
    pad=st.tuples(*[st.integers(0, 2)] * 3),
    per_scan=st.integers(1, 9),
    ratio=st.floats(0, 1),
    seed=st.integers(0, 3),
)
def test_random_patches(both, patch, pad, per_scan, ratio, seed):
    cfg = Config(
        IMG_SIZE=patch,
        IMG_PAD_SIZE=pad,
        PATCHES_PER_SCAN=per_scan,
        FOREGROUND_RATIO=ratio,
        SEED=seed,
        CATEGORIES=CATEGORIES,
        NUM_WORKERS=0,
    )
    for dicts in both:
        loader = RandomPatchDataLoader(cfg, dicts, shuffle=False, batch_size=per_scan)
        for epoch in (0, 3):
            loader.set_epoch(epoch)
            images, masks = loader[0]
            assert len(loader) == 1
            assert len(images) == per_scan
            widths = [padding_of(*sizes) for sizes in zip(SHAPE, patch, pad, strict=True)]
            whole, labels = np.pad(IMAGE, widths, "edge"), np.pad(MASK, [*widths, (0, 0)], "edge")
            for n, element in enumerate(loader.elements(0)):
                cut = tuple(
                    slice(w.start + before, w.stop + before)
                    for w, (before, _) in zip(element.window, widths, strict=True)
                )
                assert all(c.start >= 0 and c.stop <= size for c, size in zip(cut, whole.shape, strict=True))
                image, mask = whole[cut][..., None], collated(labels[cut], CATEGORIES)
                np.testing.assert_array_equal(images[n], image[:, :, 0] if patch[2] == 1 else image)
                np.testing.assert_array_equal(masks[n], mask[:, :, 0] if patch[2] == 1 else mask)


def test_foreground_patches_are_centered_on_a_category_drawn_evenly(tmp_path):
    mask = np.zeros((40, 40, 40, 4), np.uint8)
    mask[5:15, 5:15, 5:15, 0] = 1  # a thousand voxels
    mask[30, 31, 32, 1] = 1  # one
    mask[20, 20, 20, 3] = 1  # not selected; category 2 does not exist
    dicts = [save_volume(tmp_path, np.zeros((40, 40, 40), np.float32), mask)]
    cfg = Config(IMG_SIZE=(5, 4, 3), PATCHES_PER_SCAN=300, FOREGROUND_RATIO=1.0, SEED=0, CATEGORIES=[0, 1, 2])
    loader = RandomPatchDataLoader(cfg, dicts, shuffle=False, batch_size=300)
    centers = np.array(
        [[w.start + p // 2 for w, p in zip(e.window, (5, 4, 3), strict=True)] for e in loader.elements(0)]
    )
    rare = (centers == (30, 31, 32)).all(axis=1)
    common = ((centers >= 5) & (centers < 15)).all(axis=1)
    assert (rare | common).all()
    assert 110 < rare.sum() < 190
    assert len({tuple(c) for c in centers[common]}) > 80


@pytest.mark.parametrize(
    ("per_scan", "ratio", "expected"),
    [(8, 1 / 3, 3), (3, 1 / 3, 1), (9, 1 / 3, 3), (5, 0.0, 0), (5, 1.0, 5), (1, 0.01, 1)],
)
def test_how_many_patches_are_centered_on_foreground(tmp_path, per_scan, ratio, expected):
    mask = np.zeros((40, 40, 8, 1), np.uint8)
    mask[20, 20, 4] = 1
    image = np.zeros((40, 40, 8), np.float32)
    dicts = [save_volume(tmp_path, image, mask, subject=n) for n in (1, 2)]
    cfg = Config(IMG_SIZE=(3, 3, 3), PATCHES_PER_SCAN=per_scan, FOREGROUND_RATIO=ratio, SEED=0)
    loader = RandomPatchDataLoader(cfg, dicts, shuffle=False, batch_size=per_scan)
    for i in range(2):
        centered = [e.window == (slice(19, 22), slice(19, 22), slice(3, 6)) for e in loader.elements(i)]
        assert sum(centered) == expected


def test_patches_at_the_edge_are_moved_inside(tmp_path):
    mask = np.zeros((9, 9, 9, 1), np.uint8)
    mask[0, 8, 0] = 1
    dicts = [save_volume(tmp_path, np.zeros((9, 9, 9), np.float32), mask)]
    cfg = Config(IMG_SIZE=(4, 4, 4), PATCHES_PER_SCAN=4, FOREGROUND_RATIO=1.0, SEED=0)
    for element in RandomPatchDataLoader(cfg, dicts, batch_size=4).elements(0):
        assert element.window == (slice(0, 4), slice(5, 9), slice(0, 4))


def test_without_foreground_all_patches_are_uniform(tmp_path):
    dicts = [save_volume(tmp_path, np.zeros((9, 9, 9), np.float32), np.zeros((9, 9, 9, 2), np.uint8))]
    cfg = Config(IMG_SIZE=(4, 4, 4), PATCHES_PER_SCAN=200, FOREGROUND_RATIO=1.0, SEED=0, INCLUDE_BACKGROUND=True)
    loader = RandomPatchDataLoader(cfg, dicts, batch_size=200)
    starts = np.array([[w.start for w in e.window] for e in loader.elements(0)])
    assert starts.min() == 0
    assert starts.max() == 5
    assert all(len(set(axis)) == 6 for axis in starts.T)


def test_random_patches_differ_between_epochs_and_seeds_only(both):
    cfg = Config(IMG_SIZE=(3, 3, 3), SEED=0, PATCHES_PER_SCAN=5, NUM_WORKERS=2)
    windows = {}
    for seed in (0, 1):
        cfg.SEED = seed
        for epoch in (0, 1):
            loaders = [RandomPatchDataLoader(cfg, dicts, shuffle=False, batch_size=n) for dicts in both for n in (1, 5)]
            for loader in loaders:
                loader.set_epoch(epoch)
            found = [[e.window for i in range(len(x)) for e in x.elements(i)] for x in loaders]
            assert all(f == found[0] for f in found)
            windows[seed, epoch] = str(found[0])
    assert len(set(windows.values())) == 4


@pytest.mark.parametrize("loader", [S25dDataLoader, N5dDataLoader])
@pytest.mark.parametrize("size", [(), (6, 5), (6, 5, 2), (6, 5, 4)])
def test_the_number_of_slices_must_be_odd(both, loader, size):
    with pytest.raises(ConfigError, match="odd"):
        loader(Config(IMG_SIZE=size), both[0])


@pytest.mark.parametrize("loader", [PatchDataLoader, RandomPatchDataLoader])
@pytest.mark.parametrize("size", [(), (6,), (6, 5, 2, 1, 1)])
def test_patches_need_three_sizes(both, loader, size):
    with pytest.raises(ConfigError, match="IMG_SIZE"):
        loader(Config(IMG_SIZE=size), both[0])


@pytest.mark.parametrize("mode", ["mean", "maximum", "linear_ramp"])
def test_modes_that_create_values_are_rejected(both, mode):
    with pytest.raises(ConfigError, match="IMG_PAD_MODE"):
        PatchDataLoader(Config(IMG_SIZE=(3, 3, 3), IMG_PAD_MODE=mode), both[0])
