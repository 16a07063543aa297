"""The manifest of a packed set: its metadata and scans, and the stamps and hashes of its sources."""

from __future__ import annotations

import json
import os
import secrets
import stat
import time
import warnings
from collections.abc import Callable, Iterable, Mapping, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any, Final, cast, get_args

from attrs import frozen

from medsegpy_core._util.limits import read_limited
from medsegpy_core._util.stamps import YOUNG_NS, Stamp, file_hash, is_young, stamp_of
from medsegpy_core.catalog import DatasetCatalog, MetadataCatalog
from medsegpy_core.errors import DataWarning, ReadError
from medsegpy_core.hdf5 import open_array
from medsegpy_core.loading.scans import Scan
from medsegpy_core.plugins.specs import DatasetSpec, Split

if TYPE_CHECKING:
    from medsegpy_core.typing import DatasetDict


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


# 1: lists for tuples; spacing and affine in the files are for H, W, D. 2: tuples; for the stored axes, as in all files.
FORMAT: Final = 2
_READABLE: Final = (1, 2)
_MOST_BYTES: Final = 2**30
_FORMAT_KEY: Final = "medsegpy_packed"
_PAIRS: Final = "__pairs__"
_TUPLE: Final = "__tuple__"
_FILES: Final = ("file_name", "sem_seg_file")


@frozen(eq=False)
class Manifest:
    """What a manifest says.

    Attributes:
        path: The manifest itself.
        name: The dataset that was packed.
        split: Its split, or None.
        metadata: Its metadata, without what describes the layout of the original files.
        dicts: Dataset dicts with absolute paths.
        arrays: For each array its file (absolute), its key and the BLAKE2b hash of its content.
        settings: Layout, compression, patch.
        fingerprint: What identifies settings and records.
        sources: What the files that it was packed of were like, in the order of the dicts; None: the manifest was
            written before that was noted.
    """

    path: Path
    name: str
    split: Split | None
    metadata: Mapping[str, Any]
    dicts: list[DatasetDict]
    arrays: list[tuple[Path, str, str]]
    settings: Mapping[str, Any]
    fingerprint: str
    sources: Sequence[Source] | None


def packed_dicts(path: str | os.PathLike[str]) -> list[DatasetDict]:
    """Return the dataset dicts of a packed dataset.

    Args:
        path: The manifest (``NAME.json``), a packed file beside it, or a folder that holds one manifest.

    Raises:
        ReadError: There is none, it is no manifest, or it names files outside its folder.

    Example:
        ```python
        DatasetCatalog.register("knee_train", lambda: packed_dicts("packed/knee_train.json"))
        ```
    """
    return read_manifest(path).dicts


def packed_metadata(path: str | os.PathLike[str]) -> dict[str, Any]:
    """Return the metadata of a packed dataset; see `packed_dicts`."""
    return dict(read_manifest(path).metadata)


def register_packed(path: str | os.PathLike[str], name: str | None = None, replace: bool = False) -> str:
    """Register a packed dataset, with its metadata and its split, for as long as the process runs.

    Args:
        path: See `packed_dicts`.
        name: The name to register; None: that of the dataset that was packed, which must not be registered then.
        replace: Whether it may take the place of another dataset of this name, for example the original.

    Returns:
        The name.

    Raises:
        ReadError: See `packed_dicts`.
        DuplicateNameError: The name is registered already.

    Example:
        ```python
        register_packed("packed/knee_train.json", "knee_train_packed")
        loader = build_loader(Config(TRAIN_DATASET="knee_train_packed"), "knee_train_packed")
        ```
    """
    manifest = read_manifest(path)
    chosen = manifest.name if name is None else name
    # Read anew when the dicts are asked for: the set may have been packed again by then.
    spec = DatasetSpec(
        name=chosen,
        load=lambda: packed_dicts(manifest.path),
        split=manifest.split,
        metadata=dict(manifest.metadata),
        description=f"packed from {manifest.name}",
    )
    DatasetCatalog.registry.register(spec, replace)
    if replace:
        MetadataCatalog.get(chosen).set(replace=True, **manifest.metadata)
    return chosen


