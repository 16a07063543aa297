"""Reading through the HDF5 library: what cannot be read by byte ranges."""

from __future__ import annotations

import math
from typing import TYPE_CHECKING

import numpy as np

from medsegpy_core.errors import ReadError
from medsegpy_core.hdf5.policy import open_dataset, open_file, regular_file, stamp_of
from medsegpy_core.hdf5.vetting import vet

if TYPE_CHECKING:
    from medsegpy_core.hdf5.layout import Layout
    from medsegpy_core.typing import Array, Selection

__all__ = ["read_box"]


def read_box(path: str, layout: Layout, selection: Selection) -> Array:
    """Read a box of a dataset as a new array in its own type, native byte order.

    Raises:
        ReadError: It cannot be read, or the file is not the one that was located.
    """
    import h5py

    box = np.empty([s.stop - s.start for s in selection], layout.form.dtype)
    with open_file(path) as file:
        dataset, key = open_dataset(file, path, (layout.key,))
        if stamp_of(regular_file(path)) != layout.stamp or vet(dataset, path, key) != layout.form.vetted:
            raise ReadError("the file changed while it was read", path, key)
        space = dataset.get_space()
        space.select_hyperslab(tuple(s.start for s in selection), box.shape)
        memory = h5py.h5s.create_simple((math.prod(box.shape),))
        dataset.read(memory, space, box, h5py.h5t.py_create(box.dtype))
        if stamp_of(regular_file(path)) != layout.stamp:
            raise ReadError("the file changed while it was read", path, key)
    return box
