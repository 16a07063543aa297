"""Category ids: a channel of the mask, or several channels collated into one superclass."""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from numbers import Integral
from typing import Any, TypeAlias

from medsegpy_core.errors import CategoryError

CategoryId: TypeAlias = int | tuple[int, ...]


def normalize_category_id(category_id: Any) -> CategoryId:
    """Return `category_id` as an int or a tuple of ints.

    Raises:
        CategoryError: The value is neither a non-negative int nor a non-empty sequence of distinct ones.

    Example:
        >>> normalize_category_id([0, 2])
        (0, 2)
    """
    if _is_channel(category_id):
        return int(category_id)
    if isinstance(category_id, Iterable) and not isinstance(category_id, str | bytes):
        members = tuple(category_id)
        if members and all(map(_is_channel, members)) and len(set(members)) == len(members):
            return tuple(int(m) for m in members)
    raise CategoryError(
        f"{category_id!r} is not a category id: expected a channel number (0, 1, ...), or a "
        "sequence of distinct ones to be collated, as in (0, 2)."
    )


def normalize_category_ids(category_ids: Iterable[Any]) -> tuple[CategoryId, ...]:
    """Normalize a list of category ids. Their order is kept.

    Raises:
        CategoryError: An id is malformed or repeated.

    Example:
        >>> normalize_category_ids([0, [1, 2], 3])
        (0, (1, 2), 3)
    """
    if isinstance(category_ids, str | bytes) or not isinstance(category_ids, Iterable):
        raise CategoryError(f"Category ids must be a list of ints and tuples of ints, not {category_ids!r}.")
    ids = tuple(normalize_category_id(category_id) for category_id in category_ids)
    if len(set(ids)) != len(ids):
        raise CategoryError(f"Category ids must differ from each other, but got {list(ids)}.")
    return ids


def channels_of(category_id: CategoryId) -> tuple[int, ...]:
    """Return the channels of the mask that a (normalized) category id collates.

    Example:
        >>> channels_of(3), channels_of((0, 2))
        ((3,), (0, 2))
    """
    return (category_id,) if isinstance(category_id, int) else category_id


def required_channels(category_ids: Sequence[CategoryId]) -> int:
    """Return the number of channels that a mask needs for these categories (0 for none).

    Example:
        >>> required_channels((0, (1, 4)))
        5
    """
    return max((max(channels_of(category_id)) for category_id in category_ids), default=-1) + 1


def _is_channel(value: Any) -> bool:
    # True and False are ints, but never meant as channels.
    return not isinstance(value, bool) and isinstance(value, Integral) and int(value) >= 0
