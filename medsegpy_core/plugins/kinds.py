"""The kinds of records that plugins provide, their owners, and the stage for a plugin that is being loaded."""

from __future__ import annotations

import threading
from collections.abc import Callable, Iterable, Iterator, Mapping, MutableMapping
from contextlib import contextmanager
from functools import partial
from typing import Any, Final, Generic, TypeVar

from attrs import Factory, define, field, frozen

from medsegpy_core.data.metadata import SetValues
from medsegpy_core.errors import DuplicateNameError, PluginError
from medsegpy_core.plugins.specs import (
    Augmentation,
    DatasetSpec,
    EvaluatorSpec,
    LoaderSpec,
    MetricSpec,
    TransformSpec,
)
from medsegpy_core.text import shown
from medsegpy_core.version import __version__

T = TypeVar("T")


@frozen
class Owner:
    """The provider of a record.

    Attributes:
        plugin: The name of the plugin; empty for the process itself.
        distribution: Its name for pip; empty for a plugin that was not installed by pip.
        version: The version of the distribution.
    """

    plugin: str
    distribution: str = ""
    version: str = ""

    def __str__(self) -> str:
        if not self.plugin:
            return "this process"
        if self == CORE:
            return f"{self.distribution} {self.version}"
        packaged = f" ({self.distribution} {self.version})" if self.distribution else " (registered in this process)"
        return f"plugin {self.plugin!r}{packaged}"


PROCESS: Final = Owner("")
CORE: Final = Owner("medsegpy-core", "medsegpy-core", __version__)


@frozen
class Owned(Generic[T]):
    """A record and its owner."""

    record: T
    owner: Owner

    def __str__(self) -> str:
        return f"{self.owner} ({where})" if (where := origin(self.record)) else str(self.owner)


@frozen
class PluginInfo:
    """The state of one installed plugin.

    Attributes:
        name: The name of its entry point.
        distribution: Its name for pip.
        version: Its version.
        status: ``"active"``, ``"failed"`` or ``"blocked"``.
        error: Why it failed or is blocked, else None.
        provides: Kind (``"datasets"``, ``"readers"``, ...) to the sorted names that it provides.
        hooks: The hooks that it implements.
    """

    name: str
    distribution: str
    version: str
    status: str
    error: str | None = None
    provides: Mapping[str, tuple[str, ...]] = field(factory=dict, hash=False)
    hooks: tuple[str, ...] = ()


@frozen
class Kind:
    """A kind of record.

    Attributes:
        name: The plural, as in ``medsegpy plugins``.
        noun: The singular, for messages.
        hook: The hook that returns such records.
        check: Raises `PluginError` for a record that is not of this kind.
    """

    name: str
    noun: str
    hook: str
    check: Callable[[Any], None]


def check_reader(reader: Any) -> None:
    """Check that an object implements `Reader`.

    Raises:
        PluginError: It does not. The message states what is missing.
    """
    if isinstance(reader, type):
        raise PluginError(f"the reader {reader.__qualname__} is a class; return an object: {reader.__qualname__}()")
    name = getattr(reader, "name", None)
    if not isinstance(name, str) or not name:
        raise PluginError(f"the reader {shown(reader)} has no `name`, a str for the key 'reader' of dataset dicts")
    suffixes = getattr(reader, "suffixes", None)
    proper = isinstance(suffixes, tuple) and all(isinstance(s, str) and s[:1] == "." for s in suffixes)
    if not proper or any(s != s.lower() for s in suffixes):  # type: ignore[union-attr]
        raise PluginError(
            f"`suffixes` of the reader {name!r} is {shown(suffixes)}, expected a tuple of lower-case file name "
            "endings with the dot, as in ('.nii', '.nii.gz')"
        )
    for method in ("probe", "open"):
        if not callable(getattr(reader, method, None)):
            raise PluginError(f"the reader {name!r} has no method `{method}`")


def _check_command(command: Any) -> None:
    from importlib import import_module

    if not isinstance(command, import_module("click").Command) or not command.name:
        raise PluginError(f"{shown(command)} is not a click command with a name")


