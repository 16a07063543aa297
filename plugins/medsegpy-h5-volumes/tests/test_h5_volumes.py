"""The reader ``h5-volumes``: listing, probing and opening."""

import pickle
import subprocess
import sys

import h5py
import numpy as np
import pytest

from medsegpy_core import DataWarning, Reader, ReadError, Record, RecordError, write_slices, write_volume
from medsegpy_h5_volumes import VolumesReader

READER = VolumesReader()
IMAGE = np.random.default_rng(0).normal(size=(6, 5, 3)).astype(np.float32)
MASK = (np.random.default_rng(1).random((6, 5, 3, 2)) > 0.5).astype(np.uint8)


def save(path, **arrays):
    with h5py.File(path, "w") as f:
        for key, array in arrays.items():
            f[key.replace("__", "/")] = array


def test_written_files_are_listed_and_read(tmp_path):
    written = [
        write_volume(tmp_path / "0000002_V00.h5", IMAGE, MASK),
        write_volume(tmp_path / "0000002_V00-Aug04.hdf5", IMAGE, MASK, compression="gzip"),
        write_volume(tmp_path / "knee left.HDF", IMAGE),
    ]
    listed = READER.scan(tmp_path)
    assert listed == [written[1], written[0], written[2]]
    assert listed[0]["augmentation"] == 4
    for d in listed:
        with READER.open(Record.from_dict(d)) as scan:
            np.testing.assert_array_equal(scan.image[...], IMAGE)
            if scan.mask is not None:
                np.testing.assert_array_equal(scan.mask[...], MASK)
            assert (scan.mask is None) == (d["scan_id"] == "knee left")


def test_many_scans_in_a_file(tmp_path):
    save(
        tmp_path / "train.h5",
        **{
            "0000002_V00__volume": IMAGE,
            "0000001_V00-Aug02__volume": IMAGE,
            "0000001_V00-Aug02__seg": MASK,
            "notes__x": IMAGE,
        },
    )
    path = str(tmp_path / "train.h5")
    assert READER.scan(tmp_path) == [
        {
            "file_name": path,
            "sem_seg_file": path,
            "scan_id": "0000001_V00-Aug02",
            "subject_id": 1,
            "time_point": 0,
            "augmentation": 2,
            "image_key": "0000001_V00-Aug02/volume",
            "sem_seg_key": "0000001_V00-Aug02/seg",
        },
        {
            "file_name": path,
            "scan_id": "0000002_V00",
            "subject_id": 2,
            "time_point": 0,
            "image_key": "0000002_V00/volume",
        },
    ]


def test_image_and_mask_in_two_files(tmp_path):
    save(tmp_path / "a.h5", data=IMAGE)
    save(tmp_path / "a_seg.h5", data=MASK)
    save(tmp_path / "b.h5", data=IMAGE)
    save(tmp_path / "c_mask.h5", data=IMAGE)
    found = {d["scan_id"]: d.get("sem_seg_file") for d in READER.scan(tmp_path)}
    assert found == {"a": str(tmp_path / "a_seg.h5"), "b": None, "c_mask": None}
    save(tmp_path / "a-mask.h5", data=MASK)
    with pytest.raises(RecordError, match="both look like the mask"):
        READER.scan(tmp_path)


def test_skipped_files_are_named(tmp_path):
    write_volume(tmp_path / "good.h5", IMAGE)
    write_slices(tmp_path, IMAGE, subject_id=1)
    save(tmp_path / "other.h5", weights=IMAGE)
    (tmp_path / "broken.h5").write_bytes(b"no HDF5")
    (tmp_path / "notes.txt").write_text("")
    with pytest.warns(DataWarning) as caught:
        (d,) = READER.scan(tmp_path)
    assert d["scan_id"] == "good"
    strangers, broken = (str(w.message) for w in caught)
    assert "(1)" in strangers
    assert "other.h5" in strangers
    assert "broken.h5 (not a readable HDF5 file" in broken


def test_two_scans_with_the_same_name(tmp_path):
    write_volume(tmp_path / "a.h5", IMAGE)
    write_volume(tmp_path / "a.hdf5", IMAGE)
    with pytest.raises(RecordError, match=r"a\.h5 and .*a\.hdf5 both contain a scan 'a'"):
        READER.scan(tmp_path)


def test_an_empty_folder_and_a_missing_one(tmp_path):
    assert READER.scan(tmp_path) == []
    with pytest.raises(ReadError, match="nowhere"):
        READER.scan(tmp_path / "nowhere")


def test_slices_of_a_volume(tmp_path):
    path = write_volume(tmp_path / "a.h5", IMAGE, MASK, compression="gzip")["file_name"]
    for k in range(3):
        d = {"file_name": path, "sem_seg_file": path, "scan_id": "a", "slice_id": k + 1, "scan_num_slices": 3}
        with READER.open(Record.from_dict(d)) as scan:
            np.testing.assert_array_equal(scan.image[...], IMAGE[..., k])
            np.testing.assert_array_equal(scan.mask[...], MASK[:, :, k])


def test_probe_recognizes_its_files(tmp_path):
    write_volume(tmp_path / "volume", IMAGE)
    save(tmp_path / "many", A__volume=IMAGE)
    save(tmp_path / "slice", data=IMAGE)
    save(tmp_path / "deep", A__B__volume=IMAGE)
    with h5py.File(tmp_path / "link", "w") as f:
        f["volume"] = h5py.ExternalLink("volume", "/volume")
    (tmp_path / "text").write_text("volume")
    names = ("volume", "many", "slice", "deep", "link", "text", "none")
    assert [READER.probe(tmp_path / n) for n in names] == [True] * 2 + [False] * 5


def test_the_reader_can_be_pickled():
    assert isinstance(READER, Reader)
    assert pickle.loads(pickle.dumps(READER)) == READER
    assert READER.name == "h5-volumes"


def test_the_module_is_light():
    code = "import sys, medsegpy_h5_volumes; print([m for m in ('numpy', 'h5py') if m in sys.modules])"
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert done.stdout.strip() == "[]"
