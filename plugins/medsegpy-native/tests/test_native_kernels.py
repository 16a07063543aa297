"""The compiled functions by themselves, against plain NumPy and h5py."""

import os
import subprocess
import sys
import threading
import time
import zipfile
from array import array
from pathlib import Path

import h5py
import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

import medsegpy_native
from medsegpy_core import ReadError
from medsegpy_core.hdf5 import kernels, open_array
from medsegpy_core.loading.boxes import read_at_once
from medsegpy_core.loading.sources import Places
from medsegpy_core.loading.voxels import bit_table
from medsegpy_core.records import Record

PACKAGE = Path(__file__).parents[1]

pytestmark = pytest.mark.skipif(not medsegpy_native.COMPILED, reason="there was no C compiler when it was installed")


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


@settings(max_examples=150, deadline=None)
@given(collations(), st.integers(0, 700), st.floats(0, 1), st.sampled_from(["f4", "u1"]), st.booleans(), st.data())
def test_collating_is_a_logical_or(collation, voxels, density, dtype, bits, data):
    channels, categories, background = collation
    rng = np.random.default_rng(data.draw(st.integers(0, 99)))
    planes = (rng.random((voxels, channels)) < density * rng.random((voxels, 1))).astype(np.uint8)
    table = bit_table(categories, background, np.dtype(dtype))
    # Any place in memory: aligned or not, with something behind it that must stay as it is.
    size = voxels * table[0].nbytes
    memory = np.full(size + 192, 77, np.uint8)
    first = data.draw(st.integers(0, 64))
    stored = np.packbits(planes, axis=-1, bitorder="little") if bits else planes
    kernel = kernels.kernels()
    assert kernel.collate(stored, 1 if bits else channels, bits, memory[first : first + size], table)
    out = np.frombuffer(memory[first : first + size].tobytes(), dtype).reshape(voxels, table.shape[1])
    np.testing.assert_array_equal(out, expected(planes, categories, background, dtype))
    assert (memory[:first] == 77).all()
    assert (memory[first + size :] == 77).all()


@settings(max_examples=60, deadline=None)
@given(st.integers(1, 8), st.integers(1, 300), st.integers(2, 255), st.data())
def test_one_byte_that_is_neither_0_nor_1_is_seen(channels, voxels, value, data):
    planes = np.zeros((voxels, channels), np.uint8)
    planes.reshape(-1)[data.draw(st.integers(0, planes.size - 1))] = value
    table = bit_table((0,), False, np.dtype("f4"))
    assert not kernels.kernels().collate(planes, channels, False, np.empty((voxels, 1), np.float32), table)


def test_large_outputs_are_written_past_the_cache_with_the_same_values(tmp_path):
    rng = np.random.default_rng(0)
    planes = (rng.random((300_001, 6)) < 0.02).astype(np.uint8)
    planes[50_000:200_000] = 0
    categories = (0, (1, 2), 3, (4, 5))
    table = bit_table(categories, True, np.dtype("f4"))
    for first in (0, 1, 3):
        memory = np.empty(300_001 * 5 + 16, np.float32)
        out = memory[first : first + 300_001 * 5].reshape(-1, 5)
        assert kernels.collate_voxels(planes, False, out, table)
        np.testing.assert_array_equal(out, expected(planes, categories, True, "f4"))


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


@settings(max_examples=250, deadline=None)
@given(stored_boxes(), st.booleans())
def test_boxes_of_files_are_what_h5py_reads(tmp_path_factory, stored, mapped):
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
    reads = kernels.BoxReads()
    reads.add_image(place, out[0].nbytes)
    assert reads.read(out) == [kernels.DONE]
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
def test_boxes_of_any_form_are_what_h5py_reads(tmp_path, shape, box):
    values = np.random.default_rng(0).integers(-2000, 2000, shape).astype("<i2")
    with h5py.File(tmp_path / "a.h5", "w") as file:
        file["data"] = values
    selection = eval(f"np.s_[{box}]")
    out = np.empty(values[selection].shape, np.float32)
    reads = kernels.BoxReads()
    reads.add_image(open_array(tmp_path / "a.h5", "data").place(selection), 0)
    assert reads.read(out) == [kernels.DONE]
    np.testing.assert_array_equal(out, values[selection].astype(np.float32))


@pytest.fixture
def file(tmp_path):
    path = tmp_path / "a.h5"
    with h5py.File(path, "w") as file:
        file["data"] = np.arange(4000, dtype=np.float32)
    return path


def read(place):
    reads = kernels.BoxReads()
    reads.add_image(place, 0)
    return reads.read(np.zeros(4000, np.float32))[0]


def test_a_file_that_is_another_one_is_left_undone(file):
    place = open_array(file, "data").place((slice(0, 4000),))
    assert read(place) == kernels.DONE
    os.utime(file, ns=(1, 1))
    assert read(place) not in (kernels.DONE, kernels.CHANGED)
    file.unlink()
    assert read(place) not in (kernels.DONE, kernels.CHANGED)
    os.mkfifo(file)
    assert read(place) not in (kernels.DONE, kernels.CHANGED)  # and does not wait for somebody to write


