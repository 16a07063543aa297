"""Predictions in files, on real files: what is read, what is refused, and that done scans are not done again."""

from __future__ import annotations

import json
import os
import shutil
import time
from concurrent.futures import ThreadPoolExecutor

import h5py
import numpy as np
import pytest
from click.testing import CliRunner

from medsegpy_core import (
    AugmentationError,
    Config,
    DatasetCatalog,
    MetadataCatalog,
    ReadError,
    UnknownNameError,
    build_loader,
    register_reader,
    scan_directory,
    write_slices,
    write_volume,
)
from medsegpy_core.cli import cli
from medsegpy_core.reading import is_young
from medsegpy_evaluation import (
    SemSegEvaluator,
    compare_results,
    evaluate_predictions,
    inference_on_dataset,
    predictions,
)

METRICS = ["DSC", "VOE", "ASSD", "HD95", "NSD", "RVD"]
NAMES = ["dog", "human", "pet"]
SHAPE = (14, 12, 8)
SCANS = ["0000001_V00", "0000002_V00", "0000002_V01"]


def volume(number):
    rng = np.random.default_rng(number)
    mask = np.zeros((*SHAPE, 3), np.uint8)
    for c in range(3):
        low = rng.integers(1, 4, 3)
        mask[(*(slice(a, a + 4) for a in low), c)] = 1
    return rng.normal(size=SHAPE).astype(np.float32), mask


def probabilities(number):
    """Of the categories dog (channel 0), human (channel 1) and pet (channels 0 and 2)."""
    truth = volume(number)[1]
    truth = np.stack((truth[..., 0], truth[..., 1], truth[..., 0] | truth[..., 2]), axis=-1)
    rng = np.random.default_rng(100 + number)
    return (np.roll(truth, 1, axis=1) * 0.7 + rng.random(truth.shape) * 0.25).astype(np.float32)


@pytest.fixture(params=["slices", "volumes"])
def layout(request):
    return request.param


@pytest.fixture
def dataset(tmp_path, layout):
    root = tmp_path / "data"
    root.mkdir()
    for number, scan in enumerate(SCANS):
        image, mask = volume(number)
        if layout == "slices":
            write_slices(root, image, mask, subject_id=int(scan[:7]), time_point=int(scan[-2:]))
        else:
            write_volume(root / f"{scan}.h5", image, mask)
    name = f"evaluation_predictions_{layout}"
    DatasetCatalog.register(name, lambda: scan_directory(root))
    MetadataCatalog.get(name).set(
        scan_root=str(root),
        category_ids=[0, 1, (0, 2)],
        categories=NAMES,
        category_id_to_contiguous_id={0: 0, 1: 1, (0, 2): 2},
        evaluator_type="SemSegEvaluator",
        spacing=(0.5, 1.0, 2.0),
    )
    yield name
    DatasetCatalog.remove(name)
    MetadataCatalog.remove(name)


@pytest.fixture
def folder(tmp_path):
    folder = tmp_path / "predictions"
    folder.mkdir()
    for number, scan in enumerate(SCANS):
        save(folder / f"{scan}.h5", probs=probabilities(number))
    return folder


def save(path, names=None, **arrays):
    with h5py.File(path, "w") as file:
        for key, array in arrays.items():
            dataset = file.create_dataset(key, data=array)
            if names is not None:
                dataset.attrs["categories"] = names


def run(dataset, folder, out=None, cfg=None, **options):
    return evaluate_predictions(dataset, folder, cfg or Config(TEST_METRICS=METRICS), out, **options)


