"""The compiled functions, compared with plain NumPy and h5py."""

import os
import subprocess
import sys
import threading
import time
import warnings
import zipfile
import zlib
from array import array
from pathlib import Path

import h5py
import numpy as np
import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

import medsegpy_native
from medsegpy_core import PluginWarning, ReadError
from medsegpy_core.hdf5 import backend, chunks, native, open_array
from medsegpy_core.hdf5.backend import NUMPY, current_backend
from medsegpy_core.hdf5.chunks import sharing_chunks
from medsegpy_core.hdf5.extents import Places
from medsegpy_core.loading.collate import bit_table
from medsegpy_core.plugins.manager import PluginManager
from medsegpy_core.reading import stamp_of

PACKAGE = Path(__file__).parents[1]

pytestmark = pytest.mark.skipif(not medsegpy_native.COMPILED, reason="there was no C compiler when it was installed")


HUGE = 1 << 62


@st.composite
def collations(draw):
    channels = draw(st.integers(1, 8))
    ids = st.integers(0, channels - 1) | st.lists(st.integers(0, channels - 1), min_size=1, unique=True).map(tuple)
    return channels, tuple(draw(st.lists(ids, min_size=1, max_size=5))), draw(st.booleans())


def expected(planes, categories, background, dtype):
    found = [planes[..., list(c) if isinstance(c, tuple) else [c]].max(axis=-1) for c in categories]
    if background:
        found.insert(0, 1 - np.max(found, axis=0))
    return np.stack(found, axis=-1).astype(dtype)


@settings(max_examples=80, deadline=None)
@given(collations(), st.integers(0, 700), st.floats(0, 1), st.sampled_from(["f4", "u1"]), st.booleans(), st.data())
def test_collating_is_a_logical_or(collation, voxels, density, dtype, bits, data):
    channels, categories, background = collation
    rng = np.random.default_rng(data.draw(st.integers(0, 99)))
    planes = (rng.random((voxels, channels)) < density * rng.random((voxels, 1))).astype(np.uint8)
    table = bit_table(categories, background, np.dtype(dtype))
    # Any address in memory, aligned or not, followed by bytes that must not change.
    size = voxels * table[0].nbytes
    memory = np.full(size + 192, 77, np.uint8)
    first = data.draw(st.integers(0, 64))
    stored = np.packbits(planes, axis=-1, bitorder="little") if bits else planes
    kernel = native.kernels(None)
    assert kernel.collate(stored, 1 if bits else channels, bits, memory[first : first + size], table)
    out = np.frombuffer(memory[first : first + size].tobytes(), dtype).reshape(voxels, table.shape[1])
    np.testing.assert_array_equal(out, expected(planes, categories, background, dtype))
    assert (memory[:first] == 77).all()
    assert (memory[first + size :] == 77).all()


@settings(max_examples=60, deadline=None)
@given(st.integers(1, 8), st.integers(1, 300), st.integers(2, 255), st.data())
def test_one_byte_other_than_0_and_1_is_detected(channels, voxels, value, data):
    planes = np.zeros((voxels, channels), np.uint8)
    planes.reshape(-1)[data.draw(st.integers(0, planes.size - 1))] = value
    table = bit_table((0,), False, np.dtype("f4"))
    assert not native.kernels(None).collate(planes, channels, False, np.empty((voxels, 1), np.float32), table)


def test_streaming_stores_write_the_same_values(tmp_path):
    rng = np.random.default_rng(0)
    planes = (rng.random((300_001, 6)) < 0.02).astype(np.uint8)
    planes[50_000:200_000] = 0
    categories = (0, (1, 2), 3, (4, 5))
    table = bit_table(categories, True, np.dtype("f4"))
    for first in (0, 1, 3):
        memory = np.empty(300_001 * 5 + 16, np.float32)
        out = memory[first : first + 300_001 * 5].reshape(-1, 5)
        assert not current_backend().collate(planes, False, out, table)
        np.testing.assert_array_equal(out, expected(planes, categories, True, "f4"))


def left(out, *places):
    """Read images into the rows of `out`; return the rows that the kernels left."""
    rows = [place and Places(place, None, None) for place in places]
    return current_backend().read_rows(len(rows), rows, out, None, None)


