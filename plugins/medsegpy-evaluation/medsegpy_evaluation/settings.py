"""What is scored and how: categories, metrics, thresholds, and what metrics are worth where a structure is missing."""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from typing import TYPE_CHECKING, Any, Final, Literal, TypeAlias

import numpy as np
from attrs import evolve, field, frozen

from medsegpy_core import CategoryError, ConfigError, DuplicateNameError, UnknownNameError
from medsegpy_core.data import normalize_category_ids
from medsegpy_core.errors import closest_match
from medsegpy_core.plugins import default_manager
from medsegpy_evaluation.lesions import CONNECTIVITIES
from medsegpy_evaluation.metrics import METRICS, MaskPair, Metric, MetricOptions, from_spec, suggestion

if TYPE_CHECKING:
    from medsegpy_core import Config, Metadata

__all__ = [
    "DIAGONAL",
    "MEASURED",
    "MissingPolicy",
    "Status",
    "category_ids_of",
    "find_metric",
    "make_settings",
    "selected_categories",
    "status_of",
]


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


@frozen
class Binarization:
    """How predictions become masks.

    Attributes:
        activation: ``"sigmoid"``: each channel by itself, above its threshold. ``"softmax"``: the largest channel, the
            first of those that are equal.
        thresholds: One per category, for ``"sigmoid"``.
    """

    activation: Literal["sigmoid", "softmax"]
    thresholds: tuple[float, ...]


@frozen
class ScoreSettings:
    """What it takes to score a scan, in a form that pickles.

    Attributes:
        categories: The names of the categories that are scored, in the order of the channels.
        background: Whether a channel for the background comes before those; it is not scored.
        metrics: What is measured.
        binarization: How predictions become masks.
        options: What some of the metrics depend on.
        policy: What metrics are worth where a structure is missing.
    """

    categories: tuple[str, ...]
    background: bool
    metrics: tuple[Metric, ...]
    binarization: Binarization
    options: MetricOptions = field(factory=MetricOptions)
    policy: MissingPolicy = field(factory=MissingPolicy)

    @property
    def channels(self) -> int:
        """How many channels a mask has."""
        return len(self.categories) + self.background

    def channel(self, category: int) -> int:
        """The channel of the category at a position."""
        return category + self.background

    @property
    def needing_spacing(self) -> list[str]:
        """The names of the metrics that need the spacing."""
        return [metric.name for metric in self.metrics if metric.spacing]

    @property
    def needing_probabilities(self) -> bool:
        """Whether a metric needs probabilities."""
        return any(metric.probabilities for metric in self.metrics)


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


def make_settings(
    cfg: Config,
    metadata: Metadata,
    policy: MissingPolicy | None = None,
    thresholds: float | Mapping[str, float] = 0.5,
    activation: str | None = None,
) -> ScoreSettings:
    """Read the settings of an evaluation.

    Args:
        cfg: `TEST_METRICS`, `CATEGORIES`, `INCLUDE_BACKGROUND`, `LOSS`, `NSD_TOLERANCE`, `LESION_THRESHOLD`,
            `LESION_CONNECTIVITY`, `BOUNDARY_WIDTH`, `CALIBRATION_BINS`, and, where it was added, `MISSING_POLICY`: what
            differs from the default policy.
        metadata: Of the dataset.
        policy: Instead of that of the config.
        thresholds: One for all categories, or by name (0.5 for others).
        activation: ``"sigmoid"`` or ``"softmax"``; None: that of the config's `LOSS`.

    Raises:
        ConfigError: A value that cannot be used here.
        CategoryError: A category that the metadata do not name.
        MetadataError: The metadata lack the categories.
        UnknownNameError: No plugin brings one of the metrics.
    """
    categories = tuple(name for name, _ in selected_categories(cfg, metadata))
    activation = activation or _activation(cfg)
    if activation not in ("sigmoid", "softmax"):
        raise ConfigError(f"LOSS says {activation!r}, but predictions are read as 'sigmoid' or 'softmax'.")
    background = bool(cfg.INCLUDE_BACKGROUND)
    if activation == "softmax" and not background:
        raise ConfigError(
            "LOSS says 'softmax', which takes the largest channel, the background among them: set "
            "INCLUDE_BACKGROUND=True, or a LOSS with 'sigmoid'."
        )
    names = list(dict.fromkeys(cfg.TEST_METRICS))
    if not names:
        raise ConfigError("TEST_METRICS is empty: there is nothing to measure.")
    if policy is None:
        policy = MissingPolicy().changed(getattr(cfg, "MISSING_POLICY", None) or {})
    return ScoreSettings(
        categories=categories,
        background=background,
        metrics=tuple(map(find_metric, names)),
        binarization=Binarization(
            "softmax" if activation == "softmax" else "sigmoid", _thresholds(thresholds, categories)
        ),
        options=_options(cfg),
        policy=policy,
    )


