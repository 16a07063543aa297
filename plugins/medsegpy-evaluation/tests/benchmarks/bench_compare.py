"""How often `compare_results` finds a difference that is not there, how often its interval covers, how long it takes.

    python plugins/medsegpy-evaluation/tests/benchmarks/bench_compare.py [--runs 4000]

Simulated: subjects with four scans each, whose differences share a part that belongs to the subject. Beside ours a
Wilcoxon signed-rank test over scans, as it is often done; and beside the t interval bootstraps over subjects.
"""

from __future__ import annotations

import argparse
import time

import numpy as np
from scipy import stats

from medsegpy_evaluation.compared_results import holm, mean_interval, sign_flip_tests

SUBJECTS, SCANS = 20, 4


def significant(runs: int, spread: float) -> tuple[float, float, float]:
    """Return the shares of runs with p <= 0.05 of ours, Wilcoxon over scans, and a table of ten with Holm."""
    rng = np.random.default_rng(1)
    shape = (runs, 1, SUBJECTS, 1)
    # Ten metrics of one table, which agree in part.
    shared = rng.normal(0, 0.05, shape) + rng.normal(0, 0.03, (runs, 10, SUBJECTS, 1))
    differences = shared + rng.normal(0, spread, (runs, 10, SUBJECTS, SCANS))
    tests = sign_flip_tests(differences.mean(axis=3).reshape(runs * 10, SUBJECTS), 1, 0)
    p = np.array([value for value, _ in tests]).reshape(runs, 10)
    scans = stats.wilcoxon(differences[:, 0].reshape(runs, -1), axis=1).pvalue
    table = np.array([min(holm(row)) for row in p])
    return float((p[:, 0] <= 0.05).mean()), float((scans <= 0.05).mean()), float((table <= 0.05).mean())


def draw(kind: str, rng: np.random.Generator, n: int) -> np.ndarray:
    """Return differences whose mean is zero in truth."""
    if kind == "normal":
        return rng.normal(size=n)
    if kind == "heavy tails (t, 3)":
        return rng.standard_t(3, size=n)
    if kind == "skewed (exponential)":
        return rng.exponential(size=n) - 1
    return 0.05 * rng.normal(size=n) + 0.8 * (rng.random(n) < 0.1) - 0.08  # one in ten subjects has a missed organ


def covered(kind: str, n: int, runs: int) -> dict[str, float]:
    """Return how often intervals contain the true mean."""
    rng = np.random.default_rng(2)
    count = {"t": 0, "percentile": 0, "BCa": 0}
    for _ in range(runs):
        values = draw(kind, rng, n)
        low, high = mean_interval(values) or (0, 0)
        count["t"] += low <= 0 <= high
        for name, method in (("percentile", "percentile"), ("BCa", "BCa")):
            found = stats.bootstrap(
                (values,), np.mean, n_resamples=999, method=method, vectorized=True, rng=rng
            ).confidence_interval
            count[name] += found.low <= 0 <= found.high
    return {name: number / runs for name, number in count.items()}


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--runs", type=int, default=4000)
    runs = parser.parse_args().runs
    print(f"{runs} runs, {SUBJECTS} subjects with {SCANS} scans each, no true difference: p <= 0.05 in")
    for spread in (0.045, 0.1):
        ours, scans, table = significant(runs, spread)
        print(f"  sd within subjects {spread}: ours {ours:.1%}, Wilcoxon over scans {scans:.1%}; with Holm, any of ten")
        print(f"    metrics {table:.1%}")
    print(f"{runs // 4} runs: 95 % intervals cover the mean in")
    for kind in ("normal", "heavy tails (t, 3)", "skewed (exponential)", "missed in one of ten"):
        for n in (6, 20, 50):
            shares = ", ".join(f"{name} {share:.1%}" for name, share in covered(kind, n, runs // 4).items())
            print(f"  {kind}, {n} subjects: {shares}")
    for n in (20, 32, 33, 500):
        values = np.random.default_rng(0).normal(size=(100, n))
        start = time.perf_counter()
        sign_flip_tests(values, 100_000, 0)
        print(f"100 tests of {n} subjects: {time.perf_counter() - start:.2f} s")


if __name__ == "__main__":
    main()
