"""Inference: predictions of whole scans, merged from windows."""

import itertools
import threading

import h5py
import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from scans import collated, make_scan, patches_of, save, save_slices, save_volume

from medsegpy_core import ShapeError, build_loader
from medsegpy_core.config import Config

pytestmark = pytest.mark.usefixtures("backend")

SHAPE = (6, 5, 7)
IMAGE, MASK = make_scan(SHAPE, 3)
TAGS = ["DefaultDataLoader", "S25dDataLoader", "N5dDataLoader", "PatchDataLoader", "RandomPatchDataLoader"]


@pytest.fixture(scope="module")
def both(tmp_path_factory):
    root = tmp_path_factory.mktemp("both")
    return save_slices(root, IMAGE, MASK), [save_volume(root, IMAGE, MASK)]


def make(dicts, tag="DefaultDataLoader", size=None, **keys):
    sizes = {"DefaultDataLoader": (), "S25dDataLoader": (6, 5, 3), "N5dDataLoader": (6, 5, 5)}
    options = {k: keys.pop(k) for k in ("batch_size", "shuffle", "drop_last", "is_test", "transform") if k in keys}
    cfg = Config(TAG=tag, IMG_SIZE=size or sizes.get(tag, (4, 3, 3)), **{"SEED": 0, "NUM_WORKERS": 0, **keys})
    return build_loader(cfg, dicts, **{"batch_size": 4, **options})


