"""Conformance checks for readers: arrays, partial reads, threads, processes, missing and damaged files."""

from __future__ import annotations

import pickle
import sys
import time
import tracemalloc
from collections.abc import Iterator, Mapping
from concurrent.futures import ThreadPoolExecutor
from contextlib import contextmanager
from pathlib import Path
from threading import Barrier
from types import FrameType
from typing import TYPE_CHECKING, Any, Final

from medsegpy_core.data.geometry import checked_affine, checked_spacing
from medsegpy_core.data.records import Record
from medsegpy_core.errors import PluginError, ReadError, RecordError
from medsegpy_core.plugins.kinds import check_reader
from medsegpy_core.reading.canonical_scan import open_record
from medsegpy_core.testing.example_files import (
    arrays_of,
    copied,
    digest,
    files_of,
    open_descriptors,
    read_digest,
    record_of,
)
from medsegpy_core.testing.outcome import CheckError, NotCheckableError, require
from medsegpy_core.testing.processes import in_fork, in_new_interpreter
from medsegpy_core.text import by, counted
from medsegpy_core.typing import LazyArray, ListingReader, OpenScan, Reader, Selection, StatesMaskGrid

if TYPE_CHECKING:
    import numpy as np

    from medsegpy_core.typing import Array


_SELECTIONS: Final = 40
_BOXES: Final = 10
_THREADS: Final = 8
_MOMENTS: Final = 300  # number of pauses of a thread in one read
_SECONDS: Final = 0.5  # time after which a thread starts no further read


def same(a: Array, b: Array) -> bool:
    """Return whether two arrays are equal in shape, type and every bit."""
    return a.shape == b.shape and a.dtype == b.dtype and a.tobytes() == b.tobytes()


def check_array(array: LazyArray, what: str, seed: int = 0) -> None:
    """Compare parts of a lazy array with the whole: shapes, types, slices of all kinds, `read_into`.

    Args:
        array: The array.
        what: The name of the array in messages.
        seed: Seed for the selections.

    Raises:
        CheckError: A part differs from that part of the whole.
    """
    import numpy as np

    rng = np.random.default_rng(seed)
    whole = array[...]
    _check_result(whole, array.shape, array, f"{what}[...]")
    for selection in _selections(array.shape, rng):
        shown = f"{what}[{_shown(selection)}]"
        expected = whole[selection]
        part = array[selection]
        _check_result(part, expected.shape, array, shown)
        require(same(part, np.asarray(expected)), f"{shown} differs from that part of {what}[...]")
    _check_independence(array, whole, what)
    if hasattr(array, "read_into"):
        for _ in range(_BOXES):
            _check_read_into(array, whole, _box(array.shape, rng), what)


def check_array_in_threads(array: LazyArray, what: str, seed: int = 0) -> None:
    """Check that eight threads that read parts at once get the same values as a single thread.

    Raises:
        CheckError: They get other values.
    """
    import numpy as np

    whole = array[...]
    barrier = Barrier(_THREADS)

    def read(number: int) -> str:
        rng = np.random.default_rng((seed, number))
        boxes = [_box(array.shape, rng) for _ in range(_BOXES)]
        barrier.wait()
        until = time.monotonic() + _SECONDS
        for box in boxes:
            with _hesitant(type(array).__module__.partition(".")[0]):
                part = array[box]
            if not same(part, np.ascontiguousarray(whole[box])):
                return f"{what}[{_shown(box)}]"
            if time.monotonic() > until:
                break
        return ""

    with ThreadPoolExecutor(_THREADS) as threads:
        wrong = [shown for shown in threads.map(read, range(_THREADS)) if shown]
    require(
        not wrong,
        f"{_THREADS} threads read at once, and {len(wrong)} got other values than one alone: {', '.join(wrong[:1])}. "
        "A file object has one position for all threads: open the file for each read, or use os.pread",
    )


