"""Odd and hostile HDF5 files are rejected with a `ReadError` that names the path and the problem."""

import os
import socket
import struct
import subprocess
import sys
import textwrap
import zlib
from contextlib import suppress

import h5py
import hdf5plugin
import numpy as np
import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from medsegpy_core import ReadError
from medsegpy_core.hdf5 import Access, accessing, is_hdf5, open_array

pytestmark = pytest.mark.usefixtures("backend")

IMAGE = np.arange(48, dtype=np.float32).reshape(6, 8)


@pytest.fixture
def path(tmp_path):
    return tmp_path / "file.h5"


def refused(path, key="data", match=None):
    with pytest.raises(ReadError, match=match) as caught:
        open_array(path, key)[...]
    assert str(path) in str(caught.value)
    assert caught.value.path == path
    return caught.value


def test_a_missing_file(path):
    refused(path, match="no such file")
    refused(path.parent / "nowhere" / "x.h5", match="folder .* does not exist")


@pytest.mark.parametrize("kind", ["directory", "pipe", "socket", "device"])
def test_what_is_not_a_regular_file(path, kind, monkeypatch):
    if kind == "directory":
        path.mkdir()
    elif kind == "pipe":
        os.mkfifo(path)
    elif kind == "socket":
        monkeypatch.chdir(path.parent)  # names of sockets are short
        with socket.socket(socket.AF_UNIX) as s:
            s.bind(path.name)
    else:
        path.symlink_to("/dev/null")
    refused(path, match="not a regular file")


def test_a_pipe_that_replaced_a_file(path):
    with h5py.File(path, "w") as f:
        f["data"] = IMAGE
    array = open_array(path, "data")
    path.unlink()
    os.mkfifo(path)
    with pytest.raises(ReadError, match="not a regular file"):
        array[...]


@pytest.mark.parametrize("content", [b"", b"no HDF5", b"\x89HDF\r\n\x1a\n", b"\x89HDF\r\n\x1a\n" + bytes(4000)])
def test_files_that_are_not_hdf5(path, content):
    path.write_bytes(content)
    refused(path)


@pytest.mark.parametrize("options", [{}, {"compression": "gzip", "chunks": (2, 8)}])
def test_a_truncated_file_at_every_length(path, options):
    with h5py.File(path, "w") as f:
        f.create_dataset("data", data=IMAGE, **options)
    whole = path.read_bytes()
    for length in range(0, len(whole) - 1, 97):
        path.write_bytes(whole[:length])
        refused(path)


def test_missing_keys_list_existing_ones(path):
    with h5py.File(path, "w") as f:
        f["volume"] = IMAGE
        f["0000001_V00/volume"] = IMAGE
    error = refused(path, "volum", match="Did you mean 'volume'")
    assert "'0000001_V00/volume'" in str(error)
    refused(path, "volume/x")
    refused(path, "0000001_V00", match="a group.*'volume'")
    refused(path, "a\0b")
    refused(path, "..")


def links(f):
    f["real/data"] = IMAGE
    f["soft"] = h5py.SoftLink("/real/data")
    f["dangling"] = h5py.SoftLink("/nowhere")
    f["soft_group"] = h5py.SoftLink("/real")
    f["external"] = h5py.ExternalLink("/etc/passwd", "/x")
    f["external_self"] = h5py.ExternalLink("file.h5", "/real/data")


@pytest.mark.parametrize("key", ["soft", "dangling", "soft_group/data", "external", "external_self", "real/../soft"])
def test_links_other_than_hard_ones(path, key):
    with h5py.File(path, "w") as f:
        links(f)
    refused(path, key)
    assert np.array_equal(open_array(path, "/real/./data")[...], IMAGE)


def test_hard_links_are_followed(path):
    with h5py.File(path, "w") as f:
        f["a/data"] = IMAGE
        f["b"] = f["a"]
        f["b/loop"] = f["/"]
    assert np.array_equal(open_array(path, "b/loop/b/data")[...], IMAGE)


def external_storage(f):
    f.create_dataset("data", (10,), "u1", external=[("/etc/hostname", 0, 10)])


def virtual(f):
    layout = h5py.VirtualLayout((6, 8), "f4")
    layout[:] = h5py.VirtualSource("other.h5", "data", (6, 8))
    f.create_virtual_dataset("data", layout)


def reference(f):
    f.create_dataset("data", (2, 2), h5py.ref_dtype)


def text(f):
    f["data"] = np.array([[b"ab", b"cd"]])


