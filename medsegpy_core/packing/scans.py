"""Packing one scan: the layout of its arrays for each way of reading, and the task that writes it."""

from __future__ import annotations

import hashlib
import json
import pickle
import warnings
from collections.abc import Iterator, Mapping, Sequence
from typing import TYPE_CHECKING, Any, Final, Literal

import numpy as np
from attrs import evolve, field, frozen, validators

from medsegpy_core.data.categories import normalize_category_ids, required_channels
from medsegpy_core.data.geometry import as_stored
from medsegpy_core.data.records import LABEL_KEYS, LAYOUT_KEYS, Record
from medsegpy_core.errors import DataWarning, ReadError
from medsegpy_core.hdf5 import atomic_h5, open_array, pack_bitfield
from medsegpy_core.hdf5.dataset_info import BITFIELD
from medsegpy_core.hdf5.dataset_info import FORMAT as BITFIELD_FORMAT
from medsegpy_core.loading.collate import Collation
from medsegpy_core.loading.scans import Opener, Scan
from medsegpy_core.packing.manifest import FORMAT, all_unchanged, encoded, hashed, source_files
from medsegpy_core.reading.canonical_scan import CanonicalScan
from medsegpy_core.reading.lazy_arrays import full_selection, packed_unknown_bits
from medsegpy_core.reading.masks import UNLABELLED_UINT8, AnnotatedView, LabelMapView

if TYPE_CHECKING:
    from medsegpy_core.typing import Array, DatasetDict, LazyArray


LayoutName = Literal["slices", "patches"]
Compression = Literal["gzip", "none"]

# A fast level: decompression takes as long at any level.
_GZIP_LEVEL: Final = 1
# Compressed chunks are decoded as a whole, so that large ones cost more than they save.
_GZIP_CHUNK: Final = 32


