"""Lesions, boundaries and calibration, against their plain definitions."""

from __future__ import annotations

import csv
import json
import math
from pathlib import Path

import h5py
import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from hypothesis.extra import numpy as hnp
from scipy import ndimage

from medsegpy_core import Config, ConfigError, DatasetCatalog, MetadataCatalog, scan_directory, write_volume
from medsegpy_evaluation import MetricOptions, SemSegEvaluator, score_masks
from medsegpy_evaluation.command import overview
from medsegpy_evaluation.lesions import match_lesions
from medsegpy_evaluation.metrics import METRICS

LESIONS = ["LesionF1", "LesionPrecision", "LesionRecall", "LesionDSC", "LesionTP", "LesionFP", "LesionFN"]


def plain_lesions(pred, truth, threshold, full):
    """Match components of SciPy, voxel by voxel and pair by pair."""
    structure = ndimage.generate_binary_structure(pred.ndim, pred.ndim if full else 1)
    (found, n_pred), (real, n_truth) = ndimage.label(pred, structure), ndimage.label(truth, structure)
    pairs = []
    for i in range(1, n_pred + 1):
        for j in np.unique(real[(found == i) & truth]):
            a, b = found == i, real == j
            pairs.append((np.sum(a & b) / np.sum(a | b), i, int(j), 2 * np.sum(a & b) / (np.sum(a) + np.sum(b))))
    matched = []
    for overlap, i, j, dice in sorted(pairs, key=lambda pair: (-pair[0], pair[1], pair[2])):
        if overlap >= threshold and all(i != m[0] and j != m[1] for m in matched):
            matched.append((i, j, dice))
    return n_pred, n_truth, [m[2] for m in matched]


pairs_of_masks = hnp.array_shapes(min_dims=1, max_dims=3, min_side=1, max_side=8).flatmap(
    lambda shape: st.tuples(
        hnp.arrays(np.bool_, shape, elements=st.booleans(), fill=st.just(False)),
        hnp.arrays(np.bool_, shape, elements=st.booleans(), fill=st.nothing()),
    )
)


@given(pairs_of_masks, st.sampled_from([0.01, 0.3, 0.5, 0.75]), st.sampled_from(["full", "face"]))
@settings(max_examples=200, deadline=None)
def test_lesions_of_small_masks(case, threshold, connectivity):
    pred, truth = case
    found = match_lesions(pred, truth, threshold, connectivity)
    n_pred, n_truth, dice = plain_lesions(pred, truth, threshold, connectivity == "full")
    assert (found.predicted, found.true) == (n_pred, n_truth)
    assert (found.tp, found.fp, found.fn) == (len(dice), n_pred - len(dice), n_truth - len(dice))
    np.testing.assert_allclose(found.dsc, dice, rtol=1e-12)


@pytest.mark.parametrize("connectivity", ["full", "face"])
@pytest.mark.parametrize("share", [0.002, 0.03, 0.2, 0.6])
def test_lesions_few_and_many(share, connectivity):
    """Few runs are joined, many voxels are labelled: the same comes out."""
    rng = np.random.default_rng(0)
    truth = rng.random((30, 24, 20)) < share
    truth[4:9, 5:12, 3:9] = True
    pred = truth & (rng.random(truth.shape) < 0.9)
    found = match_lesions(pred, truth, 0.4, connectivity)
    n_pred, n_truth, dice = plain_lesions(pred, truth, 0.4, connectivity == "full")
    assert (found.predicted, found.true, found.tp) == (n_pred, n_truth, len(dice))
    np.testing.assert_allclose(sorted(found.dsc), sorted(dice), rtol=1e-12)


