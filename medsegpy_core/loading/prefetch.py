"""Make batches ahead of the caller on threads, and ask the system for the files of the next ones."""

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


# The share of the time of a batch that was spent waiting, from which on the files of the next are asked for at once.
_WAITING: Final = 0.25
# How many batches are asked for before they are made, so that the disk works while others are.
_BATCHES_AHEAD: Final = 4


def read_ahead(paths: Iterable[str]) -> None:
    """Begin to read files into the page cache, all of them side by side. What cannot be opened is passed over: reading
    it says why."""
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
            pass  # a pipe, or a file system that does not know it
        finally:
            os.close(fd)


class Waiting:
    """Whether the batches of a pass wait for the disk: their time is more than what the processor took for them.

    Use it as a context around each batch. Several threads may: what is shared is a flag, and how far files were asked
    for.
    """

    def __init__(self) -> None:
        # Until it is known, as for a data set that has just been copied.
        self.expected = True
        self._asked = 0

    def to_ask_for(self, batch: int, batches: int) -> range:
        """Return the batches whose files are to be asked for before this one is made: itself and those that follow,
        each of them once."""
        if not self.expected:
            return range(0)
        # Two threads may both ask for a batch, which costs little.
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
    """Return the order of an epoch; those asked for last are kept, for loaders that are indexed."""
    numbers = order.epoch(epoch)
    numbers.setflags(write=False)
    return numbers


def batch_function(maker: BatchMaker, order: Order, numbers: Array, epoch: int) -> Callable[[int, Buffers], Batch]:
    """Return what makes batch `i`. It refers to no loader and no iterator, so that threads keep none alive."""
    waiting = Waiting()

    def rows_of(i: int) -> list[Row]:
        return maker.rows(order.batch(numbers, i), epoch)

    def make(i: int, buffers: Buffers) -> Batch:
        for ahead in waiting.to_ask_for(i, order.batches):
            with suppress(MedSegPyError):  # what is wrong with a batch is an error when it is made
                read_ahead(path for row in rows_of(ahead) for path in row.files())
        with waiting.measure():
            return maker.make(order.batch(numbers, i), epoch, buffers)

    return make


def check_state(state: Mapping[str, Any], own: Mapping[str, Any]) -> None:
    """Raise `ValueError` if a state is malformed, or of a loader with other data or settings than `own`."""
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
