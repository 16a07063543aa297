"""Chunks that the elements of a batch share are decoded once."""

import h5py
import numpy as np
import pytest
from scans import settle

from medsegpy_core import Config, build_loader
from medsegpy_core.hdf5 import chunks, open_array
from medsegpy_core.hdf5.backend import current_backend
from medsegpy_core.hdf5.chunks import sharing_chunks
from medsegpy_core.hdf5.native import NativeBackend

pytestmark = pytest.mark.usefixtures("backend")


@pytest.fixture
def decoded(monkeypatch, backend):
    """The stored chunks in the order of decoding, by Python or by compiled kernels (many at once)."""
    seen = []

    def counting(stored, *rest, decode=chunks.decode):
        seen.append(bytes(stored))
        return decode(stored, *rest)

    def counting_many(backend, fd, data, first, rows, *rest, decode=NativeBackend.decode):
        seen.extend(rows[:, 0].tolist())
        return decode(backend, fd, data, first, rows, *rest)

    monkeypatch.setattr(chunks, "decode", counting)
    monkeypatch.setattr(NativeBackend, "decode", counting_many)
    if backend == "kernels" and not current_backend().decodes:
        pytest.skip("libdeflate is not installed")
    return seen


@pytest.fixture
def volume(tmp_path):
    rng = np.random.default_rng(0)
    image = rng.normal(size=(20, 18, 16)).astype(np.float32)
    mask = (rng.random((20, 18, 16, 2)) < 0.5).astype(np.uint8)
    path = tmp_path / "scan.h5"
    with h5py.File(path, "w") as file:
        file.create_dataset("volume", data=image, chunks=(10, 18, 8), compression="gzip")
        file.create_dataset("seg", data=mask, chunks=(10, 18, 8, 2), compression="gzip")
    settle(path)
    return [{"file_name": str(path), "sem_seg_file": str(path), "scan_id": "scan"}], image, mask


@pytest.mark.parametrize("workers", [0, 2])
def test_slices_of_one_volume_decode_each_chunk_once_a_batch(volume, decoded, workers):
    dicts, image, mask = volume
    loader = build_loader(Config(NUM_WORKERS=workers), dicts, batch_size=16, shuffle=False)
    (batch,) = loader
    np.testing.assert_array_equal(batch[0][..., 0], np.moveaxis(image, 2, 0))
    np.testing.assert_array_equal(batch[1], np.moveaxis(mask, 2, 0))
    assert len(decoded) == len(set(decoded)) == 8


def test_chunks_are_kept_until_the_end_of_the_batch(volume, decoded):
    dicts, *_ = volume
    loader = build_loader(Config(NUM_WORKERS=0), dicts, batch_size=4, shuffle=False)
    loader[0]
    first = len(decoded)
    assert first
    loader[0]
    assert len(decoded) == 2 * first


def test_kept_chunks_are_not_used_for_a_changed_file(volume, tmp_path):
    dicts, image, _ = volume
    loader = build_loader(Config(NUM_WORKERS=0), dicts, batch_size=4, shuffle=False)
    before = loader[0][0].copy()
    other = tmp_path / "other.h5"
    with h5py.File(other, "w") as file, h5py.File(dicts[0]["file_name"]) as old:
        file.create_dataset("volume", data=image + 1, chunks=(10, 18, 8), compression="gzip")
        old.copy("seg", file)
    other.replace(dicts[0]["file_name"])
    np.testing.assert_array_equal(loader[0][0], before + 1)


@pytest.mark.parametrize("options", [{"fletcher32": True}, {"shuffle": True}])
def test_uncompressed_chunks_survive_the_next_read(tmp_path, options):
    image = np.arange(1600, dtype=np.uint16).astype(np.uint8).reshape(40, 40) + np.arange(40, dtype=np.uint8)[:, None]
    with h5py.File(tmp_path / "a.h5", "w") as file:
        file.create_dataset("data", data=image, chunks=(10, 40), **options)
    array = open_array(tmp_path / "a.h5", "data")
    with sharing_chunks():
        for start in (0, 10, 5):
            assert np.array_equal(array[start : start + 5], image[start : start + 5])
