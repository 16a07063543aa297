"""`scan_directory`: dataset dicts of folders in both formats."""

import warnings

import h5py
import numpy as np
import pytest
from scans import make_scan, save, save_slices, save_volume

from medsegpy_core import (
    DataWarning,
    MedSegPyError,
    ReadError,
    RecordError,
    UnknownNameError,
    build_loader,
    load_scan,
    register_reader,
    scan_directory,
    write_slices,
    write_volume,
)
from medsegpy_core.catalog import DatasetCatalog
from medsegpy_core.config import Config
from medsegpy_core.datasets import make_records

IMAGE, MASK = make_scan((4, 3, 3), channels=2)


def touch(root, *names):
    for name in names:
        save(root / name, data=IMAGE[:, :, :1])


def test_written_files_are_found(tmp_path):
    written = [
        *write_slices(tmp_path, IMAGE, MASK, subject_id=12, time_point=1),
        *write_slices(tmp_path, IMAGE, MASK, subject_id=12, time_point=1, augmentation=3),
        *write_slices(tmp_path, IMAGE, subject_id=123456789),
    ]
    found = scan_directory(tmp_path)
    assert [d["file_name"] for d in found] == sorted(d["file_name"] for d in written)
    by_name = {d["file_name"]: d for d in found}
    for d in written:
        assert by_name[d["file_name"]].items() >= d.items()
    assert found[0] == {
        "file_name": str(tmp_path / "0000012_V01-Aug00_001.im"),
        "sem_seg_file": str(tmp_path / "0000012_V01-Aug00_001.seg"),
        "scan_id": "0000012_V01",
        "slice_id": 1,
        "scan_num_slices": 3,
        "subject_id": 12,
        "time_point": 1,
        "augmentation": 0,
    }
    assert {d["scan_id"] for d in found} == {"0000012_V01", "0000012_V01-Aug03", "123456789_V00"}
    assert "sem_seg_file" not in by_name[written[-1]["file_name"]]


def test_volumes_have_any_name(tmp_path):
    for name in ("knee.h5", "0000003_V01.h5", "0000003_V01-Aug02.h5", "7_V2 left.h5"):
        write_volume(tmp_path / name, IMAGE, MASK)
    found = {d["scan_id"]: d for d in scan_directory(tmp_path)}
    assert list(found) == ["0000003_V01-Aug02", "0000003_V01", "7_V2 left", "knee"]
    assert "subject_id" not in found["knee"]
    assert (found["0000003_V01"]["subject_id"], found["0000003_V01"]["time_point"]) == (3, 1)
    assert found["0000003_V01"].get("augmentation", 0) == 0
    assert found["0000003_V01-Aug02"]["augmentation"] == 2
    assert (found["7_V2 left"]["subject_id"], found["7_V2 left"]["time_point"]) == (7, 2)
    for d in found.values():
        assert d["file_name"] == d["sem_seg_file"]
        assert "slice_id" not in d


def test_many_scans_in_a_file(tmp_path):
    with h5py.File(tmp_path / "many.h5", "w") as file:
        for name in ("0000001_V00", "0000002_V00-Aug01", "phantom"):
            file[f"{name}/volume"], file[f"{name}/seg"] = IMAGE, MASK
        file["bare/volume"] = IMAGE
    found = scan_directory(tmp_path)
    assert [d["scan_id"] for d in found] == ["0000001_V00", "0000002_V00-Aug01", "bare", "phantom"]
    assert [d.get("subject_id") for d in found] == [1, 2, None, None]
    assert found[1]["augmentation"] == 1
    assert "sem_seg_file" not in found[2]
    DatasetCatalog.register("many", lambda: found)
    for scan_id in ("0000001_V00", "phantom"):
        image, mask = load_scan("many", scan_id)
        np.testing.assert_array_equal(image, IMAGE)
        np.testing.assert_array_equal(mask, MASK)
    loader = build_loader(Config(TRAIN_DATASET="many", CATEGORIES=[0]), "many", batch_size=1, allow_augmented=True)
    assert len(loader) == 9


def test_both_formats_in_one_folder_are_sorted_by_file_name(tmp_path):
    save_slices(tmp_path, IMAGE, MASK, subject=2)
    save_volume(tmp_path, IMAGE, MASK, subject=1)
    save_volume(tmp_path, IMAGE, MASK, subject=3)
    names = [d["file_name"].rpartition("/")[2] for d in scan_directory(tmp_path)]
    assert names == sorted(names)
    assert len(names) == 5
    assert [d["scan_id"] for d in scan_directory(tmp_path, reader="h5-volumes")] == ["0000001_V00", "0000003_V00"]
    assert len(scan_directory(tmp_path, reader="h5-slices")) == 3