def of_the_loader(dataset, cfg=None):
    """What the evaluator says of the same predictions when they come from a model."""
    cfg = cfg or Config(TEST_METRICS=METRICS)
    evaluator = SemSegEvaluator(dataset, cfg)
    loader = build_loader(Config(), dataset, is_test=True, batch_size=4)
    found = [inputs["scan_id"] for inputs, _ in loader.inference(lambda x: np.zeros((*x.shape[:-1], 3), np.float32))]
    assert found == SCANS

    class Model:
        def __init__(self):
            self.slices = np.concatenate([np.moveaxis(probabilities(n), 2, 0) for n in range(3)])
            self.at = 0

        def predict(self, x):
            self.at += len(x)
            return self.slices[self.at - len(x) : self.at]

    return inference_on_dataset(Model(), loader, evaluator)


def test_the_same_as_from_a_model(dataset, folder, tmp_path):
    document = run(dataset, folder, tmp_path / "out")
    expected = of_the_loader(dataset)
    assert document["metrics"] == expected["metrics"]
    assert document["summary"] == expected["summary"]
    assert document["scans"] == expected["scans"]  # the fingerprints of the truth among them
    assert compare_results(run(dataset, folder, tmp_path / "out"), expected).truth == "same"
    assert [s["time_point"] for s in document["scans"]] == [0, 0, 1]
    assert json.loads((tmp_path / "out" / "metrics.json").read_text())["metrics"] == document["metrics"]
    assert (tmp_path / "out" / "report.html").read_text().count("data:image/png") == 3


def test_forms_of_predictions(dataset, folder, tmp_path):
    expected = run(dataset, folder)
    other = tmp_path / "other"
    other.mkdir()
    probs = [probabilities(n) for n in range(3)]
    # Other channel order, by name, with one channel more; binary masks; names given instead of said.
    save(other / f"{SCANS[0]}.h5", ["pet", "cat", "dog", "human"], probs=probs[0][..., [2, 0, 0, 1]])
    save(other / f"{SCANS[1]}.hdf5", labels=(probs[1] > 0.5).astype(np.int16))
    save(other / f"{SCANS[2]}.h5", np.array([b"human", b"dog", b"pet"]), probs=probs[2][..., [1, 0, 2]].astype(">f8"))
    assert run(dataset, other)["metrics"] == expected["metrics"]
    turned = tmp_path / "turned"
    turned.mkdir()
    for number, scan in enumerate(SCANS):
        save(turned / f"{scan}.h5", probs=probs[number][..., ::-1])
    assert run(dataset, turned, channels=NAMES[::-1])["metrics"] == expected["metrics"]


def test_label_maps_and_the_largest_channel(dataset, tmp_path):
    maps, raw = tmp_path / "maps", tmp_path / "raw"
    cfg = Config(TEST_METRICS=["DSC"], LOSS=("ce", "softmax"), INCLUDE_BACKGROUND=True)
    for folder in (maps, raw):
        folder.mkdir()
    for number, scan in enumerate(SCANS):
        probs = np.random.default_rng(number).dirichlet(np.ones(4), SHAPE).astype(np.float32)
        save(raw / f"{scan}.h5", probs=probs)
        save(maps / f"{scan}.h5", ["background", *NAMES], labels=probs.argmax(axis=-1).astype(np.uint8))
    found = run(dataset, raw, cfg=cfg)
    assert found["metrics"] == run(dataset, maps, cfg=Config(TEST_METRICS=["DSC"]))["metrics"]
    assert found["settings"]["activation"] == "softmax"
    assert 0 < found["summary"][0]["mean"] < 1


def test_label_maps_without_names_are_those_of_the_dataset(dataset, tmp_path):
    folder = tmp_path / "maps"
    folder.mkdir()
    labels = np.random.default_rng(0).integers(0, 4, SHAPE)
    for scan in SCANS:
        save(folder / f"{scan}.h5", labels=labels)
    document = run(dataset, folder, cfg=Config(TEST_METRICS=["DSC"], CATEGORIES=[1, (0, 2)]))
    truth = volume(2)[1] > 0
    found = {row["category"]: row["value"] for row in document["metrics"] if row["scan"] == SCANS[2]}
    # Channel v - 1: human is 2, and what collates the channels 0 and 2 is 1 and 3.
    for name, pred, true in (
        ("human", labels == 2, truth[..., 1]),
        ("pet", (labels == 1) | (labels == 3), truth[..., 0] | truth[..., 2]),
    ):
        assert found[name] == pytest.approx(2 * (pred & true).sum() / (pred.sum() + true.sum()))


