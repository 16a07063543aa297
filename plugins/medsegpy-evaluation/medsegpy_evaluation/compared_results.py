"""Results of several models, read, checked against each other, and paired by subject."""

from __future__ import annotations

import json
import math
import os
from collections.abc import Iterable, Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any, Final, TypeAlias

import numpy as np
from attrs import field, frozen
from numpy.typing import NDArray

from medsegpy_core import MedSegPyError, UnknownNameError
from medsegpy_core.errors import closest_match
from medsegpy_core.text import counted, some
from medsegpy_evaluation.metrics import LESION_METRICS

__all__ = [
    "EXACT",
    "FEWEST",
    "LEVEL",
    "OF_METRICS",
    "ComparisonError",
    "MeanRank",
    "Model",
    "Source",
    "holm",
    "mean_interval",
    "mean_ranks",
    "named",
    "read_model",
    "refuse_differences",
    "selected",
    "sign_flip_tests",
]


Floats: TypeAlias = NDArray[np.float64]

LEVEL: Final = 0.95
# With fewer subjects no outcome of the test is below 0.05: 2 / 2^5 = 0.0625.
FEWEST: Final = 6
# Up to this many differences that are not zero, all 2^n sign flips are counted; two halves of 2^16 sums suffice.
EXACT: Final = 32
# Sums that differ by less than this share are equal: the order of additions changes the last digits.
_ROUNDING: Final = 1e-12
# Numbers that are held at once.
_BLOCK: Final = 1 << 22


def mean_interval(differences: Floats) -> tuple[float, float] | None:
    """Return the 95 % t interval of the mean, or None with fewer than two differences.

    Args:
        differences: One per subject.
    """
    from scipy.special import stdtrit

    n = len(differences)
    if n < 2:
        return None
    mean = float(differences.mean())
    half = float(stdtrit(n - 1, (1 + LEVEL) / 2) * differences.std(ddof=1) / np.sqrt(n))
    return mean - half, mean + half


def sign_flip_tests(differences: Floats, flips: int, seed: int) -> list[tuple[float, bool]]:
    """Test for each row whether its mean differs from zero: how often is the mean as far from it with random signs?

    Two-sided. If two models are alike, their names can be swapped for any subject, which flips the sign of its
    difference; nothing else is assumed.

    Args:
        differences: Rows x subjects; zero if a subject has none in this row, which changes nothing.
        flips: How many random flips, with more than `EXACT` differences that are not zero.
        seed: Of the random flips.

    Returns:
        Per row the p-value, and whether it is exact. A random one counts the observed signs as one of the flips, so
        that it is never zero.
    """
    exact = [int(np.count_nonzero(row)) <= EXACT for row in differences]
    results = [(_exact(row) if small else 1.0, small) for row, small in zip(differences, exact, strict=True)]
    large = [position for position, small in enumerate(exact) if not small]
    if large:
        for position, p in zip(large, _monte_carlo(differences[large], flips, seed), strict=True):
            results[position] = (p, False)
    return results


def _exact(differences: Floats) -> float:
    values = differences[differences != 0]
    observed, margin = abs(values.sum()), _ROUNDING * np.abs(values).sum()
    if observed <= margin:
        return 1.0
    half = len(values) // 2
    first, second = _signed_sums(values[:half]), np.sort(_signed_sums(values[half:]))
    # As many sums are below -observed as above it.
    below = np.searchsorted(second, observed - margin - np.sort(first))
    above = len(first) * len(second) - int(below.sum())
    return min(1.0, 2 * above / 2.0 ** len(values))


def _signed_sums(values: Floats) -> Floats:
    """Return the sums with all 2^n choices of signs."""
    sums = np.zeros(1)
    for value in values:
        sums = np.concatenate([sums + value, sums - value])
    return sums


