"""Truth and predictions are read by one code, the core's, and nothing is guessed about what their numbers mean."""

from __future__ import annotations

import json
import pickle
import tracemalloc

import h5py
import numpy as np
import pytest
from click.testing import CliRunner
from hypothesis import given
from hypothesis import strategies as st

from medsegpy_core import (
    Config,
    DatasetCatalog,
    MetadataCatalog,
    RecordError,
    build_loader,
    register_reader,
    write_slices,
)
from medsegpy_core.cli import cli
from medsegpy_core.hdf5 import Access, accessing, isolation
from medsegpy_core.loading import list_scans
from medsegpy_evaluation import SemSegEvaluator, evaluate_predictions, inference_on_dataset, predictions, score_masks
from medsegpy_evaluation.prediction_files import LabelValues, file_stem, labelled, list_predictions
from medsegpy_evaluation.predictions import PredictionsError

SHAPE = (9, 8, 6)


@pytest.fixture
def register():
    """Return a function that registers dicts as a dataset with categories of ids 0, 1, ... or those that are given."""
    names = []

    def register(dicts, categories, ids=None, **metadata):
        name = f"evaluation_reading_{len(names)}"
        ids = list(range(len(categories))) if ids is None else ids
        names.append(name)
        DatasetCatalog.register(name, lambda: dicts)
        MetadataCatalog.get(name).set(
            scan_root=".",
            category_ids=ids,
            categories=categories,
            category_id_to_contiguous_id={c: i for i, c in enumerate(ids)},
            evaluator_type="SemSegEvaluator",
            spacing=(1, 1, 1),
            **metadata,
        )
        return name

    yield register
    for name in names:
        DatasetCatalog.remove(name)
        MetadataCatalog.remove(name)


def save(path, names=None, **arrays):
    path.parent.mkdir(exist_ok=True)
    with h5py.File(path, "w") as file:
        for key, array in arrays.items():
            dataset = file.create_dataset(key, data=array)
            if names is not None:
                dataset.attrs["categories"] = names
    return path


def a_volume(tmp_path, mask, **keys):
    path = str(save(tmp_path / "data" / "a.h5", volume=np.zeros(mask.shape[:3], np.float32), seg=mask))
    return [{"file_name": path, "sem_seg_file": path, "scan_id": "a", **keys}]


def binary(channels, seed=0):
    return (np.random.default_rng(seed).random((*SHAPE, channels)) < 0.4).astype(np.uint8)


def dice(dataset, folder, **options):
    cfg = Config(TEST_METRICS=["DSC"], CATEGORIES=options.pop("categories", []))
    rows = evaluate_predictions(dataset, folder, cfg, None, **options)["summary"]
    return {row["category"]: row["mean"] for row in rows}


@pytest.mark.parametrize("value", [2, 255, 0.5, -1])
def test_masks_that_are_not_binary_are_refused_as_by_the_loaders(register, tmp_path, value):
    mask = binary(1)
    dataset = register(a_volume(tmp_path, mask * np.array(value, np.float32)), ["x"])
    save(tmp_path / "p" / "a.h5", labels=mask)
    with pytest.raises(PredictionsError, match=r"a\.h5.*expected 0 and 1"):
        dice(dataset, tmp_path / "p")


def test_a_reader_is_chosen_for_each_file(register, tmp_path):
    """Slices of one scan in two formats."""

    class Reader:
        name = "evaluation-test-slices"
        suffixes = (".evaluation-slice",)

        def probe(self, path):
            return False

        def open(self, record):
            from contextlib import nullcontext
            from types import SimpleNamespace

            arrays = np.load(record.file_name)
            return nullcontext(SimpleNamespace(image=arrays["image"], mask=arrays["mask"], metadata={}))

    register_reader(Reader(), replace=True)
    mask = binary(2)
    dicts = write_slices(tmp_path / "data", np.zeros(SHAPE, np.float32), mask, subject_id=1)
    path = tmp_path / "data" / "middle.evaluation-slice"
    with path.open("wb") as file:
        np.savez(file, image=np.zeros(SHAPE[:2], np.float32), mask=mask[:, :, 2])
    dicts[2] |= {"file_name": str(path), "sem_seg_file": str(path)}
    dataset = register(dicts, ["x", "y"])
    save(tmp_path / "p" / "0000001_V00.h5", labels=mask)
    assert dice(dataset, tmp_path / "p") == {"x": 1, "y": 1}


