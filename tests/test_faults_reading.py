"""Files that disappear, change or fail while a loader runs, with real files, limits and file systems."""

import contextlib
import os
import random
import shutil
import subprocess
import sys
import textwrap
import threading
import time
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import h5py
import numpy as np
import pytest
from scans import make_scan, same, save, save_slices, save_volume, settle

from medsegpy_core import Config, MedSegPyError, ReadError, build_loader, write_slices, write_volume
from medsegpy_core.hdf5 import open_array

pytestmark = pytest.mark.usefixtures("backend")


@pytest.fixture(params=[{}, {"mmap": True}, {"isolate": True}], ids=["default", "mmap", "isolate"])
def options(request):
    return request.param


@pytest.fixture
def slices(tmp_path):
    return save_slices(tmp_path / "slices", *make_scan((6, 5, 12)))


def loader_of(dicts, workers=2, **options):
    return build_loader(Config(NUM_WORKERS=workers), dicts, batch_size=2, shuffle=False, **options)


@pytest.mark.parametrize("workers", [0, 2])
def test_a_file_that_vanishes_in_the_middle_of_an_epoch(slices, workers, options):
    loader = loader_of(slices, workers, **options)
    expected = list(loader)
    gone = Path(slices[9]["file_name"])
    batches = iter(loader)
    next(batches)
    gone.rename(gone.with_suffix(".away"))
    with pytest.raises(ReadError, match="no such file") as caught:
        list(batches)
    assert caught.value.path == gone
    # The loader is as good as before, and works again when the file is back.
    assert all(map(np.array_equal, loader[0], expected[0]))
    gone.with_suffix(".away").rename(gone)
    for found, wanted in zip(loader, expected, strict=True):
        assert all(map(np.array_equal, found, wanted))


def test_a_file_that_is_replaced_in_the_middle_of_an_epoch(slices, options):
    loader = loader_of(slices, 0, **options)
    list(loader)
    path = Path(slices[9]["file_name"])
    other = np.full((6, 5, 1), 7, np.float32)
    batches = iter(loader)
    next(batches)
    Path(save(path.with_suffix(".new"), data=other)).replace(path)
    images = np.concatenate([images for images, _ in batches])
    assert np.array_equal(images[7], other)
    Path(save(path.with_suffix(".new"), data=other[:4])).replace(path)
    with pytest.raises(ReadError, match=r"changed since it was opened|shape") as caught:
        list(loader)
    assert caught.value.path in (path, Path(slices[9]["sem_seg_file"]))


LOADERS = {
    "DefaultDataLoader": (),
    "S25dDataLoader": (6, 5, 3),
    "N5dDataLoader": (6, 5, 3),
    "PatchDataLoader": (3, 5, 4),
    "RandomPatchDataLoader": (3, 5, 4),
}


# Shape, channels of the mask and type of the files that take the place of the real ones.
REAL = ((6, 5, 8), 3, np.float32)
OTHERS = {
    "larger": ((9, 8, 8), 3, np.float32),
    "smaller": ((3, 2, 8), 3, np.float32),
    "channels of the mask": ((6, 5, 8), 1, np.float32),
    "type": ((6, 5, 8), 3, np.float64),
    "axes": REAL,
    "missing": REAL,
}


def put_files(root, form, shape, channels, dtype):
    image, mask = make_scan(shape, channels)
    if form == "slices":
        return save_slices(root, image.astype(dtype), mask)
    return [save_volume(root, image.astype(dtype), mask, subject) for subject in (1, 2)]


def put_others(root, form, what):
    put_files(root, form, *OTHERS[what])
    for path in root.iterdir():
        if what == "missing":
            path.unlink()
        elif what == "axes":
            save(path, data=np.zeros((2,) * 5), volume=np.zeros((2,) * 5))


def scans_of(loader):
    return [inputs["x"] for inputs, _ in loader.inference(lambda x: np.zeros((*x.shape[:-1], 2)))]


def read_what_can_be_read(loader):
    for i in range(len(loader)):
        with contextlib.suppress(MedSegPyError):
            loader[i]
    with contextlib.suppress(MedSegPyError):
        scans_of(loader)


