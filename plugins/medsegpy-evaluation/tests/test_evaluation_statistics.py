"""Summaries: subjects are resampled, not scans."""

from __future__ import annotations

import numpy as np
import pytest

from medsegpy_evaluation.pictures import Point, distribution_chart
from medsegpy_evaluation.scores import ScanScores, StructureScores
from medsegpy_evaluation.statistics import Bootstrap, rms_cv, summarize


def scans(values, subjects, voxels=(10, 10)):
    return [
        ScanScores(f"s{n}", subject, None, None, (4, 4), (StructureScores("a", "scored", {"DSC": v}, voxels),))
        for n, (v, subject) in enumerate(zip(values, subjects, strict=True))
    ]


def summary(values, subjects):
    (row,) = summarize(scans(values, subjects), ["a"], ["DSC"], Bootstrap())
    return row


def test_described():
    row = summary([0.1, 0.2, 0.4, None], list("abcd"))
    assert row["n"] == 3
    assert row["mean"] == pytest.approx(np.mean([0.1, 0.2, 0.4]))
    assert row["sd"] == pytest.approx(np.std([0.1, 0.2, 0.4], ddof=1))
    assert (row["q1"], row["median"], row["q3"]) == pytest.approx((0.15, 0.2, 0.3))


def test_nothing_to_describe():
    row = summary([None, None], list("ab"))
    assert row["n"] == 0
    assert [row[k] for k in ("mean", "sd", "median", "q1", "q3", "ci_low", "ci_high")] == [None] * 7


def test_subjects_are_resampled_with_all_their_scans():
    rng = np.random.default_rng(5)
    per_subject = rng.random(6)
    # Twenty scans of each subject, all alike: they say no more of the population than one.
    many = summary(np.repeat(per_subject, 20).tolist(), np.repeat(list("abcdef"), 20).tolist())
    few = summary(per_subject.tolist(), list("abcdef"))
    assert (many["ci_low"], many["ci_high"]) == pytest.approx((few["ci_low"], few["ci_high"]))
    as_if_independent = summary(np.repeat(per_subject, 20).tolist(), [f"{n}" for n in range(120)])
    assert as_if_independent["ci_high"] - as_if_independent["ci_low"] < 0.5 * (many["ci_high"] - many["ci_low"])


def test_the_interval_is_that_of_a_plain_bootstrap():
    values = np.random.default_rng(1).random(30)
    low, high = Bootstrap().interval(values.tolist(), [f"{n:02d}" for n in range(30)])
    drawn = np.random.default_rng(0).integers(30, size=(2000, 30))
    assert (low, high) == pytest.approx(tuple(np.percentile(values[drawn].mean(axis=1), (2.5, 97.5))))


def test_subjects_with_more_scans_weigh_more():
    # The mean is over scans; a subject is drawn with all of them.
    row = summary([0.0, 1.0, 1.0, 1.0], ["a", "b", "b", "b"])
    assert row["mean"] == 0.75
    assert (row["ci_low"], row["ci_high"]) == (0, 1)


def test_one_subject_has_no_interval():
    row = summary([0.5, 0.7], ["a", "a"])
    assert row["ci_low"] is row["ci_high"] is None
    assert row["sd"] is not None


def test_many_subjects_at_once_stay_small():
    values = np.linspace(0, 1, 2_000)
    low, high = Bootstrap(resamples=600).interval(values.tolist(), [f"{n}" for n in range(2_000)])
    assert low < 0.5 < high


def test_rms_cv():
    found = [*scans([1], ["a"], (10, 30)), *scans([1], ["b"], (10, 10)), *scans([None], ["c"], (0, 0))]
    assert rms_cv(found, ["a"]) == {"a": pytest.approx(np.sqrt((0.5**2 + 0) / 2))}
    assert rms_cv(scans([None], ["c"], (0, 0)), ["a"]) == {"a": None}


@pytest.mark.parametrize("values", [[0.5], [0.0, 0.0], [1e-9, 2e-9], [-3.0, 250.0], [0.1, 0.9, 0.95]])
def test_charts_of_any_values(values):
    points = [Point(f"s{n}", v, marked=False, link=f"scan-{n}") for n, v in enumerate(values)]
    svg = distribution_chart({"a": points, "b": []}, [(200, 0, 0), (0, 0, 200)])
    assert svg.count("<circle") == len(values)
    assert "nan" not in svg
