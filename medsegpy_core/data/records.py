"""`Record`, the typed and validated form of a standard dataset dict."""

from __future__ import annotations

import contextlib
import functools
import os
import sys
from collections.abc import Callable, Mapping, Sequence
from numbers import Integral
from pathlib import Path
from typing import Any, Literal

from attrs import evolve, field, frozen
from attrs.converters import optional

from medsegpy_core.data.categories import normalize_category_ids
from medsegpy_core.data.naming import parse_identity, parse_slice_name
from medsegpy_core.errors import CategoryError, RecordError
from medsegpy_core.text import shown

# (dataset, scan_id, augmentation) identifies a scan. Originals and augmented copies never mix.
ScanKey = tuple[str, str, int]


class FrozenDict(dict[str, Any]):
    """An immutable dict that pickles (``types.MappingProxyType`` does not)."""

    __slots__ = ()

    def _refuse(self, *_: Any, **__: Any) -> Any:
        raise TypeError("The mappings of a Record cannot be changed; make a new Record with attrs.evolve().")

    __setitem__ = __delitem__ = update = pop = popitem = clear = setdefault = __ior__ = _refuse

    def __reduce__(self) -> tuple[type, tuple[dict[str, Any]]]:
        return type(self), (dict(self),)


# Shared by all records without such keys: 200,000 empty dicts would take 13 MB.
_NOTHING = FrozenDict()


def _as_text(path: str | os.PathLike[str]) -> str:
    """Return a path as `pathlib` formats it."""
    text = os.fspath(path)
    plain = "//" not in text and "/./" not in text and not text.startswith("./") and not text.endswith(("/", "/."))
    return text if plain and os.sep == "/" else str(Path(text))


@functools.lru_cache(maxsize=1024)
def _path(text: str) -> Path:
    """Return a path. Cached: each is needed several times while its file is read."""
    return Path(text)


@frozen
class Record:
    """One slice or one volume of a dataset.

    Attributes:
        dataset: The name of the dataset (`dataset_name` in a dict); empty for a dict without one.
        index: The position in the dataset's list.
        kind: ``"slice"`` or ``"volume"``.
        image_key: Path of the image inside its file; a tuple gives several channels; None: the default.
        sem_seg_key: Path of the mask inside its file; None: the default.
        scan_id: The scan that this element belongs to.
        slice_id: 1 for the first slice of a scan; None for a volume.
        scan_num_slices: The depth of the scan; None for a volume.
        subject_id: The person, a number or text; None if unknown.
        time_point: The visit, a number or text; None if unknown.
        augmentation: The number of the augmentation, 0 for an original.
        reader: The name of a reader; None: the file decides.
        scan: All other ``scan_*`` keys; they are returned at inference and override metadata.
        extra: All further keys of the dict.
    """

    dataset: str
    index: int
    kind: Literal["slice", "volume"]
    # As str: 400,000 pathlib objects would take 170 MB.
    _image_file: str = field(alias="file_name", converter=_as_text)
    _mask_file: str | None = field(alias="sem_seg_file", converter=optional(_as_text))
    image_key: str | tuple[str, ...] | None
    sem_seg_key: str | None
    scan_id: str
    slice_id: int | None
    scan_num_slices: int | None
    subject_id: int | str | None
    time_point: int | str | None
    augmentation: int
    reader: str | None
    scan: Mapping[str, Any] = field(default=_NOTHING, hash=False)
    extra: Mapping[str, Any] = field(default=_NOTHING, hash=False)

    @classmethod
    def from_dict(cls, d: Mapping[str, Any], dataset: str = "", index: int = 0) -> Record:
        """Validate a standard dataset dict and convert its values.

        A dict with a `slice_id` is a slice, any other a volume. If the dict has no `augmentation`, it is read from the
        file name.

        Args:
            d: The dict.
            dataset: The name of its dataset; empty: the dict's `dataset_name`.
            index: Its position in the dataset's list.

        Raises:
            RecordError: A required key is missing, or a value has the wrong type.
        """
        if not isinstance(d, Mapping):
            raise RecordError(f"{_where(dataset, index)}: expected a dict, found {_shown(d)}.")
        kind: Literal["slice", "volume"] = "slice" if "slice_id" in d else "volume"
        dataset = dataset or own_dataset(d)
        _check(d, kind, dataset, index)
        augmentation = d.get("augmentation")
        if augmentation is None:
            augmentation = augmentation_in_name(d) or 0
        image_key = d.get("image_key")
        # `scan_*` keys and all others are kept apart, because only the former are returned at inference.
        others = [key for key in d if key not in _TYPED]
        # `d.get` throughout: None means "not given" for optional keys.
        return cls(
            dataset=dataset,
            index=index,
            kind=kind,
            file_name=d["file_name"],
            sem_seg_file=d.get("sem_seg_file"),
            image_key=image_key if image_key is None or isinstance(image_key, str) else tuple(image_key),
            sem_seg_key=d.get("sem_seg_key"),
            scan_id=_shared(d["scan_id"]),
            slice_id=_int(d.get("slice_id")),
            scan_num_slices=_int(d["scan_num_slices"]) if kind == "slice" else _int(d.get("scan_num_slices")),
            subject_id=_id(d.get("subject_id")),
            time_point=_id(d.get("time_point")),
            augmentation=int(augmentation),
            reader=d.get("reader"),
            scan=_frozen(d, [key for key in others if key.startswith("scan_")]),
            extra=_frozen(d, [key for key in others if not key.startswith("scan_")]),
        )

    def to_dict(self) -> dict[str, Any]:
        """Return the dataset dict of this record. ``Record.from_dict(record.to_dict())`` is equal to it, except for the
        position in the dataset."""
        d: dict[str, Any] = {"file_name": self._image_file, "scan_id": self.scan_id}
        if self.dataset:
            d["dataset_name"] = self.dataset
        if self._mask_file is not None:
            d["sem_seg_file"] = self._mask_file
        for key in ("image_key", "sem_seg_key", "slice_id", "scan_num_slices", "subject_id", "time_point"):
            if (value := getattr(self, key)) is not None:
                d[key] = value
        d["augmentation"] = self.augmentation
        if self.reader is not None:
            d["reader"] = self.reader
        return {**d, **self.scan, **self.extra}

    @property
    def file_name(self) -> Path:
        """The file with the image."""
        return _path(self._image_file)

    @property
    def sem_seg_file(self) -> Path | None:
        """The file with the mask; None if unlabelled."""
        return None if self._mask_file is None else _path(self._mask_file)

    @property
    def files(self) -> tuple[str, str | None]:
        """`file_name` and `sem_seg_file` as str, without creating paths."""
        return self._image_file, self._mask_file

    @property
    def scan_key(self) -> ScanKey:
        """The identity of the scan: dataset, scan id and augmentation."""
        return self.dataset, self.scan_id, self.augmentation

    @property
    def labelled(self) -> bool:
        """Whether there is a mask."""
        return self._mask_file is not None

    def where(self) -> str:
        """Return a description of the element for messages."""
        return _where(self.dataset, self.index)

    def with_extra(self, values: Mapping[str, Any]) -> Record:
        """Return a record with more keys in `extra`."""
        return evolve(self, extra=FrozenDict({**self.extra, **values})) if values else self