def test_scans_for_those_who_judge(register, tmp_path):
    mask = binary(3)
    image = np.random.default_rng(1).normal(size=SHAPE).astype(np.float32)
    dicts = write_slices(tmp_path / "data", image, mask, subject_id=1)
    (scan,) = list_scans(register(dicts, list("abc")), [2, (0, 1)], background=True)
    (scan,) = pickle.loads(pickle.dumps([scan]))
    assert (scan.scan_id, scan.shape, len(scan.files)) == ("0000001_V00", SHAPE, 12)
    found, again = scan.read(with_image=True)
    expected = [mask[..., 2], mask[..., 0] | mask[..., 1]]
    np.testing.assert_array_equal(found, np.stack([1 - (expected[0] | expected[1]), *expected], axis=-1))
    np.testing.assert_array_equal(again, image)
    assert scan.problems() == []
    without = {key: value for key, value in dicts[3].items() if key != "sem_seg_file"}
    for some, said in (
        (dicts[:2] + dicts[3:], "slices are missing: 3"),
        ([*dicts[:3], without, *dicts[4:]], "1 of its 6 elements"),
    ):
        (scan,) = list_scans(register(some, list("abc")), [0])
        with pytest.raises(RecordError, match=said):
            scan.read()


def test_probabilities_without_a_channel_axis_are_those_of_the_one_category(register, tmp_path):
    mask = binary(2)
    dataset = register(a_volume(tmp_path, mask), ["liver", "spleen"])
    for array in (mask[..., 1].astype(np.float32), mask[..., 1] * 0.7 + 0.1, mask[..., 1]):
        save(tmp_path / "p" / "a.h5", probs=array)
        assert dice(dataset, tmp_path / "p", categories=[1]) == {"spleen": 1}
        with pytest.raises(PredictionsError, match=r"without a channel axis.*'liver', 'spleen'"):
            dice(dataset, tmp_path / "p")
    # `labels` is a label map, whatever is evaluated.
    save(tmp_path / "p" / "a.h5", labels=2 * mask[..., 1])
    assert dice(dataset, tmp_path / "p", categories=[1]) == {"spleen": 1}
    # With the background, two channels are expected.
    save(tmp_path / "p" / "a.h5", probs=mask[..., 1] * 0.7)
    cfg = Config(TEST_METRICS=["DSC"], CATEGORIES=[1], INCLUDE_BACKGROUND=True, LOSS=("ce", "softmax"))
    with pytest.raises(PredictionsError, match="without a channel axis"):
        evaluate_predictions(dataset, tmp_path / "p", cfg, None)


class NpyReader:
    name = "evaluation-test-npy"
    suffixes = (".npy",)

    def probe(self, path):
        return path.suffix == ".npy"

    def open(self, record):
        from contextlib import nullcontext
        from types import SimpleNamespace

        image = np.load(record.file_name)
        return nullcontext(SimpleNamespace(image=image, mask=None, metadata={}))