def read_manifest(path: str | os.PathLike[str]) -> Manifest:
    """Read and check a manifest; see `packed_dicts`."""
    file = _find(Path(path))
    said = read_json(file, "the manifest of a packed dataset")
    if not isinstance(said, dict) or _FORMAT_KEY not in said:
        raise ReadError("this is not the manifest of a packed dataset", file)
    if said[_FORMAT_KEY] not in _READABLE:
        raise ReadError(f"packed in format {said[_FORMAT_KEY]!r}, which a newer medsegpy_core reads", file)
    folder = file.absolute().parent
    try:
        dicts = [_absolute(d, folder, file) for d in decoded(said["dicts"])]
        if said[_FORMAT_KEY] == 1:
            dicts = list(map(_with_geometry, dicts))
        arrays = [(_inside(folder, name, file), str(key), str(digest)) for name, key, digest in said["arrays"]]
        metadata = _metadata(decoded(said["metadata"]), folder, said[_FORMAT_KEY])
        sources = [Source.of_list(values) for values in said["sources"]] if "sources" in said else None
        name, split = _name_and_split(said["name"], said["split"])
        settings, fingerprint = dict(said["settings"]), str(said["fingerprint"])
        return Manifest(file.absolute(), name, split, metadata, dicts, arrays, settings, fingerprint, sources)
    except (KeyError, TypeError, ValueError, AttributeError, RecursionError) as error:
        what = f"{type(error).__name__}: {error}"
        raise ReadError(f"the manifest is broken ({what}); pack the dataset anew", file) from error


def _name_and_split(name: Any, split: Any) -> tuple[str, Split | None]:
    if not isinstance(name, str) or split not in (None, *get_args(Split)):
        raise ValueError(f"name {name!r}, split {split!r}")
    return name, cast("Split | None", split)


def read_json(path: Path, what: str) -> Any:
    """Read a JSON file.

    Args:
        path: The file.
        what: What it is, for the message.

    Raises:
        ReadError: It cannot be read, or is no JSON.
    """
    try:
        return json.loads(read_limited(path, _MOST_BYTES))
    except (OSError, ValueError) as error:
        raise ReadError(f"{what} cannot be read: {error}", path) from error
    except RecursionError as error:
        raise ReadError(f"{what} cannot be read: its values lie too deep", path) from error


def _find(path: Path) -> Path:
    if path.is_dir():
        found = sorted(path.glob("*.json"))
        if len(found) != 1:
            there = ", ".join(p.name for p in found) or "none"
            raise ReadError(f"expected one manifest of a packed dataset in the folder, found {there}. Name it", path)
        return found[0]
    if path.suffix in (".h5", ".hdf5"):
        return path.with_suffix(".json")
    return path


def _inside(folder: Path, name: Any, manifest: Path) -> Path:
    """Return the absolute path of a file that a manifest names.

    Raises:
        ReadError: It does not lie in the folder of the manifest, or it is a link that leads elsewhere.
    """
    if not isinstance(name, str) or not name or "\0" in name or Path(name).is_absolute() or ".." in Path(name).parts:
        raise ReadError(f"it names the file {name!r}; only files in its own folder are read", manifest)
    path = folder / name
    if not path.resolve().is_relative_to(folder.resolve()):
        raise ReadError(f"it names the file {name!r}, a link that leaves its folder", manifest)
    return path


def _absolute(d: dict[str, Any], folder: Path, manifest: Path) -> DatasetDict:
    return d | {key: str(_inside(folder, d[key], manifest)) for key in _FILES if key in d}


def _with_geometry(d: DatasetDict) -> DatasetDict:
    """Return a dict of format 1, with what its file says of spacing and affine."""
    try:
        said = open_array(d["file_name"], d["image_key"]).said
    except ReadError:
        return d  # reading it says why
    found = {"scan_spacing": said.spacing, "scan_affine": said.affine}
    return {key: value for key, value in found.items() if value is not None} | d