def test_lesions_by_hand():
    truth, pred = np.zeros((2, 12, 12, 4), bool)
    truth[1:3, 1:3, 1] = truth[6:8, 1:5, 1] = truth[10, 10, 3] = True
    pred[1:3, 1:3, 1] = True  # found
    pred[6:8, 2:6, 1] = True  # found: 6 of 10 voxels in common
    pred[6, 9, 2] = True  # made up
    found = score_masks(pred, truth, metrics=LESIONS)
    assert found == {
        "LesionF1": pytest.approx(2 / 3),
        "LesionPrecision": pytest.approx(2 / 3),
        "LesionRecall": pytest.approx(2 / 3),
        "LesionDSC": pytest.approx((1 + 12 / 16) / 2),
        "LesionTP": 2,
        "LesionFP": 1,
        "LesionFN": 1,
    }
    strict = score_masks(pred, truth, metrics=LESIONS, options=MetricOptions(lesion_threshold=0.61))
    assert (strict["LesionTP"], strict["LesionFP"], strict["LesionFN"], strict["LesionDSC"]) == (1, 2, 2, 1)
    # At the threshold itself they match.
    at = score_masks(pred, truth, metrics=["LesionTP"], options=MetricOptions(lesion_threshold=0.6))
    assert at["LesionTP"] == 2


def test_one_lesion_matches_one():
    truth, pred = np.zeros((2, 1, 20), bool)
    truth[0, 0:4] = truth[0, 5:9] = True
    pred[0, 0:9] = True  # both in one
    options = MetricOptions(lesion_threshold=0.1)
    found = score_masks(pred, truth, metrics=LESIONS, options=options)
    assert (found["LesionTP"], found["LesionFP"], found["LesionFN"]) == (1, 0, 1)
    assert score_masks(truth, pred, metrics=LESIONS, options=options)["LesionFP"] == 1


def test_no_match_costs_as_much_as_a_miss():
    truth, pred = np.zeros((2, 9, 9), bool)
    truth[1, 1] = pred[7, 7] = True
    found = score_masks(pred, truth, metrics=LESIONS)
    assert found == dict.fromkeys(LESIONS, 0) | {"LesionFP": 1, "LesionFN": 1}


def test_connectivity():
    corner = np.zeros((4, 4, 4), bool)
    corner[1, 1, 1] = corner[2, 2, 2] = True
    for mask, expected in (
        (corner, (1, 1, 2)),
        (corner[1:3].any(axis=0), (2, 1, 2)),
        (corner[1:3, 1:3].any(axis=0)[..., None], (2, 1, 2)),
    ):
        counts = tuple(
            score_masks(mask, mask, metrics=["LesionTP"], options=MetricOptions(lesion_connectivity=name))["LesionTP"]
            for name in ("auto", "full", "face")
        )
        assert counts == expected


def plain_boundary_iou(pred, truth, spacing, width):
    """By whole-array distance transforms."""
    regions = []
    for mask in (pred, truth):
        padded = np.pad(mask, 1)
        surface = padded & ~ndimage.binary_erosion(padded)
        regions.append(padded & (ndimage.distance_transform_edt(~surface, sampling=spacing) <= width))
    return np.sum(regions[0] & regions[1]) / np.sum(regions[0] | regions[1])


@given(pairs_of_masks, st.lists(st.sampled_from([0.5, 1.0, 3.0]), min_size=3, max_size=3), st.sampled_from([0, 1, 2.5]))
@settings(max_examples=100, deadline=None)
def test_boundary_iou_of_small_masks(case, spacing, width):
    pred, truth = case
    pred.flat[0] = truth.flat[-1] = True
    spacing = spacing[: pred.ndim]
    found = score_masks(pred, truth, spacing, ["BoundaryIoU"], options=MetricOptions(boundary_width=width))
    axes = [axis for axis in range(pred.ndim) if pred.shape[axis] > 1] or [0]
    flat = [mask.squeeze() if mask.size > 1 else mask.reshape(1) for mask in (pred, truth)]
    assert found["BoundaryIoU"] == plain_boundary_iou(*flat, [spacing[axis] for axis in axes], width)


def test_boundary_iou_of_a_large_structure():
    grid = np.indices((90, 60, 40)) * np.array([0.5, 0.7, 1.5]).reshape(3, 1, 1, 1)
    truth = ((grid - np.array([22, 20, 30]).reshape(3, 1, 1, 1)) ** 2).sum(axis=0) < 17**2
    pred = np.roll(truth, 2, axis=0)
    for width in (0.4, 2.0, 9.0, 1e9):
        options = MetricOptions(boundary_width=width)
        found = score_masks(pred, truth, (0.5, 0.7, 1.5), ["BoundaryIoU", "VOE"], options=options)
        assert found["BoundaryIoU"] == plain_boundary_iou(pred, truth, (0.5, 0.7, 1.5), width)
    # As wide as the structure it is the plain intersection over union.
    assert found["BoundaryIoU"] == pytest.approx(1 - found["VOE"])


