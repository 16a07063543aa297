"""`DatasetCatalog` and `MetadataCatalog`: datasets and their metadata, by name."""

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

# The collection of all datasets registered in the process, unless their metadata name another.
PROCESS_COLLECTION = "(this process)"


class _DatasetCatalog:
    """Datasets by name: those of plugins and those registered in the process.

    Thread-safe. The function of a dataset is called each time `get` needs its dicts.
    """

    def __init__(self, manager: Callable[[], PluginManager] = default_manager) -> None:
        self._registry: Registry[DatasetSpec] = Registry("datasets", manager)

    def register(self, name: str, get_dicts: GetDicts, replace: bool = False) -> None:
        """Register a dataset until the process ends. This loads no plugin.

        Args:
            name: The name; ``@`` is reserved.
            get_dicts: A function without arguments that returns the list of dataset dicts.
            replace: Whether to replace an existing dataset of this name, for notebooks.

        Raises:
            DuplicateNameError: The name is already registered. A clash with a plugin's name is reported by `get`.
            ValueError: The name is empty or contains ``@``.
            TypeError: `get_dicts` is not a function.
        """
        if not callable(get_dicts):
            raise TypeError(
                f"DatasetCatalog.register({name!r}, ...) takes a function that returns the dataset dicts, not "
                f"{type(get_dicts).__name__}. Pass the function itself, without calling it."
            )
        self._registry.register(DatasetSpec(name=name, load=get_dicts), replace)

    def get(self, name: str) -> Sequence[DatasetDict]:
        """Return the result of a dataset's function, unchecked.

        Each mapping is replaced by a shallow copy with this name as `dataset_name`, so that it can be recognized as an
        element of this dataset in any other list. Anything else is returned unchanged.

        Raises:
            UnknownNameError: There is no such dataset. The message lists the known names and the failed plugins.
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
        """Remove a dataset that was registered in the process.

        Raises:
            UnknownNameError: There is no such dataset, or a plugin provides it.
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
    """Return the result of a dataset's function with a copy of each mapping that contains the dataset's name."""
    if isinstance(found, Iterator):
        return (_with_dataset(member, name) for member in found)
    if not isinstance(found, Iterable) or isinstance(found, str | bytes | Mapping):
        return found
    members = list(found)
    if not any(isinstance(member, Mapping) for member in members):
        return found
    # In place, to avoid a third list of 200,000 dicts.
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
        except TypeError:  # a mapping that refuses changes, despite its base class
            pass
    return {**member, "dataset_name": name}


class _MetadataCatalog:
    """Metadata by the name of the dataset. Thread-safe."""

    def __init__(self, datasets: _DatasetCatalog, manager: Callable[[], PluginManager] = default_manager) -> None:
        self._datasets = datasets
        self._manager = manager
        self._lock = ForkSafeLock()
        self._metadata: dict[str, Metadata] = {}
        self._layers: dict[str, tuple[object, tuple[Layer, ...]]] = {}

    def get(self, name: str) -> Metadata:
        """Return the metadata of a dataset, always the same object. The dataset need not be registered yet.

        Raises:
            ValueError: The name is empty or contains ``@``, which is reserved.
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
        # A contested name is listed without resolving its metadata, which would raise.
        claims = self._datasets.registry.claims()
        names = set(claims) | self._manager().staged_metadata_names()
        contested = {name for name in names if len(claims.get(name, ())) > 1}
        with_plugins = {name for name in names - contested if self._below(name)}
        return sorted(contested | with_plugins | set(self._own_names()))

    def remove(self, name: str) -> None:
        """Remove the values set in the process; those of plugins stay.

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
        """Return the layers of the plugins, the same tuple as long as they are unchanged."""
        manager = self._manager()
        datasets = self._datasets.registry.claims()
        # The registry returns the same object until something is registered or loaded.
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
    """Read the header of the file of a dataset dict, if it exists."""
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
    """Return the owner of a dataset; its `plugin` is empty for one registered in the process.

    Raises:
        UnknownNameError: There is no such dataset.
        DuplicateNameError: More than one owner claims the name.
    """
    return DatasetCatalog.registry.get(name).owner


def collection_of(name: str) -> str:
    """Return the collection of subjects of a dataset: its metadata's `collection`, else the plugin's distribution, else
    a single value for all datasets registered in the process.

    Within a collection, the same `subject_id` means the same person.
    """
    collection = MetadataCatalog.get(name).get("collection")
    if collection is not None:
        return str(collection)
    owner = dataset_owner(name) if name in DatasetCatalog else None
    return owner.distribution or PROCESS_COLLECTION if owner else PROCESS_COLLECTION


def declared_augmentation(dataset: str, number: int) -> Augmentation | None:
    """Return the meaning of an augmentation number that a plugin declares for a dataset, or None.

    Raises:
        DuplicateNameError: Two plugins declare it, and neither owns the dataset.
    """
    return default_manager().declared_augmentation(dataset, number)
