"""The reader ``h5-slices``: listing, probing and opening."""

import os
import pickle
import subprocess
import sys
import warnings

import h5py
import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from medsegpy_core import DataWarning, Reader, ReadError, Record, RecordError, SliceName, write_slices, write_volume
from medsegpy_h5_slices import SlicesReader
from medsegpy_h5_slices.listing import list_slices

READER = SlicesReader()
IMAGE = np.random.default_rng(0).normal(size=(6, 1, 3)).astype(np.float32)
MASK = np.random.default_rng(1).random((6, 1, 3, 2)) > 0.5


def touch(folder, *names):
    for name in names:
        (folder / name).touch()


def test_written_files_are_listed_and_read(tmp_path):
    written = write_slices(tmp_path, IMAGE, MASK, subject_id=2)
    written += write_slices(tmp_path, IMAGE + 1, subject_id=2, augmentation=1)
    written += write_slices(tmp_path, IMAGE + 2, MASK, subject_id=1, time_point=3)
    listed = READER.scan(tmp_path)
    assert listed == sorted(written, key=lambda d: d["file_name"])
    for d in listed:
        with READER.open(Record.from_dict(d)) as scan:
            k = d["slice_id"] - 1
            more = {(2, 0): 0, (2, 1): 1, (1, 0): 2}[d["subject_id"], d["augmentation"]]
            np.testing.assert_array_equal(scan.image[...], IMAGE[..., k] + np.float32(more))
            if d["augmentation"]:
                assert scan.mask is None
            else:
                np.testing.assert_array_equal(scan.mask[...], MASK[:, :, k])


def test_an_empty_folder_and_a_missing_one(tmp_path):
    assert READER.scan(tmp_path) == []
    with pytest.raises(ReadError, match="nowhere"):
        READER.scan(tmp_path / "nowhere")


def test_paths_are_absolute(tmp_path, monkeypatch):
    touch(tmp_path, "0000001_V00-Aug00_001.im")
    monkeypatch.chdir(tmp_path)
    assert list_slices(".")[0]["file_name"] == str(tmp_path / "0000001_V00-Aug00_001.im")


def test_skipped_files_are_named(tmp_path):
    touch(
        tmp_path,
        "0000001_V00-Aug00_001.im",
        "0000001_V00-Aug00_001.seg",
        "0000001_V00-Aug00_004.im",
        "0000001_V00-Aug00_005.seg",
        "0000002_V00-Aug00_001.seg",
        "0000001_V00-Aug00_000.im",
        "0000001_V00_001.im",
        "knee.im",
        "knee.seg",
        "٣_V00-Aug00_001.im",
        "x0000001_V00-Aug00_001.im",
        "0000001_V00-Aug00_1x.seg",
        "README.md",
        "0000001_V00-Aug00_001.png",
        "volume.h5",
    )
    with pytest.warns(DataWarning) as caught:
        listed = READER.scan(tmp_path)
    assert [(d["slice_id"], d["scan_num_slices"], "sem_seg_file" in d) for d in listed] == [(1, 4, True), (4, 4, False)]
    names, orphans, gaps = sorted((str(w.message) for w in caught), key=lambda m: ("with gaps" in m, "no image" in m))
    assert "(7)" in names
    for name in ("knee.im", "_000.im", "0000001_V00_001.im"):
        assert name in names
    assert "README" not in names
    assert "(2)" in orphans
    assert "0000001_V00-Aug00_005.seg" in orphans
    assert "0000002_V00-Aug00_001.seg" in orphans
    assert "0000001_V00 lacks 002, 003" in gaps


def test_long_lists_are_shortened_with_a_count(tmp_path):
    touch(tmp_path, *(f"knee{i:03d}.im" for i in range(100)))
    with pytest.warns(DataWarning, match=r"slice names .*knee004\.im, \.\.\. \(100 in all\)"):
        assert READER.scan(tmp_path) == []


