"""The only module that opens HDF5 files.

HDF5 files are untrusted input: a file can refer to other files, claim terabytes, or name a filter that makes the
library load code. `open_file` and `open_dataset` are the only entry points. They reject anything that an image never
is with a `ReadError` before any data is read. `dataset_info` checks the dataset itself.

All calls of the library run under one lock. The library has its own global lock; ours also covers the time in which the
library's list of plugin folders is empty, and makes a fork wait until the library is idle.
"""

from __future__ import annotations

import functools
import os
import stat
import threading
from collections.abc import Iterator, Sequence
from contextlib import contextmanager, suppress
from typing import Any, Final

from medsegpy_core._util.limits import environment_bytes
from medsegpy_core.errors import ReadError, closest_match
from medsegpy_core.hdf5.headers import Header, Headers, Kind
from medsegpy_core.reading.foreign_files import foreign_kind
from medsegpy_core.text import some

_DEFAULT_MAX_READ: Final = 8 << 30
_LISTED_KEYS: Final = 20
_LISTED_DEPTH: Final = 3

library_lock = threading.RLock()


@functools.cache
def _h5py() -> Any:
    """Import h5py, and make forks wait for our calls of the library.

    The order matters: fork handlers run in reverse order of registration, so registering after h5py takes our lock
    before h5py's, as everywhere else.
    """
    import h5py

    if hasattr(os, "register_at_fork"):
        os.register_at_fork(
            before=library_lock.acquire, after_in_parent=library_lock.release, after_in_child=library_lock.release
        )
    return h5py


def max_read() -> int:
    """Return the largest size of one read in bytes: ``MEDSEGPY_MAX_READ``, in bytes or as in ``8GiB``.

    Raises:
        ValueError: The variable is not a size.
    """
    return environment_bytes("MEDSEGPY_MAX_READ", _DEFAULT_MAX_READ)


def regular_file(path: str) -> os.stat_result:
    """Return the status of a regular, non-empty file.

    Raises:
        ReadError: The file is missing, empty or not accessible, or it is a directory, a pipe or a device.
    """
    try:
        status = os.stat(path)  # noqa: PTH116
    except FileNotFoundError:
        raise ReadError(_missing_file(path), path) from None
    except (OSError, ValueError) as error:
        raise ReadError(f"the file cannot be opened: {_reason(error)}", path) from error
    if not stat.S_ISREG(status.st_mode):
        raise ReadError(f"not a regular file but {_kind_of_file(status.st_mode)}", path)
    if status.st_size == 0:
        raise ReadError("the file is empty", path)
    return status


def _missing_file(path: str) -> str:
    folder = os.path.dirname(os.path.abspath(path))  # noqa: PTH100, PTH120
    if not os.path.isdir(folder):  # noqa: PTH112
        return f"there is no such file: the folder {folder} does not exist"
    return "there is no such file, but its folder exists"


def _kind_of_file(mode: int) -> str:
    kinds = {stat.S_IFDIR: "a directory", stat.S_IFIFO: "a named pipe", stat.S_IFSOCK: "a socket"}
    return kinds.get(stat.S_IFMT(mode), "a device")


def _reason(error: Exception) -> str:
    return getattr(error, "strerror", None) or str(error) or type(error).__name__


@contextmanager
def library_errors(path: str, key: str | None = None) -> Iterator[None]:
    """Turn errors of the HDF5 library into `ReadError`."""
    try:
        yield
    except ReadError:
        raise
    except MemoryError as error:
        raise ReadError("there is not enough memory to read it", path, key) from error
    except (OSError, RuntimeError, ValueError, KeyError, OverflowError) as error:
        raise ReadError(f"the HDF5 library cannot read it: {_reason(error)}", path, key) from error


