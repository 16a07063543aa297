"""From the values of scans to what is said of a category: means, spread, and intervals resampled over subjects."""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from typing import Any, Final

import numpy as np
from attrs import asdict, frozen
from numpy.typing import NDArray

from medsegpy_evaluation.scores import ScanScores
from medsegpy_evaluation.settings import Status

__all__ = ["Bootstrap", "as_text", "grouped_means", "rms_cv", "summarize"]

_COUNTED: Final[tuple[Status, ...]] = ("both_empty", "missed", "hallucinated", "unknown")


def as_text(value: int | str) -> tuple[str, bool]:
    """Return what sorts ids as text."""
    return str(value), isinstance(value, str)


@frozen
class Bootstrap:
    """How intervals of means are made: subjects are drawn with replacement, each with all its scans.

    Attributes:
        resamples: How often.
        seed: Of NumPy's default generator; each category and metric begins anew with it.
        level: What share of the resampled means lies inside the interval.
        unit: What is drawn.
        method: The interval's ends are percentiles of the resampled means, linearly interpolated.
    """

    resamples: int = 2000
    seed: int = 0
    level: float = 0.95
    unit: str = "subject"
    method: str = "percentile"

    def interval(self, values: Sequence[float], subjects: Sequence[int | str]) -> tuple[float, float] | None:
        """Return the interval of the mean of `values`, or None where fewer than two subjects have a value.

        Args:
            values: One per scan.
            subjects: Whose each is; the number 1 and the text "1" are two.
        """
        names = sorted(set(subjects), key=as_text)
        place = {name: position for position, name in enumerate(names)}
        whose = np.array([place[subject] for subject in subjects], np.intp)
        if len(names) < 2:
            return None
        sums = np.bincount(whose, weights=np.asarray(values, np.float64))
        counts = np.bincount(whose)
        rng = np.random.default_rng(self.seed)
        means: NDArray[np.float64] = np.empty(self.resamples)
        # A few resamples at a time: 2,000 of 100,000 subjects at once would be gigabytes.
        step = max(1, 1_000_000 // len(names))
        for start in range(0, self.resamples, step):
            drawn = rng.integers(len(names), size=(min(step, self.resamples - start), len(names)))
            means[start : start + step] = sums[drawn].sum(axis=1) / counts[drawn].sum(axis=1)
        tail = 50 * (1 - self.level)
        low, high = np.percentile(means, (tail, 100 - tail))
        return float(low), float(high)

    def as_dict(self) -> dict[str, Any]:
        """Return the settings, for the outputs."""
        return asdict(self)


def summarize(
    scans: Sequence[ScanScores], categories: Sequence[str], metrics: Sequence[str], bootstrap: Bootstrap
) -> list[dict[str, Any]]:
    """Return what is said of each category and metric.

    Returns:
        Dicts with `category`, `metric`, `n` (values in the mean), `both_empty`, `missed`, `hallucinated`, `unknown`
        (scans), `mean`, `sd` (sample, n - 1), `median`, `q1`, `q3`, `ci_low`, `ci_high`; None: undefined.
    """
    rows = []
    for position, category in enumerate(categories):
        found = [(scan.subject, scan.structures[position]) for scan in scans]
        counts: dict[str, int] = {status: sum(s.status == status for _, s in found) for status in _COUNTED}
        for metric in metrics:
            defined = [(subject, s.values[metric]) for subject, s in found if s.values[metric] is not None]
            values = [value for _, value in defined if value is not None]
            interval = bootstrap.interval(values, [subject for subject, _ in defined]) or (None, None)
            row: dict[str, Any] = {"category": category, "metric": metric, "n": len(values)}
            row.update(counts)
            row.update(_described(values))
            rows.append({**row, "ci_low": interval[0], "ci_high": interval[1]})
    return rows


def _described(values: Sequence[float]) -> dict[str, float | None]:
    if not values:
        return {"mean": None, "sd": None, "median": None, "q1": None, "q3": None}
    array = np.asarray(values, np.float64)
    q1, median, q3 = np.percentile(array, (25, 50, 75)).tolist()
    sd = float(array.std(ddof=1)) if len(array) > 1 else None
    return {"mean": float(array.mean()), "sd": sd, "median": median, "q1": q1, "q3": q3}


def rms_cv(scans: Sequence[ScanScores], categories: Sequence[str]) -> dict[str, float | None]:
    """Return the root mean square of the volumes' coefficients of variation, by category.

    The coefficient of a scan is ``| |P| - |T| | / (|P| + |T|)``; missed and hallucinated structures count 1, scans
    where both are empty are left out.
    """
    result: dict[str, float | None] = {}
    for position, category in enumerate(categories):
        voxels = [scan.structures[position].voxels for scan in scans]
        squares = [((pred - truth) / (pred + truth)) ** 2 for pred, truth in voxels if pred + truth]
        result[category] = float(np.sqrt(np.mean(squares))) if squares else None
    return result


def grouped_means(
    scans: Sequence[ScanScores], categories: Sequence[str], metrics: Sequence[str], key: str
) -> list[dict[str, Any]]:
    """Return the means over the scans of each subject, or of each time point.

    Args:
        scans: The scans.
        categories: Names.
        metrics: Names.
        key: ``"subject"`` or ``"time_point"``.

    Returns:
        Dicts with the key, `category`, `metric`, `n` and `mean`. Scans without a time point belong to none.
    """
    groups: dict[Any, list[ScanScores]] = {}
    for scan in scans:
        if (group := getattr(scan, key)) is not None:
            groups.setdefault(group, []).append(scan)
    rows = []
    # Numbers and text do not compare: if there is text, all are sorted as text. Subjects are text in all outputs.
    with_text = key == "subject" or any(isinstance(group, str) for group in groups)
    for group in sorted(groups, key=as_text if with_text else None):
        shown = str(group) if key == "subject" else group
        for position, category in enumerate(categories):
            for metric in metrics:
                values = _defined(scan.structures[position].values[metric] for scan in groups[group])
                mean = float(np.mean(values)) if values else None
                rows.append({key: shown, "category": category, "metric": metric, "n": len(values), "mean": mean})
    return rows


def _defined(values: Iterable[float | None]) -> list[float]:
    return [value for value in values if value is not None]
