"""Metadata of a dataset: the known keys and their checks, the layers of values, and the view of a single scan."""

from __future__ import annotations

import math
import os
from collections.abc import Callable, Iterator, Mapping, MutableMapping, Sequence
from typing import Any, Final, NoReturn

from attrs import evolve, field, frozen

from medsegpy_core._util.locks import ForkSafeLock
from medsegpy_core.data.categories import normalize_category_id, normalize_category_ids
from medsegpy_core.data.geometry import has_length, stated
from medsegpy_core.data.records import LAYOUT_KEYS, Checks, Record
from medsegpy_core.errors import CategoryError, MetadataConflictError, MetadataError, closest_match
from medsegpy_core.text import shown

REQUIRED_KEYS = ("scan_root", "category_ids", "categories", "category_id_to_contiguous_id", "evaluator_type")

# These keys begin with `scan_` but identify the scan: they do not override metadata.
IDENTITY_KEYS = frozenset(("scan_id", "scan_num_slices"))


def given(values: Mapping[str, Any]) -> dict[str, Any]:
    """Return the values without known keys that are None, which stands for "not given"."""
    return {key: value for key, value in values.items() if value is not None or key not in _CHECKS}


def copied(value: Any) -> Any:
    """Copy plain containers, so that later changes by their owner do not bypass the checks."""
    if type(value) in (list, tuple):
        return type(value)(map(copied, value))
    return {key: copied(member) for key, member in value.items()} if type(value) is dict else value


def same(a: Any, b: Any) -> bool:
    """Return whether two values are equal, ignoring list or tuple, array or list, path or str."""
    if a is b:
        return True
    a, b = _plain(a), _plain(b)
    if isinstance(a, tuple) and isinstance(b, tuple):
        return len(a) == len(b) and all(map(same, a, b))
    if isinstance(a, dict) and isinstance(b, dict):
        return len(a) == len(b) and all(key in b and same(value, b[key]) for key, value in a.items())
    try:
        return bool(a == b)
    except Exception:  # noqa: BLE001 -- a user's type may raise anything when compared; it then counts as different
        return False


def check_value(name: str, key: str, value: Any, source: str) -> None:
    """Check the value of one key. A key that is not known accepts any value.

    Raises:
        MetadataError: The value does not fit the key. The message names the source.
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
    """Check that the values of different keys are consistent.

    Raises:
        MetadataError: They do not have the same categories.
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
    """Return whether `value` is a list, tuple or array whose members all fit."""
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


_CHECKS: Checks = {
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
    "spacing": (_is_spacing, "a positive number of millimeters for each axis, as in (0.31, 0.31, 0.7)"),
    "category_abbreviations": (lambda value: _all(value, _is_text), "a list of abbreviations"),
    "category_colors": (lambda value: _all(value, _is_color), "a list of (R, G, B), each from 0 to 255"),
    "collection": (_is_text, "the name of a collection of subjects"),
    "contained": (lambda value: isinstance(value, bool), "True or False"),
    **{key: (_on_plain(fits), expected) for key, (fits, expected) in LAYOUT_KEYS.items()},
}
_ONE_TO_ONE = (
    "category_ids",
    "categories",
    "category_id_to_contiguous_id",
    "category_abbreviations",
    "category_colors",
)

KNOWN_KEYS = frozenset(_CHECKS)


# Names that `Metadata` and `MetadataView` use themselves.
RESERVED_KEYS: Final = frozenset(("as_dict", "clear", "for_scan", "get", "name", "own", "require", "set", "view"))


@frozen
class Layer:
    """Values from one source.

    Attributes:
        source: Description of the source, for messages.
        values: Keys and values. None as the value of a known key stands for "not given".
        overrides: Whether the values override lower layers. Otherwise a value that differs from a lower one is a
            conflict.
    """

    source: str
    values: Mapping[str, Any]
    overrides: bool = False