def test_thresholds_are_declared(dataset, folder):
    low = run(dataset, folder, cfg=Config(TEST_METRICS=["RVD"]), thresholds={"dog": 0.1})
    by_category = {row["category"]: row["mean"] for row in low["summary"]}
    assert by_category["dog"] > 1
    assert by_category["human"] == 0


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


def test_any_format_that_a_reader_reads(dataset, folder):
    expected = run(dataset, folder)
    register_reader(NpyReader(), replace=True)
    (folder / f"{SCANS[1]}.h5").unlink()
    np.save(folder / f"{SCANS[1]}.npy", probabilities(1))
    assert run(dataset, folder)["metrics"] == expected["metrics"]


def test_all_offenders_are_listed_before_work_starts(dataset, folder, tmp_path):
    with h5py.File(folder / f"{SCANS[0]}.h5", "a") as file:
        file["probs"][3, 3, 3, 1] = np.nan
    save(folder / f"{SCANS[1]}.h5", probs=probabilities(1)[:-1])
    (folder / f"{SCANS[2]}.h5").unlink()
    save(folder / "0000009_V00.h5", probs=probabilities(1))
    with pytest.raises(predictions.PredictionsError) as caught:
        run(dataset, folder, tmp_path / "out")
    lines = str(caught.value).splitlines()
    assert "4 scans" in lines[0]
    parts = ("NaN", "(13, 12, 8", "no prediction", "no scan")
    assert [part for part, line in zip(parts, lines[1:], strict=True) if part not in line] == []
    assert not (tmp_path / "out").exists()


@pytest.mark.parametrize(
    ("arrays", "said"),
    [
        ({"probs": np.full((*SHAPE, 3), 1.5, np.float32)}, "1.5"),
        ({"probs": np.zeros((*SHAPE, 2), np.float32)}, "2 channels"),
        ({"labels": np.full(SHAPE, 4, np.uint8)}, "0 .none. to 3"),
        ({"labels": np.full(SHAPE, 0.5, np.float32)}, "whole numbers"),
        ({"other": np.zeros(SHAPE)}, "'other'"),
    ],
)
def test_what_is_wrong_is_named_and_the_others_are_scored(dataset, folder, tmp_path, arrays, said):
    expected = run(dataset, folder)
    save(folder / f"{SCANS[1]}.h5", **arrays)
    with pytest.raises(predictions.PredictionsError, match=said):
        run(dataset, folder)
    document = run(dataset, folder, tmp_path / "out", keep_going=True)
    assert [item["scan"] for item in document["failed"]] == [SCANS[1]]
    assert document["metrics"] == [row for row in expected["metrics"] if row["scan"] != SCANS[1]]
    assert "could not be scored" in (tmp_path / "out" / "report.html").read_text()


def test_a_category_that_the_prediction_lacks(dataset, folder):
    with pytest.raises(predictions.PredictionsError, match=r"no channel for 'dog'.*Did you mean 'dogs'"):
        run(dataset, folder, channels=["dogs", "human", "pet"])


def test_spacing_that_is_needed_and_absent(dataset, folder):
    MetadataCatalog.get(dataset).set(replace=True, spacing=None)
    assert run(dataset, folder, cfg=Config(TEST_METRICS=["DSC"]))["summary"][0]["n"] == 3
    with pytest.raises(predictions.PredictionsError, match=r"(?s)0000001_V00.*spacing.*0000002_V01.*spacing"):
        run(dataset, folder)


