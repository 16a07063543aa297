"""Rounds: every case runs once per round, in a new order, so that other load affects all cases equally."""

from __future__ import annotations

import random
import statistics
import time
from collections.abc import Callable, Sequence
from typing import NamedTuple

__all__ = ["Case", "Results", "Target", "interleaved", "markdown"]


class Case(NamedTuple):
    """Something to be timed.

    Attributes:
        name: Its row in the table.
        run: Does the work and returns the number of elements.
        before: Prepares the run, untimed: a cold cache, for example.
    """

    name: str
    run: Callable[[], int]
    before: Callable[[], object] = lambda: None


class Target(NamedTuple):
    """A target ratio: `case` makes at least `least` times as many elements per second as `against`."""

    case: str
    against: str
    least: float


class Results(NamedTuple):
    """Elements per second of each case in each round."""

    unit: str
    rates: dict[str, list[float]]

    def rate(self, name: str) -> float:
        """Return the median rate of a case."""
        return statistics.median(self.rates[name])

    def ratio(self, name: str, against: str) -> float:
        """Return the median of the per-round ratios of two cases."""
        return statistics.median(a / b for a, b in zip(self.rates[name], self.rates[against], strict=True))


def interleaved(cases: Sequence[Case], rounds: int, unit: str) -> Results:
    """Run all cases once to warm up, then `rounds` times, in a new order each time."""
    order = random.Random(0)
    for case in cases:
        case.before()
        case.run()
    rates: dict[str, list[float]] = {case.name: [] for case in cases}
    for _ in range(rounds):
        for case in order.sample(list(cases), len(cases)):
            case.before()
            began = time.perf_counter()
            made = case.run()
            rates[case.name].append(made / (time.perf_counter() - began))
    return Results(unit, rates)


def markdown(title: str, results: Results, baseline: str, targets: Sequence[Target], absent: Sequence[str]) -> str:
    """Write the results as two tables: all cases against the baseline, and the targets."""
    lines = [f"### {title}", "", f"| | {results.unit}/s | x {baseline} |", "|---|--:|--:|"]
    lines += [
        f"| {name} | {results.rate(name):,.0f} | {results.ratio(name, baseline):.2f} |"
        for name in sorted(results.rates, key=results.rate)
    ]
    lines += [f"| {name} | not installed | |" for name in absent]
    shown = [t for t in targets if t.case in results.rates and t.against in results.rates]
    if shown:
        lines += ["", "| ratio | target | measured |", "|---|--:|--:|"]
    for target in shown:
        found = results.ratio(target.case, target.against)
        verdict = "" if found >= target.least else " (missed)"
        lines.append(f"| {target.case} / {target.against} | {target.least:g} | {found:.2f}{verdict} |")
    return "\n".join(lines) + "\n"
