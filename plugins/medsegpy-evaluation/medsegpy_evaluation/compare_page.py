"""``compare.html``: one file with everything in it, nothing fetched from anywhere."""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from string import Template
from typing import TYPE_CHECKING, Any, Final

from medsegpy_core.text import counted
from medsegpy_evaluation.charts import Differences, difference_chart, html
from medsegpy_evaluation.pages import HEAD, SCRIPT, Cell, metric_table, number, span, table
from medsegpy_evaluation.writers import json_text

if TYPE_CHECKING:
    from medsegpy_evaluation.compare import Comparison

__all__ = ["better_in", "comparison_page", "overview", "reasons", "title"]

_PAGE: Final = Template("""<!doctype html>
<html lang="en">
<head>
$head
<title>Comparison of $names</title>
</head>
<body>
<h1>Comparison of $names</h1>
$overview
<h2>Differences</h2>
<p class="note">A difference is that of the first model minus the second, averaged over the scans of each subject;
means are over subjects. The interval (95 %) is a t interval over subjects. <em>p</em> is that of a two-sided sign-flip
test over subjects; <em>p (Holm)</em> is corrected for all $tests tests of this table. Left out: scans in which a value
is undefined for one of the models.</p>
$table
$reasons
<h2>Ranks</h2>
$ranks
<h2>Subjects</h2>
<p class="note">A dot is a subject; the circle is the mean, the bar its interval.</p>
$charts
<h2>How it was compared</h2>
<p>Values of missing structures by the policy that all results share:</p>
$policy
$metrics
<details><summary>Models, settings and versions</summary><pre>$settings</pre></details>
$script
</body>
</html>
""")


def comparison_page(comparison: Comparison) -> str:
    """Return the page of a comparison."""
    tests = comparison.settings["correction"]["tests"]
    parts = {
        "head": HEAD,
        "script": SCRIPT,
        "names": ", ".join(html(model["name"]) for model in comparison.models),
        "overview": "".join(f"<p>{html(line)}</p>" for line in overview(comparison)),
        "tests": str(tests),
        "table": _table(comparison),
        "reasons": "".join(f"<p>{html(line)}</p>" for line in reasons(comparison.rows)),
        "ranks": _ranks(comparison),
        "charts": "\n".join(_charts(comparison)),
        "policy": _policy(comparison.settings["policy"]),
        "metrics": metric_table(comparison.settings["metrics"]),
        "settings": html(
            json_text({key: getattr(comparison, key) for key in ("models", "settings", "versions")}), lines=True
        ),
    }
    return _PAGE.substitute(parts)


def overview(comparison: Comparison) -> list[str]:
    """Return what is to be known of a comparison before its numbers, in lines."""
    subjects = len({point["subject"] for point in comparison.subjects})
    lines = [f"{counted(comparison.models[0]['scans'], 'scan')}, {counted(subjects, 'subject')} with values."]
    if comparison.truth == "same":
        lines.append("All models were scored with the same masks, by their fingerprints.")
    return lines + comparison.notes


def reasons(rows: Iterable[Mapping[str, Any]]) -> list[str]:
    """Return why rows have no p-value, each reason once."""
    return [f"No p-value for {reason}." for reason in dict.fromkeys(row["reason"] for row in rows) if reason]


def better_in(row: Mapping[str, Any]) -> str:
    """Say in how many subjects which model is better, such as ``"unet in 12 of 20, vnet in 7"``."""
    if row["higher_is_better"] is None:
        return "no direction is better"
    return f"{row['a']} in {row['a_better']} of {row['n']}, {row['b']} in {row['b_better']}"


def title(row: Mapping[str, Any]) -> str:
    """Return the metric of a row with its unit."""
    return f"{row['metric']} ({row['unit']})" if row["unit"] else row["metric"]


def _table(comparison: Comparison) -> str:
    several = len(comparison.models) > 2
    a, b = ("first", "second") if several else (model["name"] for model in comparison.models)
    header = [*(["models"] if several else []), "category", "metric", "n", "left out", a, b, "difference"]
    rows = [
        [
            *([f"{row['a']} - {row['b']}"] if several else []),
            row["category"],
            title(row),
            str(row["n"]),
            str(row["left_out"]),
            number(row["mean_a"]),
            number(row["mean_b"]),
            number(row["mean_difference"]),
            span(row["ci_low"], row["ci_high"]),
            number(row["p"]),
            number(row["p_holm"]),
            better_in(row),
        ]
        for row in comparison.rows
    ]
    return table([*header, "95 % interval", "p", "p (Holm)", "better"], rows, text=2 + several)


def _ranks(comparison: Comparison) -> str:
    if not comparison.ranks:
        return "<p>No metric with values has a better direction.</p>"
    rows: list[list[Cell]] = [
        [rank["model"], number(rank["mean_rank"]), span(rank["ci_low"], rank["ci_high"]), number(rank["first"])]
        for rank in comparison.ranks
    ]
    cells = counted(comparison.ranks[0]["cells"], "pair")
    note = (
        '<p class="note">Models are ranked by their means over subjects, 1 is best; ranks are averaged over '
        f"{cells} of category and metric. Intervals (95 %) and leads: over subjects drawn with replacement.</p>"
    )
    return note + table(["model", "mean rank", "95 % interval", "leads in share of draws"], rows)


def _charts(comparison: Comparison) -> Iterable[str]:
    dots: dict[tuple[Any, ...], list[tuple[str, float]]] = {}
    for point in comparison.subjects:
        key = (point["a"], point["b"], point["metric"], point["category"])
        dots.setdefault(key, []).append((point["subject"], point["difference"]))
    charts: dict[tuple[str, str, str], list[Mapping[str, Any]]] = {}
    for row in comparison.rows:
        charts.setdefault((row["a"], row["b"], row["metric"]), []).append(row)
    for (a, b, metric), rows in charts.items():
        found = [
            Differences(
                row["category"],
                dots.get((a, b, metric, row["category"]), []),
                row["mean_difference"],
                None if row["ci_low"] is None else (row["ci_low"], row["ci_high"]),
            )
            for row in rows
        ]
        higher = rows[0]["higher_is_better"]
        side = f"{a} is higher" if higher is None else f"{a if higher else b} is better"
        yield f"<h3>{html(title(rows[0]))}: {html(a)} - {html(b)}</h3>"
        yield f'<p class="note">Right of zero {html(side)}.</p>{difference_chart(found)}'


def _policy(policy: Mapping[str, Any]) -> str:
    missed, hallucinated = policy.get("missed", {}), policy.get("hallucinated", {})
    rows: list[list[Cell]] = [
        [name, _rule(missed, name), _rule(hallucinated, name)] for name in dict.fromkeys((*missed, *hallucinated))
    ]
    words = "".join(
        f"<p><strong>{html(key)}</strong>: {html(text)}</p>" for key, text in policy.items() if isinstance(text, str)
    )
    return table(["metric", "missed", "hallucinated"], rows, text=3) + words


def _rule(rules: Mapping[str, Any], name: str) -> str:
    rule = rules.get(name, "not stated")
    return "undefined" if rule is None else str(rule)