@contextmanager
def open_file(path: str) -> Iterator[Any]:
    """Open an HDF5 file for reading, as an ``h5py.h5f.FileID``, under the lock of the library.

    The driver is fixed (newer libraries choose one by the path), chunks are not cached, and the file is not locked
    (locks fail or block on network file systems).

    Raises:
        ReadError: The file is missing, not a regular file, or not an HDF5 file; or the library failed in the body.
    """
    regular_file(path)
    h5py = _h5py()
    with library_lock, _no_plugin_folders(h5py), library_errors(path):
        try:
            file = _open(h5py, path)
        except OSError as error:
            kind = foreign_kind(path)
            what = f"not a readable HDF5 file: {_reason(error)}" if kind is None else f"not an HDF5 file but {kind}"
            raise ReadError(what, path) from error
        try:
            yield file
        finally:
            file.close()


def _open(h5py: Any, path: str) -> Any:
    try:
        return h5py.h5f.open(os.fsencode(path), h5py.h5f.ACC_RDONLY, fapl=_access(h5py, False, True))
    except OSError as error:
        if "match" not in str(error):
            raise
    # Other code of this process has the file open, and the library requires the same settings for all of them.
    others = [(True, True), (True, False), (False, False), (False, True)]
    for locking, ignore_when_disabled in others[:-1]:
        with suppress(OSError):
            access = _access(h5py, locking, ignore_when_disabled, h5py.h5f.CLOSE_DEFAULT)
            return h5py.h5f.open(os.fsencode(path), h5py.h5f.ACC_RDONLY, fapl=access)
    access = _access(h5py, *others[-1], h5py.h5f.CLOSE_DEFAULT)
    return h5py.h5f.open(os.fsencode(path), h5py.h5f.ACC_RDONLY, fapl=access)


def _access(h5py: Any, locking: bool, ignore_when_disabled: bool, close_degree: int | None = None) -> Any:
    access = h5py.h5p.create(h5py.h5p.FILE_ACCESS)
    access.set_fapl_sec2()
    access.set_fclose_degree(h5py.h5f.CLOSE_STRONG if close_degree is None else close_degree)
    access.set_file_locking(locking, ignore_when_disabled)
    metadata_slots, chunk_slots, _, preemption = access.get_cache()
    access.set_cache(metadata_slots, chunk_slots, 0, preemption)
    return access


@contextmanager
def _no_plugin_folders(h5py: Any) -> Iterator[None]:
    """Empty the library's list of folders with filter plugins, and put it back afterwards.

    ``HDF5_PLUGIN_PATH`` fills that list. The library would load any plugin found there when a file names its filter.
    """
    from h5py._objects import phil

    # h5py takes its lock, phil, in all calls except those of h5pl. Another thread may drop the last reference to an
    # h5py object at any time, which closes it in the library. Without phil, the two calls could race and end the
    # process.
    with phil:
        folders = [h5py.h5pl.get(i) for i in range(h5py.h5pl.size())]
        for _ in folders:
            h5py.h5pl.remove(0)
    try:
        yield
    finally:
        with phil:
            for folder in folders:
                h5py.h5pl.append(folder)


def open_dataset(file: Any, path: str, keys: Sequence[str]) -> tuple[Any, str]:
    """Follow hard links to the first of `keys` that exists.

    Args:
        file: The result of `open_file`.
        path: Its path, for messages.
        keys: Alternative paths inside the file, tried in order.

    Returns:
        An ``h5py.h5d.DatasetID``, and its key.

    Raises:
        ReadError: None exists, it is not a dataset, or a link on the way leads out of the file.
    """
    for key in keys:
        dataset = _follow(file, path, key)
        if dataset is not None:
            return dataset, key
    there = list_arrays(file, path)
    listed = some(there, _LISTED_KEYS, form=repr)
    wanted = " nor ".join(map(repr, keys))
    raise ReadError(
        f"there is no dataset {wanted}. The file has {listed or 'no datasets'}.{closest_match(keys[0], there)} "
        "Set 'image_key' or 'sem_seg_key' in the dataset dict",
        path,
        keys[0],
    )


