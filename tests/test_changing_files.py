"""Changing files: cached data are not used for new content, and no read mixes two versions."""

import os
import shutil
import threading
from contextlib import suppress

import h5py
import numpy as np
import pytest
from scans import settle

from medsegpy_core import Config, ReadError, build_loader
from medsegpy_core.hdf5 import Access, accessing, extents, open_array
from medsegpy_core.hdf5 import read as reading

pytestmark = pytest.mark.usefixtures("backend")

SHAPE = (32, 64, 64)
CHUNKS = (8, 64, 64)
OLD = 10**18
# How a dataset is stored, and how it is read.
WAYS = {
    "contiguous": ({}, {}),
    "mapped": ({}, {"mmap": True}),
    "chunked": ({"chunks": CHUNKS}, {}),
    "gzip": ({"chunks": CHUNKS, "compression": "gzip", "compression_opts": 1}, {}),
    "mapped gzip": ({"chunks": CHUNKS, "compression": "gzip", "compression_opts": 1}, {"mmap": True}),
    "library": ({"chunks": CHUNKS, "compression": "lzf", "dtype": ">f4"}, {}),
    "isolated": ({"chunks": CHUNKS, "compression": "lzf"}, {"isolate": True}),
}


def write(path, value, key="volume", other="other", **options):
    """Write a file whose size does not depend on the value: `value` at `key`, and -1 at another key."""
    dtype = options.pop("dtype", "<f4")
    with h5py.File(path, "w") as file:
        for name, number in sorted({key: value, other: -1}.items()):
            file.create_dataset(name, data=np.full(SHAPE, number, dtype), **options)
        file["seg"] = np.zeros((*SHAPE, 1), np.uint8)
    os.truncate(path, 2 << 20)
    os.utime(path, ns=(OLD, OLD))
    return path


def replaced(path, new, how):
    """Replace a file by one with other content but the same size and time."""
    assert path.stat().st_size == new.stat().st_size
    if how == "copied":
        path.unlink()
        shutil.copy2(new, path)
    else:
        with path.open("rb+") as file:
            file.write(new.read_bytes())
        os.utime(path, ns=(OLD, OLD))


def loader_of(path, access, tag="PatchDataLoader", size=(16, 64, 64)):
    d = {"file_name": str(path), "sem_seg_file": str(path), "scan_id": "1", "reader": "h5-volumes"}
    cfg = Config(CATEGORIES=[0], SEED=0, TAG=tag, IMG_SIZE=size, NUM_WORKERS=0)
    return build_loader(cfg, [d], batch_size=1, shuffle=False, **access)


def found(loader):
    return {value for images, _ in loader for value in np.unique(images).tolist()}


@pytest.fixture(autouse=True)
def _small_maps(monkeypatch):
    for module in (extents, reading):
        monkeypatch.setattr(module, "SMALLEST_MAP", 0)


@pytest.mark.parametrize("young", [False, True])
@pytest.mark.parametrize("how", ["copied", "in place"])
@pytest.mark.parametrize("way", WAYS)
def test_other_content_of_the_same_size_and_time(way, how, young, tmp_path):
    options, access = WAYS[way]
    # What is at `volume` in one file lies where `other` does in the other one.
    path, new = write(tmp_path / "a.h5", 1, **options), tmp_path / "b.h5"
    with h5py.File(write(new, 2, **options), "r+") as file:
        file.move("volume", "x")
        file.move("other", "volume")
        file.move("x", "other")
        file["volume"][...] = 2
        file["other"][...] = -1
    os.truncate(new, path.stat().st_size)
    os.utime(new, ns=(OLD, OLD))
    if not young:
        settle(path, new)
    loader = loader_of(path, access)
    with accessing(Access(**access)):
        array = open_array(path, "volume")
        assert found(loader) == {1.0}
        assert np.unique(array[...]).tolist() == [1]
        replaced(path, new, how)
        assert found(loader) == {2.0}
        assert np.unique(array[...]).tolist() == [2]
        assert np.unique(open_array(path, "volume")[3:9]).tolist() == [2]


@pytest.mark.parametrize("how", ["chmod", "link"])
@pytest.mark.parametrize("way", WAYS)
def test_a_new_change_time_alone_is_no_error(way, how, tmp_path):
    options, access = WAYS[way]
    path = write(tmp_path / "a.h5", 1, **options)
    settle(path)
    loader = loader_of(path, access)
    assert found(loader) == {1.0}
    if how == "chmod":
        path.chmod(0o400)
    else:
        os.link(path, tmp_path / "b.h5")
    assert found(loader) == {1.0}
    settle(path)
    assert found(loader) == {1.0}


