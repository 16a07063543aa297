"""Route each request about a file: locate data, read data, list contents.

Data are read by byte ranges if they can be located, else through the HDF5 library. This is the only module that chooses
whether the library works in this process or, with `Access(isolate=True)`, in the helper process.
"""

from __future__ import annotations

import itertools
import math
import os
import shlex
import threading
import time
from collections.abc import Iterable, Sequence
from contextlib import suppress
from pathlib import Path
from typing import TYPE_CHECKING, Any, Final

import numpy as np
from attrs import evolve

from medsegpy_core._util.stamps import Stamp, is_young, stamp_of, wait_for_write
from medsegpy_core.errors import ReadError
from medsegpy_core.hdf5.byte_ranges import read_contiguous
from medsegpy_core.hdf5.chunks import fill_value, read_chunked
from medsegpy_core.hdf5.costs import current_costs
from medsegpy_core.hdf5.dataset_info import Vetted, uses_szip, vet
from medsegpy_core.hdf5.extents import SMALLEST_MAP, kept_map, map_file
from medsegpy_core.hdf5.files import open_dataset, open_file, regular_file
from medsegpy_core.hdf5.filters import FILTERS, DecodeError, check_size
from medsegpy_core.hdf5.layout import Layout, look, look_at_all, stored_chunk, with_common_form
from medsegpy_core.hdf5.options import current_access
from medsegpy_core.hdf5.probe import is_hdf5, list_groups, list_names

if TYPE_CHECKING:
    from types import ModuleType

    from medsegpy_core.typing import Array, Selection


def read_box(path: str, layout: Layout, selection: Selection) -> Array:
    """Read a box of a dataset as a new array in its own type, native byte order; booleans as uint8.

    Raises:
        ReadError: It cannot be read, a chunk does not decode to its size, or the dataset has changed.
    """
    import h5py

    try:
        box = np.empty([s.stop - s.start for s in selection], layout.form.dtype)
    except MemoryError as error:
        raise ReadError("there is not enough memory to read it") from error
    with open_file(path) as file:
        dataset, key = open_dataset(file, path, (layout.key,))
        vetted = vet(dataset, path, key)
        if vetted != layout.form.vetted:
            raise ReadError("the file changed while it was read", path, key)
        if vetted.chunks is not None:
            _check_chunks(dataset, vetted, selection, os.stat(path).st_size)  # noqa: PTH116
        space = dataset.get_space()
        space.select_hyperslab(tuple(s.start for s in selection), box.shape)
        memory = h5py.h5s.create_simple((math.prod(box.shape),))
        dataset.read(memory, space, box, h5py.h5t.py_create(box.dtype))
    return box.view(np.uint8) if box.dtype.kind == "b" else box