@frozen
class SetValues:
    """The values set by ``.set``. Immutable, so that a refused change has no effect.

    Attributes:
        plain: Values that must agree with those of the plugin.
        replaced: Values set with ``replace=True``, which override the plugin's.
    """

    plain: Mapping[str, Any] = field(factory=dict)
    replaced: Mapping[str, Any] = field(factory=dict)

    def set(self, name: str, values: Mapping[str, Any], replace: bool) -> SetValues:
        """Return a copy with more values.

        Raises:
            MetadataConflictError: A key already has another value, and `replace` is False.
            MetadataError: A value does not fit its key, or the other values.
        """
        before = {**self.plain, **self.replaced}
        new = {key: copied(value) for key, value in given(values).items()}
        if replace:
            dropped = values.keys()
            plain = {key: value for key, value in self.plain.items() if key not in dropped}
            kept = {key: value for key, value in self.replaced.items() if key not in dropped}
            result = evolve(self, plain=plain, replaced={**kept, **new})
        else:
            for key in new.keys() & before.keys():
                if not same(before[key], new[key]):
                    _conflict(name, key, before[key], "what was set before", new[key], "what is set now")
            result = evolve(self, plain={**self.plain, **{key: new[key] for key in new if key not in before}})
        # Plain and replaced values must also fit each other. Plugins are not consulted: `set` must not load them.
        resolve(name, [Layer("MetadataCatalog", {**result.plain, **result.replaced})])
        return result

    def layers(self, source: str) -> tuple[Layer, ...]:
        """Return these values as layers, without empty ones."""
        layers = Layer(source, self.plain), Layer(source, self.replaced, overrides=True)
        return tuple(layer for layer in layers if layer.values)


def resolve(name: str, layers: Sequence[Layer]) -> dict[str, Any]:
    """Merge layers, the first at the bottom.

    Raises:
        MetadataConflictError: A layer that does not override has a different value than a lower one.
        MetadataError: A value does not fit its key or the other values.
    """
    values: dict[str, Any] = {}
    source: dict[str, str] = {}
    for layer in layers:
        _check_names(name, layer.values)
        for key, value in given(layer.values).items():
            check_value(name, key, value, layer.source)
            if key in values and not layer.overrides and not same(values[key], value):
                _conflict(name, key, values[key], source[key], value, layer.source)
            values[key], source[key] = value, layer.source
    check_together(name, values, ", ".join(dict.fromkeys(source.values())))
    return values


def _conflict(name: str, key: str, old: Any, old_source: str, new: Any, new_source: str) -> NoReturn:
    raise MetadataConflictError(
        f"Metadata {key!r} of dataset {name!r} is {shown(old)} ({old_source}), but {shown(new)} ({new_source}). "
        f"If the second is right: MetadataCatalog.get({name!r}).set(replace=True, {key}={shown(new)})."
    )


def _check_names(name: str, values: Mapping[str, Any]) -> None:
    for key in values:
        if not isinstance(key, str):
            raise MetadataError(f"Metadata keys of dataset {name!r} must be str, not {key!r}.")
        if key in RESERVED_KEYS:
            raise MetadataError(
                f"Dataset {name!r} cannot have a metadata key {key!r}: `Metadata.{key}` is something else. "
                "Choose another name."
            )


class _MissingError(MetadataError, AttributeError):
    """A key that was never set; an ``AttributeError`` too, so that ``hasattr`` works."""