@st.composite
def stored_boxes(draw):
    rank = draw(st.integers(1, 5))
    shape = tuple(draw(st.lists(st.integers(1, 12), min_size=rank, max_size=rank)))
    box = []
    for size in shape:
        start = draw(st.integers(0, size - 1))
        box.append(slice(start, draw(st.integers(start + 1, size))))
    dtype = draw(st.sampled_from(["<f4", ">f4", "i1", "u1", "<i2", ">i2", "<u2", ">u2", "<i4", ">i4", "<u4", ">u4"]))
    chunks = tuple(min(size, draw(st.integers(1, 12))) for size in shape) if draw(st.booleans()) else None
    return shape, tuple(box), dtype, chunks


@settings(max_examples=120, deadline=None)
@given(stored_boxes(), st.booleans())
def test_boxes_equal_those_of_h5py(tmp_path_factory, stored, mapped):
    shape, box, dtype, chunks = stored
    path = tmp_path_factory.mktemp("boxes") / "a.h5"
    low, high = (-(2**30), 2**30) if dtype[-1] == "4" else (-(2**7) if "i" in dtype else 0, 2**7)
    values = np.random.default_rng(0).integers(max(low, 0) if "u" in dtype else low, high, shape).astype(dtype)
    with h5py.File(path, "w") as file:
        file.create_dataset("data", data=values, chunks=chunks)
    place = open_array(path, "data").place(box)
    if place is None:  # more than two axes of runs, or more than one chunk
        assert chunks is not None or len(shape) > 2
        return
    if mapped:
        data = np.frombuffer(path.read_bytes(), np.uint8)
        place = place._replace(mapped=type("Map", (), {"data": data})())
    with h5py.File(path) as file:
        wanted = file["data"][box].astype(np.float32)
    out = np.full((2, *wanted.shape), np.nan, np.float32)
    assert left(out, None, place) == [0]
    np.testing.assert_array_equal(out[1], wanted)
    assert np.isnan(out[0]).all()


@pytest.mark.parametrize(
    ("shape", "box"),
    [
        ((300, 300, 70), "20:290, 3:200, 10:60"),  # rows that fit a block
        ((30, 900, 200), "2:30, 1:900, 7:9"),  # rows that do not, short runs
        ((6, 4, 70_000), "1:6, 0:4, 5:50_000"),  # runs that do not
        ((6, 5, 30_000), "1:6, 1:4, 20:2_000"),  # runs with much between them
        ((40, 50, 60, 3), "3:40, 5:6, 0:60, 0:3"),
    ],
)
def test_boxes_of_any_shape_equal_those_of_h5py(tmp_path, shape, box):
    values = np.random.default_rng(0).integers(-2000, 2000, shape).astype("<i2")
    with h5py.File(tmp_path / "a.h5", "w") as file:
        file["data"] = values
    selection = eval(f"np.s_[{box}]")
    out = np.empty((1, *values[selection].shape), np.float32)
    assert not left(out, open_array(tmp_path / "a.h5", "data").place(selection))
    np.testing.assert_array_equal(out[0], values[selection].astype(np.float32))


@pytest.fixture
def file(tmp_path):
    path = tmp_path / "a.h5"
    with h5py.File(path, "w") as file:
        file["data"] = np.arange(4000, dtype=np.float32)
    return path


def done(place):
    return not left(np.zeros((1, 4000), np.float32), place)


def test_a_replaced_file_is_skipped(file):
    place = open_array(file, "data").place((slice(0, 4000),))
    assert done(place)
    os.utime(file, ns=(1, 1))
    assert not done(place)
    file.unlink()
    assert not done(place)
    os.mkfifo(file)
    assert not done(place)  # and does not wait for a writer


def test_a_truncated_file_is_skipped(file):
    place = open_array(file, "data").place((slice(0, 4000),))
    status = file.stat()
    os.truncate(file, status.st_size - 4)
    os.truncate(file, status.st_size)
    os.utime(file, ns=(status.st_atime_ns, status.st_mtime_ns))
    beyond = place._replace(offset=status.st_size - 100)
    assert not done(beyond)
    data = np.frombuffer(file.read_bytes(), np.uint8)
    assert not done(beyond._replace(mapped=type("Map", (), {"data": data})()))


