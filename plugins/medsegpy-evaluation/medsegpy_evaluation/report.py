"""``report.html``: one file with everything in it, nothing fetched from anywhere."""

from __future__ import annotations

import base64
from collections.abc import Mapping, Sequence
from pathlib import Path
from string import Template
from typing import Any, Final

from medsegpy_core.text import counted
from medsegpy_evaluation.charts import distribution_chart, html
from medsegpy_evaluation.pages import HEAD, SCRIPT, number, span, table
from medsegpy_evaluation.results import ranking_metric, undefined_lines, unknown_line, worst_first
from medsegpy_evaluation.writers import save_file

__all__ = ["write_report"]

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
<p class="note">A dot is a scan; the box spans the quartiles around the median.
Large and orange: missed or hallucinated.</p>
$charts
<h2>Worst scans first</h2>
$worst
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
        "head": HEAD,
        "script": SCRIPT,
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
                number(row["mean"]),
                span(row["ci_low"], row["ci_high"]),
                number(row["sd"]),
                number(row["median"]),
                span(row["q1"], row["q3"]),
            ]
        )
    cvs = "; ".join(f"{html(name)} {number(value)[0]}" for name, value in document["rms_cv"].items())
    return table(header, rows, text=2) + f"<p>Root mean square of the volumes' coefficients of variation: {cvs}.</p>"


def _missing(scans: Sequence[Mapping[str, Any]]) -> str:
    rows = [
        [scan["scan"], structure["category"], structure["status"], str(voxels)]
        for scan in scans
        for structure in scan["structures"]
        if structure["status"] in ("missed", "hallucinated")
        for voxels in [structure["true_voxels"] + structure["predicted_voxels"]]
    ]
    return table(["scan", "category", "", "voxels"], rows, text=3, bad=True) if rows else "<p>None.</p>"


def _unknown(document: Mapping[str, Any]) -> str:
    line = unknown_line(document)
    undefined = "".join(f"<p>{html(sentence)}</p>" for sentence in undefined_lines(document))
    rows = [
        [scan["scan"], structure["category"], str(structure["unknown_voxels"])]
        for scan in document["scans"]
        for structure in scan["structures"]
        if structure["unknown_voxels"]
    ]
    if line:
        undefined += f"<h2>Unknown voxels</h2><p>{line}</p>" + table(["scan", "category", "voxels"], rows, text=2)
    return undefined


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
        caption = f"<figcaption>{html(scan)}: {name} {number(mean)[0]}</figcaption>"
        if scan in pictures:
            data = base64.b64encode(pictures[scan]).decode()
            image = f'<img alt="Truth and prediction" src="data:image/png;base64,{data}">'
            parts.append(f"<figure>{image}{caption}</figure>")
        else:
            parts.append(f"<figure>{caption}</figure>")
    return "\n".join(parts)