def _instance_of(cls: type) -> Callable[[Any], None]:
    def check(record: Any) -> None:
        if not isinstance(record, cls):
            raise PluginError(f"{shown(record)} is not of type {cls.__name__}")

    return check


KINDS: Final[Mapping[str, Kind]] = {
    kind.name: kind
    for kind in (
        Kind("datasets", "dataset", "medsegpy_register_datasets", _instance_of(DatasetSpec)),
        Kind("readers", "reader", "medsegpy_register_readers", check_reader),
        Kind("augmentations", "augmentation", "medsegpy_register_augmentations", _instance_of(Augmentation)),
        Kind("loaders", "loader", "medsegpy_register_loaders", _instance_of(LoaderSpec)),
        Kind("transforms", "transform", "medsegpy_register_transforms", _instance_of(TransformSpec)),
        Kind("evaluators", "evaluator", "medsegpy_register_evaluators", _instance_of(EvaluatorSpec)),
        Kind("metrics", "metric", "medsegpy_register_metrics", _instance_of(MetricSpec)),
        Kind("commands", "command", "medsegpy_register_commands", _check_command),
    )
}


@define(eq=False)
class Stage:
    """The records of one plugin so far. They take effect if the whole plugin is valid.

    Attributes:
        owner: The plugin.
        records: Kind to identity (the name; for an augmentation the dataset and the number) to record.
        metadata: Dataset to the values of ``MetadataCatalog.get(dataset).set``.
    """

    owner: Owner
    records: dict[str, dict[Any, Any]] = Factory(dict)
    metadata: MutableMapping[str, SetValues] = Factory(dict)

    def add(self, kind: str, record: Any, replace: bool = False) -> None:
        """Add a record.

        Raises:
            PluginError: It is not of this kind.
            DuplicateNameError: The plugin already has one of this name.
        """
        KINDS[kind].check(record)
        same_kind = self.records.setdefault(kind, {})
        identity = (record.dataset, record.number) if isinstance(record, Augmentation) else record.name
        if identity in same_kind and not replace:
            shown = identity
            if isinstance(record, Augmentation):
                shown = f"number {record.number} of {record.dataset or 'all its datasets'}"
            raise DuplicateNameError(f"it provides the {KINDS[kind].noun} {shown!r} twice")
        same_kind[identity] = record

    def names(self) -> dict[str, tuple[str, ...]]:
        """Return the names of the records, kind by kind."""
        return {
            kind: tuple(sorted({record.name for record in records.values()}))
            for kind, records in self.records.items()
            if records
        }


class _Current(threading.local):
    stage: Stage | None = None


_current = _Current()


def current_stage() -> Stage | None:
    """Return the stage of the plugin that this thread is loading, or None."""
    return _current.stage


@contextmanager
def staging(stage: Stage) -> Iterator[None]:
    """Redirect registrations in this thread to a stage."""
    before, _current.stage = _current.stage, stage
    try:
        yield
    finally:
        _current.stage = before


def collect_records(stage: Stage, kind: Kind, result: Any) -> None:
    """Add the records that a register hook returned, as a list or a generator.

    Raises:
        PluginError: The result is not a list of records of this kind.
        DuplicateNameError: A name occurs twice.
    """
    if not isinstance(result, Iterable) or isinstance(result, str | bytes | Mapping):
        raise PluginError(f"{kind.hook} returned {shown(result)}, expected a list of {kind.name}")
    for record in result:
        try:
            stage.add(kind.name, record)
        except PluginError as error:
            raise PluginError(f"{kind.hook}: {error}") from None


def origin(record: Any) -> str:
    """Return where the function of a record is defined, or which class it is; empty if unknown."""
    function = getattr(record, "load", None) or getattr(record, "build", None) or getattr(record, "function", None)
    while isinstance(function, partial):
        function = function.func
    source = function if hasattr(function, "__qualname__") else type(function if function is not None else record)
    module, name = getattr(source, "__module__", None), getattr(source, "__qualname__", "")
    return f"{module}.{name}" if module else name