def variable_text(f):
    f.create_dataset("data", (2, 2), h5py.string_dtype())


def compound(f):
    f["data"] = np.zeros((2, 2), [("a", "f4"), ("b", "i2")])


def complex_numbers(f):
    f["data"] = np.zeros((2, 2), complex)


def opaque(f):
    f["data"] = np.zeros((2, 2), "V5")


def subarray(f):
    f.create_dataset("data", (2, 2), np.dtype(("f4", (3,))).base)
    del f["data"]
    kind = h5py.h5t.array_create(h5py.h5t.IEEE_F32LE, (3,))
    h5py.h5d.create(f.id, b"data", kind, h5py.h5s.create_simple((2, 2)))


def ragged(f):
    f.create_dataset("data", (2, 2), h5py.vlen_dtype(np.int32))


def odd_integers(f):
    kind = h5py.h5t.STD_I32LE.copy()
    kind.set_precision(17)
    kind.set_size(3)
    h5py.h5d.create(f.id, b"data", kind, h5py.h5s.create_simple((2, 2)))


def null_space(f):
    f["data"] = h5py.Empty("f4")


def scalar(f):
    f["data"] = 3.0


def nothing(f):
    f["data"] = np.zeros((0, 4))


def too_many_axes(f):
    f["data"] = np.zeros((1,) * 9)


def claims_terabytes(f):
    f.create_dataset("data", (1 << 20, 1 << 20, 4), "f8", chunks=(64, 64, 4), compression="gzip")


def huge_chunks(f):
    f.create_dataset("data", (1 << 15, 1 << 15), "f8", chunks=(1 << 14, 1 << 14))


def named_type(f):
    f["data"] = np.dtype("f4")


def unknown_filter(f):
    plan = h5py.h5p.create(h5py.h5p.DATASET_CREATE)
    plan.set_chunk((6, 8))
    plan.set_filter(31999, h5py.h5z.FLAG_OPTIONAL, (1, 2))
    space = h5py.h5s.create_simple((6, 8))
    h5py.h5d.create(f.id, b"data", h5py.h5t.IEEE_F32LE, space, plan).write_direct_chunk((0, 0), IMAGE.tobytes())


@pytest.mark.parametrize(
    ("make", "reason"),
    [
        (external_storage, "in another file"),
        (virtual, "virtual"),
        (reference, "reference"),
        (text, "text"),
        (variable_text, "text"),
        (compound, "compound"),
        (complex_numbers, "compound|complex"),
        (opaque, "opaque"),
        (subarray, "array in each"),
        (ragged, "variable length"),
        (odd_integers, "no NumPy equivalent"),
        (null_space, "scalar or empty"),
        (scalar, "scalar or empty"),
        (nothing, "has no elements"),
        (too_many_axes, "9 axes"),
        (claims_terabytes, "MEDSEGPY_MAX_READ"),
        (huge_chunks, "chunks have 2,147,483,648 bytes"),
        (named_type, "named type"),
        (unknown_filter, "filter 31999"),
    ],
)
def test_datasets_that_are_not_images(path, make, reason):
    with h5py.File(path, "w") as f:
        make(f)
    refused(path, match=reason)


def test_a_small_window_of_an_enormous_dataset_can_be_read(path):
    with h5py.File(path, "w") as f:
        claims_terabytes(f)
    assert not open_array(path, "data")[5:7, 5:7].any()


@pytest.mark.parametrize(
    ("limit", "fits"), [("191", False), ("192", True), ("1KiB", True), ("1kb", True), ("0.1 KB", False)]
)
def test_the_limit_of_one_read(path, monkeypatch, limit, fits):
    with h5py.File(path, "w") as f:
        f["data"] = IMAGE
    monkeypatch.setenv("MEDSEGPY_MAX_READ", limit)
    if fits:
        assert np.array_equal(open_array(path, "data")[...], IMAGE)
    else:
        refused(path, match="MEDSEGPY_MAX_READ")
        with pytest.raises(ReadError, match="MEDSEGPY_MAX_READ"):
            open_array(path, "data").read_into((slice(0, 6), slice(0, 8)), np.empty((6, 8), np.float32))
        assert np.array_equal(open_array(path, "data")[:2], IMAGE[:2])


@pytest.mark.parametrize("limit", ["many", "8GX", "-1", "0"])
def test_an_invalid_limit(path, monkeypatch, limit):
    with h5py.File(path, "w") as f:
        f["data"] = IMAGE
    monkeypatch.setenv("MEDSEGPY_MAX_READ", limit)
    with pytest.raises(ValueError, match="MEDSEGPY_MAX_READ"):
        open_array(path, "data")[...]


