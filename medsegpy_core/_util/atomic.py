"""Files that appear complete or not at all: written under a temporary name in the same folder, synced, and renamed."""

from __future__ import annotations

import contextlib
import os
import secrets
from collections.abc import Iterable, Iterator
from contextlib import contextmanager
from types import TracebackType
from typing import Self


class Staging:
    """Files that appear together when the ``with`` block ends without an error; otherwise none of them does.

    Args:
        overwrite: Whether to replace existing files.
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
        """Raise FileExistsError for the first of the files that already exists, unless `overwrite` is set."""
        for path in paths:
            if not self._overwrite and os.path.lexists(path):
                raise FileExistsError(f"{path} already exists; overwrite=True replaces it.")

    @contextmanager
    def create(self, path: str) -> Iterator[int]:
        """Create a file that gets the name `path` at the end.

        Yields:
            A file descriptor for reading and writing. When the block ends, it is synced and closed.
        """
        self.refuse_existing([path])
        folder, name = os.path.split(path)
        temporary = os.path.join(folder, f".{name[:200]}.{os.getpid()}-{secrets.token_hex(4)}.tmp")  # noqa: PTH118
        fd = os.open(temporary, os.O_RDWR | os.O_CREAT | os.O_EXCL | getattr(os, "O_CLOEXEC", 0), 0o666)
        self._staged.append((temporary, path))
        try:
            yield fd
            os.fsync(fd)
        finally:
            os.close(fd)

    def temporary(self, path: str) -> str:
        """Return the temporary name of a staged file."""
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


def replace_file(path: str | os.PathLike[str], content: str | bytes) -> None:
    """Write a file so that readers see either the old content or the new, also after a crash.

    Args:
        path: The file; its folder must exist.
        content: What the file contains; text is written in UTF-8.

    Raises:
        OSError: The file cannot be written; its old content is unchanged.
    """
    data = content.encode() if isinstance(content, str) else content
    final = os.fspath(path)
    with (
        Staging(overwrite=True) as staging,
        staging.create(final) as fd,
        os.fdopen(fd, "wb", closefd=False) as file,
    ):
        file.write(data)


def _rename_if_free(temporary: str, final: str) -> None:
    """Rename a file, but do not replace one that appeared in the meantime."""
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
        # Not every file system supports it, and the data have already been synced.
        with contextlib.suppress(OSError):
            os.fsync(fd)
    finally:
        os.close(fd)
