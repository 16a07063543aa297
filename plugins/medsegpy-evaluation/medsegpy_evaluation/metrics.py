"""The metrics of one structure: what each is, and all of them from one pass over two masks.

P is the prediction, T the truth, as sets of voxels; their surfaces and the distances between these are those of
`surfaces`. Definitions with their sources are in docs/evaluation.md.
"""

# ruff: noqa: RUF001 - definitions have the signs of mathematics
from __future__ import annotations

import math
import re
from collections.abc import Callable, Iterable, Sequence
from functools import cached_property
from typing import TYPE_CHECKING, Any, Final, TypeAlias

import numpy as np
from attrs import field, frozen
from numpy.typing import NDArray

from medsegpy_core import MetricSpec, UnknownNameError
from medsegpy_core.errors import closest_match
from medsegpy_evaluation.calibration import Calibration, calibration_of
from medsegpy_evaluation.lesions import Lesions, match_lesions
from medsegpy_evaluation.surfaces import Box, DistanceTally, SurfaceDistances, extended_axes, joint_box, tally

if TYPE_CHECKING:
    Bool: TypeAlias = NDArray[np.bool_]

__all__ = [
    "LESION_METRICS",
    "METRICS",
    "MaskPair",
    "Metric",
    "MetricOptions",
    "UndefinedMetricError",
    "builtin",
    "from_spec",
    "suggestion",
]


# Voxels that are counted at once.
_SLAB: Final = 1 << 18


class UndefinedMetricError(ValueError):
    """A metric that has no value for what was predicted. The message says why."""


@frozen
class MetricOptions:
    """What some of the metrics depend on.

    Attributes:
        tolerance: That of `NSD`, in mm.
        lesion_threshold: The intersection over union from which on two lesions match.
        lesion_connectivity: Which voxels are connected: ``"auto"``, ``"full"`` or ``"face"``, see `match_lesions`.
        boundary_width: That of `BoundaryIoU`, in mm.
        calibration_bins: Of `ECE`.
    """

    tolerance: float = 1.0
    lesion_threshold: float = 0.5
    lesion_connectivity: str = "auto"
    boundary_width: float = 2.0
    calibration_bins: int = 15


