"""Choosing the reader of a file: by the dict, else by the suffix, else by the first bytes."""

from __future__ import annotations

import os
import warnings
from collections.abc import Iterable, Mapping
from pathlib import Path
from typing import Any

from medsegpy_core.data.records import Record
from medsegpy_core.errors import AmbiguousReaderError, PluginWarning, ReadError, UnknownNameError
from medsegpy_core.plugins.discovery import suggest_for_suffix
from medsegpy_core.plugins.kinds import Owned
from medsegpy_core.plugins.manager import default_manager
from medsegpy_core.plugins.registry import Registry
from medsegpy_core.reading.foreign_files import foreign_kind
from medsegpy_core.typing import KeyedReader, Reader

_registry: Registry[Reader] = Registry("readers")


def register_reader(reader: Reader, replace: bool = False) -> None:
    """Register a reader in this process.

    Args:
        reader: An object that implements `Reader`.
        replace: Whether to replace an existing reader of this name.

    Raises:
        DuplicateNameError: The name is already registered. A clash with a plugin is reported when the reader is used.
        PluginError: The object does not implement the protocol.
    """
    _registry.register(reader, replace)


def named_reader(name: str) -> Reader:
    """Return a reader by name.

    Raises:
        UnknownNameError: There is no such reader.
        DuplicateNameError: More than one plugin provides it.
    """
    return _registry.get(name).record


def all_readers() -> dict[str, Reader]:
    """Return the readers by name, without names that more than one plugin claims."""
    return {name: owners[0].record for name, owners in sorted(_registry.claims().items()) if len(owners) == 1}


def reader_names() -> list[str]:
    """Return the names of all readers, sorted."""
    return _registry.names()


def find_reader(record: Record | Mapping[str, Any]) -> Reader:
    """Return the reader that opens the image of a record or of a dataset dict.

    The `reader` of the dict decides; else the longest suffix that a reader claims; if several readers claim it, or none
    does, the first bytes of the file. If no reader claims the suffix and the record has an `image_key`, every
    `KeyedReader` is tried first.

    Raises:
        AmbiguousReaderError: Several readers claim the file.
        UnknownNameError: No reader claims it, or the dict names an unknown reader.
        ReadError: The first bytes must decide, but the file does not exist, or is a Git LFS pointer.
    """
    if (decided := reader_by_name(record)) is not None:
        return decided
    path = os.fspath(_asked(record)[1])
    readers = _all_owned()
    by_suffix = _longest_suffix(os.path.basename(path).lower(), readers)
    # HDF5 files with keys may have any suffix, and a plain `probe` may not recognize them without default keys.
    claiming = [] if by_suffix or not names_key(record) else _probed(Path(path), readers, keyed=True)
    claiming = claiming or _probed(Path(path), by_suffix or readers)
    if len(claiming) == 1:
        return claiming[0].record
    if not claiming and not by_suffix:
        if (kind := foreign_kind(path)) is not None:
            raise ReadError(f"this is {kind}", path)
        raise _no_reader(path, readers)
    names = [f"{owned.record.name!r} of {owned.owner}" for owned in claiming or by_suffix]
    raise AmbiguousReaderError(
        f"{path}: {' and '.join(names)} both claim this file"
        f"{'' if claiming else ' by its suffix, and none by its content'}. "
        f"Choose one in the dataset dict, as in reader={(claiming or by_suffix)[0].record.name!r}."
    )


def reader_by_name(record: Record | Mapping[str, Any]) -> Reader | None:
    """Return the reader that the dict names, or the only one that claims the suffix; None: the content decides.

    Raises:
        UnknownNameError: The dict names an unknown reader.
    """
    name, file_name = _asked(record)
    if name is not None:
        return named_reader(name)
    by_suffix = _longest_suffix(os.path.basename(os.fspath(file_name)).lower(), _all_owned())
    return by_suffix[0].record if len(by_suffix) == 1 else None


def names_key(record: Record | Mapping[str, Any]) -> bool:
    """Return whether a record names the array inside the file."""
    return (record.image_key if isinstance(record, Record) else record.get("image_key")) is not None


def _all_owned() -> list[Owned[Reader]]:
    return [owned for owners in _registry.claims().values() for owned in owners]


def _asked(record: Record | Mapping[str, Any]) -> tuple[str | None, str | os.PathLike[str]]:
    if isinstance(record, Record):
        return record.reader, record.file_name
    return record.get("reader"), record["file_name"]


def _longest_suffix(file_name: str, readers: Iterable[Owned[Reader]]) -> list[Owned[Reader]]:
    best, found = 0, []
    for owned in readers:
        longest = max((len(suffix) for suffix in owned.record.suffixes if file_name.endswith(suffix)), default=0)
        if longest > best:
            best, found = longest, [owned]
        elif longest and longest == best:
            found.append(owned)
    return found


def _probed(path: Path, readers: Iterable[Owned[Reader]], keyed: bool = False) -> list[Owned[Reader]]:
    """Return the readers whose `probe` recognizes the file, or whose `probe_keyed` does, for `keyed`."""
    # Check first: a probe that opens a named pipe would wait forever.
    if not path.is_file():
        raise ReadError("there is no such file" if not path.exists() else "this is not a regular file", path)
    found = []
    for owned in readers:
        reader = owned.record
        if keyed and not isinstance(reader, KeyedReader):
            continue
        try:
            if reader.probe_keyed(path) if keyed and isinstance(reader, KeyedReader) else reader.probe(path):
                found.append(owned)
        except Exception as error:  # noqa: BLE001 -- a probe should not raise; if it does, the reader is skipped
            warnings.warn(
                f"The reader {reader.name!r} of {owned.owner} is skipped: "
                f"{'probe_keyed' if keyed else 'probe'}({str(path)!r}) failed with {type(error).__name__}: {error}",
                PluginWarning,
                stacklevel=4,
            )
    return found


def _no_reader(path: str, readers: Iterable[Owned[Reader]]) -> UnknownNameError:
    keyed = [f"{owned.record.name!r}" for owned in _probed(Path(path), readers, keyed=True)]
    infos = default_manager().infos()
    failed = [f"{info.name!r} ({info.distribution} {info.version}): {info.error}" for info in infos if info.error]
    return UnknownNameError(
        f"{path}: no reader recognizes this file, neither by its suffix nor by its content. Readers: "
        f"{', '.join(reader_names()) or 'none'}."
        + (f" {' and '.join(keyed)} can read it if the dict names the array: image_key='...'." if keyed else "")
        + f"{suggest_for_suffix(path, [info.distribution for info in infos])}"
        + (f" Plugins that failed: {'; '.join(failed)}." if failed else "")
    )
