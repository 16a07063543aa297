"""Check object headers for what the HDF5 library uses without validation.

The library follows a cyclic B-tree until the stack overflows, and trusts the numbers of a virtual dataset while it
opens it; both end the process. So this module reads headers first, without the library. It also determines the kind of
an object (group or dataset) from its header.

Source: HDF5 File Format Specification, version 3: "Superblock", "Data Object Headers" (both versions), "Data Layout
Message", "Symbol Table Message", "Version 1 B-trees", "Fixed Array Index".
"""

from __future__ import annotations

import os
from collections.abc import Iterator
from types import TracebackType
from typing import Final, Literal, NamedTuple, Self

_LINK_INFO, _TYPE, _LINK, _LAYOUT = 0x02, 0x03, 0x06, 0x08
_CONTINUATION, _SYMBOL_TABLE = 0x10, 0x11
_CHUNKED, _VIRTUAL = 2, 3
_FIXED_ARRAY: Final = 3
_GROUP_NODE, _CHUNK_NODE = 0, 1
_MOST_IN_BLOCK: Final = 1 << 20
_MOST_BLOCKS: Final = 1024
_MOST_NODES: Final = 1 << 20

Kind = Literal["group", "dataset", "type"]


class Header(NamedTuple):
    """The result of reading an object header.

    Attributes:
        kind: The kind of the object; None: the header cannot be read.
        fault: Why the library must not open the object; None: it may.
    """

    kind: Kind | None
    fault: str | None


