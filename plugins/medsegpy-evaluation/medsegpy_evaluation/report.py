"""``report.html``: the pages that people open, one file that loads nothing."""

from __future__ import annotations

import base64
import hashlib
from collections.abc import Mapping, Sequence
from pathlib import Path
from string import Template
from typing import Any, Final, TypeAlias

from medsegpy_core.text import counted
from medsegpy_evaluation.metrics import METRICS
from medsegpy_evaluation.pictures import Point, distribution_chart, html
from medsegpy_evaluation.results import ranking_metric, save_file, undefined_lines, unknown_line, worst_first

__all__ = ["HEAD", "SCRIPT", "Cell", "Markup", "metric_table", "number", "span", "swatch", "table", "write_report"]


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


# Pictures of this many scans; the tables list all.
_PICTURES: Final = 12

_PAGE: Final = Template("""<!doctype html>
<html lang="en">
<head>
$head
<title>Evaluation of $dataset</title>
</head>
<body>
<h1>Evaluation of $dataset</h1>
<p>$overview</p>
$failed
<h2>Summary</h2>
<p class="note">Mean, standard deviation, median and quartiles over scans; the interval (95 %) of the mean is
resampled over subjects. Missed and hallucinated structures are in the means, by the policy below.</p>
$summary
<h2>Missed and hallucinated structures</h2>
$missing
$unknown
<h2>Distributions</h2>
<p class="note">A dot is a scan, and leads to its row in the table of scans; the box spans the quartiles around the
median. Large and orange: missed or hallucinated.</p>
$charts
<h2>Worst scans first</h2>
$worst
<h2>Scans</h2>
<p class="note">Names lead to the picture if there is one. Rows with a missed or hallucinated structure are marked.</p>
$scans
<h2>Definitions</h2>
$definitions
<h2>How it was measured</h2>
<details><summary>Settings, policy and versions</summary><pre>$settings</pre></details>
$script
</body>
</html>
""")


def write_report(
    path: Path,
    document: Mapping[str, Any],
    pictures: Mapping[str, bytes],
    colors: Sequence[tuple[int, int, int]],
) -> None:
    """Write the report.

    Args:
        path: The file; an older one is replaced.
        document: What `SemSegEvaluator.evaluate` returns.
        pictures: PNGs by scan.
        colors: Of the categories.
    """
    from medsegpy_evaluation.results import json_text

    categories = document["settings"]["categories"]
    keys = {name: swatch(name, color) for name, color in zip(categories, colors, strict=True)}
    parts = {
        "head": HEAD,
        "script": SCRIPT,
        "dataset": html(document["dataset"]),
        "overview": _overview(document),
        "failed": _failed(document["failed"]),
        "summary": _summary(document, keys),
        "missing": _missing(document["scans"], keys),
        "unknown": _unknown(document, keys),
        "charts": _charts(document, colors),
        "worst": _worst(document, pictures, keys),
        "scans": _scans(document, pictures, keys),
        "definitions": metric_table(document["settings"]["metrics"]),
        "settings": html(json_text({key: document[key] for key in ("settings", "policy", "versions")}), lines=True),
    }
    save_file(path, _PAGE.substitute(parts))


def _overview(document: Mapping[str, Any]) -> str:
    scans = document["scans"]
    subjects = len({scan["subject"] for scan in scans})
    categories = ", ".join(map(html, document["settings"]["categories"]))
    return f"{counted(len(scans), 'scan')} of {counted(subjects, 'subject')}; categories: {categories}."


def _failed(failed: Sequence[Mapping[str, Any]]) -> str:
    if not failed:
        return ""
    rows = [[scan["scan"], "; ".join(scan["problems"])] for scan in failed]
    return (
        f"<h2>Not scored</h2><p>{counted(len(failed), 'scan')} could not be scored, in none of the numbers below.</p>"
        + table(["scan", "problem"], rows, text=2)
    )


def _summary(document: Mapping[str, Any], keys: Mapping[str, Markup]) -> str:
    header = ["category", "metric", "n", "mean", "95 % interval", "sd", "median", "quartiles"]
    units = {metric["name"]: metric["unit"] for metric in document["settings"]["metrics"]}
    rows: list[list[Cell]] = []
    for row in document["summary"]:
        name, unit = row["metric"], units[row["metric"]]
        rows.append(
            [
                keys[row["category"]],
                _title(name, unit),
                str(row["n"]),
                number(row["mean"]),
                span(row["ci_low"], row["ci_high"]),
                number(row["sd"]),
                number(row["median"]),
                span(row["q1"], row["q3"]),
            ]
        )
    cvs = "; ".join(f"{html(name)} {number(value)[0]}" for name, value in document["rms_cv"].items())
    return table(header, rows, text=2) + f"<p>Root mean square of the volumes' coefficients of variation: {cvs}.</p>"