RAW = IMAGE.tobytes()


@pytest.mark.parametrize(
    "stored",
    [
        zlib.compress(RAW[:-4]),
        zlib.compress(RAW + b"\0"),
        zlib.compress(RAW * 1000),
        zlib.compress(b""),
        zlib.compress(RAW)[:-4],  # the checksum is cut off
        zlib.compress(RAW)[:-1] + b"\0",
        RAW,
    ],
)
@pytest.mark.parametrize("route", ["ranges", "library"])
def test_gzip_chunks_that_do_not_decode_to_their_size(path, stored, route):
    with h5py.File(path, "w") as f:
        # A type that is not NumPy's makes the library do the work.
        kind = h5py.h5t.IEEE_F32LE.copy()
        if route == "library":
            kind.set_ebias(100)
        plan = h5py.h5p.create(h5py.h5p.DATASET_CREATE)
        plan.set_chunk((6, 8))
        plan.set_deflate(4)
        dataset = h5py.h5d.create(f.id, b"data", kind, h5py.h5s.create_simple((6, 8)), plan)
        dataset.write_direct_chunk((0, 0), stored)
    refused(path, match="chunk")


def with_chunk(path, stored, shape=(6, 8), **options):
    with h5py.File(path, "w") as f:
        d = f.create_dataset("data", shape, "f4", chunks=shape, **options)
        d.id.write_direct_chunk((0, 0), stored)


@pytest.mark.parametrize("stored", [RAW[:-1], RAW + b"\0", RAW[:50]])
def test_plain_chunks_of_another_size(path, stored):
    with_chunk(path, stored)
    refused(path, match="chunk")


FILTERS = {
    **{name: {"compression": getattr(hdf5plugin, name)()} for name in ("Blosc", "Blosc2", "Zstd", "LZ4", "Bitshuffle")},
    "BZip2": {"compression": hdf5plugin.BZip2()},
    "lzf": {"compression": "lzf"},
    "gzip": {"compression": "gzip"},
    "gzip, shuffle": {"compression": "gzip", "shuffle": True},
    "shuffle": {"shuffle": True},
    "fletcher32": {"fletcher32": True},
    "shuffle, fletcher32": {"shuffle": True, "fletcher32": True},
    "gzip, fletcher32": {"compression": "gzip", "fletcher32": True},
}


@pytest.mark.parametrize("name", FILTERS)
@pytest.mark.parametrize("rows", [30, 120])
def test_chunks_that_do_not_decode_to_their_size(path, name, rows):
    """A valid chunk of another dataset, with fewer or more rows, replaces the right one."""
    options = FILTERS[name]
    other = np.zeros((rows, 80), np.float32)
    with h5py.File(path.with_name("other.h5"), "w") as f:
        d = f.create_dataset("data", data=other, chunks=other.shape, **options)
        mask, stored = d.id.read_direct_chunk((0, 0))
        assert mask == 0
    with_chunk(path, stored, (60, 80), **options)
    refused(path, match="chunk")


@pytest.mark.parametrize("name", ["lzf", "Blosc", "Blosc2", "Zstd", "LZ4", "Bitshuffle", "BZip2"])
def test_noise_in_chunks_of_other_filters(path, name):
    options = {"compression": "lzf" if name == "lzf" else getattr(hdf5plugin, name)()}
    with_chunk(path, np.random.default_rng(0).bytes(100), **options)
    refused(path)


@pytest.mark.parametrize("number", [5, 6])
def test_filters_that_only_the_library_decodes(path, number):
    """nbit and scaleoffset, on integers of 20 bits and of 32."""
    values = np.arange(48, dtype="<i4").reshape(6, 8)
    kind = h5py.h5t.STD_I32LE.copy()
    plan = h5py.h5p.create(h5py.h5p.DATASET_CREATE)
    plan.set_chunk((4, 5))
    if number == 5:
        kind.set_precision(20)
        plan.set_filter(5, h5py.h5z.FLAG_OPTIONAL, ())
    else:
        plan.set_scaleoffset(h5py.h5z.SO_INT, 0)
    with h5py.File(path, "w") as f:
        d = h5py.h5d.create(f.id, b"data", kind, h5py.h5s.create_simple((6, 8)), plan)
        d.write(h5py.h5s.ALL, h5py.h5s.ALL, values)
        assert d.get_create_plist().get_filter(0)[0] == number
    assert np.array_equal(open_array(path, "data")[1:5, 2:], values[1:5, 2:])