@pytest.fixture
def dataset():
    name = "beyond_voxels"
    MetadataCatalog.get(name).set(
        scan_root="somewhere",
        category_ids=[0, 1],
        categories=["liver", "spleen"],
        category_id_to_contiguous_id={0: 0, 1: 1},
        evaluator_type="SemSegEvaluator",
        spacing=(1.0, 1.0, 2.0),
    )
    yield name
    MetadataCatalog.remove(name)


@pytest.fixture
def dataset_in_files(tmp_path):
    name, root, truths = "beyond_voxels_in_files", tmp_path / "data", {}
    root.mkdir()
    for number in (1, 2):
        rng = np.random.default_rng(number)
        mask = np.zeros((12, 10, 6, 2), np.uint8)
        mask[2:6, 2:6, 1:4, 0] = mask[7:11, 3:8, 2:5, 1] = 1
        truths[f"{number:07d}_V00"] = mask
        write_volume(root / f"{number:07d}_V00.h5", rng.normal(size=mask.shape[:3]).astype(np.float32), mask)
    DatasetCatalog.register(name, lambda: scan_directory(root))
    MetadataCatalog.get(name).set(
        scan_root=str(root),
        category_ids=[0, 1],
        categories=["liver", "spleen"],
        category_id_to_contiguous_id={0: 0, 1: 1},
        evaluator_type="SemSegEvaluator",
        spacing=(1.0, 1.0, 2.0),
    )
    yield name, truths
    DatasetCatalog.remove(name)
    MetadataCatalog.remove(name)


def evaluated(dataset, outputs, folder=None, **cfg):
    evaluator = SemSegEvaluator(
        dataset, Config(**{"TEST_METRICS": [*LESIONS, "BoundaryIoU", "ECE", "Brier"], **cfg}), folder
    )
    for number, (y_true, y_pred) in enumerate(outputs):
        evaluator.process([{"scan_id": f"scan{number}"}], [{"y_true": y_true, "y_pred": y_pred}])
    return evaluator.evaluate()


def value(document, category, metric, scan="scan0"):
    key = (scan, category, metric)
    return next(r["value"] for r in document["metrics"] if (r["scan"], r["category"], r["metric"]) == key)


def plain_calibration(p, t, bins):
    """By the text of Guo et al.: bin m is ((m - 1) / M, m / M]."""
    edges = np.arange(bins + 1) / bins
    ece = 0.0
    for m in range(bins):
        inside = (p > edges[m]) & (p <= edges[m + 1]) | ((p == 0) if m == 0 else False)
        if inside.any():
            ece += inside.mean() * abs(p[inside].mean() - t[inside].mean())
    return ece, np.mean((p - t) ** 2)


@pytest.mark.parametrize("dtype", [np.float32, np.float64, np.float16])
@pytest.mark.parametrize("bins", [15, 7])
def test_calibration(dataset, dtype, bins):
    rng = np.random.default_rng(3)
    y_true = (rng.random((20, 18, 9, 2)) < 0.3).astype(np.uint8)
    y_pred = np.clip(rng.normal(0.5 * y_true + 0.2, 0.2), 0, 1).astype(dtype)
    y_true[:5, :, :, 0] = 255  # unknown
    document = evaluated(dataset, [(y_true, y_pred)], CALIBRATION_BINS=bins)
    for channel, category in enumerate(("liver", "spleen")):
        known = y_true[..., channel] != 255
        p, t = y_pred[..., channel][known].astype(np.float64), y_true[..., channel][known]
        ece, brier = plain_calibration(p, t, bins)
        assert value(document, category, "ECE") == pytest.approx(ece, rel=1e-9)
        assert value(document, category, "Brier") == pytest.approx(brier, rel=1e-9)
    assert document["settings"]["calibration_bins"] == bins