def own_dataset(d: Mapping[str, Any]) -> str:
    """Return the `dataset_name` of a dataset dict, or an empty string if it has none or an invalid one, which
    `Record.from_dict` refuses."""
    name = d.get("dataset_name")
    return _shared(name) if isinstance(name, str) else ""


def augmentation_in_name(d: Mapping[str, Any]) -> int | None:
    """Return the augmentation number in the names of a dataset dict, or None.

    For a slice it is in the file name; for a volume, or a slice in a volume, in the file name or the name of the group.
    """
    stem = os.path.basename(os.fspath(d["file_name"])).partition(".")[0]
    if "slice_id" in d:
        with contextlib.suppress(ValueError):
            return parse_slice_name(stem).augmentation
    key = d.get("image_key")
    first = key if isinstance(key, str) else next(iter(key or ()), "")
    group = first.strip("/").partition("/")[0]
    said: int | None = parse_identity(stem).get("augmentation", parse_identity(group).get("augmentation"))
    return said


def check_axes(axes: Any) -> bool:
    """Return whether `axes` names array axes: letters of H, W, D and C, once each, including H and W."""
    return isinstance(axes, str) and set("HW") <= set(axes) <= set("HWDC") and len(set(axes)) == len(axes)


def _are_ints(value: Any) -> bool:
    whole = isinstance(value, list | tuple) and all(isinstance(v, Integral) and not isinstance(v, bool) for v in value)
    return whole and len(set(value)) == len(value)


def _are_labels(value: Any) -> bool:
    return _are_ints(value) and len(value) > 0 and min(value) > 0


def _are_category_ids(value: Any) -> bool:
    try:
        normalize_category_ids(value)
    except CategoryError:
        return False
    return True


def _is_bool(value: Any) -> bool:
    return isinstance(value, bool)


# A table of keys: key -> (check of its value, the same in words).
Checks = Mapping[str, tuple[Callable[[Any], bool], str]]

