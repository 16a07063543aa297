"""From a config and a dataset's metadata to the settings of an evaluation."""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from typing import TYPE_CHECKING, Any

from medsegpy_core import CategoryError, ConfigError, DuplicateNameError, UnknownNameError
from medsegpy_core.data import normalize_category_ids
from medsegpy_core.errors import closest_match
from medsegpy_core.plugins import default_manager
from medsegpy_evaluation.lesions import CONNECTIVITIES
from medsegpy_evaluation.metrics import METRICS, Metric, MetricOptions, from_spec, suggestion
from medsegpy_evaluation.policy import MissingPolicy
from medsegpy_evaluation.scoring import Binarization, ScoreSettings

if TYPE_CHECKING:
    from medsegpy_core import Config, Metadata

__all__ = ["category_ids_of", "find_metric", "make_settings", "selected_categories"]


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
