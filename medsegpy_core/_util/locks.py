"""Locks: one that stays usable after a fork, and one between processes."""

from __future__ import annotations

import errno
import os
import stat
import threading
import warnings
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from types import TracebackType
from typing import Final
from weakref import WeakSet

from medsegpy_core._util.limits import read_limited
from medsegpy_core.errors import MedSegPyWarning

# The longest time in seconds that a fork waits; then the child starts with the current state.
_PATIENCE: Final = 30.0
# The errors of file systems without locks, such as Lustre mounted without `flock`.
_NO_LOCKS: Final = {errno.ENOSYS, errno.ENOTSUP, errno.EOPNOTSUPP, errno.ENOLCK, errno.EINVAL}
_HELD: Final = {errno.EWOULDBLOCK, errno.EAGAIN, errno.EACCES}


class ForkSafeLock:
    """A reentrant lock. It is free in a forked child, where the thread that may have held it does not exist.

    The guarded state must be consistent at any time: replace an object, never change one in steps. With `wait`, a fork
    waits until the lock is free. Use it for state that cannot be consistent at any time, such as the import of a
    module, on which a child would wait forever.
    """

    def __init__(self, wait: bool = False) -> None:
        self._lock = threading.RLock()
        self._wait = wait
        self._held_for_fork = False
        _locks.add(self)

    def __enter__(self) -> None:
        self._lock.acquire()

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, traceback: TracebackType | None
    ) -> None:
        self._lock.release()

    def before_fork(self) -> None:
        """Acquire the lock for the fork, if `wait` is set."""
        self._held_for_fork = self._wait and self._lock.acquire(timeout=_PATIENCE)

    def after_fork(self, in_child: bool) -> None:
        """Release the lock; in the child, reset it, because its owner may not exist there."""
        if self._held_for_fork:
            self._held_for_fork = False
            self._lock.release()
        elif in_child:
            self._lock = threading.RLock()


_locks: WeakSet[ForkSafeLock] = WeakSet()


def _before() -> None:
    for lock in list(_locks):
        lock.before_fork()


def _after(in_child: bool) -> None:
    for lock in list(_locks):
        lock.after_fork(in_child)


os.register_at_fork(
    before=_before, after_in_parent=lambda: _after(in_child=False), after_in_child=lambda: _after(in_child=True)
)


@contextmanager
def lock_file(path: Path) -> Iterator[None]:
    """Hold a lock between processes. The lock is released if its process is killed.

    If the file system does not support locks, a second file with the suffix ``.owner`` replaces the lock. Only one
    process can create it, but it remains if that process is killed.

    Args:
        path: The lock file, which contains the owner; it is created, and not removed.

    Raises:
        BlockingIOError: Another process holds the lock; the message names it.
        OSError: The file cannot be opened, or is a link, through which nothing is written.

    Warns:
        MedSegPyWarning: The file system does not support locks.
    """
    import fcntl

    owner = f"process {os.getpid()} on {os.uname().nodename}"
    fd = _open_lock(path)
    try:
        try:
            fcntl.flock(fd, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except OSError as error:
            if error.errno in _HELD:
                raise BlockingIOError(error.errno, _said(os.pread(fd, 200, 0))) from error
            if error.errno not in _NO_LOCKS:
                raise
            with _owner_file(path.with_name(f"{path.name}.owner"), owner):
                yield
            return
        os.ftruncate(fd, 0)
        os.pwrite(fd, owner.encode(), 0)
        yield
    finally:
        os.close(fd)


def _open_lock(path: Path) -> int:
    """Open a lock file; reject links, which may be names of other files."""
    try:
        fd = os.open(path, os.O_RDWR | os.O_CREAT | os.O_CLOEXEC | os.O_NOFOLLOW | os.O_NONBLOCK, 0o666)
    except OSError as error:
        if error.errno == errno.ELOOP:
            raise OSError(f"{path}: the lock file is a symbolic link; remove it.") from error
        raise
    status = os.fstat(fd)
    if not stat.S_ISREG(status.st_mode) or status.st_nlink > 1:
        os.close(fd)
        raise OSError(f"{path}: the lock file is a hard link, a pipe or a device; remove it.")
    return fd


@contextmanager
def _owner_file(path: Path, owner: str) -> Iterator[None]:
    try:
        fd = os.open(path, os.O_WRONLY | os.O_CREAT | os.O_EXCL | os.O_CLOEXEC | os.O_NOFOLLOW, 0o666)
    except FileExistsError as error:
        text = f"{_said(_start_of(path))}; this file system does not support locks: remove {path} if it is gone"
        raise BlockingIOError(errno.EWOULDBLOCK, text) from error
    try:
        with os.fdopen(fd, "w") as file:
            file.write(owner)
        warnings.warn(
            f"{path.parent}: this file system does not support locks; the file {path.name} replaces the lock. If this "
            "process is killed, remove that file.",
            MedSegPyWarning,
            stacklevel=2,
        )
        yield
    finally:
        path.unlink(missing_ok=True)


def _start_of(path: Path) -> bytes:
    try:
        return read_limited(path, 2**20)[:200]
    except OSError:
        return b""


def _said(data: bytes) -> str:
    return data.decode(errors="replace").strip() or "unknown"
