"""Reading in the header of a dataset what the HDF5 library does not look at before it relies on it.

Source: HDF5 File Format Specification, version 3: "Data Object Header Prefix" (version 2), "Data Layout Message"
(version 4), "Fixed Array Index".
"""

from __future__ import annotations

import os
from collections.abc import Iterator
from typing import Final

__all__ = ["fixed_array_entries"]

_LAYOUT, _CONTINUATION = 0x08, 0x10
_CHUNKED, _FIXED_ARRAY = 2, 3
_MAX_HEADER: Final = 1 << 20
_MAX_BLOCKS: Final = 64


def fixed_array_entries(path: str, base: int, header: int) -> int | None:
    """Return how many chunks the index of a dataset has room for, if that index is a fixed array.

    The library looks a chunk up at the place that the shape says, in memory that is as large as the index says.

    Args:
        path: The file.
        base: Where HDF5 begins in it: behind the user block.
        header: Where the header of the dataset is, from there.

    Returns:
        None for an index of another kind, or where the header is not of the kind that can have one.
    """
    fd = os.open(path, os.O_RDONLY | getattr(os, "O_CLOEXEC", 0) | getattr(os, "O_NONBLOCK", 0))
    try:
        for kind, body in _messages(fd, base, base + header):
            if kind == _LAYOUT and len(body) > 5 and body[0] >= 4 and body[1] == _CHUNKED:
                # Version, class, flags, rank, bytes of a size; the sizes; the kind of the index and its one parameter.
                at = 5 + body[3] * body[4]
                if len(body) < at + 10 or body[at] != _FIXED_ARRAY:
                    return None
                array = os.pread(fd, 16, base + int.from_bytes(body[at + 2 : at + 10], "little"))
                return int.from_bytes(array[8:16], "little") if array[:4] == b"FAHD" else None
    except (OSError, OverflowError):
        pass
    finally:
        os.close(fd)
    return None


def _messages(fd: int, base: int, at: int) -> Iterator[tuple[int, bytes]]:
    """Yield kind and body of the messages of an object header of version 2, continuations included."""
    start = os.pread(fd, 40, at)
    if start[:5] != b"OHDR\x02":
        return
    flags = start[5]
    first = 6 + (16 if flags & 0x20 else 0) + (4 if flags & 0x10 else 0)
    width = 1 << (flags & 3)
    blocks = [(at + first + width, int.from_bytes(start[first : first + width], "little"))]
    head = 6 if flags & 4 else 4
    for count, (place, size) in enumerate(blocks):  # which grows on the way
        block = os.pread(fd, min(size, _MAX_HEADER), place)
        i = 0
        while i + head <= len(block):
            kind, length = block[i], int.from_bytes(block[i + 1 : i + 3], "little")
            body = block[i + head : i + head + length]
            i += head + length
            if kind == _CONTINUATION and len(body) == 16 and count < _MAX_BLOCKS:
                offset, length = (int.from_bytes(body[j : j + 8], "little") for j in (0, 8))
                blocks.append((base + offset + 4, length - 8))  # without its signature and its checksum
            yield kind, body