# Keys for the meaning of mask values.
LABEL_KEYS: Checks = {
    "label_map": (_is_bool, "True or False"),
    "label_values": (_are_labels, "the value of each channel, whole numbers from 1 that differ, as in (17, 2035)"),
    "ignore_values": (_are_ints, "whole numbers that differ, as in (255,)"),
    "annotated": (_are_category_ids, "a list of category ids: ints and tuples of ints"),
}
_AXES = (check_axes, "the letters H and W, and D and C where there are such axes, once each, as in 'HWDC'")
# All keys that describe files, in dataset dicts and in metadata.
LAYOUT_KEYS: Checks = {
    **LABEL_KEYS,
    "trust_geometry": (_is_bool, "True or False"),
    "image_axes": _AXES,
    "sem_seg_axes": _AXES,
}


def _is_int(minimum: int) -> Callable[[Any], bool]:
    # The test for an abstract class is slow; nearly all values are plain ints.
    return lambda v: (
        v >= minimum if type(v) is int else (not isinstance(v, bool) and isinstance(v, Integral) and int(v) >= minimum)
    )


def _is_text(value: Any) -> bool:
    return isinstance(value, str) and value != ""


def _is_id(value: Any) -> bool:
    return _is_text(value) or _is_natural(value)


def _is_path(value: Any) -> bool:
    return isinstance(value, str | os.PathLike) and isinstance(path := os.fspath(value), str) and path != ""


def _is_image_key(value: Any) -> bool:
    return _is_text(value) or (isinstance(value, list | tuple) and len(value) > 0 and all(map(_is_text, value)))


_is_natural = _is_int(0)
_FILE = (_is_path, "a path")
_ID = (_is_id, "an int >= 0, or text that is not empty")

# In the order in which problems are reported.
_CHECKS: Checks = {
    "dataset_name": (_is_text, "the name of a dataset"),
    "file_name": _FILE,
    "sem_seg_file": _FILE,
    "scan_id": (_is_text, "a non-empty str"),
    "slice_id": (_is_int(1), "an int >= 1 (slices are numbered from 1)"),
    "scan_num_slices": (_is_int(1), "an int >= 1"),
    "subject_id": _ID,
    "time_point": _ID,
    "augmentation": (_is_natural, "an int >= 0 (0 for none)"),
    "reader": (_is_text, "the name of a reader"),
    "image_key": (_is_image_key, "a path inside the file, or a tuple of them"),
    "sem_seg_key": (_is_text, "a path inside the file"),
    **LAYOUT_KEYS,
}
_REQUIRED = {"slice": ("file_name", "scan_id", "slice_id", "scan_num_slices"), "volume": ("file_name", "scan_id")}
# The layout keys stay in `extra`: they describe the file, and a reader looks them up there.
_TYPED = _CHECKS.keys() - set(LAYOUT_KEYS)


def _check(d: Mapping[Any, Any], kind: str, dataset: str, index: int) -> None:
    strange = [key for key in d if not isinstance(key, str)]
    if strange:
        raise RecordError(f"{_where(dataset, index)}: the keys of a dataset dict are str, found {_shown(strange[0])}.")
    for key, (fits, expected) in _CHECKS.items():
        required = key in _REQUIRED[kind]
        if key not in d:
            if not required:
                continue
            raise RecordError(
                f"{_where(dataset, index)}: {key!r} is missing, expected {expected}. A {kind} needs "
                f"{', '.join(_REQUIRED[kind])}; this dict has {', '.join(sorted(d)) or 'no keys'}."
            )
        value = d[key]
        if (required or value is not None) and not fits(value):
            raise RecordError(f"{_where(dataset, index)}: {key!r} is {_shown(value)}, expected {expected}.")
    if kind == "slice" and d["slice_id"] > d["scan_num_slices"]:
        raise RecordError(
            f"{_where(dataset, index)}: 'slice_id' is {d['slice_id']}, but 'scan_num_slices' (the depth of the scan) "
            f"is {d['scan_num_slices']}."
        )


def _where(dataset: str, index: int) -> str:
    return f"Dataset {dataset!r}, element {index}" if dataset else f"Dataset dict {index}"


def _shown(value: Any) -> str:
    return f"{shown(value)} ({type(value).__name__})"


def _shared(text: str) -> str:
    """Return one shared object for the many equal strings of a dataset."""
    return sys.intern(text) if type(text) is str else text


def _int(value: Any) -> int | None:
    return None if value is None else int(value)


def _id(value: Any) -> int | str | None:
    """Return a number as an int; text stays unchanged."""
    if isinstance(value, str):
        return _shared(value)
    return None if value is None else int(value)


def _frozen(d: Mapping[str, Any], keys: Sequence[str]) -> Mapping[str, Any]:
    return FrozenDict({key: d[key] for key in keys}) if keys else _NOTHING
