"""Names come from files and plugins: none of them ends an evaluation, or is more than text where it is shown."""

from __future__ import annotations

import csv
import io
import json
import os
import re
from html.parser import HTMLParser

import h5py
import numpy as np
import pytest
from click.testing import CliRunner
from hypothesis import given
from hypothesis import strategies as st

from medsegpy_core import Config, DatasetCatalog, MetadataCatalog, UnknownNameError, scan_directory, write_volume
from medsegpy_core.cli import cli
from medsegpy_core.text import printable
from medsegpy_evaluation import SemSegEvaluator, compare_results, evaluate_predictions, score_masks
from medsegpy_evaluation.report import SCRIPT
from medsegpy_evaluation.results import csv_text, json_text
from medsegpy_evaluation.statistics import Bootstrap

HOSTILE = [
    '=HYPERLINK("http://x","y")',
    "+1+cmd|' /C calc'!A0",
    "-2+3",
    "@SUM(1,2)",
    "\t=1",
    "\r=1",
    "'quoted",
    "<script>alert(1)</script>",
    '"><img src=x onerror=alert(1)>',
    "a\x1b[31mred",
    "a\u202eb",
    "\udce4",
    "[bold]\\[",
    "line\nbreak",
    "größe",
]


def metadata(name, categories, **more):
    ids = list(range(len(categories)))
    MetadataCatalog.get(name).set(
        scan_root=".",
        category_ids=ids,
        categories=categories,
        category_id_to_contiguous_id={i: i for i in ids},
        evaluator_type="SemSegEvaluator",
        spacing=(1, 1, 1),
        **more,
    )


@pytest.fixture
def hostile():
    """A dataset with a hostile name, whose categories have hostile names."""
    name = "<b>=1\x1b[1m"
    metadata(name, HOSTILE)
    yield name
    MetadataCatalog.remove(name)


class Tags(HTMLParser):
    def __init__(self, page):
        super().__init__()
        self.tags = set()
        self.feed(page)

    def handle_starttag(self, tag, attrs):
        self.tags.add(tag)
        self.tags |= {name for name, _ in attrs if name.startswith("on")}


def check_page(page):
    page = page.replace(SCRIPT, "")
    assert Tags(page).tags.isdisjoint({"script", "b", "onerror"})
    assert re.search(r"&lt;script&gt;alert", page)
    assert not re.search("[\x00-\x09\x0b-\x1f\u202e]", page)


def test_hostile_names_in_a_comparison(hostile, tmp_path):
    truth = np.zeros((6, 5, 4, len(HOSTILE)), np.uint8)
    truth[2:4, 2:4, 1:3] = 1
    made = []
    for shift in (0, 1):
        evaluator = SemSegEvaluator(hostile, Config(TEST_METRICS=["DSC", "HD"]), None)
        for name in HOSTILE:
            pred = np.roll(truth, shift, axis=0).astype(np.float32)
            evaluator.process([{"scan_id": name, "subject_id": name}], [{"y_true": truth, "y_pred": pred}])
        made.append(evaluator.evaluate())
    for number in range(0, len(HOSTILE) - 1, 2):
        found = compare_results(*made, names=HOSTILE[number : number + 2], output_folder=tmp_path)
        check_page((tmp_path / "compare.html").read_text(encoding="utf-8"))
        with (tmp_path / "compare.csv").open(newline="", encoding="utf-8") as file:
            rows = list(csv.DictReader(file))
        texts = [row[key] for row in rows for key in ("category", "metric", "a", "b")]
        assert not [text for text in texts if text[:1] in ("=", "+", "-", "@", "\t", "\r")]
        kept = json.loads((tmp_path / "compare.json").read_text(encoding="utf-8"))
        assert kept == json.loads(json.dumps(found.as_dict()))


