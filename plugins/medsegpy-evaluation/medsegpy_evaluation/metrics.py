"""The metrics of one structure: what each is, and all of them from one pass over two masks.

P is the prediction, T the truth, as sets of voxels; their surfaces and the distances between these are those of
`surfaces`. Definitions with their sources are in docs/evaluation.md.
"""

from __future__ import annotations

import math
import re
from collections.abc import Callable, Iterable, Sequence
from functools import cached_property
from typing import TYPE_CHECKING, Final, TypeAlias

import numpy as np
from attrs import field, frozen
from numpy.typing import NDArray

from medsegpy_core import MetricSpec, UnknownNameError
from medsegpy_core.errors import closest_match
from medsegpy_evaluation.surfaces import Box, DistanceTally, SurfaceDistances, extended_axes, joint_box, tally

if TYPE_CHECKING:
    Bool: TypeAlias = NDArray[np.bool_]

__all__ = ["METRICS", "MaskPair", "Metric", "builtin", "from_spec", "suggestion"]


class MaskPair:
    """The masks of one structure in one scan, and everything that metrics share, computed once when first needed.

    Args:
        pred: Boolean, spatial axes only.
        truth: Boolean, of the same shape.
        spacing: mm, one per axis; None: unknown, which is an error only where it is needed.
        tolerance: That of `NSD`, in mm.
    """

    def __init__(self, pred: Bool, truth: Bool, spacing: Sequence[float] | None = None, tolerance: float = 1.0) -> None:
        if pred.shape != truth.shape:
            raise ValueError(f"The prediction has the shape {pred.shape}, the truth {truth.shape}: they must agree.")
        self.pred = pred
        self.truth = truth
        self.tolerance = tolerance
        self._spacing = spacing

    @property
    def spacing(self) -> tuple[float, ...]:
        """The size of a voxel in mm, one per axis.

        Raises:
            ValueError: It is unknown, or not one positive number per axis.
        """
        if self._spacing is None:
            raise ValueError("The spacing is unknown, but distances and volumes are in mm.")
        sizes = tuple(float(size) for size in self._spacing)
        if len(sizes) != self.pred.ndim or not all(0 < size < math.inf for size in sizes):
            raise ValueError(
                f"The spacing is {sizes}: expected a positive number of mm for each of {self.pred.ndim} axes."
            )
        return sizes

    @cached_property
    def box(self) -> Box | None:
        """The smallest box that holds both structures; None if both are empty."""
        return joint_box(self.pred, self.truth)

    @cached_property
    def counts(self) -> tuple[int, int, int]:
        """How many voxels are in P, in T, and in both."""
        if self.box is None:
            return 0, 0, 0
        pred, truth = self.pred[self.box], self.truth[self.box]
        return int(np.count_nonzero(pred)), int(np.count_nonzero(truth)), int(np.count_nonzero(pred & truth))

    @cached_property
    def distances(self) -> SurfaceDistances | DistanceTally:
        """The distances between the two surfaces; both structures must be there."""
        box, axes = self.box or (), extended_axes(self.pred.shape)
        thin = tuple(axis for axis in range(self.pred.ndim) if axis not in axes)
        pred, truth = self.pred[box].squeeze(thin), self.truth[box].squeeze(thin)
        # The box may be one voxel thick where the scan is not.
        spacing = [self.spacing[axis] for axis in axes]
        return tally(pred, truth, spacing, self.tolerance, self.pred.size + self.truth.size)

    @property
    def voxel_volume(self) -> float:
        """mm3 per voxel (mm2 in 2D)."""
        return math.prod(self.spacing)

    @property
    def diagonal(self) -> float:
        """The diagonal of the whole scan in mm, ``sqrt(sum((n_i s_i)^2))`` over the axes along which it extends: no
        distance inside it is larger."""
        return math.hypot(*(self.pred.shape[axis] * self.spacing[axis] for axis in extended_axes(self.pred.shape)))


def dsc(pair: MaskPair) -> float:
    """Dice similarity coefficient, 2 |P and T| / (|P| + |T|)."""
    pred, truth, both = pair.counts
    return 2 * both / (pred + truth)


def voe(pair: MaskPair) -> float:
    """Volumetric overlap error, 1 - |P and T| / |P or T|."""
    pred, truth, both = pair.counts
    return 1 - both / (pred + truth - both)


def cv(pair: MaskPair) -> float:
    """Coefficient of variation of the two volumes, | |P| - |T| | / (|P| + |T|)."""
    pred, truth, _ = pair.counts
    return abs(pred - truth) / (pred + truth)


def precision(pair: MaskPair) -> float:
    """|P and T| / |P|."""
    pred, _, both = pair.counts
    return both / pred


def recall(pair: MaskPair) -> float:
    """|P and T| / |T|."""
    _, truth, both = pair.counts
    return both / truth


def rvd(pair: MaskPair) -> float:
    """Relative volume difference, (|P| - |T|) / |T|: positive where too much was found."""
    pred, truth, _ = pair.counts
    return (pred - truth) / truth


