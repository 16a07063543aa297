"""`compare_results`: which of two or more models is better, by how much, and how sure that is."""

from __future__ import annotations

import math
import os
from collections.abc import Iterator, Mapping, Sequence
from itertools import combinations
from pathlib import Path
from typing import Any, Final

import numpy as np
from attrs import field, frozen
from numpy.typing import NDArray

from medsegpy_core.text import counted
from medsegpy_evaluation.compared_results import (
    OF_METRICS,
    ComparisonError,
    Model,
    Source,
    named,
    read_model,
    refuse_differences,
    selected,
)
from medsegpy_evaluation.paired import EXACT, FEWEST, LEVEL, holm, mean_interval, mean_ranks, sign_flip_tests
from medsegpy_evaluation.results import versions
from medsegpy_evaluation.writers import csv_text, json_text, save_file

__all__ = ["COLUMNS", "Comparison", "ComparisonError", "compare_results"]

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
        from medsegpy_evaluation.compare_page import comparison_page

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
    for number, (_, found) in enumerate(tested):
        for point in found:
            differences[number, place[point["subject"]]] = point["difference"]
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
    for number, (category, metric, higher) in enumerate(cells):
        by_model = [model.values[category, metric] for model in models]
        for position, subject in enumerate(subjects):
            defined = [s for s in scans_of[subject] if all(by_scan[s] is not None for by_scan in by_model)]
            for place, by_scan in enumerate(by_model if defined else ()):
                total = math.fsum(value for scan in defined if (value := by_scan[scan]) is not None)
                values[place, number, position] = (1 if higher else -1) * total / len(defined)
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
