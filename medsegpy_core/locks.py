"""A lock that a forked child can use, whoever held it in the parent."""

from __future__ import annotations

import os
import threading
from types import TracebackType
from typing import Final
from weakref import WeakSet

__all__ = ["ForkSafeLock"]

# Seconds that a fork waits at most; then the child begins with what was there.
_PATIENCE: Final = 30.0


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