def test_done_scans_are_not_done_again(dataset, folder, tmp_path, monkeypatch):
    done = []
    real = predictions.score_scan

    def counting(identity, *args, **options):
        done.append(identity["scan"])
        return real(identity, *args, **options)

    monkeypatch.setattr(predictions, "score_scan", counting)
    out = tmp_path / "out"
    first = run(dataset, folder, out)
    assert sorted(done) == SCANS
    done.clear()
    assert run(dataset, folder, out) == first
    assert done == []
    # Another prediction, other settings, or a broken record of what was done: done again.
    save(folder / f"{SCANS[2]}.h5", probs=probabilities(1))
    assert run(dataset, folder, out) != first
    assert done == [SCANS[2]]
    done.clear()
    run(dataset, folder, out, cfg=Config(TEST_METRICS=["DSC"]))
    assert sorted(done) == SCANS
    done.clear()
    (out / "scans" / f"{SCANS[0]}.json").write_text("{")
    run(dataset, folder, out, cfg=Config(TEST_METRICS=["DSC"]))
    assert done == [SCANS[0]]
    done.clear()
    run(dataset, folder, out, cfg=Config(TEST_METRICS=["DSC"]), fresh=True)
    assert sorted(done) == SCANS


@pytest.fixture
def done(monkeypatch):
    """The scans that are scored."""
    found = []
    real = predictions.score_scan

    def counting(identity, *args, **options):
        found.append(identity["scan"])
        return real(identity, *args, **options)

    monkeypatch.setattr(predictions, "score_scan", counting)
    return found


def age(*folders):
    """Make all files older than the time during which a stamp proves nothing, and wait until they are."""
    for folder in folders:
        for path in folder.iterdir():
            os.utime(path, (10**9, 10**9))
            wait_until(lambda path=path: not is_young(path.stat()))


def wait_until(holds):
    while not holds():
        time.sleep(0.01)


def test_kept_scores_are_tied_to_content(dataset, folder, tmp_path, done):
    """`cp -p`, `rsync -t` and archives leave size and modification time as they were."""
    run(dataset, folder, tmp_path / "out")
    done.clear()
    prediction = folder / f"{SCANS[0]}.h5"
    other = prediction.read_bytes()
    at = other.rindex(probabilities(0)[-1].tobytes()[-64:])
    other = other[:at] + np.zeros(8, np.float32).tobytes() + other[at + 32 :]
    status = prediction.stat()
    # In place, so that the inode stays.
    with prediction.open("r+b") as file:
        file.write(other)
    os.utime(prediction, ns=(status.st_atime_ns, status.st_mtime_ns))
    assert (prediction.stat().st_size, prediction.stat().st_ino) == (status.st_size, status.st_ino)
    run(dataset, folder, tmp_path / "out")
    assert done == [SCANS[0]]
    done.clear()
    # The truth, replaced.
    truth = next(path for path in sorted((tmp_path / "data").iterdir()) if SCANS[1] in path.name)
    if (mask := truth.with_suffix(".seg")).exists():
        truth = mask
    status, copy = truth.stat(), tmp_path / "copy"
    shutil.copy2(truth, copy)
    with h5py.File(copy, "a") as file:
        key = "seg" if "seg" in file else "data"
        file[key][0, 0] = 1 - file[key][0, 0]
    os.utime(copy, ns=(status.st_atime_ns, status.st_mtime_ns))
    assert copy.stat().st_size == status.st_size
    copy.replace(truth)
    run(dataset, folder, tmp_path / "out")
    assert done == [SCANS[1]]


def test_what_touches_a_file_and_not_its_content_changes_nothing(dataset, folder, tmp_path, done, monkeypatch):
    first = run(dataset, folder, tmp_path / "out")
    age(folder, tmp_path / "data")
    hashed = []
    real = predictions.file_hash
    monkeypatch.setattr(predictions, "file_hash", lambda path: hashed.append(path) or real(path))
    done.clear()
    assert run(dataset, folder, tmp_path / "out") == first
    assert done == []
    assert len(hashed) > 0
    # Kept with the new stamps: not read again.
    hashed.clear()
    assert run(dataset, folder, tmp_path / "out") == first
    assert (done, hashed) == ([], [])
    (folder / f"{SCANS[0]}.h5").chmod(0o600)
    assert run(dataset, folder, tmp_path / "out") == first
    assert (done, hashed) == ([], [folder / f"{SCANS[0]}.h5"])


