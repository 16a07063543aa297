"""Seeds of the fuzzer: valid files in the layouts of both readers, and files with a random structure."""

import random
from functools import cache
from pathlib import Path

import h5py
import hdf5plugin
import numpy as np

FILTERS = [
    {},
    {"compression": "gzip", "compression_opts": 1},
    {"compression": "gzip", "shuffle": True, "fletcher32": True},
    {"compression": "lzf"},
    {"scaleoffset": 3},
    {"fletcher32": True},
    {"shuffle": True},
    hdf5plugin.Blosc(),
    hdf5plugin.Blosc2(),
    hdf5plugin.Zstd(),
    hdf5plugin.LZ4(),
    hdf5plugin.Bitshuffle(),
    hdf5plugin.BZip2(),
]
TYPES = ["<f4", ">f4", "<f8", "<f2", "<i2", ">i2", "u1", "i1", "<u4", "<i8", ">u8", "?"]


@cache
def sound_files(folder):
    """Return (is it a slice, bytes of the file) of valid files, so small that much of them is metadata."""
    rng = np.random.default_rng(0)
    files = []
    path = Path(folder) / "seed.h5"
    for number, options in enumerate(FILTERS):
        for libver in ("earliest", "latest"):
            is_slice = (number + (libver == "latest")) % 2 == 0
            shape = (12, 10, 1) if is_slice else (12, 10, 6)
            chunks = (6, 5, shape[2]) if options else None
            image = rng.normal(size=shape).astype("f4")
            mask = (rng.random((*shape, 3)) > 0.9).astype("u1")
            with h5py.File(path, "w", libver=libver) as file:
                if is_slice:
                    file.create_dataset("data", data=image, chunks=chunks, **options)
                else:
                    file.create_dataset("volume", data=image, chunks=chunks, **options)
                    file.create_dataset("seg", data=mask, chunks=None if chunks is None else (*chunks, 3), **options)
                    file["volume"].attrs["spacing"] = [1.0, 1.0, 2.0]
            files.append((is_slice, path.read_bytes()))
    return files


def random_file(path, seed):
    """Write a file with a random structure: types, layouts, filters, indices, attributes, chunk sizes.

    Returns:
        Whether it is a slice.
    """
    for attempt in range(50):
        try:
            return _random_file(path, random.Random(f"{seed}.{attempt}"))
        except (ValueError, TypeError, OSError, RuntimeError):
            continue  # types, filters and shapes that the library does not put together
    raise ValueError(f"no file could be made of {seed}")


def _random_file(path, r):
    is_slice = r.random() < 0.5
    libver = r.choice(["earliest", "latest", ("earliest", "v110"), ("v108", "latest")])
    block = r.choice([0, 0, 0, 512, 2048])
    with h5py.File(path, "w", libver=libver, userblock_size=block, track_order=r.random() < 0.2) as file:
        if is_slice:
            shape = r.choice([(6, 5, 1), (6, 5), (1, 5, 1), (6, 5, 2)])
            _random_dataset(file, "data", shape, r)
        else:
            shape = (r.randint(1, 9), r.randint(1, 9), r.randint(1, 7))
            _random_dataset(file, "volume", shape, r)
            _random_dataset(file, "seg", r.choice([shape, (*shape, 2), (*shape, 1)]), r, mask=True)
        for _ in range(r.randint(0, 3)):
            file.create_group(f"group{r.random()}")["data"] = np.zeros(r.randint(1, 9))
    return is_slice


def _random_dataset(file, key, shape, r, mask=False):
    dtype = np.dtype(r.choice(["u1", "?", "<i2", "<f4"] if mask else TYPES))
    options = dict(r.choice([*FILTERS, {}, {}, {}]))
    if "scaleoffset" in options and dtype.kind == "b":
        options = {}
    if options or r.random() < 0.5:
        options["chunks"] = tuple(r.randint(1, n) for n in shape)
        if r.random() < 0.4:
            options["maxshape"] = tuple(r.choice([n, n + 5, None]) for n in shape)
    if r.random() < 0.2 and "scaleoffset" not in options:
        options["fillvalue"] = 1
    made = file.create_dataset(key, shape, dtype, **options)
    values = np.random.default_rng(r.randrange(1 << 30)).normal(0, 50, shape)
    values = (values > 0).astype(dtype) if mask or dtype.kind == "b" else np.abs(values).astype(dtype)
    if r.random() < 0.85:
        made[...] = values
    elif shape[0] > 1:
        made[: shape[0] // 2] = values[: shape[0] // 2]
    if "chunks" in options and r.random() < 0.3:
        _random_chunk(made, dtype, r)
    for name in ("spacing", "affine", "medsegpy_bitfield", "medsegpy_format", "scan_affine"):
        if r.random() < 0.08:
            made.attrs[name] = r.choice([3, "x", [1.0, 2.0, 3.0], np.eye(4), np.zeros(0), -1, 2**40, h5py.Empty("f4")])


def _random_chunk(made, dtype, r):
    """Store a raw chunk of any length, with any filters skipped."""
    corner = tuple(r.randrange(-(-n // c)) * c for n, c in zip(made.shape, made.chunks, strict=True))
    size = int(np.prod(made.chunks)) * dtype.itemsize
    length = r.choice([size, size, max(1, size // 2), size * 2, size - 1 or 1, r.randint(1, 64)])
    made.id.write_direct_chunk(corner, r.randbytes(length), r.choice([0, 0, 1, 3, 0xFFFFFFFF]))
