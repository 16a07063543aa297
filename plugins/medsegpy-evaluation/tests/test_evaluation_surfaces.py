"""Surface distances against analytic shapes and against whole-array distance transforms."""

from __future__ import annotations

import tracemalloc

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from hypothesis.extra import numpy as hnp
from scipy import ndimage, spatial  # noqa: F401 - an import is no part of the memory that is measured

from medsegpy_evaluation import score_masks, surface_distances, surfaces


def surface_of(mask):
    return mask ^ ndimage.binary_erosion(mask, ndimage.generate_binary_structure(mask.ndim, 1))


def reference(pred, truth, spacing):
    """Distances as whole-array distance transforms give them: slow, and plainly right. One slice is 2D."""
    spacing = [size for n, size in zip(pred.shape, spacing, strict=True) if n > 1] or spacing
    if pred.size > 1:
        pred, truth = pred.squeeze(), truth.squeeze()
    pred_surface, truth_surface = surface_of(pred), surface_of(truth)
    to_truth = ndimage.distance_transform_edt(~truth_surface, sampling=spacing)[pred_surface]
    to_pred = ndimage.distance_transform_edt(~pred_surface, sampling=spacing)[truth_surface]
    return to_truth, to_pred


def assert_as_reference(pred, truth, spacing):
    found = surface_distances(pred, truth, spacing)
    to_truth, to_pred = reference(pred, truth, spacing)
    np.testing.assert_allclose(found.pred_to_truth, to_truth, rtol=1e-12, atol=1e-12)
    np.testing.assert_allclose(found.truth_to_pred, to_pred, rtol=1e-12, atol=1e-12)
    pooled = np.concatenate((to_truth, to_pred))
    assert found.assd() == pytest.approx(pooled.mean(), abs=1e-9)
    assert found.hd95() == pytest.approx(np.percentile(pooled, 95), abs=1e-9)
    assert found.hd() == pytest.approx(pooled.max(), abs=1e-9)


def ball(shape, center, radius, spacing):
    grid = np.meshgrid(*(np.arange(n) * s for n, s in zip(shape, spacing, strict=True)), indexing="ij")
    return sum((g - c) ** 2 for g, c in zip(grid, center, strict=True)) <= radius**2


masks = hnp.array_shapes(min_dims=1, max_dims=3, min_side=1, max_side=9).flatmap(
    lambda shape: st.tuples(
        hnp.arrays(np.bool_, shape, elements=st.booleans(), fill=st.nothing()),
        hnp.arrays(np.bool_, shape, elements=st.booleans(), fill=st.just(False)),
        st.tuples(*[st.sampled_from([0.3, 0.7, 1.0, 2.5, 11.0])] * len(shape)),
    )
)


@given(masks)
@settings(max_examples=150, deadline=None)
def test_any_masks(case):
    pred, truth, spacing = case
    pred.flat[0] = truth.flat[-1] = True
    assert_as_reference(pred, truth, spacing)


@pytest.mark.parametrize("spacing", [(1.0, 1.0, 1.0), (0.4, 0.4, 3.0), (5.0, 0.31, 0.7)])
@pytest.mark.parametrize("shift", [0, 1, 5, 25])
def test_shells_near_and_far(spacing, shift):
    # Shift 25: beyond every neighborhood, so that the tree or the transform has to answer.
    shape = (70, 40, 24)
    truth = np.zeros(shape, bool)
    truth[8:30, 8:30, 4:16] = True
    truth[11:27, 11:27, 7:13] = False
    pred = np.zeros(shape, bool)
    pred[8 + shift : 30 + shift, 9:30, 4:18] = True
    assert_as_reference(pred, truth, spacing)


def test_an_island_far_away():
    truth = ball((80, 80, 40), (20, 20, 10), 8, (1, 1, 1))
    pred = truth.copy()
    pred[70:74, 70:73, 35:38] = True
    assert_as_reference(pred, truth, (0.5, 0.5, 2.0))


def test_noise_that_fills_the_scan():
    rng = np.random.default_rng(0)
    truth = np.zeros((60, 60, 30), bool)
    truth[20:30, 20:30, 10:20] = True
    for share in (0.5, 0.01):
        assert_as_reference(rng.random(truth.shape) < share, truth, (0.4, 0.5, 2.0))