def test_hostile_names_in_every_output(hostile, tmp_path):
    evaluator = SemSegEvaluator(hostile, Config(TEST_METRICS=["DSC", "HD"]), tmp_path, save_predictions="labels")
    rng = np.random.default_rng(0)
    for name in HOSTILE:
        truth = (rng.random((6, 5, 4, len(HOSTILE))) < 0.4).astype(np.uint8)
        truth[0, 0, 0] = 255
        pred = truth.clip(0, 1).astype(np.float32)
        inputs = {"scan_id": f"{name} ", "subject_id": name, "time_point": name, "x": np.zeros(truth.shape[:3])}
        evaluator.process([inputs], [{"y_true": truth, "y_pred": pred}])
    document = evaluator.evaluate()
    kept = json.loads((tmp_path / "metrics.json").read_text(encoding="utf-8"))
    assert kept == json.loads(json.dumps(document))
    assert {row["category"] for row in kept["metrics"]} == set(HOSTILE)
    with (tmp_path / "metrics.csv").open(newline="", encoding="utf-8") as file:
        rows = list(csv.DictReader(file))
    assert not [cell for row in rows for cell in row.values() if cell[:1] in ("=", "+", "-", "@", "\t", "\r")]
    found = [row["subject"].removeprefix("'") for row in rows]
    assert found == [printable(row["subject"]) for row in document["metrics"]]
    page = (tmp_path / "report.html").read_text(encoding="utf-8")
    check_page(page)


def test_a_file_name_that_is_not_utf8(tmp_path):
    """A Latin-1 `größe.h5`, as old archives have it."""
    root, predictions = tmp_path / "data", tmp_path / "p"
    root.mkdir()
    predictions.mkdir()
    mask = (np.random.default_rng(0).random((6, 5, 4, 1)) < 0.4).astype(np.uint8)
    write_volume(tmp_path / "plain.h5", np.zeros((6, 5, 4), np.float32), mask)
    stem = os.fsdecode("größe".encode("latin-1"))
    try:
        (tmp_path / "plain.h5").rename(root / f"{stem}.h5")
    except OSError:
        pytest.skip("this file system takes names in UTF-8 only")
    with h5py.File(tmp_path / "plain.h5", "w") as file:
        file["labels"] = mask
    (tmp_path / "plain.h5").rename(predictions / f"{stem}.h5")
    name = "evaluation_text_latin"
    DatasetCatalog.register(name, lambda: scan_directory(root))
    metadata(name, ["x"])
    try:
        out = tmp_path / "out"
        document = evaluate_predictions(name, predictions, Config(TEST_METRICS=["DSC"]), out)
        assert [row["value"] for row in document["metrics"]] == [1]
        assert [row["scan"] for row in json.loads((out / "metrics.json").read_text())["metrics"]] == [stem]
        # Kept, and found again.
        assert evaluate_predictions(name, predictions, Config(TEST_METRICS=["DSC"]), out) == document
        for options in ([], ["--json"]):
            command = ["evaluate", name, "--predictions", str(predictions), "--output", str(out), "--metrics", "DSC"]
            command += options
            result = CliRunner().invoke(cli, command)
            assert result.exit_code == 0, result.output
        assert json.loads(result.stdout)["metrics"] == document["metrics"]
        (predictions / f"{stem}.h5").unlink()
        result = CliRunner().invoke(cli, command[:-1])
        assert result.exit_code == 1
        assert "gr\\udcf6" in result.output
    finally:
        DatasetCatalog.remove(name)
        MetadataCatalog.remove(name)


@given(st.text(st.characters()), st.floats(allow_nan=False, allow_infinity=False))
def test_text_in_tables_can_be_undone_and_numbers_stay(text, number):
    table = csv_text(["scan", "value"], [{"scan": text, "value": number}])
    (row,) = csv.DictReader(io.StringIO(table, newline=""))
    assert row["scan"].removeprefix("'") == printable(text)
    assert not row["scan"].startswith(("=", "@", "\t", "\r"))
    assert float(row["value"]) == number
    assert json.loads(json_text({"scan": text})) == {"scan": text}
    json_text({"scan": text}).encode()


