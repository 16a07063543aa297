"""Compiled kernels for medsegpy_core: read boxes of files into batches, and convert voxels to categories.

If this package is installed, medsegpy_core uses it instead of NumPy, with the same results. It reads whole batches
without the GIL, so that threads run in parallel.
"""

from importlib.util import find_spec
from typing import Final

__all__ = ["COMPILED", "INTERFACE"]

# The version of the kernels' arguments, which medsegpy_core compares with the one it expects.
INTERFACE: Final = 2

# False if there was no C compiler at installation; only speed is lost.
COMPILED: Final = find_spec("medsegpy_native._kernels") is not None