def test_a_file_that_changes_while_it_is_scored(dataset, folder, tmp_path, monkeypatch):
    real = predictions.score_scan

    def changing(identity, *args, **options):
        if identity["scan"] == SCANS[1]:
            save(folder / f"{SCANS[1]}.h5", probs=probabilities(0))
        return real(identity, *args, **options)

    monkeypatch.setattr(predictions, "score_scan", changing)
    with pytest.raises(predictions.PredictionsError, match=f"{SCANS[1]}.h5 changed while it was scored"):
        run(dataset, folder, tmp_path / "out", executor=ThreadPoolExecutor(1))
    assert SCANS[1] not in {path.stem for path in (tmp_path / "out" / "scans").iterdir()}


def test_a_run_that_is_broken_off_keeps_what_is_done(dataset, folder, tmp_path, monkeypatch):
    real = predictions.score_scan

    def failing(identity, *args, **options):
        if identity["scan"] == SCANS[2]:
            raise KeyboardInterrupt
        return real(identity, *args, **options)

    monkeypatch.setattr(predictions, "score_scan", failing)
    with pytest.raises(KeyboardInterrupt):
        run(dataset, folder, tmp_path / "out", executor=ThreadPoolExecutor(1))
    assert sorted(p.stem for p in (tmp_path / "out" / "scans").iterdir()) == SCANS[:2]


def test_saved_predictions_are_read_again(dataset, tmp_path):
    loader = build_loader(Config(), dataset, is_test=True)
    cfg = Config(TEST_METRICS=METRICS)

    def model(x):
        return np.repeat(1 / (1 + np.exp(-x)), 3, axis=-1)

    for form in ("probs", "labels"):
        evaluator = SemSegEvaluator(dataset, cfg, tmp_path / form, save_predictions=form)
        document = inference_on_dataset(model, loader, evaluator)
        assert run(dataset, tmp_path / form / "predictions")["metrics"] == document["metrics"]


def test_augmented_copies_are_refused(dataset, folder, layout, tmp_path):
    image, mask = volume(0)
    root = tmp_path / "data"
    if layout == "slices":
        write_slices(root, image, mask, subject_id=1, augmentation=1)
    else:
        write_volume(root / "0000001_V00-Aug01.h5", image, mask)
    with pytest.raises(AugmentationError, match="originals only"):
        run(dataset, folder)


def test_no_such_folder_or_dataset(dataset, tmp_path, folder):
    with pytest.raises(ReadError, match="no such folder"):
        run(dataset, tmp_path / "nowhere")
    with pytest.raises(UnknownNameError):
        run("evaluation_of_nothing", folder)
    save(folder / f"{SCANS[0]}.hdf5", probs=probabilities(0))
    with pytest.raises(ReadError, match="both predictions"):
        run(dataset, folder)


def invoke(*args):
    return CliRunner().invoke(cli, ["evaluate", *map(str, args)])


def test_the_command(dataset, folder, tmp_path):
    result = invoke(dataset, "--predictions", folder, "--output", tmp_path / "out", "--metrics", "DSC,HD95")
    assert result.exit_code == 0, result.output
    assert "HD95 (mm)" in result.output
    assert "3 scans of 2 subjects" in result.output
    as_json = invoke(dataset, "--predictions", folder, "--output", tmp_path / "out", "--metrics", "DSC,HD95", "--json")
    expected = run(dataset, folder, cfg=Config(TEST_METRICS=["DSC", "HD95"]))
    assert json.loads(as_json.stdout)["metrics"] == expected["metrics"]


