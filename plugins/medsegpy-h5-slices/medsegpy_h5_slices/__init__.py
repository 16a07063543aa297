"""Reads 2D slices in HDF5: an ``.im`` file with the image and a ``.seg`` file with the mask, per slice."""

from medsegpy_h5_slices.reader import SlicesReader, medsegpy_register_readers

__all__ = ["SlicesReader", "medsegpy_register_readers"]