@pytest.mark.parametrize("others", OTHERS)
@pytest.mark.parametrize("form", ["slices", "volumes"])
@pytest.mark.parametrize("tag", LOADERS)
def test_a_loader_recovers_from_temporarily_replaced_files(tag, form, others, tmp_path):
    if (tag, form) == ("N5dDataLoader", "slices"):
        pytest.skip("windows of volumes")
    root, away = tmp_path / "data", tmp_path / "away"
    dicts = put_files(root, form, *REAL)
    cfg = Config(CATEGORIES=[0, 2], SEED=0, TAG=tag, IMG_SIZE=LOADERS[tag], NUM_WORKERS=0)
    read, inferred, unread = (build_loader(cfg, dicts, batch_size=2, drop_last=False) for _ in range(3))
    expected, scans = list(read), scans_of(inferred)
    root.rename(away)
    put_others(root, form, others)
    for loader in (read, inferred, unread):
        read_what_can_be_read(loader)
    shutil.rmtree(root)
    away.rename(root)
    for loader in (read, inferred, unread):
        loader.set_epoch(0)
        assert same(loader, expected)
        assert all(map(np.array_equal, scans_of(loader), scans))


@pytest.mark.parametrize("what", ["folder", "pipe", "link to nowhere", "empty", "text"])
def test_a_file_is_replaced_by_something_else(slices, what, options):
    loader = loader_of(slices, **options)
    list(loader)
    path = Path(slices[3]["file_name"])
    path.unlink()
    if what == "folder":
        path.mkdir()
    elif what == "pipe":
        os.mkfifo(path)
    elif what == "link to nowhere":
        path.symlink_to("nowhere")
    else:
        path.write_text("" if what == "empty" else "text" * 1000)
    with pytest.raises(ReadError) as caught:
        list(loader)
    assert caught.value.path == path


