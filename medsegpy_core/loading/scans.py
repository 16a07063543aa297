"""Scans: one volume, or the slices that belong together; and how records are opened."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Iterator, Sequence
from contextlib import AbstractContextManager, contextmanager
from pathlib import Path
from typing import Any, Final

from attrs import field, frozen

from medsegpy_core.data.records import Record, ScanKey
from medsegpy_core.datasets import declared_categories, geometry_check
from medsegpy_core.errors import ReadError
from medsegpy_core.hdf5.options import DEFAULT_ACCESS, Access, accessing, current_access
from medsegpy_core.reading.canonical_scan import CanonicalScan, GeometryCheck, open_record
from medsegpy_core.reading.readers import find_reader, names_key, reader_by_name
from medsegpy_core.typing import CategoryId, PreparingReader, Reader

# (dataset, reader, suffix or file, for a file: whether the record names its array)
_ReaderKey = tuple[str, str | None, str, bool | None]

# Most opened records to keep; each takes half a kilobyte.
_KEPT_SCANS: Final = 1 << 16


@frozen
class Scan:
    """One scan: a volume, or slices in the order of their numbers.

    Attributes:
        key: (dataset, scan_id, augmentation).
        records: One record for a volume, else the existing slices, by slice_id.
        positions: The position of each record in the list that was grouped.
    """

    key: ScanKey
    records: tuple[Record, ...]
    positions: tuple[int, ...]

    @property
    def is_volume(self) -> bool:
        """Whether the scan is one volume."""
        return self.records[0].kind == "volume"

    @property
    def missing(self) -> list[int]:
        """The numbers of the missing slices."""
        if self.is_volume:
            return []
        present = {record.slice_id for record in self.records}
        return [i for i in range(1, (self.records[0].scan_num_slices or 0) + 1) if i not in present]

    @property
    def labelled(self) -> bool:
        """Whether every record of the scan has a mask."""
        return all(record.labelled for record in self.records)

    @property
    def inputs(self) -> dict[str, Any]:
        """The scan's id, subject, time point and all ``scan_*`` keys, as evaluators get them."""
        first = self.records[0]
        return {
            # If the slices of a scan differ, the first one decides.
            **{key: value for record in reversed(self.records) for key, value in record.scan.items()},
            "scan_id": first.scan_id,
            "subject_id": first.subject_id,
            "time_point": first.time_point,
        }


def group_scans(records: Sequence[Record]) -> list[Scan]:
    """Group records into scans, in the order of each scan's first record."""
    groups: dict[ScanKey, list[tuple[int, int]]] = {}
    for position, record in enumerate(records):
        groups.setdefault(record.scan_key, []).append((record.slice_id or 0, position))
    scans = []
    for key, members in groups.items():
        positions = tuple([position for _, position in sorted(members)])
        scans.append(Scan(key, tuple([records[position] for position in positions]), positions))
    return scans


