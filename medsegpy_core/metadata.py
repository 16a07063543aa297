"""Metadata: what the classes, the voxels and the files of a dataset mean.

Values come in layers (a plugin's `DatasetSpec`, its metadata hook, ``.set`` in the process); a `MetadataView` is the
result. For one scan, `MetadataView.for_scan` puts what the file and the dataset dict say on top.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping, MutableMapping, Sequence
from typing import Any, NoReturn

from attrs import field, frozen

from medsegpy_core.errors import MetadataError, closest_match
from medsegpy_core.geometry import has_length, stated
from medsegpy_core.locks import ForkSafeLock
from medsegpy_core.metadata_layers import Layer, SetValues, resolve
from medsegpy_core.metadata_values import IDENTITY_KEYS, KNOWN_KEYS, REQUIRED_KEYS, copied, same
from medsegpy_core.records import LAYOUT_KEYS, Record

__all__ = ["Metadata", "MetadataView"]


class _MissingError(MetadataError, AttributeError):
    """A key that was never set; an ``AttributeError`` too, so that ``hasattr`` works."""


@frozen(eq=False)
class MetadataView:
    """The resolved metadata of a dataset, or of one scan. It does not change, and it pickles.

    Values are read as attributes (``view.spacing``) or with `get`.

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
        """Return the value of `key`, or `default` where it is not set."""
        return copied(self._values.get(key, default))

    def as_dict(self) -> dict[str, Any]:
        """Return all keys and values."""
        return {key: copied(value) for key, value in self._values.items()}

    def require(self, *keys: str) -> MetadataView:
        """Check that keys are set; without arguments, the five that every dataset needs.

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
        """Return the metadata of one scan: its ``scan_*`` keys over what the file says over these values.

        A spacing has a value for each axis of the scan; one of another length counts as absent. The spacing is that of
        the affine where one source gives an affine and no spacing.

        Args:
            scan: A dataset dict, the inputs of `inference`, or a record. ``scan_spacing`` is the spacing of this
                scan; `label_map`, `image_axes` and the other keys of the file's layout count as they are.
            file: What the file itself says, as in `OpenScan.metadata`.
            axes: How many values a spacing may have. None: three, or two if `scan` says that it has one slice, or
                nothing of its size.

        Raises:
            MetadataError: A value does not fit its key, as a spacing of 0.
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
        layers = [("the metadata", self._values), ("the file", file), ("the dataset dict", said)]
        fitting = [
            Layer(source, {k: v for k, v in values.items() if k != "spacing" or has_length(v, axes)}, overrides=True)
            for source, values in layers
        ]
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
    """Return how many values the spacing of a scan may have, by what a record, a dict or the inputs say of its size."""
    depth = scan.scan_num_slices if isinstance(scan, Record) else scan.get("scan_num_slices")
    if isinstance(scan, Record) or "file_name" in scan:
        return (2, 3) if depth == 1 else (3,)
    shape: tuple[int, ...] = getattr(scan.get("x"), "shape", ())
    if len(shape) < 3:
        return (3,) if depth not in (None, 1) else (2, 3)
    return (2, 3) if shape[2] == 1 else (3,)


class Metadata:
    """The metadata of one dataset, as `MetadataCatalog.get` gives it: values are set with `set` and read as attributes.

    What is read is the result of all sources: ``.set`` in the process, and below it the plugin's metadata hook and
    `DatasetSpec.metadata`. It may be used from several threads, and pickles as its `view`.
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
            below: Returns the layers of the plugins; the same object as long as nothing has changed.
            staging: Returns where ``.set`` puts values while a plugin is being loaded, else None.
            file_says: Opens the file of a dataset dict and returns what it says.
        """
        self.name = name
        self._below = below
        self._staging = staging
        self._file_says = file_says
        self._lock = ForkSafeLock()
        self._own = SetValues()
        self._resolved: tuple[Sequence[Layer], SetValues, MetadataView] | None = None

    def set(self, /, *, replace: bool = False, **values: Any) -> Metadata:
        """Set values; all of them, or, where one is refused, none.

        Args:
            replace: Whether a value may replace another, a plugin's included.
            **values: Keys and values. None for a known key is the same as leaving it out; with `replace`, it takes
                back what was set.

        Returns:
            This object.

        Raises:
            MetadataConflictError: A key has another value already. A plugin's value is compared on the first read.
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
        """Return the values as they are now; the view does not follow later changes.

        Raises:
            MetadataConflictError: A plugin says something else than ``.set`` did.
            MetadataError: The values of a plugin do not fit.
        """
        below, own, known = self._below(self.name), self._own, self._resolved
        if known is not None and known[0] is below and known[1] is own:
            return known[2]
        view = MetadataView(self.name, resolve(self.name, [*below, *own.layers("MetadataCatalog in this process")]))
        self._resolved = below, own, view
        return view

    def __getattr__(self, key: str) -> Any:
        if key.startswith("__") or "_resolved" not in self.__dict__:
            raise AttributeError(key)  # copying and pickling ask for such names, of objects not yet made, too
        return getattr(self.view(), key)

    def __contains__(self, key: object) -> bool:
        return key in self.view()

    def get(self, key: str, default: Any = None) -> Any:
        """Return the value of `key`, or `default` where it is not set."""
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
            file: What the file says. None: its header is read, where the dict has a file that is there.
            axes: How many values a spacing may have.

        Raises:
            ReadError: The file is there, but cannot be read.
        """
        return self.view().for_scan(scan, self._file_says(scan) if file is None else file, axes)

    @property
    def own(self) -> SetValues:
        """What was set in the process."""
        return self._own

    def clear(self) -> None:
        """Forget what was set in the process."""
        with self._lock:
            self._own = SetValues()

    def __repr__(self) -> str:
        return f"Metadata({self.name!r}, {', '.join({**self._own.plain, **self._own.replaced}) or 'nothing set here'})"

    def __reduce__(self) -> tuple[Callable[..., MetadataView], tuple[str, dict[str, Any]]]:
        return MetadataView, (self.name, self.as_dict())
