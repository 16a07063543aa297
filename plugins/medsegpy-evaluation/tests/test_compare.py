"""`compare_results`: what it computes, and what it refuses."""

from __future__ import annotations

import csv
import itertools
import json
import re
import shutil
import subprocess

import numpy as np
import pytest
from click.testing import CliRunner
from hypothesis import given, settings
from hypothesis import strategies as st
from scipy import stats

from medsegpy_core import Config, MetadataCatalog, UnknownNameError
from medsegpy_core.cli import cli
from medsegpy_evaluation import ComparisonError, MissingPolicy, SemSegEvaluator, compare_results
from medsegpy_evaluation.compare import comparison_page
from medsegpy_evaluation.compared_results import EXACT, holm, mean_interval, sign_flip_tests
from medsegpy_evaluation.metrics import MetricOptions, builtin
from medsegpy_evaluation.results import FailedScan, document_of
from medsegpy_evaluation.scores import ScanScores, StructureScores
from medsegpy_evaluation.settings import Binarization, ScoreSettings
from medsegpy_evaluation.statistics import Bootstrap

SHAPE = (12, 10, 6)


def document(values, subjects=None, metrics=("DSC",), categories=("liver",), failed=(), **settings):
    """Return the document of an evaluation; `values` by scan: a number, or one by (category, metric)."""
    scans = []
    for scan, given_value in values.items():
        by_key = given_value if isinstance(given_value, dict) else {}
        structures = tuple(
            StructureScores(
                category,
                "scored",
                {metric: by_key.get((category, metric), given_value if not by_key else None) for metric in metrics},
                (90, 100),
                truth=f"truth of {category} in {scan}",
            )
            for category in categories
        )
        subject = scan if subjects is None else subjects[scan]
        scans.append(ScanScores(scan, subject, None, (1.0, 1.0, 2.0), SHAPE, structures))
    made = ScoreSettings(
        categories=tuple(categories),
        background=False,
        metrics=tuple(map(builtin, metrics)),
        binarization=Binarization("sigmoid", (0.5,) * len(categories)),
        **settings,
    )
    return document_of("abdomen", scans, list(failed), made, Bootstrap(resamples=50))


def of_subjects(values, scans_each=1):
    """Return values by scan and subjects by scan."""
    values = np.reshape(values, (-1, scans_each))
    names = {f"{n:03d}_{k}": (n, k) for n in range(len(values)) for k in range(scans_each)}
    return {scan: float(values[place]) for scan, place in names.items()}, {s: f"p{n}" for s, (n, _) in names.items()}


def compared(a, b, scans_each=1, **options):
    (x, subjects), (y, _) = of_subjects(a, scans_each), of_subjects(b, scans_each)
    return compare_results(document(x, subjects), document(y, subjects), **options)


# --- numbers


def test_by_hand():
    found = compared([0.9, 0.8, 0.7, 0.9, 0.6, 0.8], [0.8, 0.6, 0.7, 0.5, 0.5, 0.6])
    (row,) = found.rows
    assert (row["category"], row["metric"], row["a"], row["b"]) == ("liver", "DSC", "a", "b")
    differences = np.array([0.1, 0.2, 0.0, 0.4, 0.1, 0.2])
    assert row["mean_difference"] == pytest.approx(differences.mean())
    interval = stats.ttest_1samp(differences, 0).confidence_interval()
    assert (row["ci_low"], row["ci_high"]) == pytest.approx((interval.low, interval.high))
    # 2 of the 2^5 signs of differences that are not zero are as extreme.
    assert (row["p"], row["p_holm"], row["test"]) == (2 / 32, 2 / 32, "exact")
    assert (row["n"], row["scans"], row["left_out"]) == (6, 6, 0)
    assert (row["better"], row["a_better"], row["b_better"], row["equal"]) == ("a", 5, 0, 1)
    assert found.truth == "same"


def test_scans_of_a_subject_are_averaged_first():
    # One subject with twenty scans weighs as much as any other.
    values = {f"s{n}": 0.9 for n in range(20)} | {f"t{n}": 0.5 for n in range(5)}
    subjects = {scan: "many" if scan[0] == "s" else scan for scan in values}
    other = dict.fromkeys(values, 0.5)
    (row,) = compare_results(document(values, subjects), document(other, subjects)).rows
    assert (row["n"], row["scans"]) == (6, 25)
    assert row["mean_difference"] == pytest.approx(0.4 / 6)
    assert row["p"] == 1.0


