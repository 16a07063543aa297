"""Sizes of slices: batches, padding and errors."""

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from scans import collated, everything, make_scan, save, save_slices, save_volume

from medsegpy_core import ReadError, ShapeError, build_loader
from medsegpy_core.config import Config

pytestmark = pytest.mark.usefixtures("backend")

SMALL = make_scan((4, 5, 3), 2, 1)
LARGE = make_scan((7, 6, 3), 2, 2)
TAGS = {"DefaultDataLoader": 1, "S25dDataLoader": 3, "N5dDataLoader": 3}


@pytest.fixture(scope="module")
def both(tmp_path_factory):
    root = tmp_path_factory.mktemp("sizes")
    slices = [d for n, scan in ((1, SMALL), (2, LARGE)) for d in save_slices(root, *scan, subject=n)]
    return slices, [save_volume(root, *scan, subject=n) for n, scan in ((1, SMALL), (2, LARGE))]


def centered(array, size, mode):
    widths = [((n - have) // 2, n - have - (n - have) // 2) for n, have in zip(size, array.shape, strict=False)]
    return np.pad(array, widths + [(0, 0)] * (array.ndim - 2), mode)


def test_all_elements_of_a_batch_have_one_size(both):
    for dicts in both:
        loader = build_loader(Config(), dicts, batch_size=6, shuffle=False)
        with pytest.raises(ShapeError) as caught:
            loader[0]
        assert isinstance(caught.value, ValueError)
        for part in (
            dicts[0]["file_name"],
            "4 x 5",
            dicts[-1]["file_name"].rpartition("/")[2][:11],
            "7 x 6",
            "IMG_SIZE",
        ):
            assert part in str(caught.value)
        # Batches that do not mix them are fine.
        assert [images.shape for images, _ in build_loader(Config(), dicts, batch_size=3, shuffle=False)] == [
            (3, 4, 5, 1),
            (3, 7, 6, 1),
        ]


@settings(max_examples=30, deadline=None)
@given(
    size=st.tuples(st.integers(7, 11), st.integers(6, 11)),
    mode=st.sampled_from(["constant", "edge", "reflect", "symmetric", "wrap"]),
    tag=st.sampled_from(sorted(TAGS)),
    background=st.booleans(),
)
def test_smaller_slices_are_padded_on_both_sides(both, size, mode, tag, background):
    depth = TAGS[tag]
    cfg = Config(IMG_SIZE=(*size, depth), IMG_PAD_MODE=mode, TAG=tag, INCLUDE_BACKGROUND=background, NUM_WORKERS=0)
    images, masks = [], []
    for image, mask in (SMALL, LARGE):
        whole = centered(image, size, mode)
        if tag == "S25dDataLoader":
            whole = np.pad(whole, [(0, 0), (0, 0), (1, 1)], mode)
        labels = collated(centered(mask, size, mode), [0, 1], background)
        middles = [1] if tag == "N5dDataLoader" else range(3)
        first = middles[0] if tag == "N5dDataLoader" else 0
        images += [whole[:, :, d - first : d - first + depth] for d in middles]
        masks += [labels[:, :, d] for d in middles]
    for dicts in both:
        found = everything(build_loader(cfg, dicts, batch_size=10, shuffle=False, drop_last=False))
        np.testing.assert_array_equal(found[0], images)
        np.testing.assert_array_equal(found[1], masks)


@pytest.mark.parametrize("tag", TAGS)
def test_inference_undoes_the_padding(both, tag):
    cfg = Config(IMG_SIZE=(9, 8, TAGS[tag]), TAG=tag)
    for dicts in both:
        loader = build_loader(cfg, dicts, is_test=True, batch_size=4)

        def model(x):
            assert x.shape[1:3] == (9, 8)
            middle = x[..., x.shape[-1] // 2 : x.shape[-1] // 2 + 1]
            return np.repeat(middle, 2, -1)

        for (inputs, outputs), (image, mask) in zip(loader.inference(model), (SMALL, LARGE), strict=True):
            np.testing.assert_array_equal(inputs["x"], image)
            np.testing.assert_array_equal(outputs["y_true"], mask)
            np.testing.assert_array_equal(outputs["y_pred"], np.repeat(image[..., None], 2, -1))


@pytest.mark.parametrize("size", [(6, 6, 1), (7, 5, 1), (3, 20, 1)])
def test_larger_slices_are_an_error(both, size):
    for dicts in both:
        loader = build_loader(Config(IMG_SIZE=size), dicts, batch_size=1, shuffle=False)
        with pytest.raises(ShapeError, match=r"7 x 6|4 x 5") as caught:
            list(loader)
        assert "IMG_SIZE" in str(caught.value)
        with pytest.raises(ShapeError, match="IMG_SIZE"):
            list(loader.inference(lambda x: x.repeat(2, -1)))


def test_a_size_of_two_numbers(both):
    images, _ = build_loader(Config(IMG_SIZE=(9, 8)), both[0], batch_size=6, shuffle=False)[0]
    assert images.shape == (6, 9, 8, 1)


def test_slices_of_one_scan_differ(tmp_path):
    dicts = save_slices(tmp_path, *SMALL)
    save(dicts[1]["file_name"], data=LARGE[0][:, :, :1])
    save(dicts[1]["sem_seg_file"], data=LARGE[1][:, :, :1])
    loader = build_loader(Config(), dicts, batch_size=1, shuffle=False)
    for run in (lambda: list(loader), lambda: list(loader.inference(lambda x: x.repeat(2, -1)))):
        with pytest.raises(ShapeError) as caught:
            run()
        for part in (dicts[0]["file_name"], dicts[1]["file_name"], "4 x 5", "7 x 6"):
            assert part in str(caught.value)


def test_image_against_mask_is_a_read_error(tmp_path):
    dicts = save_slices(tmp_path, *SMALL)
    save(dicts[1]["sem_seg_file"], data=LARGE[1][:, :, :1])
    loader = build_loader(Config(), dicts, batch_size=1, shuffle=False)
    with pytest.raises(ReadError) as caught:
        list(loader)
    for part in (dicts[1]["file_name"], dicts[1]["sem_seg_file"], "4 x 5", "7 x 6"):
        assert part in str(caught.value)


def test_slices_with_different_channels(tmp_path):
    path = save(tmp_path / "x.h5", a=SMALL[0], b=SMALL[0], seg=SMALL[1])
    base = {"file_name": path, "sem_seg_file": path}
    dicts = [{**base, "scan_id": "one", "image_key": ("a", "b")}, {**base, "scan_id": "two", "image_key": "a"}]
    with pytest.raises(ShapeError, match="channels"):
        build_loader(Config(), dicts, batch_size=6)[0]


def test_one_channel_with_and_without_an_axis(tmp_path):
    path = save(tmp_path / "x.h5", a=SMALL[0], c=SMALL[0][..., None], seg=SMALL[1])
    base = {"file_name": path, "sem_seg_file": path}
    dicts = [
        {**base, "scan_id": "one", "image_key": "a"},
        {**base, "scan_id": "two", "image_key": "c", "image_axes": "HWDC"},
        {**base, "scan_id": "three", "image_key": ("a",)},
    ]
    for tag, size in (("DefaultDataLoader", ()), ("PatchDataLoader", (4, 5, 3)), ("S25dDataLoader", (4, 5, 3))):
        images, _ = everything(
            build_loader(Config(TAG=tag, IMG_SIZE=size), dicts, shuffle=False, batch_size=9, drop_last=False)
        )
        first, *others = np.split(images, 3)
        for other in others:
            np.testing.assert_array_equal(first, other)