def nbit(precision=20, offset=0):
    kind = h5py.h5t.STD_I32LE.copy()
    kind.set_precision(precision)
    kind.set_offset(offset)
    plan = h5py.h5p.create(h5py.h5p.DATASET_CREATE)
    plan.set_filter(5, h5py.h5z.FLAG_OPTIONAL, ())
    return kind, plan


def scaleoffset(bits, dtype="<i4", digits=0, fill=False):
    plan = h5py.h5p.create(h5py.h5p.DATASET_CREATE)
    if fill:
        plan.set_fill_value(np.array(3, dtype))
    plan.set_scaleoffset(*((h5py.h5z.SO_INT, bits) if dtype[1] == "i" else (h5py.h5z.SO_FLOAT_DSCALE, digits)))
    return h5py.h5t.py_create(np.dtype(dtype)), plan


def szip():
    plan = h5py.h5p.create(h5py.h5p.DATASET_CREATE)
    plan.set_szip(h5py.h5z.SZIP_NN_OPTION_MASK, 8)
    return h5py.h5t.STD_I32LE.copy(), plan


def with_cut_chunk(path, kind, plan, cut, values, filters=()):
    """Write one chunk of `values` without its last `cut` bytes; returns what h5py reads from the complete chunk."""
    plan.set_chunk(values.shape)
    for number, parameters in filters:
        plan.set_filter(number, 0, parameters)
    with h5py.File(path, "w") as f:
        d = h5py.h5d.create(f.id, b"data", kind, h5py.h5s.create_simple(values.shape), plan)
        d.write(h5py.h5s.ALL, h5py.h5s.ALL, values)
        whole = f["data"][...]
        f.flush()
        mask, stored = d.read_direct_chunk((0,) * values.ndim)
        assert mask == 0
        if cut:
            d.write_direct_chunk((0,) * values.ndim, stored[: len(stored) - cut], mask)
    return whole


SMALL = {
    "nbit": nbit,
    "nbit of all bits but one": lambda: nbit(31),
    "nbit in the middle": lambda: nbit(12, 7),
    "scaleoffset": lambda: scaleoffset(0),
    "scaleoffset of given bits": lambda: scaleoffset(13),
    "scaleoffset with a fill value": lambda: scaleoffset(0, fill=True),
    "scaleoffset of 16 bits": lambda: scaleoffset(0, "<i2"),
    "scaleoffset of floats": lambda: scaleoffset(0, "<f4", 2),
    "scaleoffset of doubles": lambda: scaleoffset(0, "<f8", 3),
    "integers that keep all bits": lambda: scaleoffset(32),
}


@pytest.mark.parametrize("isolate", [False, True])
@pytest.mark.parametrize("name", SMALL)
def test_chunks_that_only_the_library_decodes_are_checked(name, isolate, tmp_path):
    """The library stores one byte more than it needs, and reads past the end of short data."""
    values = (np.arange(64).reshape(8, 8) * 29 % 2047).astype("<i4")
    with accessing(Access(isolate=isolate)):
        for cut in (0, 1, 2, 3, 9, 40):
            path = tmp_path / f"{cut}.h5"
            kind, plan = SMALL[name]()
            whole = with_cut_chunk(path, kind, plan, cut, values.astype(kind.dtype))
            if cut < (1 if name == "integers that keep all bits" else 2):
                assert np.array_equal(open_array(path, "data")[...], whole)
                assert np.array_equal(open_array(path, "data")[2:5], whole[2:5])
            else:
                refused(path, match=r"are needed|bytes instead of")


