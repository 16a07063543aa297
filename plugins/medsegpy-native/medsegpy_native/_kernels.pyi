# What the functions do is told by `Kernels` in medsegpy_core.hdf5.kernels, and by the comments in _kernels.c.
from typing import Final

from typing_extensions import Buffer

JOB_BYTES: Final[int]

def read_boxes(
    jobs: Buffer, texts: Buffer, maps: tuple[Buffer, ...], out: Buffer, table: Buffer
) -> tuple[float, float, float, int]: ...
def collate(stored: Buffer, item: int, bits: bool, out: Buffer, table: Buffer) -> bool: ...
