"""Odd and hostile files, each built by hand, with the expected result: read as h5py reads it, or rejected."""

import bz2
import os
import struct
import zlib

import h5py
import hdf5plugin
import numpy as np

from tests.fuzz.mutate import mend_checksums

IMAGE = np.arange(120, dtype=np.float32).reshape(4, 5, 6)
SECRET = b"a secret that no dataset may hand out, 64 bytes long for sure.\n\n"

# name -> (builder, "read", "refused" or "either"). A builder is given the path of the file, in a folder of its own.
CORPUS = {}


def odd(expected, plain=True):
    """Register a builder of a file.

    Args:
        expected: The expected result.
        plain: Whether plain h5py may read it too; some files make it hang.
    """

    def add(build):
        CORPUS[build.__name__] = (build, expected, plain)
        return build

    return add


def _low(path, kind, shape, plan=None, **file_options):
    """Create `volume` through the low-level interface; returns file and dataset."""
    file = h5py.File(path, "w", **file_options)
    space = h5py.h5s.create_simple(shape)
    return file, h5py.h5d.create(file.id, b"volume", kind, space, plan or h5py.h5p.create(h5py.h5p.DATASET_CREATE))


def _chunked(shape=(4, 5, 6), deflate=None):
    plan = h5py.h5p.create(h5py.h5p.DATASET_CREATE)
    plan.set_chunk(shape)
    if deflate is not None:
        plan.set_deflate(deflate)
    return plan


# -- files that are read


def _sound(name, **options):
    def build(path):
        with h5py.File(path, "w", **{k: options.pop(k) for k in ("userblock_size", "libver") if k in options}) as f:
            f.create_dataset("volume", data=IMAGE.astype(options.pop("dtype", "f4")), **options)

    build.__name__ = name
    odd("read")(build)


for _dtype in ("<f2", "<f4", ">f4", "<f8", ">f8", "u1", "i1", "<i2", ">i2", "<u4", ">i8", "<u8"):
    _sound(f"type_{_dtype.strip('<>')}_{'big' if _dtype[0] == '>' else 'little'}", dtype=_dtype)
for _size in (512, 1024, 4096):
    _sound(f"user_block_{_size}", userblock_size=_size)
    _sound(f"user_block_{_size}_chunked", userblock_size=_size, chunks=(2, 2, 2), compression="gzip")
for _name, _maxshape in (
    ("single", None),
    ("fixed", (4, 5, 6)),
    ("extensible", (None, 5, 6)),
    ("btree", (None, None, 6)),
):
    _sound(f"index_{_name}", libver="latest", chunks=(3, 2, 4) if _maxshape else (4, 5, 6), maxshape=_maxshape)
    _sound(f"index_{_name}_gzip", libver="latest", chunks=(3, 2, 4), maxshape=_maxshape, compression="gzip")
for _name in ("Blosc", "Blosc2", "Zstd", "LZ4", "Bitshuffle", "BZip2", "Zfp"):
    _sound(f"filter_{_name}".lower(), chunks=(4, 5, 3), **getattr(hdf5plugin, _name)())
_sound("filter_scaleoffset", dtype="<i4", chunks=(2, 5, 6), scaleoffset=0)
_sound("filters_all", chunks=(4, 5, 3), compression="gzip", shuffle=True, fletcher32=True)


@odd("read")
def booleans(path):
    with h5py.File(path, "w") as f:
        f["volume"] = IMAGE > 50


@odd("read")
def enumeration(path):
    with h5py.File(path, "w") as f:
        kind = h5py.enum_dtype({"none": 0, "liver": 1}, basetype="u1")
        f.create_dataset("volume", (4, 5, 6), kind)[...] = IMAGE > 3


@odd("read")
def nothing_written(path):
    with h5py.File(path, "w") as f:
        f.create_dataset("volume", (4, 5, 6), "f4", fillvalue=7)


@odd("read")
def some_chunks_written(path):
    with h5py.File(path, "w") as f:
        f.create_dataset("volume", (4, 5, 6), "f4", chunks=(2, 5, 6), compression="gzip", fillvalue=-1)[:2] = 3