def test_other_formats_without_a_channel_axis(register, tmp_path):
    """Integers are labels. Floats are labels or the probabilities of the one category, by their values, or refused."""
    register_reader(NpyReader(), replace=True)
    liver, spleen = (np.arange(np.prod(SHAPE)).reshape(SHAPE) % 3 == n for n in (0, 1))
    mask = np.stack([liver, spleen], axis=-1).astype(np.uint8)
    dataset = register(a_volume(tmp_path, mask), ["liver", "spleen"])
    (tmp_path / "p").mkdir()

    def found(array, **options):
        np.save(tmp_path / "p" / "a.npy", array)
        return dice(dataset, tmp_path / "p", **options)

    labels = liver + 2 * spleen
    for array in (labels.astype(np.uint8), labels.astype(np.float32), labels * 0.99999998):
        assert found(array) == {"liver": 1, "spleen": 1}
        assert found(array, categories=[1]) == {"spleen": 1}
    assert found(0.2 + 0.6 * spleen, categories=[1]) == {"spleen": 1}
    assert found(spleen, categories=[1]) == {"spleen": 1}
    # 0 and 1: the liver of a label map, or the mask of the spleen?
    with pytest.raises(PredictionsError, match=r"0 and 1.*channels=\['spleen'\]"):
        found(spleen.astype(np.float32), categories=[1])
    assert found(spleen.astype(np.float32), categories=[1], channels=["spleen"]) == {"spleen": 1}
    # Both would mean the same.
    assert found(liver.astype(np.float32), categories=[0]) == {"liver": 1}
    assert found(liver.astype(np.uint8), categories=[1]) == {"spleen": 0}
    with pytest.raises(PredictionsError, match="without a channel axis"):
        found(0.2 + 0.6 * spleen)
    with pytest.raises(PredictionsError, match="NaN"):
        found(np.where(spleen, np.nan, 0.5), categories=[1])
    with pytest.raises(PredictionsError, match=r"the value 3; .* 0 .none. to 2"):
        found(labels + liver * 2)


def test_predictions_of_one_slice_may_be_2d(register, tmp_path):
    mask = np.random.default_rng(0).random((9, 8, 1, 2)) < 0.4
    mask[..., 1] &= ~mask[..., 0]
    dicts = write_slices(tmp_path / "data", np.zeros((9, 8, 1), np.float32), mask.astype(np.uint8), subject_id=1)
    dataset = register(dicts, ["x", "y"])
    labels = (mask[..., 0] + 2 * mask[..., 1]).astype(np.uint8)
    for arrays in (
        {"probs": mask.astype(np.float32)},
        {"probs": mask[:, :, 0].astype(np.float32)},
        {"labels": labels},
        {"labels": labels[:, :, 0]},
    ):
        save(tmp_path / "p" / "0000001_V00.h5", **arrays)
        assert dice(dataset, tmp_path / "p") == {"x": 1, "y": 1}
    for array in (mask[:, :, 0, 1], mask[:, :, :, 1]):
        save(tmp_path / "p" / "0000001_V00.h5", probs=array.astype(np.float32))
        assert dice(dataset, tmp_path / "p", categories=[1]) == {"y": 1}
    save(tmp_path / "p" / "0000001_V00.h5", probs=mask[:, :, 0].transpose(1, 0, 2).astype(np.float32))
    with pytest.raises(PredictionsError, match="shape"):
        dice(dataset, tmp_path / "p")


def test_a_reader_that_fails_names_the_file(register, tmp_path):
    register_reader(NpyReader(), replace=True)
    dataset = register(a_volume(tmp_path, binary(1)), ["x"])
    (tmp_path / "p").mkdir()
    (tmp_path / "p" / "a.npy").write_bytes(b"no array")
    with pytest.raises(PredictionsError, match=r"a\.npy.*evaluation-test-npy"):
        dice(dataset, tmp_path / "p")


@given(st.text(st.characters(), min_size=1, max_size=40))
def test_the_file_of_any_scan_is_found_again(tmp_path_factory, scan):
    stem = file_stem(scan)
    assert not stem.startswith(".")
    assert "/" not in stem
    assert "\0" not in stem
    if len(stem) > 200:
        return
    folder = tmp_path_factory.mktemp("found")
    (folder / f"{stem}.h5").touch()
    (folder / f"._{stem}.h5").touch()  # what macOS puts beside files
    assert list_predictions(folder) == {scan: folder / f"{stem}.h5"}


@pytest.mark.parametrize("scan", [".hidden", "..", "a/b", "x.h5", "größe", "\udce4"])
def test_saved_predictions_of_any_scan_are_evaluated(register, tmp_path, scan):
    mask = binary(1)
    dicts = [a_volume(tmp_path, mask)[0] | {"scan_id": scan}]
    dataset = register(dicts, ["x"])
    evaluator = SemSegEvaluator(dataset, Config(TEST_METRICS=["DSC"]), tmp_path / "out", save_predictions="probs")
    evaluator.process([{"scan_id": scan}], [{"y_true": mask, "y_pred": mask.astype(np.float32)}])
    assert dice(dataset, tmp_path / "out" / "predictions") == {"x": 1}


