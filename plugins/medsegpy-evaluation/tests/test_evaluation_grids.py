"""Predictions are compared where their voxels lie: another order of the voxels is put right, another grid refused."""

from __future__ import annotations

import itertools

import h5py
import numpy as np
import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from medsegpy_core import Config, DatasetCatalog, MetadataCatalog, build_loader
from medsegpy_evaluation import SemSegEvaluator, evaluate_predictions, inference_on_dataset
from medsegpy_evaluation.predictions import PredictionsError

SHAPE = (9, 8, 6)
SPACING = (0.5, 1.0, 2.0)
NAME = "evaluation_grids"


def rotation(angle):
    turned = np.eye(3)
    turned[:2, :2] = [[np.cos(angle), -np.sin(angle)], [np.sin(angle), np.cos(angle)]]
    return turned


# Oblique, with an origin.
AFFINE = np.eye(4)
AFFINE[:3, :3] = rotation(0.3) @ np.diag(SPACING)
AFFINE[:3, 3] = (-31.0, 12.5, 80.0)
GRID = {"affine": AFFINE, "spacing": SPACING}


def turned(array, affine, order, flips):
    """Return the same voxels stored in another order, and the affine that says where they are."""
    moved = np.zeros((4, 4))
    moved[3, 3] = 1
    shape = [array.shape[axis] for axis in order]
    for new, old in enumerate(order):
        moved[old, new], moved[old, 3] = (-1, shape[new] - 1) if new in flips else (1, 0)
    return np.flip(array.transpose(*order, *range(3, array.ndim)), flips), affine @ moved


@pytest.fixture
def dataset(tmp_path):
    """Return a function that registers a volume with these attributes; the truth is asymmetric."""
    made = []

    def make(attributes=(), **metadata):
        mask = np.zeros((*SHAPE, 2), np.uint8)
        mask[1:5, 2:7, 0:3, 0] = mask[6:8, 1:3, 2:5, 1] = 1
        path = tmp_path / f"scan{len(made)}.h5"
        with h5py.File(path, "w") as file:
            file["volume"] = np.zeros(SHAPE, np.float32)
            file["seg"] = mask
            file["volume"].attrs.update(dict(attributes))
        more = metadata.pop("keys", {})
        dicts = [{"file_name": str(path), "sem_seg_file": str(path), "scan_id": "a", **more}]
        name = f"{NAME}_{len(made)}"
        made.append(name)
        DatasetCatalog.register(name, lambda: dicts)
        MetadataCatalog.get(name).set(
            scan_root=".",
            category_ids=[0, 1],
            categories=["x", "y"],
            category_id_to_contiguous_id={0: 0, 1: 1},
            evaluator_type="SemSegEvaluator",
            **metadata,
        )
        return name, mask

    yield make
    for name in made:
        DatasetCatalog.remove(name)
        MetadataCatalog.remove(name)


def save(folder, array, key="probs", **attributes):
    folder.mkdir(exist_ok=True)
    with h5py.File(folder / "a.h5", "w") as file:
        file[key] = array
        file[key].attrs.update({name: value for name, value in attributes.items() if value is not None})
    return folder


def scores(name, folder, metrics=("DSC", "HD95", "RVD"), **options):
    return evaluate_predictions(name, folder, Config(TEST_METRICS=list(metrics)), None, **options)["metrics"]


@given(st.permutations(range(3)), st.sets(st.integers(0, 2)), st.sampled_from(["probs", "channels", "map"]))
@settings(suppress_health_check=[HealthCheck.function_scoped_fixture], max_examples=40, deadline=None)
def test_any_order_of_the_voxels_gives_the_same_scores(dataset, tmp_path, order, flips, form):
    name, mask = dataset(GRID)
    pred = np.roll(mask, 1, axis=0)
    if form == "map":
        pred[..., 1] &= 1 - pred[..., 0]
    expected = scores(name, save(tmp_path / "straight", pred.astype(np.float32), affine=AFFINE))
    array = {"probs": pred * 0.9, "channels": pred, "map": pred[..., 0] + 2 * pred[..., 1]}[form]
    array, affine = turned(array, AFFINE, order, tuple(flips))
    folder = save(tmp_path / "turned", array, "probs" if form == "probs" else "labels", affine=affine)
    assert scores(name, folder) == expected
    assert 0 < expected[0]["value"] < 1
    # The rounding of a float32 header is none of another grid.
    folder = save(tmp_path / "rounded", array, "probs" if form == "probs" else "labels", affine=affine.astype("f4"))
    assert scores(name, folder) == expected


def scaled(factor):
    return AFFINE @ np.diag([*factor, 1.0])


def shifted(voxels):
    moved = np.eye(4)
    moved[:3, 3] = voxels
    return AFFINE @ moved


def sheared(amount):
    moved = np.eye(4)
    moved[0, 1] = amount
    return AFFINE @ moved


@pytest.mark.parametrize(
    "affine",
    [
        scaled((9, 9, 9)),
        scaled((1, 1, 1.2)),
        shifted((1, 0, 0)),
        shifted((0, 0, 0.3)),
        shifted((0, 0, 200)),
        sheared(0.2),
        np.diag([0.5, 1.0, 2.0, 1.0]),
    ],
)
def test_any_other_grid_is_refused_with_both(dataset, tmp_path, affine):
    name, mask = dataset(GRID)
    folder = save(tmp_path / "p", mask.astype(np.float32), affine=affine)
    with pytest.raises(
        PredictionsError, match=r"(?s)another grid.*9 x 8 x 6 voxels.*not 9 x 8 x 6 voxels of 0.5 x 1 x 2 mm"
    ):
        scores(name, folder)
    document = evaluate_predictions(name, folder, Config(TEST_METRICS=["DSC"]), None, keep_going=True)
    assert len(document["failed"]) == 1
    assert document["metrics"] == []


