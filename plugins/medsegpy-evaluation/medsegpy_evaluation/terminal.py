"""The summary as a table on the terminal."""

from __future__ import annotations

from collections.abc import Mapping
from typing import TYPE_CHECKING, Any

from medsegpy_core.text import counted
from medsegpy_evaluation.results import undefined_lines, unknown_line

if TYPE_CHECKING:
    from rich.table import Table

__all__ = ["overview", "summary_table"]


def summary_table(document: Mapping[str, Any]) -> Table:
    """Return the summary of an evaluation as a table.

    Args:
        document: What `SemSegEvaluator.evaluate` returns.
    """
    from medsegpy_core.cli.output import table

    units = {metric["name"]: metric["unit"] for metric in document["settings"]["metrics"]}
    numbers = (">n", ">missed", ">halluc.", ">both empty", ">mean", ">95 % interval", ">sd", ">median")
    rows = []
    last = None
    for row in document["summary"]:
        name, unit = row["metric"], units[row["metric"]]
        first = row["category"] != last
        counts = [str(row[key]) for key in ("missed", "hallucinated", "both_empty")] if first else [""] * 3
        low, high = row["ci_low"], row["ci_high"]
        rows.append(
            [
                row["category"] if first else "",
                f"{name} ({unit})" if unit else name,
                str(row["n"]),
                *counts,
                _number(row["mean"]),
                "" if low is None else f"{_number(low)} .. {_number(high)}",
                _number(row["sd"]),
                _number(row["median"]),
            ]
        )
        last = row["category"]
    return table(["category", "metric", *numbers], rows)


def overview(document: Mapping[str, Any]) -> list[str]:
    """Return what else is to be said of an evaluation, in lines."""
    scans = document["scans"]
    subjects = len({scan["subject"] for scan in scans})
    lines = [f"{counted(len(scans), 'scan')} of {counted(subjects, 'subject')} of {document['dataset']}."]
    if line := unknown_line(document):
        lines.append(line)
    lines += undefined_lines(document)
    if document["failed"]:
        failed = counted(len(document["failed"]), "scan")
        lines.append(f"{failed} could not be scored, in none of these numbers:")
        lines += [f"  {item['scan']}: {'; '.join(item['problems'])}" for item in document["failed"]]
    return lines


def _number(value: float | None) -> str:
    return "" if value is None else f"{value:.4g}"