@frozen
class Opener:
    """Opens records with readers that were looked up once. Another process needs no registered datasets to use it."""

    readers: dict[_ReaderKey, Reader]
    category_ids: dict[str, tuple[CategoryId, ...] | None]
    access: Access = DEFAULT_ACCESS
    geometry: GeometryCheck = field(factory=GeometryCheck, eq=False)
    follows: bool = False  # whether the `accessing` of the reading thread applies
    _kept: _KeptScans = field(factory=lambda: _KeptScans(), eq=False, repr=False)  # noqa: PLW0108 -- defined below

    @classmethod
    def of(
        cls,
        records: Sequence[Record],
        access: Access | None = None,
        report: Callable[[str, str, Path], None] | None = None,
    ) -> Opener:
        """Look up the readers of all records, and what the readers need.

        Args:
            records: The records.
            access: How to read files; None: as the current `accessing` sets it, or, if none is active, as the
                `accessing` that is active when a file is read.
            report: Receives contradictions, see `GeometryCheck`.
        """
        follows = access is None and current_access() == DEFAULT_ACCESS
        access = current_access() if access is None else access
        by_name: dict[_ReaderKey, Reader | None] = {}
        by_content: dict[_ReaderKey, Reader] = {}
        with accessing(access):  # a reader may have to open a file to recognize it
            for record in records:
                key = _reader_key(record)
                if key not in by_name:
                    by_name[key] = reader_by_name(record)
                if by_name[key] is None and (file := _file_key(record)) not in by_content:
                    by_content[file] = find_reader(record)
        readers = {**by_content, **{key: reader for key, reader in by_name.items() if reader is not None}}
        datasets = {record.dataset for record in records}
        geometry = geometry_check(datasets, report)
        return cls(readers, {name: declared_categories(name) for name in datasets}, access, geometry, follows)

    def prepare(self, records: Iterable[Record]) -> None:
        """Let readers prepare the files of many records before they are opened, see `PreparingReader`."""
        chosen: dict[int, tuple[Reader, list[Record]]] = {}
        for record in records:
            reader = self._reader(record)
            chosen.setdefault(id(reader), (reader, []))[1].append(record)
        with accessing(self.access):
            for reader, own in chosen.values():
                if isinstance(reader, PreparingReader):
                    reader.prepare(own)

    def open(self, record: Record) -> AbstractContextManager[CanonicalScan]:
        """Open a record. `access` applies to reads of its arrays in this thread while it is open."""
        here = current_access()
        as_here = self.follows or here is self.access or here == self.access
        return self._open(record) if as_here else self._open_accessing(record)

    def opened(self, record: Record) -> CanonicalScan | None:
        """Return the arrays of a record if they keep no file open; None: they do, so open the record for each read.

        Raises:
            ReadError: The record cannot be opened.
        """
        kept = self._kept.get(record)
        if kept is not None:
            return kept
        reader = self._reader(record)
        if reader.name in self._kept.attached:
            return None
        with self.open(record) as opened:
            if opened.detached:
                return opened
        self._kept.attached.add(reader.name)
        return None

    def forget(self, records: Iterable[Record]) -> None:
        """Drop what is kept of these records; the next read opens them again."""
        for record in records:
            self._kept.drop(record)

    def _reader(self, record: Record) -> Reader:
        return self.readers.get(_reader_key(record)) or self.readers[_file_key(record)]

    def _open(self, record: Record) -> AbstractContextManager[CanonicalScan]:
        kept = self._kept.get(record)
        return self._open_fresh(record) if kept is None else _Held(record, kept)

    @contextmanager
    def _open_fresh(self, record: Record) -> Iterator[CanonicalScan]:
        category_ids = self.category_ids[record.dataset]
        with open_record(record, self._reader(record), category_ids, self.geometry) as opened:
            if opened.detached:
                self._kept.put(record, opened)
            yield opened

    @contextmanager
    def _open_accessing(self, record: Record) -> Iterator[CanonicalScan]:
        with accessing(self.access), self._open(record) as opened:
            yield opened


class _Held:
    """The context of a kept record. It adds the element to errors, as `open_record` does."""

    __slots__ = ("_opened", "_record")

    def __init__(self, record: Record, opened: CanonicalScan) -> None:
        self._record = record
        self._opened = opened

    def __enter__(self) -> CanonicalScan:
        return self._opened

    def __exit__(self, _kind: object, error: BaseException | None, _traceback: object) -> None:
        if isinstance(error, ReadError):
            error.element = error.element or self._record.where()


class _KeptScans:
    """A limited number of opened records whose arrays keep no file open. They are not pickled.

    Thread-safe without a lock: each operation on the dict is atomic, and at worst a record is opened twice.

    Attributes:
        attached: The readers whose arrays keep files open.
    """

    def __init__(self) -> None:
        self.attached: set[str] = set()
        self._scans: dict[int, tuple[Record, CanonicalScan]] = {}

    def __reduce__(self) -> tuple[type[_KeptScans], tuple[()]]:
        return type(self), ()

    def get(self, record: Record) -> CanonicalScan | None:
        kept = self._scans.get(id(record))
        # A new record may have the id() of one that was deleted.
        return kept[1] if kept is not None and kept[0] is record else None

    def drop(self, record: Record) -> None:
        self._scans.pop(id(record), None)

    def put(self, record: Record, opened: CanonicalScan) -> None:
        if len(self._scans) >= _KEPT_SCANS:
            self._scans.clear()
        self._scans[id(record)] = (record, opened)


def _reader_key(record: Record) -> _ReaderKey:
    # Two suffixes, for ".nii.gz".
    return record.dataset, record.reader, ".".join(record.file_name.name.rsplit(".", 2)[1:]), None


def _file_key(record: Record) -> _ReaderKey:
    return record.dataset, record.reader, str(record.file_name), names_key(record)
