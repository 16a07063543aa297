"""Reads 3D volumes in HDF5: one file per scan, or many scans in a file, one group per scan."""

from medsegpy_h5_volumes.reader import VolumesReader, medsegpy_register_readers

__all__ = ["VolumesReader", "medsegpy_register_readers"]
