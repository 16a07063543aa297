"""The tables as files: CSV and JSON, each replaced in one step."""

from __future__ import annotations

import csv
import io
import json
import re
from collections.abc import Iterable, Mapping, Sequence
from pathlib import Path
from typing import Any, Final

from medsegpy_core.reading import replace_file
from medsegpy_core.text import printable

__all__ = ["METRIC_COLUMNS", "SUMMARY_COLUMNS", "csv_text", "json_text", "save_file", "write_tables"]

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
