"""The client of the helper process that runs the HDF5 library for `Access(isolate=True)`.

A message consists of a header, a pickle of plain values, and raw bytes.
"""

from __future__ import annotations

import atexit
import io
import os
import pickle
import signal
import socket
import struct
import subprocess
import sys
import time
from collections.abc import Sequence
from typing import TYPE_CHECKING, Any, Final

import numpy as np

from medsegpy_core._util.locks import ForkSafeLock
from medsegpy_core._util.stamps import Stamp, is_young, stamp_of
from medsegpy_core.errors import ReadError
from medsegpy_core.hdf5.files import regular_file
from medsegpy_core.hdf5.options import current_access

if TYPE_CHECKING:
    from medsegpy_core.hdf5.layout import Layout
    from medsegpy_core.typing import Array, Selection


_HEADER: Final = struct.Struct("<QQ")  # bytes of the pickle, bytes after it


def send(connection: socket.socket, message: Any, extra: Any = b"", deadline: float | None = None) -> None:
    """Send a message, followed by raw bytes.

    Raises:
        TimeoutError: The deadline (of `time.monotonic`) passed.
        OSError: The peer closed the connection.
    """
    pickled = pickle.dumps(message, protocol=5)
    body = memoryview(extra).cast("B") if len(extra) else memoryview(b"")
    _set_timeout(connection, deadline)
    connection.sendall(_HEADER.pack(len(pickled), body.nbytes) + pickled)
    if body.nbytes:
        connection.sendall(body)


def receive_header(connection: socket.socket, deadline: float | None = None) -> tuple[int, int]:
    """Return the sizes of the pickle that follows and of the raw bytes after it; raises as `receive`."""
    header = bytearray(_HEADER.size)
    receive(connection, header, deadline)
    size, extra = _HEADER.unpack(header)
    return size, extra


