"""`medsegpy datasets check` finds problems file by file, even if a file crashes the HDF5 library."""

import json
import os
import signal
import threading
from contextlib import contextmanager
from pathlib import Path
from types import SimpleNamespace

import h5py
import numpy as np
import pytest
from click.testing import CliRunner
from scans import make_scan, save, save_slices, save_volume

from medsegpy_core import (
    DatasetCatalog,
    MetadataCatalog,
    pack_dataset,
    register_packed,
    register_reader,
    write_slices,
    write_volume,
)
from medsegpy_core.cli import cli
from medsegpy_core.diagnostics import check_dataset
from medsegpy_core.hdf5 import isolation


def register(dicts, root, **metadata):
    DatasetCatalog.register("mine", lambda: dicts, replace=True)
    values = {
        "scan_root": str(root),
        "category_ids": [0, 1, 2],
        "categories": ["a", "b", "c"],
        "category_id_to_contiguous_id": {0: 0, 1: 1, 2: 2},
        "evaluator_type": "SemSegEvaluator",
    }
    MetadataCatalog.get("mine").set(replace=True, **(values | metadata))


def check(target="mine", *options):
    result = CliRunner().invoke(cli, ["datasets", "check", str(target), "--json", *options])
    found = json.loads(result.stdout)
    assert result.exit_code == (1 if found["findings"] or not found["elements"] else 0)
    return found


def only(found):
    (finding,) = found["findings"]
    return finding


@pytest.fixture
def dicts(tmp_path):
    """Two scans of slices, one volume."""
    slices = [
        d for subject in (1, 2) for d in save_slices(tmp_path / "slices", *make_scan(seed=subject), subject=subject)
    ]
    volume = save_volume(tmp_path / "volumes", *make_scan(seed=3), subject=3)
    register([*slices, volume], tmp_path)
    return [*slices, volume]


def test_a_valid_dataset(dicts):
    found = check()
    assert (found["elements"], found["scans"], found["files"], found["findings"]) == (15, 3, 29, [])
    text = CliRunner().invoke(cli, ["datasets", "check", "mine"])
    assert text.exit_code == 0
    assert "nothing is wrong" in text.stdout
    assert "subject_id" not in text.stdout


def test_unknown_subjects_are_reported(dicts, tmp_path):
    for d in dicts[:-1]:
        d["subject_id"] = None
    found = check()
    assert (found["scans_without_subject"], found["findings"]) == (2, [])
    text = CliRunner().invoke(cli, ["datasets", "check", "mine"])
    assert text.exit_code == 0
    assert "The subject of 2 scans is unknown (no subject_id)" in text.stdout


def no_file(d):
    Path(d["file_name"]).unlink()


def cut_short(d):
    os.truncate(d["file_name"], 700)


def other_key(d):
    with h5py.File(d["file_name"], "a") as f:
        f.move("data", "image")


def text_data(d):
    with h5py.File(d["file_name"], "w") as f:
        f["data"] = "text"


def other_shape(d):
    save(d["file_name"], data=np.zeros((9, 9, 1), np.float32))


def not_binary(d):
    save(d["sem_seg_file"], data=np.full((6, 5, 1, 3), 255, np.uint8))


def not_finite(d):
    save(d["file_name"], data=np.full((6, 5, 1), np.nan, np.float32))


def other_type(d):
    save(d["file_name"], data=np.zeros((6, 5, 1), np.int16))


def few_channels(d):
    save(d["sem_seg_file"], data=np.zeros((6, 5, 1, 2), np.uint8))


@pytest.mark.parametrize(
    ("break_it", "kinds", "words"),
    [
        (no_file, ["file"], "no such file"),
        (cut_short, ["file"], "HDF5"),
        (other_key, ["file"], "'image'"),
        (text_data, ["file"], "text|scalar"),
        (other_shape, ["file"], "9"),
        (not_binary, ["file"], "0 and 255|255"),
        (not_finite, ["values"], "30 voxels"),
        (other_type, ["type"], "int16"),
        (few_channels, ["channels", "channels"], "2"),
    ],
)
def test_one_bad_file_is_one_finding_and_the_others_are_checked(dicts, break_it, kinds, words):
    break_it(dicts[3])
    found = check()
    assert [finding["kind"] for finding in found["findings"]] == kinds
    for finding in found["findings"]:
        assert finding["file"] in (dicts[3]["file_name"], dicts[3]["sem_seg_file"])
        assert any(word in finding["message"] for word in words.split("|"))
    # The check continued after it.
    not_finite(dicts[13])
    assert len(check()["findings"]) == len(kinds) + 1


