"""A packed set is tied to the content of its sources by their stamps and, if those differ, by their hashes."""

import json
import os
import shutil
from contextlib import contextmanager
from pathlib import Path
from types import SimpleNamespace

import numpy as np
import pytest
from scans import make_scan, save, save_slices, save_volume

from medsegpy_core import DatasetCatalog, ReadError, load_scan, pack_dataset, register_packed, register_reader
from medsegpy_core.hdf5 import open_array
from medsegpy_core.packing import manifest as sources
from medsegpy_core.packing import verify_packed

OLD = 10**18


@pytest.fixture
def dicts(tmp_path):
    """Three scans in slices and three volumes, two of them in one file."""
    found = save_slices(tmp_path / "source", *make_scan((6, 5, 3), seed=7), subject=7)
    found += [save_volume(tmp_path / "source", *make_scan(seed=n), subject=n) for n in (1, 2)]
    arrays = {
        f"{scan}/{key}": array for scan in "ab" for key, array in zip(("volume", "seg"), make_scan(), strict=True)
    }
    both = save(tmp_path / "source" / "both.h5", **arrays)
    found += [
        {"file_name": both, "sem_seg_file": both, "scan_id": scan, "image_key": f"{scan}/volume"} for scan in "ab"
    ]
    for file in (tmp_path / "source").iterdir():
        os.utime(file, ns=(OLD, OLD))
    DatasetCatalog.register("original", lambda: found)
    return found


def files_of(dicts):
    return sorted({Path(d[key]) for d in dicts for key in ("file_name", "sem_seg_file") if key in d})


def change(path, in_place):
    """Write other voxels with the same size and modification time."""
    content = bytearray(path.read_bytes())
    content[-3] ^= 1  # in the last array of the file
    target = path if in_place else path.with_name("new")
    target.write_bytes(content)
    os.utime(target, ns=(OLD, OLD))
    target.replace(path)


def holds_the_sources(out, name="original"):
    register_packed(out / f"{name}.json", "packed", replace=True)
    assert verify_packed(out / f"{name}.json") == []
    for d in DatasetCatalog.get(name):
        for found, wanted in zip(load_scan("packed", d["scan_id"]), load_scan(name, d["scan_id"]), strict=True):
            assert np.array_equal(found, wanted)
    return True


@pytest.mark.parametrize("in_place", [True, False])
@pytest.mark.parametrize("which", [0, 1, -1])
def test_other_content_of_the_same_size_and_time_is_packed_again(dicts, tmp_path, in_place, which):
    pack_dataset("original", tmp_path / "out")
    change(files_of(dicts)[which], in_place)
    with pytest.raises(OSError, match="files that have changed"):
        pack_dataset("original", tmp_path / "out")
    assert pack_dataset("original", tmp_path / "out", overwrite=True).scans_packed == 5
    assert holds_the_sources(tmp_path / "out")


def touch(path):
    os.utime(path)


def permit(path):
    path.chmod(0o640)


def link(path):
    os.link(path, path.with_name("link"))


def copy(path):
    shutil.copy(path, path.with_name("copy")).replace(path)


@pytest.mark.parametrize("do", [touch, permit, link, copy])
def test_the_same_content_with_other_stamps_is_unchanged(dicts, tmp_path, monkeypatch, do):
    before = pack_dataset("original", tmp_path / "out")
    stamp = before.files[0].stat()
    do(files_of(dicts)[0])
    assert pack_dataset("original", tmp_path / "out").scans_packed == 0
    assert before.files[0].stat() == stamp
    # By then the new stamp is known, and nothing is read.
    monkeypatch.setattr(sources, "file_hash", lambda path: pytest.fail(f"{path} is read"))
    monkeypatch.setattr(sources, "_known", {})
    assert pack_dataset("original", tmp_path / "out").scans_packed == 0


def interrupted(out, after):
    """Pack some scans, then stop."""

    def watch(names, _):
        for number, name in enumerate(names, start=1):
            yield name
            if number == after:
                raise KeyboardInterrupt

    with pytest.raises(KeyboardInterrupt):
        pack_dataset("original", out, watch=watch)


@pytest.mark.parametrize("in_place", [True, False])
def test_continued_work_is_tied_to_content(dicts, tmp_path, in_place):
    interrupted(tmp_path / "out", 4)
    change(tmp_path / "source" / "0000001_V00.h5", in_place)
    permit(tmp_path / "source" / "0000002_V00.h5")
    assert pack_dataset("original", tmp_path / "out").scans_packed == 2
    assert holds_the_sources(tmp_path / "out")


