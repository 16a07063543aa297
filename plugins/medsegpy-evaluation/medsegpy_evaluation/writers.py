"""The tables as files: CSV and JSON, each replaced in one step."""

from __future__ import annotations

import csv
import io
import json
import os
import secrets
from collections.abc import Iterable, Mapping, Sequence
from pathlib import Path
from typing import Any, Final

__all__ = ["METRIC_COLUMNS", "SUMMARY_COLUMNS", "csv_text", "json_text", "replace_file", "write_tables"]

METRIC_COLUMNS: Final = ("scan", "subject", "category", "metric", "value")
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
    replace_file(folder / "metrics.csv", csv_text(METRIC_COLUMNS, document["metrics"]))
    replace_file(folder / "summary.csv", csv_text(SUMMARY_COLUMNS, document["summary"]))
    replace_file(folder / "metrics.json", json_text(document))


def csv_text(columns: Sequence[str], rows: Iterable[Mapping[str, Any]]) -> str:
    """Return rows as CSV: the shortest form of a number that reads back as the same, an empty field for None."""
    buffer = io.StringIO()
    # `extrasaction`: rows have more in them (quartiles) than the table has columns.
    writer = csv.DictWriter(buffer, columns, extrasaction="ignore", lineterminator="\n")
    writer.writeheader()
    writer.writerows(rows)
    return buffer.getvalue()


def json_text(value: Any) -> str:
    """Return a value as JSON, with null for None, and nothing that JSON does not have."""
    return json.dumps(value, indent=1, allow_nan=False, ensure_ascii=False) + "\n"


def replace_file(path: Path, content: str | bytes) -> None:
    """Write a file beside its place, flush it to the disk, and move it there: a reader sees the old one or the new one.

    Raises:
        OSError: It cannot be written. What was there before is as it was.
    """
    path.parent.mkdir(parents=True, exist_ok=True)
    data = content.encode() if isinstance(content, str) else content
    temporary = path.with_name(f".{path.name}.{os.getpid()}-{secrets.token_hex(4)}.part")
    try:
        with temporary.open("xb") as file:
            file.write(data)
            file.flush()
            os.fsync(file.fileno())
        temporary.replace(path)
    except BaseException:
        temporary.unlink(missing_ok=True)
        raise
