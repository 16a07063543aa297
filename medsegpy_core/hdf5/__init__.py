"""The HDF5 engine: reads files as untrusted input, by byte ranges if possible, and writes them atomically."""

from medsegpy_core.hdf5.array import H5Array, open_array
from medsegpy_core.hdf5.options import Access, accessing, current_access
from medsegpy_core.hdf5.probe import is_hdf5
from medsegpy_core.hdf5.read import holds_dataset, names_in, root_and_groups
from medsegpy_core.hdf5.scan import H5Scan, open_h5_scan, pack_bitfield, prepare_h5_scans, unpack_bitfield
from medsegpy_core.hdf5.write import atomic_h5, write_slices, write_volume

__all__ = [
    "Access",
    "H5Array",
    "H5Scan",
    "accessing",
    "atomic_h5",
    "current_access",
    "holds_dataset",
    "is_hdf5",
    "names_in",
    "open_array",
    "open_h5_scan",
    "pack_bitfield",
    "prepare_h5_scans",
    "root_and_groups",
    "unpack_bitfield",
    "write_slices",
    "write_volume",
]