def _follow(file: Any, path: str, key: str) -> Any:
    """Return the dataset at `key`, or None if a part of the path does not exist."""
    h5py = _h5py()
    steps = [step.encode() for step in key.split("/") if step not in ("", ".")]
    with _headers(file, path) as headers:
        address = headers.root
        _refuse(headers.at(address), path, key)
        node = h5py.h5g.open(file, b"/")
        for i, step in enumerate(steps):
            if not isinstance(node, h5py.h5g.GroupID) or b"\0" in step or not node.links.exists(step):
                return None
            link = node.links.get_info(step)
            if link.type != h5py.h5l.TYPE_HARD:
                kind = {h5py.h5l.TYPE_SOFT: "a soft link", h5py.h5l.TYPE_EXTERNAL: "a link to another file"}
                kind_of_link, at = kind.get(link.type, "a link"), "/".join(s.decode() for s in steps[: i + 1])
                raise ReadError(f"{at!r} is {kind_of_link}; only data in the file itself are read", path, key)
            address = link.u
            _refuse(headers.at(address), path, key)
            node = h5py.h5o.open(node, step)
        if isinstance(node, h5py.h5g.GroupID):
            inside = ", ".join(repr(name) for name in _arrays_in(node, headers, _LISTED_DEPTH)[:_LISTED_KEYS])
            raise ReadError(f"a group, not a dataset. It has {inside or 'no datasets'}", path, key)
    if not isinstance(node, h5py.h5d.DatasetID):
        raise ReadError("not a dataset but a named type", path, key)
    return node


def _headers(file: Any, path: str) -> Headers:
    return Headers(path, file.get_create_plist().get_userblock())


def _refuse(header: Header, path: str, key: str | None = None) -> None:
    if header.fault is not None:
        raise ReadError(header.fault, path, key)


def list_arrays(file: Any, path: str) -> list[str]:
    """Return the keys of the datasets that hard links lead to, at most three levels deep; those in groups come last."""
    with _headers(file, path) as headers:
        _refuse(headers.at(headers.root), path)
        return _arrays_in(_h5py().h5g.open(file, b"/"), headers, _LISTED_DEPTH)


def _arrays_in(group: Any, headers: Headers, depth: int) -> list[str]:
    h5py = _h5py()
    found: list[str] = []
    for name, header in _links_of(group, headers):
        if header.kind == "dataset":
            found.append(name)
        elif header.kind == "group" and header.fault is None and depth > 1 and len(found) <= _LISTED_KEYS:
            inner = h5py.h5g.open(group, name.encode())
            found += [f"{name}/{key}" for key in _arrays_in(inner, headers, depth - 1)]
    return found


def list_links(file: Any, path: str, group: str = "/") -> list[tuple[str, Kind | None]]:
    """Return the names of the hard links of a group, sorted, and the kind of each object; None: unknown.

    The objects are not opened, because the library may crash on them.

    Args:
        file: The result of `open_file`.
        path: Its path.
        group: The root, or the name of a group at the root.
    """
    h5py = _h5py()
    with _headers(file, path) as headers:
        _refuse(headers.at(headers.root), path)
        node = h5py.h5g.open(file, b"/")
        if group != "/":
            _refuse(headers.at(node.links.get_info(group.encode()).u), path)
            node = h5py.h5g.open(file, group.encode())
        return [(name, header.kind) for name, header in _links_of(node, headers)]


def _links_of(group: Any, headers: Headers) -> list[tuple[str, Header]]:
    """Return the names of the hard links of a group, sorted, and the headers of their objects."""
    h5py = _h5py()
    names: list[bytes] = []
    group.links.iterate(names.append)
    links = [(name, group.links.get_info(name)) for name in sorted(names)]
    hard = [(name, link.u) for name, link in links if link.type == h5py.h5l.TYPE_HARD]
    return [(name.decode(errors="replace"), headers.at(address)) for name, address in hard]