@contextmanager
def _hesitant(package: str) -> Iterator[None]:
    """Pause this thread before each line of a package, so that other threads run between any two lines.

    Otherwise a race that is rare, as on a machine with few cores, would show in one run of many. Lines of other
    packages are not traced: some of Python's own (`ast` in 3.11) do not support it.
    """
    before = sys.gettrace()
    moments = iter(range(_MOMENTS))

    def hesitate(frame: FrameType, event: str, _argument: object) -> Any:
        if event == "line":
            if next(moments, None) is None:
                return None  # stop tracing this frame
            time.sleep(1e-6)
        elif str(frame.f_globals.get("__name__")).partition(".")[0] != package:
            return None
        return hesitate

    sys.settrace(hesitate)
    try:
        yield
    finally:
        sys.settrace(before)


def _check_result(part: Any, shape: tuple[int, ...], array: LazyArray, shown: str) -> None:
    import numpy as np

    require(isinstance(part, np.ndarray), f"{shown} is a {type(part).__name__}, expected a numpy.ndarray")
    require(type(part) is np.ndarray, f"{shown} is a {type(part).__name__}, a subclass: return a plain numpy.ndarray")
    require(part.shape == shape, f"{shown} has the shape {part.shape}, expected {shape}")
    require(part.dtype == array.dtype, f"{shown} has the type {part.dtype}, but the array's dtype is {array.dtype}")
    require(part.dtype.isnative, f"{shown} has the byte order {part.dtype.byteorder!r}, expected the machine's own")
    require(part.flags.c_contiguous, f"{shown} is not C-contiguous: return numpy.array(part, order='C')")


def _check_independence(array: LazyArray, whole: Array, what: str) -> None:
    again = array[...]
    if again.size:
        require(again.flags.writeable, f"{what}[...] is read-only, expected a new array")
        again[...] = 0
        require(same(array[...], whole), f"writing into {what}[...] changes later reads: return a new array")


def _check_read_into(array: LazyArray, whole: Array, box: Selection, what: str) -> None:
    import numpy as np

    expected = whole[box]
    for dtype in (array.dtype, np.dtype(np.float32), np.dtype(np.float64)):
        if not np.can_cast(array.dtype, dtype, casting="same_kind"):
            continue
        # A batch may look like this to a reader: every second element on the last axis, and reversed axes.
        guard = np.full((*expected.shape[:-1], 2 * expected.shape[-1]), 77, dtype)
        for out in (np.empty(expected.shape, dtype), guard[..., ::2], np.empty(expected.shape[::-1], dtype).T):
            array.read_into(box, out)  # type: ignore[attr-defined]
            shown = f"{what}.read_into({_shown(box)}, an array of {dtype} with strides {out.strides})"
            require(np.array_equal(out, expected.astype(dtype), equal_nan=dtype.kind == "f"), f"{shown} differs")
        require((guard[..., 1::2] == 77).all(), f"{what}.read_into({_shown(box)}, ...) writes outside its target")


def _selections(shape: tuple[int, ...], rng: np.random.Generator) -> Iterator[Any]:
    yield ()
    yield tuple(slice(0, 1) for _ in shape)
    yield tuple(n - 1 for n in shape)
    yield 0
    yield -1
    yield slice(shape[0] + 5, None)
    for _ in range(_SELECTIONS):
        items = [_item(n, rng) for n in shape]
        if rng.random() < 0.3:
            at = int(rng.integers(len(items) + 1))
            until = int(rng.integers(at, len(items) + 1))
            items[at:until] = [Ellipsis]
        elif rng.random() < 0.3:
            items = items[: int(rng.integers(1, len(items) + 1))]
        yield tuple(items)


def _item(size: int, rng: np.random.Generator) -> Any:
    kind = rng.integers(6)
    if kind == 0:
        return int(rng.integers(-size, size))
    if kind == 1:
        return slice(None)
    start, stop = sorted(int(n) for n in rng.integers(0, size + 1, 2))
    if kind == 2:
        return slice(start, stop, int(rng.integers(1, 4)))
    if kind == 3:
        return slice(start - size, None)
    return slice(start, stop)


def _box(shape: tuple[int, ...], rng: np.random.Generator) -> Selection:
    starts = [int(rng.integers(n)) for n in shape]
    return tuple(slice(a, int(rng.integers(a + 1, n + 1))) for a, n in zip(starts, shape, strict=True))


def _shown(selection: Any) -> str:
    items = selection if isinstance(selection, tuple) else (selection,)
    return ", ".join(map(_shown_item, items)) or "()"