def test_copies_of_scans_change_nothing():
    rng = np.random.default_rng(0)
    a, b = rng.random((2, 8))
    (once,) = compared(a, b).rows
    (often,) = compared(np.repeat(a, 7), np.repeat(b, 7), scans_each=7).rows
    for key in ("n", "mean_difference", "ci_low", "ci_high", "p", "mean_a"):
        assert often[key] == pytest.approx(once[key])


def test_fewer_than_six_subjects_have_an_interval_and_no_p():
    (row,) = compared(np.linspace(0.5, 0.9, 20), np.linspace(0.4, 0.6, 20), scans_each=4).rows
    assert row["n"] == 5
    assert row["p"] is row["p_holm"] is row["test"] is None
    assert "5 subjects" in row["reason"]
    assert "6" in row["reason"]
    assert row["ci_low"] < row["mean_difference"] < row["ci_high"]


def test_one_subject():
    found = compared([0.5], [0.4])
    (row,) = found.rows
    assert row["mean_difference"] == pytest.approx(0.1)
    assert row["ci_low"] is row["ci_high"] is row["p"] is None
    assert [(rank["mean_rank"], rank["ci_low"]) for rank in found.ranks] == [(1, None), (2, None)]


def test_equal_models():
    found = compared(np.full(8, 0.7), np.full(8, 0.7))
    (row,) = found.rows
    assert (row["mean_difference"], row["ci_low"], row["ci_high"], row["p"]) == (0, 0, 0, 1)
    assert (row["better"], row["equal"]) == (None, 8)
    assert [rank["mean_rank"] for rank in found.ranks] == [1.5, 1.5]


def test_differences_below_rounding_are_equal():
    # 0.9 - 0.8 + 0.7 - 0.8 is 1e-17, not 0.
    (row,) = compared([0.9, 0.7] * 6, [0.8, 0.8] * 6, scans_each=2).rows
    assert (row["equal"], row["p"], row["mean_difference"]) == (6, 1, 0)


def test_undefined_values_are_left_out_in_pairs_and_counted():
    a, b = {f"s{n}": 0.9 for n in range(10)}, {f"s{n}": 0.5 for n in range(10)}
    a["s0"] = b["s0"] = None
    a["s1"] = None
    b["s2"] = b["s3"] = None
    found = compare_results(document(a), document(b))
    (row,) = found.rows
    assert (row["n"], row["scans"], row["left_out"], row["only_a"], row["only_b"]) == (6, 6, 4, 2, 1)
    assert row["mean_difference"] == pytest.approx(0.4)
    assert any("only one of two models" in note for note in found.notes)


def test_nothing_defined():
    values = dict.fromkeys(["s0", "s1"])
    found = compare_results(document(values), document(values))
    (row,) = found.rows
    assert row["n"] == 0
    assert row["mean_difference"] is row["ci_low"] is row["p"] is row["mean_a"] is None
    assert found.ranks == []


@pytest.mark.parametrize(("metric", "better"), [("DSC", "b"), ("HD95", "a"), ("RVD", None)])
def test_which_is_better(metric, better):
    a, b = {f"s{n}": 0.1 + n / 100 for n in range(7)}, {f"s{n}": 0.5 for n in range(7)}
    found = compare_results(document(a, metrics=[metric]), document(b, metrics=[metric]))
    (row,) = found.rows
    assert row["better"] == better
    assert (row["a_better"], row["b_better"]) == {"a": (7, 0), "b": (0, 7), None: (None, None)}[better]
    leaders = [rank["model"] for rank in found.ranks if rank["mean_rank"] == 1]
    assert leaders == ([better] if better else [])