def test_more_points_than_are_worked_on_at_once():
    # A checkerboard: every voxel of it is surface, 720,000 of them, and the truth is far from most.
    truth = np.zeros((120, 120, 100), bool)
    truth[0, 0, 0] = True
    pred = np.indices(truth.shape).sum(axis=0) % 2 == 1
    found = surface_distances(pred, truth, (1.0, 1.0, 1.0))
    expected = np.sqrt((np.argwhere(pred) ** 2).sum(axis=1))
    np.testing.assert_allclose(found.pred_to_truth, expected, rtol=1e-12)
    assert found.truth_to_pred.tolist() == [1.0]


NOISE = {
    "both noise": (0.5, 0.5),
    "sparse noise": (0.02, 0.01),
    "a ball": (0.5, "ball"),
    "a ball far from sparse noise": (0.03, "ball"),
    "a few points": (0.5, 1e-4),
    "one point": (0.9, "point"),
}


@pytest.mark.parametrize("spacing", [(1.0, 1.0, 1.0), (0.4, 0.5, 3.0)])
@pytest.mark.parametrize("kind", NOISE)
def test_memory_is_bounded_where_a_surface_fills_the_scan(kind, spacing):
    rng, shape = np.random.default_rng(0), (128, 128, 128)
    share, other = NOISE[kind]
    pred = rng.random(shape) < share
    truth = (
        ball(shape, (50, 70, 64), 20, (1, 1, 1))
        if other == "ball"
        else rng.random(shape) < (other, 0)[other == "point"]
    )
    truth[0, 0, 0] = other == "point" or truth[0, 0, 0]
    metrics = ["DSC", "ASSD", "HD95", "HD", "NSD"]
    for dtype in (np.bool_, np.uint8):
        masks = pred.astype(dtype), truth.astype(dtype)
        tracemalloc.start()
        try:
            found = score_masks(*masks, spacing, metrics)
            peak = tracemalloc.get_traced_memory()[1]
        finally:
            tracemalloc.stop()
        assert peak < 3 * (pred.nbytes + truth.nbytes)
    pooled = np.concatenate(reference(pred, truth, spacing))
    assert found["ASSD"] == pytest.approx(pooled.mean(), rel=1e-12)
    assert found["HD95"] == pytest.approx(np.percentile(pooled, 95), rel=1e-12)
    assert found["HD"] == pytest.approx(pooled.max(), rel=1e-12)
    # Values at the tolerance itself may fall to either side by rounding.
    assert np.mean(pooled < 1 - 1e-9) <= found["NSD"] <= np.mean(pooled <= 1 + 1e-9)


@given(masks, st.integers(0, 3), st.booleans())
@settings(max_examples=150, deadline=None)
def test_every_way_to_the_nearest_point_gives_the_same(case, step, tallied):
    """Tree, transform and planes, listed and tallied: which one is taken depends on sizes only."""
    pred, truth, spacing = case
    pred.flat[0] = truth.flat[-1] = True
    axes = [axis for axis in range(pred.ndim) if pred.shape[axis] > 1] or [0]
    flat = [mask.squeeze() if mask.size > 1 else mask.reshape(1) for mask in (pred, truth)]
    pooled = np.sort(np.concatenate(reference(pred, truth, spacing)))
    for way in ({"_TREE_QUERY": 1e9}, {"_TREE_QUERY": 0.0, "_TREE_BUILD": 0.0}, {"_TREE_QUERY": 1e9, "_MEMORY": -1}):
        with pytest.MonkeyPatch.context() as patch:
            few = {"_FIRST": 1, "_TRIAL": 1e9, "_STEP": step + 1, "_PLANES": 1, "_PIECE": 1, "_POINTS": 3}
            for name, value in {**few, **way, "_LISTED": 0 if tallied else 1 << 17, "_LISTED_SHARE": 0}.items():
                patch.setattr(surfaces, name, value)
            found = surfaces.tally(*flat, [spacing[axis] for axis in axes], 1.0, pred.size + truth.size)
        assert isinstance(found, surfaces.DistanceTally) == tallied
        assert found.assd() == pytest.approx(pooled.mean(), rel=1e-12)
        assert found.hd95() == pytest.approx(np.percentile(pooled, 95), rel=1e-12)
        assert found.hd() == pytest.approx(pooled[-1], rel=1e-12)
        assert np.mean(pooled < 1 - 1e-9) <= found.nsd(1.0) <= np.mean(pooled <= 1 + 1e-9)