def _shown_item(item: Any) -> str:
    if item is Ellipsis:
        return "..."
    if not isinstance(item, slice):
        return str(item)
    ends = ":".join("" if end is None else str(end) for end in (item.start, item.stop))
    return ends if item.step is None else f"{ends}:{item.step}"


_OTHER = b"This is a text, and no image of any format.\n" * 20


def check_missing_files(reader: Reader, record: Record, folder: Path) -> None:
    """Check that a missing image or mask, or a folder in its place, is a `ReadError` with its path.

    Args:
        reader: The reader.
        record: The record.
        folder: A new folder for copies.
    """
    for number, original in enumerate(files_of(record)):
        for state in ("a missing file", "a folder in place of a file"):
            copy = copied(record, folder / f"{number} {state}")
            path = files_of(copy)[number]
            if original.is_dir():
                continue
            path.unlink()
            if state != "a missing file":
                path.mkdir()
            _expect_read_error(reader, copy, path, state, None)


def check_truncated_files(reader: Reader, record: Record, folder: Path) -> None:
    """Check that a file that is truncated, empty, or of another format is a `ReadError` with its path.

    If the missing part holds no data, the correct values are accepted as well.

    Args:
        reader: The reader.
        record: The record.
        folder: A new folder for copies.
    """
    expected = read_digest(reader, record, canonical=True)
    for number, original in enumerate(files_of(record)):
        if original.is_dir():
            continue
        for size, content in _damaged(original.read_bytes()):
            copy = copied(record, folder / f"{number} {size}")
            path = files_of(copy)[number]
            path.write_bytes(content)
            _expect_read_error(reader, copy, path, size, expected)


