"""What the files were like that a set was packed of: their stamps, and the hashes of their content."""

from __future__ import annotations

import os
import stat
import time
from collections.abc import Iterable, Sequence
from pathlib import Path
from typing import Any, Final

from attrs import frozen

from medsegpy_core.errors import ReadError
from medsegpy_core.loading.scans import Scan
from medsegpy_core.stamps import YOUNG_NS, Stamp, file_hash, is_young, stamp_of

__all__ = ["Source", "all_unchanged", "hashed", "source_files", "unchanged"]

_ATTEMPTS: Final = 5


@frozen
class Source:
    """A file as it was.

    Attributes:
        stamp: Its size, times and inode.
        digest: The hash of its content, see `file_hash`.
    """

    stamp: Stamp
    digest: str

    def as_list(self) -> list[Any]:
        """Return this for JSON: size, modification time, inode, change time (ns) and hash."""
        return [*self.stamp.fields, self.digest]

    @classmethod
    def of_list(cls, values: Sequence[Any]) -> Source:
        """Return what `as_list` wrote.

        Raises:
            TypeError, ValueError: It is something else.
        """
        *fields, digest = values
        if [type(value) for value in values] != [int] * 4 + [str]:
            raise TypeError(f"{values!r} is no source")
        try:
            return cls(Stamp.of_fields(*fields), digest)
        except Exception as error:  # of `struct`, for numbers that no file has
            raise ValueError(f"{values!r} is no source") from error


def source_files(scans: Iterable[Scan]) -> list[Path]:
    """Return the files of some scans, each once, in the order in which they first occur."""
    files = (file for scan in scans for record in scan.records for file in (record.file_name, record.sem_seg_file))
    return list(dict.fromkeys(file for file in files if file is not None))


# Files that hold many scans are hashed once a process.
_known: dict[Path, Source] = {}


def hashed(path: Path) -> Source:
    """Hash a file; what was hashed by this process and has its old stamp is not read again.

    A file that was changed just now is waited for, so that its stamp stands for this content and no other.

    Raises:
        ReadError: It cannot be read, or changes all the time.
    """
    for _ in range(_ATTEMPTS):
        status = _status(path)
        before = stamp_of(status)
        known = _known.get(path)
        if known is not None and known.stamp == before:
            return known
        if is_young(status):
            time.sleep(YOUNG_NS / 1e9)
            continue
        digest = file_hash(path)
        if stamp_of(_status(path)) == before:
            _known[path] = found = Source(before, digest)
            return found
    raise ReadError("the file changes all the time; wait until it is complete", path)


def unchanged(path: Path, source: Source) -> Source | None:
    """Return a file as it is now, if its content is as it was; it is read only if its stamp is another one.

    Raises:
        ReadError: It has to be read, and cannot be.
    """
    try:
        status = os.stat(path)  # noqa: PTH116
    except OSError:
        return None
    if stamp_of(status) == source.stamp:
        return source
    if status.st_size != source.stamp.size:
        return None
    now = hashed(path)
    return now if now.digest == source.digest else None


def all_unchanged(files: Sequence[Path], sources: Sequence[Source]) -> list[Source] | None:
    """Return some files as they are now, if all of them are as they were; see `unchanged`."""
    found: list[Source] = []
    for file, source in zip(files, sources, strict=True):
        now = unchanged(file, source)
        if now is None:
            return None
        found.append(now)
    return found


def _status(path: Path) -> os.stat_result:
    try:
        status = os.stat(path)  # noqa: PTH116
    except OSError as error:
        raise ReadError(f"the file cannot be opened: {error.strerror}", path) from error
    if not stat.S_ISREG(status.st_mode):
        raise ReadError("this is not a regular file", path)
    return status