@given(st.lists(st.integers(1, 400), min_size=1, max_size=5), st.integers(1, 9), st.integers(0, 2**32 - 1))
@settings(deadline=None)
def test_a_tally_is_numpy_bit_for_bit(sizes, levels, seed):
    rng = np.random.default_rng(seed)
    parts = [np.sqrt(rng.integers(0, levels, size)) * 0.7 for size in sizes]
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(surfaces, "_POINTS", 8)
        found = surfaces.DistanceTally(sum(sizes), 0.7)
        for part in parts:
            found.add(part)
    pooled = np.concatenate(parts)
    assert found.hd95() == np.percentile(pooled, 95)
    assert found.hd() == pooled.max()
    assert found.nsd(0.7) == np.mean(pooled <= 0.7)
    assert found.assd() == pytest.approx(pooled.mean(), rel=1e-14)


def test_shifted_cubes_with_anisotropic_spacing():
    truth = np.zeros((20, 20, 20), bool)
    truth[5:10, 5:10, 5:10] = True
    for axis, spacing in enumerate((0.5, 1.5, 3.0)):
        found = surface_distances(np.roll(truth, 2, axis=axis), truth, (0.5, 1.5, 3.0))
        assert found.hd() == pytest.approx(2 * spacing)


def test_concentric_balls():
    shape, center = (64, 64, 64), (32, 32, 32)
    inner, outer = (ball(shape, center, radius, (1, 1, 1)) for radius in (15, 20))
    found = surface_distances(outer, inner, (1, 1, 1))
    # The radii differ by 5; voxels make that uncertain by half a diagonal on either side.
    assert found.assd() == pytest.approx(5, abs=0.5)
    assert found.hd95() == pytest.approx(5, abs=np.sqrt(3))
    assert found.nsd(6.8) == 1
    assert found.nsd(3.2) == 0


def test_one_voxel_each():
    pred, truth = np.zeros((2, 9, 9, 9), bool)
    pred[0, 0, 0] = truth[8, 4, 0] = True
    found = surface_distances(pred, truth, (1.0, 2.0, 3.0))
    assert found.assd() == found.hd() == found.hd95() == pytest.approx(np.hypot(8, 8))


def test_outside_of_the_array_is_outside_of_the_structure():
    full = np.ones((5, 6, 7), bool)
    found = surface_distances(full, full, (1, 1, 1))
    assert found.pred_to_truth.size == 5 * 6 * 7 - 3 * 4 * 5
    assert not found.pooled.any()
    shell = full.copy()
    shell[1:-1, 1:-1, 1:-1] = False
    assert surface_distances(shell, full, (1, 1, 1)).hd() == 0


def test_views_and_any_memory_order():
    rng = np.random.default_rng(1)
    masks = rng.random((2, 12, 14, 10, 3)) < 0.2
    pred, truth = masks[0, ..., 1], masks[1, ..., 2]
    assert_as_reference(pred, truth, (1, 2, 3))
    assert_as_reference(np.asfortranarray(pred), truth[:, ::-1], (1, 2, 3))


@pytest.mark.parametrize(
    ("pred", "truth", "spacing", "said"),
    [
        (np.ones((3, 3), bool), np.ones((3, 4), bool), (1, 1), "shape"),
        (np.ones((3, 3), bool), np.ones((3, 3), bool), (1, 1, 1), "spacing of 3 values"),
        (np.zeros((3, 3), bool), np.zeros((3, 3), bool), (1, 1), "Both masks are empty"),
        (np.zeros((3, 3), bool), np.ones((3, 3), bool), (1, 1), "One of the masks is empty"),
        (np.ones((3, 3), bool), np.zeros((3, 3), bool), (1, 1), "One of the masks is empty"),
        (np.ones((3, 3), bool), np.ones((3, 3), bool), (0, 1), "positive"),
        (np.ones((3, 3), bool), np.ones((3, 3), bool), (1, float("nan")), "positive"),
    ],
)
def test_what_does_not_fit(pred, truth, spacing, said):
    with pytest.raises(ValueError, match=said):
        surface_distances(pred, truth, spacing)