def test_a_file_shared_by_many_elements_is_reported_once(tmp_path):
    image, mask = make_scan()
    volume = save_volume(tmp_path / "v", image, mask)
    slices = [{**volume, "slice_id": i, "scan_num_slices": 7} for i in range(1, 8)]
    register(slices, tmp_path)
    assert check()["findings"] == []
    os.truncate(volume["file_name"], 900)
    finding = only(check())
    assert (finding["kind"], finding["file"], finding["elements"]) == ("file", volume["file_name"], 7)


def nan_mask(path):
    save(path, data=np.full((6, 5, 1, 3), np.nan, np.float32))


def text_mask(path):
    with h5py.File(path, "w") as f:
        f["data"] = "text"


def mask_that_no_library_reads(path):
    path.write_bytes(path.read_bytes()[:300])


def mask_folder(path):
    path.unlink()
    path.mkdir()


def mask_pipe(path):
    path.unlink()
    os.mkfifo(path)


@pytest.mark.parametrize(
    "spoil", [nan_mask, text_mask, mask_that_no_library_reads, mask_folder, mask_pipe, Path.unlink]
)
def test_problems_of_a_mask_name_the_mask(dicts, tmp_path, spoil):
    spoil(Path(dicts[3]["sem_seg_file"]))
    finding = only(check())
    assert (finding["kind"], finding["file"]) == ("file", dicts[3]["sem_seg_file"])


class Half:
    """A plugin reader whose arrays raise custom errors that name no file."""

    name, suffixes = "half", (".half",)

    def probe(self, path):
        return False

    @contextmanager
    def open(self, record):
        yield SimpleNamespace(image=Failing("image" in record.scan_id), mask=Failing("mask" in record.scan_id),
                              metadata={})  # fmt: skip


class Failing:
    shape, dtype = (4, 3, 2), np.dtype(np.uint8)

    def __init__(self, fails):
        self.fails = fails

    def __getitem__(self, selection):
        if self.fails:
            raise LookupError("no such thing")
        return np.zeros(self.shape, self.dtype)[selection]


def test_errors_of_a_reader_that_name_no_file(tmp_path):
    register_reader(Half())
    dicts = [
        {"file_name": str(tmp_path / f"{name}.half"), "sem_seg_file": str(tmp_path / f"{name}.seg"), "scan_id": name}
        for name in ("sound", "image", "mask", "image and mask")
    ]
    register(dicts, tmp_path, category_ids=[0], categories=["a"], category_id_to_contiguous_id={0: 0})
    found = [(finding["file"], finding["kind"]) for finding in check()["findings"]]
    assert found == [
        (str(tmp_path / name), "file")
        for name in ("image.half", "mask.seg", "image and mask.half", "image and mask.seg")
    ]


def test_dicts(dicts, tmp_path):
    del dicts[2]["scan_id"]
    dicts[5] = {**dicts[5], "slice_id": "six"}
    register(dicts, tmp_path)
    found = check()
    assert found["elements"] == 15
    kinds = [finding["kind"] for finding in found["findings"]]
    assert kinds == ["dict", "dict", "gaps"]
    assert "element 2" in found["findings"][0]["message"]
    assert "element 5" in found["findings"][1]["message"]


def test_two_dicts_of_one_slice(dicts, tmp_path):
    register([*dicts, dicts[0]], tmp_path)
    assert "both slice 1" in check()["findings"][0]["message"]


