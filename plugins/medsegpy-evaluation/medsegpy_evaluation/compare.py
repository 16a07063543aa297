"""`compare_results`: models compared by subject, with intervals, sign-flip tests, Holm and ranks, and its page."""

from __future__ import annotations

import math
import os
from collections.abc import Iterable, Iterator, Mapping, Sequence
from itertools import combinations
from pathlib import Path
from string import Template
from typing import Any, Final

import numpy as np
from attrs import field, frozen
from numpy.typing import NDArray

from medsegpy_core.text import counted
from medsegpy_evaluation.compared_results import (
    EXACT,
    FEWEST,
    LEVEL,
    OF_METRICS,
    ComparisonError,
    Model,
    Source,
    holm,
    mean_interval,
    mean_ranks,
    named,
    read_model,
    refuse_differences,
    selected,
    sign_flip_tests,
)
from medsegpy_evaluation.pictures import Differences, difference_chart, html
from medsegpy_evaluation.report import HEAD, SCRIPT, Cell, metric_table, number, span, table
from medsegpy_evaluation.results import csv_text, json_text, save_file, versions

__all__ = [
    "COLUMNS",
    "Comparison",
    "ComparisonError",
    "better_in",
    "compare_results",
    "comparison_page",
    "overview",
    "reasons",
    "title",
]


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
        "ranks": _ranks_table(comparison),
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


def _ranks_table(comparison: Comparison) -> str:
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


COLUMNS: Final = (
    "category",
    "metric",
    "unit",
    "a",
    "b",
    "n",
    "scans",
    "left_out",
    "only_a",
    "only_b",
    "mean_a",
    "mean_b",
    "mean_difference",
    "ci_low",
    "ci_high",
    "p",
    "p_holm",
    "test",
    "reason",
    "higher_is_better",
    "better",
    "a_better",
    "b_better",
    "equal",
)

_FORMAT: Final = 1
# Differences below this share of the values are rounding: 0.9 - 0.8 is not 0.8 - 0.7.
_ROUNDING: Final = 1e-12


@frozen
class Comparison:
    """What is known of the differences between models; None stands for undefined.

    Attributes:
        models: Per model its `name`, `results` (where they came from), `datasets`, `thresholds` and `versions`.
        rows: Per pair of models, category and metric a dict. A difference is that of `a` minus `b`.

            * `category`, `metric`, `unit`; `a`, `b`: names of the models
            * `n`: subjects; `scans`: in which both models have a value; `left_out`: the others, among them those in
              which only one has a value: `only_a`, `only_b`
            * `mean_a`, `mean_b`, `mean_difference`: means over subjects of the means over their scans
            * `ci_low`, `ci_high`: 95 % t interval of the mean difference over subjects
            * `p`: of a sign-flip test over subjects, two-sided; `p_holm`: corrected for the whole table; `test`:
              ``"exact"`` or ``"random"``; `reason`: why there is no `p`
            * `higher_is_better`; `better`: the model with the better mean, None if they are equal or if no direction is
              better; `a_better`, `b_better`, `equal`: in how many subjects
        ranks: Per model `model`, `mean_rank` over categories and metrics, `ci_low`, `ci_high`, `first` (the share of
            resamples in which it leads) and `cells` (how many categories and metrics were ranked).
        subjects: Per row and subject `category`, `metric`, `a`, `b`, `subject`, `scans`, `mean_a`, `mean_b`,
            `difference`.
        truth: ``"same"``: all models were scored with the same masks. ``"unknown"``: the results of older versions
            do not record the masks; volumes agree.
        notes: What else a reader should know, in sentences.
        settings: Policy, definitions of the metrics, and how intervals, tests and ranks were made.
        versions: Of the packages that compared.
    """

    models: list[dict[str, Any]]
    rows: list[dict[str, Any]]
    ranks: list[dict[str, Any]]
    subjects: list[dict[str, Any]] = field(repr=False)
    truth: str
    notes: list[str]
    settings: dict[str, Any] = field(repr=False)
    versions: dict[str, str] = field(repr=False)

    def as_dict(self) -> dict[str, Any]:
        """Return everything as plain values: what ``compare.json`` holds."""
        names = ("models", "truth", "notes", "settings", "versions", "rows", "ranks", "subjects")
        return {"format": _FORMAT, **{name: getattr(self, name) for name in names}}

    def write(self, folder: str | os.PathLike[str]) -> None:
        """Write ``compare.csv`` (the rows), ``compare.json`` (everything) and ``compare.html``.

        Args:
            folder: Made if it does not exist.

        Raises:
            OSError: A file cannot be written.
        """
        folder = Path(folder)
        save_file(folder / "compare.csv", csv_text(COLUMNS, self.rows))
        save_file(folder / "compare.json", json_text(self.as_dict()))
        save_file(folder / "compare.html", comparison_page(self))


