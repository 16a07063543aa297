"""Locks: one that a forked child can use, whoever held it in the parent, and one between processes."""

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

# Seconds that a fork waits at most; then the child begins with what was there.
_PATIENCE: Final = 30.0
# What file systems without locks answer, as Lustre mounted without `flock`.
_NO_LOCKS: Final = {errno.ENOSYS, errno.ENOTSUP, errno.EOPNOTSUPP, errno.ENOLCK, errno.EINVAL}
_HELD: Final = {errno.EWOULDBLOCK, errno.EAGAIN, errno.EACCES}


class ForkSafeLock:
    """A reentrant lock. In a child process made by fork it is free: the thread that may have held it is not there.

    What it guards must be whole at every moment: replace an object, never change one in steps. With `wait`, a fork
    waits until the lock is free. That is for what cannot be whole at every moment, as the import of a module, for which
    a child would wait in vain.
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
        """Hold the lock for the fork, if a fork is to wait for it."""
        self._held_for_fork = self._wait and self._lock.acquire(timeout=_PATIENCE)

    def after_fork(self, in_child: bool) -> None:
        """Let go of the lock; in the child, forget who else may hold it."""
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
    """Hold a lock between processes; that of a process which was killed is free.

    Where the file system has no locks, a second file, `path` with ``.owner`` behind it, takes their place. It is made
    by one process only, but stays if that is killed.

    Args:
        path: The lock's file, which says who holds it; it is made, and stays.

    Raises:
        BlockingIOError: Another process holds the lock; the text says which.
        OSError: The file cannot be opened, or is a link: nothing is written through one.

    Warns:
        MedSegPyWarning: The file system has no locks.
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
    """Open the file of a lock, but none that is another file by a second name."""
    try:
        fd = os.open(path, os.O_RDWR | os.O_CREAT | os.O_CLOEXEC | os.O_NOFOLLOW | os.O_NONBLOCK, 0o666)
    except OSError as error:
        if error.errno == errno.ELOOP:
            raise OSError(f"{path}: the lock's file is a symbolic link; remove it.") from error
        raise
    status = os.fstat(fd)
    if not stat.S_ISREG(status.st_mode) or status.st_nlink > 1:
        os.close(fd)
        raise OSError(f"{path}: the lock's file is a hard link, a pipe or a device; remove it.")
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
            f"{path.parent}: this file system does not support locks; the file {path.name} stands for one. If this "
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