@frozen(eq=False)
class MetadataView:
    """The resolved metadata of a dataset or of one scan. Immutable and picklable.

    Read values as attributes (``view.spacing``) or with `get`.

    Attributes:
        name: The name of the dataset.
    """

    name: str
    _values: Mapping[str, Any] = field(factory=dict)

    def __getattr__(self, key: str) -> Any:
        if key.startswith("__") or key == "_values":
            raise AttributeError(key)
        if key not in self._values:
            self._missing(key)
        return copied(self._values[key])

    def __contains__(self, key: object) -> bool:
        return key in self._values

    def __iter__(self) -> Iterator[str]:
        return iter(self._values)

    def __eq__(self, other: object) -> bool:
        if not isinstance(other, MetadataView):
            return NotImplemented
        return self.name == other.name and same(self._values, other._values)

    __hash__ = None  # type: ignore[assignment]

    def get(self, key: str, default: Any = None) -> Any:
        """Return the value of `key`, or `default` if it is not set."""
        return copied(self._values.get(key, default))

    def as_dict(self) -> dict[str, Any]:
        """Return all keys and values."""
        return {key: copied(value) for key, value in self._values.items()}

    def require(self, *keys: str) -> MetadataView:
        """Check that keys are set; without arguments, the five required keys.

        Raises:
            MetadataError: Some are missing. The message lists all of them.
        """
        missing = [key for key in keys or REQUIRED_KEYS if key not in self._values]
        if missing:
            self._missing(*missing)
        return self

    def for_scan(
        self,
        scan: Mapping[Any, Any] | Record,
        file: Mapping[str, Any] | None = None,
        axes: Sequence[int] | None = None,
    ) -> MetadataView:
        """Return the metadata of one scan: its ``scan_*`` keys, then those of the file, then these values.

        A spacing without a value for each axis of the scan counts as absent. If a source gives an affine but no
        spacing, the spacing is that of the affine.

        Args:
            scan: A dataset dict, the inputs of `inference`, or a record. ``scan_spacing`` is the spacing of this
                scan; `label_map`, `image_axes` and the other keys of the file layout apply without prefix.
            file: The metadata stated by the file, as in `OpenScan.metadata`.
            axes: The allowed numbers of values of a spacing. None: three, or two if `scan` has one slice or does not
                state its size.

        Raises:
            MetadataError: A value does not fit its key, such as a spacing of 0.
        """
        axes = _axes_of(scan) if axes is None else axes
        own: Mapping[Any, Any] = {**scan.scan, **scan.extra} if isinstance(scan, Record) else scan
        said = {key: value for key, value in own.items() if key in LAYOUT_KEYS}
        for key, value in own.items():
            if isinstance(key, str) and key.startswith("scan_") and key not in IDENTITY_KEYS:
                said[key if key in KNOWN_KEYS else key.removeprefix("scan_")] = value
        if "affine" in said and said.get("spacing") is None:
            said.update(stated({"affine": said["affine"]}, axes)[0])
        file = {} if file is None else {**file, "spacing": None, **stated(file, axes)[0]}
        # First drop the file's spacing (None): with the wrong number of values, it must not override the metadata.
        layers = [("the metadata", self._values), ("the file", file), ("the dataset dict", said)]
        fitting = [
            Layer(source, {k: v for k, v in values.items() if k != "spacing" or has_length(v, axes)}, overrides=True)
            for source, values in layers
        ]
        # Most scans have no values of their own: the same object then serves all of them, without another check.
        if fitting[0].values == self._values and not any(layer.values for layer in fitting[1:]):
            return self
        return MetadataView(self.name, resolve(self.name, fitting))

    def _missing(self, *keys: str) -> NoReturn:
        also = [key for key in REQUIRED_KEYS if key not in self._values and key not in keys]
        if not set(keys) & set(REQUIRED_KEYS):
            also = []
        missing = [*keys, *also]
        has = f"It has: {', '.join(sorted(self._values))}." if self._values else "Nothing is set."
        settings = ", ".join(f"{key}=..." for key in missing)
        raise _MissingError(
            f"Dataset {self.name!r} lacks the metadata {', '.join(map(repr, missing))}."
            f"{closest_match(keys[0], self._values)} {has} "
            f"Set it with MetadataCatalog.get({self.name!r}).set({settings}), or in the plugin's DatasetSpec.metadata."
        )


def _axes_of(scan: Mapping[Any, Any] | Record) -> tuple[int, ...]:
    """Return the allowed numbers of values of a spacing, from the size that a record, a dict or the inputs state."""
    depth = scan.scan_num_slices if isinstance(scan, Record) else scan.get("scan_num_slices")
    if isinstance(scan, Record) or "file_name" in scan:
        return (2, 3) if depth == 1 else (3,)
    shape: tuple[int, ...] = getattr(scan.get("x"), "shape", ())
    if len(shape) < 3:
        return (3,) if depth not in (None, 1) else (2, 3)
    return (2, 3) if shape[2] == 1 else (3,)


