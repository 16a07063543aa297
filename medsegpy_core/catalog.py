"""`DatasetCatalog` and `MetadataCatalog`: datasets, and what they mean, by name."""

from __future__ import annotations

import builtins
import copy
import functools
import os
from collections.abc import Callable, Iterable, Iterator, Mapping, MutableMapping, Sequence
from typing import Any

from medsegpy_core._util.locks import ForkSafeLock
from medsegpy_core.data.metadata import Layer, Metadata, SetValues
from medsegpy_core.data.records import Record
from medsegpy_core.errors import RecordError, UnknownNameError, closest_match
from medsegpy_core.plugins.kinds import Owner, current_stage
from medsegpy_core.plugins.manager import PluginManager, default_manager
from medsegpy_core.plugins.registry import Registry
from medsegpy_core.plugins.specs import Augmentation, DatasetSpec
from medsegpy_core.reading.readers import find_reader
from medsegpy_core.reading.record_maker import RecordMaker, datasets_root
from medsegpy_core.typing import DatasetDict, GetDicts

# The collection of all that is registered in the process, where its metadata names no other.
PROCESS_COLLECTION = "(this process)"


class _DatasetCatalog:
    """Datasets by name: those of plugins and those registered in the process.

    It may be used from several threads. A function that brings dicts is called when its dataset is asked for.
    """

    def __init__(self, manager: Callable[[], PluginManager] = default_manager) -> None:
        self._registry: Registry[DatasetSpec] = Registry("datasets", manager)

    def register(self, name: str, get_dicts: GetDicts, replace: bool = False) -> None:
        """Register a dataset for as long as the process runs. No plugin is loaded.

        Args:
            name: Its name; ``@`` is reserved.
            get_dicts: A function without arguments that returns the list of dataset dicts.
            replace: Whether it may take the place of another of this name, for notebooks.

        Raises:
            DuplicateNameError: The name is registered already. A clash with a plugin's name shows on `get`.
            ValueError: The name is empty, or has an ``@``.
            TypeError: `get_dicts` is not a function.
        """
        if not callable(get_dicts):
            raise TypeError(
                f"DatasetCatalog.register({name!r}, ...) takes a function that returns the dataset dicts, not "
                f"{type(get_dicts).__name__}. Hand over the function itself, without calling it."
            )
        self._registry.register(DatasetSpec(name=name, load=get_dicts), replace)

    def get(self, name: str) -> Sequence[DatasetDict]:
        """Return what the function of a dataset returns, unchecked.

        Each mapping in it comes as a shallow copy that has the name asked for as `dataset_name`, so that it is known as
        an element of this dataset in any other list. Anything else is returned as it is.

        Raises:
            UnknownNameError: There is no such dataset. The message has the known names and the plugins that failed.
            DuplicateNameError: More than one owner claims the name. The message names them.
        """
        owned = self._registry.get(name)
        try:
            found: Sequence[DatasetDict] = named_dicts(owned.record.load(), name)
            return found
        except Exception as error:
            error.add_note(f"Raised by the function that lists the dataset {name!r}: {owned}.")
            raise

    def list(self) -> builtins.list[str]:
        """Return the names of all datasets, sorted."""
        return self._registry.names()

    def remove(self, name: str) -> None:
        """Take back a dataset that was registered in the process.

        Raises:
            UnknownNameError: There is no such dataset, or a plugin brings it.
        """
        self._registry.remove(name)

    def __contains__(self, name: object) -> bool:
        return name in self._registry.claims()

    def __repr__(self) -> str:
        return f"DatasetCatalog(registered in this process: {', '.join(self._registry.own_names()) or 'none'})"

    @property
    def registry(self) -> Registry[DatasetSpec]:
        """The datasets with their owners."""
        return self._registry


def named_dicts(found: Any, name: str) -> Any:
    """Return what a dataset's function returned, each mapping in it as a copy that knows its dataset."""
    if isinstance(found, Iterator):
        return (_with_dataset(member, name) for member in found)
    if not isinstance(found, Iterable) or isinstance(found, str | bytes | Mapping):
        return found
    members = list(found)
    if not any(isinstance(member, Mapping) for member in members):
        return found
    # In place, so that no third list of 200,000 is made.
    for i, member in enumerate(members):
        members[i] = _with_dataset(member, name)
    return tuple(members) if isinstance(found, tuple) else members


def _with_dataset(member: Any, name: str) -> Any:
    if type(member) is dict:
        return {**member, "dataset_name": name}
    if not isinstance(member, Mapping):
        return member
    if isinstance(member, MutableMapping):
        try:
            copied = copy.copy(member)
            copied["dataset_name"] = name
            return copied
        except TypeError:  # a mapping that refuses changes, though its base class does not
            pass
    return {**member, "dataset_name": name}