@pytest.mark.parametrize("bits", [33, 64, 255, 1 << 31])
def test_elements_of_more_bits_than_they_have(path, bits):
    values = np.arange(64, dtype="<i4")
    with_cut_chunk(path, *scaleoffset(0), 0, values)
    with h5py.File(path, "r+") as f:
        d = f["data"].id
        d.write_direct_chunk(
            (0,), struct.pack("<I", bits) + d.read_direct_chunk((0,))[1][4:] + bytes(64 * bits // 8 % 9999), 0
        )
    refused(path, match="more than the 32")


@settings(max_examples=60, deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture])
@given(st.sampled_from(["nbit", "scaleoffset", "floats"]), st.integers(1, 40), st.integers(16, 30), st.integers(0, 90))
def test_truncated_chunks_are_rejected_and_complete_ones_read(tmp_path, filtered, size, bits, cut):
    path = tmp_path / "a.h5"
    values = np.random.default_rng(size).integers(0, 1 << bits, size).astype("<i4")
    if filtered == "nbit":
        kind, plan = nbit(bits + 1)
    else:
        kind, plan = scaleoffset(0, *(("<f4", 1) if filtered == "floats" else ("<i4",)))
    whole = with_cut_chunk(path, kind, plan, 0, values.astype(kind.dtype))
    with h5py.File(path, "r+") as f:
        stored = f["data"].id.read_direct_chunk((0,))[1]
        f["data"].id.write_direct_chunk((0,), stored[: max(1, len(stored) - cut)], 0)
    if cut < 2:  # the library stores a byte more than it needs, if the bits end with a byte
        with suppress(ReadError):
            assert np.array_equal(open_array(path, "data")[...], whole)
    else:
        refused(path, match="are needed")
    if cut == 0:
        assert np.array_equal(open_array(path, "data")[...], whole)


@pytest.mark.parametrize("filters", [[(2, (4,))], [(3, ())], [(1, (4,))]])
def test_later_filters_are_decoded_first(path, filters):
    values = np.arange(64, dtype="<i4")
    whole = with_cut_chunk(path, *scaleoffset(0), 0, values, filters)
    assert np.array_equal(open_array(path, "data")[...], whole)


@pytest.mark.parametrize("isolate", [False, True])
def test_szip_is_read_only_on_request(path, isolate, tmp_path):
    values = np.arange(64, dtype="<i4").reshape(8, 8)
    whole = with_cut_chunk(path, *szip(), 0, values)
    with accessing(Access(isolate=isolate)):
        error = refused(path, match="szip")
        assert f"h5repack -f GZIP=4 {path} {path.with_name('file-gzip.h5')}" in str(error)
    with accessing(Access(isolate=isolate, szip=True)):
        array = open_array(path, "data")
        assert np.array_equal(array[2:5], whole[2:5])
    # What was found out with it does not count without.
    with accessing(Access(isolate=isolate)):
        refused(path, match="szip")
        with pytest.raises(ReadError, match="szip"):
            array[...]


def test_flipped_bytes_fail_the_checksum(path):
    with h5py.File(path, "w") as f:
        d = f.create_dataset("data", data=IMAGE, chunks=(6, 8), fletcher32=True)
        at = d.id.get_chunk_info(0).byte_offset
    data = bytearray(path.read_bytes())
    data[at + 7] ^= 16
    path.write_bytes(data)
    refused(path, match="checksum")


def test_invalid_booleans(path):
    with h5py.File(path, "w") as f:
        d = f.create_dataset("data", data=np.ones((2, 3), bool))
        at = d.id.get_offset()
    data = bytearray(path.read_bytes())
    data[at] = 2
    path.write_bytes(data)
    refused(path, match="byte is 2")


def test_an_enumeration_is_read_as_integers(path):
    with h5py.File(path, "w") as f:
        kind = h5py.enum_dtype({"background": 0, "liver": 1, "spleen": 2}, basetype="i2")
        f.create_dataset("data", (2, 2), kind)[...] = [[0, 1], [2, 1]]
    array = open_array(path, "data")
    assert array.dtype == np.int16
    assert array.dtype.metadata is None
    assert array[...].tolist() == [[0, 1], [2, 1]]


@pytest.mark.parametrize("offset", [0, 512, 1024, 2048])
def test_the_signature_is_found_after_a_user_block(path, offset):
    with h5py.File(path, "w", userblock_size=offset) as f:
        f["data"] = IMAGE
    assert is_hdf5(path)
    assert np.array_equal(open_array(path, "data")[2:4, ::3], IMAGE[2:4, ::3])


def test_files_without_the_signature(path):
    assert not is_hdf5(path)
    path.write_bytes(b"\x89HDF\r\n\x1a")
    assert not is_hdf5(path)
    assert not is_hdf5(path.parent)


def test_a_replaced_file_is_located_again(path):
    with h5py.File(path, "w") as f:
        f["data"] = IMAGE
    array = open_array(path, "data")
    other = path.with_name("other.h5")
    with h5py.File(other, "w") as f:
        f["something"] = np.zeros(1000)
        f.create_dataset("data", data=IMAGE + 1, compression="gzip")
    other.replace(path)
    assert np.array_equal(array[...], IMAGE + 1)
    with h5py.File(other, "w") as f:
        f["data"] = IMAGE[:3]
    other.replace(path)
    with pytest.raises(ReadError, match=r"was float32 of shape \(6, 8\) and is now float32 of shape \(3, 8\)"):
        array[...]
    path.unlink()
    with pytest.raises(ReadError, match="no such file"):
        array[...]


