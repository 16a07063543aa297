"""Atomic writing: files appear whole, under their own name, or not at all.

Everything is written to a temporary name in the same folder, flushed to the disk, and renamed last. The HDF5 library
writes through `_Disk`: with its own drivers, a full disk gives a file that opens whole and is half zeros, or ends the
process.
"""

from __future__ import annotations

import contextlib
import os
import secrets
from collections.abc import Iterable, Iterator
from contextlib import contextmanager
from pathlib import Path
from types import TracebackType
from typing import TYPE_CHECKING, Any, Self

from medsegpy_core.hdf5.policy import open_file

if TYPE_CHECKING:
    import h5py

__all__ = ["Staging", "atomic_h5"]


class _Disk:
    """What h5py needs of a file object, on a file descriptor; the first failure is kept for later.

    After a failure it goes on without writing, so that the library, which does not expect failures, can end in peace.

    Attributes:
        error: What went wrong first; None: nothing.
    """

    def __init__(self, fd: int):
        self.error: OSError | None = None
        self._fd = fd
        self._at = 0

    def seek(self, offset: int, whence: int = os.SEEK_SET) -> int:
        base = {os.SEEK_SET: 0, os.SEEK_CUR: self._at}.get(whence)
        self._at = offset + (os.fstat(self._fd).st_size if base is None else base)
        return self._at

    def tell(self) -> int:
        return self._at

    def write(self, data: Any) -> int:
        view = memoryview(data).cast("B")
        done = 0
        try:
            while done < len(view) and self.error is None:
                done += os.pwrite(self._fd, view[done:], self._at + done)
        except OSError as error:
            self.error = error
        self._at += len(view)
        return len(view)

    def read(self, size: int) -> bytes:
        data = bytearray(size)
        self.readinto(data)
        return bytes(data)

    def readinto(self, buffer: Any) -> int:
        view = memoryview(buffer).cast("B")
        try:
            data = os.pread(self._fd, len(view), self._at)
        except OSError as error:
            self.error = self.error or error
            data = b""
        view[: len(data)] = data
        view[len(data) :] = bytes(len(view) - len(data))
        self._at += len(view)
        return len(view)

    def truncate(self, size: int | None = None) -> int:
        size = self._at if size is None else size
        try:
            if self.error is None:
                os.ftruncate(self._fd, size)
        except OSError as error:
            self.error = error
        return size

    def flush(self) -> None:
        """Nothing is held back."""


class Staging:
    """Files that appear together when the ``with`` block ends well; otherwise none of them does.

    Args:
        overwrite: Whether files that are there are replaced.
    """

    def __init__(self, overwrite: bool = False):
        self._overwrite = overwrite
        self._staged: list[tuple[str, str]] = []
        self._published: list[str] = []

    def __enter__(self) -> Self:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        try:
            if kind is None:
                self._publish()
        except BaseException:
            for final in [] if self._overwrite else self._published:
                os.unlink(final)  # noqa: PTH108
            raise
        finally:
            for temporary, _ in self._staged:
                with contextlib.suppress(FileNotFoundError):
                    os.unlink(temporary)  # noqa: PTH108

    def refuse_existing(self, paths: Iterable[str]) -> None:
        """Raise FileExistsError for the first of the files that is there already, unless they are to be replaced."""
        for path in paths:
            if not self._overwrite and os.path.lexists(path):
                raise FileExistsError(f"{path} is there already; overwrite=True replaces it.")

    @contextmanager
    def create(self, path: str) -> Iterator[h5py.File]:
        """Open a new file that will get the name `path`, for writing with h5py."""
        import h5py

        self.refuse_existing([path])
        folder, name = os.path.split(path)
        temporary = os.path.join(folder, f".{name[:200]}.{os.getpid()}-{secrets.token_hex(4)}.tmp")  # noqa: PTH118
        fd = os.open(temporary, os.O_RDWR | os.O_CREAT | os.O_EXCL | getattr(os, "O_CLOEXEC", 0), 0o666)
        self._staged.append((temporary, path))
        try:
            disk = _Disk(fd)
            try:
                with h5py.File(disk, "w") as file:
                    yield file
            finally:
                if disk.error is not None:
                    raise OSError(disk.error.errno, os.strerror(disk.error.errno or 0), path) from disk.error
            os.fsync(fd)
        finally:
            os.close(fd)
        with open_file(temporary):
            pass  # it opens again, which a file that was cut short does not

    def temporary(self, path: str) -> str:
        """Return the temporary name of a file that is still to appear."""
        return next(temporary for temporary, final in self._staged if final == path)

    def _publish(self) -> None:
        for temporary, final in self._staged:
            if self._overwrite:
                os.replace(temporary, final)  # noqa: PTH105
            else:
                _rename_if_free(temporary, final)
            self._published.append(final)
        for folder in {os.path.dirname(final) or "." for _, final in self._staged}:  # noqa: PTH120
            _sync_folder(folder)


def _rename_if_free(temporary: str, final: str) -> None:
    """Rename a file, but not over another that appeared in the meantime."""
    try:
        os.link(temporary, final)
    except FileExistsError:
        raise FileExistsError(f"{final} appeared while it was being written; overwrite=True replaces it.") from None
    except OSError:
        # Some file systems have no hard links.
        if os.path.lexists(final):
            raise FileExistsError(f"{final} appeared while it was being written; overwrite=True replaces it.") from None
        os.rename(temporary, final)  # noqa: PTH104


def _sync_folder(folder: str) -> None:
    fd = os.open(folder, os.O_RDONLY)
    try:
        # Not every file system can; the data themselves are safe by then.
        with contextlib.suppress(OSError):
            os.fsync(fd)
    finally:
        os.close(fd)


@contextmanager
def atomic_h5(path: str | Path, overwrite: bool = False) -> Iterator[h5py.File]:
    """Write an HDF5 file that appears whole or not at all.

    Args:
        path: The file; its folder exists.
        overwrite: Whether a file that is there is replaced.

    Yields:
        An ``h5py.File`` under a temporary name in the same folder, which is renamed when the block ends well.

    Raises:
        FileExistsError: The file is there, and `overwrite` is False.
        OSError: The disk is full, or fails. Nothing is left behind then.

    Example:
        ```python
        with atomic_h5("0000001_V00.h5") as file:
            file["volume"] = volume
        ```
    """
    with Staging(overwrite) as staging, staging.create(os.path.abspath(path)) as file:  # noqa: PTH100
        yield file
