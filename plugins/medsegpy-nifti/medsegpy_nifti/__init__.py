"""Reads NIfTI files: ``.nii`` and ``.nii.gz``."""

from medsegpy_nifti.reader import NiftiReader, medsegpy_register_readers

__all__ = ["NiftiReader", "medsegpy_register_readers"]
