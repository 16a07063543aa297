"""The manifest: the JSON file that makes packed files a dataset, with dicts, metadata and content hashes."""

from __future__ import annotations

import json
import os
import secrets
import warnings
from collections.abc import Mapping
from pathlib import Path
from typing import TYPE_CHECKING, Any, Final, cast

from attrs import frozen

from medsegpy_core.catalog import DatasetCatalog, MetadataCatalog
from medsegpy_core.errors import DataWarning, ReadError
from medsegpy_core.hdf5 import open_array
from medsegpy_core.limits import read_limited
from medsegpy_core.specs import DatasetSpec

if TYPE_CHECKING:
    from medsegpy_core.specs import Split
    from medsegpy_core.typing import DatasetDict

__all__ = [
    "FORMAT",
    "Manifest",
    "encoded",
    "manifest_dict",
    "packed_dicts",
    "packed_metadata",
    "read_manifest",
    "register_packed",
    "write_json",
]

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
        fingerprint: What identifies settings and source.
    """

    path: Path
    name: str
    split: str | None
    metadata: Mapping[str, Any]
    dicts: list[DatasetDict]
    arrays: list[tuple[Path, str, str]]
    settings: Mapping[str, Any]
    fingerprint: str


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
        split=cast("Split | None", manifest.split),  # checked by the spec
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
    try:
        said = json.loads(read_limited(file, _MOST_BYTES))
    except (OSError, ValueError) as error:
        raise ReadError(f"the manifest of a packed dataset cannot be read: {error}", file) from error
    except RecursionError as error:
        raise ReadError("the manifest of a packed dataset cannot be read: its values lie too deep", file) from error
    if not isinstance(said, dict) or _FORMAT_KEY not in said:
        raise ReadError("this is not the manifest of a packed dataset", file)
    if said[_FORMAT_KEY] not in _READABLE:
        raise ReadError(f"packed in format {said[_FORMAT_KEY]!r}, which a newer medsegpy_core reads", file)
    folder = file.absolute().parent
    try:
        dicts = [_absolute(d, folder, file) for d in _decoded(said["dicts"])]
        if said[_FORMAT_KEY] == 1:
            dicts = list(map(_with_geometry, dicts))
        arrays = [(_inside(folder, name, file), str(key), str(digest)) for name, key, digest in said["arrays"]]
        metadata = _metadata(_decoded(said["metadata"]), folder)
        return Manifest(
            file.absolute(), said["name"], said["split"], metadata, dicts, arrays, said["settings"], said["fingerprint"]
        )
    except (KeyError, TypeError, ValueError, AttributeError) as error:
        what = f"{type(error).__name__}: {error}"
        raise ReadError(f"the manifest is broken ({what}); pack the dataset anew", file) from error


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


def _metadata(said: dict[str, Any], folder: Path) -> dict[str, Any]:
    """Give category ids and spacing the form in which they are declared; in format 1 they are lists."""
    # It may come from anywhere, and has nothing to say about where its files may lie.
    metadata = {**said, "scan_root": str(folder), "contained": True}
    if "category_ids" in metadata:
        metadata["category_ids"] = [tuple(c) if isinstance(c, list) else c for c in metadata["category_ids"]]
    if isinstance(metadata.get("spacing"), list):
        metadata["spacing"] = tuple(metadata["spacing"])
    return metadata


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


def _decoded(value: Any) -> Any:
    if isinstance(value, list):
        return [_decoded(member) for member in value]
    if isinstance(value, dict):
        if set(value) == {_PAIRS}:
            return {tuple(k) if isinstance(k, list) else _decoded(k): _decoded(v) for k, v in value[_PAIRS]}
        if set(value) == {_TUPLE}:
            return tuple(map(_decoded, value[_TUPLE]))
        return {key: _decoded(member) for key, member in value.items()}
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
    name: str, split: str | None, metadata: Mapping[str, Any], settings: Mapping[str, Any], fingerprint: str
) -> dict[str, Any]:
    """Return the beginning of a manifest; `dicts` and `arrays` are still to come."""
    said = {_FORMAT_KEY: FORMAT, "name": name, "split": split, "settings": dict(settings), "fingerprint": fingerprint}
    return said | {"metadata": encoded(metadata, f"the metadata of {name!r}")}