def test_spacings_are_compared_where_an_affine_is_unknown(dataset, tmp_path):
    name, mask = dataset(GRID)
    probs = mask.astype(np.float32)
    right = scores(name, save(tmp_path / "p", probs))
    assert right[0]["value"] == 1
    assert scores(name, save(tmp_path / "p", probs, spacing=SPACING)) == right
    with pytest.raises(PredictionsError, match=r"9 x 9 x 9 mm.*0.5 x 1 x 2 mm"):
        scores(name, save(tmp_path / "p", probs, spacing=(9, 9, 9)))
    # Rounded, as spacings often are.
    assert scores(name, save(tmp_path / "p", probs, spacing=(0.503, 1.0, 2.01))) == right
    with pytest.raises(PredictionsError, match="another grid"):
        scores(name, save(tmp_path / "p", probs, spacing=(0.503, 1.0, 2.05)))
    # By the metadata of the dataset.
    plain, _ = dataset(spacing=SPACING)
    for said in ({}, {"spacing": SPACING}, {"affine": AFFINE}):
        assert scores(plain, save(tmp_path / "p", probs, **said)) == right
    for said in ({"spacing": (9, 9, 9)}, {"affine": scaled((2, 2, 2))}, {"affine": np.eye(4)}):
        with pytest.raises(PredictionsError, match="another grid"):
            scores(plain, save(tmp_path / "p", probs, **said))
    # Nothing is known of the scan: by index.
    unknown, _ = dataset()
    assert scores(unknown, save(tmp_path / "p", probs, affine=AFFINE), ["DSC"])[0]["value"] == 1


def test_the_dict_outranks_the_file_and_both_hold_for_predictions(dataset, tmp_path):
    name, mask = dataset(GRID, keys={"scan_spacing": (1, 1, 1)})
    probs = mask.astype(np.float32)
    for said in ({"affine": AFFINE}, {"spacing": SPACING}, {"spacing": (1, 1, 1)}):
        assert scores(name, save(tmp_path / "p", probs, **said))[0]["value"] == 1
    with pytest.raises(PredictionsError, match="another grid"):
        scores(name, save(tmp_path / "p", probs, spacing=(3, 3, 3)))


def test_two_grids_that_a_prediction_fits_in_two_ways(dataset, tmp_path):
    flipped = turned(np.zeros(SHAPE), AFFINE, (0, 1, 2), (0,))[1]
    name, mask = dataset(GRID, keys={"scan_affine": flipped.tolist()})
    with pytest.raises(PredictionsError, match="in two ways"):
        scores(name, save(tmp_path / "p", mask.astype(np.float32), affine=AFFINE))


def test_trust_geometry_lifts_the_error(dataset, tmp_path):
    name, mask = dataset(GRID, trust_geometry=True)
    assert scores(name, save(tmp_path / "p", mask.astype(np.float32), affine=shifted((3, 0, 0))))[0]["value"] == 1
    array, affine = turned(mask.astype(np.float32), AFFINE, (2, 0, 1), (1,))
    assert scores(name, save(tmp_path / "p", array, affine=affine))[0]["value"] == 1


@pytest.mark.parametrize("order", list(itertools.permutations(range(3)))[1:])
def test_other_shapes_without_an_affine_are_refused(dataset, tmp_path, order):
    name, mask = dataset(GRID)
    array = mask.transpose(*order, 3).astype(np.float32)
    with pytest.raises(PredictionsError, match="the prediction has the shape"):
        scores(name, save(tmp_path / "p", array))


def test_saved_predictions_say_where_they_lie(dataset, tmp_path):
    name, _ = dataset(GRID)
    cfg = Config(TEST_METRICS=["DSC", "HD"])
    evaluator = SemSegEvaluator(name, cfg, tmp_path / "out", save_predictions="probs")
    loader = build_loader(cfg, name, is_test=True)
    expected = inference_on_dataset(lambda x: np.repeat(x > 1, 2, axis=-1).astype(np.float32), loader, evaluator)
    with h5py.File(tmp_path / "out" / "predictions" / "a.h5") as file:
        np.testing.assert_allclose(file["probs"].attrs["affine"], AFFINE)
        assert file["probs"].attrs["spacing"].tolist() == pytest.approx(SPACING)
    assert scores(name, tmp_path / "out" / "predictions", ["DSC", "HD"]) == expected["metrics"]


def test_nifti_stored_otherwise(dataset, tmp_path):
    nibabel = pytest.importorskip("nibabel")
    pytest.importorskip("medsegpy_nifti")
    name, mask = dataset(GRID)
    labels = (mask[..., 0] + 2 * (mask[..., 1] & ~mask[..., 0] & 1)).astype(np.uint8)
    image = nibabel.Nifti1Image(labels, AFFINE)
    (tmp_path / "n").mkdir()
    nibabel.save(nibabel.as_closest_canonical(image), tmp_path / "n" / "a.nii.gz")
    assert [row["value"] for row in scores(name, tmp_path / "n", ["DSC"])] == [1, 1]