def test_a_file_that_ends_early_is_left_undone(file):
    place = open_array(file, "data").place((slice(0, 4000),))
    status = file.stat()
    os.truncate(file, status.st_size - 4)
    os.truncate(file, status.st_size)
    os.utime(file, ns=(status.st_atime_ns, status.st_mtime_ns))
    beyond = place._replace(offset=status.st_size - 100)
    assert read(beyond) not in (kernels.DONE, kernels.CHANGED)
    data = np.frombuffer(file.read_bytes(), np.uint8)
    assert read(beyond._replace(mapped=type("Map", (), {"data": data})())) not in (kernels.DONE, kernels.CHANGED)


def test_a_file_that_changes_while_it_is_read_is_an_error(tmp_path):
    path = tmp_path / "a.h5"
    with h5py.File(path, "w") as file:
        file["data"] = np.zeros(8 << 20, np.float32)
    stop, out = threading.Event(), np.empty((1, 8 << 20), np.float32)
    record = Record.from_dict({"file_name": str(path), "scan_id": "one"})

    def touch():
        while not stop.is_set():
            os.utime(path)
            time.sleep(0.005)

    thread = threading.Thread(target=touch)
    thread.start()
    try:
        deadline, seen = time.monotonic() + 20, None
        while seen is None and time.monotonic() < deadline:
            place = open_array(path, "data")
            try:
                read_at_once([Places(record, place.place((slice(0, 8 << 20),)), None, None)], out, None, None)
            except ReadError as error:
                seen = error
    finally:
        stop.set()
        thread.join()
    assert "changed while it was read" in str(seen)
    assert seen.path == path


JOB = {"text": -1, "fd": 0, "map": -1, "offset": 0, "count0": 1, "stride0": 0, "count1": 1, "stride1": 0, "run": 4,
       "item": 4, "kind": 0, "out": 0, "status": 0}  # fmt: skip
HUGE = 1 << 62


@pytest.mark.parametrize(
    "wrong",
    [
        {"run": 5}, {"run": 0}, {"run": HUGE}, {"count0": 2}, {"count0": HUGE, "count1": HUGE}, {"count1": -1},
        {"out": 1}, {"out": -1}, {"out": HUGE}, {"item": 0}, {"item": -4}, {"item": HUGE}, {"kind": 99}, {"kind": -1},
        {"kind": 1}, {"kind": 2}, {"kind": 3}, {"offset": -1}, {"offset": (1 << 63) - 1}, {"map": 0}, {"fd": -1},
        {"text": 2}, {"stride1": -8}, {"count1": 2, "run": 2, "stride1": HUGE * 2 - 1},
    ],
)  # fmt: skip
def test_jobs_that_do_not_fit_are_refused_before_anything_is_read(wrong):
    out = np.zeros(4, np.float32)
    with pytest.raises(ValueError, match="does not fit"):
        kernels.kernels().read_boxes(array("q", (JOB | wrong).values()), b"\0\0", (), out, b"")
    assert not out.any()


@pytest.mark.parametrize(
    ("jobs", "texts", "table", "message"),
    [
        (array("q", [0] * 12), b"\0\0", b"", "13|JOB_FIELDS|rows of int64"),
        (array("q", JOB.values()), b"a", b"", "two zeros"),
        (array("q", JOB.values()), b"\0\0", b"12345", "256 rows"),
        (array("q", JOB.values()), b"\0\0", bytes(256 * 65), "256 rows"),
    ],
)
def test_arguments_that_are_none_are_refused(jobs, texts, table, message):
    with pytest.raises(ValueError, match=message):
        kernels.kernels().read_boxes(jobs, texts, (), np.zeros(4, np.float32), table)
    with pytest.raises(ValueError, match=r"fit together|256 rows"):
        kernels.kernels().collate(np.zeros(12, np.uint8), 5, False, np.zeros(3, np.uint8), table or bytes(256))


@pytest.mark.parametrize(
    ("allowed", "used"),
    [
        (None, True),
        ("", False),
        ("medsegpy-h5-slices", False),
        ("medsegpy-h5-slices, MedSegPy_Native", True),
        ("medsegpy-native", True),
    ],
)
def test_the_list_of_plugins_to_load_turns_it_off(monkeypatch, allowed, used):
    if allowed is None:
        monkeypatch.delenv("MEDSEGPY_LOAD_PLUGINS", raising=False)
    else:
        monkeypatch.setenv("MEDSEGPY_LOAD_PLUGINS", allowed)
    assert (kernels.kernels() is not None) == used


@pytest.mark.parametrize("wrong", [{"COMPILED": False}, {"INTERFACE": 99}])
def test_kernels_that_are_not_there_or_of_another_time_are_not_used(monkeypatch, wrong):
    for name, value in wrong.items():
        monkeypatch.setattr(medsegpy_native, name, value)
    kernels._kernels.cache_clear()
    try:
        assert kernels.kernels() is None
    finally:
        monkeypatch.undo()
        kernels._kernels.cache_clear()
    assert kernels.kernels() is not None


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
    # Without `site`, which would find the kernels of the development install.
    code = "import medsegpy_native; print(medsegpy_native.__file__, medsegpy_native.COMPILED)"
    done = subprocess.run(
        [sys.executable, "-S", "-c", code], env=os.environ | {"PYTHONPATH": str(tmp_path / "installed")},
        capture_output=True, text=True, check=True,
    )  # fmt: skip
    assert str(tmp_path) in done.stdout
    assert done.stdout.split()[-1] == "False"
