"""Finding the installed plugins: the entry points of group ``medsegpy``, without importing anything.

The result is that of ``importlib_metadata.entry_points(group="medsegpy")``, in a tenth of the time: only folders with
such an entry point are examined further. `importlib_metadata` handles everything else (archives, other finders, an
incomplete ``.dist-info``). A broken `entry_points.txt` never raises.
"""

from __future__ import annotations

import os
import sys
from collections.abc import Callable, Collection, Iterable, Iterator, Mapping, Sequence
from typing import Any, Final, NamedTuple

GROUP = "medsegpy"


class EntryPoint(NamedTuple):
    """One installed plugin.

    Attributes:
        name: The plugin's name.
        value: The module, as ``package.module`` or ``package.module:attribute``. Empty for a line without ``=``.
        distribution: Its name for pip.
        version: Its version.
    """

    name: str
    value: str
    distribution: str
    version: str


def normalize_distribution(name: str) -> str:
    """Return the normalized name of a distribution, for comparing spellings.

    Example:
        >>> normalize_distribution("MedSegPy.Knee--MRI")
        'medsegpy_knee_mri'
    """
    name = name.lower().replace("-", "_").replace(".", "_")
    while "__" in name:
        name = name.replace("__", "_")
    return name


def allow_list() -> str | None:
    """Return the current `MEDSEGPY_LOAD_PLUGINS`: a comma-separated list of distributions, or None for no limit."""
    return os.environ.get("MEDSEGPY_LOAD_PLUGINS")


def is_allowed(distribution: str, allowed: str | None) -> bool:
    """Return whether an `allow_list` names a distribution, in any spelling. None allows all, an empty text none."""
    if allowed is None:
        return True
    return normalize_distribution(distribution) in {normalize_distribution(name.strip()) for name in allowed.split(",")}


def find_entry_points(path: Sequence[str] | None = None) -> tuple[EntryPoint, ...]:
    """Return the entry points of group ``medsegpy``.

    If a distribution is found twice, the first one counts, as for Python's imports. One without metadata counts only if
    there is none with metadata.

    Args:
        path: The folders to search instead of `sys.path`. Finders of other kinds are then skipped.
    """
    first: dict[str, _Found] = {}
    repeated: set[str] = set()
    for one in _distributions(path):
        if first.setdefault(one.key, one) is not one:
            repeated.add(one.key)
    found: dict[EntryPoint, None] = {}
    for key, one in first.items():
        if key in repeated and one.folder is not None and not _has_metadata(one.folder):
            one = _complete(key, path) or one
        found.update(dict.fromkeys(one.entry_points))
    return tuple(found)


# What was searched last, and the result.
_remembered: dict[str, tuple[object, tuple[EntryPoint, ...]]] = {}


def installed() -> tuple[EntryPoint, ...]:
    """Return `find_entry_points()`, cached until `sys.path` or a folder in it changes."""
    searched = [(entry, _mtime(entry)) for entry in sys.path], [id(finder) for finder in sys.meta_path]
    if (found := _remembered.get("found")) is None or found[0] != searched:
        found = _remembered["found"] = searched, find_entry_points()
    return found[1]


def _mtime(folder: str) -> int:
    try:
        return os.stat(folder or ".").st_mtime_ns
    except (OSError, TypeError, ValueError):
        return 0


class _Found(NamedTuple):
    """A distribution.

    Attributes:
        key: Its normalized name.
        entry_points: Its entry points in the group.
        folder: The expected place of its metadata; None if a finder has read them.
    """

    key: str
    entry_points: list[EntryPoint]
    folder: str | None


def _distributions(path: Sequence[str] | None) -> Iterator[_Found]:
    """Yield every distribution, in search order."""
    scanned = False
    for finder in list(sys.meta_path) if path is None else []:
        find = getattr(finder, "find_distributions", None)
        if find is None:
            continue
        if getattr(finder, "__module__", type(finder).__module__).startswith(_PATH_FINDERS):
            if not scanned:
                scanned = True
                yield from _in_folders(sys.path)
        else:
            yield from _asked_of(find)
    if path is not None:
        yield from _in_folders(path)


# Modules of the finders that search `sys.path`: Python's own and that of the importlib_metadata backport.
_PATH_FINDERS = ("_frozen_importlib", "importlib.", "importlib_metadata")


def _in_folders(path: Sequence[str]) -> Iterator[_Found]:
    for folder in path:
        try:
            children = os.listdir(folder or ".")
        except NotADirectoryError:  # a zipped egg, or a wheel on the path
            yield from _in_archive(folder)
            continue
        except (OSError, TypeError, ValueError):
            continue
        egg = os.path.basename(folder).lower()
        for child in children:
            low = child.lower()
            if low.endswith((".dist-info", ".egg-info")):
                key = low.rpartition(".")[0].partition("-")[0]
            elif low == "egg-info" and egg.endswith(".egg"):
                key = egg.rpartition(".")[0].partition("-")[0]
            else:
                continue
            info = os.path.join(folder, child)
            yield _Found(normalize_distribution(key), _in_info_folder(info), info)


