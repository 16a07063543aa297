"""Decoded chunks that several reads share: patches of one batch, or slices of one volume, touch the same chunks."""

from __future__ import annotations

import threading
from collections.abc import Iterator
from contextlib import contextmanager
from typing import TYPE_CHECKING, Any, Final

if TYPE_CHECKING:
    from medsegpy_core.hdf5.layout import Layout
    from medsegpy_core.typing import Array

__all__ = ["keep_chunk", "kept_chunk", "sharing_chunks"]

# What is kept for the reads of one batch in one thread. Whole 512 x 512 slices of a few channels fit many times over.
_KEPT_BYTES: Final = 128 << 20

_local = threading.local()


class _Chunks:
    """The chunks that were decoded last, up to a number of bytes."""

    def __init__(self) -> None:
        self.chunks: dict[tuple[Layout, int], Array] = {}
        self.size = 0

    def put(self, key: tuple[Layout, int], elements: Array) -> None:
        while self.chunks and self.size + elements.nbytes > _KEPT_BYTES:
            # Dicts keep their order: the first is the one that was decoded first.
            self.size -= self.chunks.pop(next(iter(self.chunks))).nbytes
        if elements.nbytes <= _KEPT_BYTES:
            self.chunks[key] = elements
            self.size += elements.nbytes


@contextmanager
def sharing_chunks() -> Iterator[None]:
    """Keep decoded chunks for the reads of this thread, until the context ends.

    A file that changes has another layout, so that its old chunks are not found.
    """
    before: Any = getattr(_local, "chunks", None)
    _local.chunks = before or _Chunks()
    try:
        yield
    finally:
        _local.chunks = before


def kept_chunk(layout: Layout, number: int) -> Array | None:
    """Return the elements of a chunk that is kept, or None."""
    kept: _Chunks | None = getattr(_local, "chunks", None)
    return None if kept is None else kept.chunks.get((layout, number))


def keep_chunk(layout: Layout, number: int, elements: Array) -> None:
    """Keep the elements of a chunk, where a context asks for it."""
    kept: _Chunks | None = getattr(_local, "chunks", None)
    if kept is not None:
        kept.put((layout, number), elements)
