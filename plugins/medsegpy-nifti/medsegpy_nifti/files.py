"""Open regular files, detect changes, and decompress."""

from __future__ import annotations

import functools
import gzip
import os
import stat
import zlib
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any, Final

from attrs import frozen

from medsegpy_core import ReadError
from medsegpy_core.reading import Stamp, is_young, stamp_of, wait_for_write

__all__ = ["ChangedError", "OpenFile", "opened_file", "unpacking", "whole_file_errors"]

# Without O_NONBLOCK, opening a pipe that replaced the file would wait forever.
_FLAGS: Final = os.O_RDONLY | getattr(os, "O_CLOEXEC", 0) | getattr(os, "O_NONBLOCK", 0)


class ChangedError(ReadError):
    """The file is being written, or was replaced; the data that were read are invalid."""

    @classmethod
    def of(cls, path: Path) -> ChangedError:
        """Return the error for a file."""
        return cls("the file changes all the time; wait until it is complete", path)


@frozen
class OpenFile:
    """An open file.

    Attributes:
        descriptor: The file descriptor.
        stamp: The stamp of the file when it was opened.
        young: Whether the content may still change without a new stamp, because the file changed just before.
    """

    descriptor: int
    stamp: Stamp
    young: bool


@contextmanager
def opened_file(path: Path) -> Iterator[OpenFile]:
    """Open a file for reading.

    Raises:
        ReadError: It is not a regular file.
        ChangedError: It changed while it was open.
        OSError: It cannot be opened.
    """
    descriptor = os.open(path, _FLAGS)
    try:
        if not stat.S_ISREG(os.fstat(descriptor).st_mode):
            raise ReadError("this is not a regular file", path)
        # A write sets the times when it begins: the stamp holds only for a file that is not in the middle of one.
        wait_for_write(descriptor)
        os.lseek(descriptor, 0, os.SEEK_SET)
        status = os.fstat(descriptor)
        before = stamp_of(status)
        try:
            yield OpenFile(descriptor, before, is_young(status))
        finally:
            # If the file changed, that explains any other error.
            if stamp_of(os.fstat(descriptor)) != before:
                raise ChangedError.of(path)
    finally:
        os.close(descriptor)


@contextmanager
def unpacking(descriptor: int) -> Iterator[Any]:
    """Return a file object with the content of a gzip file; it verifies the checksum at the end."""
    os.lseek(descriptor, 0, os.SEEK_SET)
    with os.fdopen(descriptor, "rb", closefd=False) as packed, _gunzip()[0](packed) as file:
        yield file


class whole_file_errors:  # noqa: N801 -- used as a function
    """Turn errors while a file is read into `ReadError` with its path."""

    def __init__(self, path: Path):
        self.path = path

    def __enter__(self) -> None:
        return

    def __exit__(self, kind: object, error: BaseException | None, traceback: object) -> None:
        if isinstance(error, ReadError) or error is None:
            return
        if isinstance(error, EOFError):
            reason = "the compressed data end too early: the file is truncated, or other data follow them"
            raise ReadError(reason, self.path) from error
        if isinstance(error, (zlib.error, gzip.BadGzipFile, _gunzip()[1])):
            raise ReadError(f"the compressed data are damaged: {error}", self.path) from error
        if isinstance(error, OSError):
            raise ReadError(error.strerror or str(error), self.path) from error
        if isinstance(error, MemoryError):
            raise ReadError("there is not enough memory to read it", self.path) from error


@functools.cache
def _gunzip() -> tuple[Callable[..., Any], type[Exception]]:
    """Return the fastest installed function to open gzip files, and the error that it raises."""
    try:
        from isal import igzip, isal_zlib
    except ImportError:
        return gzip.open, zlib.error
    failure: Any = isal_zlib.error
    return igzip.open, failure
