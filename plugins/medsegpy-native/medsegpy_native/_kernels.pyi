# `Kernels` in medsegpy_core.hdf5.native and the comments in _kernels.c document the functions.
from typing import Final

from typing_extensions import Buffer

INFLATES: Final[int]  # whether libdeflate was found; inflate_chunks needs it

def read_boxes(
    jobs: Buffer, texts: Buffer, maps: tuple[Buffer, ...], out: Buffer, table: Buffer
) -> tuple[float, float, float, int]: ...
def collate(stored: Buffer, item: int, bits: bool, out: Buffer, table: Buffer) -> bool: ...
def inflate_chunks(
    fd: int,
    file: Buffer,
    first: int,
    chunks: Buffer,
    strides: Buffer,
    item: int,
    size: int,
    itemsize: int,
    out: Buffer,
) -> tuple[int, float, float, int]: ...
