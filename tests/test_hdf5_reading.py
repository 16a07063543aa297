"""Every way of reading a box gives the same bits as h5py."""

import h5py
import hdf5plugin
import numpy as np
import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from medsegpy_core.hdf5 import open_array

pytestmark = pytest.mark.usefixtures("backend")

DTYPES = ["<f4", ">f4", "<f8", ">f8", "<f2", "<i2", ">i2", "|u1", "|i1", "<u4", ">i8", "|b1"]
FILTERS = [
    {},
    {"compression": "gzip"},
    {"compression": "gzip", "shuffle": True},
    {"compression": "gzip", "shuffle": True, "fletcher32": True},
    {"fletcher32": True},
    {"shuffle": True},
    {"compression": "lzf"},
    {"compression": "lzf", "shuffle": True, "fletcher32": True},
    {"compression": hdf5plugin.Blosc(cname="lz4")},
    {"compression": hdf5plugin.Blosc2(cname="zstd")},
    {"compression": hdf5plugin.Zstd()},
    {"compression": hdf5plugin.LZ4()},
    {"compression": hdf5plugin.Bitshuffle()},
    {"compression": hdf5plugin.BZip2()},
]


def values(rng, shape, dtype):
    if rng.random() < 0.2:
        return np.zeros(shape, dtype)
    if dtype.kind == "f":
        array = rng.normal(size=shape)
        array.flat[0] = np.nan
        return array.astype(dtype)
    return rng.integers(0, 2 if dtype.kind == "b" else 100, shape).astype(dtype)


@st.composite
def datasets(draw):
    shape = tuple(draw(st.lists(st.integers(1, 9), min_size=1, max_size=4)))
    options = dict(draw(st.sampled_from(FILTERS)))
    if options or draw(st.booleans()):
        options["chunks"] = tuple(draw(st.integers(1, n)) for n in shape)
        if draw(st.booleans()):
            options["maxshape"] = (None,) * len(shape)
    return shape, np.dtype(draw(st.sampled_from(DTYPES))), options


@st.composite
def boxes(draw, shape):
    box = []
    for n in shape:
        start = draw(st.integers(0, n - 1))
        box.append(slice(start, draw(st.integers(start + 1, n))))
    return tuple(box)


@settings(max_examples=300, deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture])
@given(st.data())
def test_a_box_equals_what_h5py_reads(tmp_path, data):
    shape, dtype, options = data.draw(datasets())
    rng = np.random.default_rng(data.draw(st.integers(0, 2**32)))
    box = data.draw(boxes(shape))
    fill = data.draw(st.sampled_from([None, 0, 1]))
    userblock = data.draw(st.sampled_from([0, 0, 512, 1024]))
    path = tmp_path / "file.h5"
    path.unlink(missing_ok=True)
    with h5py.File(path, "w", userblock_size=userblock, libver=data.draw(st.sampled_from(["earliest", "latest"]))) as f:
        d = f.create_dataset("data", shape, dtype, fillvalue=fill, **options)
        if data.draw(st.booleans()):
            d[...] = values(rng, shape, dtype)
        elif data.draw(st.booleans()):  # some chunks are never written
            part = data.draw(boxes(shape))
            d[part] = values(rng, [s.stop - s.start for s in part], dtype)
    with h5py.File(path) as f:
        expected = f["data"][box]
    array = open_array(path, "data")
    assert (array.shape, array.dtype) == (shape, dtype.newbyteorder("="))
    found = array[box]
    assert found.dtype == dtype.newbyteorder("=")
    assert found.flags.c_contiguous
    assert found.tobytes() == expected.astype(found.dtype).tobytes()
    # into another type, and into memory that is not contiguous
    big = np.full([2 * n for n in expected.shape], 7, np.float32)
    out = big[tuple(slice(None, None, 2) for _ in shape)]
    array.read_into(box, out)
    np.testing.assert_array_equal(out, expected.astype(np.float32))
