"""Messages between a process and its helper: a header, a pickle, and then bytes as they are."""

from __future__ import annotations

import pickle
import socket
import struct
import time
from typing import Any, Final

__all__ = ["receive", "receive_header", "send"]

_HEADER: Final = struct.Struct("<QQ")  # bytes of the pickle, bytes after it


def send(connection: socket.socket, message: Any, extra: Any = b"", deadline: float | None = None) -> None:
    """Send a message, and bytes after it.

    Raises:
        TimeoutError: The deadline (of `time.monotonic`) passed.
        OSError: The other side is gone.
    """
    pickled = pickle.dumps(message, protocol=5)
    body = memoryview(extra).cast("B") if len(extra) else memoryview(b"")
    _set_timeout(connection, deadline)
    connection.sendall(_HEADER.pack(len(pickled), body.nbytes) + pickled)
    if body.nbytes:
        connection.sendall(body)


def receive_header(connection: socket.socket, deadline: float | None = None) -> tuple[int, int]:
    """Return how many bytes the pickle has that follows, and how many come after it; see `receive`."""
    header = bytearray(_HEADER.size)
    receive(connection, header, deadline)
    size, extra = _HEADER.unpack(header)
    return size, extra


def receive(connection: socket.socket, buffer: Any, deadline: float | None = None) -> None:
    """Fill a buffer.

    Raises:
        TimeoutError: The deadline passed.
        EOFError: The other side is gone.
        OSError: The connection broke.
    """
    view = memoryview(buffer)
    done = 0
    while done < len(view):
        _set_timeout(connection, deadline)
        more = connection.recv_into(view[done:])
        if more == 0:
            raise EOFError
        done += more


def _set_timeout(connection: socket.socket, deadline: float | None) -> None:
    if deadline is None:
        connection.settimeout(None)
        return
    left = deadline - time.monotonic()
    if left <= 0:
        raise TimeoutError
    connection.settimeout(left)
