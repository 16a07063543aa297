"""Stamps that identify the content of a file, and reading of files that may be written at the same time.

The kernel sets the modification time when a write starts, from a clock that ticks every few milliseconds. So:

* During a write, and between two writes within one tick, the content changes but the time does not. A time within the
  last 50 ms proves nothing: such a file is read until two reads agree.
* Programs can set the size and the modification time (``cp -p``, ``rsync -t``, archives), and file systems reuse inode
  numbers. The change time cannot be set, but hard links, ``chmod`` and backups change it as well.
"""

from __future__ import annotations

import hashlib
import os
import struct
import time
from collections.abc import Callable
from contextlib import suppress
from pathlib import Path
from typing import Final, TypeVar

from medsegpy_core.errors import ReadError

T = TypeVar("T")

YOUNG_NS: Final = 50_000_000
# Four reads give three comparisons of two successive reads.
_READS: Final = 4
# The tick of the slowest clock (100 Hz): a change during the second of two reads then changes the stamp.
_TICK_SECONDS: Final = 0.01
_FIELDS: Final = struct.Struct("=qqQq")
# The size of the fields that identify the file; the change time follows.
_FILE_BYTES: Final = 24


class Stamp(bytes):
    """Size, modification time (ns), inode and change time (ns) of a file.

    Equal stamps mean equal content. `same_file` ignores the change time: if only that differs, the content may have
    changed (``cp -p`` with a reused inode) or not (a hard link, ``chmod``, a backup), and must be checked again.
    """

    __slots__ = ()

    @classmethod
    def of_fields(cls, size: int, mtime_ns: int, inode: int, ctime_ns: int) -> Stamp:
        """Create a stamp from stored `fields`."""
        return cls(_FIELDS.pack(size, mtime_ns, inode, ctime_ns))

    @property
    def fields(self) -> tuple[int, int, int, int]:
        """Size, modification time, inode and change time, as JSON can hold them."""
        size, mtime_ns, inode, ctime_ns = _FIELDS.unpack(self)
        return size, mtime_ns, inode, ctime_ns

    @property
    def size(self) -> int:
        """The size of the file in bytes."""
        return self.fields[0]

    def same_file(self, other: Stamp) -> bool:
        """Return whether size, modification time and inode are the same."""
        return self[:_FILE_BYTES] == other[:_FILE_BYTES]


def stamp_of(status: os.stat_result) -> Stamp:
    """Return the stamp of a file."""
    return Stamp(_FIELDS.pack(status.st_size, status.st_mtime_ns, status.st_ino, status.st_ctime_ns))


def is_young(status: os.stat_result, now: int | None = None) -> bool:
    """Return whether a file changed so recently that its content may still change without a new stamp.

    Args:
        status: The status of the file.
        now: The time at which the status was taken, in ns since the epoch; None: now.
    """
    now = time.time_ns() if now is None else now
    return 0 <= now - status.st_mtime_ns < YOUNG_NS or 0 <= now - status.st_ctime_ns < YOUNG_NS


def wait_for_write(file: str | Path | int) -> None:
    """Wait until a write in progress is over, on file systems that support it (ext4, btrfs, tmpfs, overlays).

    A process that is suspended in the middle of a write leaves half of it in the file, for longer than 50 ms on a busy
    machine. Seeking for data takes the lock that the write holds.

    Args:
        file: The file, or its descriptor, whose position is not kept.
    """
    with suppress(OSError):
        if isinstance(file, int):
            os.lseek(file, 0, getattr(os, "SEEK_DATA", os.SEEK_SET))
            return
        fd = os.open(file, os.O_RDONLY | getattr(os, "O_CLOEXEC", 0) | getattr(os, "O_NONBLOCK", 0))
        try:
            wait_for_write(fd)
        finally:
            os.close(fd)


def read_settled(path: str | Path, read: Callable[[], T], fingerprint: Callable[[T], object]) -> T:
    """Read a file without mixing two versions of it.

    A read is valid if the stamp is the same before and after, and the file is not young. For a young file, two
    successive reads must agree, of at most four.

    Args:
        path: The file.
        read: Reads the file from its path; it must not use anything known about the file from before.
        fingerprint: Returns a value that is equal for equal reads. It is called at once, so that `read` may reuse its
            memory.

    Raises:
        ReadError: The file is missing, or changes all the time.
        OSError: `read` raised it for an unchanged file, or in the last read.
    """
    previous: object = None
    failure: OSError | None = None
    for number in range(_READS):
        if number:
            time.sleep(_TICK_SECONDS)
        wait_for_write(path)
        before, young = _look(path)
        try:
            found = read()
        except OSError as error:
            if not young and _look(path)[0] == before:
                raise
            failure, previous = error, None
            continue
        failure, this = None, None
        if _look(path)[0] == before:
            if not young:
                return found
            this = (fingerprint(found),)  # a tuple, which is never None
            if this == previous:
                return found
        previous = this
    if failure is not None:
        raise failure
    raise ReadError("the file changes all the time; wait until it is complete", path)


def _look(path: str | Path) -> tuple[Stamp, bool]:
    try:
        status = os.stat(path)  # noqa: PTH116
    except OSError as error:
        raise ReadError(f"the file cannot be opened: {error.strerror}", path) from error
    return stamp_of(status), is_young(status)


def file_hash(path: str | Path) -> str:
    """Return a hash of the content of a file (BLAKE2b, 128 bits, in hexadecimal digits).

    Raises:
        ReadError: The file cannot be read, or changes all the time.
    """

    def read() -> str:
        with open(path, "rb") as file:  # noqa: PTH123
            return hashlib.file_digest(file, lambda: hashlib.blake2b(digest_size=16)).hexdigest()

    try:
        return read_settled(path, read, str)
    except ReadError:
        raise
    except OSError as error:
        raise ReadError(f"the file cannot be read: {error.strerror}", path) from error
