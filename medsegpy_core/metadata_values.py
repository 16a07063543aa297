"""What the metadata keys may hold: the known keys, their checks, and when two values are the same."""

from __future__ import annotations

import math
import os
from collections.abc import Callable, Mapping
from typing import Any

from medsegpy_core.categories import normalize_category_id, normalize_category_ids
from medsegpy_core.errors import CategoryError, MetadataError
from medsegpy_core.records import LABEL_CHECKS, check_axes

__all__ = [
    "IDENTITY_KEYS",
    "KNOWN_KEYS",
    "REQUIRED_KEYS",
    "check_together",
    "check_value",
    "copied",
    "given",
    "same",
    "shown",
]

REQUIRED_KEYS = ("scan_root", "category_ids", "categories", "category_id_to_contiguous_id", "evaluator_type")

# These begin with `scan_`, but say which scan it is: they override nothing.
IDENTITY_KEYS = frozenset(("scan_id", "scan_num_slices"))


def given(values: Mapping[str, Any]) -> dict[str, Any]:
    """Return the values without the known keys that are None, which stands for "not given"."""
    return {key: value for key, value in values.items() if value is not None or key not in _CHECKS}


def copied(value: Any) -> Any:
    """Copy plain containers, so that a list that its owner changes later does not change the metadata unchecked."""
    if type(value) in (list, tuple):
        return type(value)(map(copied, value))
    return {key: copied(member) for key, member in value.items()} if type(value) is dict else value


def same(a: Any, b: Any) -> bool:
    """Say whether two values mean the same: a list and a tuple, an array and its list, a path and its text do."""
    if a is b:
        return True
    a, b = _plain(a), _plain(b)
    if isinstance(a, tuple) and isinstance(b, tuple):
        return len(a) == len(b) and all(map(same, a, b))
    if isinstance(a, dict) and isinstance(b, dict):
        return len(a) == len(b) and all(key in b and same(value, b[key]) for key, value in a.items())
    try:
        return bool(a == b)
    except Exception:  # noqa: BLE001 -- whatever a user's type does when it is compared, it is not the same
        return False


def shown(value: Any) -> str:
    """Return the `repr` of a value, on one line and shortened."""
    text = " ".join(repr(value).split())
    return text if len(text) <= 80 else text[:77] + "..."


def check_value(name: str, key: str, value: Any, source: str) -> None:
    """Check the value of one key; any value of a key of the user's own fits.

    Raises:
        MetadataError: It does not fit. The message says whose it is.
        CategoryError: A category id is malformed.
    """
    if key in _CHECKS:
        fits, expected = _CHECKS[key]
        try:
            does_fit = fits(value)
        except CategoryError as error:
            raise CategoryError(f"Metadata {key!r} of dataset {name!r} ({source}): {error}") from error
        if not does_fit:
            raise MetadataError(
                f"Metadata {key!r} of dataset {name!r} is {shown(value)} ({source}), expected {expected}."
            )


def check_together(name: str, values: Mapping[str, Any], source: str) -> None:
    """Check that the values of different keys fit each other.

    Raises:
        MetadataError: They are not 1-to-1.
    """
    lengths = {key: len(_plain(values[key])) for key in _ONE_TO_ONE if key in values}
    if len(set(lengths.values())) > 1:
        found = ", ".join(f"{key} has {length}" for key, length in lengths.items())
        raise MetadataError(f"The metadata of dataset {name!r} ({source}) must be 1-to-1, but {found}.")
    if "category_ids" in values and "category_id_to_contiguous_id" in values:
        ids = set(normalize_category_ids(_plain(values["category_ids"])))
        mapped = {normalize_category_id(key) for key in values["category_id_to_contiguous_id"]}
        if ids != mapped:
            raise MetadataError(
                f"In the metadata of dataset {name!r} ({source}), category_ids and category_id_to_contiguous_id have "
                f"different ids: {', '.join(map(str, sorted(ids ^ mapped, key=str)))} in one of them only."
            )


def _plain(value: Any) -> Any:
    """Return lists and arrays as tuples, paths as str, mappings as dicts with plain keys."""
    if hasattr(value, "tolist") and hasattr(value, "dtype"):
        value = value.tolist()
    if isinstance(value, os.PathLike):
        return os.fspath(value)
    if isinstance(value, list | tuple):
        return tuple(value)
    if isinstance(value, Mapping):
        return {_plain(key): member for key, member in value.items()}
    return value


def _is_text(value: Any) -> bool:
    return isinstance(value, str) and value != ""


def _is_number(value: Any) -> bool:
    value = _plain(value)
    return isinstance(value, int | float) and not isinstance(value, bool) and math.isfinite(value)


def _is_path(value: Any) -> bool:
    return isinstance(value, str | os.PathLike) and os.fspath(value) not in ("", b"")


def _is_spacing(value: Any) -> bool:
    return _all(value, lambda length: _is_number(length) and length > 0) and len(_plain(value)) > 1


def _is_color(value: Any) -> bool:
    return _all(value, lambda part: _is_number(part) and 0 <= part <= 255) and len(_plain(value)) == 3


def _all(value: Any, fits: Callable[[Any], bool]) -> bool:
    """Say whether it is a list, tuple or array whose members fit."""
    members = _plain(value)
    return isinstance(members, tuple) and all(map(fits, members))


def _are_ids(value: Any) -> bool:
    normalize_category_ids(_plain(value))
    return True


def _are_contiguous(value: Any) -> bool:
    if not isinstance(value, Mapping):
        return False
    normalize_category_ids(list(value))
    numbers = [_plain(number) for number in value.values()]
    whole = all(isinstance(number, int) and not isinstance(number, bool) for number in numbers)
    return whole and sorted(numbers) == list(range(len(numbers)))


def _on_plain(fits: Callable[[Any], bool]) -> Callable[[Any], bool]:
    return lambda value: fits(_plain(value))


_AXES = (check_axes, "the letters H and W, and D and C where there are such axes, once each, as in 'HWDC'")

# key -> (what its value must satisfy, that in words).
_CHECKS: dict[str, tuple[Callable[[Any], bool], str]] = {
    "scan_root": (_is_path, "the folder of the scans"),
    "category_ids": (_are_ids, "a list of ints and tuples of ints"),
    "categories": (
        lambda value: _all(value, _is_text) and len(set(_plain(value))) == len(_plain(value)),
        "a list of names that differ from each other",
    ),
    "category_id_to_contiguous_id": (
        _are_contiguous,
        "a dict from category ids to contiguous ids, which are the numbers 0 to n-1, each once",
    ),
    "evaluator_type": (_is_text, "the name of an evaluator, as 'SemSegEvaluator'"),
    "spacing": (_is_spacing, "a positive number of millimetres for each axis, as in (0.31, 0.31, 0.7)"),
    "category_abbreviations": (lambda value: _all(value, _is_text), "a list of abbreviations"),
    "category_colors": (lambda value: _all(value, _is_color), "a list of (R, G, B), each from 0 to 255"),
    "collection": (_is_text, "the name of a collection of subjects"),
    **{key: (_on_plain(fits), expected) for key, (fits, expected) in LABEL_CHECKS.items()},
    "trust_geometry": (lambda value: isinstance(value, bool), "True or False"),
    "contained": (lambda value: isinstance(value, bool), "True or False"),
    "image_axes": _AXES,
    "sem_seg_axes": _AXES,
}
_ONE_TO_ONE = (
    "category_ids",
    "categories",
    "category_id_to_contiguous_id",
    "category_abbreviations",
    "category_colors",
)

KNOWN_KEYS = frozenset(_CHECKS)
