"""The helper process, which answers requests to locate and read arrays. See `isolation`."""

from __future__ import annotations

import contextlib
import os
import pickle
import resource
import signal
import socket
from collections.abc import Iterable
from typing import TYPE_CHECKING, Any

import numpy as np

from medsegpy_core._util.stamps import Stamp, stamp_of
from medsegpy_core.errors import ReadError
from medsegpy_core.hdf5.files import list_links, open_file, regular_file
from medsegpy_core.hdf5.isolation import receive, receive_header, send
from medsegpy_core.hdf5.layout import look_at_all
from medsegpy_core.hdf5.options import Access, accessing
from medsegpy_core.hdf5.probe import list_groups, list_names
from medsegpy_core.hdf5.read import StaleError, is_current, locate, read_located

if TYPE_CHECKING:
    import h5py


def copy_contents(parts: Iterable[str], file: h5py.File) -> None:
    """Copy all objects at the root of some files into another file, without decoding chunks.

    Args:
        parts: The files; the names of their objects must all differ.
        file: The target, open for writing.

    Raises:
        ReadError: A part cannot be read.
    """
    import h5py

    for part in parts:
        with open_file(part) as source:
            for name, _ in list_links(source, part):
                h5py.h5o.copy(source, name.encode(), file.id, name.encode())


# Longer than the client's time limit: the process ends itself only if the client is gone.
_GRACE_SECONDS = 5.0


def serve(fd: int) -> None:
    """Answer requests until the client closes the connection.

    Args:
        fd: The file descriptor of the connection.
    """
    import h5py  # noqa: F401 -- import it before the memory of this process is measured

    with contextlib.suppress(ValueError, OSError):
        resource.setrlimit(resource.RLIMIT_CORE, (0, 0))
    signal.signal(signal.SIGALRM, signal.SIG_DFL)
    signal.pthread_sigmask(signal.SIG_UNBLOCK, {signal.SIGALRM})
    own = _own_memory()
    # The client has already rejected what must not be read.
    anything = accessing(Access(szip=True))
    with anything, socket.socket(fileno=fd) as connection, contextlib.suppress(EOFError, ConnectionError):
        send(connection, None)
        while True:
            size, _ = receive_header(connection)
            request = bytearray(size)
            receive(connection, request)
            operation, path, arguments, seconds, memory = pickle.loads(request)  # noqa: S301 -- of our own parent
            _limit_memory(own, memory)
            # When the timer expires, the kernel ends this process, even inside the library.
            signal.setitimer(signal.ITIMER_REAL, seconds + _GRACE_SECONDS)
            answer, extra = _answer(operation, path, arguments)
            signal.setitimer(signal.ITIMER_REAL, 0)
            send(connection, answer, extra)


def _own_memory() -> int | None:
    """Return the size of this process's address space in bytes; None if the system does not report it."""
    try:
        with open("/proc/self/statm", encoding="ascii") as file:  # noqa: PTH123
            return int(file.read().split()[0]) * os.sysconf("SC_PAGE_SIZE")
    except OSError:
        return None


def _limit_memory(own: int | None, memory: int) -> None:
    if own is not None:
        _, hard = resource.getrlimit(resource.RLIMIT_AS)
        wanted = own + int(memory)
        resource.setrlimit(resource.RLIMIT_AS, (wanted if hard == resource.RLIM_INFINITY else min(wanted, hard), hard))


def _answer(operation: str, path: str, arguments: tuple[Any, ...]) -> tuple[tuple[str, Any], Any]:
    try:
        if operation == "locate":
            return ("done", locate(path, arguments[0])), b""
        if operation == "locate all":
            numbers = {keys: number for number, keys in enumerate(arguments[0])}
            found = look_at_all(path, numbers, stamp_of(regular_file(path)))
            return ("done", [(numbers[keys], layout) for keys, layout in found]), b""
        if operation == "groups":
            return ("done", list_groups(path, *arguments)), b""
        if operation == "names":
            return ("done", list_names(path, *arguments)), b""
        return _read(path, *arguments)
    except ReadError as error:
        return ("error", (error.reason, error.key)), b""
    except MemoryError:
        return ("error", ("there is not enough memory to read it", None)), b""


def _read(
    path: str, key: str, stamp: Stamp, settled: bool, bounds: tuple[tuple[int, int], ...]
) -> tuple[tuple[str, Any], Any]:
    layout = locate(path, (key,))
    if not is_current(layout.stamp, stamp, settled):
        return ("stale", None), b""
    box = np.empty([stop - start for start, stop in bounds], layout.form.vetted.raw.newbyteorder("="))
    try:
        read_located(path, layout, tuple(slice(start, stop) for start, stop in bounds), box)
    except StaleError:
        return ("stale", None), b""
    return ("done", None), box