def _check_chunks(dataset: Any, vetted: Vetted, selection: Selection, end: int) -> None:
    """Check that the chunks of a box decode to their size, because the library does not check it."""
    chunks = vetted.chunks or vetted.shape
    # Use the size of stored elements, which may differ from NumPy's.
    size = math.prod(chunks) * dataset.get_type().get_size()
    touched = (range(s.start // c, -(-s.stop // c)) for s, c in zip(selection, chunks, strict=True))
    for position in itertools.product(*touched):
        corner = tuple(i * c for i, c in zip(position, chunks, strict=True))
        info = dataset.get_chunk_info_by_coord(corner)
        if info.byte_offset is None:
            if not vetted.fill:
                raise ReadError("a part of it was never written, and the file has no fill value")
            continue  # fill values
        if info.byte_offset + info.size > end:
            raise ReadError(f"the chunk at {corner} is beyond the end of the file ({end:,} bytes): it is truncated")
        mask, stored = stored_chunk(dataset, corner, info.size)
        try:
            check_size(stored, vetted.filters, mask, size)
        except DecodeError as error:
            raise ReadError(f"the chunk at {corner}: {error}") from error


_ATTEMPTS: Final = 3
_GENERATION_BYTES: Final = 64 << 20
_SMALL_LAYOUT_BYTES: Final = 320
_ASKED_AT_ONCE: Final = 256


class _Remembered:
    """A bounded cache of layouts in two generations: a layout that is not used for a generation is dropped.

    Reading takes no lock. A fork waits for a writer, so that the child never inherits a held lock.
    """

    def __init__(self) -> None:
        self._young: dict[tuple[str, Sequence[str]], Layout] = {}
        self._old: dict[tuple[str, Sequence[str]], Layout] = {}
        self._weight = 0
        self._lock = threading.Lock()
        if hasattr(os, "register_at_fork"):
            lock = self._lock
            os.register_at_fork(before=lock.acquire, after_in_parent=lock.release, after_in_child=lock.release)

    def get(self, at: tuple[str, Sequence[str]]) -> Layout | None:
        layout = self._young.get(at)
        if layout is None and (layout := self._old.get(at)) is not None:
            self.put(at, layout)
        return layout

    def put(self, at: tuple[str, Sequence[str]], layout: Layout) -> None:
        weight = _SMALL_LAYOUT_BYTES + (len(layout.table) * layout.table.itemsize if layout.table is not None else 0)
        with self._lock:
            if weight > _GENERATION_BYTES:
                return
            if self._weight + weight > _GENERATION_BYTES:
                self._old, self._young, self._weight = self._young, {}, 0
            self._old.pop(at, None)
            self._young[at] = layout
            self._weight += weight


_remembered = _Remembered()


def locate(path: str, keys: Sequence[str]) -> Layout:
    """Locate the data of a dataset. The result is cached until the file changes.

    Args:
        path: The file.
        keys: Alternative paths inside the file, as a tuple; the first that exists is used.

    Raises:
        ReadError: The file or the dataset is missing, damaged, or not supported.
    """
    known = _remembered.get((path, keys))
    if known is not None and stamp_of(regular_file(path)) == known.stamp:
        return known
    for _ in range(_ATTEMPTS):
        regular_file(path)
        wait_for_write(path)
        status = regular_file(path)
        before, young = stamp_of(status), is_young(status)
        layout = _look(path, keys, before)
        after = stamp_of(regular_file(path))
        if not young and after == before == layout.stamp:
            _remembered.put((path, keys), layout)
            return layout
        if young and after.same_file(before) and layout.stamp.same_file(before):
            return evolve(layout, settled=False)
    raise ReadError("the file changes all the time; wait until it is complete", path, keys[0])


def locate_all(path: str, wanted: Iterable[Sequence[str]]) -> None:
    """Locate many datasets of a file, opening it once, and cache the results for `locate`.

    Errors and changes are left for `locate` to report.

    Args:
        path: The file.
        wanted: The keys of each dataset, as for `locate`.
    """
    with suppress(ReadError):
        regular_file(path)
        wait_for_write(path)
        status = regular_file(path)
        stamp = stamp_of(status)
        todo = [keys for keys in wanted if (known := _remembered.get((path, keys))) is None or known.stamp != stamp]
        if len(todo) < 2 or is_young(status):
            return
        found = _look_at_all(path, todo, stamp)
        if stamp_of(regular_file(path)) == stamp:
            for keys, layout in found:
                if layout.stamp == stamp:
                    _remembered.put((path, keys), layout)


def _look(path: str, keys: Sequence[str], stamp: Stamp) -> Layout:
    if current_access().isolate:
        return with_common_form(_isolation().locate_by_helper(path, keys))
    return look(path, keys, stamp)


def _look_at_all(path: str, wanted: Sequence[Sequence[str]], stamp: Stamp) -> list[tuple[Sequence[str], Layout]]:
    if not current_access().isolate:
        return look_at_all(path, wanted, stamp)
    found = []
    for first in range(0, len(wanted), _ASKED_AT_ONCE):
        answers = _isolation().locate_all_by_helper(path, wanted[first : first + _ASKED_AT_ONCE])
        found += [(keys, with_common_form(layout)) for keys, layout in answers]
    return found


def _isolation() -> ModuleType:
    """Return the module for the helper process, imported lazily because only it needs sockets and subprocesses."""
    from medsegpy_core.hdf5 import isolation

    return isolation


# Without O_NONBLOCK, opening a pipe that replaced the file would wait forever.
_FLAGS: Final = os.O_RDONLY | getattr(os, "O_CLOEXEC", 0) | getattr(os, "O_NONBLOCK", 0)


class StaleError(Exception):
    """The file has changed since it was located or since the read started; the data that were read are invalid."""


def refuse_szip(path: str, layout: Layout) -> None:
    """Reject data compressed with szip, unless `Access.szip` allows them.

    Raises:
        ReadError: They are not allowed.
    """
    if uses_szip(layout.form.vetted) and not current_access().szip:
        name, ending = os.path.splitext(path)  # noqa: PTH122
        command = f"h5repack -f GZIP=4 {shlex.quote(path)} {shlex.quote(f'{name}-gzip{ending}')}"
        raise ReadError(
            "it is compressed with szip; if such data are truncated, the HDF5 library returns wrong values without an "
            f"error. Compress it with gzip: {command}. Or, if you trust the file, read it with Access(szip=True)",
            path,
            layout.key,
        )


def read_located(path: str, layout: Layout, selection: Selection, out: Array) -> None:
    """Read a box without empty axes into `out`.

    Raises:
        StaleError: The file has changed since it was located, or while it was read.
        ReadError: The file cannot be read.
    """
    access = current_access()
    try:
        if layout.form.route == "library":
            refuse_szip(path, layout)
        if access.isolate and _needs_c_code(layout):
            _read_elsewhere(path, layout, selection, out)
        elif layout.form.route == "ranges":
            mapped = access.mmap and layout.settled
            if not (mapped and _read_map(path, layout, selection, out)):
                _read_ranges(path, layout, selection, out, mapped)
        else:
            _check(regular_file(path), layout)
            out[...] = _read_by_library(path, layout, selection)
            _check(regular_file(path), layout)
    except ReadError as error:
        if error.path is not None:
            raise
        raise ReadError(error.reason, path, layout.key) from error


def is_current(found: Stamp, located: Stamp, settled: bool) -> bool:
    """Return whether a file is unchanged since it was located.

    Args:
        found: The current stamp.
        located: The stamp when the file was located.
        settled: Whether the file was not young then. The stamp of a young file does not identify its content, so the
            caller compares two reads.
    """
    return found == located or (not settled and found.same_file(located))


def _check(status: os.stat_result, layout: Layout) -> None:
    if not is_current(stamp_of(status), layout.stamp, layout.settled):
        raise StaleError


def _read_from(file: int | Array, layout: Layout, selection: Selection, out: Array) -> None:
    """Read a box from an open file, or from its bytes if it is mapped."""
    vetted = layout.form.vetted
    if layout.table is not None:
        read_chunked(file, layout, selection, out)
    elif layout.offset < 0:
        out[...] = fill_value(vetted)
    else:
        read_contiguous(file, layout.offset, vetted.shape, vetted.raw, selection, out)


def _read_by_library(path: str, layout: Layout, selection: Selection) -> Array:
    costs = current_costs()
    if costs is None:
        return read_box(path, layout, selection)
    began = time.perf_counter()
    found = read_box(path, layout, selection)
    costs.add_read(time.perf_counter() - began, found.nbytes)
    return found


def _needs_c_code(layout: Layout) -> bool:
    """Return whether reading runs code that a file can crash: the library, or a filter of hdf5plugin."""
    return layout.form.route == "library" or any(FILTERS[number].foreign for number, _ in layout.form.vetted.filters)


def _read_elsewhere(path: str, layout: Layout, selection: Selection, out: Array) -> None:
    _check(regular_file(path), layout)
    if not _isolation().read_by_helper(path, layout, selection, out):
        raise StaleError
    _check(regular_file(path), layout)


def _read_map(path: str, layout: Layout, selection: Selection, out: Array) -> bool:
    """Read from a kept map; returns whether there is one."""
    found = kept_map(path, layout.stamp)
    if found is None:
        return False
    _check(regular_file(path), layout)
    _read_from(found.data, layout, selection, out)
    _check(regular_file(path), layout)
    return True


def _read_ranges(path: str, layout: Layout, selection: Selection, out: Array, mapped: bool) -> None:
    try:
        fd = os.open(path, _FLAGS)
    except OSError as error:
        regular_file(path)  # raises a better error, if it can
        raise ReadError(f"the file cannot be opened: {error.strerror}") from error
    try:
        status = os.fstat(fd)
        _check(status, layout)
        large = mapped and status.st_size >= SMALLEST_MAP
        found = map_file(path, fd, status.st_size, layout.stamp) if large else None
        _read_from(fd if found is None else found.data, layout, selection, out)
        _check(os.fstat(fd), layout)
    finally:
        os.close(fd)


def holds_dataset(path: str | Path, names: Iterable[str], in_groups: bool = False) -> bool:
    """Return whether an HDF5 file has a dataset with one of these names. Never raises for an existing file.

    Args:
        path: The file.
        names: Names of datasets at the root.
        in_groups: Whether to look into the groups at the root as well.
    """
    if not is_hdf5(path):
        return False
    try:
        root, groups = root_and_groups(os.fspath(path), in_groups)
    except ReadError:
        return False
    return any(name in root or any(name in group for group in groups.values()) for name in names)


def root_and_groups(path: str, into_groups: bool = True) -> tuple[list[str], dict[str, list[str]]]:
    """Return the names of the datasets at the root of a file, and in each group at the root, sorted.

    Only hard links are followed.

    Raises:
        ReadError: The file cannot be read.
    """
    if current_access().isolate:
        root, groups = _isolation().groups_by_helper(path, into_groups)
        return root, groups
    return list_groups(path, into_groups)


def names_in(path: str, keys: Sequence[str], attribute: str) -> tuple[str, ...] | None:
    """Return the names in an attribute of a dataset, such as those of its channels; None if there is no attribute.

    Args:
        path: The file.
        keys: Alternative paths of the dataset; the first that exists is used.
        attribute: The name of the attribute.

    Raises:
        ReadError: The file cannot be read, or the attribute is not a list of names.
    """
    if current_access().isolate:
        names: tuple[str, ...] | None = _isolation().names_by_helper(path, keys, attribute)
        return names
    return list_names(path, keys, attribute)
