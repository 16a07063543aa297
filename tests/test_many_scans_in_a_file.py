"""A file with many scans is opened a few times, not once per scan."""

import os
import time
from pathlib import Path

import numpy as np
import pytest
from scans import make_scan, save, save_volume

from medsegpy_core import Config, DatasetCatalog, ReadError, build_loader, scan_directory
from medsegpy_core._util.stamps import is_young
from medsegpy_core.diagnostics import check_dataset
from medsegpy_core.hdf5 import files as policy
from medsegpy_core.hdf5 import isolation, read

COUNT = 40


@pytest.fixture
def opened(monkeypatch):
    """The paths of files that the HDF5 library opens."""
    paths, real = [], policy._open

    def open_(h5py, path):
        paths.append(path)
        return real(h5py, path)

    monkeypatch.setattr(policy, "_open", open_)
    monkeypatch.setattr(read, "_remembered", read._Remembered())
    return paths


@pytest.fixture
def path(tmp_path):
    arrays = {}
    for n in range(COUNT):
        arrays[f"{n:07d}_V00/volume"], arrays[f"{n:07d}_V00/seg"] = make_scan(seed=n)
    path = save(tmp_path / "many.h5", **arrays)
    os.utime(path, (10**9, 10**9))
    return path


def loader(dicts, **options):
    return build_loader(Config(CATEGORIES=[0], NUM_WORKERS=0), dicts, batch_size=7, shuffle=False, **options)


def settle(opened, path):
    """Wait until the file is no longer young, because young files are opened for each read."""
    while is_young(Path(path).stat()):
        time.sleep(0.01)
    opened.clear()


def test_a_loader_opens_the_file_a_few_times(opened, path, tmp_path):
    settle(opened, path)
    dicts = scan_directory(tmp_path)
    made = loader(dicts)
    assert 1 <= len(opened) <= 3
    for n in range(COUNT):
        image, mask = make_scan(seed=n)
        images, masks = made[n]
        assert np.array_equal(np.moveaxis(images[..., 0], 0, 2), image)
        assert np.array_equal(np.moveaxis(masks[..., 0], 0, 2), mask[..., 0])
    assert len(opened) <= 3


def test_in_the_helper_process(opened, path, tmp_path, monkeypatch):
    settle(opened, path)
    asked, real = [], isolation._ask
    monkeypatch.setattr(isolation, "_ask", lambda *arguments: (asked.append(arguments[0]), real(*arguments))[1])
    made = loader(scan_directory(tmp_path), isolate=True)
    assert len(asked) <= 3
    assert np.array_equal(np.moveaxis(made[COUNT - 1][0][..., 0], 0, 2), make_scan(seed=COUNT - 1)[0])
    DatasetCatalog.register("many", lambda: scan_directory(tmp_path))
    asked.clear()
    assert [finding.kind for finding in check_dataset("many").findings] == ["metadata"]
    assert len(asked) <= 3


@pytest.mark.parametrize("isolate", [False, True])
def test_an_error_in_one_scan_is_reported(path, tmp_path, isolate):
    dicts = scan_directory(tmp_path)
    dicts[3]["image_key"] = "0000003_V00/image"
    with pytest.raises(ReadError, match=r"no dataset '0000003_V00/image'.*Dataset dict 3"):
        loader(dicts, isolate=isolate)
    dicts[3]["image_key"] = "0000003_V00"
    with pytest.raises(ReadError, match="a group, not a dataset"):
        loader(dicts, isolate=isolate)
    assert len(loader(dicts[:3] + dicts[4:], isolate=isolate)) == COUNT - 1


def test_a_replaced_file_is_read_again(path, tmp_path):
    dicts = scan_directory(tmp_path)
    made = loader(dicts)
    made[0]
    arrays = {}
    for n in reversed(range(COUNT)):  # other places, same size
        arrays[f"{n:07d}_V00/seg"], arrays[f"{n:07d}_V00/volume"] = make_scan(seed=n + 100)[::-1]
    save(tmp_path / "new", **arrays)
    os.utime(tmp_path / "new", (10**9, 10**9))
    (tmp_path / "new").replace(path)
    for again in (made, loader(dicts)):
        assert np.array_equal(np.moveaxis(again[5][0][..., 0], 0, 2), make_scan(seed=105)[0])


def test_image_and_mask_in_one_file_are_located_together(opened, tmp_path):
    dicts = [save_volume(tmp_path, *make_scan(seed=n), subject=n) for n in range(5)]
    settle(opened, dicts[-1]["file_name"])
    loader(dicts)
    assert sorted(opened) == [d["file_name"] for d in dicts]
