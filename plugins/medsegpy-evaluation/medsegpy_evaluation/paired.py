"""Statistics of paired differences between models: interval, sign-flip test, correction for many tests, ranks.

The unit is the subject. Scans of one person are not independent; who tests over scans finds differences that are not
there.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Final, TypeAlias

import numpy as np
from attrs import frozen
from numpy.typing import NDArray

__all__ = ["EXACT", "FEWEST", "LEVEL", "MeanRank", "holm", "mean_interval", "mean_ranks", "sign_flip_tests"]

Floats: TypeAlias = NDArray[np.float64]

LEVEL: Final = 0.95
# With fewer subjects no outcome of the test is below 0.05: 2 / 2^5 = 0.0625.
FEWEST: Final = 6
# Up to this many differences that are not zero, all 2^n sign flips are counted; two halves of 2^16 sums suffice.
EXACT: Final = 32
# Sums that differ by less than this share are equal: the order of additions changes the last digits.
_ROUNDING: Final = 1e-12
# Numbers that are held at once.
_BLOCK: Final = 1 << 22


def mean_interval(differences: Floats) -> tuple[float, float] | None:
    """Return the 95 % t interval of the mean, or None with fewer than two differences.

    Args:
        differences: One per subject.
    """
    from scipy.special import stdtrit

    n = len(differences)
    if n < 2:
        return None
    mean = float(differences.mean())
    half = float(stdtrit(n - 1, (1 + LEVEL) / 2) * differences.std(ddof=1) / np.sqrt(n))
    return mean - half, mean + half


def sign_flip_tests(differences: Floats, flips: int, seed: int) -> list[tuple[float, bool]]:
    """Test for each row whether its mean differs from zero: how often is the mean as far from it with random signs?

    Two-sided. If two models are alike, their names can be swapped for any subject, which flips the sign of its
    difference; nothing else is assumed.

    Args:
        differences: Rows x subjects; zero if a subject has none in this row, which changes nothing.
        flips: How many random flips, with more than `EXACT` differences that are not zero.
        seed: Of the random flips.

    Returns:
        Per row the p-value, and whether it is exact. A random one counts the observed signs as one of the flips, so
        that it is never zero.
    """
    exact = [int(np.count_nonzero(row)) <= EXACT for row in differences]
    results = [(_exact(row) if small else 1.0, small) for row, small in zip(differences, exact, strict=True)]
    large = [position for position, small in enumerate(exact) if not small]
    if large:
        for position, p in zip(large, _monte_carlo(differences[large], flips, seed), strict=True):
            results[position] = (p, False)
    return results


def _exact(differences: Floats) -> float:
    values = differences[differences != 0]
    observed, margin = abs(values.sum()), _ROUNDING * np.abs(values).sum()
    if observed <= margin:
        return 1.0
    half = len(values) // 2
    first, second = _signed_sums(values[:half]), np.sort(_signed_sums(values[half:]))
    # As many sums are below -observed as above it.
    below = np.searchsorted(second, observed - margin - np.sort(first))
    above = len(first) * len(second) - int(below.sum())
    return min(1.0, 2 * above / 2.0 ** len(values))


def _signed_sums(values: Floats) -> Floats:
    """Return the sums with all 2^n choices of signs."""
    sums = np.zeros(1)
    for value in values:
        sums = np.concatenate([sums + value, sums - value])
    return sums


def _monte_carlo(differences: Floats, flips: int, seed: int) -> list[float]:
    observed = np.abs(differences.sum(axis=1)) - _ROUNDING * np.abs(differences).sum(axis=1)
    rng = np.random.default_rng(seed)
    count = np.zeros(len(differences), np.int64)
    step = max(1, _BLOCK // (differences.shape[0] + differences.shape[1]))
    for start in range(0, flips, step):
        signs = rng.integers(2, size=(min(step, flips - start), differences.shape[1]), dtype=np.int8) * 2.0 - 1.0
        count += (np.abs(signs @ differences.T) >= observed).sum(axis=0)
    return [(int(extreme) + 1) / (flips + 1) for extreme in count]


def holm(p_values: Sequence[float]) -> list[float]:
    """Return p-values corrected for their number, by Holm's step-down procedure (1979).

    Example:
        >>> holm([0.01, 0.04, 0.03])
        [0.03, 0.06, 0.06]
    """
    corrected = [1.0] * len(p_values)
    largest = 0.0
    for rank, position in enumerate(sorted(range(len(p_values)), key=lambda place: p_values[place])):
        largest = max(largest, min(1.0, (len(p_values) - rank) * p_values[position]))
        corrected[position] = largest
    return corrected


@frozen
class MeanRank:
    """The rank of a model, 1 is best, averaged over categories and metrics.

    Attributes:
        rank: The average.
        low: Beginning of its 95 % interval; None with fewer than two subjects.
        high: End.
        first: In which share of the resamples no model has a better mean rank; None with fewer than two subjects.
    """

    rank: float
    low: float | None
    high: float | None
    first: float | None


def mean_ranks(values: Floats, resamples: int, seed: int) -> list[MeanRank]:
    """Rank models by their means over subjects, table cell by table cell, and average the ranks.

    Subjects are drawn with replacement for the intervals (percentiles). Equal means share the average of their ranks.

    Args:
        values: Models x cells x subjects, higher is better; NaN for all models if a subject has no value in a cell.
        resamples: How often subjects are drawn.
        seed: Of the draws.
    """
    models, cells, subjects = values.shape
    known = ~np.isnan(values[0])
    filled = np.where(known, values, 0.0)
    ranks = _ranked(filled, known, np.ones((1, subjects)))[0]
    if subjects < 2:
        return [MeanRank(float(rank), None, None, None) for rank in ranks]
    rng = np.random.default_rng(seed)
    drawn = []
    step = max(1, _BLOCK // (subjects + models * cells))
    for start in range(0, resamples, step):
        picked = rng.integers(subjects, size=(min(step, resamples - start), subjects))
        weights = np.zeros(picked.shape)
        np.add.at(weights, (np.arange(len(picked))[:, None], picked), 1)
        drawn.append(_ranked(filled, known, weights))
    all_drawn = np.concatenate(drawn)
    all_drawn = all_drawn[~np.isnan(all_drawn).any(axis=1)]  # without draws in which no cell has a value
    if not len(all_drawn):
        return [MeanRank(float(rank), None, None, None) for rank in ranks]
    low, high = np.percentile(all_drawn, (50 * (1 - LEVEL), 50 * (1 + LEVEL)), axis=0)
    first = (all_drawn <= all_drawn.min(axis=1, keepdims=True) + _ROUNDING).mean(axis=0)
    found = zip(ranks.tolist(), low.tolist(), high.tolist(), first.tolist(), strict=True)
    return [MeanRank(*numbers) for numbers in found]


def _ranked(filled: Floats, known: NDArray[np.bool_], weights: Floats) -> Floats:
    """Return draws x models: mean ranks for the weights (draws x subjects); NaN if no cell has a value."""
    totals = weights @ known.T.astype(np.float64)
    with np.errstate(invalid="ignore"):
        means = np.stack([weights @ model.T / totals for model in filled], axis=1)
    margin = _ROUNDING * np.abs(means).max(axis=1, initial=0)
    ranks = np.ones(means.shape)
    for model in range(len(filled)):
        for other in range(len(filled)):
            if other != model:
                ahead = means[:, other] - means[:, model]
                ranks[:, model] += np.where(ahead > margin, 1.0, np.where(ahead < -margin, 0.0, 0.5))
    counted = totals > 0
    number = counted.sum(axis=1)[:, None]
    sums = np.where(counted[:, None], ranks, 0.0).sum(axis=2)
    means_of_ranks: Floats = np.divide(sums, number, out=np.full(sums.shape, np.nan), where=number > 0)
    return means_of_ranks
