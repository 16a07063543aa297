"""Grids: spacing, directions and alignment, compared with the positions of voxels."""

import itertools

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from medsegpy_core.data.geometry import (
    Alignment,
    Grid,
    align,
    alignment,
    axis_codes,
    checked_affine,
    checked_spacing,
    corner_offset,
    describe,
    spacing_of,
    stated,
)

PERMUTATIONS = list(itertools.permutations(range(3)))
SIZES = st.tuples(*[st.integers(1, 5)] * 3)
SPACINGS = st.tuples(*[st.floats(0.2, 9)] * 3)
ORIGINS = st.tuples(*[st.floats(-200, 200)] * 3)
ANGLES = st.tuples(*[st.floats(-0.7, 0.7)] * 3)


def rotation(angles):
    """Return a rotation about each axis in turn."""
    matrix = np.eye(3)
    for axis, angle in enumerate(angles):
        i, j = [k for k in range(3) if k != axis]
        turn = np.eye(3)
        turn[[i, i, j, j], [i, j, i, j]] = np.cos(angle), -np.sin(angle), np.sin(angle), np.cos(angle)
        matrix = matrix @ turn
    return matrix


@st.composite
def affines(draw):
    """Oblique affines, of either handedness."""
    matrix = np.eye(4)
    mirrored = draw(st.sampled_from([1, -1]))
    matrix[:3, :3] = rotation(draw(ANGLES)) * draw(SPACINGS) * [mirrored, 1, 1]
    matrix[:3, 3] = draw(ORIGINS)
    return matrix


def places(shape, affine):
    """Return the position of each voxel, shape x 3."""
    index = np.moveaxis(np.indices(shape), 0, -1)
    return index @ affine[:3, :3].T + affine[:3, 3]


def stored_otherwise(array, affine, order, flips):
    """Return an array and its affine with permuted and reversed axes; each voxel keeps its position."""
    moved = np.eye(4)[:, [*order, 3]]  # from the new index to the old one
    for axis in flips:
        old = order[axis]
        moved[old] *= -1
        moved[old, 3] += array.shape[old] - 1
    return np.flip(array.transpose(order), flips), affine @ moved


@given(affines(), SIZES, st.sampled_from(PERMUTATIONS), st.sets(st.integers(0, 2)))
def test_permuted_and_reversed_arrays_are_realigned(affine, shape, order, flips):
    array = np.arange(np.prod(shape)).reshape(shape)
    other, other_affine = stored_otherwise(array, affine, order, sorted(flips))
    np.testing.assert_allclose(
        places(other.shape, other_affine),
        np.flip(places(shape, affine).transpose(*order, 3), sorted(flips)),
        atol=1e-9,
    )
    how = alignment(Grid(other.shape, other_affine), Grid(shape, affine))
    assert how is not None
    np.testing.assert_array_equal(align(other, how), array)
    channels = np.stack([other, -other], axis=-1)
    np.testing.assert_array_equal(align(channels, how), np.stack([array, -array], axis=-1))


@given(affines(), SIZES, st.floats(0, 2), st.integers(0, 2), st.sampled_from(PERMUTATIONS))
def test_a_shift_is_measured_in_voxels_of_the_image(affine, shape, shift, axis, order):
    moved = affine.copy()
    moved[:3, 3] += shift * affine[:3, axis]
    assert corner_offset(Grid(shape, affine), Grid(shape, moved)) == pytest.approx(shift, abs=1e-6)
    if abs(shift - 0.1) > 1e-6:
        other, other_affine = stored_otherwise(np.zeros(shape), moved, order, [0])
        how = alignment(Grid(other.shape, other_affine), Grid(shape, affine))
        # A shift by a whole voxel can be a flip: never where the arrays would not overlap.
        assert (how is not None) == (shift <= 0.1)


@given(SIZES, affines(), affines())
def test_the_offset_is_that_of_the_farthest_corner(shape, image, mask):
    index = np.array(list(itertools.product(*[range(n) for n in shape])))
    there = index @ mask[:3, :3].T + mask[:3, 3]
    seen = (there - image[:3, 3]) @ np.linalg.inv(image[:3, :3]).T
    expected = np.linalg.norm(seen - index, axis=1).max()
    assert corner_offset(Grid(shape, image), Grid(shape, mask)) == pytest.approx(expected, rel=1e-6, abs=1e-6)


def test_spacings_are_compared_if_affines_are_unknown():
    coarse, fine = Grid((11, 11, 3), spacing=(1, 1, 5)), Grid((11, 11, 3), spacing=(1.02, 1, 5))
    assert corner_offset(coarse, fine) == pytest.approx(0.2)
    assert corner_offset(coarse, Grid((11, 11, 3))) is None
    with_affine = Grid.of((11, 11, 3), {"affine": np.diag([1, 1, 5, 1])})
    assert corner_offset(with_affine, fine) == pytest.approx(0.2)
    # Two values say something of the plane only.
    assert corner_offset(coarse, Grid((11, 11, 3), spacing=(1, 1.5))) == pytest.approx(5)
    assert alignment(fine, coarse) is None
    assert alignment(Grid((11, 11, 3)), coarse) == Alignment((0, 1, 2), ())
    assert alignment(Grid((11, 3, 11)), coarse) is None


