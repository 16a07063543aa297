"""Each of hundreds of damaged files is read as stored or raises `ReadError`, and the process survives."""

import subprocess
import sys
import textwrap

import pytest

pytestmark = pytest.mark.usefixtures("backend")

CODE = """
    import random, sys, warnings
    import h5py, hdf5plugin
    import numpy as np
    from medsegpy_core import ReadError, Record
    from medsegpy_core.hdf5 import holds_dataset, open_h5_scan

    path, first, cases = sys.argv[1], int(sys.argv[2]), int(sys.argv[3])
    rng = np.random.default_rng(0)
    image = rng.normal(size=(12, 10, 6)).astype("f4")
    mask = (rng.random((12, 10, 6, 3)) > 0.9).astype("u1")
    filters = [
        {}, {"compression": "gzip"}, {"compression": "gzip", "shuffle": True, "fletcher32": True},
        {"compression": "lzf"}, {"compression": hdf5plugin.Blosc()},
        {"compression": hdf5plugin.Blosc2()}, {"compression": hdf5plugin.Zstd()},
        {"compression": hdf5plugin.LZ4()}, {"compression": hdf5plugin.Bitshuffle()}, {"scaleoffset": 2},
    ]
    whole = []
    for options in filters:
        for libver in ("earliest", "latest"):
            with h5py.File(path, "w", libver=libver) as f:
                f.create_dataset("volume", data=image, chunks=(6, 5, 3) if options else None, **options)
                f.create_dataset("seg", data=mask, chunks=(6, 5, 3, 3) if options else None, **options)
                f["volume"].attrs["spacing"] = [1.0, 1.0, 2.0]
            whole.append(open(path, "rb").read())
    refused = 0
    for case in range(first, first + cases):
        r = random.Random(case)
        data = bytearray(whole[case % len(whole)])
        for _ in range(r.choice([1, 2, 4, 16])):
            at = r.randrange(len(data) if r.random() < 0.5 else 2500)
            if r.random() < 0.6:
                data[at] ^= 1 << r.randrange(8)
            else:
                value = r.choice([0, 1, 2**31, 2**63, 2**64 - 1, r.randrange(len(data))])
                data[at : at + 4] = value.to_bytes(8, "little")[:4]
        if r.random() < 0.1:
            del data[r.randrange(len(data)) :]
        with open(path, "wb") as f:
            f.write(data)
        holds_dataset(path, ["volume"], in_groups=True)
        record = Record.from_dict({"file_name": path, "sem_seg_file": path, "scan_id": "a"})
        try:
            with open_h5_scan(record) as scan:
                for array in (scan.image, scan.mask):
                    assert array[...].shape == array.shape
        except ReadError as error:
            assert str(error.path) == path and error.reason
            refused += 1
    print(refused)
"""


def fuzz(path, first, cases):
    done = subprocess.run(
        [sys.executable, "-X", "faulthandler", "-c", textwrap.dedent(CODE), str(path), str(first), str(cases)],
        capture_output=True,
        text=True,
        check=False,
    )
    assert done.returncode == 0, done.stderr[-3000:]
    # Some filters print a line of their own.
    assert cases / 10 < int(done.stdout.split()[-1]) < cases


def test_damaged_files(tmp_path):
    fuzz(tmp_path / "a.h5", 0, 400)


@pytest.mark.slow
def test_many_damaged_files(tmp_path):
    fuzz(tmp_path / "a.h5", 1000, 2500)