def test_names_with_other_zeros_find_their_mask(tmp_path):
    touch(
        tmp_path,
        "1_V0-Aug0_1.im",
        "0000001_V00-Aug00_0001.seg",
        "0000001_V00-Aug00_002.im",
        "123456789_V00-Aug00_1000.im",
    )
    with pytest.warns(DataWarning, match="123456789_V00 lacks 001, 002"):
        listed = READER.scan(tmp_path)
    assert {os.path.basename(d["file_name"]): (d["scan_id"], d["slice_id"], d["scan_num_slices"]) for d in listed} == {
        "0000001_V00-Aug00_002.im": ("0000001_V00", 2, 2),
        "123456789_V00-Aug00_1000.im": ("123456789_V00", 1000, 1000),
        "1_V0-Aug0_1.im": ("0000001_V00", 1, 2),
    }
    assert [d["slice_id"] for d in listed] == [1, 2, 1000]  # of the first scan, then of the other
    assert listed[0]["sem_seg_file"] == str(tmp_path / "0000001_V00-Aug00_0001.seg")


@pytest.mark.parametrize("suffix", ["im", "seg"])
def test_two_names_of_one_slice(tmp_path, suffix):
    touch(tmp_path, "0000001_V00-Aug00_001.im", f"0000001_V00-Aug00_1.{suffix}", "0000001_V00-Aug00_001.seg")
    with pytest.raises(RecordError, match=r"Aug00_(001|1)\.\w+ and .*Aug00_(001|1)\.\w+ are both slice 1"):
        READER.scan(tmp_path)


names = st.builds(SliceName, st.integers(0, 10**8), st.integers(0, 99), st.integers(0, 2), st.integers(1, 4))


@settings(max_examples=50, deadline=None)
@given(st.sets(st.tuples(names, st.booleans()), max_size=30), st.randoms())
def test_any_set_of_names(tmp_path_factory, entries, order):
    folder = tmp_path_factory.mktemp("slices")
    labelled = dict(entries)
    stems = list(labelled)
    order.shuffle(stems)
    for name in stems:
        touch(folder, name.stem + ".im", *([name.stem + ".seg"] if labelled[name] else []))
    with warnings.catch_warnings():
        warnings.simplefilter("ignore", DataWarning)
        listed = READER.scan(folder)
    assert [os.path.basename(d["file_name"]) for d in listed] == sorted(name.stem + ".im" for name in labelled)
    for d in listed:
        name = SliceName(d["subject_id"], d["time_point"], d["augmentation"], d["slice_id"])
        assert d["scan_id"] == name.scan_id
        assert ("sem_seg_file" in d) == labelled[name]
        of_scan = [n.slice_id for n in labelled if n.scan_id == name.scan_id]
        assert d["scan_num_slices"] == max(of_scan)
        Record.from_dict(d)


def test_probe_recognizes_its_files(tmp_path):
    with h5py.File(tmp_path / "slice", "w") as f:
        f["data"] = IMAGE
    write_volume(tmp_path / "volume", IMAGE)
    (tmp_path / "text").write_text("data")
    (tmp_path / "broken").write_bytes(b"\x89HDF\r\n\x1a\n")
    assert [READER.probe(tmp_path / n) for n in ("slice", "volume", "text", "broken", "none")] == [True] + [False] * 4


def test_the_reader_can_be_pickled():
    assert isinstance(READER, Reader)
    assert pickle.loads(pickle.dumps(READER)) == READER
    assert (READER.name, READER.suffixes) == ("h5-slices", (".im",))


def test_a_damaged_file_is_a_read_error(tmp_path):
    d = write_slices(tmp_path, IMAGE, subject_id=2)[0]
    os.truncate(d["file_name"], 300)
    with pytest.raises(ReadError, match=r"0000002_V00-Aug00_001\.im"), READER.open(Record.from_dict(d)):
        pass


def test_the_module_is_light():
    code = "import sys, medsegpy_h5_slices; print([m for m in ('numpy', 'h5py') if m in sys.modules])"
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert done.stdout.strip() == "[]"