def test_label_maps_follow_the_label_values_of_the_dataset(register, tmp_path):
    labels = np.random.default_rng(0).choice([0, 17, 2035, 70000], SHAPE)
    values = LabelValues.of_dataset([1, (0, 2)], 3, (70000, 17, 2035))
    masks, problems = labelled(labels, values, ["a", "b"])
    assert problems == []
    np.testing.assert_array_equal(masks[..., 0], labels == 17)
    np.testing.assert_array_equal(masks[..., 1], (labels == 70000) | (labels == 2035))
    few, _ = labelled(np.where(labels > 17, 0, labels).astype(np.int16), values, ["a", "b"])
    np.testing.assert_array_equal(few[..., 0], labels == 17)
    for wrong in (18, 3, 70001, 2**40):
        labels[0, 0, 0] = wrong
        assert f"the value {wrong};" in labelled(labels, values, ["a", "b"])[1][0]
        assert "70000, 17, 2035" in labelled(labels, values, ["a", "b"])[1][0]


@given(
    st.lists(st.integers(0, 90000), min_size=1, max_size=40),
    st.lists(st.integers(1, 90000), min_size=3, max_size=6, unique=True),
    st.sampled_from([np.int64, np.uint32, np.float64]),
)
def test_labels_are_what_comparing_says(drawn, values, dtype):
    array = np.array([*drawn, *values, 0], dtype)
    masks, problems = labelled(array, LabelValues.of_dataset([0, (1, 2)], 9, values), ["a", "b"])
    if set(drawn) <= {0, *values}:
        assert problems == []
        np.testing.assert_array_equal(masks[:, 0], array == values[0])
        np.testing.assert_array_equal(masks[:, 1], (array == values[1]) | (array == values[2]))
    else:
        assert len(problems) == 1


def test_what_is_unknown_in_the_truth_is_left_out(register, tmp_path):
    """`label_values`, `ignore_values` and `annotated`: from the files to the scores."""
    rng = np.random.default_rng(0)
    truth, pred = rng.choice([0, 17, 2035, -3], (2, *SHAPE), p=[0.4, 0.25, 0.25, 0.1]).astype(np.int16)
    pred[pred == -3] = 0
    path = str(save(tmp_path / "a.h5", volume=np.zeros(SHAPE, np.float32), seg=truth))
    keys = {"label_map": True, "label_values": (2035, 17), "ignore_values": (-3,)}
    scan = {"file_name": path, "sem_seg_file": path, "scan_id": "a", **keys}
    save(tmp_path / "p" / "a.h5", labels=pred)
    some = [(value, truth == value, (pred == value) & (truth != -3)) for value in (2035, 17)]
    expected = {value: 2 * (t & p).sum() / (t.sum() + p.sum()) for value, t, p in some}
    found = dice(register([scan], ["x", "y"]), tmp_path / "p")
    assert found == {"x": pytest.approx(expected[2035]), "y": pytest.approx(expected[17])}
    dataset = register([scan | {"annotated": [1]}], ["x", "y"])
    document = evaluate_predictions(dataset, tmp_path / "p", Config(TEST_METRICS=["DSC"]), tmp_path / "out")
    x, y = document["scans"][0]["structures"]
    assert (x["status"], x["unknown_voxels"]) == ("unknown", truth.size)
    assert (y["status"], y["unknown_voxels"]) == ("scored", (truth == -3).sum())
    assert [row["value"] for row in document["metrics"]] == [None, pytest.approx(expected[17])]


PARTLY_METRICS = ["DSC", "ASSD", "BoundaryIoU", "LesionF1", "LesionDSC", "ECE", "Brier"]


