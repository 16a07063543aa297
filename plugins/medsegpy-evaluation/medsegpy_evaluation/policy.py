"""What a metric is worth where a structure is missing from the truth, from the prediction, or from both.

One policy for all scans, stated in every output: a miss and an invention cost, so that leaving out a structure never
improves a mean. Where both are empty nothing can be said: undefined, and counted.
"""

from __future__ import annotations

import math
from collections.abc import Mapping
from typing import Any, Final, Literal, TypeAlias

import numpy as np
from attrs import evolve, field, frozen

from medsegpy_core import ConfigError
from medsegpy_evaluation.metrics import MaskPair, Metric

__all__ = ["DIAGONAL", "MEASURED", "MissingPolicy", "Status", "status_of"]

# What became of a structure in a scan.
Status: TypeAlias = Literal["scored", "both_empty", "missed", "hallucinated", "unknown"]
# A number; one of the two words below; None: undefined.
Rule: TypeAlias = float | str | None

DIAGONAL: Final = "diagonal"  # the diagonal of the scan in mm
MEASURED: Final = "measured"  # the definition itself still holds

_COST: Final[dict[str, Rule]] = {
    "DSC": 0.0,
    "VOE": 1.0,
    "CV": 1.0,
    "ASSD": DIAGONAL,
    "HD95": DIAGONAL,
    "HD": DIAGONAL,
    "NSD": 0.0,
    "Precision": 0.0,
    "BoundaryIoU": 0.0,
    "LesionF1": 0.0,
    "LesionPrecision": 0.0,
    "LesionDSC": 0.0,
    **dict.fromkeys(("LesionTP", "LesionFP", "LesionFN", "ECE", "Brier", "PredictedVolume", "TrueVolume"), MEASURED),
}
_MISSED: Final = _COST | {"Recall": 0.0, "LesionRecall": 0.0, "RVD": -1.0}
_HALLUCINATED: Final = _COST | dict.fromkeys(("Recall", "LesionRecall", "RVD"))


def status_of(pair: MaskPair) -> Status:
    """Say what became of a structure."""
    pred, truth, _ = pair.counts
    if pred and truth:
        return "scored"
    if pred:
        return "hallucinated"
    return "missed" if truth else "both_empty"


def _rules(given: Mapping[str, Any]) -> dict[str, Rule]:
    for name, rule in given.items():
        number = isinstance(rule, int | float) and not isinstance(rule, bool) and math.isfinite(rule)
        if not (rule is None or number or rule in (DIAGONAL, MEASURED)):
            raise ConfigError(
                f"The value of {name!r} for a missing structure is {rule!r}: expected a number, {DIAGONAL!r} (that of "
                f"the scan, in mm), {MEASURED!r} (the definition still holds), or None (undefined)."
            )
    return dict(given)


@frozen
class MissingPolicy:
    """Values for structures that are missing.

    Attributes:
        missed: By the name of the metric, its value where the truth has the structure and the prediction has not: a
            number, ``"diagonal"``, ``"measured"``, or None for undefined.
        hallucinated: The same where only the prediction has it.
    """

    missed: Mapping[str, Rule] = field(factory=lambda: dict(_MISSED), converter=_rules)
    hallucinated: Mapping[str, Rule] = field(factory=lambda: dict(_HALLUCINATED), converter=_rules)

    def changed(self, changes: Mapping[str, Mapping[str, Any]]) -> MissingPolicy:
        """Return a policy with other values for some metrics, as in ``{"missed": {"HD95": 100.0}}``.

        Raises:
            ConfigError: A key is neither ``missed`` nor ``hallucinated``, or a value is none that a rule can have.
        """
        strange = [key for key in changes if key not in ("missed", "hallucinated")]
        if strange:
            raise ConfigError(f"A policy has the keys 'missed' and 'hallucinated', not {strange[0]!r}.")
        return evolve(self, **{key: {**getattr(self, key), **value} for key, value in changes.items()})

    def score(self, metric: Metric, pair: MaskPair) -> float | None:
        """Return the value of a metric for two masks, whether the structure is there or not; None: undefined.

        Raises:
            UndefinedMetricError: The metric has no value for what was predicted.
        """
        status = status_of(pair)
        if status == "scored":
            return _finite(metric.of(pair))
        if status == "both_empty":
            return None
        rules = self.missed if status == "missed" else self.hallucinated
        if metric.name not in rules:
            return _of_another_plugin(metric, pair)
        rule = rules[metric.name]
        if rule == DIAGONAL:
            return pair.diagonal
        if rule == MEASURED:
            return _finite(metric.of(pair))
        return None if rule is None else float(rule)

    def as_dict(self) -> dict[str, Any]:
        """Return the policy in words and numbers, for the outputs."""
        return {
            "both_empty": "undefined: an empty field, counted, left out of means",
            "unknown_voxels": "background in truth and prediction, and counted; a structure that goes on into them "
            "ends there, as at the border of the scan; where all voxels are unknown, metrics are undefined",
            "missed": dict(self.missed),
            "hallucinated": dict(self.hallucinated),
            DIAGONAL: "the diagonal of the scan in mm, sqrt(sum((n_i s_i)^2))",
            MEASURED: "the definition itself still holds",
            "metrics of other plugins": "their own value where it is finite; else the worst: 0 where higher is better, "
            "the diagonal where the unit is mm, 1 where there is no unit; undefined with any other unit",
        }


def _of_another_plugin(metric: Metric, pair: MaskPair) -> float | None:
    """A plugin's own idea of a missing structure counts if it has one, else the worst value that is known."""
    try:
        with np.errstate(all="ignore"):
            value = _finite(metric.of(pair))
    except (ArithmeticError, IndexError, RuntimeError, RuntimeWarning, ValueError):
        # What definitions do that do not hold for an empty mask; NumPy warns of some, which may have been made errors.
        value = None
    if value is not None:
        return value
    if metric.higher_is_better:
        return 0.0
    return {"mm": pair.diagonal, "": 1.0}.get(metric.unit)


def _finite(value: float) -> float | None:
    return value if math.isfinite(value) else None
