"""The lazy arrays of a record, with axes in canonical order, and checked against each other."""

from __future__ import annotations

import warnings
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import ExitStack, contextmanager
from functools import partial
from pathlib import Path
from typing import Any

from attrs import define, field, frozen

from medsegpy_core.data.geometry import (
    ERROR_VOXELS,
    WARNING_VOXELS,
    Grid,
    corner_offset,
    describe,
    same_spacing,
    stated,
)
from medsegpy_core.data.records import Record
from medsegpy_core.errors import DataWarning, GeometryError, MedSegPyError, ReadError
from medsegpy_core.reading.foreign_files import foreign_kind
from medsegpy_core.reading.lazy_arrays import AxesView
from medsegpy_core.reading.masks import AnnotatedView, LabelMapView, Labels, annotated_channels
from medsegpy_core.text import by
from medsegpy_core.typing import (
    CategoryId,
    LazyArray,
    OpenScan,
    Reader,
)


@frozen
class CanonicalScan:
    """The arrays of one slice or volume.

    Attributes:
        image: H x W for a slice, H x W x D for a volume; plus a last axis K if there are several channels.
        mask: H x W [x D] x C, with 0 and 1, and 255 for unknown; None: unlabelled.
        metadata: The metadata stated by the file, such as ``spacing`` and ``affine``, for the axes H, W, D.
        detached: Whether the arrays may be used after the context has ended; see `OpenScan`.
    """

    image: LazyArray
    mask: LazyArray | None
    metadata: Mapping[str, Any] = field(factory=dict)
    detached: bool = False


@contextmanager
def open_record(
    record: Record,
    reader: Reader,
    category_ids: Sequence[CategoryId] | None = None,
    geometry: GeometryCheck | None = None,
) -> Iterator[CanonicalScan]:
    """Open a record with a given reader.

    Args:
        record: The record.
        reader: Its reader.
        category_ids: The result of `declared_categories` for its dataset.
        geometry: Compares the geometry in files; None: a new check without metadata.
    """
    try:
        with ExitStack() as stack:
            scan = _entered(stack, reader, record)
            yield canonical(scan, record, category_ids, geometry or GeometryCheck())
    except ReadError as error:
        # Also catches errors while data are read. The reader knows the file, but not the element of the dataset.
        error.element = error.element or record.where()
        raise


def _entered(stack: ExitStack, reader: Reader, record: Record) -> OpenScan:
    """Open with a reader. Any exception in the reader becomes a `ReadError`."""
    try:
        return stack.enter_context(reader.open(record))
    except Exception as error:
        for file in (record.file_name, record.sem_seg_file):
            kind = None if file is None else foreign_kind(file)
            if kind is not None and kind not in str(error):
                raise ReadError(f"this is {kind}", file) from error
        if isinstance(error, MedSegPyError):
            raise
        found = f"{type(error).__name__}: {error}"
        raise ReadError(f"reader {reader.name!r} cannot open it ({found})", record.file_name) from error


def canonical(
    scan: OpenScan,
    record: Record,
    category_ids: Sequence[CategoryId] | None,
    geometry: GeometryCheck | None = None,
) -> CanonicalScan:
    """Bring the arrays of a reader into canonical axis order, and check that image and mask fit together.

    Raises:
        ReadError: They do not fit.
        GeometryError: Image and mask have different grids.
    """
    geometry = geometry or GeometryCheck()
    spatial = 2 if record.kind == "slice" else 3
    detached = _optional(scan, "detached", False) is True
    image = _image(scan.image, record, spatial)
    depth = image.shape[2] if record.kind == "volume" else record.scan_num_slices or 1
    metadata = geometry.image(scan, record, depth)
    if scan.mask is None:
        return CanonicalScan(image, None, metadata, detached)
    mask = _mask(scan.mask, record, spatial, category_ids, geometry)
    # Of a label map, only the spatial shape: its number of channels may need reading the whole mask.
    size = (mask.array if isinstance(mask, LabelMapView) else mask).shape[:spatial]
    if image.shape[:spatial] != size:
        raise ReadError(
            f"the mask is {by(size)}, but the image in {record.file_name} is "
            f"{by(image.shape[:spatial])}{_axes_hint(record)}",
            record.sem_seg_file,
        )
    geometry.compare((*image.shape[:2], depth), metadata, _optional(scan, "mask_metadata", {}), record)
    return CanonicalScan(image, mask, metadata, detached)


def _optional(scan: OpenScan, name: str, default: Any) -> Any:
    """Return an optional attribute of an `OpenScan`. An isinstance check of the protocol takes 20 microseconds."""
    return getattr(scan, name, default)


