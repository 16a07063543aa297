"""`mmap` and `isolate`: the values are the same, and files cannot harm this process."""

import gc
import os
import pickle
import signal
import subprocess
import sys
import textwrap
import threading
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import h5py
import hdf5plugin
import numpy as np
import pytest
from scans import all_end, make_scan, save_slices, save_volume, sent_by_child, settle

from medsegpy_core import Config, ReadError, build_loader
from medsegpy_core.hdf5 import extents, holds_dataset, isolation, open_array
from medsegpy_core.hdf5.options import Access, accessing, current_access

pytestmark = pytest.mark.usefixtures("backend")

IMAGE = np.random.default_rng(0).normal(size=(150, 120, 70)).astype(np.float32)  # 5 MB: large enough to be mapped
ISOLATED = Access(isolate=True)
WAYS = {
    "contiguous": {},
    "big endian": {"dtype": ">f4"},
    "gzip": {"compression": "gzip", "compression_opts": 1, "chunks": (50, 60, 35)},
    "blosc": {"chunks": (50, 60, 35), **hdf5plugin.Blosc()},
    "scaleoffset": {"scaleoffset": 3, "chunks": (50, 60, 35)},
    "plain chunks": {"chunks": (50, 60, 35)},
}


def write(path, array=IMAGE, **options):
    with h5py.File(path, "w") as f:
        f.create_dataset("data", data=array, **options)
        f["data"].attrs["spacing"] = [0.5, 0.5, 2.0]
    return path


@pytest.fixture
def path(tmp_path):
    return write(tmp_path / "a.h5")


@pytest.fixture
def helper():
    """The helper process, started before the test."""
    isolation._stop()

    def process():
        return isolation._helper._process

    yield process
    isolation._stop()


def start(path):
    with accessing(ISOLATED):
        open_array(path, "data")


@pytest.mark.parametrize("access", [Access(mmap=True), ISOLATED, Access(mmap=True, isolate=True)])
@pytest.mark.parametrize("way", WAYS)
def test_values_equal_those_of_h5py(tmp_path, way, access):
    path = write(tmp_path / "a.h5", **WAYS[way])
    with h5py.File(path) as f:
        expected = f["data"][...].astype(np.float32)
    with accessing(access):
        array = open_array(path, "data")
        for _ in range(2):
            assert np.array_equal(array[...], expected)
            assert np.array_equal(array[3:140, 7:9, 11:60], expected[3:140, 7:9, 11:60])
        out = np.zeros((10, 2 * 20, 5), np.float64)[:, ::2]
        array.read_into((slice(5, 15), slice(100, 120), slice(65, 70)), out)
        assert np.array_equal(out, expected[5:15, 100:120, 65:70])
    assert array.said.spacing == (0.5, 0.5, 2.0)


def test_the_choice_applies_to_its_block_and_thread(path):
    with accessing(ISOLATED):
        with accessing(Access()):
            assert not current_access().isolate
        with ThreadPoolExecutor(1) as pool:
            assert pool.submit(current_access).result() == Access()
        assert current_access() == ISOLATED
    assert current_access() == Access()
    with pytest.raises(ValueError):
        Access(isolate=True, seconds=0)


# -- loaders


@pytest.fixture(scope="module")
def dicts(tmp_path_factory):
    root = tmp_path_factory.mktemp("loaders")
    image, mask = make_scan((70, 60, 30))
    slices = save_slices(root / "slices", *make_scan((12, 10, 4), seed=1), subject=1)
    return {"3d": [save_volume(root / "volumes", image.repeat(15, 2), mask.repeat(15, 2))], "2d": slices}


