# What the functions do is told by `Kernels` in medsegpy_core.hdf5.native, and by the comments in _kernels.c.
from typing import Final

from typing_extensions import Buffer

INFLATES: Final[int]  # whether libdeflate was found, without which there is no inflate_chunks

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
