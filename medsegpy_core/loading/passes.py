"""What one pass over an epoch is: its order, the function that makes its batches, and where it stands."""

from __future__ import annotations

import functools
from collections.abc import Callable, Mapping
from contextlib import suppress
from typing import TYPE_CHECKING, Any

from medsegpy_core.errors import MedSegPyError
from medsegpy_core.loading.batches import Batch, BatchMaker, Row
from medsegpy_core.loading.buffers import Buffers
from medsegpy_core.loading.order import Order, is_natural
from medsegpy_core.loading.readahead import Waiting, read_ahead

if TYPE_CHECKING:
    from medsegpy_core.typing import Array

__all__ = ["batch_function", "check_state", "epoch_order"]


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
