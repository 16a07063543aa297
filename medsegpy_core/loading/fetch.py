"""Batches made ahead of time by threads, delivered in order."""

from __future__ import annotations

import os
from collections import deque
from collections.abc import Callable, Iterator
from concurrent.futures import Future, ThreadPoolExecutor
from typing import Final

from medsegpy_core.loading.batches import Batch
from medsegpy_core.loading.buffers import Buffers, BufferSets, returned_buffers

__all__ = ["BatchIterator"]

# A batch that was delivered stays valid until the next but one is asked for.
_DELIVERED_SETS: Final = 2


class BatchIterator(Iterator[Batch]):
    """One pass over the batches `start` to `stop` of an epoch.

    Errors come where their batch would have come, and end the pass. When the iterator is dropped, batches that no
    thread has begun are not made.

    Args:
        make: ``make(i, buffers)`` makes batch `i`; called from the threads. It must not refer to this iterator.
        start: The first batch.
        stop: Behind the last batch.
        workers: How many threads; 0: batches are made when they are asked for.
        buffers: Where the buffers of passes that have ended lie; a batch is then valid only until the next but one is
            asked for. None: a batch is valid for as long as anybody holds it.
        delivered: Called with the number of batches delivered so far, counted from the first of the epoch.
        exhausted: Called once when all have been delivered and one more is asked for.
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
            # The pass ends here: what was made ahead belongs to batches that will not be asked for.
            self._next, self._exhausted = self._stop, None
            self.close()
            raise
        self._out.append(buffers)
        self._next += 1
        self._delivered(self._next)
        return batch

    def close(self) -> None:
        """Stop: batches that no thread has begun are not made."""
        if self._pool is not None:
            self._pool.shutdown(wait=False, cancel_futures=True)
            self._pool = None
        self._pending.clear()

    def __del__(self) -> None:
        self.close()

    def _give_back(self) -> None:
        """Leave the buffers to the next pass, those that were delivered last at the end: they are valid for a while."""
        if self._sets is not None and self._free is not None:
            self._sets.give_back([*self._free, *self._out])
        self._free, self._sets = None, None
        self._out.clear()

    def _begin_again(self) -> None:
        """Go on in a process made by fork: the threads, and what they were making, stayed in the other one."""
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