def compare_results(
    a: Source,
    b: Source,
    *more: Source,
    metrics: Sequence[str] | None = None,
    categories: Sequence[str] | None = None,
    names: Sequence[str | None] | None = None,
    output_folder: str | os.PathLike[str] | None = None,
    flips: int = 100_000,
    resamples: int = 2000,
    seed: int = 0,
) -> Comparison:
    """Compare models by the results of their evaluations, paired by subject.

    Differences are taken scan by scan, averaged over the scans of each subject, and tested over subjects: scans of one
    person are not independent.

    Args:
        a: A folder that the evaluator wrote, its ``metrics.json``, or what `evaluate()` returned; or a list of these:
            the folds of one cross-validation, in which each scan is tested once.
        b: The same, of the other model.
        more: Of further models: all pairs are compared.
        metrics: Names; None: all that were measured, without `TrueVolume`.
        categories: Names; None: all.
        names: What to call the models; None, for one or for all: as its folder, or a, b, c.
        output_folder: Where ``compare.csv``, ``compare.json`` and ``compare.html`` go; None: nowhere.
        flips: How many random sign flips, if more than 32 differences are not zero; up to there the test is exact.
        resamples: How often subjects are drawn, for the intervals of ranks.
        seed: Of random flips and draws.

    Raises:
        ComparisonError: Something is no result, or the results are of different scans, truths, policies or definitions.
            The message lists all differences. It is a `ValueError`.
        UnknownNameError: A metric or category that no result has.
    """
    sources = (a, b, *more)
    if flips < 1 or resamples < 1:
        raise ComparisonError(f"flips={flips} and resamples={resamples}: expected at least 1.")
    models = [read_model(name, source) for name, source in zip(named(sources, names), sources, strict=True)]
    chosen, measured = selected(models, "categories", categories), selected(models, "metrics", metrics)
    same_truth = refuse_differences(models, chosen, measured)
    if not models[0].scans:
        raise ComparisonError("There is no scan in the results: none could be scored.")
    document = next(iter(models[0].documents.values()))
    definitions = {m["name"]: m for m in document["settings"]["metrics"] if m["name"] in measured}
    subjects = sorted({scan.subject for scan in models[0].scans.values()})
    rows, points = [], []
    for first, second in combinations(models, 2):
        for category in chosen:
            for metric in measured:
                row, found = _row(first, second, category, definitions[metric])
                rows.append(row)
                points.append(found)
    _test(rows, points, subjects, flips, seed)
    comparison = Comparison(
        models=[_described(model) for model in models],
        rows=rows,
        ranks=_ranks(models, chosen, list(definitions.values()), subjects, resamples, seed),
        subjects=[point for found in points for point in found],
        truth="same" if same_truth else "unknown",
        notes=list(_notes(models, rows, same_truth=same_truth)),
        settings=_settings(document, chosen, [definitions[m] for m in measured], rows, flips, resamples, seed),
        versions=versions(),
    )
    if output_folder is not None:
        comparison.write(output_folder)
    return comparison


