"""Output of commands: tables and JSON to stdout, progress bars to stderr.

Names, descriptions and messages come from files and plugins. They are shown verbatim: they are not parsed as markup,
and control characters, as well as characters that the terminal cannot encode, are escaped.
"""

from __future__ import annotations

import io
import json
import math
import sys
import time
from collections.abc import Iterable, Iterator, Mapping, Sequence
from pathlib import PurePath
from typing import Any, Final, TypeVar

import click
from rich.cells import cell_len
from rich.console import Console
from rich.measure import Measurement
from rich.progress import BarColumn, MofNCompleteColumn, Progress, TextColumn, TimeRemainingColumn
from rich.table import Table
from rich.text import Text

from medsegpy_core.text import printable

__all__ = ["Screen", "console", "echo", "print_json", "table", "tolerant_streams", "track"]

T = TypeVar("T")

_PATIENCE: Final = 1.0  # seconds, until a progress bar appears
_WIDE: Final = 160  # columns of a pipe or a file
_LONG_WORD: Final = 200  # columns; longer words of prose are broken


class Screen(Console):
    """A console that shows text verbatim, and tables as wide as their names need."""

    def __init__(self, stderr: bool = False):
        super().__init__(stderr=stderr, highlight=False, markup=False, emoji=False)
        if not self.is_terminal:
            self.width = _WIDE

    def render_str(self, text: str, **options: Any) -> Text:
        """Convert a str to a Text. Rich calls this for every str that it prints."""
        return super().render_str(printable(text, lines=True), **options)

    def print(self, *objects: Any, **options: Any) -> None:
        """Print. Lines are wrapped by the terminal, so that names and paths can be copied."""
        tables = [shown for shown in objects if isinstance(shown, Table)]
        options.setdefault("soft_wrap", not tables)
        wide = self.options.update(width=10**6)
        needed = max((Measurement.get(self, wide, shown).minimum for shown in tables), default=0)
        before = self.width
        if needed <= before:
            super().print(*objects, **options)
            return
        self.width = needed
        try:
            super().print(*objects, **options)
        finally:
            self.width = before


def console() -> Screen:
    """Return a console on stdout, wide enough for tables in a pipe."""
    return Screen()


def echo(text: str, err: bool = False) -> None:
    """Print lines to stdout or stderr."""
    click.echo(printable(text, lines=True), err=err)


def tolerant_streams() -> None:
    """Make stdout and stderr escape characters that they cannot encode; by default that is an error on stdout."""
    for stream in (sys.stdout, sys.stderr):
        if isinstance(stream, io.TextIOWrapper):
            stream.reconfigure(errors="backslashreplace")


def table(columns: Sequence[str], rows: Iterable[Sequence[object]], title: str | None = None) -> Table:
    """Return a table.

    Args:
        columns: The headings. ``>heading``: aligned right. ``~heading``: prose, wrapped between words. All other
            cells are shown on one line, in full.
        rows: The cells.
        title: The title above the table.
    """
    made = Table(title=title, title_justify="left", title_style="bold", header_style="bold", box=None, pad_edge=False)
    made.show_header = any(columns)
    prose = [name.startswith("~") for name in columns]
    cells = [[_cell(value, lines) for value, lines in zip(row, prose, strict=True)] for row in rows]
    for position, name in enumerate(columns):
        heading, wraps = name.lstrip(">~"), prose[position]
        column = [heading, *(row[position].plain for row in cells)]
        pieces = [piece for text in column for piece in (text.split() if wraps else [text])]
        widest = max(map(cell_len, pieces), default=0)
        made.add_column(
            heading,
            justify="right" if name.startswith(">") else "left",
            overflow="fold",
            no_wrap=not wraps,
            min_width=min(widest, _LONG_WORD) if wraps else widest,
        )
    for row in cells:
        made.add_row(*row)
    return made


def print_json(value: Any) -> None:
    """Print JSON for programs, in ASCII. NaN, which JSON does not have, becomes null."""
    click.echo(json.dumps(_jsonable(value), indent=2, allow_nan=False))


def track(items: Iterable[T], description: str, total: int) -> Iterator[T]:
    """Yield the items. After a second, a progress bar appears on stderr."""
    screen = Screen(stderr=True)
    progress = Progress(
        TextColumn("{task.description}", markup=False),
        BarColumn(),
        MofNCompleteColumn(),
        TimeRemainingColumn(),
        console=screen,
        transient=True,
        disable=not screen.is_terminal,
    )
    task = progress.add_task(printable(description), total=total)
    began, shown = time.monotonic(), False
    try:
        for item in items:
            yield item
            progress.advance(task)
            if not shown and time.monotonic() - began > _PATIENCE:
                progress.start()
                shown = True
    finally:
        progress.stop()


def _cell(value: object, lines: bool) -> Text:
    text = f"{value:,}" if isinstance(value, int) and not isinstance(value, bool) else str(value)
    return Text(printable(text, lines))


def _jsonable(value: Any) -> Any:
    """Return a value converted to JSON's types."""
    if value is None or isinstance(value, bool | int | str):
        return value
    if isinstance(value, float):
        return value if math.isfinite(value) else None
    if isinstance(value, Mapping):
        return {key if isinstance(key, str) else str(key): _jsonable(item) for key, item in value.items()}
    if isinstance(value, list | tuple | set | frozenset):
        return [_jsonable(item) for item in value]
    tolist = getattr(value, "tolist", None)  # NumPy's scalars and arrays
    if callable(tolist):
        return _jsonable(tolist())
    return str(value) if isinstance(value, PurePath) else repr(value)
