"""What each metric is, and what it is worth where a structure is missing."""

from __future__ import annotations

import math
import pickle

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from medsegpy_core import ConfigError, MetricSpec, UnknownNameError
from medsegpy_evaluation import MissingPolicy, medsegpy_register_metrics, score_masks
from medsegpy_evaluation.metrics import METRICS, MaskPair, from_spec

ALL = list(METRICS)
SPACING = (0.5, 1.0, 2.0)


def cubes(shift=0):
    truth = np.zeros((12, 10, 8), bool)
    truth[2:6, 2:6, 2:6] = True
    return np.roll(truth, shift, axis=0), truth


def test_identical():
    pred, truth = cubes()
    assert score_masks(pred, truth, SPACING, ALL) == {
        "DSC": 1,
        "VOE": 0,
        "CV": 0,
        "ASSD": 0,
        "HD95": 0,
        "HD": 0,
        "NSD": 1,
        "Precision": 1,
        "Recall": 1,
        "RVD": 0,
        "BoundaryIoU": 1,
        "LesionF1": 1,
        "LesionPrecision": 1,
        "LesionRecall": 1,
        "LesionDSC": 1,
        "LesionTP": 1,
        "LesionFP": 0,
        "LesionFN": 0,
        "ECE": None,
        "Brier": None,
        "PredictedVolume": 64,
        "TrueVolume": 64,
    }


def test_a_cube_shifted_by_one_voxel():
    pred, truth = cubes(1)
    found = score_masks(pred, truth, SPACING, ALL, tolerance=0.25)
    assert found["DSC"] == pytest.approx(0.75)
    assert found["VOE"] == pytest.approx(1 - 48 / 80)
    assert found["CV"] == found["RVD"] == 0
    assert found["Precision"] == found["Recall"] == 0.75
    assert found["HD"] == found["HD95"] == 0.5


def test_volumes_of_different_size():
    truth = np.zeros((10, 10, 10), bool)
    truth[:4, :4, :4] = True
    pred = np.zeros_like(truth)
    pred[:4, :4, :6] = True
    found = score_masks(pred, truth, SPACING, ["CV", "RVD", "Precision", "Recall", "PredictedVolume", "TrueVolume"])
    assert found == {
        "CV": pytest.approx(32 / 160),
        "RVD": pytest.approx(0.5),
        "Precision": pytest.approx(64 / 96),
        "Recall": 1,
        "PredictedVolume": 96,
        "TrueVolume": 64,
    }
    # The sign says which way.
    assert score_masks(truth, pred, SPACING, ["RVD"])["RVD"] == pytest.approx(-1 / 3)


def test_nsd_is_the_share_of_surface_voxels_within_the_tolerance():
    # Two lines of 8 and 4 voxels, 1 mm apart; the longer one reaches up to 4 mm beyond.
    truth, pred = np.zeros((2, 3, 10), bool)
    truth[0, :8] = pred[1, :4] = True
    found = {t: score_masks(pred, truth, (1, 1), ["NSD"], tolerance=t)["NSD"] for t in (0.5, 1.0, 2.3, 5)}
    assert found == {0.5: 0, 1.0: pytest.approx(8 / 12), 2.3: pytest.approx(10 / 12), 5: 1}


@given(st.integers(0, 2**32 - 1), st.sampled_from([(9, 8), (7,), (5, 6, 4)]), st.data())
def test_axes_of_length_one_change_no_distance(seed, shape, data):
    """Wherever they stand, and whatever their spacing."""
    rng = np.random.default_rng(seed)
    pred, truth = rng.random((2, *shape)) < 0.4
    pred.flat[0] = truth.flat[-1] = True
    spacing = list(SPACING[: len(shape)])
    flat = score_masks(pred, truth, spacing, ALL)
    missed = score_masks(np.zeros_like(pred), truth, spacing, ALL)
    for _ in range(data.draw(st.integers(1, 2))):
        axis = data.draw(st.integers(0, pred.ndim))
        pred, truth = np.expand_dims(pred, axis), np.expand_dims(truth, axis)
        spacing.insert(axis, 4.0)
    names = [name for name in ALL if not name.endswith("Volume")]
    found = score_masks(pred, truth, spacing, ALL)
    assert {name: found[name] for name in names} == {name: flat[name] for name in names}
    assert found["TrueVolume"] == pytest.approx(truth.sum() * math.prod(spacing))
    found = score_masks(np.zeros_like(pred), truth, spacing, ALL)
    assert {name: found[name] for name in names} == {name: missed[name] for name in names}