@pytest.mark.parametrize("dtype", [np.uint8, bool, np.float32])
def test_labels_have_no_calibration_and_that_is_said(dataset, tmp_path, dtype):
    y_true = np.zeros((8, 8, 4, 2), np.uint8)
    y_true[2:5, 2:5, 1:3] = 1
    document = evaluated(dataset, [(y_true, np.roll(y_true, 1, axis=0).astype(dtype))], tmp_path)
    assert value(document, "liver", "ECE") is None
    assert value(document, "spleen", "Brier") is None
    assert value(document, "liver", "LesionTP") == 1
    (structure, _) = document["scans"][0]["structures"]
    assert set(structure["undefined"]) == {"ECE", "Brier"}
    line = next(line for line in overview(document) if line.startswith("ECE, Brier undefined for 2 structures"))
    assert "labels" in line
    assert line in (tmp_path / "report.html").read_text()
    with (tmp_path / "metrics.csv").open() as file:
        assert [row["value"] for row in csv.DictReader(file) if row["metric"] in ("ECE", "Brier")] == [""] * 4
    assert {row["n"] for row in document["summary"] if row["metric"] == "ECE"} == {0}


def test_missing_structures_are_calibrated_over_all_voxels(dataset):
    y_true = np.zeros((8, 8, 4, 2), np.uint8)
    y_true[2:5, 2:5, 1:3, 0] = 1
    y_pred = np.full(y_true.shape, 0.2, np.float32)
    y_pred[..., 1] = 0.7
    document = evaluated(dataset, [(y_true, y_pred)])
    statuses = [structure["status"] for structure in document["scans"][0]["structures"]]
    assert statuses == ["missed", "hallucinated"]
    share = float(y_true[..., 0].mean())
    assert value(document, "liver", "ECE") == pytest.approx(abs(0.2 - share), rel=1e-6)
    assert value(document, "spleen", "Brier") == pytest.approx(0.49, rel=1e-6)
    assert value(document, "spleen", "LesionRecall") is None
    assert value(document, "spleen", "LesionFP") == 1
    both_empty = evaluated(dataset, [(np.zeros_like(y_true), np.full(y_true.shape, 0.1, np.float32))])
    assert {row["value"] for row in both_empty["metrics"]} == {None}


def test_unknown_voxels_are_no_lesions(dataset):
    y_true = np.zeros((10, 10, 4, 2), np.uint8)
    y_true[1:3, 1:3, 1, 0] = 1
    y_true[6:, :, :, 0] = 255
    y_pred = np.zeros(y_true.shape, np.float32)
    y_pred[1:3, 1:3, 1, 0] = 0.9
    y_pred[7:9, 7:9, 1, 0] = 0.9  # a lesion where nothing is known
    document = evaluated(dataset, [(y_true, y_pred)])
    assert [value(document, "liver", name) for name in LESIONS] == [1, 1, 1, 1, 1, 0, 0]
    assert value(document, "liver", "BoundaryIoU") == 1
    known = y_true[..., 0] != 255
    brier = np.mean((y_pred[..., 0][known].astype(np.float64) - y_true[..., 0][known]) ** 2)
    assert value(document, "liver", "Brier") == pytest.approx(brier)


def test_scans_of_one_slice_are_2d(dataset):
    y_true = np.zeros((9, 9, 1, 2), np.uint8)
    y_true[2, 2, 0, 0] = y_true[3, 3, 0, 0] = 1
    document = evaluated(dataset, [(y_true, y_true * np.float32(0.9))])
    assert value(document, "liver", "LesionTP") == 2
    assert value(document, "liver", "BoundaryIoU") == 1


@pytest.mark.parametrize(
    ("key", "bad"),
    [
        ("LESION_THRESHOLD", 1.5),
        ("LESION_THRESHOLD", -0.1),
        ("LESION_CONNECTIVITY", "corner"),
        ("BOUNDARY_WIDTH", -1),
        ("BOUNDARY_WIDTH", math.inf),
        ("CALIBRATION_BINS", 0),
    ],
)
def test_options_that_make_no_sense(dataset, key, bad):
    with pytest.raises(ConfigError, match=key):
        SemSegEvaluator(dataset, Config(**{key: bad}))