def _damaged(content: bytes) -> Iterator[tuple[str, bytes]]:
    n = len(content)
    for size in sorted({0, min(10, n - 1), n // 4, n // 2, n - 1}):
        yield f"a file truncated to the first {size} of {n} bytes", content[:size]
    yield "a file with a text in it", _OTHER


def _expect_read_error(reader: Reader, record: Record, path: Path, what: str, expected: str | None) -> None:
    try:
        found = read_digest(reader, record, canonical=True)
    except ReadError as error:
        named = str(path) in str(error)
        require(named, f"{what} is a ReadError that does not name the file: {error}. Raise ReadError(reason, path)")
    except Exception as error:
        raise CheckError(f"{what} is a {type(error).__name__} ({error}), expected a ReadError") from error
    else:
        require(found == expected, f"{what} is read without an error, and gives other values")


def check_probe(reader: Reader, record: Record, folder: Path) -> None:
    """Check that `probe` recognizes the format by the first bytes, and never raises.

    Args:
        reader: The reader.
        record: The record; `probe` must recognize its image.
        folder: A new folder for files of other kinds.
    """
    require(
        reader.probe(record.file_name) is True, f"probe({record.file_name.name!r}) is not True, expected its own file"
    )
    folder.mkdir(parents=True)
    for name, content in (("empty", b""), ("text", _OTHER), ("zeros", bytes(1024))):
        path = folder / (name + (reader.suffixes or ("",))[0])
        path.write_bytes(content)
        try:
            claimed = reader.probe(path)
        except Exception as error:
            raise CheckError(f"probe() of a file with {name} raises {type(error).__name__}: {error}") from error
        require(claimed is False, f"probe() of a file with {name} is {claimed!r}, expected False")


def check_listing(reader: Reader, folder: Path) -> None:
    """Check that `scan` lists a folder the same way twice, without duplicates, and that the listed scans can be opened.

    Raises:
        CheckError: It does not.
        NotCheckableError: The reader has no method `scan`.
    """
    if not isinstance(reader, ListingReader):
        raise NotCheckableError("the reader has no method scan(root)")
    dicts = list(reader.scan(folder))
    require(dicts, f"scan({str(folder)!r}) lists nothing, but there are files of the format")
    require(dicts == list(reader.scan(folder)), "scan() returns a different list the second time")
    names = [Path(d["file_name"]).name for d in dicts]
    require(names == sorted(names), f"scan() does not sort by file name: {', '.join(names[:4])}, ...")
    relative = [d["file_name"] for d in dicts if not Path(d["file_name"]).is_absolute()]
    require(not relative, f"scan() returns relative paths, such as {relative[:1]}: expected absolute ones")
    seen: set[object] = set()
    for d in dicts:
        try:
            record = record_of(d)
        except RecordError as error:
            raise CheckError(f"scan() returns a dict that is not a standard dataset dict: {error}") from error
        key = (*record.scan_key, record.slice_id)
        require(key not in seen, f"scan() lists scan {record.scan_id!r}, slice {record.slice_id}, twice")
        seen.add(key)
    read_digest(reader, record_of(dicts[0]), canonical=True)


LARGE: Final = 256 << 10  # minimum bytes of an image, and of a file, for telling data from headers


def check_protocol(reader: Reader) -> None:
    """Check that the object implements `Reader`."""
    try:
        check_reader(reader)
    except PluginError as error:
        raise CheckError(str(error)) from error
    require(isinstance(reader, Reader), f"{reader!r} does not implement Reader")


def check_arrays(reader: Reader, record: Record) -> None:
    """Check that shapes and types of image and mask are supported, and that the metadata are valid."""
    import numpy as np

    with reader.open(record) as scan:
        require(isinstance(scan, OpenScan), f"open() yields a {type(scan).__name__} that lacks image, mask or metadata")
        require(
            (scan.mask is None) == (record.sem_seg_file is None),
            f"the record's sem_seg_file is {record.sem_seg_file}, but the mask is {scan.mask!r}",
        )
        for what, array in arrays_of(scan):
            require(isinstance(array.shape, tuple), f"the shape of the {what} is {array.shape!r}, expected a tuple")
            require(isinstance(array.dtype, np.dtype), f"the dtype of the {what} is {array.dtype!r}, no numpy.dtype")
            require(array.dtype.isnative, f"the dtype of the {what} is {array.dtype.str!r}, expected native byte order")
            require(array.dtype.kind in "iufb", f"the dtype of the {what} is {array.dtype}, expected numbers")
        _check_metadata(scan.metadata, "metadata", record)
        if isinstance(scan, StatesMaskGrid):
            _check_metadata(scan.mask_metadata, "mask_metadata", record)
    with open_record(record, reader) as canonical:
        require(canonical.image.shape[:2], "the image has no shape")


def _check_metadata(metadata: Mapping[str, Any], name: str, record: Record) -> None:
    spacing = metadata.get("spacing")
    if spacing is not None:
        axes = (2, 3) if record.kind == "slice" else (3,)
        expected = f"{' or '.join(map(str, axes))} positive numbers of millimeters"
        require(checked_spacing(spacing, axes), f"{name}['spacing'] is {spacing!r}, expected {expected}")
    affine = metadata.get("affine")
    if affine is not None:
        expected = "an invertible 4 x 4 matrix, voxel index to RAS+ mm"
        require(checked_affine(affine), f"{name}['affine'] is {affine!r}, expected {expected}")


def check_values(reader: Reader, record: Record, image: Array | None, mask: Array | None) -> None:
    """Check that the arrays, with their axes in canonical order, have the values that were written.

    Args:
        reader: The reader.
        record: The record.
        image: H x W [x D] [x K]; None: unknown.
        mask: H x W [x D] x C; None: unknown.
    """
    with open_record(record, reader) as scan:
        for what, array, expected in (("image", scan.image, image), ("mask", scan.mask, mask)):
            if expected is not None:
                require(array is not None, f"the {what} is None, expected {by(expected.shape)}")
                _check_equal(array, expected, what)  # type: ignore[arg-type]


def _check_equal(array: LazyArray, expected: Array, what: str) -> None:
    import numpy as np

    require(array.shape == expected.shape, f"the {what} is {by(array.shape)}, expected {by(expected.shape)}")
    different = np.argwhere(array[...] != expected)
    if len(different):
        at = tuple(map(int, different[0]))
        raise CheckError(
            f"the {what} differs from the values written in {len(different)} of {expected.size} voxels; at {at} it is "
            f"{array[at]}, expected {expected[at]}"
        )


def check_partial_reads(reader: Reader, record: Record) -> None:
    """Check that any part of an array equals that part of the whole, also in type and memory layout."""
    with reader.open(record) as scan:
        for what, array in arrays_of(scan):
            check_array(array, what)


def check_headers_only(reader: Reader, record: Record, folder: Path) -> None:
    """Check that shape and type are known without reading data, by memory use and, on Linux, by bytes read.

    Args:
        reader: The reader.
        record: Its image has at least 256 KiB.
        folder: A new folder for copies, so that nothing about the files is cached.

    Raises:
        CheckError: Opening takes memory, or reads bytes, as if for data.
        NotCheckableError: The image is too small.
    """
    _open_only(reader, copied(record, folder / "first"))  # so that everything is imported
    fresh = copied(record, folder / "second")
    tracemalloc.start()
    try:
        before = _bytes_read()
        size = _open_only(reader, fresh)
        read, (_, peak) = _bytes_read() - before, tracemalloc.get_traced_memory()
    finally:
        tracemalloc.stop()
    if size < LARGE:
        raise NotCheckableError(f"the image has {size} bytes; {LARGE} are needed to tell data from headers")
    advice = "read the header in open(), and data in __getitem__"
    # Reading the data takes `size`. The margin is for buffers of a decompressor (those of gzip grew in Python 3.12).
    require(peak < size * 3 / 4, f"opening takes {peak} bytes of memory, but the image has {size}: {advice}")
    stored = sum(path.stat().st_size for path in files_of(fresh))
    if stored >= LARGE:
        require(read < stored * 3 / 4, f"opening reads {read} of the {stored} bytes of the files: {advice}")


def _open_only(reader: Reader, record: Record) -> int:
    with reader.open(record) as scan:
        sizes = {what: array.dtype.itemsize for what, array in arrays_of(scan)}
        for n in scan.image.shape:
            sizes["image"] *= n
        return sizes["image"]


def _bytes_read() -> int:
    if sys.platform != "linux":
        return 0
    line = Path("/proc/self/io").read_text(encoding="ascii").partition("\n")[0]
    return int(line.removeprefix("rchar: "))


def check_released_files(reader: Reader, record: Record) -> None:
    """Check that no file stays open after its scan is closed. Linux only.

    Raises:
        NotCheckableError: This is another operating system.
    """
    if sys.platform != "linux":
        raise NotCheckableError("open files can be listed on Linux only")
    for _ in range(3):
        read_digest(reader, record)
    left = open_descriptors(files_of(record))
    require(
        not left, f"{counted(len(left), 'file')} still open after the scans are closed: {', '.join(sorted(set(left)))}"
    )


def check_threads(reader: Reader, record: Record) -> None:
    """Check that eight threads can read from one open scan at once."""
    with reader.open(record) as scan:
        for what, array in arrays_of(scan):
            check_array_in_threads(array, what)


def check_pickling(reader: Reader, record: Record | None = None) -> None:
    """Check that the reader can be pickled, also after use."""
    expected = None if record is None else read_digest(reader, record)
    try:
        again: Any = pickle.loads(pickle.dumps(reader))  # noqa: S301 -- pickled in the line itself
    except Exception as error:
        raise CheckError(f"the reader cannot be pickled: {type(error).__name__}: {error}") from error
    check_protocol(again)
    agree = (again.name, again.suffixes) == (reader.name, reader.suffixes)
    require(agree, "the name or the suffixes of the reader differ after pickling")
    if record is not None:
        require(read_digest(again, record) == expected, "after pickling the reader reads other values")


def check_new_process(reader: Reader, record: Record) -> None:
    """Check that a new process, which gets reader and record pickled, reads the same values."""
    found = in_new_interpreter(read_digest, reader, record)
    require(found == read_digest(reader, record), "a new process reads other values")


def check_forked_process(reader: Reader, record: Record) -> None:
    """Check that a fork reads the same values while this process has the scan open, and that this process still can."""
    with reader.open(record) as scan:
        expected = digest(scan)
        require(in_fork(lambda: read_digest(reader, record)) == expected, "a forked process reads other values")
        require(in_fork(lambda: digest(scan)) == expected, "a fork reads other values from a scan opened before it")
        require(digest(scan) == expected, "after a fork has read, this process reads other values")
