"""Files that other code of the process has open."""

import h5py
import numpy as np
import pytest

from medsegpy_core.hdf5 import open_array

pytestmark = pytest.mark.usefixtures("backend")


@pytest.mark.parametrize("mode", ["r", "a"])
@pytest.mark.parametrize("locking", [None, True, False, "best-effort"])
def test_a_file_that_is_open_elsewhere_in_the_process_can_be_read(tmp_path, mode, locking):
    path = tmp_path / "scan.h5"
    values = np.arange(24, dtype=np.float32).reshape(2, 3, 4)
    with h5py.File(path, "w") as file:
        file["volume"] = values
    with h5py.File(path, mode, locking=locking) as other:
        np.testing.assert_array_equal(open_array(path, "volume")[...], values)
        # Ours being closed again leaves theirs alone.
        np.testing.assert_array_equal(other["volume"][...], values)
