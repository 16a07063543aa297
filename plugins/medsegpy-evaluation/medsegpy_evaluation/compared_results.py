"""What is compared: results are read, pooled over folds, and checked to be of the same scans, truths and rules."""

from __future__ import annotations

import json
import math
import os
from collections.abc import Iterable, Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any, Final, TypeAlias

from attrs import field, frozen

from medsegpy_core import MedSegPyError, UnknownNameError
from medsegpy_core.errors import closest_match
from medsegpy_core.text import counted, some
from medsegpy_evaluation.metrics import LESION_METRICS

__all__ = ["OF_METRICS", "ComparisonError", "Model", "Source", "named", "read_model", "refuse_differences", "selected"]

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
