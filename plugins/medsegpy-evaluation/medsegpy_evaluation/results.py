"""Results as documents and tables: ``metrics.csv``, ``metrics.json`` and ``summary.csv``."""

from __future__ import annotations

import csv
import io
import json
import math
import platform
import re
from collections.abc import Iterable, Mapping, Sequence
from importlib.metadata import PackageNotFoundError, version
from pathlib import Path
from typing import Any, Final

from attrs import frozen

from medsegpy_core.reading import replace_file
from medsegpy_core.text import counted, printable
from medsegpy_evaluation.scores import ScanScores
from medsegpy_evaluation.settings import ScoreSettings
from medsegpy_evaluation.statistics import Bootstrap, grouped_means, rms_cv, summarize

__all__ = [
    "METRIC_COLUMNS",
    "SUMMARY_COLUMNS",
    "FailedScan",
    "csv_text",
    "document_of",
    "json_text",
    "ranking_metric",
    "save_file",
    "undefined_lines",
    "unknown_line",
    "versions",
    "worst_first",
    "write_tables",
]


METRIC_COLUMNS: Final = ("scan", "subject", "category", "metric", "value")
# What spreadsheets take for the beginning of a formula; and the apostrophe that says that it is none.
_FORMULA: Final = ("=", "+", "-", "@", "'")
_NUMBER: Final = re.compile(r"[+-]?\d+(\.\d+)?")
SUMMARY_COLUMNS: Final = (
    "category",
    "metric",
    "n",
    "both_empty",
    "missed",
    "hallucinated",
    "mean",
    "sd",
    "median",
    "ci_low",
    "ci_high",
)


def write_tables(folder: Path, document: Mapping[str, Any]) -> None:
    """Write ``metrics.csv``, ``summary.csv`` and ``metrics.json``.

    Args:
        folder: Made where it is not there.
        document: What `SemSegEvaluator.evaluate` returns.
    """
    save_file(folder / "metrics.csv", csv_text(METRIC_COLUMNS, document["metrics"]))
    save_file(folder / "summary.csv", csv_text(SUMMARY_COLUMNS, document["summary"]))
    save_file(folder / "metrics.json", json_text(document))


def csv_text(columns: Sequence[str], rows: Iterable[Mapping[str, Any]]) -> str:
    """Return rows as CSV: the shortest form of a number that reads back as the same, an empty field for None.

    Characters of names that cannot be seen are written as escapes, as everywhere but in JSON. Text that a spreadsheet
    would take for a formula gets an apostrophe in front, and so does text that begins with one:
    ``text.removeprefix("'")`` undoes it.
    """
    buffer = io.StringIO()
    writer = csv.DictWriter(buffer, columns, lineterminator="\n")
    writer.writeheader()
    writer.writerows({key: _cell(row[key]) for key in columns} for row in rows)
    return buffer.getvalue()


def _cell(value: Any) -> Any:
    if not isinstance(value, str):
        return value
    text = printable(value)
    return f"'{text}" if text.startswith(_FORMULA) and not _NUMBER.fullmatch(text) else text


def json_text(value: Any) -> str:
    """Return a value as JSON, with null for None, and nothing that JSON does not have."""
    return _encodable(json.dumps(value, indent=1, allow_nan=False, ensure_ascii=False)) + "\n"


def _encodable(text: str) -> str:
    """Write what UTF-8 lacks (file names that are not valid UTF-8 have it) as escapes, which are those of JSON."""
    return text.encode("utf-8", "backslashreplace").decode()


def save_file(path: Path, content: str | bytes) -> None:
    """Write a file, and the folder if it does not exist; readers see either the old content or the new.

    Raises:
        OSError: It cannot be written. What was there before is as it was.
    """
    path.parent.mkdir(parents=True, exist_ok=True)
    replace_file(path, _encodable(content) if isinstance(content, str) else content)


_FORMAT: Final = 1


@frozen
class FailedScan:
    """A scan that could not be scored.

    Attributes:
        scan: Its id.
        problems: What is wrong with it.
    """

    scan: str
    problems: tuple[str, ...]

    def __str__(self) -> str:
        return f"Scan {self.scan!r}: {'; '.join(self.problems)}."


def document_of(
    dataset: str,
    scans: Sequence[ScanScores],
    failed: Sequence[FailedScan],
    settings: ScoreSettings,
    bootstrap: Bootstrap,
) -> dict[str, Any]:
    """Return everything that is known of an evaluation; None stands for undefined.

    Args:
        dataset: Its name.
        scans: In any order; the document is sorted by scan.
        failed: What could not be scored.
        settings: How scans were scored.
        bootstrap: How intervals are made.
    """
    scans = sorted(scans, key=lambda scan: scan.scan)
    categories, metrics = settings.categories, [metric.name for metric in settings.metrics]
    return {
        "format": _FORMAT,
        "dataset": dataset,
        "settings": _settings(settings, bootstrap),
        "policy": settings.policy.as_dict(),
        "versions": versions() | {f"metric {m.name}": m.owner for m in settings.metrics if " " in m.owner},
        "failed": [{"scan": f.scan, "problems": list(f.problems)} for f in sorted(failed, key=lambda f: f.scan)],
        "summary": summarize(scans, categories, metrics, bootstrap),
        "rms_cv": rms_cv(scans, categories),
        "subjects": grouped_means(scans, categories, metrics, "subject"),
        "time_points": grouped_means(scans, categories, metrics, "time_point"),
        "scans": [_scan(scan) for scan in scans],
        "metrics": [
            {
                "scan": scan.scan,
                "subject": str(scan.subject),
                "category": structure.category,
                "metric": name,
                "value": structure.values[name],
            }
            for scan in scans
            for structure in scan.structures
            for name in metrics
        ],
    }