class Headers:
    """The headers of the objects of a file; use it as a context.

    Args:
        path: The file.
        base: The offset of the superblock: the size of the user block.
    """

    def __init__(self, path: str, base: int):
        self._base = base
        self._fd = os.open(path, os.O_RDONLY | getattr(os, "O_CLOEXEC", 0) | getattr(os, "O_NONBLOCK", 0))
        start = self._read(0, 16)
        at = 9 if start[8:9] in (b"\2", b"\3") else 13
        # Sizes of an address and of a length in bytes.
        self._address, self._length = (start[at], start[at + 1]) if len(start) == 16 else (8, 8)

    @property
    def root(self) -> int:
        """The address of the header of the root group."""
        start = self._read(0, 44 + 8 * self._address)
        older = {0: 24, 1: 28}
        # In older files, four other addresses and the name offset of its entry come before it; in newer ones, three.
        at = older[start[8]] + 5 * self._address if start[8:9] in (b"\0", b"\1") else 12 + 3 * self._address
        return self._number(start, at)

    def __enter__(self) -> Self:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, traceback: TracebackType | None
    ) -> None:
        os.close(self._fd)

    def at(self, address: int) -> Header:
        """Read a header; its address is relative to the superblock."""
        kind: Kind | None = None
        try:
            for message, body in self._messages(address):
                if message == _LAYOUT:
                    kind = "dataset"
                elif message in (_SYMBOL_TABLE, _LINK_INFO, _LINK):
                    kind = kind or "group"
                elif message == _TYPE:
                    kind = kind or "type"
                fault = self._fault(message, body)
                if fault is not None:
                    return Header(kind, fault)
        except OSError:
            return Header(None, None)  # the library raises its own error
        # A dataset has a type as well, and that may come first.
        return Header(kind, None)

    def fixed_array_entries(self, address: int) -> int | None:
        """Return the number of chunks in the index of a dataset if the index is a fixed array, else None.

        The library allocates memory for as many chunks as the index declares, but computes positions in it from the
        shape.
        """
        for message, body in self._messages(address):
            if message == _LAYOUT and (index := self._index(body)) is not None and index[0] == _FIXED_ARRAY:
                array = self._read(index[1], 8 + self._length)
                return int.from_bytes(array[8:], "little") if array[:4] == b"FAHD" else None
        return None

    # -- faults

    def _fault(self, message: int, body: bytes) -> str | None:
        if message == _LAYOUT:
            return self._layout_fault(body)
        if message == _SYMBOL_TABLE:
            return self._tree_fault(self._number(body, 0), _GROUP_NODE, self._length)
        return None

    def _layout_fault(self, body: bytes) -> str | None:
        if len(body) < 3:
            return None
        version, layout = body[0], body[2] if body[0] < 3 else body[1]
        if version >= 4 and layout == _VIRTUAL:
            return "a virtual dataset, whose data are in other files; only data in the file itself are read"
        if version < 4 and layout == _CHUNKED:
            rank, at = (body[1], 8) if version < 3 else (body[2], 3)
            return self._tree_fault(self._number(body, at), _CHUNK_NODE, 8 + 8 * rank)
        return None

    def _index(self, body: bytes) -> tuple[int, int] | None:
        """Return kind and address of the chunk index in the newer layout message."""
        if len(body) < 6 or body[0] < 4 or body[1] != _CHUNKED:
            return None
        # Version, class, flags, rank, bytes per size; the sizes; the kind of the index and its parameters.
        at = 5 + body[3] * body[4]
        if at >= len(body):
            return None
        return body[at], self._number(body, at + 1 + (1 if body[at] == _FIXED_ARRAY else 0))

    def _tree_fault(self, root: int, kind: int, key: int) -> str | None:
        """Check a version 1 B-tree: each node must be one level below its parent, and have only one parent."""
        if root == self._nowhere:
            return None
        seen, todo = {root}, [(root, int.from_bytes(self._read(root + 5, 1), "little"))]
        for address, level in todo:  # grows during the loop
            children = self._children(address, level, kind, key)
            if children is None or not seen.isdisjoint(children) or len(set(children)) < len(children):
                return "its index is damaged: a node of its B-tree is not where it belongs"
            seen.update(children)
            todo += [(child, level - 1) for child in children]
            if len(todo) > _MOST_NODES:
                return "its index is damaged: its B-tree has too many nodes"
        return None

    def _children(self, address: int, level: int, kind: int, key: int) -> list[int] | None:
        """Return the child nodes of a node; None if this is not the expected node."""
        head = 8 + 2 * self._address
        node = self._read(address, head)
        if node[:4] != b"TREE" or node[4] != kind or node[5] != level:
            return None
        count = int.from_bytes(node[6:8], "little") if level else 0
        entries = self._read(address + head, count * (key + self._address))
        step = key + self._address
        return [self._number(entries, i * step + key) for i in range(count)] if len(entries) == count * step else None

    # -- bytes

    @property
    def _nowhere(self) -> int:
        return (1 << 8 * self._address) - 1

    def _number(self, data: bytes, at: int) -> int:
        """Return the number at this offset; `_nowhere` beyond the end."""
        part = data[at : at + self._address]
        return int.from_bytes(part, "little") if len(part) == self._address else self._nowhere

    def _read(self, address: int, size: int) -> bytes:
        """Return bytes of the file; fewer at its end, none at an invalid address."""
        at = self._base + address
        return os.pread(self._fd, size, at) if size and at + size < 1 << 63 else b""

    def _messages(self, address: int) -> Iterator[tuple[int, bytes]]:
        """Yield kind and body of the messages of an object header, continuations included."""
        start = self._read(address, 40)
        newer = start[:5] == b"OHDR\x02"
        if newer:
            flags = start[5]
            first = 6 + (16 if flags & 0x20 else 0) + (4 if flags & 0x10 else 0)
            width = 1 << (flags & 3)
            blocks = [(address + first + width, int.from_bytes(start[first : first + width], "little"))]
            head = 6 if flags & 4 else 4
        elif start[:1] == b"\1":
            blocks, head = [(address + 16, int.from_bytes(start[8:12], "little"))], 8
        else:
            return
        known = set(blocks)
        for at, size in blocks:  # grows during the loop
            for kind, body in _in_block(self._read(at, min(size, _MOST_IN_BLOCK)), head, newer):
                if kind == _CONTINUATION and len(blocks) < _MOST_BLOCKS:
                    more, length = (
                        self._number(body, 0),
                        int.from_bytes(body[self._address :][: self._length], "little"),
                    )
                    # In the newer version, they have a signature and a checksum.
                    block = (more + 4, length - 8) if newer else (more, length)
                    if block not in known and block[1] > 0:
                        known.add(block)
                        blocks.append(block)
                yield kind, body


def _in_block(block: bytes, head: int, newer: bool) -> Iterator[tuple[int, bytes]]:
    i = 0
    while i + head <= len(block):
        if newer:
            kind, size = block[i], int.from_bytes(block[i + 1 : i + 3], "little")
        else:
            kind, size = (int.from_bytes(block[j : j + 2], "little") for j in (i, i + 2))
        yield kind, block[i + head : i + head + size]
        i += head + size