def _monte_carlo(differences: Floats, flips: int, seed: int) -> list[float]:
    observed = np.abs(differences.sum(axis=1)) - _ROUNDING * np.abs(differences).sum(axis=1)
    rng = np.random.default_rng(seed)
    count = np.zeros(len(differences), np.int64)
    step = max(1, _BLOCK // (differences.shape[0] + differences.shape[1]))
    for start in range(0, flips, step):
        signs = rng.integers(2, size=(min(step, flips - start), differences.shape[1]), dtype=np.int8) * 2.0 - 1.0
        count += (np.abs(signs @ differences.T) >= observed).sum(axis=0)
    return [(int(extreme) + 1) / (flips + 1) for extreme in count]


def holm(p_values: Sequence[float]) -> list[float]:
    """Return p-values corrected for their number, by Holm's step-down procedure (1979).

    Example:
        >>> holm([0.01, 0.04, 0.03])
        [0.03, 0.06, 0.06]
    """
    corrected = [1.0] * len(p_values)
    largest = 0.0
    for rank, position in enumerate(sorted(range(len(p_values)), key=lambda place: p_values[place])):
        largest = max(largest, min(1.0, (len(p_values) - rank) * p_values[position]))
        corrected[position] = largest
    return corrected


@frozen
class MeanRank:
    """The rank of a model, 1 is best, averaged over categories and metrics.

    Attributes:
        rank: The average.
        low: Beginning of its 95 % interval; None with fewer than two subjects.
        high: End.
        first: In which share of the resamples no model has a better mean rank; None with fewer than two subjects.
    """

    rank: float
    low: float | None
    high: float | None
    first: float | None


def mean_ranks(values: Floats, resamples: int, seed: int) -> list[MeanRank]:
    """Rank models by their means over subjects, table cell by table cell, and average the ranks.

    Subjects are drawn with replacement for the intervals (percentiles). Equal means share the average of their ranks.

    Args:
        values: Models x cells x subjects, higher is better; NaN for all models if a subject has no value in a cell.
        resamples: How often subjects are drawn.
        seed: Of the draws.
    """
    models, cells, subjects = values.shape
    known = ~np.isnan(values[0])
    filled = np.where(known, values, 0.0)
    ranks = _ranked(filled, known, np.ones((1, subjects)))[0]
    if subjects < 2:
        return [MeanRank(float(rank), None, None, None) for rank in ranks]
    rng = np.random.default_rng(seed)
    drawn = []
    step = max(1, _BLOCK // (subjects + models * cells))
    for start in range(0, resamples, step):
        picked = rng.integers(subjects, size=(min(step, resamples - start), subjects))
        weights = np.zeros(picked.shape)
        np.add.at(weights, (np.arange(len(picked))[:, None], picked), 1)
        drawn.append(_ranked(filled, known, weights))
    all_drawn = np.concatenate(drawn)
    all_drawn = all_drawn[~np.isnan(all_drawn).any(axis=1)]  # without draws in which no cell has a value
    if not len(all_drawn):
        return [MeanRank(float(rank), None, None, None) for rank in ranks]
    low, high = np.percentile(all_drawn, (50 * (1 - LEVEL), 50 * (1 + LEVEL)), axis=0)
    first = (all_drawn <= all_drawn.min(axis=1, keepdims=True) + _ROUNDING).mean(axis=0)
    found = zip(ranks.tolist(), low.tolist(), high.tolist(), first.tolist(), strict=True)
    return [MeanRank(*numbers) for numbers in found]


def _ranked(filled: Floats, known: NDArray[np.bool_], weights: Floats) -> Floats:
    """Return draws x models: mean ranks for the weights (draws x subjects); NaN if no cell has a value."""
    totals = weights @ known.T.astype(np.float64)
    with np.errstate(invalid="ignore"):
        means = np.stack([weights @ model.T / totals for model in filled], axis=1)
    margin = _ROUNDING * np.abs(means).max(axis=1, initial=0)
    ranks = np.ones(means.shape)
    for model in range(len(filled)):
        for other in range(len(filled)):
            if other != model:
                ahead = means[:, other] - means[:, model]
                ranks[:, model] += np.where(ahead > margin, 1.0, np.where(ahead < -margin, 0.0, 0.5))
    counted = totals > 0
    number = counted.sum(axis=1)[:, None]
    sums = np.where(counted[:, None], ranks, 0.0).sum(axis=2)
    means_of_ranks: Floats = np.divide(sums, number, out=np.full(sums.shape, np.nan), where=number > 0)
    return means_of_ranks


# A folder of results, its metrics.json, what `evaluate()` returned, or several of these: folds of one model.
Source: TypeAlias = "str | os.PathLike[str] | Mapping[str, Any] | Sequence[Source]"

# Settings in which models may differ: they belong to the model, or change no value.
_FREE: Final = {"thresholds", "activation", "background_channel", "bootstrap", "categories", "metrics"}
# Settings that change the values of some metrics only.
OF_METRICS: Final = {
    "nsd_tolerance": ("NSD",),
    "boundary_width": ("BoundaryIoU",),
    "calibration_bins": ("ECE",),
    **dict.fromkeys(("lesion_threshold", "lesion_connectivity"), LESION_METRICS),
}
# So many names of scans in a message.
_LISTED: Final = 8


class ComparisonError(MedSegPyError, ValueError):
    """Results that cannot be compared. The message lists all reasons."""


@frozen
class _Scan:
    """What results tell of a scan; `structures` by category."""

    dataset: str
    subject: str
    shape: tuple[int, ...]
    spacing: tuple[float, ...] | None
    structures: Mapping[str, Mapping[str, Any]]


@frozen
class Model:
    """The results of one model, of all its folds.

    Attributes:
        name: What it is called.
        documents: What `evaluate()` returned for each fold, by where it came from.
        scans: By id.
        failed: Scans that could not be scored, and why.
        values: By category and metric, then by scan; None: undefined.
    """

    name: str
    documents: Mapping[str, Mapping[str, Any]] = field(repr=False)
    scans: Mapping[str, _Scan] = field(repr=False)
    failed: Mapping[str, str] = field(repr=False)
    values: Mapping[tuple[str, str], Mapping[str, float | None]] = field(repr=False)


def read_model(name: str, source: Source) -> Model:
    """Read the results of one model.

    Args:
        name: What to call it.
        source: A folder of results, a document, or several of these, the folds of one cross-validation.

    Raises:
        ComparisonError: There are no results, or a scan is in two folds.
    """
    documents: dict[str, Mapping[str, Any]] = {}
    scans: dict[str, _Scan] = {}
    failed: dict[str, str] = {}
    values: dict[tuple[str, str], dict[str, float | None]] = {}
    fold_of: dict[str, str] = {}
    for where, document in _documents(name, source):
        if where in documents:
            raise ComparisonError(f"{where} is given twice for {name!r}. Give each fold once.")
        documents[where] = document
        try:
            found, broken, rows = _scans(document), _failed(document), _values(document)
            _flat("", document["policy"])
        except (KeyError, TypeError, ValueError, AttributeError) as error:
            raise ComparisonError(
                f"{where} is not a result of an evaluation ({_reason(error)}). Give the folder that the evaluator "
                "wrote, or what evaluate() returned."
            ) from None
        if twice := [scan for scan in (*found, *broken) if scan in fold_of]:
            raise ComparisonError(
                f"{_listed(twice)}: in {fold_of[twice[0]]} and in {where}, two folds of {name!r}. Each scan counts "
                "once: give folds whose test scans do not overlap."
            )
        fold_of.update(dict.fromkeys((*found, *broken), where))
        scans.update(found)
        failed.update(broken)
        for key, by_scan in rows.items():
            values.setdefault(key, {}).update(by_scan)
    return Model(name, documents, scans, failed, values)


def _documents(name: str, source: Source) -> Iterator[tuple[str, Mapping[str, Any]]]:
    if isinstance(source, str | os.PathLike):
        yield str(source), _read(Path(source))
    elif isinstance(source, Mapping):
        yield f"the document of {name!r}", source
    elif not source:
        raise ComparisonError(f"There are no results of {name!r}: its list is empty.")
    else:
        for number, item in enumerate(source, 1):
            for where, document in _documents(name, item):
                yield (f"document {number} of {name!r}" if isinstance(item, Mapping) else where), document


def _read(path: Path) -> Mapping[str, Any]:
    file = path / "metrics.json" if path.is_dir() else path
    try:
        document = json.loads(file.read_text(encoding="utf-8"))
    except OSError as error:
        raise ComparisonError(
            f"{file} cannot be read: {error.strerror}. Give a folder that the evaluator wrote, with its metrics.json."
        ) from error
    except ValueError as error:
        raise ComparisonError(f"{file} is no JSON: {error}. Evaluate again.") from error
    if not isinstance(document, dict):
        raise ComparisonError(f"{file} is not a result of an evaluation: it holds no object.")
    return document


def _reason(error: Exception) -> str:
    return f"it lacks {error}" if isinstance(error, KeyError) else str(error)


def _scans(document: Mapping[str, Any]) -> dict[str, _Scan]:
    found: dict[str, _Scan] = {}
    for scan in document["scans"]:
        if scan["scan"] in found:
            raise ValueError(f"scan {scan['scan']!r} is in it twice")
        found[scan["scan"]] = _Scan(
            dataset=document["dataset"],
            subject=str(scan["subject"]),
            shape=tuple(scan["shape"]),
            spacing=None if scan["spacing"] is None else tuple(scan["spacing"]),
            structures={structure["category"]: structure for structure in scan["structures"]},
        )
        if found[scan["scan"]].structures.keys() != set(document["settings"]["categories"]):
            raise ValueError(f"scan {scan['scan']!r} has other categories than the settings")
    return found


def _failed(document: Mapping[str, Any]) -> dict[str, str]:
    return {scan["scan"]: "; ".join(scan["problems"]) for scan in document["failed"]}


def _values(document: Mapping[str, Any]) -> dict[tuple[str, str], dict[str, float | None]]:
    """Return the values of a document, of which there must be one for each scan, category and metric."""
    settings = document["settings"]
    scans = {scan["scan"] for scan in document["scans"]}
    keys = [(category, metric["name"]) for category in settings["categories"] for metric in settings["metrics"]]
    values: dict[tuple[str, str], dict[str, float | None]] = {key: {} for key in keys}
    for row in document["metrics"]:
        by_scan, scan, value = values[row["category"], row["metric"]], row["scan"], row["value"]
        if scan in by_scan or scan not in scans:
            raise ValueError(f"scan {scan!r} has a row too many for {row['category']!r}, {row['metric']}")
        if value is not None and not (type(value) in (int, float) and math.isfinite(value)):
            raise ValueError(f"a value of scan {scan!r} is {value!r}")
        by_scan[scan] = None if value is None else float(value)
    for (category, metric), by_scan in values.items():
        if len(by_scan) != len(scans):
            raise ValueError(f"{counted(len(scans) - len(by_scan), 'scan')} without {category!r}, {metric}")
    return values


def named(sources: Sequence[Source], names: Sequence[str | None] | None) -> list[str]:
    """Return a name for each model: the one given, else the name of its folder, else a letter.

    Raises:
        ComparisonError: Not one name for each, or two that are alike.
    """
    asked = [None] * len(sources) if names is None else list(names)
    if len(asked) != len(sources):
        raise ComparisonError(
            f"{counted(len(sources), 'model')}, but {counted(len(asked), 'name')}: give one for each."
        )
    paths = [Path(source).resolve() if isinstance(source, str | os.PathLike) else None for source in sources]
    shown = [_letter(number) if path is None else path.name for number, path in enumerate(paths)]
    shown = [default if name is None else name for name, default in zip(asked, shown, strict=True)]
    # Folders of one name are told apart by their paths.
    found = [
        str(path) if path is not None and name is None and shown.count(default) > 1 else default
        for name, default, path in zip(asked, shown, paths, strict=True)
    ]
    if len(set(found)) != len(found) or not all(found):
        raise ComparisonError(f"The models have the names {', '.join(map(repr, found))}: each needs one of its own.")
    return found


def _letter(number: int) -> str:
    return chr(ord("a") + number) if number < 26 else f"model {number + 1}"


def selected(models: Sequence[Model], kind: str, wanted: Sequence[str] | None) -> list[str]:
    """Return the names of the categories, or of the metrics, to compare.

    Args:
        models: The models.
        kind: ``"categories"`` or ``"metrics"``.
        wanted: Those that are asked for; None: all, `TrueVolume` excepted, in which models cannot differ.

    Raises:
        UnknownNameError: One that is asked for is in no result.
        ComparisonError: One is not in all results.
    """
    documents = {where: document for model in models for where, document in model.documents.items()}
    has = {where: _names(document, kind) for where, document in documents.items()}
    known = list(dict.fromkeys(name for names in has.values() for name in names))
    for name in wanted or ():
        if name not in known:
            hint = closest_match(name, known)
            raise UnknownNameError(f"No result has {name!r} among its {kind}. They have {', '.join(known)}.{hint}")
    asked = list(dict.fromkeys(wanted)) if wanted is not None else [name for name in known if name != "TrueVolume"]
    if not asked:
        raise ComparisonError(f"There are no {kind} to compare.")
    lacking = [f"{name!r} is not in {where}" for name in asked for where, names in has.items() if name not in names]
    if lacking:
        common = [name for name in known if all(name in names for names in has.values())]
        way_out = f" {kind}={common} (--{kind}) compares what all have." if common else ""
        raise ComparisonError(f"The {kind} of the results differ: {'; '.join(lacking)}.{way_out}")
    return asked


def _names(document: Mapping[str, Any], kind: str) -> list[str]:
    return [item if isinstance(item, str) else item["name"] for item in document["settings"][kind]]


def refuse_differences(models: Sequence[Model], categories: Sequence[str], metrics: Sequence[str]) -> bool:
    """Refuse results of different scans, truths or rules.

    Returns:
        Whether all results record which truth they were scored with, and it is the same everywhere. Results of older
        versions record only its volume.

    Raises:
        ComparisonError: They differ. The message lists how.
    """
    problems = list(_rules_that_differ(models, metrics))
    first, certain = models[0], True
    for model in models[1:]:
        for one, other in ((first, model), (model, first)):
            problems += _only_in(one, other)
    for scan in first.scans:
        entries = [(model.name, model.scans[scan]) for model in models if scan in model.scans]
        found, recorded = _scan_differences(scan, entries, categories)
        problems += found
        certain = certain and recorded
    if problems:
        shown = "".join(f"\n  {line}" for line in problems[:40])
        more = f"\n  and {len(problems) - 40} more" if len(problems) > 40 else ""
        raise ComparisonError(f"These results cannot be compared:{shown}{more}")
    return certain


def _only_in(one: Model, other: Model) -> Iterator[str]:
    extra = [scan for scan in one.scans if scan not in other.scans]
    if extra:
        reasons = [f"{scan!r} could not be scored: {other.failed[scan]}" for scan in extra if scan in other.failed]
        why = f" ({'; '.join(reasons[:_LISTED])})" if reasons else ""
        yield f"{_listed(extra)} in {one.name!r}, not in {other.name!r}{why}"


def _listed(scans: Sequence[str]) -> str:
    return f"{counted(len(scans), 'scan')} ({some(scans, _LISTED, form=repr)})"


def _rules_that_differ(models: Sequence[Model], metrics: Sequence[str]) -> Iterator[str]:
    """Yield how policies, settings and definitions of metrics differ from those of the first document."""
    first: tuple[str, dict[str, Any]] | None = None
    for model in models:
        for where, document in model.documents.items():
            rules = dict(_flat("", _rules(document, metrics)))
            if first is None:
                first = where, rules
            for key in dict.fromkeys((*first[1], *rules)):
                a, b = first[1].get(key, "nothing"), rules.get(key, "nothing")
                if a != b:
                    yield f"{key.removeprefix('.')} is {a!r} in {first[0]}, {b!r} in {where}"


def _rules(document: Mapping[str, Any], metrics: Sequence[str]) -> dict[str, Any]:
    settings = {
        key: value
        for key, value in document["settings"].items()
        if key not in _FREE and not set(OF_METRICS.get(key, metrics)).isdisjoint(metrics)
    }
    definitions = {metric["name"]: metric for metric in document["settings"]["metrics"] if metric["name"] in metrics}
    return {"policy": document["policy"], "settings": settings, "metric": definitions}


def _flat(prefix: str, value: Any) -> Iterable[tuple[str, Any]]:
    if not isinstance(value, Mapping):
        return [(prefix, value)]
    return [pair for key, item in value.items() for pair in _flat(f"{prefix}.{key}", item)]


def _scan_differences(
    scan: str, entries: Sequence[tuple[str, _Scan]], categories: Sequence[str]
) -> tuple[list[str], bool]:
    """Return how what models tell of one scan differs, and whether its truth is recorded everywhere."""
    problems: list[str] = []
    certain = True

    def same(what: str, found: Iterable[Any]) -> bool:
        """Compare with the first that records it; say whether all do."""
        pairs = list(zip((name for name, _ in entries), found, strict=True))
        recorded = [(name, value) for name, value in pairs if value is not None]
        for name, value in recorded[1:]:
            if not _equal(value, recorded[0][1]):
                problems.append(
                    f"scan {scan!r}: {what} is {recorded[0][1]!r} in {recorded[0][0]!r}, {value!r} in {name!r}"
                )
        return len(recorded) == len(pairs)

    same("the subject", (entry.subject for _, entry in entries))
    same("the shape", (entry.shape for _, entry in entries))
    same("the spacing", (entry.spacing for _, entry in entries))
    for category in categories:
        structures = [entry.structures[category] for _, entry in entries]
        before = len(problems)
        same(f"the number of true voxels of {category!r}", (s.get("true_voxels") for s in structures))
        same(f"the number of unknown voxels of {category!r}", (s.get("unknown_voxels") for s in structures))
        if len(problems) == before:
            marks = same(f"the fingerprint of the true mask of {category!r}", (s.get("truth") for s in structures))
            certain = certain and marks
    if not certain:
        # The hash would tell that two names stand for the same data.
        same("the dataset", (entry.dataset for _, entry in entries))
    return problems, certain


def _equal(a: Any, b: Any) -> bool:
    """Spacing passes through float32 in some formats."""
    if isinstance(a, tuple) and isinstance(b, tuple):
        return len(a) == len(b) and all(math.isclose(x, y, rel_tol=1e-5) for x, y in zip(a, b, strict=True))
    return bool(a == b)