def _row(
    first: Model, second: Model, category: str, definition: Mapping[str, Any]
) -> tuple[dict[str, Any], list[dict[str, Any]]]:
    """Return what one category and metric say of two models, still without a test, and the differences of subjects."""
    metric = definition["name"]
    of_a, of_b = first.values[category, metric], second.values[category, metric]
    pairs: dict[str, list[tuple[float, float]]] = {}
    only_a = only_b = 0
    for scan, facts in first.scans.items():
        x, y = of_a[scan], of_b[scan]
        if x is not None and y is not None:
            pairs.setdefault(facts.subject, []).append((x, y))
        only_a += x is not None and y is None
        only_b += x is None and y is not None
    whose = {"category": category, "metric": metric, "a": first.name, "b": second.name}
    points = [{**whose, "subject": subject, **_subject(pairs[subject])} for subject in sorted(pairs)]
    scans = sum(map(len, pairs.values()))
    row = {**whose, "unit": definition["unit"], "n": len(points), "scans": scans}
    row |= {"left_out": len(first.scans) - scans, "only_a": only_a, "only_b": only_b}
    return row | _means(points, first.name, second.name, definition["higher_is_better"]), points


def _subject(pairs: Sequence[tuple[float, float]]) -> dict[str, Any]:
    difference = math.fsum(x - y for x, y in pairs) / len(pairs)
    largest = max(abs(value) for pair in pairs for value in pair)
    means = [math.fsum(pair[side] for pair in pairs) / len(pairs) for side in (0, 1)]
    if abs(difference) <= _ROUNDING * largest:
        difference = 0.0
    return {"scans": len(pairs), "mean_a": means[0], "mean_b": means[1], "difference": difference}


def _means(points: Sequence[Mapping[str, Any]], a: str, b: str, higher: bool | None) -> dict[str, Any]:
    differences = np.array([point["difference"] for point in points], np.float64)
    mean = float(differences.mean()) if len(points) else None
    low, high = mean_interval(differences) or (None, None)
    above, below = int((differences > 0).sum()), int((differences < 0).sum())
    better = None if higher is None or not mean else a if (mean > 0) == higher else b
    wins = (None, None) if higher is None else (above, below) if higher else (below, above)
    return {
        "mean_a": float(np.mean([point["mean_a"] for point in points])) if points else None,
        "mean_b": float(np.mean([point["mean_b"] for point in points])) if points else None,
        "mean_difference": mean,
        "ci_low": low,
        "ci_high": high,
        "higher_is_better": higher,
        "better": better,
        "a_better": wins[0],
        "b_better": wins[1],
        "equal": len(points) - above - below,
    }


def _test(
    rows: Sequence[dict[str, Any]],
    points: Sequence[Sequence[Mapping[str, Any]]],
    subjects: Sequence[str],
    flips: int,
    seed: int,
) -> None:
    """Put `p`, `p_holm`, `test` and `reason` into the rows."""
    place = {subject: position for position, subject in enumerate(subjects)}
    tested = []
    for row, found in zip(rows, points, strict=True):
        row.update({"p": None, "p_holm": None, "test": None, "reason": ""})
        if len(found) >= FEWEST:
            tested.append((row, found))
        else:
            row["reason"] = f"{counted(len(found), 'subject')}: a sign-flip test needs {FEWEST} to reach 0.05"
    differences: NDArray[np.float64] = np.zeros((len(tested), len(subjects)))
    for nth, (_, found) in enumerate(tested):
        for point in found:
            differences[nth, place[point["subject"]]] = point["difference"]
    results = sign_flip_tests(differences, flips, seed)
    corrected = holm([p for p, _ in results])
    for (row, _), (p, exact), adjusted in zip(tested, results, corrected, strict=True):
        row.update({"p": p, "p_holm": adjusted, "test": "exact" if exact else "random"})


