"""A segmentation model of statistics alone, for the demo: how bright is each class, and where does it lie?

For each pixel, Bayes' rule with two independent hints (and so it is naive): the brightness of the pixel and of its
surroundings, and its place in the body. It sees no shapes, so nobody should expect more than a rough guess of it.
"""

from __future__ import annotations

from typing import TYPE_CHECKING, Final

import numpy as np
from attrs import field, frozen

if TYPE_CHECKING:
    from medsegpy_core.typing import Array


_GRAYS: Final = 32  # bins of brightness, and as many of the surroundings' brightness
_PLACES: Final = 32  # bins of place along each axis
_NEAR, _AROUND, _SMOOTH = 3, 9, 5  # widths of means (pixels): of a pixel, of its surroundings, of the result


@frozen
class Baseline:
    """Statistics of each class, gathered by `fit` and applied by `predict`.

    Attributes:
        gray_counts: C x bins x bins: how often a brightness, of a pixel and of its surroundings, occurs in a class.
        place_counts: C x bins x bins: how often a class occurs at a place in the body.
    """

    gray_counts: Array = field(eq=False)
    place_counts: Array = field(eq=False)

    @classmethod
    def untrained(cls, classes: int) -> Baseline:
        """Return a model that has seen nothing, for masks of so many channels, background included."""
        return cls(np.zeros((classes, _GRAYS, _GRAYS)), np.zeros((classes, _PLACES, _PLACES)))

    def fit(self, images: Array, masks: Array) -> None:
        """Count one batch of whole slices.

        Args:
            images: N x H x W x 1.
            masks: N x H x W x C, exactly one class a pixel.
        """
        grays, places = _bins(images[..., 0])
        label = masks.argmax(axis=-1)
        np.add.at(self.gray_counts, (label, *grays), 1)
        np.add.at(self.place_counts, (label, *places), 1)

    def predict(self, images: Array) -> Array:
        """Return the probability of each class.

        Args:
            images: N x H x W x 1, whole slices: where the body lies in the slice is seen in it.

        Returns:
            N x H x W x C, float32; the classes of a pixel sum to 1.
        """
        grays, places = _bins(images[..., 0])
        # What was never seen is unlikely, not impossible.
        gray = np.stack([_blur(counts) for counts in self.gray_counts]) + 0.5
        likelihood = gray / gray.sum(axis=(1, 2), keepdims=True)
        prior = np.stack([_blur(counts) for counts in self.place_counts]) + 0.01
        prior /= prior.sum(axis=0, keepdims=True)
        joint = likelihood[:, grays[0], grays[1]] * prior[:, places[0], places[1]]
        posterior = box_mean(joint / joint.sum(axis=0, keepdims=True), _SMOOTH)
        return np.moveaxis(posterior, 0, -1).astype(np.float32)


def _bins(images: Array) -> tuple[tuple[Array, Array], tuple[Array, Array]]:
    """Return the bins of N x H x W pixels: of brightness and surroundings, and of place down and across."""
    bodies = np.stack([find_body(image) for image in images])
    relative = np.stack([_relative(image, body) for image, body in zip(images, bodies, strict=True)])
    grays = [(box_mean(relative, width) * _GRAYS).astype(int).clip(0, _GRAYS - 1) for width in (_NEAR, _AROUND)]
    # The middle of the bins spans the body, so that there is room around it.
    down, across = body_coordinates(bodies)
    places = [((0.2 + 0.6 * c) * _PLACES).astype(int).clip(0, _PLACES - 1) for c in (down, across)]
    return (grays[0], grays[1]), (places[0], places[1])


def find_body(image: Array) -> Array:
    """Return which pixels of a slice are body: brighter than halfway between the means of both sides of the threshold
    (Ridler and Calvard, IEEE Trans. Syst. Man Cybern. 1978).
    """
    threshold = float(image.mean())
    for _ in range(20):
        body = image > threshold
        if body.all() or not body.any():
            break
        threshold = (float(image[body].mean()) + float(image[~body].mean())) / 2
    return np.asarray(image > threshold)


def _relative(image: Array, body: Array) -> Array:
    """Return the brightness relative to the body's own, clipped to 0 to 1.

    Contrast medium makes one person's organs brighter than another's, and MR has no unit at all. The body's 10th and
    75th percentiles (fat and organs) become 0.4 and 0.7.
    """
    dark, bright = np.percentile(image[body] if body.any() else image, [10, 75])
    relative = 0.4 + 0.3 * (image.astype(np.float64) - dark) / max(float(bright - dark), 1e-6)
    return np.asarray(relative.clip(0, 1))


def body_coordinates(body: Array) -> tuple[Array, Array]:
    """Return where each pixel lies in the body: 0 at its top or left, 1 at its bottom or right.

    The ends are the 2nd and the 98th percentile of the body's pixels, so that a table or a tube do not count.

    Args:
        body: N x H x W, bool.

    Returns:
        Two arrays N x H x W: down and across. Where a slice has no body, it is the whole slice.
    """
    coordinates = []
    for axis in (1, 2):  # down, across
        n, size = body.shape[0], body.shape[axis]
        profile = body.sum(axis=3 - axis, dtype=np.float64)
        profile[profile.sum(axis=1) == 0] = 1.0
        reached = np.cumsum(profile, axis=1) / profile.sum(axis=1, keepdims=True)
        first = (reached < 0.02).sum(axis=1)[:, None]
        last = np.maximum((reached < 0.98).sum(axis=1)[:, None], first + 1)
        position = (np.arange(size)[None] - first) / (last - first)
        shape = (n, size, 1) if axis == 1 else (n, 1, size)
        coordinates.append(np.broadcast_to(position.reshape(shape), body.shape))
    return coordinates[0], coordinates[1]


def box_mean(images: Array, width: int) -> Array:
    """Return the mean of the square of `width` pixels around each pixel, over the last two axes; edges repeat."""
    before, after = width // 2, width - 1 - width // 2
    for axis in (-2, -1):
        padding = [(0, 0)] * images.ndim
        padding[axis] = (before + 1, after)
        total = np.cumsum(np.pad(images, padding, mode="edge"), axis=axis)
        size = images.shape[axis]
        ends = np.take(total, np.arange(width, width + size), axis=axis)
        images = (ends - np.take(total, np.arange(size), axis=axis)) / width
    return images


def _blur(counts: Array) -> Array:
    """Spread counts to neighboring bins: a neighbor of what was seen is likely too."""
    return box_mean(box_mean(counts, 3), 3)
