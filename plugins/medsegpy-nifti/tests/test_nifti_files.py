"""Damaged files, changing files, files with the same size and time: wrong voxels are never returned silently."""

import gzip
import os
import threading
import zlib

import nibabel as nib
import numpy as np
import pytest
from click.testing import CliRunner

from medsegpy_core import DatasetCatalog, ReadError, Record, open_scan, register_reader
from medsegpy_core._util import stamps
from medsegpy_core.cli import cli
from medsegpy_core.diagnostics import check_dataset
from medsegpy_nifti import NiftiReader, files
from medsegpy_nifti.data import clear_cache

IMAGE = np.random.default_rng(0).integers(-300, 300, (4, 3, 2)).astype(np.int16)


@pytest.fixture(params=["isal", "zlib"])
def unpacker(request, monkeypatch):
    """Decompress with isal, then without."""
    if request.param == "isal":
        pytest.importorskip("isal")
    else:
        monkeypatch.setattr(files, "_gunzip", lambda: (gzip.open, zlib.error))


@pytest.fixture(params=[512 << 20, 0], ids=["kept", "streamed"])
def reader(request):
    clear_cache()
    return NiftiReader(cache_bytes=request.param)


def content_of(image, folder):
    nib.save(nib.Nifti1Image(image, np.eye(4)), folder / "content.nii")
    return (folder / "content.nii").read_bytes()


def read(reader, path, part=...):
    with reader.open(Record.from_dict({"file_name": str(path), "scan_id": "a"})) as scan:
        return scan.image[part]


def check(folder):
    return CliRunner().invoke(cli, ["datasets", "check", str(folder)]).exit_code