def _scan(scan: ScanScores) -> dict[str, Any]:
    volume = math.prod(scan.spacing) if scan.spacing else None
    return {
        "scan": scan.scan,
        "subject": str(scan.subject),
        "time_point": scan.time_point,
        "shape": list(scan.shape),
        "spacing": list(scan.spacing) if scan.spacing else None,
        "structures": [
            {
                "category": structure.category,
                "status": structure.status,
                "predicted_voxels": structure.voxels[0],
                "true_voxels": structure.voxels[1],
                "unknown_voxels": structure.unknown,
                "truth": structure.truth,
                "undefined": dict(structure.undefined),
                "predicted_volume": None if volume is None else structure.voxels[0] * volume,
                "true_volume": None if volume is None else structure.voxels[1] * volume,
            }
            for structure in scan.structures
        ],
    }


def _settings(settings: ScoreSettings, bootstrap: Bootstrap) -> dict[str, Any]:
    sigmoid = settings.binarization.activation == "sigmoid"
    thresholds = dict(zip(settings.categories, settings.binarization.thresholds, strict=True))
    return {
        "categories": list(settings.categories),
        "background_channel": settings.background,
        "metrics": [
            {
                "name": m.name,
                "unit": m.unit,
                "higher_is_better": m.higher_is_better,
                "from": m.owner,
            }
            for m in settings.metrics
        ],
        "activation": settings.binarization.activation,
        "thresholds": thresholds if sigmoid else None,
        "nsd_tolerance": settings.options.tolerance,
        "lesion_threshold": settings.options.lesion_threshold,
        "lesion_connectivity": settings.options.lesion_connectivity,
        "boundary_width": settings.options.boundary_width,
        "calibration_bins": settings.options.calibration_bins,
        "surface": "voxels with a face neighbor outside the structure (6-connectivity in 3D)",
        "volume_unit": "mm3",
        "sd": "of the sample (n - 1)",
        "percentiles": "linear",
        "bootstrap": bootstrap.as_dict(),
    }


def versions() -> dict[str, str]:
    """Return the versions of what computes."""
    found = {"python": platform.python_version()}
    for name in ("medsegpy-core", "medsegpy-evaluation", "numpy", "scipy"):
        try:
            found[name] = version(name)
        except PackageNotFoundError:
            found[name] = "not installed as a distribution"
    return found


def unknown_line(document: Mapping[str, Any]) -> str:
    """Say how many voxels are unknown, in one sentence; empty if there are none."""
    found = [(scan["scan"], s) for scan in document["scans"] for s in scan["structures"] if s["unknown_voxels"]]
    if not found:
        return ""
    total, scans = sum(s["unknown_voxels"] for _, s in found), counted(len({scan for scan, _ in found}), "scan")
    line = f"{counted(total, 'voxel')} of {scans} (each category counted) unknown, left out of all metrics"
    whole = sum(s["status"] == "unknown" for _, s in found)
    return f"{line}; {counted(whole, 'structure')} unknown throughout, undefined." if whole else f"{line}."


def undefined_lines(document: Mapping[str, Any]) -> list[str]:
    """Say which metrics have no value for which reason, but for missing structures, a sentence for each reason."""
    found: dict[str, dict[str, int]] = {}
    for scan in document["scans"]:
        for structure in scan["structures"]:
            for metric, reason in structure["undefined"].items():
                metrics = found.setdefault(reason, {})
                metrics[metric] = metrics.get(metric, 0) + 1
    return [
        f"{', '.join(metrics)} undefined for {counted(max(metrics.values()), 'structure')}: {reason}."
        for reason, metrics in found.items()
    ]


def ranking_metric(metrics: Sequence[Mapping[str, Any]]) -> Mapping[str, Any] | None:
    """Return the first of the metrics (as in the document's settings) that says which way is good, or None."""
    return next((metric for metric in metrics if metric["higher_is_better"] is not None), None)


def worst_first(document: Mapping[str, Any]) -> list[tuple[str, float]]:
    """Return the scans and their means of the ranking metric over the categories, the worst first."""
    metric = ranking_metric(document["settings"]["metrics"])
    if metric is None:
        return []
    values: dict[str, list[float]] = {}
    for row in document["metrics"]:
        if row["metric"] == metric["name"] and row["value"] is not None:
            values.setdefault(row["scan"], []).append(row["value"])
    means = [(scan, sum(found) / len(found)) for scan, found in values.items()]
    return sorted(means, key=lambda item: (item[1] if metric["higher_is_better"] else -item[1], item[0]))
