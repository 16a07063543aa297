"""What a reader must do with files that are missing, cut short, or of another kind: a `ReadError` that names them."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path

from medsegpy_core.errors import ReadError, RecordError
from medsegpy_core.records import Record
from medsegpy_core.testing.files import copied, files_of, read_digest, record_of
from medsegpy_core.testing.outcome import CheckError, NotCheckableError, require
from medsegpy_core.typing import Reader

__all__ = ["check_listing", "check_missing_files", "check_probe", "check_truncated_files"]

_OTHER = b"This is a text, and no image of any format.\n" * 20


def check_missing_files(reader: Reader, record: Record, folder: Path) -> None:
    """Check that a missing image or mask, and a folder in its place, is a `ReadError` with its path.

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
    """Check that a file that is cut short, empty, or of another format is a `ReadError` with its path.

    Where what was cut off holds no data, the right values will do.

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
        yield f"a file of which the first {size} of {n} bytes are left", content[:size]
    yield "a file with a text in it", _OTHER


def _expect_read_error(reader: Reader, record: Record, path: Path, what: str, expected: str | None) -> None:
    try:
        found = read_digest(reader, record, canonical=True)
    except ReadError as error:
        named = str(path) in str(error)
        require(named, f"{what} is a ReadError that does not name the file: {error}. ReadError(reason, path) does")
    except Exception as error:
        raise CheckError(f"{what} is a {type(error).__name__} ({error}), expected a ReadError") from error
    else:
        require(found == expected, f"{what} is read without an error, and gives other values")


def check_probe(reader: Reader, record: Record, folder: Path) -> None:
    """Check that `probe` knows the format by the first bytes, and raises for no file.

    Args:
        reader: The reader.
        record: The record; its image is one that `probe` must know.
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
    """Check that `scan` lists a folder the same way twice, each element once, and that what it lists can be opened.

    Raises:
        CheckError: It does not.
        NotCheckableError: The reader has no method `scan`.
    """
    scan = getattr(reader, "scan", None)
    if scan is None:
        raise NotCheckableError("the reader has no method scan(root)")
    dicts = list(scan(folder))
    require(dicts, f"scan({str(folder)!r}) lists nothing, but there are files of the format")
    require(dicts == list(scan(folder)), "scan() lists another thing the second time")
    names = [Path(d["file_name"]).name for d in dicts]
    require(names == sorted(names), f"scan() does not sort by file name: {', '.join(names[:4])}, ...")
    relative = [d["file_name"] for d in dicts if not Path(d["file_name"]).is_absolute()]
    require(not relative, f"scan() gives relative paths, as {relative[:1]}: expected absolute ones")
    seen: set[object] = set()
    for d in dicts:
        try:
            record = record_of(d)
        except RecordError as error:
            raise CheckError(f"scan() gives a dict that is no standard dataset dict: {error}") from error
        key = (*record.scan_key, record.slice_id)
        require(key not in seen, f"scan() gives scan {record.scan_id!r}, slice {record.slice_id}, twice")
        seen.add(key)
    read_digest(reader, record_of(dicts[0]), canonical=True)