@odd("read")
def compact(path):
    plan = h5py.h5p.create(h5py.h5p.DATASET_CREATE)
    plan.set_layout(h5py.h5d.COMPACT)
    file, made = _low(path, h5py.h5t.IEEE_F32LE, (4, 5, 6), plan)
    made.write(h5py.h5s.ALL, h5py.h5s.ALL, IMAGE)
    file.close()


@odd("read")
def filter_left_out_of_a_chunk(path):
    file, made = _low(path, h5py.h5t.IEEE_F32LE, (4, 5, 6), _chunked(deflate=4))
    made.write_direct_chunk((0, 0, 0), IMAGE.tobytes(), 1)
    file.close()


@odd("read")
def hard_link_loop(path):
    with h5py.File(path, "w") as f:
        f["volume"] = IMAGE
        f["loop"] = f["/"]


@odd("read")
def many_names(path):
    with h5py.File(path, "w", libver="latest") as f:
        f["volume"] = IMAGE
        for i in range(2000):
            f.create_group(f"g{i}")


@odd("read")
def names_that_are_no_text(path):
    with h5py.File(path, "w") as f:
        f["volume"] = IMAGE
        f.create_group(b"\xff\xfe not UTF-8")
        f.create_group("a\nb")


@odd("read")
def odd_attributes(path):
    with h5py.File(path, "w") as f:
        f["volume"] = IMAGE
        f["volume"].attrs["spacing"] = np.full((3, 3), np.nan)
        f["volume"].attrs["affine"] = "text"
        f.attrs["spacing"] = h5py.Empty("f4")
        f.attrs["huge"] = np.zeros(7000)


# -- links


@odd("refused")
def soft_link_cycle(path):
    with h5py.File(path, "w") as f:
        f["volume"] = h5py.SoftLink("/other")
        f["other"] = h5py.SoftLink("/volume")


@odd("refused")
def dangling_link(path):
    with h5py.File(path, "w") as f:
        f["volume"] = h5py.SoftLink("/nowhere")


@odd("refused")
def external_link(path):
    secret = path.with_name("other.h5")
    with h5py.File(secret, "w") as f:
        f["volume"] = IMAGE
    with h5py.File(path, "w") as f:
        f["volume"] = h5py.ExternalLink(str(secret), "/volume")


@odd("refused", plain=False)
def external_link_to_a_pipe(path):
    os.mkfifo(path.with_name("pipe"))
    with h5py.File(path, "w") as f:
        f["volume"] = h5py.ExternalLink("pipe", "/volume")


@odd("refused")
def external_link_to_itself(path):
    with h5py.File(path, "w") as f:
        f["volume"] = h5py.ExternalLink(path.name, "/volume")


# -- data that lie elsewhere


def _external(path, source, size=64):
    plan = h5py.h5p.create(h5py.h5p.DATASET_CREATE)
    plan.set_external(os.fsencode(source), 0, size)
    file, _ = _low(path, h5py.h5t.NATIVE_UINT8, (4, 4, 4), plan)
    file.close()


@odd("refused")
def external_storage_of_a_secret(path):
    path.with_name("secret").write_bytes(SECRET)
    _external(path, "secret")


@odd("refused")
def external_storage_of_passwd(path):
    _external(path, "/etc/passwd")


@odd("refused", plain=False)
def external_storage_of_a_pipe(path):
    os.mkfifo(path.with_name("pipe"))
    _external(path, "pipe")


@odd("refused")
def external_storage_of_proc(path):
    _external(path, "/proc/self/environ")


@odd("refused")
def virtual_of_another_file(path):
    with h5py.File(path.with_name("other.h5"), "w") as f:
        f["volume"] = IMAGE
    layout = h5py.VirtualLayout((4, 5, 6), "f4")
    layout[:] = h5py.VirtualSource("other.h5", "volume", (4, 5, 6))
    with h5py.File(path, "w") as f:
        f.create_virtual_dataset("volume", layout)