def predicted_volume(pair: MaskPair) -> float:
    """|P| in mm3."""
    return pair.counts[0] * pair.voxel_volume


def true_volume(pair: MaskPair) -> float:
    """|T| in mm3."""
    return pair.counts[1] * pair.voxel_volume


@frozen
class Metric:
    """A metric as the evaluator uses it. It pickles if its function does.

    Attributes:
        name: What `TEST_METRICS` says.
        of: Its value for a `MaskPair` in which both structures are there.
        unit: ``"mm"``, ``"mm3"``, or empty for a fraction.
        higher_is_better: Which way is good. None: neither, the metric describes.
        spacing: Whether it needs the spacing.
        owner: Who brought it, with the version.
    """

    name: str
    of: Callable[[MaskPair], float]
    unit: str = ""
    higher_is_better: bool | None = True
    spacing: bool = field(default=False, kw_only=True)
    owner: str = field(default="medsegpy-evaluation", kw_only=True)


def _assd(pair: MaskPair) -> float:
    """Average symmetric surface distance: the mean of all distances from either surface to the other."""
    return pair.distances.assd()


def _hd95(pair: MaskPair) -> float:
    """The 95th percentile, linearly interpolated, of all distances from either surface to the other."""
    return pair.distances.hd95()


def _hd(pair: MaskPair) -> float:
    """Hausdorff distance: the largest of all distances from either surface to the other."""
    return pair.distances.hd()


def _nsd(pair: MaskPair) -> float:
    """Normalized surface distance: the share of both surfaces that is within the tolerance of the other one."""
    return pair.distances.nsd(pair.tolerance)


METRICS: Final[dict[str, Metric]] = {
    metric.name: metric
    for metric in (
        Metric("DSC", dsc),
        Metric("VOE", voe, "", False),
        Metric("CV", cv, "", False),
        Metric("ASSD", _assd, "mm", False, spacing=True),
        Metric("HD95", _hd95, "mm", False, spacing=True),
        Metric("HD", _hd, "mm", False, spacing=True),
        Metric("NSD", _nsd, spacing=True),
        Metric("Precision", precision),
        Metric("Recall", recall),
        # Signed: 0 is best, and neither way is good.
        Metric("RVD", rvd, "", None),
        Metric("PredictedVolume", predicted_volume, "mm3", None, spacing=True),
        Metric("TrueVolume", true_volume, "mm3", None, spacing=True),
    )
}


# What others call them, in small letters and digits.
_OTHER_NAMES: Final = {
    "DSC": "dice dicescore dicecoefficient dicesimilarity dicesimilaritycoefficient meandice sorensendice f1 f1score",
    "VOE": "iou miou jaccard jaccardindex jaccardscore jc",
    "CV": "vs volumesimilarity volumetricsimilarity",
    "ASSD": "asd averagesurfacedistance averagesymmetricsurfacedistance meansurfacedistance",
    "HD95": "95hd hausdorff95 hausdorffdistance95 percentilehausdorff",
    "HD": "hausdorff hausdorffdistance hd100 maximumhausdorff",
    "NSD": "surfacedice normalizedsurfacedice normalizedsurfacedistance normalisedsurfacedistance",
    "Precision": "ppv positivepredictivevalue",
    "Recall": "sensitivity tpr truepositiverate",
    "RVD": "ravd relativevolumedifference",
}
_RELATION: Final = {"VOE": "1 - IoU", "CV": "1 - volumetric similarity"}


def suggestion(name: str, known: Iterable[str]) -> str:
    """Return ``" Did you mean 'DSC'?"`` for a metric by another name or in other letters, or an empty string.

    Args:
        name: A name that no metric has.
        known: The names that there are.
    """

    def plain(text: str) -> str:
        return re.sub(r"[^a-z0-9]", "", text.lower())

    known = list(known)
    for candidate in known:
        if plain(candidate) == plain(name):
            return f" Did you mean {candidate!r}?"
    for candidate, others in _OTHER_NAMES.items():
        if candidate in known and plain(name) in others.split():
            relation = f", which is {_RELATION[candidate]}" if candidate in _RELATION else ""
            return f" Did you mean {candidate!r}{relation}?"
    return closest_match(name, known)


@frozen
class _OnPair:
    """The function of a `MetricSpec` in the form that `Metric` asks for."""

    function: Callable[..., float]

    def __call__(self, pair: MaskPair) -> float:
        return float(self.function(pair.pred, pair.truth, pair.spacing))


def from_spec(spec: MetricSpec, owner: str = "") -> Metric:
    """Return the metric of another plugin in the form that the evaluator uses."""
    return Metric(spec.name, _OnPair(spec.function), spec.unit, spec.higher_is_better, spacing=True, owner=owner)


def builtin(name: str) -> Metric:
    """Return a metric of this package.

    Raises:
        UnknownNameError: There is none of that name.
    """
    if name not in METRICS:
        known = ", ".join(METRICS)
        raise UnknownNameError(f"There is no metric {name!r}. There are: {known}.{suggestion(name, METRICS)}")
    return METRICS[name]
