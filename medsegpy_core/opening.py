"""`open_scan`: the arrays of a dataset dict, lazily, with their axes in the order that everybody expects."""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from contextlib import ExitStack, contextmanager
from typing import Any

from attrs import field, frozen

from medsegpy_core.categories import normalize_category_ids, required_channels
from medsegpy_core.errors import MedSegPyError, ReadError
from medsegpy_core.lazy import AxesView, LabelMapView
from medsegpy_core.readers import find_reader
from medsegpy_core.records import Record
from medsegpy_core.typing import DatasetDict, LazyArray, OpenScan, Reader

__all__ = ["CanonicalScan", "label_channels", "open_record", "open_scan"]


@frozen
class CanonicalScan:
    """The arrays of one slice or volume.

    Attributes:
        image: H x W for a slice, H x W x D for a volume; with a last axis K where there are several channels.
        mask: H x W [x D] x C, binary; None: unlabelled.
        metadata: What the file itself says, ``spacing`` for example.
        detached: Whether the arrays may be used after the context has ended, see `OpenScan`.
    """

    image: LazyArray
    mask: LazyArray | None
    metadata: Mapping[str, Any] = field(factory=dict)
    detached: bool = False


@contextmanager
def open_scan(dataset_dict: DatasetDict, dataset: str = "") -> Iterator[CanonicalScan]:
    """Open the image and the mask that a dataset dict names.

    Args:
        dataset_dict: A standard dataset dict.
        dataset: The dataset it is of, whose metadata say how its files are laid out where the dict does not; empty: its
            `dataset_name`, if it has one.

    Yields:
        `image` (H x W [x D] [x K]) and `mask` (H x W [x D] x C, or None), lazily, in the file's own type and
        native byte order, and `metadata`.

    Raises:
        RecordError: The dict is not a standard dataset dict.
        UnknownNameError: Its `dataset_name` is unknown in this process.
        ReadError: A file is missing, broken, or not what the dict says.

    Example:
        ```python
        with open_scan(DatasetCatalog.get("abdomen_volumes_train")[0]) as scan:
            rows = scan.image[10:20]
        ```
    """
    from medsegpy_core.datasets import make_records

    (record,) = make_records([dataset_dict], [dataset])
    with open_record(record, find_reader(record), label_channels(record.dataset)) as scan:
        yield scan


def label_channels(dataset: str) -> int | None:
    """Return how many channels a label map of this dataset has, by its metadata; None: they do not say."""
    from medsegpy_core.catalog import MetadataCatalog

    category_ids = MetadataCatalog.get(dataset).get("category_ids") if dataset else None
    return None if category_ids is None else required_channels(normalize_category_ids(category_ids))


@contextmanager
def open_record(record: Record, reader: Reader, channels: int | None = None) -> Iterator[CanonicalScan]:
    """Open a record with a reader that is known.

    Args:
        record: The record.
        reader: Its reader.
        channels: How many channels a label map has; None: as many as its largest value needs.
    """
    try:
        with ExitStack() as stack:
            scan = _entered(stack, reader, record)
            yield canonical(scan, record, channels)
    except ReadError as error:
        # Errors while data are read come here too. Who reads knows the file, but not of which dataset it is.
        error.element = error.element or record.where()
        raise


def _entered(stack: ExitStack, reader: Reader, record: Record) -> OpenScan:
    """Open with a reader; what goes wrong in it is a `ReadError`, whatever the reader calls it."""
    try:
        return stack.enter_context(reader.open(record))
    except MedSegPyError:
        raise
    except Exception as error:
        found = f"{type(error).__name__}: {error}"
        raise ReadError(f"reader {reader.name!r} cannot open it ({found})", record.file_name) from error