@pytest.mark.parametrize("softmax", [False, True])
def test_a_partly_annotated_dataset_from_loader_and_command(register, tmp_path, softmax):
    """Unknown voxels are left out, counted and shown, by the evaluator behind a loader and by the command alike."""
    rng = np.random.default_rng(0)
    keys = {"label_map": True, "label_values": (3, 8), "ignore_values": (250,)}
    annotated = {"a": None, "b": [0], "c": [1]}
    dicts, labels, probs = [], {}, {}
    for number, (scan, known) in enumerate(annotated.items()):
        truth = np.zeros(SHAPE, np.uint8)
        truth[1:4, 1:4, 1:4], truth[5:8, 2 + number : 5 + number, 1:5], truth[:, :, 5] = 3, 8, 250
        path = str(save(tmp_path / "data" / f"{scan}.h5", volume=rng.normal(size=SHAPE).astype(np.float32), seg=truth))
        some = {} if known is None else {"annotated": known}
        dicts.append({"file_name": path, "sem_seg_file": path, "scan_id": scan, **keys, **some})
        near = np.stack([truth == 0, np.roll(truth == 3, 1, 0), np.roll(truth == 8, 1, 1)], axis=-1)
        raw = near + rng.random(near.shape) * 0.8  # what is ignored is predicted as something
        labels[scan], probs[scan] = truth, (raw / raw.sum(axis=-1, keepdims=True)).astype(np.float32)
        save(tmp_path / "p" / f"{scan}.h5", ["background", "x", "y"], probs=probs[scan])
    dataset = register(dicts, ["x", "y"])
    cfg = Config(TEST_METRICS=PARTLY_METRICS, TEST_BATCH_SIZE=4, TEST_DATASET=dataset)
    if softmax:
        cfg.LOSS, cfg.INCLUDE_BACKGROUND = ("argmax", "softmax"), True
    cfg.save(tmp_path / "cfg.yaml")
    order = iter([p for scan in annotated for p in np.array_split(np.moveaxis(probs[scan], 2, 0), [4])])

    def model(batch):
        found = next(order)
        assert len(found) == len(batch)
        return found if softmax else found[..., 1:]

    evaluator = SemSegEvaluator(dataset, cfg, tmp_path / "loader")
    behind = inference_on_dataset(model, build_loader(cfg, dataset, is_test=True), evaluator)
    options = ["--predictions", tmp_path / "p", "--config", tmp_path / "cfg.yaml", "--output", tmp_path / "command"]
    done = CliRunner().invoke(cli, ["evaluate", dataset, *map(str, options)])
    assert done.exit_code == 0, done.output
    command = json.loads((tmp_path / "command" / "metrics.json").read_text())
    assert behind["metrics"] == command["metrics"]
    assert behind["scans"] == command["scans"]
    rows = {(row["scan"], row["category"], row["metric"]): row["value"] for row in command["metrics"]}
    for scan, known in annotated.items():
        kept = labels[scan] != 250
        for channel, name in enumerate(("x", "y")):
            values = [rows[scan, name, metric] for metric in PARTLY_METRICS]
            if known is not None and channel not in known:
                assert values == [None] * len(PARTLY_METRICS)
                continue
            # The definition on the known voxels alone.
            p, t = probs[scan][..., channel + 1], labels[scan] == (3, 8)[channel]
            found = (probs[scan].argmax(axis=-1) == channel + 1 if softmax else p > 0.5) & kept
            t = t & kept
            expected = score_masks(found, t, (1, 1, 1), PARTLY_METRICS)
            assert values[:5] == [expected[metric] for metric in PARTLY_METRICS[:5]]
            assert values[6] == pytest.approx(np.mean((p.astype(float) - t)[kept] ** 2), rel=1e-9)
    counts = {(s["scan"], c["category"]): c["unknown_voxels"] for s in command["scans"] for c in s["structures"]}
    some, whole = 9 * 8, 9 * 8 * 6
    assert counts == {
        ("a", "x"): some,
        ("a", "y"): some,
        ("b", "x"): some,
        ("b", "y"): whole,
        ("c", "x"): whole,
        ("c", "y"): some,
    }
    summary = {(row["category"], row["metric"]): row for row in command["summary"]}
    assert {(row["n"], row["unknown"]) for row in summary.values()} == {(2, 1)}
    line = f"{4 * some + 2 * whole:,} voxels of 3 scans (each category counted) unknown, left out of all metrics"
    assert line in done.output.replace("\n", " ")
    for folder in ("loader", "command"):
        page = (tmp_path / folder / "report.html").read_text()
        assert "<h2>Unknown voxels</h2>" in page
        assert line in page
        assert "2 structures unknown throughout" in page


