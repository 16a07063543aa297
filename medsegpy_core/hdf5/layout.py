"""Locate the data of a dataset in its file with the HDF5 library, and verify the result against the file."""

from __future__ import annotations

import math
import os
from array import array
from collections.abc import Iterable, Sequence
from typing import TYPE_CHECKING, Any, Final, Literal

import numpy as np
from attrs import field, frozen

from medsegpy_core._util.stamps import Stamp
from medsegpy_core.errors import ReadError
from medsegpy_core.hdf5.byte_ranges import fill_buffer
from medsegpy_core.hdf5.dataset_info import Said, Vetted, vet, what_it_says
from medsegpy_core.hdf5.files import library_errors, open_dataset, open_file
from medsegpy_core.hdf5.filters import can_decode
from medsegpy_core.hdf5.headers import Headers

if TYPE_CHECKING:
    from medsegpy_core.typing import Array, Selection


# First element; offset and size in the file; mask of skipped filters.
_Chunk = tuple[tuple[int, ...], int, int, int]

# For more chunks than this, a table is not worth its memory: the library looks up each chunk.
_MAX_TABLE: Final = 1 << 18
_COMPARED_BYTES: Final = 4096
_COMPARED_CHUNKS: Final = 1 << 20  # bytes


def chunk_grid(vetted: Vetted) -> tuple[int, ...]:
    """Return the number of chunks along each axis."""
    return tuple(-(-n // c) for n, c in zip(vetted.shape, vetted.chunks or vetted.shape, strict=True))


def contiguous_offset(dataset: Any, vetted: Vetted, path: str, key: str, compare: bool = True) -> int | None:
    """Return the offset of contiguous data; -1: nothing was written; None: the library must read them.

    Args:
        dataset: The dataset.
        vetted: Its checked properties.
        path: The file.
        key: Its path inside the file.
        compare: Whether to compare the first bytes with those that the library reads. If the library reports wrong
            offsets, it does so for all contiguous data of a file, so one comparison is enough.

    Raises:
        ReadError: The data exceed the file.
    """
    import h5py

    if dataset.get_storage_size() == 0:
        return -1  # check first: after a user block, HDF5 reports an offset even for unallocated data
    offset = dataset.get_offset()
    if offset is None:
        return None
    size = math.prod(vetted.shape) * vetted.dtype.itemsize
    end = os.stat(path).st_size  # noqa: PTH116
    if offset + size > end:
        raise ReadError(
            f"its {size:,} bytes start at {offset:,}, but the file ends at {end:,}: it is truncated", path, key
        )
    if not vetted.exact:
        return None
    if not compare:
        return int(offset)
    # Read the start of the first row with the library, and compare it with the bytes at the reported offset.
    count = max(1, min(vetted.shape[-1], _COMPARED_BYTES // vetted.dtype.itemsize))
    first = np.empty(count, vetted.dtype)
    space = dataset.get_space()
    space.select_hyperslab((0,) * len(vetted.shape), (*(1,) * (len(vetted.shape) - 1), count))
    dataset.read(h5py.h5s.create_simple((count,)), space, first, h5py.h5t.py_create(vetted.dtype))
    return int(offset) if _same(path, int(offset), first.view(np.uint8)) else None


def find_chunks(dataset: Any, vetted: Vetted, path: str, key: str) -> array[int] | None:
    """Return offset, stored size and filter mask of each chunk in C order; None: the library must read them.

    Raises:
        ReadError: The chunk index contradicts itself, or refers to data beyond the end of the file.
    """
    grid = chunk_grid(vetted)
    count = math.prod(grid)
    found = _listed(dataset, min(count, _MAX_TABLE), path, key)
    numbers = [_number(chunk[0], vetted, grid) for chunk in found]
    # Also check datasets that the library must read: it crashes if an index contradicts the shape.
    if None in numbers or len(found) > count or (len(found) < count and _index_is_short(dataset, vetted, path)):
        raise ReadError("its chunk index contradicts its shape: the file is damaged", path, key)
    if not vetted.exact or count > _MAX_TABLE or not can_decode(vetted.filters, vetted.dtype.itemsize):
        return None
    for at, offset, size, _ in _sample(found):
        if not _same(path, offset, stored_chunk(dataset, at, size)[1]):
            return None
    table = array("Q", bytes(24 * count))
    for number, (_, *where) in zip(numbers, found, strict=True):
        if number is not None:
            table[3 * number : 3 * number + 3] = array("Q", where)
    return table


def _listed(dataset: Any, most: int, path: str, key: str) -> list[_Chunk]:
    """Return the chunks in the index, at most `most` + 1; checks that all of them are inside the file."""
    found: list[_Chunk] = []

    def note(info: Any) -> bool | None:
        found.append((info.chunk_offset, info.byte_offset, info.size, info.filter_mask))
        return True if len(found) > most else None

    with library_errors(path, key):
        dataset.chunk_iter(note)
    end = os.stat(path).st_size  # noqa: PTH116
    for _, offset, size, _ in found:
        if not (offset and size):  # in our table, 0 means a chunk that was never written
            raise ReadError("its index lists a chunk without an offset or with 0 bytes: the file is damaged", path, key)
        if offset + size > end:
            raise ReadError(f"a chunk is beyond the end of the file ({end:,} bytes): it is truncated", path, key)
    return found


def _index_is_short(dataset: Any, vetted: Vetted, path: str) -> bool:
    """Return whether the chunk index has room for fewer chunks than the shape needs."""
    import h5py

    most = dataset.get_space().get_simple_extent_dims(True)
    if any(n is None or n >= h5py.h5s.UNLIMITED for n in most):
        return False  # the library checks other kinds of index itself
    user_block = h5py.h5i.get_file_id(dataset).get_create_plist().get_userblock()
    with Headers(path, user_block) as headers:
        room = headers.fixed_array_entries(h5py.h5o.get_info(dataset).addr)
    return room is not None and room < math.prod(-(-n // c) for n, c in zip(most, vetted.chunks or (), strict=True))


def _number(corner: tuple[int, ...], vetted: Vetted, grid: tuple[int, ...]) -> int | None:
    """Return the number, in C order, of the chunk that starts at `corner`; None if there is none."""
    number = 0
    for at, size, blocks in zip(corner, vetted.chunks or (), grid, strict=True):
        i, rest = divmod(at, size)
        if rest or not 0 <= i < blocks:
            return None
        number = number * blocks + i
    return number


def _sample(found: list[_Chunk]) -> list[_Chunk]:
    """Return the chunks to compare with what the library reads: all, up to some bytes.

    Some versions of the library list wrong offsets. With a damaged index, the library may not find chunks that it
    lists, or find them beyond its end of the file.
    """
    if not found:
        return []
    # Always include both ends of the index, and the chunk closest to the end of the file.
    chosen = [found[0], max(found, key=lambda chunk: chunk[1] + chunk[2]), found[-1]]
    size = sum(chunk[2] for chunk in chosen)
    for chunk in found:
        size += chunk[2]
        if size > _COMPARED_CHUNKS:
            break
        chosen.append(chunk)
    return list({chunk[0]: chunk for chunk in chosen}.values())


def stored_chunk(dataset: Any, corner: tuple[int, ...], size: int) -> tuple[int, Array]:
    """Return filter mask and stored bytes of a chunk, as the library reads them.

    Args:
        dataset: The dataset.
        corner: The first element of the chunk.
        size: The stored size in the chunk index. The library may report another size, but then fill as many bytes as
            the index declares.
    """
    # The buffer must be large enough for either size.
    space = np.empty(
        max(size, dataset.get_type().get_size() * math.prod(dataset.get_create_plist().get_chunk())), np.uint8
    )
    mask, _ = dataset.read_direct_chunk(corner, out=space)
    return mask, space[:size]


def _same(path: str, offset: int, expected: Array) -> bool:
    """Return whether a file has these bytes at this offset; some versions of the library report wrong offsets."""
    fd = os.open(path, os.O_RDONLY | getattr(os, "O_CLOEXEC", 0))
    try:
        found = np.empty(len(expected), np.uint8)
        fill_buffer(fd, offset, found)
    except ReadError:
        return False
    finally:
        os.close(fd)
    return np.array_equal(found, expected)


_MAX_FORMS: Final = 4096
_MOST_TABLES: Final = 16 << 20  # bytes
_MOST_FAILURES: Final = 8

Route = Literal["ranges", "library"]


@frozen(eq=False, weakref_slot=False)
class Form:
    """Properties that many datasets share.

    Attributes:
        vetted: Shape, type, chunks and filters.
        dtype: The type of the elements, in native byte order.
        said: The metadata from the attributes.
        route: How to read the data: by byte ranges, or through the library.
    """

    vetted: Vetted
    said: Said
    route: Route
    dtype: np.dtype[Any] = field(init=False)

    def __attrs_post_init__(self) -> None:
        object.__setattr__(self, "dtype", self.vetted.dtype.newbyteorder("="))


@frozen(eq=False, weakref_slot=False)
class Layout:
    """The location of a dataset in one version of a file.

    Attributes:
        form: The properties that it may share with others.
        key: Its path inside the file.
        stamp: The stamp of the file.
        offset: The offset of contiguous data; -1: nothing was written, all elements have the fill value.
        table: Offset, stored size and filter mask of each chunk, in C order; size 0: not written.
        settled: Whether `stamp` identifies the content. If not, because the file was young (see `is_young`), the layout
            is valid for one read, which a second read must confirm.
    """

    form: Form
    key: str
    stamp: Stamp
    offset: int = -1
    table: array[int] | None = None
    settled: bool = True

    def block(self, selection: Selection) -> tuple[int, list[int], tuple[int, ...]] | None:
        """Find the uncompressed array in the file that contains a box: all data, or one chunk.

        Returns:
            The offset of the array, the start of the box in it, and its shape; None if there is no such array.
        """
        vetted = self.form.vetted
        starts = [part.start for part in selection]
        if self.table is None or vetted.chunks is None:
            return (self.offset, starts, vetted.shape) if self.offset >= 0 and self.form.route == "ranges" else None
        if vetted.filters:
            return None
        number = 0
        for i, (part, size, chunk) in enumerate(zip(selection, vetted.shape, vetted.chunks, strict=True)):
            place, starts[i] = divmod(part.start, chunk)
            if part.stop > (place + 1) * chunk:
                return None
            number = number * -(-size // chunk) + place
        offset, stored, _ = self.table[3 * number : 3 * number + 3]
        whole = stored == math.prod(vetted.chunks) * vetted.dtype.itemsize
        return (offset, starts, vetted.chunks) if whole else None


_forms: dict[tuple[Vetted, Said, Route], Form] = {}


def look(path: str, keys: Sequence[str], stamp: Stamp) -> Layout:
    """Locate the data of a dataset with the library.

    Args:
        path: The file.
        keys: Alternative paths inside the file; the first that exists is used.
        stamp: The stamp of the file.

    Raises:
        ReadError: The dataset is missing, damaged, or not supported.
    """
    with open_file(path) as file:
        return _look_into(file, path, keys, stamp)


def _look_into(file: Any, path: str, keys: Sequence[str], stamp: Stamp, compare: bool = True) -> Layout:
    dataset, key = open_dataset(file, path, keys)
    vetted = vet(dataset, path, key)
    said = what_it_says(file, dataset, vetted, path, key)
    if vetted.chunks is not None:
        table = find_chunks(dataset, vetted, path, key)
        return Layout(_form(vetted, said, "library" if table is None else "ranges"), key, stamp, -1, table)
    offset = None if vetted.compact else contiguous_offset(dataset, vetted, path, key, compare)
    if offset is None:
        return Layout(_form(vetted, said, "library"), key, stamp)
    return Layout(_form(vetted, said, "ranges"), key, stamp, offset)


def look_at_all(path: str, wanted: Iterable[Sequence[str]], stamp: Stamp) -> list[tuple[Sequence[str], Layout]]:
    """Locate those of several datasets that can be read, up to an amount of memory; see `look`."""
    found = []
    size, failures, compared = 0, 0, False
    with open_file(path) as file:
        for keys in wanted:
            try:
                with library_errors(path):
                    layout = _look_into(file, path, keys, stamp, not compared)
            except ReadError:
                failures += 1  # each may list the whole file
            else:
                found.append((keys, layout))
                compared = compared or (layout.offset >= 0 and layout.form.route == "ranges")
                size += 0 if layout.table is None else layout.table.itemsize * len(layout.table)
            if size > _MOST_TABLES or failures > _MOST_FAILURES:
                break
    return found


def with_common_form(found: Layout) -> Layout:
    """Return a layout that shares its form with other layouts of this process."""
    form = _form(found.form.vetted, found.form.said, found.form.route)
    return Layout(form, found.key, found.stamp, found.offset, found.table)


def _form(vetted: Vetted, said: Said, route: Route) -> Form:
    if len(_forms) > _MAX_FORMS:
        _forms.clear()
    return _forms.setdefault((vetted, said, route), Form(vetted, said, route))