def _metadata(said: dict[str, Any], folder: Path, version: int) -> dict[str, Any]:
    # It may come from anywhere, and has nothing to say about where its files may lie.
    metadata = {**said, "scan_root": str(folder), "contained": True}
    if version == 1:  # in which tuples are lists
        for key, give_back in _TUPLES.items():
            if isinstance(metadata.get(key), list):
                metadata[key] = give_back(metadata[key])
    return metadata


_TUPLES: Final[dict[str, Callable[[list[Any]], Any]]] = {
    "category_ids": lambda ids: [tuple(c) if isinstance(c, list) else c for c in ids],
    "spacing": tuple,
}


# -- JSON


def encoded(values: Mapping[str, Any], of: str) -> dict[str, Any]:
    """Return what JSON can say of some values; what it cannot is left out, with a warning.

    Args:
        values: Of a dataset dict, or metadata.
        of: Whose they are, for the warning.
    """
    kept: dict[str, Any] = {}
    for key, value in values.items():
        try:
            kept[key] = _encoded(value)
        except TypeError:
            warnings.warn(
                f"{key!r} of {of} is {type(value).__name__}, which a manifest cannot hold; it is left out. Set it "
                "again where the packed dataset is used.",
                DataWarning,
                stacklevel=2,
            )
    return kept


def _encoded(value: Any) -> Any:
    if isinstance(value, Mapping):
        if all(isinstance(key, str) for key in value) and not {_PAIRS, _TUPLE} & set(value):
            return {key: _encoded(member) for key, member in value.items()}
        return {_PAIRS: [[_encoded(key), _encoded(member)] for key, member in value.items()]}
    if isinstance(value, tuple):
        return {_TUPLE: [_encoded(member) for member in value]}
    if isinstance(value, list):
        return [_encoded(member) for member in value]
    if isinstance(value, Path):
        return str(value)
    tolist = getattr(value, "tolist", None)  # NumPy's scalars and arrays
    if tolist is not None:
        return _encoded(tolist())
    if value is None or isinstance(value, bool | int | float | str):
        return value
    raise TypeError


def decoded(value: Any) -> Any:
    """Return what `encoded` encoded."""
    if isinstance(value, list):
        return [decoded(member) for member in value]
    if isinstance(value, dict):
        if set(value) == {_TUPLE}:
            return tuple(map(decoded, value[_TUPLE]))
        if set(value) == {_PAIRS}:
            pairs = [(decoded(key), decoded(member)) for key, member in value[_PAIRS]]
            # In format 1 they are lists.
            return {tuple(key) if isinstance(key, list) else key: member for key, member in pairs}
        return {key: decoded(member) for key, member in value.items()}
    return value


def write_json(path: Path, value: Any) -> None:
    """Write a JSON file that appears whole or not at all."""
    temporary = path.with_name(f".{path.name}.{os.getpid()}-{secrets.token_hex(4)}.tmp")
    try:
        with temporary.open("x", encoding="utf-8") as file:
            json.dump(value, file, indent=1)
            file.flush()
            os.fsync(file.fileno())
        temporary.replace(path)
    finally:
        temporary.unlink(missing_ok=True)


def manifest_dict(
    name: str,
    split: str | None,
    metadata: Mapping[str, Any],
    settings: Mapping[str, Any],
    fingerprint: str,
    there: Mapping[str, Any] | None = None,
) -> dict[str, Any]:
    """Return the beginning of a manifest; `dicts`, `arrays` and `sources` are still to come.

    Args:
        name: The dataset.
        split: Its split.
        metadata: Its metadata.
        settings: Layout, compression, patch.
        fingerprint: What identifies settings and records.
        there: The manifest of the files that are there, whose format stays; None: they are new.
    """
    version = FORMAT if there is None else there[_FORMAT_KEY]
    said = {_FORMAT_KEY: version, "name": name, "split": split, "settings": dict(settings), "fingerprint": fingerprint}
    return said | {"metadata": encoded(metadata, f"the metadata of {name!r}")}