def test_options_reach_the_metrics_and_the_outputs(dataset):
    y_true = np.zeros((9, 9, 2, 2), np.uint8)
    y_true[2, 2:6, 0] = y_true[3, 6, 0] = 1
    y_pred = np.roll(y_true, 1, axis=1) * np.float32(0.9)
    loose = evaluated(dataset, [(y_true, y_pred)], LESION_THRESHOLD=0.2, LESION_CONNECTIVITY="face", BOUNDARY_WIDTH=0.5)
    assert value(loose, "liver", "LesionTP") == 1
    assert value(loose, "liver", "LesionFN") == 1
    tight = evaluated(dataset, [(y_true, y_pred)], LESION_THRESHOLD=0.9)
    assert value(tight, "liver", "LesionTP") == 0
    kept = loose["settings"]
    assert (kept["lesion_threshold"], kept["lesion_connectivity"], kept["boundary_width"]) == (0.2, "face", 0.5)


@pytest.mark.parametrize("softmax", [False, True])
def test_probabilities_in_files(dataset_in_files, tmp_path, softmax):
    """`evaluate_predictions` gives what the evaluator gives, from probabilities and from labels."""
    from medsegpy_evaluation import evaluate_predictions

    name, truths = dataset_in_files
    rng = np.random.default_rng(5)
    folder = tmp_path / "predictions"
    folder.mkdir()
    probs = {scan: rng.dirichlet(np.ones(3), truth.shape[:-1]).astype(np.float32) for scan, truth in truths.items()}
    cfg = Config(TEST_METRICS=["DSC", "ECE", "Brier", "LesionF1"])
    if softmax:
        cfg.LOSS, cfg.INCLUDE_BACKGROUND = ("argmax", "softmax"), True
    evaluator = SemSegEvaluator(name, cfg)
    for scan, p in probs.items():
        own = p if softmax else p[..., 1:]
        with h5py.File(folder / f"{scan}.h5", "w") as file:
            # In another order than the categories have, and with a channel that no one asks for.
            file["probs"] = p[..., [2, 0, 1]]
            file["probs"].attrs["categories"] = ["spleen", "background", "liver"]
        y_true = truths[scan]
        if softmax:
            y_true = np.concatenate((1 - y_true.max(axis=-1, keepdims=True), y_true), axis=-1)
        evaluator.process([{"scan_id": scan, "scan_spacing": (1.0, 1.0, 2.0)}], [{"y_true": y_true, "y_pred": own}])
    expected = evaluator.evaluate()["metrics"]
    for _ in range(2):  # scored, and kept
        found = evaluate_predictions(name, folder, cfg, tmp_path / "out")
        assert [(r["scan"], r["category"], r["metric"]) for r in found["metrics"]] == [
            (r["scan"], r["category"], r["metric"]) for r in expected
        ]
        np.testing.assert_allclose([r["value"] for r in found["metrics"]], [r["value"] for r in expected], rtol=1e-12)


def test_labels_in_files_have_no_calibration(dataset_in_files, tmp_path):
    from medsegpy_evaluation import evaluate_predictions

    name, truths = dataset_in_files
    folder = tmp_path / "predictions"
    folder.mkdir()
    for scan, truth in truths.items():
        with h5py.File(folder / f"{scan}.h5", "w") as file:
            file["labels"] = np.where(truth[..., 1], 2, truth[..., 0]).astype(np.uint8)
    for _ in range(2):  # scored, and kept
        found = evaluate_predictions(name, folder, Config(TEST_METRICS=["DSC", "ECE"]), tmp_path / "out")
        assert {row["value"] for row in found["metrics"] if row["metric"] == "ECE"} == {None}
        assert all("labels" in s["undefined"]["ECE"] for scan in found["scans"] for s in scan["structures"])
    assert json.loads((tmp_path / "out" / "metrics.json").read_text()) == found


def test_every_metric_is_defined_for_people():
    for metric in METRICS.values():
        assert metric.definition, metric.name


def test_the_docs_have_the_definitions():
    docs = Path(__file__).parents[3] / "docs" / "evaluation.md"
    lines = docs.read_text(encoding="utf-8").splitlines()
    for metric in METRICS.values():
        definition = metric.definition.replace("|", "\\|")
        assert f"| `{metric.name}` | {definition} | {metric.source} |" in lines
