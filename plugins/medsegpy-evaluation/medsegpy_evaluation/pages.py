"""Parts of pages: tables that can be sorted, numbers, what all pages share. A page is one file that loads nothing."""

from __future__ import annotations

import base64
import hashlib
from collections.abc import Mapping, Sequence
from typing import Any, Final, TypeAlias

from medsegpy_evaluation.charts import html
from medsegpy_evaluation.metrics import METRICS

__all__ = ["HEAD", "SCRIPT", "Cell", "Markup", "metric_table", "number", "span", "swatch", "table"]


class Markup(str):
    """Text of a cell that is markup already, with names escaped."""

    __slots__ = ()


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
:target { outline: 2px solid #1450ff; background: #e8eeff; scroll-margin: 3rem; }
.key { display: inline-block; width: .9em; height: .9em; margin: 0 .4em 0 0; vertical-align: -.1em;
 border: 1px solid #8888; }
.keys { margin-left: 1em; white-space: nowrap; }
svg a { cursor: pointer; }
svg a:hover circle, svg a:focus circle { stroke: #1450ff; stroke-width: 2; }
svg text { font: 12px system-ui, sans-serif; fill: #222; }
details pre { background: #f6f6f6; padding: .8rem; overflow-x: auto; }
</style>"""
)


def table(
    header: Sequence[str],
    rows: Sequence[Sequence[Cell]],
    *,
    text: int = 1,
    bad: bool | Sequence[bool] = False,
    ids: Sequence[str] | None = None,
) -> str:
    """Return a table whose first `text` columns are text, to the left; the others are numbers.

    Args:
        header: Names of the columns.
        rows: What the cells show, and by what number they are sorted.
        text: How many columns are text.
        bad: Mark all rows, or some of them.
        ids: What links call the rows.
    """

    def cells(values: Sequence[Cell], tag: str) -> str:
        made = []
        for position, value in enumerate(values):
            shown, order = (value, "") if isinstance(value, str) else (value[0], _order(value[1]))
            kind = ' class="text"' if position < text else ""
            made.append(f"<{tag}{kind}{order}>{shown if isinstance(shown, Markup) else html(shown)}</{tag}>")
        return "".join(made)

    marked = [bad] * len(rows) if isinstance(bad, bool) else bad
    names = [""] * len(rows) if ids is None else [f' id="{name}"' for name in ids]
    kinds = [' class="bad"' if mark else "" for mark in marked]
    body = "".join(
        f"<tr{name}{kind}>{cells(row, 'td')}</tr>" for name, kind, row in zip(names, kinds, rows, strict=True)
    )
    head = f"<thead><tr>{cells(header, 'th')}</tr></thead>"
    return f'<div class="wide"><table class="sortable">{head}<tbody>{body}</tbody></table></div>'


def metric_table(metrics: Sequence[Mapping[str, Any]]) -> str:
    """Return a table of what metrics are.

    Args:
        metrics: As in the settings of a result.
    """
    direction = {True: "higher is better", False: "lower is better", None: "no direction is better"}
    rows: list[list[Cell]] = []
    for metric in metrics:
        own = METRICS.get(metric["name"])
        known = own is not None and own.owner == metric["from"]
        said = [own.definition, own.source] if own is not None and known else ["", f"by {metric['from']}"]
        rows.append([metric["name"], metric["unit"], direction[metric["higher_is_better"]], *said])
    note = '<p class="note">P is the prediction, T the truth, as sets of voxels.</p>'
    return table(["metric", "unit", "direction", "definition", "source"], rows, text=5) + note


def swatch(name: str, color: Sequence[int]) -> Markup:
    """Return the name of a category with its color beside it."""
    return Markup(f'<span class="key" style="background: rgb({", ".join(map(str, color))})"></span>{html(name)}')


def _order(value: float | None) -> str:
    return f' data-value="{"" if value is None else repr(value)}"'


def number(value: float | None) -> tuple[str, float | None]:
    """Return a number as a cell; an empty one for None."""
    return ("" if value is None else f"{value:.4g}"), value


def span(low: float | None, high: float | None) -> tuple[str, float | None]:
    """Return an interval as a cell, which is sorted by its beginning."""
    return ("" if low is None or high is None else f"{number(low)[0]} to {number(high)[0]}"), low
