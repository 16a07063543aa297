"""Reads MetaImage files (.mha): a text header, then the voxels."""

from medsegpy_core import Reader, hookimpl
from medsegpy_mha.reader import MhaReader

__all__ = ["MhaReader", "medsegpy_register_readers"]


@hookimpl
def medsegpy_register_readers() -> list[Reader]:
    """Return the reader of MetaImage files."""
    return [MhaReader()]