@pytest.mark.parametrize("mapped", [False, True])
def test_a_file_that_changes_during_a_read_is_skipped(mapped, tmp_path):
    path = tmp_path / "a.h5"
    with h5py.File(path, "w") as file:
        file["data"] = np.zeros(8 << 20, np.float32)
    bytes_ = np.memmap(path, np.uint8, "r")
    stop, out = threading.Event(), np.empty(8 << 20, np.float32)

    def touch():
        while not stop.is_set():
            os.utime(path)
            time.sleep(0.005)

    thread = threading.Thread(target=touch)
    thread.start()
    try:
        deadline, seen = time.monotonic() + 60, set()
        while 3 not in seen and time.monotonic() < deadline:
            place = open_array(path, "data").place((slice(0, 8 << 20),))
            jobs = native._Jobs()
            place = place._replace(mapped=type("Map", (), {"data": bytes_})()) if mapped else place
            jobs.add(place, 4, native._COPY, 0)
            seen |= set(current_backend()._run(jobs, out, b""))
    finally:
        stop.set()
        thread.join()
    assert 3 in seen  # what was done, or was another file from the beginning, may have come before


def test_only_the_change_time_differs(file):
    place = open_array(file, "data").place((slice(0, 4000),))
    assert done(place)
    while stamp_of(file.stat()) == place.stamp:
        file.chmod(0o600)
    assert not done(place)


@pytest.fixture
def library():
    """The decompression library."""
    if not current_backend().decodes:
        pytest.skip("libdeflate is not installed")


@pytest.fixture
def inflated(monkeypatch):
    """Whether the kernels did each read."""
    seen = []

    def counting(*args, real=chunks.inflated):
        seen.append(real(*args))
        return seen[-1]

    monkeypatch.setattr(chunks, "inflated", counting)
    return seen