@pytest.mark.parametrize("options", [{"mmap": True}, {"isolate": True}])
@pytest.mark.parametrize("kind", ["2d", "3d"])
@pytest.mark.parametrize("workers", [0, 2])
def test_batches_are_the_same(dicts, kind, options, workers):
    size = (5, 5, 3) if kind == "2d" else (32, 30, 150)
    cfg = Config(TAG="PatchDataLoader", IMG_SIZE=size, SEED=3, NUM_WORKERS=workers)
    plain = list(build_loader(cfg, dicts[kind], batch_size=2))
    loader = build_loader(cfg, dicts[kind], batch_size=2, **options)
    assert len(plain) > 1
    for chosen in (loader, pickle.loads(pickle.dumps(loader))):
        for expected, found in zip(plain, chosen, strict=True):
            assert all(map(np.array_equal, expected, found))
    (scan,) = loader.inference(lambda batch: np.zeros((*batch.shape[:-1], 3), np.float32))
    (expected,) = build_loader(cfg, dicts[kind]).inference(lambda batch: np.zeros((*batch.shape[:-1], 3), np.float32))
    assert np.array_equal(scan[0]["x"], expected[0]["x"])


def test_the_library_is_not_loaded(dicts):
    code = f"""
        import sys
        from medsegpy_core import Config, build_loader
        dicts = {dicts["2d"]!r}
        for _ in build_loader(Config(), dicts, batch_size=2, isolate=True):
            pass
        assert "h5py" not in sys.modules, "h5py"
    """
    done = subprocess.run([sys.executable, "-c", textwrap.dedent(code)], capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stderr


class Sums:
    """Sums of batches that a child process reads."""

    def __init__(self, loader):
        self.loader = loader

    def __call__(self, connection):
        connection.send([float(images.sum()) for images, _ in self.loader])


@pytest.mark.filterwarnings("ignore:.*fork.*:DeprecationWarning")
@pytest.mark.parametrize("method", ["fork", "spawn"])
@pytest.mark.parametrize("options", [{"mmap": True}, {"isolate": True}])
def test_other_processes(tmp_path, method, options, helper):
    cfg = Config(TAG="PatchDataLoader", IMG_SIZE=(32, 30, 150), SEED=3)
    image, mask = make_scan((70, 60, 300))
    loader = build_loader(cfg, [save_volume(tmp_path / "volumes", image, mask)], batch_size=2, **options)
    expected = [float(images.sum()) for images, _ in loader]
    loader.set_epoch(0)
    before = helper().pid if "isolate" in options else None
    assert sent_by_child(method, Sums(loader)) == expected
    if before is not None:
        assert helper().pid == before
        assert helper().poll() is None


# -- the helper


def test_there_is_one_helper_for_all_threads(tmp_path, helper):
    paths = [write(tmp_path / f"{i}.h5", np.full((4, 5), i)) for i in range(12)]

    def read(i):
        with accessing(ISOLATED):
            return int(open_array(paths[i], "data")[...].mean())

    with ThreadPoolExecutor(6) as pool:
        assert list(pool.map(read, range(12))) == list(range(12))
        assert helpers() == [helper().pid]


def helpers():
    """Return the helper processes of this process."""
    listed = subprocess.run(["ps", "-ww", "-eo", "pid=,ppid=,args="], capture_output=True, text=True, check=True).stdout
    rows = [line.split(maxsplit=2) for line in listed.splitlines()]
    return [int(pid) for pid, parent, what in rows if int(parent) == os.getpid() and "isolation_worker" in what]


def test_a_known_file_needs_no_request(path, helper):
    settle(path)
    start(path)
    os.kill(helper().pid, signal.SIGSTOP)  # it cannot answer any more
    with accessing(Access(isolate=True, seconds=0.5)):
        assert np.array_equal(open_array(path, "data")[...], IMAGE)


def freeze(helper):
    os.kill(helper().pid, signal.SIGSTOP)


def test_a_hang_times_out_and_is_remembered(path, tmp_path, helper):
    start(path)
    freeze(helper)
    other = write(tmp_path / "b.h5", IMAGE[:4])
    with accessing(Access(isolate=True, seconds=0.5)):
        with pytest.raises(ReadError, match=r"did not finish within 0.5 s") as caught:
            open_array(other, "data")
        assert caught.value.path == other
    with accessing(ISOLATED):
        with pytest.raises(ReadError, match="did not finish"):
            open_array(other, "data")
        open_array(write(tmp_path / "c.h5", IMAGE[:4]), "data")  # others are read, by another helper
        write(other, IMAGE[:5])
        assert np.array_equal(open_array(other, "data")[...], IMAGE[:5])


@pytest.mark.parametrize("number", [signal.SIGSEGV, signal.SIGABRT, signal.SIGBUS, signal.SIGKILL])
def test_a_crash_is_an_error_for_its_file(path, tmp_path, number, helper, asked_helper):
    start(path)
    freeze(helper)
    asked_helper.clear()
    process = helper()
    other = write(tmp_path / "b.h5", IMAGE[:4])

    def crash():
        asked_helper.wait(120)
        process.send_signal(number)
        process.send_signal(signal.SIGCONT)

    thread = threading.Thread(target=crash)
    thread.start()
    with accessing(ISOLATED), pytest.raises(ReadError, match=number.name) as caught:
        open_array(other, "data")
    thread.join()
    assert caught.value.path == other
    assert process.poll() is not None
    with accessing(ISOLATED):
        assert np.array_equal(open_array(write(tmp_path / "c.h5", IMAGE[:3]), "data")[...], IMAGE[:3])


def test_a_killed_helper_is_replaced(path, tmp_path, helper):
    start(path)
    helper().kill()
    helper().wait()
    start(write(tmp_path / "b.h5", IMAGE[:4]))


def test_too_little_memory_is_an_error(tmp_path, helper):
    path = tmp_path / "a.h5"
    write(path, np.zeros((512, 512, 64), np.float32), chunks=(512, 512, 64), scaleoffset=2)
    with accessing(Access(isolate=True, memory=16 << 20)), pytest.raises(ReadError) as caught:
        open_array(path, "data")[:2]
    assert caught.value.path == path
    with accessing(ISOLATED):
        assert not open_array(path, "data")[:2].any()


def test_errors_equal_those_without_isolation(tmp_path, monkeypatch):
    path = tmp_path / "a.h5"
    with h5py.File(path, "w") as f:
        f["other"] = IMAGE[:3]
        f["text"] = "text"
    monkeypatch.chdir(tmp_path)
    for name in (path, Path("a.h5")):
        for key in ("data", "text"):
            with pytest.raises(ReadError) as here:
                open_array(name, key)
            with accessing(ISOLATED), pytest.raises(ReadError) as there:
                open_array(name, key)
            assert str(here.value) == str(there.value)
            assert here.value.path == there.value.path == name
    with accessing(ISOLATED):
        assert holds_dataset(path, ["other"])
        assert not holds_dataset(path, ["data"])


def test_nothing_is_left_when_the_process_ends(path):
    code = f"""
        from medsegpy_core.hdf5 import open_array
        from medsegpy_core.hdf5 import isolation
        from medsegpy_core.hdf5.options import Access, accessing
        with accessing(Access(isolate=True)):
            open_array({str(path)!r}, "data")
        print(isolation._helper._process.pid, flush=True)
        END
    """
    for end in ("", "import os, signal; os.kill(os.getpid(), signal.SIGKILL)"):
        program = textwrap.dedent(code).replace("END", end)
        done = subprocess.run(
            [sys.executable, "-W", "error", "-c", program], capture_output=True, text=True, check=False
        )
        assert done.stderr == ""
        assert all_end([int(done.stdout)])


# -- extents


def test_maps_hold_no_file_open_and_are_bounded(tmp_path, monkeypatch):
    monkeypatch.setattr(extents, "_MAX_MAPS", 3)
    paths = [write(tmp_path / f"{i}.h5", IMAGE + i) for i in range(5)]
    settle(*paths)
    open_files = len(os.listdir("/dev/fd"))
    with accessing(Access(mmap=True)):
        for i in [0, 1, 2, 0, 3, 4]:
            assert np.array_equal(open_array(paths[i], "data")[:, 5], (IMAGE + i)[:, 5])
    assert len(os.listdir("/dev/fd")) == open_files
    # What was used last stays.
    assert list(extents._maps)[-3:] == [str(paths[i]) for i in (0, 3, 4)]
    if sys.platform == "linux":
        gc.collect()
        assert str(paths[1]) not in Path("/proc/self/maps").read_text()


def test_a_replaced_mapped_file_is_read_again(path, tmp_path):
    with accessing(Access(mmap=True)):
        array = open_array(path, "data")
        array[0]
        write(tmp_path / "new.h5", IMAGE + 1).rename(path)
        assert np.array_equal(array[...], IMAGE + 1)


def test_small_files_are_read_without_a_map(tmp_path):
    path = write(tmp_path / "small.h5", IMAGE[:2])
    with accessing(Access(mmap=True)):
        assert np.array_equal(open_array(path, "data")[...], IMAGE[:2])
    assert str(path) not in extents._maps


def test_a_mapped_chunk_beyond_the_end(path):
    with accessing(Access(mmap=True)):
        array = open_array(path, "data")
        array[0]
        os.truncate(path, path.stat().st_size - 5000)
        with pytest.raises(ReadError, match="truncated"):
            array[...]


@pytest.mark.filterwarnings("ignore:.*fork.*:DeprecationWarning")
def test_a_fork_while_the_helper_is_busy(path, tmp_path, helper, asked_helper):
    """The thread that waits for the helper does not exist in the child; its lock must be free there."""
    start(path)
    process = helper()
    freeze(helper)
    asked_helper.clear()
    other = write(tmp_path / "b.h5", IMAGE[:4])
    found = []

    def read():
        with accessing(ISOLATED):
            found.append(open_array(other, "data")[...])

    thread = threading.Thread(target=read)
    thread.start()
    assert asked_helper.wait(120)

    def child(connection):
        with accessing(ISOLATED):
            connection.send(float(open_array(other, "data")[...].sum()))

    assert sent_by_child("fork", child) == float(IMAGE[:4].sum())
    process.send_signal(signal.SIGCONT)
    thread.join(120)
    assert np.array_equal(found[0], IMAGE[:4])
    assert helper() is process


# -- which of both a loader takes


@pytest.mark.parametrize("inside", ["built", "read", "both"])
@pytest.mark.parametrize(("given", "around"), [(None, True), (None, False), (False, True), (True, False)])
def test_isolate_of_the_loader_overrides_accessing(given, around, inside, tmp_path, asked_helper):
    dicts = save_slices(tmp_path, *make_scan((6, 5, 4)))
    said, silent = Access(isolate=around), Access()
    cfg = Config(CATEGORIES=[0], NUM_WORKERS=0)
    with accessing(silent if inside == "read" else said):
        loader = build_loader(cfg, dicts, batch_size=2, isolate=given)
    with accessing(silent if inside == "built" else said):
        list(loader)
    assert asked_helper.is_set() == (around if given is None else given)


def test_a_loader_keeps_the_other_settings_from_when_it_was_built(tmp_path):
    dicts = save_slices(tmp_path, *make_scan((6, 5, 4)))
    with accessing(Access(isolate=True, seconds=7)):
        opener = build_loader(Config(CATEGORIES=[0]), dicts, mmap=True, isolate=False).setup.files[0].opener
    assert opener.access == Access(mmap=True, isolate=False, seconds=7)


def test_isolate_is_none_true_or_false(tmp_path):
    dicts = save_slices(tmp_path, *make_scan((6, 5, 4)))
    with pytest.raises(TypeError, match="isolate"):
        build_loader(Config(CATEGORIES=[0]), dicts, isolate="yes")
