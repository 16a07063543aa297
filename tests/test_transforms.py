"""Transforms of one element: the core's three, pipelines from a config, threads, and errors."""

from __future__ import annotations

import pickle
import threading
from concurrent.futures import ThreadPoolExecutor

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from hypothesis.extra import numpy as hnp

from medsegpy_core import (
    AffineNormalization,
    Config,
    ConfigError,
    PluginError,
    UnknownNameError,
    Windowing,
    ZeroMeanNormalization,
)
from medsegpy_core.transforms import TransformPipeline, build_transforms

RNG = np.random.default_rng(0)
MASK = np.ones((4, 5, 2), np.float32)

images = hnp.arrays(
    np.float32,
    st.tuples(st.integers(1, 5), st.integers(1, 5), st.integers(1, 3)),
    elements=st.floats(-1000, 1000, width=32),
)


def image(*shape: int) -> np.ndarray:
    return np.random.default_rng(1).normal(40, 300, shape).astype(np.float32)


@given(images)
def test_windowing_clips_each_window_into_its_channels(x):
    mask = np.zeros((*x.shape[:-1], 1), np.float32)
    out, same = Windowing([(-160, 240), (0, 80)])(x, mask)
    assert same is mask
    assert out.dtype == np.float32
    np.testing.assert_array_equal(out, np.concatenate([x.clip(-160, 240), x.clip(0, 80)], axis=-1))
    np.testing.assert_array_equal(Windowing((0, 80))(x, mask)[0], x.clip(0, 80))


@given(images)
def test_zero_mean_normalization_of_each_channel(x):
    out, _ = ZeroMeanNormalization()(x, MASK)
    assert out.dtype == np.float32
    wide = x.astype(np.float64)
    for channel in range(x.shape[-1]):
        expected, deviation = wide[..., channel] - wide[..., channel].mean(), wide[..., channel].std()
        if deviation > 1e-3:
            np.testing.assert_allclose(out[..., channel], expected / deviation, rtol=1e-4, atol=1e-4)
    constant, _ = ZeroMeanNormalization()(np.full_like(x, 7), MASK)
    assert not constant.any()


def test_zero_mean_normalization_over_chosen_axes():
    x = image(4, 5, 3)
    out, _ = ZeroMeanNormalization(axis=[0, 1, 2])(x, MASK)
    np.testing.assert_allclose(out, (x - x.mean()) / x.std(), rtol=1e-4)
    assert abs(ZeroMeanNormalization(axis=0)(x, MASK)[0].mean(axis=0)).max() < 1e-5


@given(images, st.floats(0.5, 100), st.floats(-100, 100))
def test_affine_normalization(x, scale, bias):
    out, _ = AffineNormalization(scale=scale, bias=bias)(x, MASK)
    assert out.dtype == np.float32
    np.testing.assert_array_equal(out, (x - np.float32(bias)) / np.float32(scale))


def test_affine_normalization_by_channel():
    x = image(4, 5, 2)
    out, _ = AffineNormalization(scale=[2, 4], bias=(1, 0))(x, MASK)
    np.testing.assert_array_equal(out[..., 0], (x[..., 0] - 1) / 2)
    np.testing.assert_array_equal(out[..., 1], x[..., 1] / 4)
    with pytest.raises(ValueError, match="3 channels, the image has 2"):
        AffineNormalization(bias=[1, 2, 3])(x, MASK)


@pytest.mark.parametrize(
    ("cls", "arguments"),
    [
        (Windowing, {"bounds": []}),
        (Windowing, {"bounds": [(240, -160)]}),
        (Windowing, {"bounds": [(1, 2, 3)]}),
        (Windowing, {"bounds": 5}),
        (AffineNormalization, {"scale": 0}),
        (AffineNormalization, {"scale": [1, 0]}),
        (AffineNormalization, {"bias": float("inf")}),
        (AffineNormalization, {"bias": [[1]]}),
    ],
    ids=str,
)
def test_invalid_arguments_of_transforms(cls, arguments):
    with pytest.raises(ValueError, match=r"expected|cannot be 0"):
        cls(**arguments)


def test_the_three_are_values():
    for make in (lambda: Windowing((0, 80)), ZeroMeanNormalization, lambda: AffineNormalization(2, [1, 2])):
        one = make()
        assert one == make() == pickle.loads(pickle.dumps(one))
        assert hash(one) == hash(make())
        assert one.thread_safe is True
        with pytest.raises(AttributeError):
            one.bounds = one.axis = one.scale = 3


def test_preprocessing_comes_first_and_in_order():
    cfg = Config(
        PREPROCESSING=["Windowing", "AffineNormalization", "ZeroMeanNormalization"],
        PREPROCESSING_ARGS=[{"bounds": [[0, 80]]}, {"scale": 80.0}, {}],
    )
    seen = []

    def mine(x, mask):
        seen.append(x.copy())
        return x + 1, mask * 2

    x = image(4, 5, 1)
    out, mask = build_transforms(cfg, mine)(x.copy(), MASK, RNG)
    unit = x.clip(0, 80) / np.float32(80)
    np.testing.assert_allclose(seen[0], (unit - unit.mean()) / unit.std(), rtol=1e-4)
    np.testing.assert_allclose(out, seen[0] + 1)
    assert mask.max() == 2


def test_no_transforms_is_false():
    pipeline = build_transforms(Config())
    assert not pipeline
    x = image(4, 5, 1)
    assert pipeline(x, MASK, None)[0] is x