def middle(x, depth_is_channel):
    return x[..., x.shape[-1] // 2 : x.shape[-1] // 2 + 1] if depth_is_channel else x


class Identity:
    """Predicts the (middle) image once per category, times 1, 2, 3, ..."""

    def __init__(self, tag, channels=3):
        self.windowed, self.factors = tag in ("S25dDataLoader", "N5dDataLoader"), np.arange(1, channels + 1)

    def predict(self, x):
        return middle(x, self.windowed) * self.factors


@pytest.mark.parametrize("tag", TAGS)
@pytest.mark.parametrize("batch_size", [1, 4, 100])
@pytest.mark.parametrize("preload", [False, True])
def test_the_whole_scan_is_covered(both, tag, batch_size, preload):
    for dicts in both:
        loader = make(dicts, tag, batch_size=batch_size, is_test=True, PRELOAD_DATA=preload)
        ((inputs, outputs),) = loader.inference(Identity(tag))
        np.testing.assert_array_equal(inputs["x"], IMAGE)
        np.testing.assert_array_equal(outputs["y_true"], MASK)
        np.testing.assert_allclose(outputs["y_pred"], IMAGE[..., None] * [1, 2, 3], rtol=1e-5)
        assert inputs["x"].dtype == outputs["y_pred"].dtype == np.float32
        assert outputs["y_true"].dtype == np.uint8
        assert (inputs["scan_id"], inputs["subject_id"], inputs["labelled"]) == ("0000001_V00", 1, True)
        assert outputs["time_elapsed"] > 0


def cover(size, patch, pad, stride):
    """The starts of patches that cover an axis, by brute force."""
    stride = min(patch, stride)
    if size + 2 * pad < patch:
        return [-((patch - size) // 2)]
    starts = [s for s in range(-pad, size, stride) if 0 < s + patch <= size + pad]
    return starts if starts[-1] + patch >= size else [*starts, size - patch]


@settings(max_examples=60, deadline=None)
@given(
    patch=st.tuples(*[st.integers(1, 9)] * 3),
    pad=st.tuples(*[st.integers(0, 3)] * 3),
    stride=st.one_of(st.none(), st.tuples(*[st.integers(2, 9)] * 3)),
    batch_size=st.integers(1, 9),
)
def test_overlaps_are_averaged_and_padding_is_removed(both, patch, pad, stride, batch_size):
    calls = []

    def model(x):
        # A number that no other patch gets, at every voxel.
        calls.append(len(x))
        first = sum(calls[:-1])
        numbers = np.arange(first, first + len(x), dtype=np.float32)
        return np.broadcast_to(numbers.reshape(-1, *[1] * (x.ndim - 1)), (*x.shape[:-1], 2))

    stride = tuple(max(2, s) for s in (stride or patch))
    loader = make(
        both[1], "PatchDataLoader", patch, IMG_PAD_SIZE=pad, IMG_STRIDE=stride, batch_size=batch_size, CATEGORIES=[0, 1]
    )
    ((_, outputs),) = loader.inference(model)
    total, count = np.zeros(SHAPE), np.zeros(SHAPE)
    starts = itertools.product(*map(cover, SHAPE, patch, pad, stride))
    for number, start in enumerate(starts):
        inside = tuple(slice(max(0, s), min(n, s + p)) for s, p, n in zip(start, patch, SHAPE, strict=True))
        total[inside] += number
        count[inside] += 1
    assert count.min() > 0
    assert sum(calls) == number + 1
    np.testing.assert_allclose(outputs["y_pred"][..., 1], total / count, rtol=1e-5)


def test_more_overlaps_than_a_small_counter_holds(tmp_path):
    image, mask = make_scan((1, 1, 600), 1)
    loader = make(
        [save_volume(tmp_path, image, mask)], "PatchDataLoader", (1, 1, 300), IMG_STRIDE=(1, 1, 1), batch_size=64
    )
    ((_, outputs),) = loader.inference(np.ones_like)
    np.testing.assert_array_equal(outputs["y_pred"], 1)


@pytest.mark.parametrize("mode", ["edge", "constant", "reflect"])
def test_windows_are_padded_at_the_ends(both, mode):
    for tag in ("S25dDataLoader", "N5dDataLoader"):
        seen = []

        def model(x, seen=seen):
            seen.append(x)
            return np.zeros((*x.shape[:-1], 3), np.float32)

        list(make(both[0], tag, (6, 5, 5), IMG_PAD_MODE=mode, IMG_STRIDE=(1, 1, 2)).inference(model))
        np.testing.assert_array_equal(np.concatenate(seen), patches_of(IMAGE, (6, 5, 5), (0, 0, 2), (1, 1, 1), mode))


def test_random_patches_are_a_grid_of_half_a_patch(both):
    seen = []

    def model(x):
        seen.append(x)
        return np.zeros((*x.shape[:-1], 3), np.float32)

    list(make(both[1], "RandomPatchDataLoader", (4, 3, 4)).inference(model))
    starts = list(itertools.product(*map(cover, SHAPE, (4, 3, 4), (0, 0, 0), (2, 1, 2))))
    found = np.concatenate(seen)[..., 0]
    np.testing.assert_array_equal(found, [IMAGE[h : h + 4, w : w + 3, d : d + 4] for h, w, d in starts])


@pytest.mark.parametrize("background", [False, True])
@pytest.mark.parametrize("call", [False, True])
def test_masks_and_models_have_the_categories(both, background, call):
    loader = make(both[0], CATEGORIES=[2, (0, 1)], INCLUDE_BACKGROUND=background)
    model = Identity("DefaultDataLoader", 2 + background)
    ((_, outputs),) = loader.inference(model.predict if call else model)
    np.testing.assert_array_equal(outputs["y_true"], collated(MASK, [2, (0, 1)], background))
    assert outputs["y_pred"].shape == (*SHAPE, 2 + background)


@pytest.mark.parametrize("shape", [(4, 6, 5, 2), (3, 6, 5, 3), (4, 6, 5), (4, 5, 6, 3)])
def test_a_model_that_returns_another_shape(both, shape):
    with pytest.raises(ShapeError, match="expected") as caught:
        list(make(both[0]).inference(lambda x: np.zeros(shape, np.float32)))
    assert str(shape) in str(caught.value)


def test_scans_are_sorted_whatever_the_order_and_the_position(tmp_path):
    dicts = [save_volume(tmp_path, IMAGE + n, MASK, subject=n) for n in (3, 1, 2, 10)]
    loader = make(dicts, shuffle=True, drop_last=True, batch_size=5)
    next(iter(loader))
    found = [(inputs["scan_id"], inputs["x"][0, 0, 0] - IMAGE[0, 0, 0]) for inputs, _ in loader.inference(Identity(""))]
    assert [scan for scan, _ in found] == ["0000001_V00", "0000002_V00", "0000003_V00", "0000010_V00"]
    np.testing.assert_allclose([n for _, n in found], [1, 2, 3, 10], atol=1e-3)
    assert loader.state_dict()["batches"] == 1


def noise(image, mask, rng):
    return image + rng.normal(size=image.shape), mask


def test_a_sharded_loader_infers_every_nth_scan(tmp_path):
    dicts = [save_volume(tmp_path, IMAGE + n, MASK, subject=n) for n in range(5)]
    loader = make(dicts, transform=noise)
    whole = list(loader.inference(Identity("")))
    for world in (2, 3, 7):
        for rank in range(world):
            part = list(loader.shard(rank, world).inference(Identity("")))
            assert [i["scan_id"] for i, _ in part] == [i["scan_id"] for i, _ in whole[rank::world]]
            for (_, one), (_, other) in zip(part, whole[rank::world], strict=True):
                np.testing.assert_array_equal(one["y_pred"], other["y_pred"])


def test_transforms_are_for_the_model_only(both):
    def flip(image, mask):
        return -image, 1 - mask

    loader = make(both[0], transform=flip, is_test=True)
    ((inputs, outputs),) = loader.inference(Identity(""))
    np.testing.assert_array_equal(inputs["x"], IMAGE)
    np.testing.assert_array_equal(outputs["y_true"], MASK)
    np.testing.assert_array_equal(outputs["y_pred"], -IMAGE[..., None] * np.float32([1, 2, 3]))


def test_metadata_of_a_scan_are_returned(tmp_path):
    dicts = save_slices(tmp_path, IMAGE, MASK, scan_site="here", scan_spacing=(1, 1, 3), other=5, time_point=2)
    ((inputs, _),) = make(dicts).inference(Identity(""))
    assert {k: v for k, v in inputs.items() if k.startswith("scan_")} == {
        "scan_id": "0000001_V00",
        "scan_num_slices": 7,
        "scan_site": "here",
        "scan_spacing": (1, 1, 3),
    }
    assert "other" not in inputs


def test_the_dict_overrides_the_file(tmp_path):
    volume = save_volume(tmp_path, IMAGE, MASK)
    with h5py.File(volume["file_name"], "a") as file:
        file["volume"].attrs["spacing"] = (0.5, 0.5, 2.0)
    ((inputs, _),) = make([volume]).inference(Identity(""))
    assert tuple(inputs["scan_spacing"]) == (0.5, 0.5, 2.0)
    ((inputs, _),) = make([{**volume, "scan_spacing": (9, 9, 9)}]).inference(Identity(""))
    assert inputs["scan_spacing"] == (9, 9, 9)


def test_several_channels(tmp_path):
    path = save(tmp_path / "x.h5", a=IMAGE, b=IMAGE + 1, seg=MASK)
    d = {"file_name": path, "sem_seg_file": path, "scan_id": "s", "image_key": ("a", "b")}
    for tag in ("DefaultDataLoader", "PatchDataLoader"):
        ((inputs, outputs),) = make([d], tag, CATEGORIES=[0, 2]).inference(lambda x: x)
        np.testing.assert_array_equal(inputs["x"], np.stack([IMAGE, IMAGE + 1], axis=-1))
        np.testing.assert_allclose(outputs["y_pred"], inputs["x"], rtol=1e-6)
        np.testing.assert_array_equal(outputs["y_true"], MASK[..., [0, 2]])
        assert inputs["subject_id"] is None


def test_labels(both):
    def model(x):
        return np.stack([x[..., 0] / 300, -x[..., 0] / 300, np.full(x.shape[:-1], 0.2)], axis=-1)

    ((_, probabilities),) = make(both[0]).inference(model)
    for loss, expected in (
        (("dice", "sigmoid"), probabilities["y_pred"] > 0.5),
        (("dice", "softmax"), probabilities["y_pred"].argmax(-1)[..., None] == np.arange(3)),
    ):
        ((_, outputs),) = make(both[0], LOSS=loss).inference(model, output="labels")
        assert outputs["y_pred"].dtype == np.uint8
        np.testing.assert_array_equal(outputs["y_pred"], expected)
    with pytest.raises(ValueError, match="labels"):
        make(both[0]).inference(model, output="label")


def test_inference_may_be_abandoned_or_run_twice_at_once(tmp_path):
    dicts = [save_volume(tmp_path, IMAGE + n, MASK, subject=n) for n in range(4)]
    loader = make(dicts, "PatchDataLoader", NUM_WORKERS=2)
    model = Identity("PatchDataLoader")
    expected = [outputs["y_pred"] for _, outputs in loader.inference(model)]
    batches = [images.copy() for images, _ in loader]
    loader.set_epoch(0)
    next(loader.inference(model))
    one, other = loader.inference(model), loader.inference(model)
    next(one)
    for (_, a), b in zip(other, expected, strict=True):
        np.testing.assert_array_equal(a["y_pred"], b)
    for (_, a), b in zip(one, expected[1:], strict=True):
        np.testing.assert_array_equal(a["y_pred"], b)
    found = {}

    def work(n):
        found[n] = [outputs["y_pred"] for _, outputs in loader.inference(model)]

    threads = [threading.Thread(target=work, args=(n,)) for n in range(3)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert len(found) == 3
    assert all(np.array_equal(a, b) for arrays in found.values() for a, b in zip(arrays, expected, strict=True))
    assert loader.epoch == 0
    for (images, _), before in zip(loader, batches, strict=True):
        np.testing.assert_array_equal(images, before)


def test_the_memory_limit_is_checked_before_allocation(both, monkeypatch):
    voxels = int(np.prod(SHAPE))
    for limit, enough in ((voxels * 3, False), (voxels * 40, True)):
        monkeypatch.setenv("MEDSEGPY_MEMORY", str(limit))
        for output in ("probs", "labels"):
            called = []
            scans = make(both[0]).inference(lambda x, c=called: c.append(1) or x.repeat(3, -1), output=output)
            if enough:
                assert len(list(scans)) == 1
            else:
                with pytest.raises(MemoryError, match="MEDSEGPY_MEMORY"):
                    list(scans)
                assert called == []


def test_the_memory_limit_applies_to_preloading(both, monkeypatch):
    monkeypatch.setenv("MEDSEGPY_MEMORY", "100")
    with pytest.raises(MemoryError, match="PRELOAD_DATA"):
        make(both[0], PRELOAD_DATA=True)


def test_errors_of_a_model_are_propagated(both):
    def model(x):
        raise RuntimeError("out of luck")

    with pytest.raises(RuntimeError, match="out of luck"):
        list(make(both[0]).inference(model))