@given(st.lists(st.integers(-4, 4), min_size=6, max_size=11))
def test_sign_flips_against_enumeration(numbers):
    # Small integers, so that ties and zeros abound.
    values = np.array(numbers, np.float64) / 10
    signs = np.array(list(itertools.product((-1, 1), repeat=len(values))))
    extreme = np.abs((signs * np.array(numbers)).sum(axis=1)) >= abs(sum(numbers))
    ((p, exact),) = sign_flip_tests(values[None], 10, 0)
    assert exact
    assert p == pytest.approx(extreme.mean(), abs=1e-12)


@settings(max_examples=20, deadline=None)
@given(st.integers(6, 12), st.integers(0, 2**31))
def test_sign_flips_against_scipy(subjects, seed):
    values = np.random.default_rng(seed).normal(0.4, 1, subjects)
    theirs = stats.permutation_test(
        (values,), np.mean, permutation_type="samples", n_resamples=np.inf, vectorized=True, axis=0
    )
    ((p, _),) = sign_flip_tests(values[None], 10, 0)
    assert p == pytest.approx(theirs.pvalue, abs=1e-12)


def test_many_subjects_are_tested_with_random_flips():
    rng = np.random.default_rng(2)
    values = np.zeros((3, EXACT + 8))
    values[0, : EXACT - 2] = rng.normal(0.3, 1, EXACT - 2)
    values[1] = rng.normal(0.2, 1, EXACT + 8)
    values[2] = 1.0
    (few, few_exact), (many, many_exact), (sure, _) = sign_flip_tests(values, 20_000, 0)
    assert (few_exact, many_exact) == (True, False)
    ((as_random, _),) = sign_flip_tests(np.concatenate([values[0], np.full(20, 1e-300)])[None], 20_000, 0)
    assert as_random == pytest.approx(few, abs=0.015)
    assert many == pytest.approx(stats.ttest_1samp(values[1], 0).pvalue, abs=0.02)
    assert sure == 1 / 20_001
    assert sign_flip_tests(values, 20_000, 0) == sign_flip_tests(values, 20_000, 0)


def test_holm_by_hand():
    assert holm([0.01, 0.04, 0.03, 0.005]) == pytest.approx([0.03, 0.06, 0.06, 0.02])
    assert holm([0.9, 0.8]) == [1.0, 1.0]
    assert holm([]) == []


def test_holm_over_the_whole_table():
    rng = np.random.default_rng(4)
    keys = [(c, m) for c in ("liver", "spleen") for m in ("DSC", "HD95", "RVD")]
    names = [f"s{n}" for n in range(12)]
    made = [
        document(
            {scan: {key: float(rng.normal(shift * n / 5, 1)) for n, key in enumerate(keys)} for scan in names},
            metrics=("DSC", "HD95", "RVD"),
            categories=("liver", "spleen"),
        )
        for shift in (0, 1, 2)
    ]
    rows = compare_results(*made).rows
    assert [(r["a"], r["b"]) for r in rows] == [p for p in (("a", "b"), ("a", "c"), ("b", "c")) for _ in range(6)]
    assert [row["p_holm"] for row in rows] == holm([row["p"] for row in rows])
    for first, pair in zip(rows[:6], rows[6:12], strict=True):
        other = next(r for r in rows[12:] if (r["category"], r["metric"]) == (pair["category"], pair["metric"]))
        assert first["mean_difference"] + other["mean_difference"] == pytest.approx(pair["mean_difference"])


def test_ranks_of_three_models():
    names = [f"s{n}" for n in range(10)]
    rng = np.random.default_rng(1)
    keys = [("liver", "DSC"), ("liver", "HD95")]
    # c is best in both; a and b each win one.
    means = {"a": (0.6, 4.0), "b": (0.5, 3.0), "c": (0.9, 1.0)}
    made = [
        document(
            {s: {k: float(m + rng.normal(0, 0.01)) for k, m in zip(keys, values, strict=True)} for s in names},
            metrics=("DSC", "HD95"),
        )
        for values in means.values()
    ]
    ranks = compare_results(*made).ranks
    assert [(r["model"], r["mean_rank"], r["first"], r["cells"]) for r in ranks] == [
        ("a", 2.5, 0, 2),
        ("b", 2.5, 0, 2),
        ("c", 1, 1, 2),
    ]
    assert ranks[2]["ci_low"] == ranks[2]["ci_high"] == 1
    assert ranks == compare_results(*made).ranks