def test_numbers_in_text_columns_stay():
    assert csv_text(["scan", "value"], [{"scan": "-12", "value": -0.5}, {"scan": "+1.5", "value": None}]) == (
        "scan,value\n-12,-0.5\n+1.5,\n"
    )


@pytest.mark.parametrize(
    ("name", "meant"),
    [
        ("dice", "DSC"),
        ("Dice", "DSC"),
        ("dsc", "DSC"),
        ("F1-score", "DSC"),
        ("IoU", "VOE', which is 1 - IoU"),
        ("jaccard", "VOE"),
        ("Hausdorff 95", "HD95"),
        ("hd_95", "HD95"),
        ("surface dice", "NSD"),
        ("sensitivity", "Recall"),
        ("PPV", "Precision"),
    ],
)
def test_metrics_by_the_names_that_others_give_them(name, meant):
    metadata("evaluation_text_metrics", ["x"])
    try:
        with pytest.raises(UnknownNameError, match=f"Did you mean '{meant}"):
            SemSegEvaluator("evaluation_text_metrics", Config(TEST_METRICS=[name]))
        with pytest.raises(UnknownNameError, match=f"Did you mean '{meant}"):
            score_masks(np.ones((2, 2), bool), np.ones((2, 2), bool), metrics=[name])
    finally:
        MetadataCatalog.remove("evaluation_text_metrics")


def test_subjects_and_time_points_may_be_text():
    name = "evaluation_text_ids"
    metadata(name, ["x"])
    rng = np.random.default_rng(0)
    subjects = ["sub-01", "sub-01", "sub-02", 1, "1", np.int64(1)]
    time_points = ["baseline", "month 6", "baseline", 2, 10, None]
    try:
        evaluator = SemSegEvaluator(name, Config(TEST_METRICS=["DSC"]))
        for number, (subject, time_point) in enumerate(zip(subjects, time_points, strict=True)):
            truth, pred = (rng.random((2, 6, 5, 4, 1)) < 0.5).astype(np.uint8)
            inputs = {"scan_id": f"s{number}", "subject_id": subject, "time_point": time_point}
            evaluator.process([inputs], [{"y_true": truth, "y_pred": pred}])
        document = evaluator.evaluate()
    finally:
        MetadataCatalog.remove(name)
    # As text, since some are.
    assert [(row["time_point"], row["n"]) for row in document["time_points"]] == [
        (10, 1),
        (2, 1),
        ("baseline", 2),
        ("month 6", 1),
    ]
    # Compared as given: the number 1 and the text "1" are two subjects.
    counts = [(row["subject"], row["n"]) for row in document["subjects"]]
    assert counts == [("1", 2), ("1", 1), ("sub-01", 2), ("sub-02", 1)]
    values = [row["value"] for row in document["metrics"]]
    expected = Bootstrap().interval(values, ["c", "c", "d", "a", "b", "a"])
    assert (document["summary"][0]["ci_low"], document["summary"][0]["ci_high"]) == expected


@given(st.lists(st.tuples(st.integers(0, 12), st.floats(0, 1)), min_size=1, max_size=30))
def test_intervals_of_numbered_subjects_are_those_of_their_text(drawn):
    """The order of the subjects, which the draws depend on, is that of NumPy's sorting of text."""
    subjects, values = zip(*drawn, strict=True)
    texts = list(map(str, subjects))
    names, whose = np.unique(np.asarray(texts), return_inverse=True)
    assert Bootstrap().interval(values, subjects) == Bootstrap().interval(values, texts)
    assert Bootstrap().interval(values, texts) == Bootstrap().interval(values, [f"{n:02d}" for n in whose])
    assert (Bootstrap().interval(values, texts) is None) == (len(names) < 2)