def test_slices_are_sorted_by_number_not_by_name(tmp_path):
    numbers = [1, 2, 99, 100, 101, 999, 1000, 1001, 10000]
    for number in numbers:
        (tmp_path / f"0000001_V00-Aug00_{number:03d}.im").touch()
        (tmp_path / f"0000001_V00-Aug01_{number}.im").touch()
        (tmp_path / f"{'2' if number % 2 else '0002'}_V0-Aug00_{number}.im").touch()
    (tmp_path / "10_V0-Aug0_1.im").touch()
    save_volume(tmp_path, IMAGE, MASK, scan_id="0000001_V00 extra")
    with pytest.warns(DataWarning, match="gaps"):
        alone = scan_directory(tmp_path, reader="h5-slices")
    with pytest.warns(DataWarning, match="gaps"):
        merged = scan_directory(tmp_path)
    scans = ["0000001_V00", "0000001_V00-Aug01", "0000002_V00"]
    expected = [(scan, number) for scan in scans for number in numbers] + [("0000010_V00", 1)]
    assert [(d["scan_id"], d["slice_id"]) for d in alone] == expected
    assert [(d["scan_id"], d["slice_id"]) for d in merged if "slice_id" in d] == expected
    assert [d["scan_id"] for d in merged].index("0000001_V00 extra") == len(numbers)


def test_subjects_and_visits_are_read_from_bids_names(tmp_path):
    names = ["sub-01_ses-1", "sub-01_ses-2_T1w", "sub-01b_run-1", "sub-02", "sub-02_ses-x-Aug03", "0000003_V01-Aug02"]
    unclear = ["BRATS_001", "LIDC-IDRI-0001", "patient1", "sub01", "my_sub-01", "sub-", "Sub-01", "sub-01 left"]
    for name in names + unclear:
        written = write_volume(tmp_path / f"{name}.h5", IMAGE, MASK)
        assert (written["scan_id"], written.get("subject_id") is None) == (name, name in unclear)
    found = {d["scan_id"]: d for d in scan_directory(tmp_path)}
    said = {name: tuple(found[name].get(key) for key in ("subject_id", "time_point", "augmentation")) for name in found}
    assert said == {
        "sub-01_ses-1": ("sub-01", "ses-1", None),
        "sub-01_ses-2_T1w": ("sub-01", "ses-2", None),
        "sub-01b_run-1": ("sub-01b", None, None),
        "sub-02": ("sub-02", None, None),
        "sub-02_ses-x-Aug03": ("sub-02", "ses-x", 3),
        "0000003_V01-Aug02": (3, 1, 2),
        **dict.fromkeys(unclear, (None, None, None)),
    }
    records = make_records(list(found.values()), [""] * len(found))
    assert {r.scan_id for r in records if r.augmentation} == {"sub-02_ses-x-Aug03", "0000003_V01-Aug02"}


def test_groups_of_a_file_belong_to_the_subject_of_its_name(tmp_path):
    with h5py.File(tmp_path / "sub-07.h5", "w") as file:
        for group in ("early", "sub-08_ses-2"):
            file[f"{group}/volume"] = IMAGE
    early, other = scan_directory(tmp_path)
    assert early["subject_id"] == "sub-07"
    assert (other["subject_id"], other["time_point"]) == ("sub-08", "ses-2")


def test_the_subject_of_a_reader_is_kept(tmp_path):
    class Knowing:
        name, suffixes = "knowing", (".kno",)

        def probe(self, path):
            return False

        def open(self, record):
            raise NotImplementedError

        def scan(self, root):
            return [{"file_name": root / "sub-01_ses-1.kno", "scan_id": "sub-01_ses-1", "subject_id": 5},
                    {"file_name": root / "sub-02_ses-1.kno", "scan_id": "b", "time_point": "baseline"}]  # fmt: skip

    register_reader(Knowing())
    one, two = scan_directory(tmp_path, reader="knowing")
    assert one["subject_id"] == 5
    assert "time_point" not in one
    assert (two["subject_id"], two["time_point"]) == ("sub-02", "baseline")