def test_close_models_have_wide_ranks():
    rng = np.random.default_rng(1)
    a, b = compared(*rng.normal(0.7, 0.1, (2, 10))).ranks
    assert (a["ci_low"], a["ci_high"]) == (1, 2)
    assert 0 < a["first"] < 1
    assert a["first"] + b["first"] == pytest.approx(1)


# --- folds


def test_folds_are_pooled_by_subject():
    rng = np.random.default_rng(3)
    (x, subjects), (y, _) = of_subjects(rng.random(24), 2), of_subjects(rng.random(24), 2)
    whole = compare_results(document(x, subjects), document(y, subjects))

    def part(values, keep):
        return document({scan: value for scan, value in values.items() if keep(scan)}, subjects)

    folds = [part(x, lambda s: s < "004"), part(x, lambda s: "004" <= s < "009"), part(x, lambda s: s >= "009")]
    pooled = compare_results(folds, document(y, subjects))
    assert pooled.rows == whole.rows
    assert pooled.ranks == whole.ranks
    assert len(pooled.models[0]["results"]) == 3


def test_a_scan_in_two_folds_is_refused():
    fold = document({"s1": 0.5, "s2": 0.5})
    with pytest.raises(ComparisonError, match=r"1 scan \('s2'\).*two folds of 'a'"):
        compare_results([fold, document({"s2": 0.5, "s3": 0.5})], fold)


def test_a_fold_given_twice_is_refused(tmp_path):
    (tmp_path / "metrics.json").write_text(json.dumps(document({"s1": 0.5})))
    with pytest.raises(ComparisonError, match="given twice"):
        compare_results([tmp_path, tmp_path], tmp_path)


# --- refusals


def refused(a, b, *words, **options):
    with pytest.raises(ComparisonError) as caught:
        compare_results(a, b, **options)
    for word in words:
        assert word in str(caught.value)
    assert isinstance(caught.value, ValueError)


def test_different_scans():
    refused(
        document({"s1": 0.5, "s2": 0.5, "s3": 0.4}),
        document({"s1": 0.5, "s4": 0.5}),
        "2 scans ('s2', 's3') in 'a', not in 'b'",
        "1 scan ('s4') in 'b', not in 'a'",
    )


def test_scans_that_failed_in_one_model_only():
    failed = [FailedScan("s2", ("it is broken",))]
    refused(
        document({"s1": 0.5, "s2": 0.5}), document({"s1": 0.5}, failed=failed), "('s2') in 'a'", "s2", "it is broken"
    )
    both = document({"s1": 0.5}, failed=failed)
    assert any("1 scan could not be scored" in note for note in compare_results(both, both).notes)


@pytest.mark.parametrize(
    ("key", "value", "words"),
    [
        ("truth", "another", "fingerprint"),
        ("true_voxels", 101, "true voxels"),
        ("unknown_voxels", 3, "unknown voxels"),
    ],
)
def test_different_truths(key, value, words):
    a, b = document({"s1": 0.5, "s2": 0.6}), document({"s1": 0.5, "s2": 0.6})
    b["scans"][1]["structures"][0][key] = value
    refused(a, b, "scan 's2'", words, "'liver'")


@pytest.mark.parametrize(
    ("key", "value"), [("subject", "someone"), ("shape", [12, 10, 7]), ("spacing", [1.0, 1.0, 2.1])]
)
def test_different_facts_of_a_scan(key, value):
    a, b = document({"s1": 0.5, "s2": 0.6}), document({"s1": 0.5, "s2": 0.6})
    b["scans"][0][key] = value
    refused(a, b, "scan 's1'", key)


def test_results_of_older_versions_are_never_certified():
    a, b = document({"s1": 0.5, "s2": 0.6}), document({"s1": 0.5, "s2": 0.6})
    for scan in b["scans"]:
        del scan["structures"][0]["truth"]
    found = compare_results(a, b)
    assert found.truth == "unknown"
    assert any("unknown" in note for note in found.notes)
    b["scans"][0]["structures"][0]["true_voxels"] += 1
    refused(a, b, "true voxels")
    b["scans"][0]["structures"][0]["true_voxels"] -= 1
    b["dataset"] = "elsewhere"
    refused(a, b, "the dataset is 'abdomen' in 'a', 'elsewhere' in 'b'")


