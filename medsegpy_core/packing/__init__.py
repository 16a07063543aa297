"""Packing: a dataset rewritten into few HDF5 files, laid out for the way in which it is read."""

from medsegpy_core.packing.manifest import packed_dicts, packed_metadata, register_packed
from medsegpy_core.packing.pack import Packed, pack_dataset, verify_packed

__all__ = ["Packed", "pack_dataset", "packed_dicts", "packed_metadata", "register_packed", "verify_packed"]
