"""The chunk index in the header of a dataset, compared with what the library wrote."""

import itertools

import h5py
import numpy as np
import pytest

from medsegpy_core.hdf5 import open_array
from medsegpy_core.hdf5.headers import Headers

pytestmark = pytest.mark.usefixtures("backend")


@pytest.mark.parametrize("libver", ["earliest", "latest", ("earliest", "v110")])
@pytest.mark.parametrize("limit", [(4, 5, 6), (9, 5, 6), (None, 5, 6), (None, None, 6)])
def test_size_of_a_chunk_index(tmp_path, libver, limit):
    ways = itertools.product((None, "gzip"), (0, 1024), (0, 40), (True, False))
    for number, (compression, user_block, attributes, ordered) in enumerate(ways):
        path = tmp_path / f"{number}.h5"
        with h5py.File(path, "w", libver=libver, userblock_size=user_block, track_order=ordered) as file:
            made = file.create_dataset(
                "data", (4, 5, 6), "f4", maxshape=limit, chunks=(2, 2, 2), compression=compression, track_times=ordered
            )
            made[:2] = 3
            for i in range(attributes):  # so many that the header needs a continuation block
                made.attrs[f"a{i}"] = np.zeros(50)
            header = h5py.h5o.get_info(made.id).addr
        expected = -(-limit[0] // 2) * 9 if libver == "latest" and None not in limit else None
        with Headers(str(path), user_block) as headers:
            assert headers.fixed_array_entries(header) == expected
        array = open_array(path, "data")[...]
        assert array[:2].min() == 3
        assert not array[2:].any()


def test_invalid_headers(tmp_path):
    path = tmp_path / "noise"
    rng = np.random.default_rng(0)
    for _ in range(200):
        path.write_bytes(b"OHDR\x02" + rng.bytes(300))
        with Headers(str(path), 0) as headers:
            assert headers.fixed_array_entries(0) is None
            assert headers.fixed_array_entries(1 << 63) is None
            assert headers.at(0).kind in (None, "group", "dataset", "type")
            assert headers.at(1 << 63) == (None, None)
            assert headers.root >= 0