def test_a_dataset_may_have_two_names_if_the_masks_are_the_same():
    a, b = document({"s1": 0.5}), document({"s1": 0.5})
    b["dataset"] = "a copy"
    assert compare_results(a, b).truth == "same"


def test_different_policies():
    policy = MissingPolicy().changed({"missed": {"HD95": 100.0}})
    refused(document({"s1": 0.5}), document({"s1": 0.5}, policy=policy), "policy.missed.HD95", "'diagonal'", "100.0")


def test_different_tolerances():
    a, b = (document({"s1": 0.5}, metrics=["DSC", "NSD"], options=MetricOptions(tolerance=t)) for t in (1.0, 2.0))
    refused(a, b, "nsd_tolerance is 1.0", "2.0")


@pytest.mark.parametrize(
    ("metric", "key", "values"),
    [
        ("LesionF1", "lesion_threshold", (0.5, 0.1)),
        ("LesionDSC", "lesion_connectivity", ("auto", "full")),
        ("BoundaryIoU", "boundary_width", (2.0, 1.0)),
        ("ECE", "calibration_bins", (15, 10)),
    ],
)
def test_options_of_metrics_must_agree_for_these_metrics_only(metric, key, values):
    a, b = (document({"s1": 0.5}, metrics=["DSC", metric], options=MetricOptions(**{key: v})) for v in values)
    refused(a, b, key)
    assert compare_results(a, b, metrics=["DSC"]).settings[key] == values[0]
    assert compare_results(a, b, metrics=["DSC"]).rows


def test_different_definitions():
    a, b = document({"s1": 0.5}), document({"s1": 0.5})
    b["settings"]["metrics"][0]["from"] = "another-plugin 2.0"
    refused(a, b, "metric.DSC.from", "another-plugin 2.0")
    b["settings"]["metrics"][0]["from"] = "medsegpy-evaluation"
    b["settings"]["something_new"] = 3
    refused(a, b, "something_new is 'nothing'")


def test_models_may_have_their_own_thresholds():
    a, b = document({"s1": 0.5}), document({"s1": 0.5})
    b["settings"] |= {"thresholds": {"liver": 0.3}, "background_channel": True}
    assert [m["thresholds"] for m in compare_results(a, b).models] == [[{"liver": 0.5}], [{"liver": 0.3}]]


def test_other_metrics_and_categories():
    a = document({"s1": 0.5}, metrics=["DSC", "HD95"], categories=["liver", "spleen"])
    b = document({"s1": 0.5}, metrics=["DSC", "VOE"], categories=["liver"])
    refused(a, b, "'spleen' is not in", "categories=['liver']")
    refused(a, b, "'HD95' is not in", "'VOE' is not in", "metrics=['DSC']", categories=["liver"])
    (row,) = compare_results(a, b, categories=["liver"], metrics=["DSC"]).rows
    assert (row["category"], row["metric"]) == ("liver", "DSC")
    with pytest.raises(UnknownNameError, match="Did you mean 'spleen'"):
        compare_results(a, b, categories=["spleeen"])


def test_true_volumes_are_not_compared_unless_asked_for():
    a = document({"s1": 0.5}, metrics=["DSC", "TrueVolume"])
    assert [row["metric"] for row in compare_results(a, a).rows] == ["DSC"]
    assert [row["metric"] for row in compare_results(a, a, metrics=["TrueVolume"]).rows] == ["TrueVolume"]


def broken(change):
    made = document({"s1": 0.5, "s2": 0.5})
    change(made)
    return made