def test_subfolders_are_not_listed(tmp_path):
    save_slices(tmp_path, IMAGE, MASK)
    save_slices(tmp_path / "deeper", IMAGE, MASK, subject=2)
    (tmp_path / "0000005_V00-Aug00_001.im").mkdir()
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        found = scan_directory(tmp_path)
    assert {d["subject_id"] for d in found if d["subject_id"] != 5} == {1}
    assert not any("deeper" in d["file_name"] for d in found)


@pytest.mark.parametrize("name", ["notes_001.im", "0000001_V00-Aug00_000.im", "0000001_V00_001.im", "x.im"])
def test_a_name_that_does_not_match_is_reported(tmp_path, name):
    save_slices(tmp_path, IMAGE, MASK)
    touch(tmp_path, name)
    with pytest.warns(DataWarning, match=name) as caught:
        assert len(scan_directory(tmp_path)) == 3
    assert len(caught) == 1


def test_a_mask_without_an_image_is_reported(tmp_path):
    save_slices(tmp_path, IMAGE, MASK)
    touch(tmp_path, "0000009_V00-Aug00_001.seg")
    with pytest.warns(DataWarning, match=r"0000009_V00-Aug00_001\.seg"):
        assert len(scan_directory(tmp_path)) == 3


def test_only_masks(tmp_path):
    touch(tmp_path, "0000009_V00-Aug00_001.seg")
    with pytest.warns(DataWarning, match=r"0000009_V00-Aug00_001\.seg"):
        assert scan_directory(tmp_path) == []


def test_a_gap_is_reported_and_the_depth_is_the_highest_number(tmp_path):
    save_slices(tmp_path, IMAGE, MASK, present=[1, 3])
    with pytest.warns(DataWarning, match="0000001_V00.*002"):
        found = scan_directory(tmp_path)
    assert [d["slice_id"] for d in found] == [1, 3]
    assert {d["scan_num_slices"] for d in found} == {3}


def test_names_with_other_zeros_are_kept_and_duplicates_are_an_error(tmp_path):
    touch(tmp_path, "1_V0-Aug0_1.im", "1_V0-Aug0_01.seg")
    (d,) = scan_directory(tmp_path)
    assert d["scan_id"] == "0000001_V00"
    assert d["file_name"].endswith("1_V0-Aug0_1.im")
    assert d["sem_seg_file"].endswith("1_V0-Aug0_01.seg")
    touch(tmp_path, "0000001_V00-Aug00_001.im")
    with pytest.raises(RecordError, match=r"1_V0-Aug0_1\.im") as caught:
        scan_directory(tmp_path)
    assert "0000001_V00-Aug00_001.im" in str(caught.value)


def test_an_empty_folder_is_no_error(tmp_path):
    assert scan_directory(tmp_path) == []


def test_invalid_folders(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    with pytest.raises(ReadError, match="nowhere"):
        scan_directory("nowhere")
    touch(tmp_path, "a.im")
    with pytest.raises(ReadError):
        scan_directory(tmp_path / "a.im")
    with pytest.raises(UnknownNameError, match="h5-slices"):
        scan_directory(tmp_path, reader="h5-slice")


def test_relative_folders(tmp_path, monkeypatch):
    (tmp_path / "root").mkdir()
    save_slices(tmp_path / "root" / "set", IMAGE, MASK)
    monkeypatch.setenv("MEDSEGPY_DATASETS", str(tmp_path / "root"))
    monkeypatch.chdir(tmp_path)
    for path in ("set", "root/set", tmp_path / "root" / "set"):
        found = scan_directory(path)
        assert [d["file_name"] for d in found] == [
            str(tmp_path / "root" / "set" / f"0000001_V00-Aug00_{i:03d}.im") for i in (1, 2, 3)
        ]


def test_a_file_without_a_reader_is_reported(tmp_path):
    (tmp_path / "scan.xyz").write_text("?")
    with pytest.warns(DataWarning, match=r"scan\.xyz"):
        assert scan_directory(tmp_path) == []


def test_a_broken_file_does_not_hide_the_others(tmp_path):
    save_volume(tmp_path, IMAGE, MASK)
    (tmp_path / "broken.h5").write_bytes(b"x" * 100)
    try:
        with pytest.warns(DataWarning, match=r"broken\.h5"):
            found = scan_directory(tmp_path)
    except MedSegPyError as error:
        pytest.fail(f"one broken file ends the listing: {error}")
    assert [d["scan_id"] for d in found] == ["0000001_V00"]