@frozen
class PackLayout:
    """The layout of packed arrays.

    * ``slices``: depth first, so that a slice is one byte range. With gzip, a chunk is a slice.
    * ``patches``: H x W x D, in chunks of `patch`, so that a patch touches few of them. Without `patch` and gzip,
      contiguous, which is fastest if the file is in the page cache.

    Attributes:
        name: The name of the layout.
        compression: ``"none"`` or ``"gzip"``.
        patch: H, W and D of a chunk of the layout ``patches``; None: contiguous, or with gzip 32 x 32 x 32.
    """

    name: LayoutName = field(default="slices", validator=validators.in_(("slices", "patches")))
    compression: Compression = field(default="none", validator=validators.in_(("gzip", "none")))
    patch: tuple[int, int, int] | None = field(default=None)

    @patch.validator
    def _check_patch(self, _: Any, value: Any) -> None:
        if value is not None and (len(value) != 3 or any(not isinstance(n, int) or n < 1 for n in value)):
            raise ValueError(f"The patch is {value!r}, expected three ints >= 1: H, W and D.")

    def axes(self, spatial: str, channels: bool) -> str:
        """Return the letters of the stored axes for an array with the axes `spatial` (``"HWD"`` or ``"HW"``)."""
        order = "DHW" if self.name == "slices" and "D" in spatial else spatial
        return order + "C" * channels

    def storage(self, axes: str, shape: tuple[int, ...]) -> dict[str, Any]:
        """Return the options of ``h5py.Group.create_dataset`` for an array in stored order."""
        if self.compression == "none" and (self.name == "slices" or self.patch is None):
            return {}
        if self.name == "slices":
            chunk = tuple(1 if letter == "D" else n for letter, n in zip(axes, shape, strict=True))
        else:
            sizes = dict(zip("HWD", self.patch or (_GZIP_CHUNK,) * 3, strict=True))
            chunk = tuple(self._chunk(n, sizes.get(letter, n)) for letter, n in zip(axes, shape, strict=True))
        gzip = {"compression": "gzip", "compression_opts": _GZIP_LEVEL, "shuffle": True}
        return {"chunks": chunk} | (gzip if self.compression == "gzip" else {})

    def _chunk(self, size: int, patch: int) -> int:
        """Return the chunk size along an axis. Raw chunks are evened out, because the last is padded to full size."""
        return min(size, patch) if self.compression == "gzip" else -(-size // -(-size // patch))

    def as_dict(self) -> dict[str, Any]:
        """Return this for JSON."""
        patch = None if self.patch is None else list(self.patch)
        return {"layout": self.name, "compression": self.compression, "patch": patch}


_SLAB_BYTES: Final = 64 << 20
_ATTEMPTS: Final = 3


@frozen(eq=False)
class Task:
    """A scan to pack, with everything that is needed for it; pickles.

    Attributes:
        scan: The scan.
        group: The name of its group in the packed file.
        opener: Opens its records.
        layout: The layout of the packed arrays.
    """

    scan: Scan
    group: str
    opener: Opener
    layout: PackLayout

    @property
    def fingerprint(self) -> str:
        """Identifies the work: the layout and the records. The content of the files is identified by their hashes."""
        ids = [self.opener.category_ids[record.dataset] for record in self.scan.records[:1]]
        channels = [None if known is None else required_channels(known) for known in ids]
        said: list[Any] = [FORMAT, self.layout.as_dict(), self.group, channels]
        for record in self.scan.records:
            d = record.to_dict()
            d.pop("dataset_name", None)  # the same files under another name are the same work
            said.append(repr(d))
        return hashlib.blake2b(json.dumps(said).encode(), digest_size=16).hexdigest()


@frozen
class _Unit:
    """The source of one pair of arrays: a whole scan, or one slice of an incomplete scan.

    Attributes:
        group: The group in the packed file.
        records: The volume, or the slices.
        whole: Whether this is a whole scan, with a depth.
    """

    group: str
    records: Sequence[Record]
    whole: bool


def units(scan: Scan, group: str) -> list[_Unit]:
    """Return the units that a scan is divided into.

    A scan of slices becomes one volume, unless slices are missing, some have no mask, or their masks differ in meaning.
    Then it keeps its individual slices, because a volume could not represent this.
    """
    labels = {(r.labelled, *(repr(r.extra.get(key)) for key in LABEL_KEYS)) for r in scan.records}
    if scan.is_volume or (not scan.missing and len(labels) == 1):
        return [_Unit(group, scan.records, whole=True)]
    return [_Unit(f"{group}/{record.slice_id:03d}", [record], whole=False) for record in scan.records]


def pack_scan(task: Task, path: str) -> dict[str, Any]:
    """Write the file of one scan, read it back and compare it with the source.

    If the source changes meanwhile, it is packed again.

    Returns:
        `units`: for each its dataset dict as in the manifest, without files, and the hash of each array; and
        `sources`: the state of its files.

    Raises:
        ReadError: The source cannot be read, or keeps changing, or the data read back differ from those written.
    """
    files = source_files([task.scan])
    for _ in range(_ATTEMPTS):
        before = [hashed(file) for file in files]
        try:
            done = write_scan(task, path)
        except ReadError:
            if all_unchanged(files, before) is not None:
                raise
        else:
            if (after := all_unchanged(files, before)) is not None:
                return {"units": done, "sources": [source.as_list() for source in after]}
        task = pickle.loads(pickle.dumps(task))  # noqa: S301 -- our own; a copy without cached open files
    raise ReadError(f"the files of scan {task.scan.key[1]!r} keep changing; wait until they are complete", files[0])


def described_scan(task: Task) -> list[dict[str, Any]]:
    """Return the `units` that `pack_scan` would return now, without writing."""
    return [_pack_unit(task, unit, None) for unit in units(task.scan, task.group)]


def write_scan(task: Task, path: str) -> list[dict[str, Any]]:
    """Write the file of one scan, read it back and compare it with the source. Return the `units` of `pack_scan`."""
    planned = units(task.scan, task.group)
    with atomic_h5(path, overwrite=True) as file:
        done = [_pack_unit(task, unit, file) for unit in planned]
    for unit in planned:
        _compare(task, unit, path)
    return done


def _pack_unit(task: Task, unit: _Unit, file: Any) -> dict[str, Any]:
    """Write the arrays of a unit into a file, if there is one, and describe them; see `pack_scan`."""
    first = unit.records[0]
    spatial = "HWD" if unit.whole else "HW"
    arrays = _Arrays.of(task, unit, spatial)
    hashes = {}
    for key, array, axes in arrays.stored():
        name = f"{unit.group}/{key}"
        hashes[name] = content_hash(array)
        if file is not None:
            _store(file, name, key, array, axes, arrays, task.layout)
    labels = {"sem_seg_key": f"{unit.group}/seg"} if first.labelled else {}
    d = {**_common(unit), "image_key": f"{unit.group}/volume", **labels, **arrays.layout_keys(first)}
    return {"dict": encoded(d, f"scan {first.scan_id!r}"), "labelled": first.labelled, "hashes": hashes}


def _store(file: Any, name: str, key: str, array: Array, axes: str, arrays: _Arrays, layout: PackLayout) -> None:
    made = file.create_dataset(name, data=array, **layout.storage(axes, array.shape))
    if key == "seg" and arrays.channels is not None:
        made.attrs[BITFIELD], made.attrs[BITFIELD_FORMAT] = arrays.channels, 2 if arrays.unknown else 1
    if key == "volume":
        stated = {name: value for name, value in arrays.metadata.items() if name in ("spacing", "affine")}
        for said, value in as_stored(stated, axes).items():
            made.attrs[said] = np.asarray(value, np.float64)


def _common(unit: _Unit) -> DatasetDict:
    """Return the keys that all records of a unit share, without files and keys inside them."""
    # The dataset is left out too: packed files belong to the dataset that they are registered as.
    left_out = {"dataset_name", "file_name", "sem_seg_file", "image_key", "sem_seg_key", "reader", *LAYOUT_KEYS}
    if unit.whole:
        left_out |= {"slice_id", "scan_num_slices"}
    dicts = [record.to_dict() for record in unit.records]
    common = {
        key: value
        for key, value in dicts[0].items()
        if key not in left_out and all(key in d and repr(d[key]) == repr(value) for d in dicts)
    }
    if differing := sorted(set().union(*dicts) - set(common) - left_out):
        warnings.warn(
            f"Scan {unit.records[0].scan_id!r}: {', '.join(map(repr, differing))} differ between slices, which a "
            "packed scan cannot represent; they are left out.",
            DataWarning,
            stacklevel=2,
        )
    return common


@frozen(eq=False)
class _Arrays:
    """The arrays of a unit, in memory, with their axes in stored order."""

    image: Array
    image_axes: str
    mask: Array | None
    mask_axes: str
    channels: int | None
    label_map: bool
    unknown: bool
    metadata: Mapping[str, Any]

    @classmethod
    def of(cls, task: Task, unit: _Unit, spatial: str) -> _Arrays:
        with task.opener.open(unit.records[0]) as opened:
            shape, dtype, metadata = opened.image.shape, opened.image.dtype, dict(opened.metadata)
            label_map = _stays_label_map(opened.mask)
            channels = None if opened.mask is None or label_map else opened.mask.shape[-1]
            unknown = _may_be_unknown(opened.mask)
            mask_dtype = opened.mask.label_dtype if isinstance(opened.mask, LabelMapView) else np.dtype(np.uint8)
            labelled = opened.mask is not None
        if unit.whole and unit.records[0].kind == "slice":
            shape = (*shape[:2], len(unit.records), *shape[2:])
        in_plane = shape[: len(spatial)]
        image_axes = task.layout.axes(spatial, len(shape) > len(spatial))
        mask_axes = task.layout.axes(spatial, not label_map)
        image = _empty(shape, image_axes, dtype)
        mask = None
        if labelled:
            last = () if label_map else (_bytes_of(channels or 0, unknown),)
            mask = _empty((*in_plane, *last), mask_axes, mask_dtype if label_map else np.dtype(np.uint8))
        arrays = cls(image, image_axes, mask, mask_axes, channels, label_map, unknown, metadata)
        # Whether any voxel is unknown is known only after reading; if none is, format 1 is enough.
        arrays.fill(task, unit)
        return arrays if mask is None or label_map or not unknown else arrays.without_empty_half(mask)

    def without_empty_half(self, mask: Array) -> _Arrays:
        """Return a copy without the bits of unknown channels, if none is set."""
        known, unknown = np.split(mask, 2, axis=self.mask_axes.index("C"))
        return self if unknown.any() else evolve(self, mask=np.ascontiguousarray(known), unknown=False)

    def fill(self, task: Task, unit: _Unit) -> None:
        """Read the source."""
        image = _canonical(self.image, self.image_axes)
        mask = None if self.mask is None else _canonical(self.mask, self.mask_axes)
        for place, part, opened, record in _parts(task, unit):
            piece = opened.image[part]
            if piece.dtype != image.dtype or piece.shape != image[place].shape:
                raise ReadError(
                    f"it is {piece.dtype} of shape {piece.shape}, other slices of the scan are {image.dtype} of shape "
                    f"{image[place].shape}; a packed scan has one type and size",
                    record.file_name,
                )
            image[place] = piece
            if mask is not None and opened.mask is not None:
                mask[place] = _mask_values(opened.mask, part, self.channels, self.unknown, record)

    def stored(self) -> Iterator[tuple[str, Array, str]]:
        """Yield key, array and axes of each stored array."""
        yield "volume", self.image, self.image_axes
        if self.mask is not None:
            yield "seg", self.mask, self.mask_axes

    def layout_keys(self, record: Record) -> DatasetDict:
        """Return all keys of a dataset dict that describe the stored arrays, because metadata may contradict them."""
        said: DatasetDict = {"image_axes": self.image_axes}
        if self.mask is None:
            return said
        # The bits contain unknown voxels, but a loader must know that there may be some before it reads them.
        kept = {"annotated", "ignore_values"} | ({"label_values"} if self.label_map else set())
        # Plain ints, for JSON.
        means = {
            key: list(normalize_category_ids(value)) if key == "annotated" else [int(label) for label in value]
            for key in sorted(kept)
            if (value := record.extra.get(key)) is not None
        }
        return {**said, "sem_seg_axes": self.mask_axes, "label_map": self.label_map, **means}


def _stays_label_map(mask: LazyArray | None) -> bool:
    """Return whether labels take fewer bytes than the bits of their channels."""
    if not isinstance(mask, LabelMapView):
        return False
    return mask.label_dtype.itemsize < _bytes_of(mask.channels, _may_be_unknown(mask))


def _may_be_unknown(mask: LazyArray | None) -> bool:
    """Return whether there may be unknown voxels."""
    if isinstance(mask, LabelMapView):
        return bool(mask.labels.ignored) or not all(map(mask.labels.is_annotated, range(mask.channels)))
    if isinstance(mask, AnnotatedView):
        return bool(mask.unknown) or _may_be_unknown(mask.array)
    return mask is not None and packed_unknown_bits(mask) is not None


def _bytes_of(channels: int, unknown: bool) -> int:
    """Return the number of bytes for the bits of a voxel."""
    return -(-channels // 8) * (2 if unknown else 1)


def _empty(shape: Sequence[int], axes: str, dtype: np.dtype[Any]) -> Array:
    """Return an array with stored axes `axes`, whose sizes `shape` are in the order H, W, D, C."""
    sizes = dict(zip(sorted(axes, key="HWDC".index), shape, strict=True))
    return np.empty([sizes[letter] for letter in axes], dtype)


def _canonical(array: Array, axes: str) -> Array:
    """Return a view with the axes in the order H, W, D, C."""
    return array.transpose([axes.index(letter) for letter in sorted(axes, key="HWDC".index)])


def _parts(task: Task, unit: _Unit) -> Iterator[tuple[tuple[Any, ...], tuple[slice, ...], CanonicalScan, Record]]:
    """Yield the source piece by piece: the place in the canonical array, and the part of the open scan."""
    for record in unit.records:
        with task.opener.open(record) as opened:
            if unit.whole and record.kind == "slice":
                yield (slice(None), slice(None), (record.slice_id or 1) - 1), (slice(None),), opened, record
                continue
            rows = opened.image.shape[0]
            as_bits = opened.mask is not None and not isinstance(opened.mask, LabelMapView)
            channels = max(1, opened.mask.shape[-1]) if opened.mask is not None and as_bits else 1
            row_bytes = int(np.prod(opened.image.shape[1:])) * (opened.image.dtype.itemsize + channels)
            step = max(1, _SLAB_BYTES // max(1, row_bytes))
            for start in range(0, rows, step):
                part = (slice(start, min(start + step, rows)),)
                yield part, part, opened, record


def _mask_values(
    mask: LazyArray, part: tuple[slice, ...], channels: int | None, unknown: bool, record: Record
) -> Array:
    """Return a piece of a mask in stored form: labels or bits."""
    if channels is None and isinstance(mask, LabelMapView):
        labels = mask.read_labels(_box(part, mask.array.shape))
        mask.coded(labels, mask.codes())
        return labels
    if channels is None or mask.shape[-1] != channels:
        raise ReadError(
            f"it has {mask.shape[-1]} channels, other slices of the scan have {channels}", record.sem_seg_file
        )
    box = _box(part, mask.shape[:-1])
    values = np.empty([*(side.stop - side.start for side in box), channels], np.uint8)
    Collation(tuple(range(channels))).read(mask, box, values, record.sem_seg_file)
    if not unknown and _may_be_unknown(mask) and (values == UNLABELLED_UINT8).any():
        raise ReadError("it changed while it was packed: now it has unknown voxels", record.sem_seg_file)
    return pack_bitfield(values, unknown)


def _box(part: tuple[slice, ...], shape: Sequence[int]) -> tuple[slice, ...]:
    """Return a selection: a part of the first axes, with explicit bounds, and the whole of the others."""
    sides = zip(part, shape, strict=False)
    return (*(slice(*side.indices(n)[:2]) for side, n in sides), *full_selection(tuple(shape[len(part) :])))


def _compare(task: Task, unit: _Unit, path: str) -> None:
    """Compare the packed file with the source.

    Raises:
        ReadError: They differ.
    """
    arrays = {"volume": open_array(path, f"{unit.group}/volume")}
    if unit.records[0].labelled:
        arrays["seg"] = open_array(path, f"{unit.group}/seg")
    spatial = "HWD" if unit.whole else "HW"
    for place, part, opened, record in _parts(task, unit):
        wanted = {"volume": opened.image[part]}
        if opened.mask is not None:
            channels = None if _stays_label_map(opened.mask) else opened.mask.shape[-1]
            axes = task.layout.axes(spatial, channels is not None)
            stored = 0 if channels is None else arrays["seg"].shape[axes.index("C")]
            unknown = stored > _bytes_of(channels or 0, unknown=False)
            wanted["seg"] = _mask_values(opened.mask, part, channels, unknown, record)
        for key, values in wanted.items():
            axes = task.layout.axes(spatial, len(arrays[key].shape) > len(spatial))
            found = _read(arrays[key], axes, place)
            if found.dtype != values.dtype or found.tobytes() != values.tobytes():
                raise ReadError("what was read back is not what was written; the disk may be failing", path, key)


def _read(array: LazyArray, axes: str, place: tuple[Any, ...]) -> Array:
    order = sorted(axes, key="HWDC".index)
    chosen = {letter: place[i] if i < len(place) else slice(None) for i, letter in enumerate(order)}
    found = array[tuple(chosen[letter] for letter in axes)]
    kept = [letter for letter in axes if isinstance(chosen[letter], slice)]
    return found.transpose([kept.index(letter) for letter in order if letter in kept])


def content_hash(array: Array) -> str:
    """Return the BLAKE2b hash (32 bytes, in hexadecimal) of type, shape and values of an array, in C order."""
    # Type and shape are part of the hash, and the byte order is fixed, so that it is the same on any machine.
    digest = hashlib.blake2b(f"{array.dtype.newbyteorder('<').str} {array.shape}".encode(), digest_size=32)
    little = np.ascontiguousarray(array).astype(array.dtype.newbyteorder("<"), copy=False)
    digest.update(little.reshape(-1).view(np.uint8).data)
    return digest.hexdigest()