@pytest.mark.parametrize(
    ("change", "words"),
    [
        (lambda d: d.pop("scans"), "lacks 'scans'"),
        (lambda d: d.pop("policy"), "lacks 'policy'"),
        (lambda d: d["metrics"].pop(), "1 scan without 'liver', DSC"),
        (lambda d: d["metrics"].append(d["metrics"][0]), "a row too many"),
        (lambda d: d["metrics"][0].update(value=float("nan")), "nan"),
        (lambda d: d["metrics"][0].update(value="0.5"), "'0.5'"),
        (lambda d: d["metrics"][0].update(value=True), "True"),
        (lambda d: d["scans"].append(d["scans"][0]), "in it twice"),
        (lambda d: d["scans"][0]["structures"].clear(), "other categories"),
        (lambda d: d.update(settings=3), "not a result"),
    ],
)
def test_what_is_no_result(change, words):
    refused(document({"s1": 0.5, "s2": 0.5}), broken(change), "not a result of an evaluation", words)


def test_folders_that_hold_no_results(tmp_path):
    good = document({"s1": 0.5})
    refused(tmp_path, good, "metrics.json cannot be read", names=["x", "y"])
    (tmp_path / "metrics.json").write_text("{")
    refused(tmp_path, good, "no JSON")
    (tmp_path / "metrics.json").write_text("[]")
    refused(tmp_path, good, "not a result")
    refused([], good, "its list is empty")
    refused(document({}, failed=[FailedScan("s", ("x",))]), document({}, failed=[FailedScan("s", ("x",))]), "no scan")


@pytest.mark.parametrize("names", [["x"], ["x", "x"], ["x", ""], ["x", "y", "z"]])
def test_names_that_do_not_fit(names):
    refused(document({"s1": 0.5}), document({"s1": 0.5}), "name", names=names)


# --- from masks to files


@pytest.fixture
def dataset():
    name = "compare_test"
    MetadataCatalog.get(name).set(
        scan_root="somewhere",
        category_ids=[0, 1],
        categories=["dog", "<b>cat</b>"],
        category_id_to_contiguous_id={0: 0, 1: 1},
        evaluator_type="SemSegEvaluator",
        spacing=(0.5, 1.0, 2.0),
    )
    yield name
    MetadataCatalog.remove(name)


def masks(number):
    truth = np.zeros((*SHAPE, 2), np.uint8)
    low = np.random.default_rng(number).integers(1, 4, 2)
    for channel in range(2):
        truth[low[0] : low[0] + 5, low[1] : low[1] + 4, 1:4, channel] = 1
    return truth


def evaluated(dataset, folder, shift, scans=8, change=None, order=None, **options):
    cfg = Config(TEST_METRICS=["DSC", "HD95", "TrueVolume"], **options)
    evaluator = SemSegEvaluator(dataset, cfg, folder, pictures=False)
    for number in range(scans):
        truth = masks(number)
        if change is not None:
            change(number, truth)
        pred = np.roll(truth == 1, shift if number % 2 else 1, axis=0).astype(np.float32)
        truth, pred = truth[..., order or [0, 1]], pred[..., order or [0, 1]]
        inputs = {"scan_id": f"s{number}", "subject_id": f"p{number}"}
        evaluator.process([inputs], [{"y_true": truth, "y_pred": pred}])
    return evaluator.evaluate()


def test_folders_and_documents_are_the_same(dataset, tmp_path):
    one = evaluated(dataset, tmp_path / "unet", 1)
    two = evaluated(dataset, tmp_path / "vnet", 2)
    found = compare_results(tmp_path / "unet", str(tmp_path / "vnet" / "metrics.json"), names=["unet", "vnet"])
    assert found.rows == compare_results(one, two, names=["unet", "vnet"]).rows
    assert found.truth == "same"
    assert {row["better"] for row in found.rows} == {"unet"}
    assert {(row["a_better"], row["equal"]) for row in found.rows} == {(4, 4)}
    assert [m["name"] for m in compare_results(tmp_path / "unet", tmp_path / "vnet").models] == ["unet", "vnet"]


def test_the_truth_does_not_depend_on_the_prediction_or_on_the_order_of_categories(dataset):
    one, other = evaluated(dataset, None, 1), evaluated(dataset, None, 3, order=[1, 0], CATEGORIES=[1, 0])

    def marks(document):
        return {(s["scan"], c["category"]): c["truth"] for s in document["scans"] for c in s["structures"]}

    assert marks(one) == marks(other)
    assert all(marks(one).values())
    assert compare_results(one, other, categories=["dog"]).truth == "same"


