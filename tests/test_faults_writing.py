"""Full disks and killed processes in the middle of every kind of write leave no partial files."""

import contextlib
import errno
import fcntl
import json
import os
import random
import shutil
import signal
import subprocess
import sys
import textwrap
import time
import warnings
from pathlib import Path

import h5py
import numpy as np
import pytest
from scans import make_scan, save_slices

from medsegpy_core import (
    Config,
    DatasetCatalog,
    MetadataCatalog,
    ReadError,
    build_loader,
    pack_dataset,
    register_packed,
    scan_directory,
    write_slices,
    write_volume,
)
from medsegpy_core.diagnostics import check_dataset


@contextlib.contextmanager
def small_disk(folder, size):
    """Mount a file system of this size in bytes."""
    folder.mkdir()
    mount, unmount = shutil.which("mount"), shutil.which("umount")
    command = [mount, "-t", "tmpfs", "-o", f"size={size}", "tmpfs", folder]
    if mount is None or subprocess.run(command, check=False, capture_output=True).returncode:
        pytest.skip("a full disk needs a small file system, and none can be mounted here")
    try:
        yield folder
    finally:
        subprocess.run([unmount, folder], check=True)


IMAGE, MASK = make_scan((64, 64, 24), channels=2)


def write(what, folder, **options):
    if what == "slices":
        return write_slices(folder, IMAGE, MASK, subject_id=1, **options)
    if what == "volume":
        return [write_volume(folder / "0000001_V00.h5", IMAGE, MASK, **options)]
    raise AssertionError(what)