def test_a_structure_in_one_slice_of_a_deep_scan_is_3d():
    truth, pred = np.zeros((2, 12, 10, 3), bool)
    truth[2:9, 2:9, 1] = pred[3:10, 2:9, 1] = True
    # Above and below it is outside: every voxel is on the surface, and 7 of 49 have a voxel that the other lacks.
    assert score_masks(pred, truth, (1, 1, 1), ["ASSD"])["ASSD"] == pytest.approx(7 / 49)
    flat = score_masks(pred[..., 1:2], truth[..., 1:2], (1, 1, 1), ["ASSD"])["ASSD"]
    assert flat == score_masks(pred[..., 1], truth[..., 1], (1, 1), ["ASSD"])["ASSD"] > 7 / 49


def test_a_scan_of_one_voxel():
    one = np.ones((1, 1, 1), bool)
    found = score_masks(one, one, (1, 2, 2), ["ASSD", "HD", "NSD"])
    assert found == {"ASSD": 0, "HD": 0, "NSD": 1}
    # A miss still costs.
    assert score_masks(~one, one, (1, 2, 2), ["HD"])["HD"] == 3


def test_what_is_missing():
    truth = cubes()[1]
    none = np.zeros_like(truth)
    diagonal = math.hypot(12 * 0.5, 10 * 1.0, 8 * 2.0)
    cost = {"VOE": 1, "CV": 1} | dict.fromkeys(("ASSD", "HD95", "HD"), diagonal)
    cost |= dict.fromkeys(("DSC", "NSD", "Precision", "BoundaryIoU", "LesionF1", "LesionPrecision", "LesionDSC"), 0)
    cost |= {"LesionTP": 0, "ECE": None, "Brier": None}  # of masks without probabilities
    missed = score_masks(none, truth, SPACING, ALL)
    lesions = {"LesionRecall": 0, "LesionFP": 0, "LesionFN": 1}
    assert missed == cost | lesions | {"Recall": 0, "RVD": -1, "PredictedVolume": 0, "TrueVolume": 64}
    hallucinated = score_masks(truth, none, SPACING, ALL)
    lesions = {"LesionRecall": None, "LesionFP": 1, "LesionFN": 0}
    assert hallucinated == cost | lesions | {"Recall": None, "RVD": None, "PredictedVolume": 64, "TrueVolume": 0}
    assert score_masks(none, none, SPACING, ALL) == dict.fromkeys(ALL)


@given(st.integers(0, 2**32 - 1), st.floats(0.05, 0.95))
def test_a_miss_is_never_better_than_any_prediction(seed, share):
    rng = np.random.default_rng(seed)
    truth, pred = rng.random((2, 4, 4, 4)) < share
    if not truth.any() or not pred.any():
        return
    found = score_masks(pred, truth, SPACING, ALL)
    missed = score_masks(np.zeros_like(pred), truth, SPACING, ALL)
    for name, metric in METRICS.items():
        if metric.higher_is_better is not None and not metric.probabilities:
            good = 1 if metric.higher_is_better else -1
            assert good * missed[name] <= good * found[name]


def test_the_policy_can_be_changed():
    policy = MissingPolicy().changed({"missed": {"HD95": 100, "DSC": None}})
    pair = MaskPair(np.zeros((4, 4), bool), np.ones((4, 4), bool), (1, 1))
    assert policy.score(METRICS["HD95"], pair) == 100
    assert policy.score(METRICS["DSC"], pair) is None
    assert policy.score(METRICS["VOE"], pair) == 1
    assert policy.as_dict()["missed"]["HD95"] == 100
    assert MissingPolicy().missed["HD95"] == "diagonal"


