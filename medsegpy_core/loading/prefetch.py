"""Prepare batches ahead of the caller on threads, and prefetch files into the page cache."""

from __future__ import annotations

import functools
import os
import time
from collections import deque
from collections.abc import Callable, Iterable, Iterator, Mapping
from concurrent.futures import Future, ThreadPoolExecutor
from contextlib import suppress
from typing import TYPE_CHECKING, Any, Final

from medsegpy_core.errors import MedSegPyError
from medsegpy_core.loading.batches import Batch, BatchMaker, Row
from medsegpy_core.loading.buffers import Buffers, BufferSets, returned_buffers
from medsegpy_core.loading.order import Order, is_natural

if TYPE_CHECKING:
    from medsegpy_core.typing import Array


# If a batch spends more than this share of its time waiting, the files of the next batches are prefetched.
_WAITING: Final = 0.25
# How many batches ahead to prefetch, so that the disk is busy while other batches are prepared.
_BATCHES_AHEAD: Final = 4


def read_ahead(paths: Iterable[str]) -> None:
    """Start to read all files into the page cache. Files that cannot be opened are skipped: reading them raises."""
    advise = getattr(os, "posix_fadvise", None)
    if advise is None:
        return
    for path in paths:
        try:
            fd = os.open(path, os.O_RDONLY | os.O_CLOEXEC | os.O_NONBLOCK)
        except OSError:
            continue
        try:
            advise(fd, 0, 0, os.POSIX_FADV_WILLNEED)
        except OSError:
            pass  # a pipe, or a file system without support for it
        finally:
            os.close(fd)


class Waiting:
    """Measures whether the batches of a pass wait for the disk: wall time exceeds CPU time.

    Use `measure` as a context around each batch. Thread-safe: threads share only a flag and how far files were
    prefetched.
    """

    def __init__(self) -> None:
        # Assume a cold cache until a batch has been measured.
        self.expected = True
        self._asked = 0

    def to_ask_for(self, batch: int, batches: int) -> range:
        """Return the batches to prefetch before this one is made: itself and its successors, each only once."""
        if not self.expected:
            return range(0)
        # Two threads may both prefetch a batch, which costs little.
        first, self._asked = max(batch, self._asked), max(self._asked, min(batch + 1 + _BATCHES_AHEAD, batches))
        return range(first, self._asked)

    def measure(self) -> _Measured:
        """Return a context that measures one batch."""
        return _Measured(self)


class _Measured:
    def __init__(self, waiting: Waiting) -> None:
        self._waiting = waiting

    def __enter__(self) -> None:
        self._wall, self._processor = time.perf_counter(), time.thread_time()

    def __exit__(self, *_: object) -> None:
        wall, processor = time.perf_counter() - self._wall, time.thread_time() - self._processor
        self._waiting.expected = wall - processor > _WAITING * wall


@functools.lru_cache(maxsize=8)
def epoch_order(order: Order, epoch: int) -> Array:
    """Return the order of an epoch. The most recent ones are cached, for ``loader[i]``."""
    numbers = order.epoch(epoch)
    numbers.setflags(write=False)
    return numbers


def batch_function(maker: BatchMaker, order: Order, numbers: Array, epoch: int) -> Callable[[int, Buffers], Batch]:
    """Return the function that makes batch `i`. It refers to no loader or iterator, so threads keep none alive."""
    waiting = Waiting()

    def rows_of(i: int) -> list[Row]:
        return maker.rows(order.batch(numbers, i), epoch)

    def make(i: int, buffers: Buffers) -> Batch:
        for ahead in waiting.to_ask_for(i, order.batches):
            with suppress(MedSegPyError):  # an invalid batch raises when it is made
                read_ahead(path for row in rows_of(ahead) for path in row.files())
        with waiting.measure():
            return maker.make(order.batch(numbers, i), epoch, buffers)

    return make


def check_state(state: Mapping[str, Any], own: Mapping[str, Any]) -> None:
    """Raise `ValueError` if a state is malformed, or comes from a loader with other data or settings than `own`."""
    wrong = [f"{key}={state.get(key)!r}" for key in ("seed", "epoch", "batches") if not is_natural(state.get(key))]
    if wrong:
        raise ValueError(f"The state of a loader has {', '.join(own)}, ints >= 0; this one has {', '.join(wrong)}.")
    differing = [
        f"{key} {state[key]} there, {own[key]} here"
        for key in ("elements", "batch_size", "world_size")
        if key in state and state[key] != own[key]
    ]
    if differing:
        raise ValueError(f"This is the state of a loader with other data or settings: {'; '.join(differing)}.")