@st.composite
def chunked(draw):
    rank = draw(st.integers(1, 4))
    shape = tuple(draw(st.lists(st.integers(1, 20), min_size=rank, max_size=rank)))
    chunk = tuple(draw(st.sampled_from([size, max(1, size // 2), draw(st.integers(1, size))])) for size in shape)
    box = None
    if draw(st.booleans()):
        starts = [draw(st.integers(0, size - 1)) for size in shape]
        box = tuple(slice(s, draw(st.integers(s + 1, n))) for s, n in zip(starts, shape, strict=True))
    dtype = draw(st.sampled_from(["u1", "<i2", ">i2", "<f4", ">f4", "<f8", "?"]))
    return shape, chunk, box, dtype, draw(st.booleans()), draw(st.sampled_from([1, 9])), draw(st.booleans())


@settings(max_examples=80, deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture])
@given(chunked(), st.sampled_from([None, "f4", "f8"]))
def test_gzip_chunks_equal_those_of_h5py(tmp_path_factory, library, inflated, stored, out_dtype):
    shape, chunk, box, dtype, shuffle, level, empty = stored
    path = tmp_path_factory.mktemp("gzip") / "a.h5"
    rng = np.random.default_rng(0)
    values = rng.integers(0, 2 if dtype == "?" else 100, shape).astype(dtype)
    if empty:
        values[: max(1, shape[0] // 2)] = 0
    with h5py.File(path, "w") as file:
        file.create_dataset("data", data=values, chunks=chunk, compression=level, shuffle=shuffle)
    array_ = open_array(path, "data")
    box = box or tuple(slice(0, n) for n in shape)
    out = np.full(values[box].shape, 7, out_dtype or array_.dtype)
    inflated.clear()
    array_.read_into(box, out)
    np.testing.assert_array_equal(out, values[box].astype(out.dtype))
    assert inflated == [True]


def test_an_output_with_gaps_and_shared_chunks(tmp_path, library, inflated):
    values = np.random.default_rng(0).integers(0, 1000, (40, 50, 6)).astype(np.int16)
    with h5py.File(tmp_path / "a.h5", "w") as file:
        file.create_dataset("data", data=values, chunks=(16, 16, 4), compression="gzip", shuffle=True)
    array_ = open_array(tmp_path / "a.h5", "data")
    wide = np.zeros((40, 100, 6), np.float32)
    array_.read_into((slice(0, 40), slice(0, 50), slice(0, 6)), wide[:, ::2])
    np.testing.assert_array_equal(wide[:, ::2], values)
    assert not wide[:, 1::2].any()
    with sharing_chunks():
        for start in range(0, 24, 5):
            np.testing.assert_array_equal(array_[start : start + 16, 3:20], values[start : start + 16, 3:20])
    assert all(inflated)


@pytest.mark.parametrize("dtype", ["i2", "f4"])
def test_large_datasets_are_decoded_in_parts(tmp_path, library, inflated, monkeypatch, dtype):
    monkeypatch.setattr(chunks, "_AT_ONCE", 5000)
    values = np.random.default_rng(0).integers(0, 1000, (40, 50, 6)).astype(np.int16)
    with h5py.File(tmp_path / "a.h5", "w") as file:
        file.create_dataset("data", data=values, chunks=(16, 16, 4), compression="gzip")
    out = np.empty(values.shape, dtype)
    open_array(tmp_path / "a.h5", "data").read_into(tuple(slice(0, n) for n in values.shape), out)
    np.testing.assert_array_equal(out, values)
    assert inflated == [True]


def damaged(how, stored, size):
    if how == "flipped":
        middle = len(stored) // 2
        return stored[:middle] + bytes([stored[middle] ^ 255]) + stored[middle + 1 :]
    if how == "cut":
        return stored[: len(stored) // 2]
    if how == "too much":
        return zlib.compress(b"\1" * (size + 1))
    if how == "too little":
        return zlib.compress(b"\1" * (size - 1))
    return {"noise": os.urandom(len(stored)), "a wrong checksum": stored[:-4] + b"\0\0\0\0", "nothing": b"\0"}[how]


@pytest.mark.parametrize("shuffle", [False, True])
@pytest.mark.parametrize(
    "how",
    ["flipped", "cut", "too much", "too little", "noise", "a wrong checksum", "nothing", "an empty one that lies"],
)
def test_chunks_that_do_not_decode_to_their_size_are_rejected(tmp_path, library, how, shuffle):
    path = tmp_path / "a.h5"
    values = np.random.default_rng(0).integers(0, 200, (32, 32)).astype(np.float32)
    with h5py.File(path, "w") as file:
        data = file.create_dataset("data", data=values, chunks=(8, 16), compression="gzip", shuffle=shuffle)
        _, stored = data.id.read_direct_chunk((8, 16))
        wrong = zlib.compress(bytes(513)) if how == "an empty one that lies" else damaged(how, stored, 512)
        data.id.write_direct_chunk((8, 16), wrong)
    for box in (np.s_[:, :], np.s_[4:20, 10:30], np.s_[8:16, 16:]):
        with pytest.raises(ReadError, match=r"chunk [0-9]+: ") as caught:
            open_array(path, "data")[box]
        assert caught.value.path == path
    np.testing.assert_array_equal(open_array(path, "data")[:8], values[:8])


def test_unwritten_chunks_are_skipped(tmp_path, library, inflated):
    with h5py.File(tmp_path / "a.h5", "w") as file:
        data = file.create_dataset("data", (32, 32), "f4", chunks=(8, 8), compression="gzip", fillvalue=5)
        data[:16] = 1
    found = open_array(tmp_path / "a.h5", "data")[...]
    assert (found[:16] == 1).all()
    assert (found[16:] == 5).all()
    assert inflated == [False]


@pytest.mark.parametrize("mask", [1, 2, 3])
def test_filters_skipped_for_a_chunk_are_not_decoded(tmp_path, library, mask):
    values = np.random.default_rng(0).integers(0, 200, (32, 32)).astype(np.float32)
    with h5py.File(tmp_path / "a.h5", "w") as file:
        data = file.create_dataset("data", data=values, chunks=(8, 16), compression="gzip", shuffle=True)
        part = values[8:16, 16:] + 1
        stored = part.tobytes() if mask & 1 else part.view(np.uint8).reshape(-1, 4).T.tobytes()
        data.id.write_direct_chunk((8, 16), stored if mask & 2 else zlib.compress(stored), filter_mask=mask)
    with h5py.File(tmp_path / "a.h5") as file:
        values = file["data"][...]
    array_ = open_array(tmp_path / "a.h5", "data")
    np.testing.assert_array_equal(array_[...], values)
    np.testing.assert_array_equal(array_[4:20, 10:30], values[4:20, 10:30])
    assert (values[8:16, 16:] == part).all()


CHUNK = zlib.compress(bytes(range(64)))
INFLATE = {"fd": -1, "file": CHUNK, "first": 0, "chunks": [0, len(CHUNK), 0], "strides": [], "item": 1, "size": 64,
           "itemsize": 1, "out": 64}  # fmt: skip


def inflate(**changed):
    asked = INFLATE | changed
    out = np.zeros(asked["out"], np.uint8)
    asked |= {"chunks": array("q", asked["chunks"]), "strides": array("q", asked["strides"]), "out": out}
    return native.kernels(None).inflate_chunks(*asked.values())[0], out


@pytest.mark.parametrize(
    "wrong",
    [
        {"out": 63}, {"size": 65}, {"size": 0}, {"size": HUGE}, {"itemsize": 0}, {"itemsize": 65}, {"item": 0},
        {"chunks": [0, 5]}, {"chunks": [-1, 5, 0]}, {"chunks": [0, 0, 0]}, {"chunks": [0, HUGE, 0]}, {"first": 1},
        {"chunks": [0, len(CHUNK), 1]}, {"chunks": [0, len(CHUNK), -1]}, {"strides": [1]}, {"first": -1},
        {"strides": [1, 1], "chunks": [0, len(CHUNK), 0, 65]}, {"strides": [1, 1], "chunks": [0, len(CHUNK), 0, 0]},
        {"strides": [1, 2], "chunks": [0, len(CHUNK), 0, 33]}, {"strides": [2, 1], "chunks": [0, len(CHUNK), 0, 33]},
        {"strides": [-1, 1], "chunks": [0, len(CHUNK), 0, 2]}, {"strides": [HUGE, 1], "chunks": [0, len(CHUNK), 0, 9]},
        {"strides": [1] * 18, "chunks": [0, len(CHUNK), 0] + [1] * 9},
    ],
)  # fmt: skip
def test_chunks_that_exceed_the_output_are_rejected_before_reading(library, wrong):
    assert inflate()[0] == -1
    with pytest.raises(ValueError, match=r"chunk|Chunk"):
        inflate(**wrong)


def test_parts_of_chunks_are_copied_into_place(library):
    number, out = inflate()
    assert number == -1
    assert out.tolist() == list(range(64))
    # Two rows of three items of four bytes, of a chunk of four such rows.
    number, out = inflate(strides=[16, 4, 20, 8], item=4, chunks=[0, len(CHUNK), 10, 2, 3], out=80)
    assert number == -1
    expected = np.zeros(80, np.uint8)
    for row in range(2):
        for item in range(3):
            place = 10 + 20 * row + 8 * item
            expected[place : place + 4] = np.arange(64)[16 * row + 4 * item :][:4]
    assert out.tolist() == expected.tolist()
    assert inflate(chunks=[0, len(CHUNK) - 1, 0])[0] == 0
    assert inflate(chunks=[1, len(CHUNK), 0])[0] == 0  # beyond the end of the bytes
    assert inflate(fd=1 << 20)[0] == 0


JOB = {"text": -1, "fd": 0, "map": -1, "offset": 0, "count0": 1, "stride0": 0, "count1": 1, "stride1": 0, "run": 4,
       "item": 4, "kind": 0, "out": 0, "status": 0}  # fmt: skip


@pytest.mark.parametrize(
    "wrong",
    [
        {"run": 5}, {"run": 0}, {"run": HUGE}, {"count0": 2}, {"count0": HUGE, "count1": HUGE}, {"count1": -1},
        {"out": 1}, {"out": -1}, {"out": HUGE}, {"item": 0}, {"item": -4}, {"item": HUGE}, {"kind": 99}, {"kind": -1},
        {"kind": 1}, {"kind": 2}, {"kind": 3}, {"offset": -1}, {"offset": (1 << 63) - 1}, {"map": 0}, {"fd": -1},
        {"text": 2}, {"stride1": -8}, {"count1": 2, "run": 2, "stride1": HUGE * 2 - 1},
    ],
)  # fmt: skip
def test_jobs_that_exceed_the_output_are_rejected_before_reading(wrong):
    out = np.zeros(4, np.float32)
    with pytest.raises(ValueError, match="does not fit"):
        native.kernels(None).read_boxes(array("q", (JOB | wrong).values()), bytes(33), (), out, b"")
    assert not out.any()


@pytest.mark.parametrize(
    ("jobs", "texts", "table", "message"),
    [
        (array("q", [0] * 12), bytes(33), b"", "rows of 13 int64"),
        (array("q", JOB.values()), b"a" * 40, b"", "a zero"),
        (array("q", JOB.values()), bytes(33), b"12345", "256 rows"),
        (array("q", JOB.values()), bytes(33), bytes(256 * 65), "256 rows"),
    ],
)
def test_invalid_arguments_are_rejected(jobs, texts, table, message):
    with pytest.raises(ValueError, match=message):
        native.kernels(None).read_boxes(jobs, texts, (), np.zeros(4, np.float32), table)
    with pytest.raises(ValueError, match=r"do not match|256 rows"):
        native.kernels(None).collate(np.zeros(12, np.uint8), 5, False, np.zeros(3, np.uint8), table or bytes(256))


@pytest.mark.parametrize(
    ("allowed", "used"),
    [
        (None, True),
        ("", False),
        ("medsegpy-h5-slices", False),
        ("medsegpy-h5-slices, MedSegPy_Native", True),
        ("medsegpy-native", True),
        ("medsegpy.native", True),
        ("medsegpy-.Native,", True),
        ("native", False),
    ],
)
def test_the_allow_list_disables_it(monkeypatch, allowed, used):
    if allowed is None:
        monkeypatch.delenv("MEDSEGPY_LOAD_PLUGINS", raising=False)
    else:
        monkeypatch.setenv("MEDSEGPY_LOAD_PLUGINS", allowed)
    assert (current_backend() is not NUMPY) == used
    with warnings.catch_warnings():
        warnings.simplefilter("ignore", PluginWarning)  # "native" is no distribution
        (shown,) = [info.status for info in PluginManager().infos() if info.distribution == "medsegpy-native"]
    assert (shown == "active") == used


@pytest.mark.parametrize("wrong", [{"COMPILED": False}, {"INTERFACE": 99}])
def test_missing_or_incompatible_kernels_are_not_used(monkeypatch, wrong):
    for name, value in wrong.items():
        monkeypatch.setattr(medsegpy_native, name, value)
    backend._installed.cache_clear()
    try:
        assert current_backend() is NUMPY
    finally:
        monkeypatch.undo()
        backend._installed.cache_clear()
    assert current_backend() is not NUMPY


@pytest.mark.slow
def test_without_a_compiler_it_installs_without_kernels(tmp_path):
    source = tmp_path / "source"
    subprocess.run(["cp", "-r", str(PACKAGE), str(source)], check=True)
    for left in [*source.rglob("*.so"), *source.glob("build")]:
        subprocess.run(["rm", "-r", str(left)], check=True)
    subprocess.run(
        [sys.executable, "-m", "build", "--no-isolation", "--wheel", "--outdir", str(tmp_path), str(source)],
        check=True, capture_output=True, env=os.environ | {"CC": "/bin/false"},
    )  # fmt: skip
    (wheel,) = tmp_path.glob("*.whl")
    with zipfile.ZipFile(wheel) as archive:
        assert not [name for name in archive.namelist() if name.endswith(".so")]
        archive.extractall(tmp_path / "installed")
    # Without `site`, which would find the native of the development install.
    code = "import medsegpy_native; print(medsegpy_native.__file__, medsegpy_native.COMPILED)"
    done = subprocess.run(
        [sys.executable, "-S", "-c", code], env=os.environ | {"PYTHONPATH": str(tmp_path / "installed")},
        capture_output=True, text=True, check=True,
    )  # fmt: skip
    assert str(tmp_path) in done.stdout
    assert done.stdout.split()[-1] == "False"