def moved(number, truth):
    if number == 3:
        truth[...] = np.roll(truth, 1, axis=1)  # as many voxels, elsewhere


def one_voxel(number, truth):
    if number == 3:
        first = tuple(np.argwhere(truth[..., 0])[0])
        truth[(*first, 0)] = 0
        truth[0, 0, 0, 0] = 1


def hidden(voxel):
    def change(number, truth):
        if number == 3:
            truth[(*voxel, 0)] = 255

    return change


@pytest.mark.parametrize("change", [moved, one_voxel])
def test_other_masks_of_the_same_volume_are_refused(dataset, change):
    refused(evaluated(dataset, None, 1), evaluated(dataset, None, 1, change=change), "scan 's3'", "true mask of 'dog'")


def test_other_unknown_voxels_are_refused(dataset):
    one, other = (evaluated(dataset, None, 1, change=hidden(voxel)) for voxel in ((0, 0, 0), (11, 9, 5)))
    refused(one, other, "scan 's3'", "true mask of 'dog'")
    assert compare_results(one, one).truth == "same"


def test_files(dataset, tmp_path):
    evaluated(dataset, tmp_path / "unet", 1)
    evaluated(dataset, tmp_path / "vnet", 2)
    names = ["=cmd()", "v\x1bnet"]
    found = compare_results(tmp_path / "unet", tmp_path / "vnet", names=names, output_folder=tmp_path / "out")
    with (tmp_path / "out" / "compare.csv").open(newline="") as file:
        rows = list(csv.DictReader(file))
    assert [row["a"] for row in rows] == ["'=cmd()"] * 4
    assert [row["b"] for row in rows] == ["v\\x1bnet"] * 4
    assert [float(row["mean_difference"]) for row in rows] == [row["mean_difference"] for row in found.rows]
    document = json.loads((tmp_path / "out" / "compare.json").read_text())
    assert document == json.loads(json.dumps(found.as_dict()))
    assert document["settings"]["test"]["seed"] == 0
    assert document["settings"]["correction"] == {"method": "Holm", "tests": 4}
    assert document["rows"] == found.rows
    assert len(document["subjects"]) == 4 * 8
    assert "medsegpy-evaluation" in document["versions"]


def test_the_page(dataset, tmp_path):
    evaluated(dataset, tmp_path / "unet", 1)
    evaluated(dataset, tmp_path / "vnet", 2)
    found = compare_results(tmp_path / "unet", tmp_path / "vnet", output_folder=tmp_path)
    page = (tmp_path / "compare.html").read_text()
    assert not re.search(r"(src|href|url)\s*[=(]", page)
    assert page.count("<script") == 1
    assert page.count("<svg") == 2
    # A dot per subject and category, and one for each mean.
    assert page.count("<circle") == 2 * 2 * (8 + 1)
    assert "&lt;b&gt;cat&lt;/b&gt;" in page
    assert "unet in 4 of 8, vnet in 0" in page
    assert f'data-value="{found.rows[0]["mean_difference"]!r}"' in page
    assert "2 |P ∩ T| / (|P| + |T|)" in page
    assert "the diagonal of the scan in mm" in page
    assert "Right of zero unet is better" in page  # DSC
    assert "Right of zero vnet is better" in page  # HD95


@pytest.mark.skipif(shutil.which("chromium") is None, reason="Chromium is not installed")
def test_the_page_in_a_browser(tmp_path):
    values = {f"s{n}": 0.5 + n / 100 for n in range(7)}
    compare_results(document(values), document(values), output_folder=tmp_path)
    options = ["--headless", "--no-sandbox", "--disable-gpu", f"--user-data-dir={tmp_path / 'profile'}", "--dump-dom"]
    command = ["chromium", *options, (tmp_path / "compare.html").as_uri()]
    shown = subprocess.run(command, check=False, capture_output=True, text=True, timeout=300)
    # The script ran, which the page's own policy allows by its hash.
    assert '<button type="button">category</button>' in shown.stdout, shown.stderr


def test_the_page_of_three_models_without_values():
    nothing = document(dict.fromkeys(["s0", "s1"]), metrics=["RVD"])
    page = comparison_page(compare_results(nothing, nothing, nothing))
    assert "No difference is defined." in page
    assert "No p-value for 0 subjects" in page
    assert "a - c" in page