def receive(connection: socket.socket, buffer: Any, deadline: float | None = None) -> None:
    """Fill a buffer.

    Raises:
        TimeoutError: The deadline passed.
        EOFError: The peer closed the connection.
        OSError: The connection failed.
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


_PROGRAM: Final = (
    "import sys; sys.path[:] = sys.argv[2:]; "
    "from medsegpy_core.hdf5.isolation_worker import serve; serve(int(sys.argv[1]))"
)
_START_SECONDS: Final = 60.0
# A crashing process closes its connection before it ends, and may write a core file in between.
_CRASH_SECONDS: Final = 10.0
_BYTES_PER_SECOND: Final = 10e6  # a slow network drive
_MAX_ANSWER: Final = 64 << 20
_MAX_FATAL: Final = 4096

# Answers consist of these types and plain values. A file that takes over the helper must not control imports here.
_ANSWERS: Final = frozenset(
    {
        ("array", "_array_reconstructor"),
        ("array", "array"),
        ("medsegpy_core.hdf5.dataset_info", "Said"),
        ("medsegpy_core.hdf5.layout", "Form"),
        ("medsegpy_core.hdf5.layout", "Layout"),
        ("medsegpy_core.hdf5.dataset_info", "Vetted"),
        ("medsegpy_core._util.stamps", "Stamp"),
        ("numpy", "dtype"),
    }
)


class _Answer(pickle.Unpickler):
    def find_class(self, module_name: str, global_name: str) -> Any:
        if (module_name, global_name) not in _ANSWERS:
            raise pickle.UnpicklingError(f"{module_name}.{global_name}")
        return super().find_class(module_name, global_name)


class _EndedError(Exception):
    """The helper ended or was ended, with the reason and whether the same request would end it again."""

    def __init__(self, reason: str, again: bool):
        super().__init__(reason)
        self.again = again


class _Helper:
    """The helper process and the connection to it."""

    def __init__(self) -> None:
        self._connection, theirs = socket.socketpair()
        with theirs:
            self._process = subprocess.Popen(  # noqa: S603 -- our own interpreter and program
                [sys.executable, "-c", _PROGRAM, str(theirs.fileno()), *sys.path],
                stdin=subprocess.DEVNULL,
                stdout=subprocess.DEVNULL,
                stderr=subprocess.DEVNULL,
                pass_fds=[theirs.fileno()],
                # Control-C must reach only this process, which then ends the helper.
                process_group=0,
                env={**os.environ, "OPENBLAS_NUM_THREADS": "1"},
            )
        try:
            deadline = time.monotonic() + _START_SECONDS
            size, _ = receive_header(self._connection, deadline)
            receive(self._connection, bytearray(size), deadline)
        except (OSError, EOFError) as error:
            self.end()
            status = self._process.returncode
            raise ReadError(
                f"the helper process of isolate=True did not start (exit status {status}). To see the error, run: "
                f"{sys.executable} -c 'import medsegpy_core.hdf5.isolation_worker'"
            ) from error

    @property
    def alive(self) -> bool:
        return self._process.poll() is None

    def ask(self, request: tuple[Any, ...], seconds: float, out: Array | None) -> tuple[str, Any]:
        deadline = time.monotonic() + seconds
        try:
            send(self._connection, request, deadline=deadline)
            kind, value = self._receive(out, deadline)
        except TimeoutError:
            self.stop()
            raise _EndedError(f"the HDF5 library did not finish within {seconds:.3g} s", True) from None
        except Exception as error:
            self.end()
            raise self._ended() from error
        except BaseException:  # Control-C: the pending answer would be taken for that of the next request
            self.stop()
            raise
        return kind, value

    def _receive(self, out: Array | None, deadline: float) -> tuple[str, Any]:
        size, extra = receive_header(self._connection, deadline)
        if size > _MAX_ANSWER or extra not in (0, 0 if out is None else out.nbytes):
            raise EOFError  # the file corrupted the helper's answer
        answer = bytearray(size)
        receive(self._connection, answer, deadline)
        if extra and out is not None:
            receive(self._connection, out.reshape(-1).view(np.uint8).data, deadline)
        kind, value = _Answer(io.BytesIO(answer)).load()
        return kind, value

    def _ended(self) -> _EndedError:
        status = self._process.returncode
        if status == -signal.SIGALRM:
            return _EndedError("the HDF5 library did not finish in time", True)
        if status < 0 and -status != signal.SIGKILL:
            return _EndedError(f"the HDF5 library crashes on it ({signal.Signals(-status).name})", True)
        if status == -signal.SIGKILL:
            return _EndedError("the helper process was killed (SIGKILL) while it read the file", False)
        return _EndedError(f"the helper process ended (exit status {status}) while it read the file", True)

    def end(self) -> None:
        """End the process. A crashing process gets time to finish, so that its own signal is reported."""
        self._connection.close()
        try:
            self._process.wait(_CRASH_SECONDS)
        except subprocess.TimeoutExpired:
            self._process.kill()
            self._process.wait()

    def stop(self) -> None:
        """End the process at once."""
        self._connection.close()
        self._process.kill()
        self._process.wait()

    def forget(self) -> None:
        """Drop the helper in a forked child, which does not own it."""
        self._connection.close()
        self._process.returncode = 0  # nothing to wait for, and no warning about that


_helper: _Helper | None = None
_lock = ForkSafeLock()
# Files that ended the helper: path to stamp and reason. They are rejected at once until they change.
_fatal: dict[str, tuple[Stamp, str]] = {}


def _stop() -> None:
    global _helper
    helper, _helper = _helper, None
    if helper is not None:
        helper.stop()


def _forget() -> None:
    global _helper
    helper, _helper = _helper, None
    if helper is not None:
        helper.forget()


atexit.register(_stop)
if hasattr(os, "register_at_fork"):
    os.register_at_fork(after_in_child=_forget)


def _ask(operation: str, path: str, arguments: tuple[Any, ...], out: Array | None = None) -> tuple[str, Any]:
    """Send a request to the helper; returns the kind of answer, and the answer.

    Raises:
        ReadError: The helper reports it, or the file ended the helper.
    """
    global _helper  # noqa: PLW0603
    access = current_access()
    status = regular_file(path)
    stamp = stamp_of(status)
    known = _fatal.get(path)
    if known is not None and known[0] == stamp:
        raise ReadError(known[1], path)
    extra = 0 if out is None else out.nbytes
    seconds = access.seconds + extra / _BYTES_PER_SECOND
    # An absolute path, because the helper has its own working directory.
    request = (operation, os.path.abspath(path), arguments, seconds, access.memory + extra)  # noqa: PTH100
    with _lock:
        if _helper is None or not _helper.alive:
            _stop()
            _helper = _Helper()
        try:
            kind, value = _helper.ask(request, seconds, out)
        except _EndedError as ended:
            _helper = None
            if ended.again and not is_young(status):
                if len(_fatal) >= _MAX_FATAL:
                    _fatal.clear()
                _fatal[path] = stamp, str(ended)
            raise ReadError(str(ended), path) from ended
        except BaseException:
            _helper = None
            raise
    if kind == "error":
        reason, key = value
        raise ReadError(reason, path, key)
    return kind, value


def locate_by_helper(path: str, keys: Sequence[str]) -> Layout:
    """Run `read.locate` in the helper."""
    layout: Layout = _ask("locate", path, (tuple(keys),))[1]
    return layout


def locate_all_by_helper(path: str, wanted: Sequence[Sequence[str]]) -> list[tuple[Sequence[str], Layout]]:
    """Run `layout.look_at_all` in the helper."""
    found: list[tuple[int, Layout]] = _ask("locate all", path, (tuple(wanted),))[1]
    return [(wanted[number], layout) for number, layout in found]


def read_by_helper(path: str, layout: Layout, selection: Selection, out: Array) -> bool:
    """Run `read.read_located` in the helper; False if the file has changed."""
    dtype = layout.form.vetted.raw.newbyteorder("=")
    box = out if out.dtype == dtype and out.flags.c_contiguous else _empty(out.shape, dtype)
    bounds = tuple((s.start, s.stop) for s in selection)
    if _ask("read", path, (layout.key, layout.stamp, layout.settled, bounds), box)[0] == "stale":
        return False
    if box is not out:
        out[...] = box
    return True


def groups_by_helper(path: str, into_groups: bool) -> tuple[list[str], dict[str, list[str]]]:
    """Run `probe.list_groups` in the helper."""
    root, groups = _ask("groups", path, (into_groups,))[1]
    return root, groups


def names_by_helper(path: str, keys: Sequence[str], attribute: str) -> tuple[str, ...] | None:
    """Run `probe.list_names` in the helper."""
    names: tuple[str, ...] | None = _ask("names", path, (tuple(keys), attribute))[1]
    return names


def _empty(shape: tuple[int, ...], dtype: np.dtype[Any]) -> Array:
    try:
        return np.empty(shape, dtype)
    except MemoryError as error:
        raise ReadError("there is not enough memory to read it") from error
