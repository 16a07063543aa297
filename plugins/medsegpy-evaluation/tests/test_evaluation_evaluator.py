"""`SemSegEvaluator`: what it takes, what it refuses, and what it writes."""

from __future__ import annotations

import csv
import doctest
import importlib
import json
import math
import os
import re
import subprocess
import sys
from concurrent.futures import ProcessPoolExecutor, ThreadPoolExecutor

import h5py
import numpy as np
import pytest

from medsegpy_core import (
    CategoryError,
    Config,
    ConfigError,
    MetadataCatalog,
    MetadataError,
    MetricSpec,
    UnknownNameError,
    hookimpl,
)
from medsegpy_core.plugins.manager import PluginManager, default_manager, use_manager
from medsegpy_evaluation import MissingPolicy, SemSegEvaluator, build_evaluator, inference_on_dataset, score_masks
from medsegpy_evaluation.command import overview

ALL = ["DSC", "VOE", "CV", "ASSD", "HD95", "HD", "NSD", "Precision", "Recall", "RVD"]
SHAPE = (16, 14, 10)


@pytest.fixture
def dataset():
    name = "evaluation_test"
    MetadataCatalog.get(name).set(
        scan_root="somewhere",
        category_ids=[0, 1, (0, 2)],
        categories=["dog", "human", "pet"],
        category_id_to_contiguous_id={0: 0, 1: 1, (0, 2): 2},
        evaluator_type="SemSegEvaluator",
        spacing=(0.5, 1.0, 2.0),
    )
    yield name
    MetadataCatalog.remove(name)


def masks(seed, channels=3):
    rng = np.random.default_rng(seed)
    y_true = np.zeros((*SHAPE, channels), np.uint8)
    for c in range(channels):
        low = rng.integers(1, 5, 3)
        y_true[(*(slice(a, a + 5) for a in low), c)] = 1
    y_pred = np.clip(np.roll(y_true, 1, axis=0) * 0.8 + rng.random(y_true.shape) * 0.1, 0, 1).astype(np.float32)
    return y_true, y_pred