# A delivered batch stays valid until two more have been requested.
_DELIVERED_SETS: Final = 2


class BatchIterator(Iterator[Batch]):
    """One pass over the batches `start` to `stop` of an epoch.

    An error is raised in place of its batch and ends the pass. When the iterator is deleted, batches that no thread has
    started are not made.

    Args:
        make: ``make(i, buffers)`` makes batch `i`; called from the threads. It must not refer to this iterator.
        start: The first batch.
        stop: The batch after the last.
        workers: The number of threads; 0: each batch is made when it is requested.
        buffers: The buffers of finished passes, to reuse: a batch then stays valid until two more have been requested.
            None: a batch stays valid as long as it is referenced.
        delivered: Called with the number of batches delivered so far, counted from the start of the epoch.
        exhausted: Called once, when a batch is requested after the last one.
    """

    def __init__(
        self,
        make: Callable[[int, Buffers], Batch],
        start: int,
        stop: int,
        workers: int,
        buffers: BufferSets | None,
        delivered: Callable[[int], None],
        exhausted: Callable[[], None],
    ):
        self._make = make
        self._next = start
        self._submitted = start
        self._stop = stop
        self._delivered = delivered
        self._exhausted: Callable[[], None] | None = exhausted
        self._workers = workers
        self._ahead = workers + 1 if workers else 0
        self._pool = _threads(workers)
        self._process = os.getpid()
        self._pending: deque[tuple[Future[Batch], Buffers]] = deque()
        self._out: deque[Buffers] = deque()
        self._sets = buffers
        sets = self._ahead + _DELIVERED_SETS
        self._own = returned_buffers(sets)
        self._free: deque[Buffers] | None = None if buffers is None else deque(buffers.take(sets))

    def __iter__(self) -> BatchIterator:
        return self

    def __next__(self) -> Batch:
        if self._next >= self._stop:
            self.close()
            if (exhausted := self._exhausted) is not None:
                self._exhausted = None
                self._give_back()
                exhausted()
            raise StopIteration
        try:
            if self._process != os.getpid():
                self._begin_again()
            self._recycle()
            batch, buffers = self._take()
        except BaseException:
            # The pass ends here: batches that were prepared ahead will not be requested.
            self._next, self._exhausted = self._stop, None
            self.close()
            raise
        self._out.append(buffers)
        self._next += 1
        self._delivered(self._next)
        return batch

    def close(self) -> None:
        """Stop. Batches that no thread has started are not made."""
        if self._pool is not None:
            self._pool.shutdown(wait=False, cancel_futures=True)
            self._pool = None
        self._pending.clear()

    def __del__(self) -> None:
        self.close()

    def _give_back(self) -> None:
        """Leave the buffers to the next pass. Those delivered last come last, because their batches are still valid."""
        if self._sets is not None and self._free is not None:
            self._sets.give_back([*self._free, *self._out])
        self._free, self._sets = None, None
        self._out.clear()

    def _begin_again(self) -> None:
        """Continue in a forked process, where the threads and their pending batches do not exist."""
        self._process, self._pool, self._submitted = os.getpid(), _threads(self._workers), self._next
        if self._free is not None:
            self._free.extend(buffers for _, buffers in self._pending)
        self._pending.clear()

    def _take(self) -> tuple[Batch, Buffers]:
        if self._pool is None:
            buffers = self._buffers()
            return self._make(self._next, buffers), buffers
        while self._submitted < min(self._stop, self._next + self._ahead):
            buffers = self._buffers()
            self._pending.append((self._pool.submit(self._make, self._submitted, buffers), buffers))
            self._submitted += 1
        future, buffers = self._pending.popleft()
        return future.result(), buffers

    def _buffers(self) -> Buffers:
        return self._own if self._free is None else self._free.popleft()

    def _recycle(self) -> None:
        while len(self._out) >= _DELIVERED_SETS:
            buffers = self._out.popleft()
            if self._free is not None:
                self._free.append(buffers)


def _threads(workers: int) -> ThreadPoolExecutor | None:
    return ThreadPoolExecutor(workers, "medsegpy-fetch") if workers else None