def canonical(scan: OpenScan, record: Record, channels: int | None) -> CanonicalScan:
    """Bring what a reader opened into the canonical axis order, and check that image and mask fit together."""
    spatial = 2 if record.kind == "slice" else 3
    detached = getattr(scan, "detached", False) is True
    image = _image(scan.image, record, spatial)
    if scan.mask is None:
        return CanonicalScan(image, None, scan.metadata, detached)
    mask = _mask(scan.mask, record, spatial, channels)
    if image.shape[:spatial] != mask.shape[:spatial]:
        raise ReadError(
            f"the mask is {_by(mask.shape[:spatial])}, but the image in {record.file_name} is "
            f"{_by(image.shape[:spatial])}{_axes_hint(record)}",
            record.sem_seg_file,
        )
    return CanonicalScan(image, mask, scan.metadata, detached)


def _image(array: LazyArray, record: Record, spatial: int) -> LazyArray:
    rank = len(array.shape)
    several = isinstance(record.image_key, tuple)
    axes = record.extra.get("image_axes")
    if axes is None:
        if rank != spatial + several:
            raise ReadError(
                f"the image of a {record.kind} has {spatial + several} axes, found {_by(array.shape)}. If the file "
                "stores them otherwise, say how: image_axes='HWDC' in the dict or the metadata (H, W, D spatial, C "
                "channels)",
                record.file_name,
            )
        return array
    return _reordered(array, axes + "C" if several and "C" not in axes else axes, record, "image_axes")


def _mask(array: LazyArray, record: Record, spatial: int, channels: int | None) -> LazyArray:
    path = record.sem_seg_file or record.file_name
    axes = record.extra.get("sem_seg_axes")
    if axes is not None:
        array = _reordered(array, axes, record, "sem_seg_axes")
    rank, label_map = len(array.shape), record.extra.get("label_map", False)
    if rank not in (spatial, spatial + 1) or (label_map and rank > spatial and array.shape[-1] != 1):
        expected = (
            f"a label map has the image's {spatial} axes"
            if label_map
            else f"the mask of a {record.kind} has {spatial + 1} axes ({', '.join('HWD'[:spatial])}, C), or "
            f"{spatial} for one binary class"
        )
        raise ReadError(
            f"{expected}, found {_by(array.shape)}. If the file stores them otherwise, say how: sem_seg_axes='CHWD' in "
            "the dict or the metadata",
            path,
        )
    if label_map:
        flat = array if rank == spatial else AxesView(array, tuple(range(spatial)))
        return LabelMapView(flat, channels, path)
    return array if rank > spatial else AxesView(array, (*range(spatial), None))


def _reordered(array: LazyArray, axes: str, record: Record, key: str) -> LazyArray:
    path = record.file_name if key == "image_axes" else record.sem_seg_file
    if len(array.shape) != len(axes):
        raise ReadError(f"{key}={axes!r} names {len(axes)} axes, but the array is {_by(array.shape)}", path)
    if record.kind == "volume" and "D" not in axes:
        raise ReadError(f"{key}={axes!r}, but a volume has a D axis: one of those of {_by(array.shape)}", path)
    wanted = "HWC" if record.kind == "slice" else "HWDC"
    order = tuple(axes.index(letter) for letter in wanted if letter in axes)
    if order == tuple(range(len(axes))):
        return array
    return AxesView(array, order, _position(array.shape[axes.index("D")], record, key, path) if "D" in axes else 0)


def _position(depth: int, record: Record, key: str, path: Path | None) -> int:
    """Return where on its stored D axis a slice lies: the file holds the slice alone, or the whole scan."""
    if record.kind == "volume" or depth == 1:
        return 0
    if depth == record.scan_num_slices:
        return (record.slice_id or 1) - 1
    raise ReadError(
        f"{key}={record.extra[key]!r}, and the D axis has the size {depth}, but the file of a slice holds 1 slice, or "
        f"the {record.scan_num_slices} of its scan (scan_num_slices)",
        path,
    )


def _by(shape: tuple[int, ...]) -> str:
    return " x ".join(map(str, shape))


def _axes_hint(record: Record) -> str:
    if ("image_axes" in record.extra) != ("sem_seg_axes" in record.extra):
        given, missing = (
            ("image_axes", "sem_seg_axes") if "image_axes" in record.extra else ("sem_seg_axes", "image_axes")
        )
        return f". {given} is given, {missing} is not: they are separate"
    return ""
