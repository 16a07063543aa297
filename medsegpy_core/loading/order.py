"""In which order elements come: a pure function of seed, epoch, rank and world size."""

from __future__ import annotations

from numbers import Integral
from typing import TYPE_CHECKING, Any

import numpy as np
from attrs import frozen

from medsegpy_core.errors import ConfigError

if TYPE_CHECKING:
    from medsegpy_core.typing import Array


# Separates the streams of random numbers that one seed feeds.
_PERMUTATION, _ELEMENT = 1, 2


@frozen
class Order:
    """The order of the elements of a loader.

    Attributes:
        elements: How many there are, over all ranks.
        batch_size: Elements a batch.
        shuffle: Whether each epoch has its own random order.
        drop_last: Whether every rank drops what does not fill a batch.
        seed: The seed; 0 is one like any other.
        rank: Which of the `world_size` shards this is.
        world_size: How many shards there are.
    """

    elements: int
    batch_size: int
    shuffle: bool
    drop_last: bool
    seed: int
    rank: int = 0
    world_size: int = 1

    @property
    def batches(self) -> int:
        """How many batches an epoch has on this rank."""
        if self.drop_last:
            return self.elements // (self.world_size * self.batch_size)
        return -(-self._own // self.batch_size)

    @property
    def _own(self) -> int:
        return len(range(self.rank, self.elements, self.world_size))

    def epoch(self, epoch: int) -> Array:
        """Return the numbers of this rank's elements in an epoch, in order (int64)."""
        if self.shuffle:
            stream = np.random.SeedSequence([self.seed, _PERMUTATION, epoch])
            order = np.random.Generator(np.random.PCG64(stream)).permutation(self.elements)
        else:
            order = np.arange(self.elements)
        own = order[self.rank :: self.world_size]
        return own[: self.batches * self.batch_size] if self.drop_last else own

    def batch(self, order: Array, i: int) -> Array:
        """Return the elements of batch `i`, given `epoch(...)`."""
        return order[i * self.batch_size : (i + 1) * self.batch_size]


class ElementRng:
    """The random numbers of one element: they depend on nothing else, so that any sample can be made again.

    Calling it gives the generator, the same one every time. It is made at the first call, as that takes longer than
    reading a small patch, and most elements draw nothing.
    """

    __slots__ = ("_generator", "_key")

    def __init__(self, seed: int, epoch: int, element: int):
        self._key = (seed, _ELEMENT, epoch, element)
        self._generator: np.random.Generator | None = None

    def __call__(self) -> np.random.Generator:
        """Return the generator."""
        if self._generator is None:
            self._generator = np.random.Generator(np.random.PCG64(np.random.SeedSequence(self._key)))
        return self._generator


def check_batch_size(size: Any) -> None:
    """Raise `ConfigError` if this is no number of elements."""
    if not is_natural(size) or size < 1:
        raise ConfigError(f"The batch size is {size!r}, expected an int >= 1.")


def check_epoch(epoch: Any) -> None:
    """Raise `ValueError` if there is no such epoch."""
    if not is_natural(epoch):
        raise ValueError(f"There is no epoch {epoch!r}; epochs are ints, numbered from 0.")


def check_rank(rank: Any, world_size: Any) -> None:
    """Raise `ValueError` if there is no such rank."""
    if not is_natural(rank) or not is_natural(world_size) or rank >= world_size:
        raise ValueError(f"There is no rank {rank!r} among {world_size!r}; ranks are ints, numbered from 0.")


def is_natural(value: Any) -> bool:
    """Say whether this is an int that is not negative."""
    return not isinstance(value, bool) and isinstance(value, Integral) and int(value) >= 0