def scan(number, **inputs):
    y_true, y_pred = masks(number)
    given = {"scan_id": f"{number:07d}_V00", "subject_id": number // 2, "x": np.ones(SHAPE, np.float32)}
    return given | inputs, {"y_true": y_true, "y_pred": y_pred, "time_elapsed": 0.1}


def evaluated(dataset, scans, folder=None, cfg=None, **options):
    evaluator = SemSegEvaluator(dataset, cfg or Config(TEST_METRICS=ALL), folder, **options)
    for inputs, outputs in scans:
        evaluator.process([inputs], [outputs])
    return evaluator.evaluate()


def table(path):
    with path.open(newline="") as file:
        return list(csv.DictReader(file))


def values(document, scan_id, category):
    return {r["metric"]: r["value"] for r in document["metrics"] if (r["scan"], r["category"]) == (scan_id, category)}


def test_values_are_those_of_the_metric_functions(dataset):
    document = evaluated(dataset, [scan(1)])
    y_true, y_pred = masks(1)
    for c, name in enumerate(("dog", "human", "pet")):
        expected = score_masks(y_pred[..., c] > 0.5, y_true[..., c] > 0, (0.5, 1, 2), ALL)
        assert values(document, "0000001_V00", name) == expected


def test_files(dataset, tmp_path):
    scans = [scan(number) for number in range(4)]
    scans[2][1]["y_pred"][..., 0] = 0  # missed
    scans[3][1]["y_true"][..., 0] = 0  # hallucinated
    for key in ("y_true", "y_pred"):
        scans[1][1][key][..., 1] = 0
    document = evaluated(dataset, scans, tmp_path / "out")
    long = table(tmp_path / "out" / "metrics.csv")
    assert list(long[0]) == ["scan", "subject", "category", "metric", "value"]
    assert len(long) == 4 * 3 * len(ALL)
    assert [r["value"] for r in long] == ["" if r["value"] is None else repr(r["value"]) for r in document["metrics"]]
    assert {(r["scan"], r["subject"]) for r in long} == {(f"{n:07d}_V00", str(n // 2)) for n in range(4)}
    short = table(tmp_path / "out" / "summary.csv")
    columns = "category metric n both_empty missed hallucinated mean sd median ci_low ci_high"
    assert list(short[0]) == columns.split()
    assert [(r["category"], r["metric"]) for r in short] == [(c, m) for c in ("dog", "human", "pet") for m in ALL]
    dog = next(r for r in short if (r["category"], r["metric"]) == ("dog", "Recall"))
    assert [dog[k] for k in ("n", "both_empty", "missed", "hallucinated")] == ["3", "0", "1", "1"]
    human = next(r for r in short if (r["category"], r["metric"]) == ("human", "DSC"))
    assert [human[k] for k in ("n", "both_empty", "missed", "hallucinated")] == ["3", "1", "0", "0"]
    kept = json.loads((tmp_path / "out" / "metrics.json").read_text())
    assert kept == json.loads(json.dumps(document))
    assert kept["settings"]["bootstrap"] == {
        "resamples": 2000,
        "seed": 0,
        "level": 0.95,
        "unit": "subject",
        "method": "percentile",
    }
    assert kept["policy"]["missed"]["HD95"] == "diagonal"
    assert kept["dataset"] == dataset
    assert {"medsegpy-core", "medsegpy-evaluation", "numpy", "scipy", "python"} <= set(kept["versions"])
    # Nothing half-written is left behind.
    assert sorted(p.name for p in (tmp_path / "out").iterdir()) == [
        "metrics.csv",
        "metrics.json",
        "report.html",
        "summary.csv",
    ]


def test_the_report_stands_alone(dataset, tmp_path):
    scans = [scan(number) for number in range(3)]
    scans[2][0]["scan_id"] = "<worst> & last"
    scans[2][1]["y_pred"][:] = 0
    evaluated(dataset, scans, tmp_path)
    report = (tmp_path / "report.html").read_text()
    assert not re.search(r'(src|href)="(?!data:|#)', report)
    assert report.count("<script") == 1
    assert report.count("data:image/png;base64,") == 3
    assert "&lt;worst&gt; &amp; last" in report
    assert "<worst>" not in report
    captions = re.findall(r"<figcaption><a [^>]*>(.*?)</a>:", report)
    assert captions[0] == "&lt;worst&gt; &amp; last"
    # One chart a metric, each with a dot per value that is defined: 3 scans, 3 categories.
    assert report.count("<svg") == len(ALL)
    assert report.count('fill="#f07800"') == 3 * len(ALL)


def test_missing_structures_cost(dataset):
    both_there, missed, invented = scan(0), scan(1), scan(2)
    missed[1]["y_pred"][:] = 0
    invented[1]["y_true"][:] = 0
    document = evaluated(dataset, [both_there, missed, invented])
    diagonal = math.hypot(16 * 0.5, 14 * 1.0, 10 * 2.0)
    lost = values(document, "0000001_V00", "pet")
    assert lost == dict.fromkeys(("DSC", "NSD", "Precision", "Recall"), 0) | {"VOE": 1, "CV": 1, "RVD": -1} | {
        n: pytest.approx(diagonal) for n in ("ASSD", "HD95", "HD")
    }
    found = values(document, "0000002_V00", "pet")
    assert found == lost | {"Recall": None, "RVD": None}
    summary = {(r["category"], r["metric"]): r for r in document["summary"]}
    assert summary["pet", "DSC"]["n"] == 3
    assert summary["pet", "Recall"]["n"] == 2


@pytest.mark.parametrize("dtype", [np.uint8, np.float32, np.int16])
def test_unknown_voxels_are_left_out_and_counted(dataset, tmp_path, dtype):
    """As if truth and prediction had background there."""
    y_true, y_pred = masks(1)
    unknown = np.random.default_rng(1).random(y_true.shape) < (0.3, 0.0, 0.01)
    marked = np.where(unknown, 255 if dtype == np.uint8 else -1, y_true).astype(dtype)
    before = marked.copy()
    found = evaluated(dataset, [({"scan_id": "s"}, {"y_true": marked, "y_pred": y_pred})], tmp_path)
    np.testing.assert_array_equal(marked, before)
    without = {"y_true": np.where(unknown, 0, y_true), "y_pred": np.where(unknown, 0, y_pred)}
    assert found["metrics"] == evaluated(dataset, [({"scan_id": "s"}, without)])["metrics"]
    assert [s["unknown_voxels"] for s in found["scans"][0]["structures"]] == unknown.sum(axis=(0, 1, 2)).tolist()
    line = f"{unknown.sum()} voxels of 1 scan (each category counted) unknown, left out of all metrics."
    assert line in (tmp_path / "report.html").read_text()
    assert line in overview(found)
    for wrong in (254, 2, 0.5):
        bad = marked.astype(np.float32)
        bad[0, 0, 0, 0] = wrong
        with pytest.raises(ValueError, match="y_true has values"):
            evaluated(dataset, [({"scan_id": "s"}, {"y_true": bad, "y_pred": y_pred})])


def test_a_category_that_is_unknown_throughout_is_undefined(dataset, tmp_path):
    scans = [scan(number) for number in range(3)]
    scans[1][1]["y_true"][..., 0] = 255
    scans[2][1]["y_true"][:] = 255
    document = evaluated(dataset, scans, tmp_path)
    assert values(document, "0000001_V00", "dog") == dict.fromkeys(ALL)
    assert values(document, "0000001_V00", "human") == values(evaluated(dataset, [scan(1)]), "0000001_V00", "human")
    rows = {row["category"]: row for row in document["summary"] if row["metric"] == "DSC"}
    counts = {name: [row[k] for k in ("n", "both_empty", "missed", "unknown")] for name, row in rows.items()}
    assert counts == {"dog": [1, 0, 0, 2], "human": [2, 0, 0, 1], "pet": [2, 0, 0, 1]}
    assert "4 structures unknown throughout, undefined." in "".join(overview(document))
    assert [row["value"] for row in table(tmp_path / "metrics.csv") if row["scan"] == "0000002_V00"] == [""] * 3 * len(
        ALL
    )
    clean = evaluated(dataset, [scan(1)], tmp_path / "clean")
    assert "nknown voxels" not in (tmp_path / "clean" / "report.html").read_text()
    assert len(overview(clean)) == 1


def test_a_structure_ends_at_unknown_voxels_as_at_the_border_of_the_scan(dataset):
    y_true, y_pred = np.zeros((2, 16, 14, 10, 3))
    y_true[4:12, 4:10, 2:8, 0] = y_pred[4:12, 4:10, 2:9, 0] = 1
    y_true = y_true.astype(np.uint8)
    y_true[8:, ..., 0] = 255
    found = evaluated(dataset, [({"scan_id": "s"}, {"y_true": y_true, "y_pred": y_pred})])
    cropped = {"y_true": y_true[:8], "y_pred": y_pred[:8]}
    expected = evaluated(dataset, [({"scan_id": "s"}, cropped)])
    assert values(found, "s", "dog") == values(expected, "s", "dog")
    assert values(found, "s", "dog")["HD"] == 2


def test_scans_of_one_slice_are_2d(dataset):
    y_true, y_pred = (array[:, :, 4:5] for array in masks(1))
    y_pred[..., 1] = 0
    shapes = {}

    class Plugin:
        @hookimpl
        def medsegpy_register_metrics(self):
            return [MetricSpec("Shape", lambda pred, truth, spacing: shapes.setdefault(pred.shape, len(spacing)))]

    manager = PluginManager([])
    manager.register_plugin(Plugin(), "shapes")
    with use_manager(manager):
        cfg = Config(TEST_METRICS=[*ALL, "Shape"])
        document = evaluated(dataset, [({"scan_id": "s"}, {"y_true": y_true, "y_pred": y_pred})], cfg=cfg)
    for c, name in enumerate(("dog", "human", "pet")):
        expected = score_masks(y_pred[:, :, 0, c] > 0.5, y_true[:, :, 0, c] > 0, (0.5, 1), ALL)
        found = values(document, "s", name)
        assert {key: found[key] for key in ALL if "Volume" not in key} == {
            key: value for key, value in expected.items() if "Volume" not in key
        }
    assert values(document, "s", "human")["HD"] == pytest.approx(math.hypot(16 * 0.5, 14))
    # Metrics of other plugins get the arrays as they are.
    assert shapes == {(16, 14, 1): 3}


def test_scan_spacing_overrides(dataset):
    document = evaluated(dataset, [scan(1, scan_spacing=(1.0, 1.0, 1.0))])
    y_true, y_pred = masks(1)
    expected = score_masks(y_pred[..., 0] > 0.5, y_true[..., 0] > 0, (1, 1, 1), ["ASSD"])
    assert values(document, "0000001_V00", "dog")["ASSD"] == expected["ASSD"]
    assert document["scans"][0]["spacing"] == [1, 1, 1]


def test_only_scan_id_is_needed(dataset):
    y_true, y_pred = masks(1)
    document = evaluated(dataset, [({"scan_id": "knee"}, {"y_true": y_true, "y_pred": y_pred})])
    assert {row["subject"] for row in document["metrics"]} == {"knee"}
    assert document["time_points"] == []


def test_categories_pick_and_order(dataset):
    cfg = Config(TEST_METRICS=["DSC"], CATEGORIES=[[0, 2], 1])
    y_true, y_pred = masks(1, channels=2)
    document = evaluated(dataset, [({"scan_id": "s"}, {"y_true": y_true, "y_pred": y_pred})], cfg=cfg)
    assert [row["category"] for row in document["metrics"]] == ["pet", "human"]
    with pytest.raises(CategoryError, match="0: dog, 1: human"):
        SemSegEvaluator(dataset, Config(CATEGORIES=[4]))


def test_the_background_is_no_structure(dataset):
    cfg = Config(TEST_METRICS=["DSC", "HD"], INCLUDE_BACKGROUND=True)
    y_true, y_pred = masks(1)
    with_background = [np.concatenate((1 - a.max(axis=-1, keepdims=True), a), axis=-1) for a in (y_true, y_pred)]
    pair = ({"scan_id": "s"}, dict(zip(("y_true", "y_pred"), with_background, strict=True)))
    document = evaluated(dataset, [pair], cfg=cfg)
    assert [row["category"] for row in document["summary"]] == ["dog", "dog", "human", "human", "pet", "pet"]
    cfg.INCLUDE_BACKGROUND = False
    plain = evaluated(dataset, [({"scan_id": "s"}, {"y_true": y_true, "y_pred": y_pred})], cfg=cfg)
    assert document["metrics"] == plain["metrics"]


def test_softmax_takes_the_largest_channel(dataset):
    cfg = Config(TEST_METRICS=["DSC"], LOSS=("ce", "softmax"), INCLUDE_BACKGROUND=True)
    rng = np.random.default_rng(3)
    # Rounded, so that there are ties: the first channel wins, as with argmax.
    y_pred = np.round(rng.dirichlet(np.ones(4), SHAPE), 1).astype(np.float32)
    y_true = (np.arange(4) == rng.integers(0, 4, (*SHAPE, 1))).astype(np.uint8)
    document = evaluated(dataset, [({"scan_id": "s"}, {"y_true": y_true, "y_pred": y_pred})], cfg=cfg)
    labels = np.argmax(y_pred, axis=-1)
    for c, name in enumerate(("dog", "human", "pet"), 1):
        pred, truth = labels == c, y_true[..., c] > 0
        expected = 2 * (pred & truth).sum() / (pred.sum() + truth.sum())
        assert values(document, "s", name)["DSC"] == pytest.approx(expected)
    with pytest.raises(ConfigError, match="INCLUDE_BACKGROUND"):
        SemSegEvaluator(dataset, Config(LOSS=("ce", "softmax")))


def test_above_one_half_and_thresholds_by_name(dataset):
    y_true, _ = masks(1)
    y_pred = np.where(y_true, 0.5, 0.2).astype(np.float32)
    outputs = {"y_true": y_true, "y_pred": y_pred}
    cfg = Config(TEST_METRICS=["DSC"])
    assert values(evaluated(dataset, [({"scan_id": "s"}, outputs)], cfg=cfg), "s", "dog")["DSC"] == 0
    document = evaluated(dataset, [({"scan_id": "s"}, outputs)], cfg=cfg, thresholds={"dog": 0.4})
    assert [values(document, "s", name)["DSC"] for name in ("dog", "human")] == [1, 0]
    assert document["settings"]["thresholds"] == {"dog": 0.4, "human": 0.5, "pet": 0.5}
    with pytest.raises(ConfigError, match="Did you mean 'dog'"):
        SemSegEvaluator(dataset, cfg, thresholds={"dogs": 0.4})


@pytest.mark.parametrize("dtype", [bool, np.uint8, np.float64])
def test_labels_instead_of_probabilities(dataset, dtype):
    y_true, y_pred = masks(1)
    expected = evaluated(dataset, [scan(1)])
    outputs = {"y_true": y_true.astype(dtype), "y_pred": (y_pred > 0.5).astype(dtype)}
    found = evaluated(dataset, [(scan(1)[0], outputs)])
    assert found["metrics"] == expected["metrics"]


@pytest.mark.parametrize(
    ("change", "said"),
    [
        (lambda i, o: o.update(y_true=None), "not labelled"),
        (lambda i, o: o.update(y_pred=o["y_pred"][1:]), "shape"),
        (lambda i, o: o.update(y_pred=o["y_pred"][..., :2], y_true=o["y_true"][..., :2]), "3 channels"),
        (lambda i, o: o["y_pred"].__setitem__((3, 3, 3, 0), np.nan), "NaN"),
        (lambda i, o: o["y_pred"].__setitem__((3, 3, 3, 0), np.inf), "inf"),
        (lambda i, o: o["y_pred"].__setitem__((3, 3, 3, 0), 1.5), "from .* to 1.5"),
        (lambda i, o: o["y_pred"].__setitem__((3, 3, 3, 0), -0.5), "from -0.5"),
        (lambda i, o: o["y_true"].__setitem__((3, 3, 3, 0), 2), "y_true has values from 0 to 2"),
        (lambda i, o: o.update(y_true=o["y_true"] * 0.5), "y_true has values"),
        (lambda i, o: i.update(scan_spacing=(1.0, 0.0, 1.0)), "spacing"),
        (lambda i, o: o.update(y_pred=o["y_pred"][:0], y_true=o["y_true"][:0]), "no voxel"),
    ],
)
def test_bad_input_names_the_scan(dataset, change, said):
    inputs, outputs = scan(7)
    change(inputs, outputs)
    evaluator = SemSegEvaluator(dataset, Config(TEST_METRICS=ALL))
    with pytest.raises(ValueError, match=rf"'0000007_V00'.*{said}"):
        evaluator.process([inputs], [outputs])
    lenient = SemSegEvaluator(dataset, Config(TEST_METRICS=ALL), keep_going=True)
    lenient.process([inputs, scan(1)[0]], [outputs, scan(1)[1]])
    document = lenient.evaluate()
    assert [item["scan"] for item in document["failed"]] == ["0000007_V00"]
    assert {row["scan"] for row in document["metrics"]} == {"0000001_V00"}


def test_a_spacing_of_the_wrong_length_counts_as_absent(dataset):
    expected = evaluated(dataset, [scan(1)])
    assert evaluated(dataset, [scan(1, scan_spacing=(9.0, 9.0))])["metrics"] == expected["metrics"]
    MetadataCatalog.get(dataset).set(replace=True, spacing=(0.5, 1.0))
    evaluator = SemSegEvaluator(dataset, Config(TEST_METRICS=["HD"]))
    with pytest.raises(ValueError, match="its spacing is unknown"):
        evaluator.process(*zip(scan(1), strict=True))
    # One slice is 2D.
    flat = scan(1)
    for key in ("y_true", "y_pred"):
        flat[1][key] = flat[1][key][:, :, 4:5]
    rows = evaluated(dataset, [flat])["metrics"]
    plane = evaluated(
        dataset, [({"scan_id": "0000001_V00"}, {key: flat[1][key][:, :, 0] for key in ("y_true", "y_pred")})]
    )
    assert [row["value"] for row in rows] == [row["value"] for row in plane["metrics"]]


def test_all_offenders_are_named_before_anything_is_scored(dataset):
    scans = [scan(number) for number in range(4)]
    scans[1][1]["y_true"] = None
    scans[3][1]["y_pred"][0, 0, 0, 0] = np.nan
    evaluator = SemSegEvaluator(dataset, Config(TEST_METRICS=["DSC"]))
    with pytest.raises(ValueError, match=r"0000001_V00.*0000003_V00"):
        evaluator.process([i for i, _ in scans], [o for _, o in scans])
    with pytest.raises(ValueError, match="nothing to evaluate"):
        evaluator.evaluate()


def test_one_scan_twice_is_refused_until_reset(dataset):
    evaluator = SemSegEvaluator(dataset, Config(TEST_METRICS=["DSC"]))
    inputs, outputs = scan(1)
    evaluator.process([inputs], [outputs])
    with pytest.raises(ValueError, match=r"0000001_V00.*before"):
        evaluator.process([inputs], [outputs])
    evaluator.reset()
    evaluator.process([inputs], [outputs])
    assert len(evaluator.evaluate()["scans"]) == 1


def test_rounding_above_one_is_no_error(dataset):
    inputs, outputs = scan(1)
    outputs["y_pred"][0, 0, 0, 0] = np.float32(1.0000002)
    evaluated(dataset, [(inputs, outputs)])


def test_spacing_that_is_needed_and_absent():
    name = "evaluation_test_without_spacing"
    MetadataCatalog.get(name).set(
        category_ids=[0, 1, 2], categories=list("abc"), category_id_to_contiguous_id={0: 0, 1: 1, 2: 2}
    )
    try:
        evaluated(name, [scan(1)], cfg=Config(TEST_METRICS=["DSC", "VOE", "RVD"]))
        with pytest.raises(ValueError, match=r"0000001_V00.*ASSD.*scan_spacing"):
            evaluated(name, [scan(1)], cfg=Config(TEST_METRICS=["DSC", "ASSD"]))
        evaluated(name, [scan(1, scan_spacing=(1, 1, 1))], cfg=Config(TEST_METRICS=["DSC", "ASSD"]))
    finally:
        MetadataCatalog.remove(name)


@pytest.mark.parametrize("make", [ThreadPoolExecutor, ProcessPoolExecutor])
def test_any_executor(dataset, make):
    if make is ProcessPoolExecutor:
        import multiprocessing

        executor = make(1, mp_context=multiprocessing.get_context("spawn"))
    else:
        executor = make(2)
    with executor:
        assert evaluated(dataset, [scan(1)], executor=executor) == evaluated(dataset, [scan(1)])


def test_the_order_of_scans_does_not_matter(dataset):
    scans = [scan(number) for number in range(5)]
    assert evaluated(dataset, scans) == evaluated(dataset, scans[::-1])


class Plugin:
    medsegpy_api = 1

    @hookimpl
    def medsegpy_register_metrics(self):
        return [MetricSpec("Voxels", lambda pred, truth, spacing: float(pred.sum() * np.prod(spacing)), unit="mm3")]


def test_metrics_of_other_plugins(dataset):
    manager = PluginManager([])
    manager.register_plugin(Plugin(), "voxels")
    with use_manager(manager):
        document = evaluated(dataset, [scan(1)], cfg=Config(TEST_METRICS=["DSC", "Voxels"]))
    _, y_pred = masks(1)
    assert values(document, "0000001_V00", "dog")["Voxels"] == (y_pred[..., 0] > 0.5).sum()
    assert "voxels" in document["settings"]["metrics"][1]["from"]
    with pytest.raises(UnknownNameError, match="Voxels"):
        SemSegEvaluator(dataset, Config(TEST_METRICS=["Voxels"]))


def test_a_metric_that_fails_says_where(dataset):
    class Broken:
        @hookimpl
        def medsegpy_register_metrics(self):
            return [MetricSpec("Broken", lambda pred, truth, spacing: 1 / 0)]

    manager = PluginManager([])
    manager.register_plugin(Broken(), "broken")
    with use_manager(manager), pytest.raises(ZeroDivisionError) as caught:
        evaluated(dataset, [scan(1)], cfg=Config(TEST_METRICS=["Broken"]))
    assert caught.value.__notes__ == ["This was the metric 'Broken' of 'dog' in scan '0000001_V00'."]


def test_a_policy_of_ones_own(dataset):
    inputs, outputs = scan(1)
    outputs["y_pred"][:] = 0
    cfg = Config(TEST_METRICS=["HD95", "DSC"])
    policy = MissingPolicy().changed({"missed": {"HD95": None}})
    document = evaluated(dataset, [(inputs, outputs)], cfg=cfg, policy=policy)
    assert values(document, "0000001_V00", "dog") == {"HD95": None, "DSC": 0}
    assert document["policy"]["missed"]["HD95"] is None
    cfg.add("MISSING_POLICY", {"missed": {"HD95": 50.0}})
    assert values(evaluated(dataset, [(inputs, outputs)], cfg=cfg), "0000001_V00", "dog") == {"HD95": 50, "DSC": 0}


def test_time_points_and_subjects(dataset):
    scans = [scan(n, scan_id=f"000000{n // 2}_V0{n % 2}") for n in range(4)]
    document = evaluated(dataset, scans, cfg=Config(TEST_METRICS=["DSC"]))
    assert [(r["time_point"], r["n"]) for r in document["time_points"] if r["category"] == "dog"] == [(0, 2), (1, 2)]
    by_subject = [r for r in document["subjects"] if r["category"] == "dog"]
    assert [r["subject"] for r in by_subject] == ["0", "1"]
    first = [values(document, s, "dog")["DSC"] for s in ("0000000_V00", "0000000_V01")]
    assert by_subject[0]["mean"] == pytest.approx(np.mean(first))


def test_time_points_and_subjects_that_are_text(dataset, tmp_path):
    points = ["baseline", "12", 2, 10, "baseline"]
    scans = [scan(n) for n in range(5)]
    for n, (inputs, _) in enumerate(scans):
        inputs.update(scan_id=f"s{n}", subject_id=("sub-02", "sub-01")[n % 2], time_point=points[n])
    document = evaluated(dataset, scans, cfg=Config(TEST_METRICS=["DSC"]), folder=tmp_path)
    rows = [r for r in document["time_points"] if r["category"] == "dog"]
    assert [(r["time_point"], r["n"]) for r in rows] == [(10, 1), ("12", 1), (2, 1), ("baseline", 2)]
    assert [r["subject"] for r in document["subjects"] if r["category"] == "dog"] == ["sub-01", "sub-02"]
    assert [s["time_point"] for s in json.loads((tmp_path / "metrics.json").read_text())["scans"]] == points


@pytest.mark.parametrize("form", ["probs", "labels"])
def test_saved_predictions(dataset, tmp_path, form):
    inputs, outputs = scan(1, scan_id="../knee")
    evaluated(dataset, [(inputs, outputs)], tmp_path / "out", save_predictions=form)
    (path,) = (tmp_path / "out" / "predictions").iterdir()
    assert path.name == "%2E.%2Fknee.h5"
    with h5py.File(path) as file:
        expected = outputs["y_pred"] if form == "probs" else outputs["y_pred"] > 0.5
        np.testing.assert_array_equal(file[form][...], expected)
        assert file[form].attrs["categories"].tolist() == [b"dog", b"human", b"pet"]


def test_two_dimensional_scans():
    name = "evaluation_test_2d"
    MetadataCatalog.get(name).set(
        category_ids=[0], categories=["a"], category_id_to_contiguous_id={0: 0}, spacing=(0.5, 2.0)
    )
    try:
        y_true, y_pred = np.zeros((2, 9, 9, 1))
        y_true[2:5, 2:5], y_pred[3:6, 2:5] = 1, 1
        document = evaluated(name, [({"scan_id": "s"}, {"y_true": y_true, "y_pred": y_pred})])
        assert values(document, "s", "a")["HD"] == 0.5
    finally:
        MetadataCatalog.remove(name)


def test_build_evaluator_asks_the_metadata(dataset, tmp_path):
    evaluator = build_evaluator(dataset, Config(), tmp_path)
    assert isinstance(evaluator, SemSegEvaluator)
    with use_manager(PluginManager([])):
        assert isinstance(build_evaluator(dataset, Config(), tmp_path), SemSegEvaluator)
    MetadataCatalog.get(dataset).set(replace=True, evaluator_type="Other")
    with pytest.raises(UnknownNameError, match="Other"):
        build_evaluator(dataset, Config(), tmp_path)
    with pytest.raises(MetadataError, match="evaluator_type"):
        build_evaluator("evaluation_test_of_nothing", Config(), tmp_path)


class Loader:
    def __init__(self, scans):
        self.scans = scans

    def inference(self, model):
        for inputs, outputs in self.scans:
            yield inputs, outputs | {"y_pred": model(outputs["y_pred"])}


def test_inference_on_dataset(dataset, tmp_path):
    loader = Loader([scan(1), scan(2)])
    first, second = (SemSegEvaluator(dataset, Config(TEST_METRICS=m), tmp_path / m[0]) for m in (["DSC"], ["HD"]))
    one = inference_on_dataset(lambda y: y, loader, first)
    assert one["metrics"] == evaluated(dataset, loader.scans, cfg=Config(TEST_METRICS=["DSC"]))["metrics"]
    # Again, and together: evaluators are reset first.
    both = inference_on_dataset(lambda y: y, loader, [first, second])
    assert [d["metrics"][0]["metric"] for d in both] == ["DSC", "HD"]
    assert both[0] == one
    assert (tmp_path / "HD" / "report.html").exists()


def test_importing_and_loading_the_plugin_is_cheap():
    code = """
import sys
from medsegpy_core.plugins.manager import default_manager
assert "HD95" in default_manager().metrics()
print(*{"numpy", "scipy", "PIL", "rich", "h5py"} & set(sys.modules))
"""
    environment = os.environ | {"MEDSEGPY_LOAD_PLUGINS": "medsegpy-evaluation"}
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True, env=environment)
    assert done.stdout.split() == []


@pytest.mark.parametrize("module", ["boundary", "lesions", "scoring", "prediction_files", "surfaces"])
def test_examples_in_docstrings(module):
    found = doctest.testmod(importlib.import_module(f"medsegpy_evaluation.{module}"))
    assert found.attempted
    assert not found.failed


def test_this_plugin_is_found():
    manager = default_manager()
    assert "SemSegEvaluator" in manager.evaluators()
    assert set(ALL) <= set(manager.metrics())
    assert "evaluate" in manager.commands()