def test_cost_does_not_grow_with_the_largest_label(register, tmp_path):
    peaks = []
    for high in (2, 2035):
        labels = np.random.default_rng(0).choice([0, 1, high], (40, 40, 20)).astype(np.uint16)
        path = str(save(tmp_path / f"{high}.h5", volume=labels.astype(np.float32), seg=labels))
        dicts = [{"file_name": path, "sem_seg_file": path, "scan_id": "a", "label_map": True}]
        dataset = register(dicts, ["x", "y"], [0, high - 1])
        save(tmp_path / f"p{high}" / "a.h5", labels=labels)
        tracemalloc.start()
        assert dice(dataset, tmp_path / f"p{high}") == {"x": 1, "y": 1}
        peaks.append(tracemalloc.get_traced_memory()[1])
        tracemalloc.stop()
    # A channel for each value would take 65 MB.
    assert peaks[1] < peaks[0] + 10e6


def test_everything_of_a_prediction_goes_through_the_helper(register, tmp_path, monkeypatch):
    """The workers, threads here, read as the caller says."""
    mask = binary(2)
    dataset = register(a_volume(tmp_path, mask), ["x", "y"])
    save(tmp_path / "p" / "a.h5", ["y", "x"], probs=mask[..., ::-1].astype(np.float32))
    asked = []
    real = isolation._ask

    def asking(operation, path, *rest):
        asked.append((operation, path))
        return real(operation, path, *rest)

    monkeypatch.setattr(isolation, "_ask", asking)

    def opening(*_):
        raise AssertionError("The HDF5 library runs in this process.")

    from concurrent.futures import ThreadPoolExecutor

    from medsegpy_core.hdf5 import probe as looking

    monkeypatch.setattr(looking, "open_file", opening)
    with accessing(Access(isolate=True)), ThreadPoolExecutor(2) as executor:
        assert dice(dataset, tmp_path / "p", executor=executor) == {"x": 1, "y": 1}
    prediction = str(tmp_path / "p" / "a.h5")
    assert {operation for operation, path in asked if path == prediction} >= {"locate", "names"}


@pytest.mark.slow
def test_workers_in_other_processes(register, tmp_path):
    """They know neither the registrations nor the access of this one."""
    import multiprocessing
    from concurrent.futures import ProcessPoolExecutor

    mask = binary(2)
    dataset = register(a_volume(tmp_path, mask), ["x", "y"])
    save(tmp_path / "p" / "a.h5", probs=mask.astype(np.float32))
    context = multiprocessing.get_context("spawn")
    with accessing(Access(isolate=True)), ProcessPoolExecutor(1, mp_context=context) as executor:
        assert dice(dataset, tmp_path / "p", executor=executor) == {"x": 1, "y": 1}


def test_the_command_reads_in_the_helper(register, tmp_path, monkeypatch):
    mask = binary(1)
    dataset = register(a_volume(tmp_path, mask), ["x"])
    save(tmp_path / "p" / "a.h5", probs=mask.astype(np.float32))
    seen = []
    real = predictions.check
    monkeypatch.setattr(predictions, "check", lambda job: seen.append(job.access.isolate) or real(job))
    command = ["evaluate", dataset, "--predictions", str(tmp_path / "p"), "--output", str(tmp_path / "out")]
    for options in ([], ["--isolate", "--fresh"]):
        result = CliRunner().invoke(cli, [*command, *options])
        assert result.exit_code == 0, result.output
    assert seen == [False, True]


@pytest.mark.parametrize("names", [3, [1, 2], np.empty((0, 2), "S3"), h5py.Empty("S3")])
def test_channel_names_that_are_no_list_of_names(register, tmp_path, names):
    dataset = register(a_volume(tmp_path, binary(1)), ["x"])
    save(tmp_path / "p" / "a.h5", names, probs=np.zeros((*SHAPE, 1), np.float32))
    for access in (Access(), Access(isolate=True)):
        with accessing(access), pytest.raises(PredictionsError, match="not a list of names"):
            dice(dataset, tmp_path / "p")
