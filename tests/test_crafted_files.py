"""Files made to crash the HDF5 library: each is rejected or read, and the process survives."""

import json
import struct
import subprocess
import sys
import textwrap

import h5py
import numpy as np
import pytest

from tests.fuzz.mutate import lookup3

IMAGE = np.arange(40 * 40, dtype=np.float32).reshape(40, 40)

READ = """
    import json, sys
    from medsegpy_core import ReadError, scan_directory
    from medsegpy_core.hdf5 import holds_dataset, open_array, root_and_groups
    for line in sys.stdin:
        path, seen = line.strip(), []
        for read in (
            lambda: float(open_array(path, "volume")[...].sum()),
            lambda: open_array(path, "missing"),
            lambda: open_array(path, "group"),
            lambda: root_and_groups(path)[0],
            lambda: holds_dataset(path, ["volume"], in_groups=True),
        ):
            try:
                seen.append(read())
            except ReadError as error:
                seen.append(f"ReadError {error}")
        print(json.dumps(seen), flush=True)
"""


def write(path, libver="earliest", groups=2, **options):
    with h5py.File(path, "w", libver=libver) as file:
        file.create_dataset("volume", data=IMAGE, **options)
        group = file.create_group("group")
        for i in range(groups):
            group.create_group(f"g{i}")["data"] = np.zeros(3)
    return bytearray(path.read_bytes())


def places(data, signature):
    found, at = [], data.find(signature)
    while at >= 0:
        found.append(at)
        at = data.find(signature, at + 1)
    return found


def looping_trees(path):
    """Version 1 B-trees of groups and of chunks, in which a node is its own child."""
    data = write(path, groups=40, chunks=(2, 2))
    for at in places(data, b"TREE"):
        key = 8 if data[at + 4] == 0 else 8 + 8 * 3
        count = int.from_bytes(data[at + 6 : at + 8], "little")
        for level in {1, max(1, data[at + 5]), 9}:
            for child in {0, count // 2, max(0, count - 1)}:
                bad = bytearray(data)
                bad[at + 5] = level
                place = at + 24 + child * (key + 8) + key
                bad[place : place + 8] = struct.pack("<Q", at)
                yield bad


def overflowing_virtual_datasets(path):
    """Virtual datasets with so many sources that numbers in the library overflow."""
    for libver in ("earliest", "latest"):
        with h5py.File(path, "w", libver=libver) as file:
            file["group/data"] = np.zeros(3)
            layout = h5py.VirtualLayout((4, 4), "f4")
            layout[:] = h5py.VirtualSource("other.h5", "data", (4, 4))
            file.create_virtual_dataset("volume", layout)
        data = bytearray(path.read_bytes())
        for heap in places(data, b"GCOL"):
            size = int.from_bytes(data[heap + 24 : heap + 32], "little")  # of the first object, which begins at 32
            for count in (2, 1 << 32, (1 << 61) + 1, (1 << 64) - 1):
                bad = bytearray(data)
                bad[heap + 33 : heap + 41] = struct.pack("<Q", count)
                bad[heap + 32 + size - 4 : heap + 32 + size] = struct.pack(
                    "<I", lookup3(bad[heap + 32 : heap + 28 + size])
                )
                yield bad


def deep_trees(path):
    """Version 2 B-trees with such a depth that recursion in the library overflows the stack."""
    data = write(path, "latest", groups=40, chunks=(2, 2), maxshape=(None, None))
    for at in places(data, b"BTHD"):
        for depth in (2, 65, 65535):
            bad = bytearray(data)
            bad[at + 12 : at + 14] = struct.pack("<H", depth)
            bad[at + 34 : at + 38] = struct.pack("<I", lookup3(bad[at : at + 34]))
            yield bad


CRAFTED = [looping_trees, overflowing_virtual_datasets, deep_trees]


def read_all(paths):
    """Read files in one process; returns the result of each, or fails if the process died."""
    done = subprocess.run(
        [sys.executable, "-c", textwrap.dedent(READ)],
        input="".join(f"{path}\n" for path in paths), capture_output=True, text=True, check=False, timeout=150,
    )  # fmt: skip
    seen = [json.loads(line) for line in done.stdout.splitlines()]
    dead = paths[len(seen)] if len(seen) < len(paths) else None
    assert (done.returncode, dead) == (0, None), done.stderr[-2000:]
    return seen


@pytest.mark.parametrize("craft", CRAFTED)
def test_no_crafted_file_ends_the_process(craft, tmp_path):
    paths = []
    for number, data in enumerate(craft(tmp_path / "sound.h5")):
        paths.append(tmp_path / f"{number}.h5")
        paths[-1].write_bytes(data)
    assert paths
    seen = read_all(paths)
    for values, *_ in seen:
        assert values == IMAGE.sum() or str(values).startswith("ReadError"), values
    if craft is overflowing_virtual_datasets:
        assert all("virtual dataset" in values for values, *_ in seen)
    if craft is looping_trees:
        assert any("B-tree" in str(values) for values in seen)


@pytest.mark.parametrize("libver", ["earliest", "latest", ("earliest", "v110"), ("v108", "latest")])
@pytest.mark.parametrize("user_block", [0, 1024])
@pytest.mark.parametrize("ordered", [False, True])
def test_kinds_of_objects_are_read_from_their_headers(libver, user_block, ordered, tmp_path):
    """Compared with the library, in files of all versions: small and large groups, attributes, all kinds of storage."""
    from medsegpy_core.hdf5.files import list_links, open_file

    path = str(tmp_path / "a.h5")
    with h5py.File(path, "w", libver=libver, userblock_size=user_block, track_order=ordered) as file:
        for options in ({}, {"chunks": (2, 2)}, {"chunks": (2, 2), "compression": "gzip"}, {"maxshape": (None, None)}):
            made = file.create_dataset(f"dataset {len(file)}", data=IMAGE, **options)
            for i in range(len(file) * 7):
                made.attrs[f"a{i}"] = np.zeros(40)
        file["compact"] = np.zeros(3)
        file["empty"] = h5py.Empty("f4")
        file["type"] = np.dtype([("a", "f4")])
        file["soft"] = h5py.SoftLink("/compact")
        file["hard"] = file["compact"]
        for size in (0, 1, 9, 600):
            group = file.create_group(f"group of {size}", track_order=ordered)
            for i in range(size):
                group.create_group(f"g{i:04d}")
            group.attrs["a"] = 3
        kinds = {name: type(file[name]) for name in file if name != "soft"}
    expected = {h5py.Dataset: "dataset", h5py.Group: "group", h5py.Datatype: "type"}
    with open_file(path) as file:
        assert list_links(file, path) == [(name, expected[kind]) for name, kind in sorted(kinds.items())]
        assert len(list_links(file, path, "group of 600")) == 600
