"""Colors are distinguishable; slices are upright for every orientation of a scan."""

import itertools

import numpy as np
import pytest

from medsegpy_core.drawing import PALETTE, Upright, class_colors, hex_color, overlay

# Linear RGB as seen without one kind of cones (Machado, Oliveira and Fernandes 2009, severity 1).
VISION = {
    "normal": np.eye(3),
    "protanopia": [[0.152286, 1.052583, -0.204868], [0.114503, 0.786281, 0.099216], [-0.003882, -0.048116, 1.051998]],
    "deuteranopia": [[0.367322, 0.860646, -0.227968], [0.280085, 0.672501, 0.047413], [-0.011820, 0.042940, 0.968881]],
    "tritanopia": [[1.255528, -0.076749, -0.178779], [-0.078411, 0.930809, 0.147602], [0.004733, 0.691367, 0.303900]],
}
# Linear sRGB to CIE XYZ, relative to the white D65.
XYZ = np.array(
    [[0.4124564, 0.3575761, 0.1804375], [0.2126729, 0.7151522, 0.0721750], [0.0193339, 0.1191920, 0.9503041]]
)
XYZ /= XYZ.sum(axis=1, keepdims=True)


def lab(colors, vision="normal"):
    """Return CIE L*a*b* of sRGB colors, as seen with a kind of color vision."""
    stored = np.asarray(colors) / 255
    linear = np.where(stored <= 0.04045, stored / 12.92, ((stored + 0.055) / 1.055) ** 2.4)
    seen = (linear @ np.transpose(VISION[vision])).clip(0, 1) @ XYZ.T
    x, y, z = np.where(seen > (6 / 29) ** 3, np.cbrt(seen), seen / (3 * (6 / 29) ** 2) + 4 / 29).T
    return np.stack([116 * y - 16, 500 * (x - y), 200 * (y - z)], axis=1)


def differences(points):
    return np.linalg.norm(points[:, None] - points[None], axis=2)[np.triu_indices(len(points), 1)]


def nearest(colors, vision="normal"):
    """Return the smallest difference of two colors (Delta E of 1976; 2.3 is just visible)."""
    return differences(lab(colors, vision)).min()


def test_lab_conversion_is_correct():
    assert lab([(255, 255, 255), (255, 0, 0)]) == pytest.approx(
        np.array([[100, 0, 0], [53.24, 80.09, 67.20]]), abs=0.02
    )


def test_thirty_colors_are_distinct_and_eight_are_safe():
    assert len(PALETTE) == len(set(PALETTE)) == 30
    assert nearest(PALETTE) > 25
    for vision in VISION:
        assert nearest(PALETTE[:8], vision) > 25, vision
    # Told from gray, which images are, and from a dark ground.
    lightness, a, b = lab(PALETTE).T
    assert np.hypot(a, b).min() > 25
    assert lightness.min() > 38


def test_light_fills_differ_too():
    gray = np.full((30, 30, 3), 128.0)
    fills = []
    for color in PALETTE:
        pixels, mask = gray.copy(), np.zeros((30, 30), bool)
        mask[5:25, 5:25] = True
        overlay(pixels, mask, color)
        assert (pixels[5, 5:25] == color).all()
        assert (pixels[5:25, 24] == color).all()
        assert (pixels[:5] == 128).all()
        fills.append(pixels[15, 15])
    assert differences(np.array(fills)).min() > 10
    assert all(
        abs(fill - 128).max() < 0.5 * abs(np.array(c) - 128).max() for fill, c in zip(fills, PALETTE, strict=True)
    )


def test_a_structure_at_the_edge_of_the_slice_is_not_outlined_there():
    pixels, mask = np.zeros((6, 6, 3)), np.ones((6, 6), bool)
    overlay(pixels, mask, (255, 255, 255))
    assert (pixels < 255).all()
    overlay(pixels, ~mask, (255, 255, 255))
    assert (pixels < 255).all()


def test_given_colors_win():
    assert class_colors(2, [(1, 2, 3), np.array([4, 5, 6])]) == [(1, 2, 3), (4, 5, 6)]
    assert class_colors(3, [(1, 2, 3)]) == class_colors(3) == list(PALETTE[:3])
    assert class_colors(31)[30] == PALETTE[0]
    assert hex_color((0, 16, 255)) == "#0010ff"


def phantom():
    """Return a volume in RAS order with a mark at each end of the patient, and the meaning of the marks."""
    volume = np.zeros((5, 5, 5), int)
    marks = {"L": (0, 2, 2), "R": (4, 2, 2), "P": (2, 0, 2), "A": (2, 4, 2), "I": (2, 2, 0), "S": (2, 2, 4)}
    for i, place in enumerate(marks.values()):
        volume[place] = i + 1
    return volume, {i + 1: name for i, name in enumerate(marks)}


@pytest.mark.parametrize("order", list(itertools.permutations(range(3))))
@pytest.mark.parametrize("signs", list(itertools.product((1, -1), repeat=3)))
def test_slices_of_every_orientation_are_upright(order, signs):
    volume, names = phantom()
    stored = volume.transpose(order)[tuple(slice(None, None, sign) for sign in signs)]
    affine = np.eye(4)
    affine[:3, :3] = np.eye(3)[:, list(order)] * signs
    # Tilted by some degrees, as scans are.
    angle = np.radians(12)
    tilt = np.array([[1, 0, 0], [0, np.cos(angle), -np.sin(angle)], [0, np.sin(angle), np.cos(angle)]])
    affine[:3, :3] = tilt @ affine[:3, :3]
    upright = Upright.of(affine)
    shown = upright.turn(stored)[:, :, 2]
    edges = [names.get(shown[place]) for place in ((0, 2), (4, 2), (2, 0), (2, 4))]
    top_bottom_left_right = {0: "SIAP", 1: "SIRL", 2: "APRL"}[order[2]]
    assert "".join(edges) == top_bottom_left_right
    assert upright.turn(np.zeros((3, 7, 2))).shape == ((7, 3, 2) if upright.transposed else (3, 7, 2))
    assert upright.sizes((1.0, 2.0)) == ((2.0, 1.0) if upright.transposed else (1.0, 2.0))


def test_without_an_affine_slices_are_drawn_as_stored():
    plane = np.arange(6).reshape(2, 3)
    for affine in (None, np.zeros((4, 4)), "none"):
        assert np.array_equal(Upright.of(affine).turn(plane), plane)
