"""Packing: rewriting a dataset into few HDF5 files, with a layout that suits how it is read."""

from medsegpy_core.packing.manifest import packed_dicts, packed_metadata, register_packed
from medsegpy_core.packing.pack import Packed, pack_dataset, verify_packed

__all__ = ["Packed", "pack_dataset", "packed_dicts", "packed_metadata", "register_packed", "verify_packed"]