def test_other_grids_are_not_aligned():
    target = Grid((6, 5, 4), np.diag([1.0, 1, 2, 1]))
    sheared = np.diag([1.0, 1, 2, 1])
    sheared[0, 1] = 0.5
    turned = np.eye(4)
    turned[:3, :3] = rotation((0, 0, 0.2))
    for other in (np.diag([9.0, 9, 9, 1]), sheared, turned, np.diag([1.0, 1, 1, 1])):
        assert alignment(Grid((6, 5, 4), other), target) is None
    assert alignment(Grid((6, 5), np.diag([1.0, 1, 2, 1])), target) is None
    assert alignment(Grid((6, 5, 3), np.diag([1.0, 1, 2, 1])), target) is None
    # In a plane, the third axis stays what it is.
    plane = Grid((6, 5), np.diag([1.0, 1, 2, 1]))
    swapped = np.diag([1.0, 1, 2, 1])[:, [1, 0, 2, 3]]
    assert alignment(Grid((5, 6), swapped), plane) == Alignment((1, 0), ())
    assert alignment(Grid((6, 5), np.diag([1.0, 1, 2, 1])[:, [0, 2, 1, 3]]), plane) is None


@given(affines())
def test_directions_are_the_closest_ones(affine):
    codes = axis_codes(affine)
    assert {frozenset(pair) for pair in ("LR", "PA", "IS")} == {
        frozenset(next(pair for pair in ("LR", "PA", "IS") if code in pair)) for code in codes
    }
    straight = np.diag([*np.diag(np.sign(affine[:3, :3])), 1.0])
    for axis in range(3):
        towards = affine[:3, axis] / np.linalg.norm(affine[:3, axis])
        if np.abs(towards).max() > 0.9:
            world = int(np.abs(towards).argmax())
            assert codes[axis] == ("LR", "PA", "IS")[world][int(towards[world] > 0)]
    assert axis_codes(straight) == tuple(pair[int(straight[i, i] > 0)] for i, pair in enumerate(("LR", "PA", "IS")))


def test_metadata_of_files_are_normalized():
    affine = np.array([[0, -3, 0, 1], [-2, 0, 0, 2], [0, 0, 5, 3], [0, 0, 0, 1.0]])
    assert stated({}) == ({}, None)
    assert stated({"spacing": [1, 2, 3], "mine": 4}) == ({"spacing": (1.0, 2.0, 3.0), "mine": 4}, None)
    values, contradiction = stated({"affine": affine})
    assert values["spacing"] == (2.0, 3.0, 5.0)
    assert values["affine"] is affine
    assert contradiction is None
    values, contradiction = stated({"affine": affine, "spacing": (2, 3, 5.2)})
    assert values["spacing"] == (2.0, 3.0, 5.0)
    assert contradiction == "its spacing is 2 x 3 x 5.2 mm, but the columns of its affine are 2 x 3 x 5 mm long"
    assert stated({"affine": affine, "spacing": (2, 3, 5.01)}) == ({"affine": affine, "spacing": (2, 3, 5)}, None)
    single = affine.astype("f4")
    single[2, 2] = 0.7
    assert stated({"affine": single, "spacing": (2, 3, 0.7)})[0]["spacing"] == (2, 3, 0.7)
    assert stated({"affine": single})[0]["spacing"] == (2, 3, 0.7)


def test_invalid_metadata_count_as_missing():
    for spacing in ((1, 2), (1, 2, 3, 4), (0, 1, 1), (1, -1, 1), (1, np.nan, 1), "abc", None, 3.0, [[1, 1, 1]], {}):
        assert stated({"spacing": spacing}) == ({}, None)
        assert checked_spacing(spacing) is None
    assert stated({"spacing": (1, 2)}, (2, 3)) == ({"spacing": (1.0, 2.0)}, None)
    flat = np.diag([1.0, 1, 0, 1])
    parallel = np.eye(4)
    parallel[:3, 1] = parallel[:3, 0]
    last = np.eye(4)
    last[3, 0] = 1
    for affine in (flat, parallel, last, np.eye(3), np.full((4, 4), np.nan), "x", None):
        assert stated({"affine": affine}) == ({}, None)
        assert checked_affine(affine) is None


def test_a_file_with_two_axes_declares_nothing_about_the_third():
    # Programs fill the third column with 1.
    filled = {"spacing": (0.5, 0.6), "affine": np.diag([0.5, 0.6, 1, 1])}
    assert "spacing" not in stated(filled)[0]
    assert stated(filled, (2, 3))[0]["spacing"] == (0.5, 0.6)
    assert stated({"spacing": (0.5, 0.6), "affine": np.diag([0.5, 0.6, 3, 1])})[0]["spacing"] == (0.5, 0.6, 3)


def test_descriptions_of_grids():
    assert describe(Grid((4, 3))) == "4 x 3 voxels"
    affine = [[0, -3, 0, 1.25], [-2, 0, 0, 2], [0, 0, 5, 3], [0, 0, 0, 1]]
    assert describe(Grid((4, 3, 2), affine)) == (
        "4 x 3 x 2 voxels of 2 x 3 x 5 mm, axes towards P, L, S, the first voxel at (1.25, 2, 3) mm"
    )
    assert spacing_of(affine) == (2, 3, 5)
    assert hash(Grid((4, 3, 2), affine)) == hash(Grid((4, 3, 2), np.array(affine)))