class _MetadataCatalog:
    """Metadata by the name of the dataset. It may be used from several threads."""

    def __init__(self, datasets: _DatasetCatalog, manager: Callable[[], PluginManager] = default_manager) -> None:
        self._datasets = datasets
        self._manager = manager
        self._lock = ForkSafeLock()
        self._metadata: dict[str, Metadata] = {}
        self._layers: dict[str, tuple[object, tuple[Layer, ...]]] = {}

    def get(self, name: str) -> Metadata:
        """Return the metadata of a dataset, the same object every time. The dataset need not be registered yet.

        Raises:
            ValueError: The name is empty, or has an ``@``, which is reserved.
        """
        if not isinstance(name, str) or not name or "@" in name:  # type: ignore[redundant-expr]
            raise ValueError(
                f"{name!r} is not the name of a dataset: a str, not empty, without '@', which is reserved."
            )
        with self._lock:
            if name not in self._metadata:
                self._metadata[name] = Metadata(name, self._below, _staged, functools.partial(_file_says, name))
            return self._metadata[name]

    def list(self) -> builtins.list[str]:
        """Return the names that have metadata, sorted."""
        claims = self._datasets.registry.claims()
        names = set(claims) | self._manager().staged_metadata_names()
        contested = {name for name in names if len(claims.get(name, ())) > 1}
        with_plugins = {name for name in names - contested if self._below(name)}
        return sorted(contested | with_plugins | set(self._own_names()))

    def remove(self, name: str) -> None:
        """Take back what was set in the process; what a plugin says stays.

        Raises:
            UnknownNameError: Nothing was set.
        """
        with self._lock:
            metadata = self._metadata.get(name)
            known = self._own_names()
            if metadata is None or name not in known:
                raise UnknownNameError(
                    f"No metadata of {name!r} was set in this process.{closest_match(str(name), known)} "
                    f"Set were those of: {', '.join(known) or 'none'}."
                )
            metadata.clear()
            del self._metadata[name]

    def __contains__(self, name: object) -> bool:
        return name in self.list()

    def _own_names(self) -> builtins.list[str]:
        return sorted(name for name, metadata in tuple(self._metadata.items()) if metadata.own.layers(""))

    def _below(self, name: str) -> tuple[Layer, ...]:
        """Return the layers of the plugins, the same tuple as long as nothing has changed."""
        manager = self._manager()
        datasets = self._datasets.registry.claims()
        known = self._layers.get(name)
        if known is not None and known[0] is datasets:
            return known[1]
        layers = []
        if name in datasets:
            owned = self._datasets.registry.get(name)
            if owned.record.metadata:
                layers.append(Layer(f"DatasetSpec.metadata of {owned.owner}", owned.record.metadata))
        answer = manager.dataset_metadata(name)
        if answer is not None:
            layers.append(Layer(f"medsegpy_dataset_metadata of {answer.owner}", answer.record, overrides=True))
        for staged in manager.staged_metadata(name):
            layers.extend(staged.record.layers(f"MetadataCatalog in {staged.owner}"))
        self._layers[name] = datasets, tuple(layers)
        return self._layers[name][1]


def _staged() -> MutableMapping[str, SetValues] | None:
    stage = current_stage()
    return None if stage is None else stage.metadata


def _file_says(name: str, scan: Mapping[Any, Any] | Record) -> Mapping[str, Any]:
    """Read the header of the file of a dataset dict, where there is one."""
    file_name = scan.file_name if isinstance(scan, Record) else scan.get("file_name")
    if not isinstance(file_name, str | os.PathLike):
        return {}
    if not (datasets_root() / file_name).is_file():
        return {}
    try:
        maker = RecordMaker([name], MetadataCatalog.get)
        record = scan if isinstance(scan, Record) else maker.make(dict(scan), name, 0)
        reader = find_reader(record)
    except (RecordError, UnknownNameError):
        return {}  # a custom dict, for a custom loader
    with reader.open(record) as opened:
        return dict(opened.metadata)


DatasetCatalog = _DatasetCatalog()
MetadataCatalog = _MetadataCatalog(DatasetCatalog)


def dataset_spec(name: str) -> DatasetSpec:
    """Return the `DatasetSpec` of a dataset: its function, split and description.

    Raises:
        UnknownNameError: There is no such dataset.
        DuplicateNameError: More than one owner claims the name.
    """
    return DatasetCatalog.registry.get(name).record


def dataset_owner(name: str) -> Owner:
    """Return who brings a dataset; its `plugin` is empty for one registered in the process.

    Raises:
        UnknownNameError: There is no such dataset.
        DuplicateNameError: More than one owner claims the name.
    """
    return DatasetCatalog.registry.get(name).owner


def collection_of(name: str) -> str:
    """Return the collection of subjects that a dataset draws from: its metadata's `collection`, else the plugin's
    distribution, else one value for all that is registered in the process.

    Two datasets of one collection mean the same person when they say the same `subject_id`.
    """
    collection = MetadataCatalog.get(name).get("collection")
    if collection is not None:
        return str(collection)
    owner = dataset_owner(name) if name in DatasetCatalog else None
    return owner.distribution or PROCESS_COLLECTION if owner else PROCESS_COLLECTION


def declared_augmentation(dataset: str, number: int) -> Augmentation | None:
    """Return what a plugin declares an augmentation number of a dataset to mean, or None.

    Raises:
        DuplicateNameError: Two plugins declare it, and neither brings the dataset.
    """
    return default_manager().declared_augmentation(dataset, number)
