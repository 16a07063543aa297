"""Parts of pages: tables that can be sorted, numbers, what all pages share. A page is one file that loads nothing."""

from __future__ import annotations

import base64
import hashlib
from collections.abc import Sequence
from typing import Final, TypeAlias

from medsegpy_evaluation.charts import html

__all__ = ["HEAD", "SCRIPT", "Cell", "number", "span", "table"]

# What a cell shows; with a number, that is what the column is sorted by.
Cell: TypeAlias = "str | tuple[str, float | None]"

# A click on a heading sorts, a second one turns the order. Empty cells stay last. Without scripts the table stands.
_SORT: Final = """
document.querySelectorAll("table.sortable thead th").forEach(head => {
  const table = head.closest("table"), heads = [...table.tHead.rows[0].cells], column = heads.indexOf(head);
  const button = document.createElement("button");
  button.type = "button";
  button.append(...head.childNodes);
  head.append(button);
  const key = row => row.cells[column].dataset.value ?? row.cells[column].textContent;
  button.addEventListener("click", () => {
    const down = head.getAttribute("aria-sort") === "ascending";
    heads.forEach(other => other.removeAttribute("aria-sort"));
    head.setAttribute("aria-sort", down ? "descending" : "ascending");
    const rows = [...table.tBodies[0].rows];
    const full = rows.filter(row => key(row) !== ""), empty = rows.filter(row => key(row) === "");
    const numeric = full.every(row => !Number.isNaN(Number(key(row))));
    full.sort((a, b) => (down ? -1 : 1) * (numeric ? key(a) - key(b) : key(a).localeCompare(key(b))));
    table.tBodies[0].append(...full, ...empty);
  });
});
"""
SCRIPT: Final = f"<script>{_SORT}</script>"
_SCRIPT_HASH: Final = base64.b64encode(hashlib.sha256(_SORT.encode()).digest()).decode()

# The policy lets a browser load nothing, and run nothing but the script above, whatever a name on the page may hold.
HEAD: Final = (
    f"""<meta charset="utf-8">
<meta http-equiv="Content-Security-Policy"
 content="default-src 'none'; img-src data:; style-src 'unsafe-inline'; script-src 'sha256-{_SCRIPT_HASH}'">
"""
    """<meta name="viewport" content="width=device-width, initial-scale=1">
<style>
body { font: 15px/1.5 system-ui, sans-serif; color: #222; max-width: 68rem; margin: 2rem auto; padding: 0 1rem; }
h1, h2, h3 { line-height: 1.2; }
.wide { overflow-x: auto; }
table { border-collapse: collapse; margin: .5rem 0 1.5rem; font-variant-numeric: tabular-nums; }
th, td { padding: .2rem .6rem; border-bottom: 1px solid #ddd; text-align: right; }
th:first-child, td:first-child, td.text, th.text { text-align: left; }
td:not(.text) { white-space: nowrap; }
thead th { border-bottom: 2px solid #888; }
th button { all: unset; cursor: pointer; }
th button:focus-visible { outline: 2px solid #1450ff; }
th[aria-sort=ascending] button::after { content: " \\2191"; }
th[aria-sort=descending] button::after { content: " \\2193"; }
figure { margin: 1rem 0 2rem; }
figure img { max-width: 100%; image-rendering: pixelated; border: 1px solid #ccc; }
figcaption, .note { color: #555; }
.bad { background: #fde8e6; }
.key { display: inline-block; width: .9em; height: .9em; margin: 0 .3em 0 1em; vertical-align: -.1em; }
svg text { font: 12px system-ui, sans-serif; fill: #222; }
details pre { background: #f6f6f6; padding: .8rem; overflow-x: auto; }
</style>"""
)


def table(header: Sequence[str], rows: Sequence[Sequence[Cell]], *, text: int = 1, bad: bool = False) -> str:
    """Return a table whose first `text` columns are text, to the left; the others are numbers.

    Args:
        header: Names of the columns.
        rows: What the cells show, and by what number they are sorted.
        text: How many columns are text.
        bad: Mark all rows.
    """

    def cells(values: Sequence[Cell], tag: str) -> str:
        made = []
        for position, value in enumerate(values):
            shown, order = (value, "") if isinstance(value, str) else (value[0], _order(value[1]))
            kind = ' class="text"' if position < text else ""
            made.append(f"<{tag}{kind}{order}>{html(shown)}</{tag}>")
        return "".join(made)

    start = '<tr class="bad">' if bad else "<tr>"
    body = "".join(f"{start}{cells(row, 'td')}</tr>" for row in rows)
    head = f"<thead><tr>{cells(header, 'th')}</tr></thead>"
    return f'<div class="wide"><table class="sortable">{head}<tbody>{body}</tbody></table></div>'


def _order(value: float | None) -> str:
    return f' data-value="{"" if value is None else repr(value)}"'


def number(value: float | None) -> tuple[str, float | None]:
    """Return a number as a cell; an empty one for None."""
    return ("" if value is None else f"{value:.4g}"), value


def span(low: float | None, high: float | None) -> tuple[str, float | None]:
    """Return an interval as a cell, which is sorted by its beginning."""
    return ("" if low is None or high is None else f"{number(low)[0]} to {number(high)[0]}"), low