@pytest.mark.parametrize("changes", [{"lost": {}}, {"missed": {"DSC": "worst"}}, {"missed": {"DSC": math.nan}}])
def test_policies_that_make_no_sense(changes):
    with pytest.raises(ConfigError):
        MissingPolicy().changed(changes)


def fails_on_empty(pred, truth, spacing):
    return float(np.argwhere(pred)[0, 0])


@pytest.mark.parametrize(
    ("unit", "higher", "worst"), [("", True, 0), ("", False, 1), ("mm", False, math.hypot(4, 8)), ("mm3", False, None)]
)
def test_metrics_of_other_plugins_where_nothing_was_found(unit, higher, worst):
    metric = from_spec(MetricSpec("first", fails_on_empty, unit, higher))
    pair = MaskPair(np.zeros((4, 4), bool), np.ones((4, 4), bool), (1, 2))
    assert MissingPolicy().score(metric, pair) == (None if worst is None else pytest.approx(worst))


def test_metrics_of_other_plugins_may_say_it_themselves():
    metric = from_spec(MetricSpec("AVD", lambda p, t, s: abs(int(p.sum()) - int(t.sum())) * math.prod(s), "mm3", False))
    pair = MaskPair(np.zeros((4, 4), bool), np.ones((4, 4), bool), (1, 2))
    assert MissingPolicy().score(metric, pair) == 32


def test_as_hooks_bring_them():
    pred, truth = cubes(1)
    specs = pickle.loads(pickle.dumps(medsegpy_register_metrics()))
    found = {spec.name: spec.function(pred, truth, SPACING) for spec in specs}
    masks = [name for name in ALL if not METRICS[name].probabilities]
    assert found == score_masks(pred, truth, SPACING, masks)
    said = {spec.name: (spec.unit, spec.higher_is_better) for spec in specs}
    assert said == {m.name: (m.unit, m.higher_is_better is not False) for m in METRICS.values() if m.name in masks}


def test_spacing_is_asked_for_only_where_it_is_needed():
    pred, truth = cubes(1)
    assert score_masks(pred, truth, metrics=["DSC", "RVD"])["DSC"] == 0.75
    with pytest.raises(ValueError, match="spacing"):
        score_masks(pred, truth, metrics=["ASSD"])


def test_unknown_metric():
    with pytest.raises(UnknownNameError, match="Did you mean 'HD95'"):
        score_masks(*cubes(), SPACING, ["HD96"])


def test_shapes_that_differ():
    with pytest.raises(ValueError, match="shape"):
        score_masks(np.ones((2, 2), bool), np.ones((2, 3), bool), (1, 1))


@pytest.mark.parametrize("spacing", [(0, 1), (-1, 1), (math.nan, 1), (math.inf, 1), (1, 1, 1)])
@pytest.mark.parametrize("name", ["ASSD", "TrueVolume"])
def test_a_spacing_that_is_none(spacing, name):
    with pytest.raises(ValueError, match="spacing"):
        score_masks(np.ones((2, 2), bool), np.ones((2, 2), bool), spacing, [name])


@pytest.mark.parametrize("value", [math.nan, 0.3, 2, -1])
def test_masks_are_binary(value):
    mask = np.ones((3, 3), np.float32)
    mask[1, 1] = value
    for name, pair in (("prediction", (mask, np.ones((3, 3)))), ("truth", (np.ones((3, 3), np.uint8), mask))):
        with pytest.raises(ValueError, match=f"the {name} has"):
            score_masks(*pair, metrics=["DSC"])


def test_metrics_of_other_plugins_that_warn_of_an_empty_mask():
    # Warnings are errors here, as they are in many projects.
    def share(pred, truth, spacing):
        return float(np.count_nonzero(pred & truth) / np.count_nonzero(pred))

    def center(pred, truth, spacing):
        return float(np.argwhere(pred).mean(axis=0)[0])

    pair = MaskPair(np.zeros((3, 4), bool), np.ones((3, 4), bool), (1, 1))
    values = [
        MissingPolicy().score(from_spec(spec), pair)
        for spec in (MetricSpec("share", share), MetricSpec("center", center, "mm", higher_is_better=False))
    ]
    assert values == [0.0, 5.0]
