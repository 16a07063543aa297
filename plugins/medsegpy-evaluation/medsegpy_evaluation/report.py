"""``report.html``: one file with everything in it, no script, nothing fetched from anywhere."""

from __future__ import annotations

import base64
from collections.abc import Mapping, Sequence
from pathlib import Path
from string import Template
from typing import Any, Final

from medsegpy_evaluation.charts import distribution_chart, html
from medsegpy_evaluation.results import counted, ranking_metric, unknown_line, worst_first
from medsegpy_evaluation.writers import replace_file

__all__ = ["write_report"]

# Pictures of this many scans; the tables list all.
_PICTURES: Final = 12

_PAGE: Final = Template("""<!doctype html>
<html lang="en">
<head>
<meta charset="utf-8">
<meta name="viewport" content="width=device-width, initial-scale=1">
<title>Evaluation of $dataset</title>
<style>
body { font: 15px/1.5 system-ui, sans-serif; color: #222; max-width: 62rem; margin: 2rem auto; padding: 0 1rem; }
h1, h2, h3 { line-height: 1.2; }
table { border-collapse: collapse; margin: .5rem 0 1.5rem; font-variant-numeric: tabular-nums; }
th, td { padding: .2rem .6rem; border-bottom: 1px solid #ddd; text-align: right; }
th:first-child, td:first-child, td.text, th.text { text-align: left; }
thead th { border-bottom: 2px solid #888; }
figure { margin: 1rem 0 2rem; }
figure img { max-width: 100%; image-rendering: pixelated; border: 1px solid #ccc; }
figcaption, .note { color: #555; }
.bad { background: #fde8e6; }
.key { display: inline-block; width: .9em; height: .9em; margin: 0 .3em 0 1em; vertical-align: -.1em; }
svg text { font: 12px system-ui, sans-serif; fill: #222; }
details pre { background: #f6f6f6; padding: .8rem; overflow-x: auto; }
</style>
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
<p class="note">A dot is a scan; the box spans the quartiles around the median.
Large and orange: missed or hallucinated.</p>
$charts
<h2>Worst scans first</h2>
$worst
<h2>How it was measured</h2>
<details><summary>Settings, policy and versions</summary><pre>$settings</pre></details>
</body>
</html>
""")


def write_report(
    path: Path,
    document: Mapping[str, Any],
    pictures: Mapping[str, bytes],
    colors: Sequence[tuple[int, int, int]] | None,
) -> None:
    """Write the report.

    Args:
        path: The file; an older one is replaced.
        document: What `SemSegEvaluator.evaluate` returns.
        pictures: PNGs by scan.
        colors: Of the categories in the pictures.
    """
    from medsegpy_evaluation.writers import json_text

    parts = {
        "dataset": html(document["dataset"]),
        "overview": _overview(document),
        "failed": _failed(document["failed"]),
        "summary": _summary(document),
        "missing": _missing(document["scans"]),
        "unknown": _unknown(document),
        "charts": _charts(document),
        "worst": _worst(document, pictures, colors),
        "settings": html(json_text({key: document[key] for key in ("settings", "policy", "versions")}), lines=True),
    }
    replace_file(path, _PAGE.substitute(parts))


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
        + _table(["scan", "problem"], rows, text=2)
    )


def _summary(document: Mapping[str, Any]) -> str:
    header = ["category", "metric", "n", "mean", "95 % interval", "sd", "median", "quartiles"]
    units = {metric["name"]: metric["unit"] for metric in document["settings"]["metrics"]}
    rows = []
    for row in document["summary"]:
        name, unit = row["metric"], units[row["metric"]]
        title = f"{name} ({unit})" if unit else name
        rows.append(
            [
                row["category"],
                title,
                str(row["n"]),
                _number(row["mean"]),
                _span(row["ci_low"], row["ci_high"]),
                _number(row["sd"]),
                _number(row["median"]),
                _span(row["q1"], row["q3"]),
            ]
        )
    cvs = "; ".join(f"{html(name)} {_number(value)}" for name, value in document["rms_cv"].items())
    return _table(header, rows, text=2) + f"<p>Root mean square of the volumes' coefficients of variation: {cvs}.</p>"


