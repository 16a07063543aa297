"""Compiled kernels for medsegpy_core: boxes of files into batches, and voxels into categories.

Install it beside medsegpy_core, which uses it where it is there, and NumPy where it is not: the results are the same.
Whole batches are then read without Python's lock, so that threads run side by side.
"""

from importlib.util import find_spec
from typing import Final

__all__ = ["COMPILED", "INTERFACE"]

# What medsegpy_core expects of the kernels; another number means other arguments.
INTERFACE: Final = 2

# False where there was no C compiler when it was installed. Nothing is lost but speed.
COMPILED: Final = find_spec("medsegpy_native._kernels") is not None