def _in_info_folder(folder: str) -> list[EntryPoint]:
    try:
        with open(os.path.join(folder, "entry_points.txt"), "rb") as file:
            content = file.read()
    except OSError:
        return []
    if GROUP.encode() not in content:
        return []
    pairs = _parse(content.decode("utf-8", "replace"))
    if not pairs:
        return []
    name, version = _name_and_version(folder)
    return [EntryPoint(*pair, name, version) for pair in pairs]


def _parse(text: str) -> list[tuple[str, str]]:
    """Return name and value of each line of the group. A line without ``=`` has an empty value."""
    pairs: list[tuple[str, str]] = []
    in_group = False
    for line in map(str.strip, text.splitlines()):
        if not line or line.startswith("#"):
            continue
        if line.startswith("[") and line.endswith("]"):
            in_group = line.strip("[]") == GROUP
        elif in_group:
            name, _, value = line.partition("=")
            pairs.append((name.strip(), value.strip()))
    return pairs


def _name_and_version(folder: str) -> tuple[str, str]:
    """Read METADATA (PKG-INFO in an egg). What they lack is taken from the folder's name."""
    stem = os.path.basename(folder).rpartition(".")[0] or os.path.basename(os.path.dirname(folder))
    name, _, version = stem.partition("-")
    headers = {"name": name, "version": version.partition("-")[0]}
    for file_name in ("METADATA", "PKG-INFO"):
        try:
            with open(os.path.join(folder, file_name), encoding="utf-8", errors="replace") as file:
                for line in file:
                    key, colon, value = line.partition(":")
                    if not colon:
                        break
                    if key.lower() in headers and value.strip():
                        headers[key.lower()] = value.strip()
            break
        except OSError:
            continue
    return headers["name"], headers["version"]


def _has_metadata(folder: str) -> bool:
    """Return whether a ``.dist-info`` or ``.egg-info`` folder has metadata."""
    for file_name in ("METADATA", "PKG-INFO"):
        try:
            if os.stat(os.path.join(folder, file_name)).st_size:
                return True
        except OSError:
            continue
    return False


def _complete(key: str, path: Sequence[str] | None) -> _Found | None:
    """Return the first distribution of a name that has metadata, or None."""
    import importlib_metadata

    search = {"name": key} if path is None else {"name": key, "path": list(path)}
    return next(_asked_of(lambda context: importlib_metadata.distributions(context=context), **search), None)


def _in_archive(archive: str) -> Iterator[_Found]:
    from importlib_metadata import MetadataPathFinder

    return _asked_of(MetadataPathFinder.find_distributions, path=[archive])


def _asked_of(find: Callable[[Any], Iterable[Any]], **search: Any) -> Iterator[_Found]:
    """Call a finder through the interface of importlib_metadata, and yield distributions with metadata. Skip those that
    raise, because a finder is third-party code."""
    from importlib_metadata import DistributionFinder

    try:
        distributions = list(find(DistributionFinder.Context(**search)))  # type: ignore[no-untyped-call]
    except Exception:
        return
    for distribution in distributions:
        try:
            name = distribution.metadata["Name"]
            version = distribution.metadata["Version"] or ""
            pairs = _parse(distribution.read_text("entry_points.txt") or "")
        except Exception:
            continue
        if isinstance(name, str):
            yield _Found(normalize_distribution(name), [EntryPoint(*pair, name, version) for pair in pairs], None)


# kind -> name -> distribution
_PROVIDES: Final[Mapping[str, Mapping[str, str]]] = {
    "commands": {
        "compare": "medsegpy-evaluation",
        "demo": "medsegpy-example-datasets",
        "evaluate": "medsegpy-evaluation",
    },
    "readers": {
        "h5-slices": "medsegpy-h5-slices",
        "h5-volumes": "medsegpy-h5-volumes",
        "nifti": "medsegpy-nifti",
    },
    "evaluators": {"SemSegEvaluator": "medsegpy-evaluation"},
}

# Endings of file names. A longer ending precedes a shorter one that it ends with.
_READS: Final[Mapping[str, str]] = {
    ".im": "medsegpy-h5-slices",
    ".seg": "medsegpy-h5-slices",
    ".h5": "medsegpy-h5-volumes",
    ".hdf5": "medsegpy-h5-volumes",
    ".nii.gz": "medsegpy-nifti",
    ".nii": "medsegpy-nifti",
}


def suggest_plugin(kind: str, name: str, installed: Collection[str]) -> str:
    """Return a sentence with the ``pip install`` line of the plugin that provides `name`; empty if none is known, or
    if it is installed."""
    return _line(_PROVIDES.get(kind, {}).get(name), installed)


def suggest_for_suffix(file_name: str, installed: Collection[str]) -> str:
    """Return the same for the plugin that reads files with this ending."""
    low = file_name.lower()
    return _line(next((dist for suffix, dist in _READS.items() if low.endswith(suffix)), None), installed)


def _line(distribution: str | None, installed: Collection[str]) -> str:
    if distribution is None or normalize_distribution(distribution) in map(normalize_distribution, installed):
        return ""
    return f" The plugin {distribution} provides it: pip install {distribution}."