@pytest.mark.parametrize(
    ("names", "args", "error", "message"),
    [
        (["Windowin"], [], UnknownNameError, "Windowing"),
        (["Windowing", "ZeroMeanNormalization"], [{}], ConfigError, "2 transforms"),
        (["Windowing"], [["soft", "bone"]], ConfigError, "must be a dict"),
        (["Windowing"], [{"bound": (0, 1)}], ConfigError, "cannot be built with"),
        (["AffineNormalization"], [{"scale": 0}], ConfigError, "cannot be 0"),
    ],
)
def test_invalid_pipelines(names, args, error, message):
    with pytest.raises(error, match=message):
        build_transforms(Config(PREPROCESSING=names, PREPROCESSING_ARGS=args))


def test_objects_that_cannot_be_called():
    with pytest.raises(TypeError, match="cannot be called"):
        build_transforms(Config(), 5)


def test_rng_is_passed_to_transforms_that_take_it():
    def positional(x, mask, rng):
        return x + np.float32(rng.random()), mask

    class Keyword:
        def __call__(self, x, mask, *, rng):
            return x + np.float32(rng.random()), mask

    for transform in (positional, Keyword()):
        pipeline = build_transforms(Config(), transform)
        assert pipeline.uses_rng
        x = np.zeros((2, 2, 1), np.float32)
        out, _ = pipeline(x, np.ones((2, 2, 1), np.float32), np.random.default_rng(3))
        assert out[0, 0, 0] == np.float32(np.random.default_rng(3).random())
    assert not build_transforms(Config(), lambda x, mask, **others: (x, mask)).uses_rng


class Counter:
    """Not thread-safe: it counts its calls."""

    def __init__(self):
        self.calls = 0

    def __call__(self, x, mask):
        self.calls += 1
        return x, mask * 0 + self.calls


class SafeCounter(Counter):
    thread_safe = True


def test_each_thread_has_its_own_copy_unless_safe():
    barrier = threading.Barrier(3)
    x = image(2, 2, 1)

    def work(pipeline):
        barrier.wait(timeout=120)
        return [int(pipeline(x, np.zeros((2, 2, 1), np.float32), None)[1].max()) for _ in range(4)]

    own, shared = Counter(), SafeCounter()
    with ThreadPoolExecutor(3) as pool:
        assert list(pool.map(work, [build_transforms(Config(), own)] * 3)) == [[1, 2, 3, 4]] * 3
        list(pool.map(work, [build_transforms(Config(), shared)] * 3))
    assert (own.calls, shared.calls) == (0, 12)


def test_a_transform_that_cannot_be_copied_names_the_remedy():
    class Locked(Counter):
        def __init__(self):
            super().__init__()
            self.lock = threading.Lock()

    with pytest.raises(PluginError, match=r"Locked.*thread_safe = True"):
        build_transforms(Config(), Locked())(image(2, 2, 1), MASK, None)


@pytest.mark.parametrize(
    ("result", "message"),
    [
        (lambda x, m: x, "must return \\(image, mask\\), but returned a ndarray"),
        (lambda x, m: (x, m, x), "returned a tuple"),
        (lambda x, m: None, "NoneType"),
        (lambda x, m: (x, None), "its mask is a NoneType"),
        (lambda x, m: (x.tolist(), m), "its image is a list"),
        (lambda x, m: (x.astype(complex), m), "its image is a complex128 array"),
        (lambda x, m: (x[:2], m), "a mask of shape"),
        (lambda x, m: (x[..., 0], m[..., 0]), "expected 3 axes"),
    ],
)
def test_invalid_results_name_the_transform(result, message):
    with pytest.raises(PluginError, match=message) as caught:
        build_transforms(Config(), result)(image(4, 5, 1), MASK, None)
    assert "<lambda>" in str(caught.value)


def test_an_error_in_a_transform_keeps_its_type_and_gains_a_note():
    def broken(x, mask):
        return {}["nothing"]

    with pytest.raises(KeyError, match="nothing") as caught:
        build_transforms(Config(), broken)(image(4, 5, 1), MASK, None)
    assert "broken" in caught.value.__notes__[0]
    assert "(4, 5, 1)" in caught.value.__notes__[0]


@settings(max_examples=20)
@given(st.sampled_from([np.float64, np.int16, np.bool_, np.float16]), st.sampled_from([np.float32, np.uint8]))
def test_types_are_preserved(dtype, mask_type):
    out, mask = build_transforms(Config(), lambda x, m: (x.astype(dtype), m.astype(np.float64)))(
        np.ones((3, 3, 1), np.float32), np.full((3, 3, 1), 1, mask_type), None
    )
    assert (out.dtype, mask.dtype) == (np.float32, mask_type)
    assert out.all()
    assert mask.all()


def test_pipelines_can_be_pickled():
    pipeline = TransformPipeline([("count", Counter()), ("window", Windowing((0, 80)))])
    x = image(3, 3, 1)
    pipeline(x, np.zeros((3, 3, 1), np.float32), None)
    twin = pickle.loads(pickle.dumps(pipeline))
    np.testing.assert_array_equal(twin(x, np.zeros((3, 3, 1), np.float32), None)[0], x.clip(0, 80))
    # The copy starts afresh: nothing that a thread did travels.
    assert twin(x, np.zeros((3, 3, 1), np.float32), None)[1].max() == 2