def test_every_flipped_bit_of_a_compressed_file_is_detected(tmp_path, reader, unpacker, monkeypatch):
    monkeypatch.setattr(stamps, "YOUNG_NS", 0)  # each file is written once: no read has to be confirmed
    good, refused = gzip.compress(content_of(IMAGE, tmp_path), mtime=0), 0
    for bit in range(len(good) * 8):
        path = tmp_path / f"{bit}.nii.gz"
        damaged = bytearray(good)
        damaged[bit // 8] ^= 1 << bit % 8
        path.write_bytes(damaged)
        try:
            found = read(reader, path)
        except ReadError:
            refused += 1
        else:
            assert np.array_equal(found, IMAGE), f"bit {bit}"
    # Time, system and flags that mean nothing are all of the file that does not matter.
    assert refused > (len(good) - 10) * 8


@pytest.mark.parametrize("at", [30, -20, -8, -6, -4, -1])
def test_check_detects_damage_anywhere(tmp_path, at):
    folder = tmp_path / "scans"
    folder.mkdir()
    damaged = bytearray(gzip.compress(content_of(IMAGE, tmp_path)))
    (folder / "a.nii.gz").write_bytes(damaged)
    assert check(folder) == 0
    damaged[at] ^= 4
    (folder / "a.nii.gz").write_bytes(damaged)
    assert check(folder) == 1


def test_bytes_after_the_voxels(tmp_path, reader, unpacker):
    content = content_of(IMAGE, tmp_path)
    path = tmp_path / "a.nii.gz"
    halves = gzip.compress(content[:400]) + gzip.compress(content[400:])
    for sound in (halves, halves + bytes(5000), gzip.compress(content + bytes(999)), halves + gzip.compress(b"more")):
        path.write_bytes(sound)
        assert np.array_equal(read(reader, path), IMAGE)
    bomb = gzip.compress(content + bytes(100 << 20))
    for bad in (
        halves + b"garbage",
        halves + gzip.compress(b"more")[:-1],
        bomb,
        halves + gzip.compress(bytes(2 << 20)),
    ):
        path.write_bytes(bad)
        with pytest.raises(ReadError) as caught:
            read(reader, path)
        assert caught.value.path == path
    with pytest.raises(ReadError, match="more than 1,048,576 bytes follow the 4 x 3 x 2 voxels of int16"):
        read(reader, path)


def test_a_part_that_ends_before_the_checksum(tmp_path):
    """A file that is not cached is decompressed as far as needed, and to its end by `check`."""
    image = np.random.default_rng(0).integers(0, 9, (40, 40, 40)).astype(np.int16)
    path = tmp_path / "a.nii.gz"
    damaged = bytearray(gzip.compress(content_of(image, tmp_path)))
    damaged[-8] ^= 1
    path.write_bytes(damaged)
    reader = NiftiReader(cache_bytes=0)
    assert np.array_equal(read(reader, path, np.s_[..., :7]), image[..., :7])
    with pytest.raises(ReadError, match="damaged"):
        read(reader, path, np.s_[3:5, :, 39:])
    with pytest.raises(ReadError, match="damaged"):
        reader.verify(path)


def test_check_reads_to_the_checksum_of_files_that_are_not_kept(tmp_path):
    volumes = np.random.default_rng(0).integers(0, 9, (6, 5, 4, 3)).astype(np.int16)
    path = tmp_path / "a.nii.gz"
    content = bytearray(gzip.compress(content_of(volumes, tmp_path)))
    register_reader(NiftiReader(cache_bytes=0), replace=True)
    DatasetCatalog.register("one", lambda: [{"file_name": str(path), "scan_id": "a", "image_key": "0"}])
    for damage in (0, 8):
        content[-6] ^= damage
        path.write_bytes(content)
        found = [finding for finding in check_dataset("one").findings if finding.kind != "metadata"]
        assert [(finding.kind, finding.file) for finding in found] == ([("file", str(path))] if damage else [])


@pytest.mark.parametrize("suffix", [".nii", ".nii.gz"])
def test_another_file_of_the_same_size_and_time(tmp_path, reader, suffix):
    """Like `cp -p` and `rsync -t`: in place, then with a new inode; new voxels, then only a new header."""
    pack = gzip.compress if suffix == ".nii.gz" else bytes
    first = content_of(IMAGE, tmp_path)
    larger = bytearray(first)
    larger[112:120] = np.array([2, 0], "<f4").tobytes()  # the slope: the same bytes are other values
    versions = [(content_of(IMAGE + 1, tmp_path), IMAGE + 1), (first, IMAGE), (bytes(larger), IMAGE * 2.0)]
    made = [(pack(content), image) for content, image in versions]
    size = max(len(content) for content, _ in made)
    path, other = tmp_path / f"a{suffix}", tmp_path / f"b{suffix}"
    for content, image in made * 2:
        for replace in (False, True):
            target = other if replace else path
            target.write_bytes(content.ljust(size, b"\0"))
            os.utime(target, (10**9, 10**9))
            if replace:
                other.replace(path)
            assert np.array_equal(read(reader, path), image)


def test_a_new_ctime_alone_is_no_error(tmp_path, reader):
    for suffix in (".nii", ".nii.gz"):
        path = tmp_path / f"a{suffix}"
        nib.save(nib.Nifti1Image(IMAGE, np.eye(4)), path)
        os.utime(path, (10**9, 10**9))
        with open_scan({"file_name": str(path), "scan_id": "a"}) as scan:
            for mode in (0o600, 0o644, 0o640):
                path.chmod(mode)
                assert np.array_equal(scan.image[...], IMAGE)


@pytest.mark.parametrize("suffix", [".nii", ".nii.gz"])
def test_versions_of_a_constantly_rewritten_file_are_never_mixed(tmp_path, reader, suffix):
    shape = (64, 64, 40)
    versions = [content_of(np.full(shape, value, np.int16), tmp_path) for value in (1, 2)]
    if suffix == ".nii.gz":
        versions = [gzip.compress(content, 0) for content in versions]
    path = tmp_path / f"a{suffix}"
    path.write_bytes(versions[0])
    stop, written = threading.Event(), threading.Semaphore(0)

    def write():
        descriptor, count = os.open(path, os.O_WRONLY), 0
        while not stop.is_set():
            os.pwrite(descriptor, versions[count % 2], 0)
            written.release()
            count += 1
        os.close(descriptor)

    writer = threading.Thread(target=write)
    writer.start()
    try:
        written.acquire()
        for _ in range(30):
            try:
                found = np.unique(read(reader, path))
            except ReadError:
                continue
            assert found.tolist() in ([1], [2])
    finally:
        stop.set()
        writer.join()
    assert np.unique(read(reader, path)).tolist() in ([1], [2])


@pytest.mark.parametrize("suffix", [".nii", ".nii.gz"])
def test_a_file_with_a_future_time_is_read(tmp_path, reader, suffix):
    path = tmp_path / f"a{suffix}"
    nib.save(nib.Nifti1Image(IMAGE, np.eye(4)), path)
    os.utime(path, (4 * 10**9, 4 * 10**9))
    assert np.array_equal(read(reader, path), IMAGE)
