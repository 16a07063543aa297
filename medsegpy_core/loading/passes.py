"""What one pass over an epoch is: its order, and the function that makes its batches."""

from __future__ import annotations

import functools
from collections.abc import Callable
from typing import TYPE_CHECKING

from medsegpy_core.loading.batches import Batch, BatchMaker, Buffers
from medsegpy_core.loading.order import Order
from medsegpy_core.loading.readahead import Waiting, read_ahead

if TYPE_CHECKING:
    from medsegpy_core.typing import Array

__all__ = ["batch_function", "epoch_order"]


@functools.lru_cache(maxsize=8)
def epoch_order(order: Order, epoch: int) -> Array:
    """Return the order of an epoch; those asked for last are kept, for loaders that are indexed."""
    numbers = order.epoch(epoch)
    numbers.setflags(write=False)
    return numbers


def batch_function(maker: BatchMaker, order: Order, numbers: Array, epoch: int) -> Callable[[int, Buffers], Batch]:
    """Return what makes batch `i`. It refers to no loader and no iterator, so that threads keep none alive."""
    waiting = Waiting()

    def make(i: int, buffers: Buffers) -> Batch:
        rows = maker.rows(order.batch(numbers, i), epoch)
        if waiting.expected:
            read_ahead(path for row in rows for path in row.files())
        with waiting.measure():
            return maker.fill(rows, buffers)

    return make