@pytest.mark.parametrize("compression", [None, "gzip"])
def test_a_file_truncated_during_a_read_never_gives_zeros(tmp_path, compression):
    path = tmp_path / "a.h5"
    with h5py.File(path, "w") as file:
        options = {"compression": compression, "chunks": (8, 128, 128)} if compression else {}
        file.create_dataset("data", data=np.ones((64, 128, 128), np.float32), **options)
    whole = path.read_bytes()
    array = open_array(path, "data")
    outcomes = []
    done = threading.Event()

    def wait_for_reads(count):
        """Wait until this many more reads have ended; the last of two started after this call."""
        wanted = len(outcomes) + count
        while len(outcomes) < wanted and not done.is_set():
            time.sleep(0.0005)

    def cut():
        chance = random.Random(0)
        for turn in range(60):
            os.truncate(path, len(whole) * 2 // 3)
            # Every fourth time one read finds the file cut; else it is cut for a moment only, in the middle of a read.
            wait_for_reads(2) if turn % 4 == 0 else time.sleep(chance.uniform(0, 0.004))
            path.with_suffix(".new").write_bytes(whole)
            path.with_suffix(".new").replace(path)
            wait_for_reads(2)  # of which one finds the file whole

    with ThreadPoolExecutor(1) as pool:
        cutting = pool.submit(cut)
        try:
            while not cutting.done():
                try:
                    assert (array[...] == 1).all()
                    outcomes.append("good")
                except ReadError:
                    outcomes.append("refused")
        finally:
            done.set()
        cutting.result()
    assert set(outcomes) == {"good", "refused"}


@pytest.mark.skipif(not hasattr(os, "preadv"), reason="reads are interrupted between two calls of preadv")
@pytest.mark.parametrize("restored", [False, True])
@pytest.mark.parametrize("writes", [1, 2, 1000])
@pytest.mark.parametrize("settled", [False, True])
@pytest.mark.parametrize("compression", [None, "gzip"])
def test_voxels_of_two_writes_are_never_mixed(tmp_path, compression, settled, writes, restored, monkeypatch):
    """The file is written in the middle of a read; it may even look unchanged, except for its change time."""
    path, shape = tmp_path / "a.h5", (8, 32, 32)
    versions = []
    for value in (1, 2):
        with h5py.File(tmp_path / "version.h5", "w") as file:
            options = {"chunks": (1, 32, 32), "compression": compression} if compression else {}
            file.create_dataset("data", data=np.full(shape, value, np.float32), **options)
        versions.append((tmp_path / "version.h5").read_bytes())
    assert len(versions[0]) == len(versions[1])
    path.write_bytes(versions[0])
    os.utime(path, ns=(10**18, 10**18))
    if settled:  # so long unchanged that one read is enough
        settle(path)
    array = open_array(path, "data")
    assert (array[...] == 1).all()
    done = 0

    def write():
        nonlocal done
        done += 1
        before = path.stat()
        while path.stat().st_ctime_ns == before.st_ctime_ns:  # until the clock of the file system has moved on
            with path.open("rb+") as file:
                file.write(versions[done % 2])
        if restored:
            os.utime(path, ns=(10**18, 10**18))

    def half_read(fd, buffers, offset, real=os.preadv):
        (buffer,) = buffers
        view = memoryview(buffer).cast("B")
        read = real(fd, [view[: max(1, len(view) // 2)]], offset)
        if done < writes:
            write()
        return read

    monkeypatch.setattr(os, "preadv", half_read)
    if writes == 1000:
        with pytest.raises(ReadError) as caught:
            array[...]
        assert caught.value.path == path
    else:
        assert (array[...] == 1 + writes % 2).all()  # as it is in the end
    assert done >= min(writes, 3)


@pytest.mark.parametrize("workers", [0, 2])
@pytest.mark.parametrize(("stored", "compression"), [("slices", None), ("volume", None), ("volume", "gzip")])
def test_a_loader_respects_the_limit_of_one_read(tmp_path, stored, compression, workers, options, monkeypatch):
    image, mask = make_scan((16, 16, 4), channels=8)
    if stored == "slices":
        dicts = write_slices(tmp_path, image, mask, subject_id=1)
    else:
        dicts = [write_volume(tmp_path / "0000001_V00.h5", image, mask, compression=compression)]
    loader = loader_of(dicts, workers, **options)
    expected = list(loader)
    # A slice of the image has 1,024 bytes, one of the mask 2,048.
    for limit, too_large in ((1023, "file_name"), (2047, "sem_seg_file")):
        monkeypatch.setenv("MEDSEGPY_MAX_READ", str(limit))
        loader.set_epoch(0)
        with pytest.raises(ReadError, match="MEDSEGPY_MAX_READ") as caught:
            list(loader)
        assert str(caught.value.path) == dicts[0][too_large]
    monkeypatch.setenv("MEDSEGPY_MAX_READ", "2048")
    loader.set_epoch(0)
    for found, wanted in zip(loader, expected, strict=True):
        assert all(map(np.array_equal, found, wanted))


@pytest.mark.slow
@pytest.mark.parametrize("backend", ["numpy"], indirect=True)  # the kernels leave what lies in one piece to it
def test_reads_larger_than_one_system_call(tmp_path):
    """Linux reads at most 2,147,479,552 bytes per call, which reliably causes a short read."""
    path = tmp_path / "a.h5"
    shape = (2, 1100, 1000, 1000)
    with h5py.File(path, "w") as file:
        made = file.create_dataset("data", shape, np.uint8)
        made[1, 1099, 999, 990:] = 3
        made[1, 0, 0, :5] = 5
    if shutil.disk_usage(tmp_path).total == 0 or memory_free() < 5 << 30:
        pytest.skip("not enough memory here")
    array = open_array(path, "data")[...]
    assert array[1, 0, 0, :6].tolist() == [5] * 5 + [0]
    assert array[1, 1099, 999, 989:].tolist() == [0] + [3] * 10
    assert int(np.count_nonzero(array)) == 15


def memory_free():
    return os.sysconf("SC_AVPHYS_PAGES") * os.sysconf("SC_PAGE_SIZE")


@contextlib.contextmanager
def failing_disk(folder, data):
    """Mount a file system whose disk ends in the middle of the file `data`, so that reading it is an I/O error."""
    tools = [
        shutil.which(tool, path=f"{os.environ['PATH']}:/sbin:/usr/sbin") for tool in ("mkfs.ext4", "mount", "umount")
    ]
    if os.geteuid() != 0 or not all(tools):
        pytest.skip("a real I/O error needs root, mkfs.ext4 and a loop device")
    make, mount, unmount = tools
    disk, root = folder / "disk", folder / "mounted"
    root.mkdir()
    with disk.open("wb") as file:
        file.truncate(64 << 20)
    subprocess.run([make, "-q", "-F", "-O", "^has_journal", disk], check=True, capture_output=True)
    if subprocess.run([mount, "-o", "loop", disk, root], check=False, capture_output=True).returncode:
        pytest.skip("no loop device can be mounted here")
    try:
        (root / "data.h5").write_bytes(data)
        subprocess.run([unmount, root], check=True)
        # Cut in the middle of the contents; the metadata of the file system come before them.
        image = disk.read_bytes()
        at = image.find(data[-8192:])
        assert at > 0
        subprocess.run([mount, "-o", "loop,ro", disk, root], check=True)
        os.truncate(disk, at)
        yield root / "data.h5"
    finally:
        subprocess.run([unmount, root], check=False)


@pytest.mark.slow
@pytest.mark.parametrize("access", ["default", "isolate"])
def test_a_disk_that_fails(tmp_path, access):
    path = tmp_path / "whole.h5"
    image = np.random.default_rng(0).normal(size=(40, 256, 256)).astype(np.float32)
    save(path, volume=image)
    with failing_disk(tmp_path, path.read_bytes()) as failing:
        dicts = [{"file_name": str(failing), "scan_id": "a"}]
        cfg = Config(TAG="PatchDataLoader", IMG_SIZE=(40, 256, 256), CATEGORIES=[0])
        loader = build_loader(cfg, dicts, batch_size=1, keep_unlabelled=True, isolate=access == "isolate")
        with pytest.raises(ReadError, match="Input/output error") as caught:
            list(loader)
        assert caught.value.path == failing
        # What can be read is read.
        assert np.array_equal(open_array(failing, "volume")[:3], image[:3])


# -- processes with few rights and few files


def run(code, **options):
    done = subprocess.run(
        [sys.executable, "-W", "error", "-c", textwrap.dedent(code)],
        capture_output=True,
        text=True,
        check=False,
        **options,
    )
    assert done.returncode == 0, done.stderr[-3000:]
    return done.stdout


@pytest.mark.slow
def test_hundreds_of_files_with_64_descriptors(tmp_path):
    image, mask = make_scan((4, 4, 300), channels=1)
    save_slices(tmp_path / "slices", image, mask)
    volumes = [save_volume(tmp_path / "volumes", *make_scan((4, 4, 3), seed=i), subject=i) for i in range(1, 100)]
    code = f"""
        import os, resource
        resource.setrlimit(resource.RLIMIT_NOFILE, (64, 64))
        import warnings
        from medsegpy_core import Config, build_loader, scan_directory
        warnings.simplefilter("ignore")
        slices = scan_directory({str(tmp_path / "slices")!r})
        assert len(slices) == 300
        for options in ({{}}, {{"isolate": True}}, {{"mmap": True}}):
            for workers in (0, 8):
                loader = build_loader(Config(NUM_WORKERS=workers), slices, batch_size=50, **options)
                assert sum(len(images) for images, _ in loader) == 300
                loader = build_loader(Config(NUM_WORKERS=workers), {volumes!r}, batch_size=3, **options)
                assert sum(len(images) for images, _ in loader) == 297
        assert len(os.listdir("/dev/fd")) < 30
    """
    run(code)


@contextlib.contextmanager
def read_only_folder(folder):
    """Yield a folder to fill, and a function that makes it read-only; as root, this needs a file system."""
    folder.mkdir()
    if os.geteuid() != 0:
        yield lambda: folder.chmod(0o555)
        folder.chmod(0o755)
        return
    mount = shutil.which("mount")
    if mount is None or subprocess.run([mount, "-t", "tmpfs", "tmpfs", folder], check=False).returncode:
        pytest.skip("root writes everywhere but on a file system that is mounted read-only, and none can be mounted")
    try:
        yield lambda: subprocess.run([mount, "-o", "remount,ro", folder], check=True)
    finally:
        subprocess.run(["umount", folder], check=True)


def test_a_folder_that_is_read_only_and_no_home(tmp_path):
    image, mask = make_scan((6, 5, 4))
    with read_only_folder(tmp_path / "files") as close:
        dicts = save_slices(tmp_path / "files" / "slices", image, mask)
        close()
        code = f"""
            import os
            os.chdir({str(tmp_path / "files" / "slices")!r})
            import numpy as np
            from medsegpy_core import Config, build_loader, write_volume
            for options in ({{}}, {{"isolate": True}}, {{"mmap": True}}):
                loader = build_loader(Config(), {dicts!r}, batch_size=2, shuffle=False, **options)
                print(sum(float(images.sum()) for images, _ in loader))
            try:
                write_volume("new.h5", np.zeros((2, 2, 2)))
            except OSError as error:
                print(error.filename)
        """
        environment = {**os.environ, "HOME": "/nonexistent", "XDG_CACHE_HOME": "", "XDG_CONFIG_HOME": ""}
        *sums, refused = run(code, env=environment).split()
        assert [float(one) for one in sums] == [pytest.approx(float(image.sum()), rel=1e-4)] * 3
        assert "new.h5" in refused
        assert len(os.listdir(tmp_path / "files" / "slices")) == 8