def _missing(scans: Sequence[Mapping[str, Any]]) -> str:
    rows = [
        [scan["scan"], structure["category"], structure["status"], str(voxels)]
        for scan in scans
        for structure in scan["structures"]
        if structure["status"] in ("missed", "hallucinated")
        for voxels in [structure["true_voxels"] + structure["predicted_voxels"]]
    ]
    return _table(["scan", "category", "", "voxels"], rows, text=3, bad=True) if rows else "<p>None.</p>"


def _unknown(document: Mapping[str, Any]) -> str:
    line = unknown_line(document)
    rows = [
        [scan["scan"], structure["category"], str(structure["unknown_voxels"])]
        for scan in document["scans"]
        for structure in scan["structures"]
        if structure["unknown_voxels"]
    ]
    return (
        f"<h2>Unknown voxels</h2><p>{line}</p>" + _table(["scan", "category", "voxels"], rows, text=2) if line else ""
    )


def _charts(document: Mapping[str, Any]) -> str:
    status = {
        (scan["scan"], structure["category"]): structure["status"]
        for scan in document["scans"]
        for structure in scan["structures"]
    }
    parts = []
    for metric in document["settings"]["metrics"]:
        points: dict[str, list[tuple[str, float, bool]]] = {name: [] for name in document["settings"]["categories"]}
        for row in document["metrics"]:
            if row["metric"] == metric["name"] and row["value"] is not None:
                bad = status[row["scan"], row["category"]] != "scored"
                points[row["category"]].append((row["scan"], row["value"], bad))
        title = metric["name"] + (f" ({metric['unit']})" if metric["unit"] else "")
        parts.append(f"<h3>{html(title)}</h3>{distribution_chart(points)}")
    return "\n".join(parts)


def _worst(
    document: Mapping[str, Any], pictures: Mapping[str, bytes], colors: Sequence[tuple[int, int, int]] | None
) -> str:
    metric = ranking_metric(document["settings"]["metrics"])
    ranked = worst_first(document)
    if metric is None or not ranked:
        return "<p>No metric says which scan is worse.</p>"
    name = html(metric["name"])
    parts = [f"<p>By the mean {name} over the categories. Left: truth, right: prediction, where most voxels are wrong."]
    if colors:
        parts += [
            f'<span class="key" style="background: rgb{tuple(color)}"></span>{html(category)}'
            for category, color in zip(document["settings"]["categories"], colors, strict=True)
        ]
    parts.append("</p>")
    for scan, mean in ranked[:_PICTURES]:
        caption = f"<figcaption>{html(scan)}: {name} {_number(mean)}</figcaption>"
        if scan in pictures:
            data = base64.b64encode(pictures[scan]).decode()
            image = f'<img alt="Truth and prediction" src="data:image/png;base64,{data}">'
            parts.append(f"<figure>{image}{caption}</figure>")
        else:
            parts.append(f"<figure>{caption}</figure>")
    return "\n".join(parts)


def _table(header: Sequence[str], rows: Sequence[Sequence[str]], *, text: int = 1, bad: bool = False) -> str:
    """Return a table whose first `text` columns are text, to the left; the others are numbers."""

    def cells(values: Sequence[str], tag: str) -> str:
        starts = (f'<{tag} class="text">' if position < text else f"<{tag}>" for position in range(len(values)))
        return "".join(f"{start}{html(value)}</{tag}>" for start, value in zip(starts, values, strict=True))

    start = '<tr class="bad">' if bad else "<tr>"
    body = "".join(f"{start}{cells(row, 'td')}</tr>" for row in rows)
    return f"<table><thead><tr>{cells(header, 'th')}</tr></thead><tbody>{body}</tbody></table>"


def _number(value: float | None) -> str:
    return "" if value is None else f"{value:.4g}"


def _span(low: float | None, high: float | None) -> str:
    return "" if low is None or high is None else f"{_number(low)} to {_number(high)}"