def _missing(scans: Sequence[Mapping[str, Any]], keys: Mapping[str, Markup]) -> str:
    rows: list[list[Cell]] = [
        [scan["scan"], keys[structure["category"]], structure["status"], str(voxels)]
        for scan in scans
        for structure in scan["structures"]
        if structure["status"] in ("missed", "hallucinated")
        for voxels in [structure["true_voxels"] + structure["predicted_voxels"]]
    ]
    return table(["scan", "category", "status", "voxels"], rows, text=3, bad=True) if rows else "<p>None.</p>"


def _unknown(document: Mapping[str, Any], keys: Mapping[str, Markup]) -> str:
    line = unknown_line(document)
    undefined = "".join(f"<p>{html(sentence)}</p>" for sentence in undefined_lines(document))
    rows: list[list[Cell]] = [
        [scan["scan"], keys[structure["category"]], str(structure["unknown_voxels"])]
        for scan in document["scans"]
        for structure in scan["structures"]
        if structure["unknown_voxels"]
    ]
    if line:
        undefined += f"<h2>Unknown voxels</h2><p>{line}</p>" + table(["scan", "category", "voxels"], rows, text=2)
    return undefined


def _charts(document: Mapping[str, Any], colors: Sequence[tuple[int, int, int]]) -> str:
    # Where the row of each scan and category is, and whether the structure is missing.
    rows = {
        (scan["scan"], structure["category"]): (_row(number, position), structure["status"] != "scored")
        for number, scan in enumerate(document["scans"])
        for position, structure in enumerate(scan["structures"])
    }
    parts = []
    for metric in document["settings"]["metrics"]:
        points: dict[str, list[Point]] = {name: [] for name in document["settings"]["categories"]}
        for row in document["metrics"]:
            if row["metric"] == metric["name"] and row["value"] is not None:
                link, bad = rows[row["scan"], row["category"]]
                points[row["category"]].append(Point(row["scan"], row["value"], bad, link))
        title = html(_title(metric["name"], metric["unit"]))
        parts.append(f"<h3>{title}</h3>{distribution_chart(points, colors)}")
    return "\n".join(parts)


def _scans(document: Mapping[str, Any], pictures: Mapping[str, bytes], keys: Mapping[str, Markup]) -> str:
    """Return the table of all values, a row per scan and category."""
    metrics = document["settings"]["metrics"]
    shown = {scan for scan, _ in worst_first(document)[:_PICTURES] if scan in pictures}
    values = {(row["scan"], row["category"], row["metric"]): row["value"] for row in document["metrics"]}
    rows: list[list[Cell]] = []
    ids, bad = [], []
    for place, scan in enumerate(document["scans"]):
        name = html(scan["scan"])
        link = Markup(f'<a href="#{_picture(place)}">{name}</a>' if scan["scan"] in shown else name)
        for position, structure in enumerate(scan["structures"]):
            category = structure["category"]
            found = [number(values[scan["scan"], category, metric["name"]]) for metric in metrics]
            rows.append([link, scan["subject"], keys[category], structure["status"].replace("_", " "), *found])
            ids.append(_row(place, position))
            bad.append(structure["status"] in ("missed", "hallucinated"))
    titles = [_title(metric["name"], metric["unit"]) for metric in metrics]
    return table(["scan", "subject", "category", "status", *titles], rows, text=4, bad=bad, ids=ids)


def _row(scan: int, category: int) -> str:
    return f"scan-{scan}-{category}"


def _picture(scan: int) -> str:
    return f"picture-{scan}"


def _title(metric: str, unit: str) -> str:
    return f"{metric} ({unit})" if unit else metric


def _worst(document: Mapping[str, Any], pictures: Mapping[str, bytes], keys: Mapping[str, Markup]) -> str:
    metric = ranking_metric(document["settings"]["metrics"])
    ranked = worst_first(document)
    if metric is None or not ranked:
        return "<p>No metric says which scan is worse.</p>"
    name = html(metric["name"])
    places = {scan["scan"]: place for place, scan in enumerate(document["scans"])}
    parts = [f"<p>By the mean {name} over the categories. Left: truth, right: prediction, where most voxels are wrong."]
    parts += [f'<span class="keys">{key}</span>' for key in keys.values()]
    parts.append("</p>")
    for scan, mean in ranked[:_PICTURES]:
        link = f'<a href="#{_row(places[scan], 0)}">{html(scan)}</a>'
        caption = f"<figcaption>{link}: {name} {number(mean)[0]}</figcaption>"
        image = ""
        if scan in pictures:
            data = base64.b64encode(pictures[scan]).decode()
            image = f'<img alt="Truth and prediction" src="data:image/png;base64,{data}">'
        parts.append(f'<figure id="{_picture(places[scan])}">{image}{caption}</figure>')
    return "\n".join(parts)