def test_scans_of_one_file_come_from_one_version(dicts, tmp_path):
    interrupted(tmp_path / "out", 4)
    change(tmp_path / "source" / "both.h5", False)
    assert pack_dataset("original", tmp_path / "out").scans_packed == 2
    assert holds_the_sources(tmp_path / "out")

    def watch(names, _):
        for name in names:
            yield name
            if name == "a":
                change(tmp_path / "source" / "both.h5", False)

    with pytest.raises(ReadError, match=r"both\.h5: it changed while it was packed; run it again"):
        pack_dataset("original", tmp_path / "again", watch=watch)
    assert pack_dataset("original", tmp_path / "again").scans_packed == 1
    assert holds_the_sources(tmp_path / "again")


def test_garbled_descriptions_of_parts_are_ignored(dicts, tmp_path):
    interrupted(tmp_path / "out", 3)
    descriptions = sorted((tmp_path / "out" / ".original.parts").glob("*.json"))
    for path, text in zip(descriptions, ["{", '{"units": 5, "sources": [[1]]}', "[]"], strict=True):
        path.write_text(text)
    assert pack_dataset("original", tmp_path / "out").scans_packed == 5
    assert holds_the_sources(tmp_path / "out")


class Changing:
    """A reader whose file is replaced by its next version, if any, after each read of the image."""

    name, suffixes = "changing", (".changing",)
    versions = ()

    def probe(self, path):
        return False

    @contextmanager
    def open(self, record):
        image, mask = (open_array(record.file_name, key) for key in ("volume", "seg"))
        yield SimpleNamespace(image=Then(image, record.file_name), mask=mask, metadata={})


class Then:
    def __init__(self, array, path):
        self.shape, self.dtype, self._array, self._path = array.shape, array.dtype, array, path

    def __getitem__(self, selection):
        found = self._array[selection]
        if Changing.versions:
            Changing.versions.pop(0).replace(self._path)
        return found


@pytest.mark.parametrize("changes", [1, 2, 3, 9])
def test_a_source_that_changes_while_it_is_packed_is_packed_again(tmp_path, monkeypatch, changes):
    register_reader(Changing())

    def version(number):
        image, mask = make_scan(seed=number)
        path = Path(save(tmp_path / f"{number}.changing", volume=image, seg=mask))
        os.utime(path, ns=(OLD, OLD))
        return path

    path = version(0)
    monkeypatch.setattr(Changing, "versions", [version(number) for number in range(1, changes + 1)])
    d = {"file_name": str(path), "sem_seg_file": str(path), "scan_id": "a"}
    DatasetCatalog.register("original", lambda: [d])
    if changes == 9:
        with pytest.raises(ReadError, match="the files of scan 'a' keep changing"):
            pack_dataset("original", tmp_path / "out")
        return
    pack_dataset("original", tmp_path / "out")
    register_packed(tmp_path / "out", "packed")
    for found, wanted in zip(load_scan("packed", "a"), make_scan(seed=changes), strict=True):
        assert np.array_equal(found, wanted)


def as_before(manifest):
    """Write a manifest in the old format without sources and tuples."""
    said = json.loads(manifest.read_text(), object_hook=lambda d: d["__tuple__"] if set(d) == {"__tuple__"} else d)
    del said["sources"]
    manifest.write_text(json.dumps(said | {"fingerprint": "0" * 32, "medsegpy_packed": 1}))


def test_manifests_without_sources(dicts, tmp_path, monkeypatch):
    """They are read; the packed content decides whether the sources are unchanged."""
    packed = pack_dataset("original", tmp_path / "out")
    as_before(packed.manifest)
    assert holds_the_sources(tmp_path / "out")
    with pytest.raises(OSError, match="made with other settings"):
        pack_dataset("original", tmp_path / "out", layout="patches")
    assert pack_dataset("original", tmp_path / "out").scans_packed == 0
    said = json.loads(packed.manifest.read_text())
    assert (said["medsegpy_packed"], len(said["sources"])) == (1, len(files_of(dicts)))
    as_before(packed.manifest)
    change(files_of(dicts)[0], False)
    with pytest.raises(OSError, match="files that have changed"):
        pack_dataset("original", tmp_path / "out")
    assert pack_dataset("original", tmp_path / "out", overwrite=True).scans_packed == 5
    assert holds_the_sources(tmp_path / "out")