def test_a_file_truncated_under_an_open_array(path):
    with h5py.File(path, "w") as f:
        f["data"] = IMAGE
    array = open_array(path, "data")
    os.truncate(path, path.stat().st_size - 40)
    with pytest.raises(ReadError):
        array[...]


def test_chunk_addresses_beyond_the_end(path):
    with h5py.File(path, "w") as f:
        d = f.create_dataset("data", data=IMAGE, chunks=(6, 8))
        at = d.id.get_chunk_info(0).byte_offset
    data = path.read_bytes()
    assert data.count(struct.pack("<Q", at)) == 1
    path.write_bytes(data.replace(struct.pack("<Q", at), struct.pack("<Q", 1 << 40)))
    refused(path)


def run(code, *arguments, **environment):
    return subprocess.run(
        [sys.executable, "-c", textwrap.dedent(code), *map(str, arguments)],
        env=os.environ | environment,
        capture_output=True,
        text=True,
        check=True,
    ).stdout


def test_filters_are_not_loaded_from_folders(path, tmp_path):
    """Any lookup of an unknown filter would load a library in HDF5_PLUGIN_PATH."""
    with h5py.File(path, "w") as f:
        unknown_filter(f)
    (tmp_path / "libevil.so").write_bytes(b"not even a library")
    code = """
        import os, sys
        import h5py
        folders = [h5py.h5pl.get(i) for i in range(h5py.h5pl.size())]
        opened = []
        sys.addaudithook(lambda event, args: opened.append(args[0]) if event in ("ctypes.dlopen",) else None)
        from medsegpy_core import ReadError
        from medsegpy_core.hdf5 import open_array
        try:
            open_array(sys.argv[1], "data")[...]
        except ReadError as error:
            print("31999" in str(error))
        print(folders == [h5py.h5pl.get(i) for i in range(h5py.h5pl.size())], bool(folders))
    """
    assert run(code, path, HDF5_PLUGIN_PATH=str(tmp_path)).split() == ["True", "True", "True"]


def test_more_files_than_descriptors(tmp_path):
    code = """
        import resource, sys, threading
        import h5py, numpy as np
        resource.setrlimit(resource.RLIMIT_NOFILE, (64, 64))
        from medsegpy_core.hdf5 import open_array
        arrays = []
        for i in range(150):
            name = f"{sys.argv[1]}/{i}.h5"
            with h5py.File(name, "w") as f:
                f.create_dataset("data", data=np.full((4, 4), i), **({"compression": "lzf"} if i % 3 == 0 else {}))
            arrays.append(open_array(name, "data"))
        def read():
            for k in range(3):
                for i, array in enumerate(arrays):
                    assert (array[...] == i).all()
            done.append(True)
        done = []
        threads = [threading.Thread(target=read) for _ in range(8)]
        for thread in threads: thread.start()
        for thread in threads: thread.join()
        print(len(done))
    """
    assert run(code, tmp_path).strip() == "8"


def test_a_fork_while_other_threads_read(tmp_path):
    code = """
        import os, sys, threading
        import h5py, numpy as np
        from medsegpy_core.hdf5 import open_array
        names = []
        for i in range(20):
            names.append(f"{sys.argv[1]}/{i}.h5")
            with h5py.File(names[-1], "w") as f:
                f.create_dataset("data", data=np.full((64, 64), i), **({"compression": "lzf"} if i % 2 else {}))
        stop = False
        def read():
            while not stop:
                for i, name in enumerate(names):
                    assert (open_array(name, "data")[...] == i).all()
        threads = [threading.Thread(target=read) for _ in range(3)]
        for thread in threads: thread.start()
        codes = []
        for _ in range(10):
            pid = os.fork()
            if pid == 0:
                ok = all((open_array(name, "data")[...] == i).all() for i, name in enumerate(names))
                os._exit(0 if ok else 1)
            codes.append(os.waitpid(pid, 0)[1])
        stop = True
        for thread in threads: thread.join()
        print(codes == [0] * 10)
    """
    assert run(code, tmp_path, PYTHONWARNINGS="ignore::DeprecationWarning").strip() == "True"
