"""What commands print with: tables and JSON to stdout, progress bars to stderr."""

from __future__ import annotations

import json
import time
from collections.abc import Iterable, Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any, Final, TypeVar

import click
from rich.console import Console
from rich.progress import BarColumn, MofNCompleteColumn, Progress, TextColumn, TimeRemainingColumn
from rich.table import Table

__all__ = ["by", "console", "print_json", "table", "track"]

T = TypeVar("T")

_PATIENCE: Final = 1.0  # seconds, until a progress bar appears
_WIDE: Final = 160  # columns, where nobody sees them: a pipe or a file


def console() -> Console:
    """Return a console on stdout, of a width that does not cut tables short in a pipe."""
    found = Console(highlight=False)
    return found if found.is_terminal else Console(highlight=False, width=_WIDE)


def table(columns: Sequence[str], rows: Iterable[Sequence[object]], title: str | None = None) -> Table:
    """Return a table; columns whose name begins with ``>`` are aligned right."""
    made = Table(title=title, title_justify="left", title_style="bold", header_style="bold", box=None, pad_edge=False)
    made.show_header = any(columns)
    for name in columns:
        made.add_column(name.removeprefix(">"), justify="right" if name.startswith(">") else "left", overflow="fold")
    for row in rows:
        made.add_row(*[_cell(value) for value in row])
    return made


def print_json(value: Any) -> None:
    """Print JSON for programs."""
    click.echo(json.dumps(value, indent=2, default=_jsonable, ensure_ascii=False))


def track(items: Iterable[T], description: str, total: int) -> Iterator[T]:
    """Yield the items; if that takes longer than a second, with a progress bar on stderr."""
    screen = Console(stderr=True)
    progress = Progress(
        TextColumn("{task.description}"),
        BarColumn(),
        MofNCompleteColumn(),
        TimeRemainingColumn(),
        console=screen,
        transient=True,
        disable=not screen.is_terminal,
    )
    task = progress.add_task(description, total=total)
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


def by(sizes: Iterable[object]) -> str:
    """Write a shape or a spacing.

    Example:
        >>> by((3, 4)), by((0.3125, 0.7000001))
        ('3 x 4', '0.3125 x 0.7')
    """
    return " x ".join(f"{size:.4g}" if isinstance(size, float) else str(size) for size in sizes)


def _cell(value: object) -> str:
    text = f"{value:,}" if isinstance(value, int) and not isinstance(value, bool) else str(value)
    # Rich takes [words] for markup.
    return text.replace("[", "\\[")


def _jsonable(value: Any) -> Any:
    """Give JSON what it has no word for."""
    if isinstance(value, Mapping):
        return dict(value)
    if isinstance(value, tuple | set | frozenset):
        return list(value)
    if isinstance(value, Path):
        return str(value)
    tolist = getattr(value, "tolist", None)  # NumPy's scalars and arrays
    return tolist() if callable(tolist) else repr(value)
