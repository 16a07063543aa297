"""h5py's lock is held for calls in which h5py does not take it."""

import h5py
import numpy as np
import pytest
from h5py._objects import phil

from medsegpy_core import open_scan, write_volume


@pytest.mark.parametrize("name", ["size", "get", "remove", "append"])
def test_the_list_of_plugin_folders_is_changed_under_the_lock_of_h5py(name, tmp_path, monkeypatch):
    d = write_volume(tmp_path / "scan.h5", np.zeros((4, 3, 2), np.int16), compression="lzf")
    original, owned = getattr(h5py.h5pl, name), []

    def watched(*arguments):
        owned.append(phil._is_owned())
        return original(*arguments)

    monkeypatch.setattr(h5py.h5pl, name, watched)
    with open_scan(d) as scan:
        assert not scan.image[...].any()
    assert owned
    assert all(owned)
