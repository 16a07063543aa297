"""The manifest of a packed dataset: its metadata and scans, and the stamps and hashes of its sources."""

from __future__ import annotations

import json
import os
import stat
import time
import warnings
from collections.abc import Callable, Iterable, Mapping, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any, Final, cast, get_args

from attrs import frozen

from medsegpy_core._util.atomic import replace_file
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
    """The state of a file when it was packed.

    Attributes:
        stamp: Its size, times and inode.
        digest: The hash of its content; see `file_hash`.
    """

    stamp: Stamp
    digest: str

    def as_list(self) -> list[Any]:
        """Return this for JSON: size, modification time, inode, change time (ns) and hash."""
        return [*self.stamp.fields, self.digest]

    @classmethod
    def of_list(cls, values: Sequence[Any]) -> Source:
        """Return the source that `as_list` wrote.

        Raises:
            TypeError, ValueError: The values are not those of a source.
        """
        *fields, digest = values
        if [type(value) for value in values] != [int] * 4 + [str]:
            raise TypeError(f"{values!r} is not a source")
        try:
            return cls(Stamp.of_fields(*fields), digest)
        except Exception as error:  # from `struct`, for impossible numbers
            raise ValueError(f"{values!r} is not a source") from error


def source_files(scans: Iterable[Scan]) -> list[Path]:
    """Return the distinct files of some scans, in the order of their first occurrence."""
    files = (file for scan in scans for record in scan.records for file in (record.file_name, record.sem_seg_file))
    return list(dict.fromkeys(file for file in files if file is not None))


# Files with many scans are hashed once per process.
_known: dict[Path, Source] = {}


def hashed(path: Path) -> Source:
    """Hash a file. If this process has hashed it and its stamp is unchanged, it is not read again.

    After a very recent change, wait until the stamp identifies the content.

    Raises:
        ReadError: The file cannot be read, or keeps changing.
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
        # Only a stamp that is the same before and after hashing belongs to the hashed content.
        if stamp_of(_status(path)) == before:
            _known[path] = found = Source(before, digest)
            return found
    raise ReadError("the file keeps changing; wait until it is complete", path)


def unchanged(path: Path, source: Source) -> Source | None:
    """Return the current state of a file, or None if its content changed. It is read only if its stamp differs.

    Raises:
        ReadError: The file must be read, but cannot be.
    """
    try:
        status = os.stat(path)  # noqa: PTH116
    except OSError:
        return None
    if stamp_of(status) == source.stamp:
        return source
    # A different size means different content, without hashing it.
    if status.st_size != source.stamp.size:
        return None
    now = hashed(path)
    return now if now.digest == source.digest else None


def all_unchanged(files: Sequence[Path], sources: Sequence[Source]) -> list[Source] | None:
    """Return the current state of some files, or None if one of them changed; see `unchanged`."""
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


# 1: tuples are lists; spacing and affine in files are for H, W, D. 2: tuples; for the stored axes, as in all files.
FORMAT: Final = 2
_READABLE: Final = (1, 2)
_MOST_BYTES: Final = 2**30
_FORMAT_KEY: Final = "medsegpy_packed"
_PAIRS: Final = "__pairs__"
_TUPLE: Final = "__tuple__"
_FILES: Final = ("file_name", "sem_seg_file")


@frozen(eq=False)
class Manifest:
    """The content of a manifest.

    Attributes:
        path: The manifest itself.
        name: The dataset that was packed.
        split: Its split, or None.
        metadata: Its metadata, without those that describe the layout of the original files.
        dicts: Dataset dicts with absolute paths.
        arrays: For each array its file (absolute), its key and the BLAKE2b hash of its content.
        settings: Layout, compression, patch.
        fingerprint: Identifies settings and records.
        sources: The state of the source files, in the order of the dicts; None for a manifest of an older version,
            which did not record it.
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
        path: The manifest (``NAME.json``), a packed file next to it, or a folder with one manifest.

    Raises:
        ReadError: There is no manifest, it is invalid, or it names files outside its folder.

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
    """Register a packed dataset, with its metadata and its split, until the process ends.

    Args:
        path: See `packed_dicts`.
        name: The name to register; None: that of the original dataset, which must not be registered then.
        replace: Whether to replace an existing dataset of this name, such as the original.

    Returns:
        The name.

    Raises:
        ReadError: See `packed_dicts`.
        DuplicateNameError: The name is already registered.

    Example:
        ```python
        register_packed("packed/knee_train.json", "knee_train_packed")
        loader = build_loader(Config(TRAIN_DATASET="knee_train_packed"), "knee_train_packed")
        ```
    """
    manifest = read_manifest(path)
    chosen = manifest.name if name is None else name
    # Read the manifest on each load: the dataset may have been packed again in the meantime.
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
    """Read and validate a manifest; see `packed_dicts`."""
    file = _find(Path(path))
    said = read_json(file, "the manifest of a packed dataset")
    if not isinstance(said, dict) or _FORMAT_KEY not in said:
        raise ReadError("this is not the manifest of a packed dataset", file)
    if said[_FORMAT_KEY] not in _READABLE:
        raise ReadError(f"packed in format {said[_FORMAT_KEY]!r}, which needs a newer medsegpy_core", file)
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
        raise ReadError(f"the manifest is broken ({what}); pack the dataset again", file) from error