def test_the_command_goes_on_where_it_is_asked_to(dataset, folder, tmp_path):
    (folder / f"{SCANS[2]}.h5").unlink()
    strict = invoke(dataset, "--predictions", folder, "--output", tmp_path / "out")
    assert strict.exit_code == 1
    assert f"Scan '{SCANS[2]}'" in strict.output
    lenient = invoke(dataset, "--predictions", folder, "--output", tmp_path / "out", "--keep-going")
    assert lenient.exit_code == 1
    assert "1 scan could not be scored" in lenient.output
    assert "2 scans of 2 subjects" in lenient.output


def test_options_of_the_command(dataset, folder, tmp_path, monkeypatch):
    monkeypatch.setenv("MEDSEGPY_RESULTS", str(tmp_path / "results"))
    options = ["--threshold", "dog=0.1", "--tolerance", "2", "--channels", "dog,human,pet", "--no-pictures"]
    result = invoke(dataset, "--predictions", folder, "--metrics", "NSD,RVD", "--workers", "1", *options)
    assert result.exit_code == 0, result.output
    kept = json.loads((tmp_path / "results" / dataset / "metrics.json").read_text())
    assert kept["settings"]["thresholds"]["dog"] == 0.1
    assert kept["settings"]["nsd_tolerance"] == 2
    config = tmp_path / "cfg.yaml"
    Config(TEST_METRICS=["VOE"]).save(config)
    result = invoke(dataset, "--predictions", folder, "--config", config)
    assert result.exit_code == 0, result.output
    assert "VOE" in result.output
    assert invoke(dataset, "--predictions", folder, "--threshold", "dog=x").exit_code == 2
    assert invoke(dataset).exit_code == 2


def test_argmax_on_the_command_line(dataset, tmp_path):
    folder = tmp_path / "raw"
    folder.mkdir()
    names = ["human", "background", "dog", "pet"]
    for number, scan in enumerate(SCANS):
        probs = np.random.default_rng(number).dirichlet(np.ones(4), SHAPE).astype(np.float32)
        save(folder / f"{scan}.h5", names, probs=probs)
    arguments = (dataset, "--predictions", folder, "--output", tmp_path / "out", "--metrics", "DSC", "--json")
    result = invoke(*arguments, "--argmax")
    assert result.exit_code == 0, result.output
    document = json.loads(result.stdout)
    largest = np.random.default_rng(0).dirichlet(np.ones(4), SHAPE).astype(np.float32).argmax(axis=-1)
    pred, truth = largest == 2, volume(0)[1][..., 0] > 0
    expected = 2 * (pred & truth).sum() / (pred.sum() + truth.sum())
    assert document["metrics"][0]["value"] == pytest.approx(expected)


@pytest.mark.parametrize("layout", ["volumes"], indirect=True)
def test_categories_by_name(dataset, folder, tmp_path):
    def command(names, out="by name"):
        options = [
            "--categories",
            names,
            "--metrics",
            "DSC",
            "--output",
            str(tmp_path / out),
            "--channels",
            "dog,human,pet",
        ]
        return CliRunner().invoke(cli, ["evaluate", dataset, "--predictions", str(folder), *options])

    done = command("pet, human")
    assert done.exit_code == 0, done.output
    kept = json.loads((tmp_path / "by name" / "metrics.json").read_text())
    assert kept["settings"]["categories"] == ["pet", "human"]
    whole = run(dataset, folder, cfg=Config(TEST_METRICS=["DSC"]))
    expected = {(r["scan"], r["category"]): r["value"] for r in whole["metrics"] if r["category"] != "dog"}
    assert {(r["scan"], r["category"]): r["value"] for r in kept["metrics"]} == expected
    for names, said in (
        ("pet,humna", "Did you mean 'human'?"),
        ("Pet", "Did you mean 'pet'?"),
        ("pet,pet", "given twice"),
        (",", "names none"),
    ):
        refused = command(names, "refused")
        assert refused.exit_code != 0
        assert said in refused.output
        assert not (tmp_path / "refused").exists()