@define(eq=False)
class GeometryCheck:
    """Compares the geometry stated by files and by metadata.

    Each kind of contradiction is reported once per dataset, in a `DataWarning` that names the first file.

    Attributes:
        spacings: The spacing in the metadata of each dataset that has one.
        report: If given, called with kind, message and file of each contradiction; no `GeometryError` is raised then.
    """

    spacings: Mapping[str, Sequence[float]] = field(factory=dict)
    report: Callable[[str, str, Path], None] | None = None
    _warned: set[tuple[str, str]] = field(factory=set)

    def image(self, scan: OpenScan, record: Record, depth: int) -> dict[str, Any]:
        """Return the metadata of an image file, normalized, and report contradictions within it or with the metadata.

        Args:
            scan: The scan opened by a reader.
            record: Its record.
            depth: The depth of the scan. For a single slice, a spacing may have values for H and W only.
        """
        metadata, contradiction = stated(scan.metadata, (2, 3) if depth == 1 else (3,))
        contradictions = (*([] if contradiction is None else [contradiction]), *_optional(scan, "contradictions", ()))
        for message in contradictions:
            self.tell("itself", record, record.file_name, f"the file contradicts itself: {message}")
        spacing, known = metadata.get("spacing"), self.spacings.get(record.dataset)
        # The dict's value is meant to override the file's.
        if spacing is None or known is None or len(known) != len(spacing) or "scan_spacing" in record.scan:
            return metadata
        if not same_spacing(known, spacing):
            here, there = (by(sizes, digits=5) for sizes in (spacing, known))
            text = f"the file states a spacing of {here} mm, which is used, but the metadata state {there} mm"
            self.tell("metadata", record, record.file_name, text)
        return metadata

    def compare(self, shape: Sequence[int], image: Mapping[str, Any], mask: Mapping[str, Any], record: Record) -> None:
        """Compare the grids of image and mask, unless the dict or the metadata have `trust_geometry`.

        Args:
            shape: H, W and the depth of the scan, the same for both.
            image: The geometry stated for the image.
            mask: The geometry stated for the mask.
            record: Their record.

        Raises:
            GeometryError: A corner of the mask is more than half a voxel off.
        """
        if not mask or record.extra.get("trust_geometry") is True:
            return
        path = record.sem_seg_file or record.file_name
        if (contradiction := stated(mask)[1]) is not None:
            self.tell("itself", record, path, f"the file contradicts itself: {contradiction}")
        grids = Grid.of(shape, image), Grid.of(shape, mask)
        offset = corner_offset(*grids)
        if offset is None or offset <= WARNING_VOXELS:
            return
        text = (
            f"the mask does not lie where its image does: it is up to {offset:.3g} voxels off. Image "
            f"({record.file_name}): {describe(grids[0])}. Mask: {describe(grids[1])}. If the voxels are right and the "
            "stated geometry is wrong, set trust_geometry=True in the dict or the metadata"
        )
        if offset > ERROR_VOXELS and self.report is None:
            raise GeometryError(text, path)
        self.tell("mask", record, path, text)

    def tell(self, kind: str, record: Record, path: Path, text: str) -> None:
        """Report a contradiction, once per dataset and kind."""
        if self.report is not None:
            self.report(kind, text, path)
        elif (record.dataset, kind) not in self._warned:
            self._warned.add((record.dataset, kind))
            more = " Other files of this dataset may have the same problem; `medsegpy datasets check` lists them."
            warnings.warn(f"{path}: {text} ({record.where()}).{more}", DataWarning, stacklevel=3)


def _image(array: LazyArray, record: Record, spatial: int) -> LazyArray:
    rank = len(array.shape)
    several = isinstance(record.image_key, tuple)
    axes = record.extra.get("image_axes")
    if axes is None:
        if rank != spatial + several:
            raise ReadError(
                f"the image of a {record.kind} has {spatial + several} axes, found {by(array.shape)}. If the file "
                "has another layout, declare it: image_axes='HWDC' in the dict or the metadata (H, W, D spatial, C "
                "channels)",
                record.file_name,
            )
        return array
    return _reordered(array, axes + "C" if several and "C" not in axes else axes, record, "image_axes")


def _mask(
    array: LazyArray, record: Record, spatial: int, category_ids: Sequence[CategoryId] | None, geometry: GeometryCheck
) -> LazyArray:
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
            f"{expected}, found {by(array.shape)}. If the file has another layout, declare it: sem_seg_axes='CHWD' in "
            "the dict or the metadata",
            path,
        )
    if label_map:
        flat = array if rank == spatial else AxesView(array, tuple(range(spatial)))
        labels = Labels.of(record, category_ids)
        return LabelMapView(flat, labels, path, partial(geometry.tell, "labels", record, path))
    mask = array if rank > spatial else AxesView(array, (*range(spatial), None))
    annotated = annotated_channels(record)
    return mask if annotated is None else AnnotatedView(mask, annotated, path)


def _reordered(array: LazyArray, axes: str, record: Record, key: str) -> LazyArray:
    path = record.file_name if key == "image_axes" else record.sem_seg_file
    if len(array.shape) != len(axes):
        raise ReadError(f"{key}={axes!r} names {len(axes)} axes, but the array is {by(array.shape)}", path)
    if record.kind == "volume" and "D" not in axes:
        raise ReadError(f"{key}={axes!r}, but a volume has a D axis: one of those of {by(array.shape)}", path)
    wanted = "HWC" if record.kind == "slice" else "HWDC"
    order = tuple(axes.index(letter) for letter in wanted if letter in axes)
    if order == tuple(range(len(axes))):
        return array
    return AxesView(array, order, _position(array.shape[axes.index("D")], record, key, path) if "D" in axes else 0)


def _position(depth: int, record: Record, key: str, path: Path | None) -> int:
    """Return the position of a slice on the stored D axis: the file has this slice only, or the whole scan."""
    if record.kind == "volume" or depth == 1:
        return 0
    if depth == record.scan_num_slices:
        return (record.slice_id or 1) - 1
    raise ReadError(
        f"{key}={record.extra[key]!r}, and the D axis has the size {depth}, but the file of a slice holds 1 slice, or "
        f"the {record.scan_num_slices} of its scan (scan_num_slices)",
        path,
    )


def _axes_hint(record: Record) -> str:
    if ("image_axes" in record.extra) != ("sem_seg_axes" in record.extra):
        given, missing = (
            ("image_axes", "sem_seg_axes") if "image_axes" in record.extra else ("sem_seg_axes", "image_axes")
        )
        return f". {given} is given, {missing} is not: they are separate"
    return ""