def _name_and_split(name: Any, split: Any) -> tuple[str, Split | None]:
    if not isinstance(name, str) or split not in (None, *get_args(Split)):
        raise ValueError(f"name {name!r}, split {split!r}")
    return name, cast("Split | None", split)


def read_json(path: Path, what: str) -> Any:
    """Read a JSON file.

    Args:
        path: The file.
        what: A description of the file, for the message.

    Raises:
        ReadError: It cannot be read, or is not JSON.
    """
    try:
        return json.loads(read_limited(path, _MOST_BYTES))
    except (OSError, ValueError) as error:
        raise ReadError(f"{what} cannot be read: {error}", path) from error
    except RecursionError as error:
        raise ReadError(f"{what} cannot be read: its values are nested too deep", path) from error


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
        ReadError: It is not in the folder of the manifest, or is a link that leads elsewhere.
    """
    if not isinstance(name, str) or not name or "\0" in name or Path(name).is_absolute() or ".." in Path(name).parts:
        raise ReadError(f"it names the file {name!r}, but only files in its own folder are read", manifest)
    path = folder / name
    if not path.resolve().is_relative_to(folder.resolve()):
        raise ReadError(f"it names the file {name!r}, a link that leaves its folder", manifest)
    return path


def _absolute(d: dict[str, Any], folder: Path, manifest: Path) -> DatasetDict:
    return d | {key: str(_inside(folder, d[key], manifest)) for key in _FILES if key in d}


def _with_geometry(d: DatasetDict) -> DatasetDict:
    """Return a dict of format 1 with the spacing and affine that its file states."""
    try:
        said = open_array(d["file_name"], d["image_key"]).said
    except ReadError:
        return d  # reading it later reports the reason
    found = {"scan_spacing": said.spacing, "scan_affine": said.affine}
    return {key: value for key, value in found.items() if value is not None} | d


def _metadata(said: dict[str, Any], folder: Path, version: int) -> dict[str, Any]:
    # A manifest may come from anywhere: it must not decide where its files may be.
    metadata = {**said, "scan_root": str(folder), "contained": True}
    if version == 1:  # which stores tuples as lists
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
    """Return values in a form for JSON. Values that JSON cannot represent are left out, with a warning.

    Args:
        values: A dataset dict, or metadata.
        of: A description of their owner, for the warning.
    """
    kept: dict[str, Any] = {}
    for key, value in values.items():
        try:
            kept[key] = _encoded(value)
        except TypeError:
            warnings.warn(
                f"{key!r} of {of} is {type(value).__name__}, which a manifest cannot hold; it is left out. Set it "
                "again after registering the packed dataset.",
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
    """Return the value that `encoded` encoded."""
    if isinstance(value, list):
        return [decoded(member) for member in value]
    if isinstance(value, dict):
        if set(value) == {_TUPLE}:
            return tuple(map(decoded, value[_TUPLE]))
        if set(value) == {_PAIRS}:
            pairs = [(decoded(key), decoded(member)) for key, member in value[_PAIRS]]
            # Format 1 has lists here.
            return {tuple(key) if isinstance(key, list) else key: member for key, member in pairs}
        return {key: decoded(member) for key, member in value.items()}
    return value


def write_json(path: Path, value: Any) -> None:
    """Write a JSON file atomically."""
    replace_file(path, json.dumps(value, indent=1))


def manifest_dict(
    name: str,
    split: str | None,
    metadata: Mapping[str, Any],
    settings: Mapping[str, Any],
    fingerprint: str,
    there: Mapping[str, Any] | None = None,
) -> dict[str, Any]:
    """Return the head of a manifest; `dicts`, `arrays` and `sources` are added later.

    Args:
        name: The dataset.
        split: Its split.
        metadata: Its metadata.
        settings: Layout, compression, patch.
        fingerprint: Identifies settings and records.
        there: An existing manifest whose format is kept; None: the current format.
    """
    version = FORMAT if there is None else there[_FORMAT_KEY]
    said = {_FORMAT_KEY: version, "name": name, "split": split, "settings": dict(settings), "fingerprint": fingerprint}
    return said | {"metadata": encoded(metadata, f"the metadata of {name!r}")}