@odd("refused", plain=False)
def virtual_of_itself(path):
    layout = h5py.VirtualLayout((4, 5, 6), "f4")
    layout[:] = h5py.VirtualSource(".", "volume", (4, 5, 6))
    with h5py.File(path, "w", libver="latest") as f:
        f.create_virtual_dataset("volume", layout)


@odd("refused", plain=False)
def virtual_of_a_pipe(path):
    os.mkfifo(path.with_name("pipe"))
    layout = h5py.VirtualLayout((4, 5, 6), "f4")
    layout[:] = h5py.VirtualSource("pipe", "volume", (4, 5, 6))
    with h5py.File(path, "w", libver="latest") as f:
        f.create_virtual_dataset("volume", layout)


# -- what no image is


def _other_type(name, dtype, value=None):
    def build(path):
        with h5py.File(path, "w") as f:
            made = f.create_dataset("volume", (4, 5, 6), dtype)
            if value is not None:
                made[...] = value

    build.__name__ = f"elements_{name}"
    odd("refused")(build)


_other_type("reference", h5py.ref_dtype)
_other_type("region", h5py.regionref_dtype)
_other_type("text", "S8", b"text")
_other_type("variable_text", h5py.string_dtype(), "text")
_other_type("ragged", h5py.vlen_dtype(np.int32))
_other_type("compound", [("a", "f4"), ("b", "i2")])
_other_type("complex", "c8", 1j)
_other_type("opaque", "V5")
_other_type("array", np.dtype([("a", "f4", (3,))]))


def _low_type(name, kind, expected="refused"):
    def build(path):
        file, _ = _low(path, kind() if callable(kind) else kind, (4, 5, 6))
        file.close()

    build.__name__ = f"type_{name}"
    odd(expected)(build)


def _bits(precision, size):
    kind = h5py.h5t.STD_I32LE.copy()
    kind.set_precision(precision)
    kind.set_size(size)
    return kind


def _float_with_bias():
    kind = h5py.h5t.IEEE_F32LE.copy()
    kind.set_ebias(3)
    return kind


_low_type("integer_of_24_bits", lambda: _bits(24, 3))
_low_type("integer_of_17_bits", lambda: _bits(17, 4), "either")
_low_type("float_with_odd_bias", _float_with_bias, "either")
_low_type("subarray", lambda: h5py.h5t.array_create(h5py.h5t.IEEE_F32LE, (2,)))
_low_type("time", h5py.h5t.UNIX_D32LE)
_low_type("bitfield", h5py.h5t.STD_B8LE, "either")


@odd("refused")
def null_space(path):
    with h5py.File(path, "w") as f:
        f["volume"] = h5py.Empty("f4")


@odd("refused")
def scalar(path):
    with h5py.File(path, "w") as f:
        f["volume"] = 1.0


@odd("refused")
def no_elements(path):
    with h5py.File(path, "w") as f:
        f["volume"] = np.zeros((4, 0, 6))


@odd("refused")
def one_axis(path):
    with h5py.File(path, "w") as f:
        f["volume"] = np.zeros(100)


@odd("refused")
def thirty_two_axes(path):
    with h5py.File(path, "w") as f:
        f["volume"] = np.zeros((1,) * 32)


@odd("refused")
def a_group(path):
    with h5py.File(path, "w") as f:
        f["volume/data"] = IMAGE


@odd("refused")
def a_type(path):
    with h5py.File(path, "w") as f:
        f["volume"] = np.dtype("f4")


@odd("refused")
def another_key(path):
    with h5py.File(path, "w") as f:
        f["Volume"] = IMAGE


# -- claims


@odd("refused", plain=False)
def terabytes(path):
    with h5py.File(path, "w") as f:
        f.create_dataset("volume", (1 << 16, 1 << 16, 1 << 10), "f8", chunks=(64, 64, 64))


@odd("refused", plain=False)
def more_than_64_bits(path):
    with h5py.File(path, "w") as f:
        f.create_dataset("volume", (1 << 40, 1 << 19, 8), "f8", chunks=(64, 64, 8), maxshape=(None,) * 3)


@odd("refused", plain=False)
def huge_chunk(path):
    with h5py.File(path, "w") as f:
        f.create_dataset("volume", (1 << 15, 1 << 14, 1), "f8", chunks=(1 << 15, 1 << 13, 1))