@pytest.mark.parametrize("compression", [None, "gzip", "lzf"])
@pytest.mark.parametrize("what", ["slices", "volume"])
@pytest.mark.parametrize("part", [0.02, 0.5, 0.95])
def test_a_disk_that_is_full(tmp_path, what, compression, part):
    write(what, tmp_path / "fits", compression=compression)
    # In pages, as this file system counts.
    needed = sum(-(-path.stat().st_size // 4096) for path in (tmp_path / "fits").iterdir())
    with small_disk(tmp_path / "small", max(1, int(needed * part)) * 4096) as disk:
        with pytest.raises(OSError, match="No space left") as caught:
            write(what, disk, compression=compression)
        assert caught.value.errno == errno.ENOSPC
        assert str(disk) in str(caught.value.filename)
        assert os.listdir(disk) == []
        # Somebody makes room.
        subprocess.run(["mount", "-o", "remount,size=64m", disk], check=True)
        dicts = write(what, disk, compression=compression)
        for d in dicts:
            with h5py.File(d["file_name"]) as file:
                stored = file["data" if what == "slices" else "volume"][...]
            wanted = IMAGE[:, :, d["slice_id"] - 1, None] if what == "slices" else IMAGE
            assert np.array_equal(stored, wanted)


def test_a_full_disk_leaves_what_was_there(tmp_path):
    with small_disk(tmp_path / "small", 700 << 10) as disk:
        write_volume(disk / "a.h5", IMAGE[:32], MASK[:32])
        before = (disk / "a.h5").read_bytes()
        with pytest.raises(OSError, match="No space left"):
            write_volume(disk / "a.h5", IMAGE, MASK, overwrite=True)
        assert (disk / "a.h5").read_bytes() == before
        assert os.listdir(disk) == ["a.h5"]


def test_packing_continues_after_a_full_disk(tmp_path):
    register(tmp_path / "source", 6)
    with small_disk(tmp_path / "small", 400 << 10) as disk:
        with pytest.raises(OSError, match=r"No space left|space"):
            pack_dataset("mine", disk)
        assert not [name for name in os.listdir(disk) if name.endswith((".h5", ".json"))]
        subprocess.run(["mount", "-o", "remount,size=64m", disk], check=True)
        packed = pack_dataset("mine", disk)
        assert same_as_source(packed.manifest)


def register(folder, subjects):
    dicts = [d for i in range(1, subjects + 1) for d in save_slices(folder, *make_scan((64, 64, 6), seed=i), subject=i)]
    DatasetCatalog.register("mine", lambda: dicts, replace=True)
    MetadataCatalog.get("mine").set(
        scan_root=str(folder),
        category_ids=[0, 1, 2],
        categories=["a", "b", "c"],
        category_id_to_contiguous_id={0: 0, 1: 1, 2: 2},
        evaluator_type="SemSegEvaluator",
        replace=True,
    )


def same_as_source(manifest):
    name = register_packed(manifest, "again", replace=True)
    assert check_dataset(name).findings == []
    loaders = [build_loader(Config(), one, batch_size=6, shuffle=False) for one in ("mine", name)]
    return all(all(map(np.array_equal, a, b)) for a, b in zip(*loaders, strict=True))


# -- kill -9


WRITERS = {
    "slices": "write_slices(folder, image, mask, subject_id=i, compression=compression, overwrite=True)",
    "volume": "write_volume(f'{folder}/{i:07d}_V00.h5', image, mask, compression=compression, overwrite=True)",
}


def killed(code, after, *arguments):
    """Run code, and kill it this many seconds after it reports its start."""
    command = [sys.executable, "-c", textwrap.dedent(code), *map(str, arguments)]
    with subprocess.Popen(command, stdout=subprocess.PIPE, text=True) as process:
        assert process.stdout.readline() == "begins\n"
        time.sleep(after)
        process.send_signal(signal.SIGKILL)
        process.wait()
    return process.returncode


@pytest.mark.parametrize("compression", [None, "gzip"])
@pytest.mark.parametrize("what", WRITERS)
def test_a_writer_that_is_killed(tmp_path, what, compression):
    """All files with a final name are complete, and the next writer succeeds."""
    code = f"""
        import itertools, sys
        import numpy as np
        from medsegpy_core import write_slices, write_volume
        folder, compression = sys.argv[1], None if sys.argv[2] == "None" else sys.argv[2]
        image = np.arange(64 * 64 * 8, dtype=np.float32).reshape(64, 64, 8)
        mask = (image[..., None] % 3 == 0).astype(np.uint8)
        print("begins", flush=True)
        for i in itertools.cycle(range(1, 6)):
            {WRITERS[what]}
    """
    image = np.arange(64 * 64 * 8, dtype=np.float32).reshape(64, 64, 8)
    chance = random.Random(0)
    for _ in range(5):
        assert killed(code, chance.uniform(0.0, 0.15), tmp_path, compression) == -signal.SIGKILL
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")  # slices whose turn had not come are gaps
            dicts = scan_directory(tmp_path)
        for d in dicts:
            with h5py.File(d["file_name"]) as file:
                stored = file["data" if what == "slices" else "volume"][...]
            assert np.array_equal(stored, image[:, :, d["slice_id"] - 1, None] if what == "slices" else image)
    # A killed writer leaves only a temporary file, which is never read.
    assert all(name.endswith((".im", ".seg", ".h5", ".tmp")) for name in os.listdir(tmp_path))


@pytest.mark.slow
def test_killed_packing_continues_where_it_stopped(tmp_path):
    register(tmp_path / "source", 8)
    code = """
        import json, sys
        from medsegpy_core import DatasetCatalog, MetadataCatalog, pack_dataset
        said = json.loads(open(sys.argv[1]).read())
        DatasetCatalog.register("mine", lambda: said["dicts"])
        values = said["metadata"] | {"category_id_to_contiguous_id": {0: 0, 1: 1, 2: 2}}
        MetadataCatalog.get("mine").set(**values)
        print("begins", flush=True)
        pack_dataset("mine", sys.argv[2], jobs=2)
    """
    said = {"dicts": DatasetCatalog.get("mine"), "metadata": MetadataCatalog.get("mine").as_dict()}
    said["metadata"].pop("category_id_to_contiguous_id")
    (tmp_path / "said.json").write_text(json.dumps(said))
    out = tmp_path / "packed"
    for i in range(5):
        status = killed(code, 0.05 + 0.1 * i, tmp_path / "said.json", out)
        manifests = list(out.glob("*.json"))
        # The manifest comes last: where it is, all is.
        assert bool(manifests) == (status == 0) or same_as_source(manifests[0])
    assert same_as_source(pack_dataset("mine", out).manifest)


def test_a_config_is_saved_completely_or_not_at_all(tmp_path):
    path = tmp_path / "config.yaml"
    code = """
        import sys
        from medsegpy_core import Config
        cfg = Config()
        cfg.add("NOTE", "x" * 200_000)
        print("begins", flush=True)
        while True:
            cfg.save(sys.argv[1])
    """
    chance = random.Random(1)
    for _ in range(6):
        assert killed(code, chance.uniform(0.02, 0.2), path) == -signal.SIGKILL
        if path.exists():
            assert "x" * 200_000 in path.read_text()
            Path(path).unlink()


def test_two_writers_of_one_file(tmp_path):
    code = """
        import sys
        import numpy as np
        from medsegpy_core import write_volume
        image = np.full((64, 64, 40), float(sys.argv[2]), np.float32)
        print("ready", flush=True)
        sys.stdin.readline()
        try:
            write_volume(sys.argv[1], image)
        except FileExistsError:
            sys.exit(17)
    """
    path = tmp_path / "a.h5"
    command = [sys.executable, "-c", textwrap.dedent(code), str(path)]
    pipes = {"stdin": subprocess.PIPE, "stdout": subprocess.PIPE, "text": True}
    writers = [subprocess.Popen([*command, str(i)], **pipes) for i in range(3)]
    for writer in writers:
        assert writer.stdout.readline() == "ready\n"
    for writer in writers:
        writer.stdin.write("begin\n")
        writer.stdin.flush()
    for writer in writers:
        writer.communicate()
    states = [writer.returncode for writer in writers]
    assert sorted(states) == [0, 17, 17]
    with h5py.File(path) as file:
        assert (file["volume"][...] == states.index(0)).all()
    assert os.listdir(tmp_path) == ["a.h5"]


# -- a disk that loses what it was given


@pytest.fixture
def forgetful_disk(monkeypatch):
    """Return a function that makes the disk change one byte of a file right after a sync.

    `at` is called with the bytes of each synced file, and returns a position or None. The result is the list of files
    that were changed.
    """

    def install(at, real=os.fsync):
        changed = []

        def fsync(fd):
            real(fd)
            readable = fcntl.fcntl(fd, fcntl.F_GETFL) & os.O_ACCMODE == os.O_RDWR  # HDF5 files, not their manifest
            if readable and not changed:
                stored = os.pread(fd, os.fstat(fd).st_size, 0)
                position = at(stored)
                if position is not None:
                    os.pwrite(fd, bytes([stored[position] ^ 1]), position)
                    changed.append(fd)

        monkeypatch.setattr(os, "fsync", fsync)
        return changed

    return install


def place_of(values):
    """Return a function that finds voxels in the bytes of a file."""
    wanted = np.ascontiguousarray(values).tobytes()
    assert len(wanted) >= 16
    return lambda stored: None if (found := stored.find(wanted)) < 0 else found + len(wanted) // 2


VOXELS = {
    # The last row of the last slice of a scan, as it is stored.
    ("slices", "image"): IMAGE[-1, :, -1],
    ("slices", "mask"): MASK[-1, :, -1],
    ("volume", "image"): IMAGE[-1, -1, :],
    ("volume", "mask"): MASK[-1, -1, :],
}


@pytest.mark.usefixtures("backend")
@pytest.mark.parametrize(("what", "array"), VOXELS)
@pytest.mark.parametrize("overwrite", [False, True])
def test_disk_errors_are_detected_before_the_file_appears(
    tmp_path, what, array, overwrite, forgetful_disk, monkeypatch
):
    monkeypatch.setattr("medsegpy_core.hdf5.write._CHECKED_BYTES", 1 << 14)  # read back in several parts
    if overwrite:
        write(what, tmp_path)
    before = {path.name: path.read_bytes() for path in tmp_path.iterdir()}
    changed = forgetful_disk(place_of(VOXELS[what, array]))
    with pytest.raises(ReadError, match="differ from the data written") as caught:
        write(what, tmp_path, overwrite=overwrite)
    assert changed
    assert Path(caught.value.path).parent == tmp_path
    assert not str(caught.value.path).endswith(".tmp")
    assert {path.name: path.read_bytes() for path in tmp_path.iterdir()} == before
    # The next try goes to a place of the disk that is sound.
    dicts = write(what, tmp_path, overwrite=overwrite)
    with h5py.File(dicts[-1]["file_name"]) as file:
        stored = file["data" if what == "slices" else "volume"][...]
    assert np.array_equal(stored, IMAGE[:, :, -1:] if what == "slices" else IMAGE)


@pytest.mark.usefixtures("backend")
@pytest.mark.parametrize("compression", ["gzip", "lzf"])
@pytest.mark.parametrize("what", ["slices", "volume"])
def test_disk_errors_in_compressed_files_are_detected(tmp_path, what, compression, forgetful_disk):
    (tmp_path / "sound").mkdir()
    write(what, tmp_path / "sound", compression=compression)
    path = max((tmp_path / "sound").iterdir(), key=lambda path: path.stat().st_size)
    with h5py.File(path) as file:
        chunk = file["data" if what == "slices" else "volume"].id.get_chunk_info(0)
    for part in (0.2, 0.5, 0.9):
        folder = tmp_path / str(part)
        position = chunk.byte_offset + int(part * chunk.size)
        changed = forgetful_disk(lambda stored, position=position: position)
        with pytest.raises(ReadError):
            write(what, folder, compression=compression)
        assert changed
        assert os.listdir(folder) == []


@pytest.mark.usefixtures("backend")
@pytest.mark.parametrize("which", ["the first scan", "the last scan", "the whole"])
def test_disk_errors_in_a_packed_set_are_detected(tmp_path, which, forgetful_disk):
    """The scans are written one by one, and then merged: both must equal the source."""
    register(tmp_path / "source", 3)
    voxels = make_scan((64, 64, 6), seed=1 if which == "the first scan" else 3)[0]
    find, seen = place_of(voxels[32, :16, 3]), []

    def at(stored):
        found = find(stored)
        if found is None:
            return None
        seen.append(found)
        return found if which != "the whole" or len(seen) == 2 else None

    changed = forgetful_disk(at)
    with pytest.raises(ReadError):
        pack_dataset("mine", tmp_path / "packed")
    assert changed
    assert list((tmp_path / "packed").glob("[!.]*")) == []
    assert same_as_source(pack_dataset("mine", tmp_path / "packed").manifest)