@pytest.fixture
def between(monkeypatch):
    """Call a function in the middle of each read."""

    def put(call):
        def in_halves(*arguments):
            *first, layout, selection, out = arguments
            middle = selection[0].start + out.shape[0] // 2
            for half in (slice(selection[0].start, middle), slice(middle, selection[0].stop)):
                part = out[half.start - selection[0].start : half.stop - selection[0].start]
                real(*first, layout, (half, *selection[1:]), part)
                if half.start == selection[0].start:
                    call()

        def library_in_halves(path, layout, selection):
            out = np.empty([part.stop - part.start for part in selection], layout.form.dtype)
            in_halves(path, layout, selection, out)
            return out

        def real(*arguments):
            if isinstance(arguments[0], str):
                path, layout, selection, out = arguments
                out[...] = read_box(path, layout, selection)
            else:
                read_from(*arguments)

        read_from, read_box = reading._read_from, reading.read_box
        monkeypatch.setattr(reading, "_read_from", in_halves)
        monkeypatch.setattr(reading, "read_box", library_in_halves)

    return put


IN_THIS_PROCESS = [way for way in WAYS if way != "isolated"]


@pytest.mark.parametrize("young", [False, True])
@pytest.mark.parametrize("way", IN_THIS_PROCESS)
def test_a_file_that_changes_once_during_a_read_is_read_again(way, young, tmp_path, between):
    options, access = WAYS[way]
    path, new = write(tmp_path / "a.h5", 1, **options), write(tmp_path / "b.h5", 2, **options)
    if not young:
        settle(path)
    changed = []

    def change():
        if not changed:
            changed.append(replaced(path, new, "in place"))

    with accessing(Access(**access)):
        array = open_array(path, "volume")
        if not young:
            array[...]
        between(change)
        assert np.unique(array[...]).tolist() == [2]


@pytest.mark.parametrize("way", IN_THIS_PROCESS)
def test_a_file_that_changes_during_each_read_is_an_error(way, tmp_path, between):
    options, access = WAYS[way]
    path = write(tmp_path / "a.h5", 0, **options)
    versions = [write(tmp_path / f"{i}.h5", i, **options) for i in (1, 2, 3)]
    settle(path)
    reads = []

    def change():
        replaced(path, versions[len(reads) % 3], "in place")
        reads.append(1)

    with accessing(Access(**access)):
        array = open_array(path, "volume")
        between(change)
        with pytest.raises(ReadError, match="changes all the time") as caught:
            array[...]
    assert caught.value.path == path
    assert 3 <= len(reads) <= 5


@pytest.mark.parametrize("way", IN_THIS_PROCESS)
def test_a_change_time_that_changes_during_a_read_is_no_error(way, tmp_path, between):
    options, access = WAYS[way]
    path = write(tmp_path / "a.h5", 1, **options)
    settle(path)
    with accessing(Access(**access)):
        array = open_array(path, "volume")
        modes = [0o640, 0o600]
        between(lambda: modes and path.chmod(modes.pop()))
        assert np.unique(array[...]).tolist() == [1]


@pytest.mark.parametrize("restored", [False, True])
@pytest.mark.parametrize("way", WAYS)
def test_versions_of_a_file_are_never_mixed_during_a_write(way, restored, tmp_path):
    options, access = WAYS[way]
    path = write(tmp_path / "a.h5", 0, **options)
    versions = [write(tmp_path / f"{i}.h5", i, **options).read_bytes() for i in (1, 2)]
    loader, stop, begun = loader_of(path, access, size=SHAPE), threading.Event(), threading.Event()

    def rewrite():
        fd, number = os.open(path, os.O_RDWR), 0
        while not stop.is_set():
            os.pwrite(fd, versions[number % 2], 0)
            if restored:
                os.utime(fd, ns=(OLD, OLD))
            begun.set()
            number += 1
            stop.wait(0.002)
        os.close(fd)

    writer = threading.Thread(target=rewrite)
    writer.start()
    try:
        begun.wait()
        for _ in range(8):
            with suppress(ReadError):
                assert np.unique(loader[0][0]).tolist() in ([1.0], [2.0])
    finally:
        stop.set()
        writer.join()
    assert found(loader) in ({1.0}, {2.0})


@pytest.mark.parametrize("isolate", [False, True])
def test_young_files_are_not_cached(isolate, tmp_path, monkeypatch):
    """The content of a young file may change without a new stamp."""
    path = write(tmp_path / "a.h5", 1)
    box = tuple(slice(0, n) for n in SHAPE)
    settle(path)
    with accessing(Access(isolate=isolate)):
        assert reading.locate(str(path), ("volume",)) is reading.locate(str(path), ("volume",))
        assert open_array(path, "volume").place(box) is not None
        other = write(tmp_path / "b.h5", 1)
        with monkeypatch.context() as patch:
            patch.setattr(reading, "is_young", lambda status: True)
            found = reading.locate(str(other), ("volume",))
            assert not found.settled
            assert reading.locate(str(other), ("volume",)) is not found
            array = open_array(other, "volume")
            assert array.place(box) is None
            assert np.unique(array[...]).tolist() == [1]
        settle(other)
        assert np.unique(array[...]).tolist() == [1]
        assert array.place(box) is not None


def test_a_young_file_is_not_mapped(tmp_path, monkeypatch):
    path = write(tmp_path / "a.h5", 1)
    monkeypatch.setattr(reading, "is_young", lambda status: True)
    with accessing(Access(mmap=True)):
        assert np.unique(open_array(path, "volume")[...]).tolist() == [1]
    assert str(path) not in extents._maps