@odd("refused", plain=False)
def bomb(path):
    """A gigabyte of zeros that needs only a megabyte in the file."""
    file, made = _low(path, h5py.h5t.IEEE_F32LE, (4, 5, 6), _chunked(deflate=9))
    made.write_direct_chunk((0, 0, 0), zlib.compress(bytes(1 << 30), 1))
    file.close()


@odd("refused")
def contiguous_beyond_the_end(path):
    with h5py.File(path, "w") as f:
        f["volume"] = np.zeros((64, 64, 64))
        at = f["volume"].id.get_offset()
    data = path.read_bytes()
    path.write_bytes(data[: at + 100])


@odd("refused")
def contiguous_offset_beyond_the_end(path):
    with h5py.File(path, "w") as f:
        f["volume"] = IMAGE
        at = f["volume"].id.get_offset()
    data = path.read_bytes()
    place, size = struct.pack("<Q", at), struct.pack("<Q", IMAGE.nbytes)
    assert data.count(place + size) == 1
    path.write_bytes(data.replace(place + size, struct.pack("<Q", len(data) - 8) + size))


@odd("refused")
def chunk_beyond_the_end(path):
    with h5py.File(path, "w") as f:
        f.create_dataset("volume", data=IMAGE, chunks=(4, 5, 6))
        at = f["volume"].id.get_chunk_info(0).byte_offset
    data = path.read_bytes()
    path.write_bytes(data.replace(struct.pack("<Q", at), struct.pack("<Q", len(data) - 8)))


@odd("read")
def mostly_holes(path):
    with h5py.File(path, "w") as f:
        f.create_dataset("volume", (400, 400, 40), "u1", chunks=(10, 10, 10))[395:, :, 39:] = 1


# -- chunks and filters


def _chunk(name, stored, expected="refused", deflate=4, mask=0):
    def build(path):
        file, made = _low(path, h5py.h5t.IEEE_F32LE, (4, 5, 6), _chunked(deflate=deflate))
        made.write_direct_chunk((0, 0, 0), stored, mask)
        file.close()

    build.__name__ = f"chunk_{name}"
    odd(expected)(build)


_RAW = IMAGE.tobytes()
_chunk("short", zlib.compress(_RAW[:-4]))
_chunk("long", zlib.compress(_RAW + bytes(4)))
_chunk("of_nothing", zlib.compress(b""))
_chunk("noise", b"\x17" * 100)
_chunk("cut", zlib.compress(_RAW)[:50])
_chunk("without_checksum", zlib.compress(_RAW)[:-4])
_chunk("sound", zlib.compress(_RAW), "read")
_chunk("plain_short", _RAW[:-1], deflate=None)
_chunk("plain_long", _RAW + b"\0", deflate=None)
_chunk("plain_one_byte", b"\0", deflate=None)
_chunk("left_out_short", _RAW[:-8], mask=1)


@odd("refused")
def unknown_filter(path):
    plan = _chunked()
    plan.set_filter(31999, h5py.h5z.FLAG_OPTIONAL, (1, 2, 3))
    file, made = _low(path, h5py.h5t.IEEE_F32LE, (4, 5, 6), plan)
    made.write_direct_chunk((0, 0, 0), _RAW)
    file.close()


@odd("refused")
def shuffle_of_another_size(path):
    plan = _chunked()
    plan.set_filter(2, h5py.h5z.FLAG_OPTIONAL, (4096,))
    plan.set_deflate(1)
    file, made = _low(path, h5py.h5t.IEEE_F32LE, (4, 5, 6), plan)
    made.write_direct_chunk((0, 0, 0), zlib.compress(_RAW[:100]))
    file.close()


@odd("refused")
def checksum_that_does_not_fit(path):
    with h5py.File(path, "w") as f:
        f.create_dataset("volume", data=IMAGE, chunks=(4, 5, 6), fletcher32=True)
        at = f["volume"].id.get_chunk_info(0).byte_offset
    data = bytearray(path.read_bytes())
    data[at + 3] ^= 64
    path.write_bytes(data)


