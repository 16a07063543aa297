"""The result of an evaluation as one document of plain values: what ``metrics.json`` holds and `evaluate` returns."""

from __future__ import annotations

import math
import platform
from collections.abc import Mapping, Sequence
from importlib.metadata import PackageNotFoundError, version
from typing import Any, Final

from attrs import frozen

from medsegpy_core.text import counted
from medsegpy_evaluation.scoring import ScanScores, ScoreSettings
from medsegpy_evaluation.statistics import Bootstrap, grouped_means, rms_cv, summarize

__all__ = [
    "FailedScan",
    "document_of",
    "ranking_metric",
    "undefined_lines",
    "unknown_line",
    "versions",
    "worst_first",
]

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