def test_gaps_and_names(dicts, tmp_path):
    dicts[1]["file_name"], dicts[2]["file_name"] = dicts[2]["file_name"], dicts[1]["file_name"]
    del dicts[9]
    register(dicts, tmp_path)
    found = check()["findings"]
    assert sorted(finding["kind"] for finding in found) == ["gaps", "name", "name", "name", "name"]
    assert "slices 3 of 7" in next(f for f in found if f["kind"] == "gaps")["message"]


def test_metadata(dicts, tmp_path):
    DatasetCatalog.register("bare", lambda: dicts)
    finding = only(check("bare"))
    assert finding["kind"] == "metadata"
    assert "category_ids" in finding["message"]


def test_files_outside_a_contained_dataset(dicts, tmp_path):
    register(dicts, tmp_path / "slices", contained=True)
    finding = only(check())
    assert (finding["kind"], finding["file"]) == ("dict", dicts[-1]["file_name"])


def test_folders(tmp_path):
    image, mask = make_scan()
    write_slices(tmp_path / "2d", image, mask, subject_id=1)
    write_volume(tmp_path / "3d" / "a.h5", image, mask, compression="gzip")
    assert check(tmp_path / "2d")["elements"] == 7
    assert check(tmp_path / "3d")["elements"] == 1
    (tmp_path / "3d" / "b.h5").write_bytes((tmp_path / "3d" / "a.h5").read_bytes()[:3000])
    (tmp_path / "2d" / "0000001_V00-Aug00_004.im").unlink()
    found = check(tmp_path / "3d")
    assert (found["elements"], {f["kind"] for f in found["findings"]}) == (1, {"listing", "file"})
    assert str(tmp_path / "3d" / "b.h5") in [f["file"] for f in found["findings"]]
    found = check(tmp_path / "2d")
    assert {"listing", "gaps"} == {f["kind"] for f in found["findings"]}
    (tmp_path / "empty").mkdir()
    assert check(tmp_path / "empty")["elements"] == 0


def test_a_missing_dataset_and_folder(tmp_path):
    result = CliRunner().invoke(cli, ["datasets", "check", str(tmp_path / "nowhere")])
    assert result.exit_code == 1
    assert "Nor is there a folder" in result.stderr


def test_packed_files_are_compared_with_their_hashes(dicts, tmp_path):
    register(dicts[:7], tmp_path)
    packed = pack_dataset("mine", tmp_path / "packed")
    register_packed(packed.manifest, "packed_mine")
    for target in ("packed_mine", tmp_path / "packed", packed.manifest):
        assert check(target)["findings"] == []
    with h5py.File(packed.files[0], "a") as f:
        names = []
        f.visititems(lambda name, item: names.append(name) if isinstance(item, h5py.Dataset) else None)
        image = next(name for name in names if f[name].dtype.kind == "f")
        f[image][(0,) * f[image].ndim] += 1
    for target in ("packed_mine", tmp_path / "packed", packed.manifest):
        finding = only(check(target))
        assert (finding["kind"], finding["file"]) == ("content", str(packed.files[0]))
        assert image in finding["message"]


@pytest.mark.parametrize("what", ["hang", "crash"])
def test_a_file_that_hangs_or_crashes_the_library_is_one_finding(tmp_path, what, asked_helper):
    dicts = [save_volume(tmp_path / "v", *make_scan(seed=i), subject=i) for i in range(1, 5)]
    register(dicts, tmp_path)
    isolation._stop()

    def watch(scans, total, doing):
        for i, scan in enumerate(scans):
            if i == 2:  # the library does not come back from this file
                process = isolation._helper._process
                process.send_signal(signal.SIGSTOP)
                asked_helper.clear()
                if what == "crash":
                    threading.Thread(target=crash, args=[process]).start()
            yield scan

    def crash(process):
        asked_helper.wait(120)
        process.send_signal(signal.SIGSEGV)
        process.send_signal(signal.SIGCONT)

    (finding,) = check_dataset("mine", seconds=2 if what == "hang" else 120, watch=watch).findings
    assert finding.file == dicts[2]["file_name"]
    assert ("did not finish within 2 s" if what == "hang" else "SIGSEGV") in finding.message