@odd("refused")
def booleans_that_are_neither(path):
    with h5py.File(path, "w") as f:
        f["volume"] = np.ones((4, 5, 6), bool)
        at = f["volume"].id.get_offset()
    data = bytearray(path.read_bytes())
    data[at + 5] = 7
    path.write_bytes(data)


@odd("refused", plain=False)
def bzip2_that_breaks_off(path):
    """The filter of hdf5plugin loops forever."""
    plan = _chunked()
    plan.set_filter(307, h5py.h5z.FLAG_OPTIONAL, (9,))
    file, made = _low(path, h5py.h5t.IEEE_F32LE, (4, 5, 6), plan)
    made.write_direct_chunk((0, 0, 0), bz2.compress(_RAW)[:-20])
    file.close()


@odd("refused")
def blosc2_that_wants_a_gigabyte(path):
    plan = _chunked()
    plan.set_filter(32026, h5py.h5z.FLAG_OPTIONAL, (1, 0, 4, 1 << 30, 5, 1, 0))
    file, made = _low(path, h5py.h5t.IEEE_F32LE, (4, 5, 6), plan)
    made.write_direct_chunk((0, 0, 0), b"\x05" * 100)
    file.close()


@odd("refused")
def chunk_of_no_bytes_in_the_index(path):
    with h5py.File(path, "w") as f:
        f.create_dataset("volume", data=IMAGE, chunks=(2, 5, 6), shuffle=True)
    data, first = path.read_bytes(), struct.pack("<IIQQQ", 240, 0, 0, 0, 0)
    assert data.count(first) == 1
    path.write_bytes(data.replace(first, struct.pack("<I", 0) + first[4:]))


@odd("refused", plain=False)
def index_of_more_than_the_shape(path):
    """A chunk array that does not match the dataset: the library reads beyond its end."""
    with h5py.File(path, "w", libver="latest") as f:
        f.create_dataset("volume", data=IMAGE, chunks=(2, 2, 2), maxshape=(4, 5, 6), compression="lzf")
    _give_shape(path, (4, 2, 6))


def _give_shape(path, shape):
    """Write another shape into a file of the newer format, as extent and as maximum."""
    data, found = path.read_bytes(), struct.pack("<QQQ", 4, 5, 6)
    assert data.count(found) == 2
    data = bytearray(data.replace(found, struct.pack("<QQQ", *shape)))
    mend_checksums(data)
    path.write_bytes(data)


def _short_index(name, **options):
    def build(path):
        with h5py.File(path, "w", libver="latest") as f:
            f.create_dataset("volume", data=IMAGE, chunks=(2, 5, 6), maxshape=(4, 5, 6), **options)
        _give_shape(path, (4000, 5, 6))

    build.__name__ = f"index_of_less_than_the_shape_{name}"
    odd("refused", plain=False)(build)


_short_index("plain")
_short_index("gzip", compression="gzip")
_short_index("lzf", compression="lzf")


# -- what is no HDF5 file, or half of one


@odd("refused")
def empty(path):
    path.touch()


@odd("refused")
def a_text(path):
    path.write_text("image\n" * 1000)


@odd("refused")
def signature_only(path):
    path.write_bytes(b"\x89HDF\r\n\x1a\n" + bytes(2000))


@odd("refused", plain=False)
def a_pipe(path):
    os.mkfifo(path)


@odd("refused")
def a_folder(path):
    path.mkdir()


@odd("refused", plain=False)
def a_device(path):
    path.symlink_to("/dev/zero")


@odd("refused")
def cut_in_half(path):
    with h5py.File(path, "w", libver="latest") as f:
        f["volume"] = IMAGE.repeat(10, 0)
    data = path.read_bytes()
    path.write_bytes(data[: len(data) // 2])


@odd("refused")
def not_closed(path):
    """The remains of a file whose writer was killed."""
    file = h5py.File(path, "w", libver="latest")
    file["volume"] = IMAGE
    file.flush()
    data = path.read_bytes()
    file.close()
    path.write_bytes(data[:400])
