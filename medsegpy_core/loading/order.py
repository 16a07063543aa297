"""The order of the elements: a pure function of seed, epoch, rank and world size."""

from __future__ import annotations

from numbers import Integral
from typing import TYPE_CHECKING, Any

import numpy as np
from attrs import frozen

from medsegpy_core.errors import ConfigError

if TYPE_CHECKING:
    from medsegpy_core.typing import Array


# Keep the streams of random numbers from one seed independent.
_PERMUTATION, _ELEMENT = 1, 2


@frozen
class Order:
    """The order of the elements of a loader.

    Attributes:
        elements: Number of elements over all ranks.
        batch_size: Elements per batch.
        shuffle: Whether each epoch has its own random order.
        drop_last: Whether every rank drops an incomplete last batch.
        seed: The seed; 0 is a valid seed.
        rank: The number of this shard, from 0.
        world_size: The number of shards.
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
        """Number of batches in an epoch on this rank."""
        if self.drop_last:
            return self.elements // (self.world_size * self.batch_size)
        return -(-self._own // self.batch_size)

    @property
    def _own(self) -> int:
        return len(range(self.rank, self.elements, self.world_size))

    def epoch(self, epoch: int) -> Array:
        """Return the numbers of this rank's elements in the order of an epoch (int64)."""
        if self.shuffle:
            stream = np.random.SeedSequence([self.seed, _PERMUTATION, epoch])
            order = np.random.Generator(np.random.PCG64(stream)).permutation(self.elements)
        else:
            order = np.arange(self.elements)
        own = order[self.rank :: self.world_size]
        return own[: self.batches * self.batch_size] if self.drop_last else own

    def batch(self, order: Array, i: int) -> Array:
        """Return the elements of batch `i`; `order` is the result of `epoch(...)`."""
        return order[i * self.batch_size : (i + 1) * self.batch_size]


class ElementRng:
    """The random numbers of one element. They depend on nothing else, so any sample can be reproduced.

    A call returns the generator, always the same one. It is created by the first call, because creating it takes longer
    than reading a small patch and most elements draw nothing.
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
    """Raise `ConfigError` unless `size` is a positive int."""
    if not is_natural(size) or size < 1:
        raise ConfigError(f"The batch size is {size!r}, expected an int >= 1.")


def check_epoch(epoch: Any) -> None:
    """Raise `ValueError` unless `epoch` is an int >= 0."""
    if not is_natural(epoch):
        raise ValueError(f"There is no epoch {epoch!r}; epochs are ints that start at 0.")


def check_rank(rank: Any, world_size: Any) -> None:
    """Raise `ValueError` unless `rank` is an int in ``range(world_size)``."""
    if not is_natural(rank) or not is_natural(world_size) or rank >= world_size:
        raise ValueError(f"There is no rank {rank!r} with world_size {world_size!r}; ranks are ints that start at 0.")


def is_natural(value: Any) -> bool:
    """Return whether this is an int >= 0."""
    return not isinstance(value, bool) and isinstance(value, Integral) and int(value) >= 0