class Metadata:
    """The metadata of one dataset, from `MetadataCatalog.get`. Set values with `set`, read them as attributes.

    Reading combines all sources: ``.set`` in the process, and below it the plugin's metadata hook and
    `DatasetSpec.metadata`. Thread-safe; pickles as its `view`.
    """

    def __init__(
        self,
        name: str,
        below: Callable[[str], Sequence[Layer]] = lambda _: (),
        staging: Callable[[], MutableMapping[str, SetValues] | None] = lambda: None,
        file_says: Callable[[Mapping[Any, Any] | Record], Mapping[str, Any]] = lambda _: {},
    ) -> None:
        """Make empty metadata.

        Args:
            name: The name of the dataset.
            below: Returns the layers of the plugins; the same object as long as they are unchanged.
            staging: Returns the place for values of ``.set`` while a plugin is being loaded, else None.
            file_says: Opens the file of a dataset dict and returns its metadata.
        """
        self.name = name
        self._below = below
        self._staging = staging
        self._file_says = file_says
        self._lock = ForkSafeLock()
        self._own = SetValues()
        self._resolved: tuple[Sequence[Layer], SetValues, MetadataView] | None = None

    def set(self, /, *, replace: bool = False, **values: Any) -> Metadata:
        """Set values: all of them, or none if one is refused.

        Args:
            replace: Whether values may replace others, those of a plugin included.
            **values: Keys and values. None for a known key is the same as leaving it out; with `replace`, it removes
                the value that was set.

        Returns:
            This object.

        Raises:
            MetadataConflictError: A key already has another value. A plugin's value is compared on the first read.
            MetadataError: A value does not fit its key, or the other values.
            CategoryError: A category id is malformed.
        """
        staged = self._staging()
        if staged is not None:
            staged[self.name] = staged.get(self.name, SetValues()).set(self.name, values, replace)
            return self
        with self._lock:
            self._own = self._own.set(self.name, values, replace)
        return self

    def view(self) -> MetadataView:
        """Return the current values. The view does not follow later changes.

        Raises:
            MetadataConflictError: A plugin and ``.set`` have different values.
            MetadataError: The values of a plugin are invalid.
        """
        # Both sources are immutable and replaced as a whole, so identity tells whether the cached view is current. No
        # lock: two threads may at worst resolve the same values twice.
        below, own, known = self._below(self.name), self._own, self._resolved
        if known is not None and known[0] is below and known[1] is own:
            return known[2]
        view = MetadataView(self.name, resolve(self.name, [*below, *own.layers("MetadataCatalog in this process")]))
        self._resolved = below, own, view
        return view

    def __getattr__(self, key: str) -> Any:
        if key.startswith("__") or "_resolved" not in self.__dict__:
            raise AttributeError(key)  # copy and pickle look up such names, even on objects without __init__
        return getattr(self.view(), key)

    def __contains__(self, key: object) -> bool:
        return key in self.view()

    def get(self, key: str, default: Any = None) -> Any:
        """Return the value of `key`, or `default` if it is not set."""
        return self.view().get(key, default)

    def as_dict(self) -> dict[str, Any]:
        """Return all keys and values."""
        return self.view().as_dict()

    def require(self, *keys: str) -> MetadataView:
        """Check that keys are set; see `MetadataView.require`."""
        return self.view().require(*keys)

    def for_scan(
        self,
        scan: Mapping[Any, Any] | Record,
        file: Mapping[str, Any] | None = None,
        axes: Sequence[int] | None = None,
    ) -> MetadataView:
        """Return the metadata of one scan; see `MetadataView.for_scan`.

        Args:
            scan: A dataset dict, the inputs of `inference`, or a record.
            file: The metadata stated by the file. None: read its header, if the dict has a file that exists.
            axes: The allowed numbers of values of a spacing.

        Raises:
            ReadError: The file exists, but cannot be read.
        """
        return self.view().for_scan(scan, self._file_says(scan) if file is None else file, axes)

    @property
    def own(self) -> SetValues:
        """The values set in the process."""
        return self._own

    def clear(self) -> None:
        """Remove the values set in the process."""
        with self._lock:
            self._own = SetValues()

    def __repr__(self) -> str:
        return f"Metadata({self.name!r}, {', '.join({**self._own.plain, **self._own.replaced}) or 'nothing set here'})"

    def __reduce__(self) -> tuple[Callable[..., MetadataView], tuple[str, dict[str, Any]]]:
        return MetadataView, (self.name, self.as_dict())