def _ranks(
    models: Sequence[Model],
    categories: Sequence[str],
    definitions: Sequence[Mapping[str, Any]],
    subjects: Sequence[str],
    resamples: int,
    seed: int,
) -> list[dict[str, Any]]:
    """Return the mean ranks over categories and those metrics that have a better direction."""
    cells = [(c, d["name"], d["higher_is_better"]) for c in categories for d in definitions]
    cells = [cell for cell in cells if cell[2] is not None]
    values = np.full((len(models), len(cells), len(subjects)), np.nan)
    scans_of: dict[str, list[str]] = {subject: [] for subject in subjects}
    for scan, facts in models[0].scans.items():
        scans_of[facts.subject].append(scan)
    for nth, (category, metric, higher) in enumerate(cells):
        by_model = [model.values[category, metric] for model in models]
        for position, subject in enumerate(subjects):
            defined = [s for s in scans_of[subject] if all(by_scan[s] is not None for by_scan in by_model)]
            for place, by_scan in enumerate(by_model if defined else ()):
                total = math.fsum(value for scan in defined if (value := by_scan[scan]) is not None)
                values[place, nth, position] = (1 if higher else -1) * total / len(defined)
    ranked = int((~np.isnan(values[0])).any(axis=1).sum())
    if not ranked:
        return []
    return [
        {
            "model": model.name,
            "mean_rank": found.rank,
            "ci_low": found.low,
            "ci_high": found.high,
            "first": found.first,
            "cells": ranked,
        }
        for model, found in zip(models, mean_ranks(values, resamples, seed), strict=True)
    ]


def _described(model: Model) -> dict[str, Any]:
    documents = list(model.documents.values())
    return {
        "name": model.name,
        "results": list(model.documents),
        "datasets": sorted({document["dataset"] for document in documents}),
        "scans": len(model.scans),
        "thresholds": [document["settings"].get("thresholds") for document in documents],
        "activation": [document["settings"].get("activation") for document in documents],
        "versions": [document.get("versions") for document in documents],
    }


def _notes(models: Sequence[Model], rows: Sequence[Mapping[str, Any]], *, same_truth: bool) -> Iterator[str]:
    if not same_truth:
        yield (
            "Whether all models were scored with the same masks is unknown: results of older versions do not record "
            "it. What they record agrees. Evaluate again to be sure."
        )
    written = {(document.get("versions") or {}).get("medsegpy-evaluation", "unknown") for document in _all(models)}
    if len(written) > 1:
        yield f"The results are of different versions of medsegpy-evaluation: {', '.join(sorted(written))}."
    failed = sorted({scan for model in models for scan in model.failed})
    if failed:
        yield f"{counted(len(failed), 'scan')} could not be scored in any model, in none of these numbers."
    scans = models[0].scans
    if all(scan.subject == name for name, scan in scans.items()):
        yield (
            "Each subject has the id of its only scan. If the dataset does not declare subjects, and some people were "
            "scanned twice, p-values may be too small."
        )
    if any(row["only_a"] or row["only_b"] for row in rows):
        yield (
            "In some scans only one of two models has a value, such as a structure that is not there and that one "
            "model found: columns only_a and only_b. Such scans are in no difference."
        )


def _all(models: Sequence[Model]) -> Iterator[Mapping[str, Any]]:
    return (document for model in models for document in model.documents.values())


def _settings(
    document: Mapping[str, Any],
    categories: Sequence[str],
    definitions: Sequence[Mapping[str, Any]],
    rows: Sequence[Mapping[str, Any]],
    flips: int,
    resamples: int,
    seed: int,
) -> dict[str, Any]:
    return {
        "categories": list(categories),
        "metrics": list(definitions),
        **{key: document["settings"].get(key) for key in OF_METRICS},
        "policy": document["policy"],
        "difference": "a - b per scan, averaged over the scans of each subject; means are over subjects",
        "interval": {"method": "t over subjects", "level": LEVEL},
        "test": {
            "method": "sign flips of the subjects' differences, two-sided",
            "exact_up_to": EXACT,
            "flips": flips,
            "seed": seed,
            "fewest_subjects": FEWEST,
        },
        "correction": {"method": "Holm", "tests": sum(row["p"] is not None for row in rows)},
        "ranks": {
            "method": "ranks of the means over subjects, averaged over categories and metrics; equal means share ranks",
            "interval": "percentiles over resampled subjects",
            "resamples": resamples,
            "seed": seed,
        },
    }