class MaskPair:
    """The masks of one structure in one scan, and everything that metrics share, computed once when first needed.

    Args:
        pred: Boolean, spatial axes only.
        truth: Boolean, of the same shape.
        spacing: mm, one per axis; None: unknown, which is an error only where it is needed.
        options: What some of the metrics depend on.
        probabilities: Of the structure, of the same shape; None: the prediction holds none.
        unknown: Where the truth is unknown (False in both masks); None: nowhere.
    """

    def __init__(
        self,
        pred: Bool,
        truth: Bool,
        spacing: Sequence[float] | None = None,
        options: MetricOptions | None = None,
        *,
        probabilities: NDArray[Any] | None = None,
        unknown: Bool | None = None,
    ) -> None:
        if pred.shape != truth.shape:
            raise ValueError(f"The prediction has the shape {pred.shape}, the truth {truth.shape}: they must agree.")
        self.pred = pred
        self.truth = truth
        self.options = options or MetricOptions()
        self._spacing = spacing
        self._probabilities = probabilities
        self._unknown = unknown

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
        # Whole planes, since NumPy counts what lies side by side in memory many times faster.
        planes = self.box[0]
        step = max(1, _SLAB * len(self.pred) // self.pred.size)
        counts = np.zeros(3, np.int64)
        for start in range(planes.start, planes.stop, step):
            pred, truth = (mask[start : min(start + step, planes.stop)] for mask in (self.pred, self.truth))
            counts += [np.count_nonzero(part) for part in (pred, truth, pred & truth)]
        return int(counts[0]), int(counts[1]), int(counts[2])

    @cached_property
    def distances(self) -> SurfaceDistances | DistanceTally:
        """The distances between the two surfaces; both structures must be there."""
        pred, truth, spacing = self.cropped
        return tally(pred, truth, spacing, self.options.tolerance, self.pred.size + self.truth.size)

    @property
    def cropped(self) -> tuple[Bool, Bool, list[float]]:
        """Both masks in their box, and the spacing, without the axes of length 1 of the scan."""
        axes = extended_axes(self.pred.shape)
        # The box may be one voxel thick where the scan is not.
        return *self._in_box(axes), [self.spacing[axis] for axis in axes]

    def _in_box(self, axes: Sequence[int]) -> tuple[Bool, Bool]:
        box, thin = self.box or (), tuple(axis for axis in range(self.pred.ndim) if axis not in axes)
        return self.pred[box].squeeze(thin), self.truth[box].squeeze(thin)

    @cached_property
    def lesions(self) -> Lesions:
        """The lesions of both masks, matched."""
        if self.box is None:
            return Lesions(0, 0, ())
        pred, truth = self._in_box(extended_axes(self.pred.shape))
        return match_lesions(pred, truth, self.options.lesion_threshold, self.options.lesion_connectivity)

    @cached_property
    def calibration(self) -> Calibration:
        """The calibration of the probabilities.

        Raises:
            UndefinedMetricError: There are none.
        """
        if self._probabilities is None:
            raise UndefinedMetricError("the prediction holds labels, or only 0 and 1, and no probabilities")
        return calibration_of(self._probabilities, self.truth, self._unknown, self.options.calibration_bins)

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


def lesion_f1(pair: MaskPair) -> float:
    """2 TP / (2 TP + FP + FN), the recognition quality of panoptic quality."""
    lesions = pair.lesions
    return 2 * lesions.tp / (lesions.predicted + lesions.true)


def lesion_precision(pair: MaskPair) -> float:
    """TP / (TP + FP)."""
    return pair.lesions.tp / pair.lesions.predicted


def lesion_recall(pair: MaskPair) -> float:
    """TP / (TP + FN)."""
    return pair.lesions.tp / pair.lesions.true


def lesion_dsc(pair: MaskPair) -> float:
    """The mean of the Dice coefficients of the matched pairs; 0 if none matches, or finding nothing would pay."""
    return float(np.mean(pair.lesions.dsc)) if pair.lesions.tp else 0.0


def lesion_tp(pair: MaskPair) -> float:
    """Lesions that were found."""
    return pair.lesions.tp


def lesion_fp(pair: MaskPair) -> float:
    """Lesions that were made up."""
    return pair.lesions.fp


def lesion_fn(pair: MaskPair) -> float:
    """Lesions that were not found."""
    return pair.lesions.fn


def ece(pair: MaskPair) -> float:
    """Expected calibration error."""
    return pair.calibration.ece


def brier(pair: MaskPair) -> float:
    """Brier score."""
    return pair.calibration.brier


@frozen
class Metric:
    """A metric as the evaluator uses it. It pickles if its function does.

    Attributes:
        name: What `TEST_METRICS` says.
        of: Its value for a `MaskPair` in which both structures are there.
        unit: ``"mm"``, ``"mm3"``, or empty for a fraction.
        higher_is_better: Which way is good. None: neither, the metric describes.
        definition: What it is, for people.
        source: Where it is from.
        spacing: Whether it needs the spacing.
        probabilities: Whether it needs probabilities.
        owner: Who brought it, with the version.
    """

    name: str
    of: Callable[[MaskPair], float]
    unit: str = ""
    higher_is_better: bool | None = True
    definition: str = ""
    source: str = ""
    spacing: bool = field(default=False, kw_only=True)
    probabilities: bool = field(default=False, kw_only=True)
    owner: str = field(default="medsegpy-evaluation", kw_only=True)


def _assd(pair: MaskPair) -> float:
    return pair.distances.assd()


def _hd95(pair: MaskPair) -> float:
    return pair.distances.hd95()


def _hd(pair: MaskPair) -> float:
    return pair.distances.hd()


def _nsd(pair: MaskPair) -> float:
    """Normalized surface distance: the share of both surfaces that is within the tolerance of the other one."""
    return pair.distances.nsd(pair.options.tolerance)


def _boundary_iou(pair: MaskPair) -> float:
    from medsegpy_evaluation.boundary import boundary_iou

    return boundary_iou(*pair.cropped, pair.options.boundary_width)


_HEIMANN: Final = "Heimann et al. 2009"
_HUTTENLOCHER: Final = "Huttenlocher et al. 1993; MedPy 0.5.2"
_KIRILLOV: Final = "Kirillov et al. 2019; panoptica 2.1"
_OF_LESIONS: Final = "of lesions, as matched below"

# The one table of what metrics are: docs and report show it.
METRICS: Final[dict[str, Metric]] = {
    metric.name: metric
    for metric in (
        Metric("DSC", dsc, "", True, "2 |P ∩ T| / (|P| + |T|)", "Dice 1945"),
        Metric("VOE", voe, "", False, "1 − |P ∩ T| / |P ∪ T|", _HEIMANN),
        Metric(
            "CV",
            cv,
            "",
            False,
            "| |P| − |T| | / (|P| + |T|): standard deviation (n) over mean, of the two volumes",
            "Glüer et al. 1995",
        ),
        Metric("RVD", rvd, "", None, "(|P| − |T|) / |T|, signed", _HEIMANN),
        Metric("Precision", precision, "", True, "|P ∩ T| / |P|"),
        Metric("Recall", recall, "", True, "|P ∩ T| / |T|"),
        Metric(
            "ASSD",
            _assd,
            "mm",
            False,
            "mean of all distances from either surface to the other",
            f"{_HEIMANN}; MedPy 0.5.2",
            spacing=True,
        ),
        Metric("HD", _hd, "mm", False, "maximum of the same distances", _HUTTENLOCHER, spacing=True),
        Metric(
            "HD95",
            _hd95,
            "mm",
            False,
            "linearly interpolated 95th percentile of the same distances",
            _HUTTENLOCHER,
            spacing=True,
        ),
        Metric(
            "NSD",
            _nsd,
            "",
            True,
            "fraction of both surfaces within NSD_TOLERANCE mm (1.0) of the other one, the tolerance included",
            "Nikolov et al. 2021",
            spacing=True,
        ),
        Metric(
            "BoundaryIoU",
            _boundary_iou,
            "",
            True,
            "|P′ ∩ T′| / |P′ ∪ T′| of the voxels of P and of T within BOUNDARY_WIDTH mm (2.0) of their own surface",
            "Cheng et al. 2021",
            spacing=True,
        ),
        Metric("LesionF1", lesion_f1, "", True, f"2 TP / (2 TP + FP + FN) {_OF_LESIONS}", _KIRILLOV),
        Metric("LesionPrecision", lesion_precision, "", True, f"TP / (TP + FP) {_OF_LESIONS}", "panoptica 2.1"),
        Metric("LesionRecall", lesion_recall, "", True, f"TP / (TP + FN) {_OF_LESIONS}", "panoptica 2.1"),
        Metric("LesionDSC", lesion_dsc, "", True, "mean DSC of matched pairs of lesions, 0 if none matches", _KIRILLOV),
        Metric("LesionTP", lesion_tp, "", None, "number of matched pairs of lesions (TP)"),
        Metric("LesionFP", lesion_fp, "", None, "number of predicted lesions without a match (FP)"),
        Metric("LesionFN", lesion_fn, "", None, "number of true lesions without a match (FN)"),
        Metric(
            "ECE",
            ece,
            "",
            False,
            "Σ |n(b)/n · (mean probability − fraction of T)| over CALIBRATION_BINS (15) bins b of equal width, all "
            "known voxels",
            "Naeini et al. 2015; Guo et al. 2017",
            probabilities=True,
        ),
        Metric(
            "Brier",
            brier,
            "",
            False,
            "mean of (probability − T)² over all known voxels, T being 0 or 1",
            "Brier 1950",
            probabilities=True,
        ),
        Metric("PredictedVolume", predicted_volume, "mm3", None, "|P| times the volume of a voxel", spacing=True),
        Metric("TrueVolume", true_volume, "mm3", None, "|T| times the volume of a voxel", spacing=True),
    )
}
LESION_METRICS: Final = tuple(name for name in METRICS if name.startswith("Lesion"))


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
    "BoundaryIoU": "biou boundaryjaccard",
    "LesionF1": "rq recognitionquality lesionwisef1 detectionf1",
    "LesionDSC": "sqdsc lesionwisedice lesiondice instancedice",
    "LesionRecall": "lesionsensitivity lesionwisesensitivity detectionrate",
    "LesionPrecision": "lesionppv lesionwiseprecision",
    "ECE": "expectedcalibrationerror calibrationerror",
    "Brier": "brierscore",
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