# --- the command


def command(*arguments):
    return CliRunner().invoke(cli, ["compare", *map(str, arguments)])


def saved(folder, values, subjects=None, **options):
    folder.mkdir(parents=True)
    (folder / "metrics.json").write_text(json.dumps(document(values, subjects, **options)))
    return folder


def test_command(tmp_path):
    values = {f"s{n}": 0.5 + n / 100 for n in range(7)}
    unet = saved(tmp_path / "unet", {scan: value + 0.1 for scan, value in values.items()})
    fold_1 = saved(tmp_path / "v, net=1", {s: v for s, v in values.items() if s < "s4"})
    fold_2 = saved(tmp_path / "vnet2", {s: v for s, v in values.items() if s >= "s4"})
    whole = saved(tmp_path / "vnet", values)
    done = command(unet, whole, "--out", tmp_path / "out")
    assert done.exit_code == 0, done.output
    assert "unet - vnet  liver     DSC" in done.output
    assert "unet in 7 of 7, vnet in 0" in done.output
    assert sorted(path.name for path in (tmp_path / "out").iterdir()) == ["compare.csv", "compare.html", "compare.json"]
    printed = command(unet, f"folds={tmp_path / 'vnet2'}", "--json")
    assert (printed.exit_code, "4 scans" in printed.output) == (1, True)
    two = saved(tmp_path / "vnet1", {s: v for s, v in values.items() if s < "s4"})
    printed = json.loads(command(unet, f"folds={two},{fold_2}", "--json").stdout)
    assert [model["name"] for model in printed["models"]] == ["unet", "folds"]
    assert printed["rows"][0]["mean_difference"] == pytest.approx(0.1)
    assert printed["rows"][0]["p"] == 2 / 2**7
    odd = command(fold_1, f"x={fold_1}", "--json")
    assert odd.exit_code == 0, odd.output
    named = command(unet, whole, whole, "--names", "x,y,z", "--metrics", "DSC", "--categories", "liver", "--json")
    assert [row["b"] for row in json.loads(named.stdout)["rows"]] == ["y", "z", "z"]


def test_exit_statuses(tmp_path):
    one, other = saved(tmp_path / "a", {"s1": 0.5}), saved(tmp_path / "b", {"s2": 0.5})
    assert command(one).exit_code == 2
    assert command().exit_code == 2
    assert command(one, "=").exit_code == 2
    assert command(one, "x=").exit_code == 2
    refusal = command(one, other)
    assert refusal.exit_code == 1
    assert "1 scan ('s1') in 'a', not in 'b'" in refusal.output
    assert command(one, tmp_path / "nothing").exit_code == 1
    assert command(one, one, "--names", "x,y", "--metrics", "dice").exit_code == 1


# --- simulation


def p_values(runs, subjects, scans_each, seed):
    """Return p-values of ours and of Wilcoxon over scans, without a true difference, scans of a subject correlated."""
    rng = np.random.default_rng(seed)
    of_subject = rng.normal(0, 0.05, (runs, subjects, 1))
    differences = of_subject + rng.normal(0, 0.05, (runs, subjects, scans_each))
    ours = [p for p, _ in sign_flip_tests(differences.mean(axis=2), 1, 0)]
    theirs = stats.wilcoxon(differences.reshape(runs, -1), axis=1).pvalue
    return np.array(ours), np.asarray(theirs)


@pytest.mark.slow
def test_without_a_difference_few_runs_are_significant():
    ours, theirs = p_values(1000, 20, 4, seed=1)
    assert 0.04 <= (ours <= 0.05).mean() <= 0.06
    assert (theirs <= 0.05).mean() > 0.15


@pytest.mark.slow
@pytest.mark.parametrize("subjects", [4, 6, 20])
def test_the_interval_covers_the_mean(subjects):
    rng = np.random.default_rng(5)
    intervals = [mean_interval(rng.normal(0.1, 0.05, subjects)) for _ in range(2000)]
    covered = np.mean([low <= 0.1 <= high for low, high in intervals])
    assert 0.94 <= covered <= 0.96