def selected_categories(cfg: Config, metadata: Metadata) -> list[tuple[str, int | tuple[int, ...]]]:
    """Return the names and ids of the categories that the config picks, in its order; all of the metadata's if none.

    Raises:
        CategoryError: The metadata do not name one of them.
        MetadataError: The metadata have no categories.
    """
    metadata.require("categories", "category_ids")
    names = list(metadata.get("categories"))
    ids = normalize_category_ids(metadata.get("category_ids"))
    wanted = normalize_category_ids(cfg.CATEGORIES) or ids
    name_of = dict(zip(ids, names, strict=True))
    unnamed = [category_id for category_id in wanted if category_id not in name_of]
    if unnamed:
        known = ", ".join(f"{category_id}: {name}" for category_id, name in name_of.items())
        raise CategoryError(
            f"CATEGORIES has {unnamed}, which the metadata do not name. They have {known}. Add the ids to category_ids "
            "and their names to categories."
        )
    return [(str(name_of[category_id]), category_id) for category_id in wanted]


def category_ids_of(names: Sequence[str], metadata: Metadata) -> list[int | tuple[int, ...]]:
    """Return the ids of categories that are given by name, for the config's `CATEGORIES`.

    Raises:
        CategoryError: The metadata do not name one of them, or one is given twice.
        MetadataError: The metadata have no categories.
    """
    metadata.require("categories", "category_ids")
    known = list(map(str, metadata.get("categories")))
    ids = dict(zip(known, normalize_category_ids(metadata.get("category_ids")), strict=True))
    for name in names:
        if name not in ids:
            raise CategoryError(
                f"There is no category {name!r}. There are: {', '.join(known)}.{_closest_category(name, known)}"
            )
        if names.count(name) > 1:
            raise CategoryError(f"The category {name!r} is given twice.")
    return [ids[name] for name in names]


def _closest_category(name: str, known: Sequence[str]) -> str:
    alike = [other for other in known if other.casefold() == name.casefold()]
    return f" Did you mean {alike[0]!r}?" if alike else closest_match(name, known)


def find_metric(name: str) -> Metric:
    """Return a metric by its name, one of this package or one that another plugin brings.

    Raises:
        UnknownNameError: Nobody brings it.
        DuplicateNameError: Two plugins do.
    """
    manager = default_manager()
    claims = manager.claims("metrics").get(name, ())
    if name in METRICS:
        others = [owned for owned in claims if owned.owner.distribution != "medsegpy-evaluation"]
        own = [owned for owned in claims if owned not in others]
        if others and (own or METRICS[name].probabilities):
            raise DuplicateNameError(f"The metric {name!r} is brought by medsegpy-evaluation and by {others[0]}.")
        return METRICS[name]
    try:
        owned = manager.lookup("metrics", name)
    except UnknownNameError as error:
        hint = suggestion(name, {*METRICS, *manager.claims("metrics")})
        raise UnknownNameError(str(error) if hint in str(error) else f"{error}{hint}") from None
    owner = " ".join(part for part in (owned.owner.distribution, owned.owner.version) if part)
    return from_spec(owned.record, owner or str(owned.owner))


def _activation(cfg: Config) -> str:
    loss: Any = getattr(cfg, "LOSS", None)
    if isinstance(loss, Sequence) and not isinstance(loss, str) and len(loss) > 1 and loss[1]:
        return str(loss[1])
    return "sigmoid"


def _thresholds(given: float | Mapping[str, float], categories: Sequence[str]) -> tuple[float, ...]:
    if isinstance(given, Mapping):
        strange = [name for name in given if name not in categories]
        if strange:
            raise ConfigError(
                f"There is a threshold for {strange[0]!r}, but the categories are {', '.join(categories)}."
                f"{closest_match(strange[0], categories)}"
            )
        values = tuple(float(given.get(name, 0.5)) for name in categories)
    else:
        values = (float(given),) * len(categories)
    if not all(0 <= value < 1 for value in values):
        raise ConfigError(f"Thresholds are at least 0 and below 1 (a voxel counts above it), not {list(values)}.")
    return values


def _options(cfg: Config) -> MetricOptions:
    """Read what metrics depend on. Other kinds of configs than `Config` may lack a key, or check nothing."""
    default = MetricOptions()
    options = MetricOptions(
        tolerance=float(getattr(cfg, "NSD_TOLERANCE", default.tolerance)),
        lesion_threshold=float(getattr(cfg, "LESION_THRESHOLD", default.lesion_threshold)),
        lesion_connectivity=str(getattr(cfg, "LESION_CONNECTIVITY", default.lesion_connectivity)),
        boundary_width=float(getattr(cfg, "BOUNDARY_WIDTH", default.boundary_width)),
        calibration_bins=int(getattr(cfg, "CALIBRATION_BINS", default.calibration_bins)),
    )
    for name, value in (("NSD_TOLERANCE", options.tolerance), ("BOUNDARY_WIDTH", options.boundary_width)):
        if not (value >= 0 and math.isfinite(value)):
            raise ConfigError(f"{name} is {value}, expected mm, at least 0.")
    if not 0 <= options.lesion_threshold <= 1:
        raise ConfigError(f"LESION_THRESHOLD is {options.lesion_threshold}, expected a number from 0 to 1.")
    if options.lesion_connectivity not in CONNECTIVITIES:
        known = ", ".join(CONNECTIVITIES)
        raise ConfigError(f"LESION_CONNECTIVITY is {options.lesion_connectivity!r}, expected one of {known}.")
    if options.calibration_bins < 1:
        raise ConfigError(f"CALIBRATION_BINS is {options.calibration_bins}, expected at least 1.")
    return options
