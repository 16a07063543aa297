"""`PluginManager`: loads the installed plugins when they are first needed, and looks up their records by name."""

from __future__ import annotations

import warnings
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from typing import TYPE_CHECKING, Any

from medsegpy_core._util.locks import ForkSafeLock
from medsegpy_core.errors import DuplicateNameError, PluginError, PluginWarning
from medsegpy_core.plugins import discovery
from medsegpy_core.plugins.discovery import EntryPoint, allow_list, is_allowed
from medsegpy_core.plugins.kinds import Owned, Owner, PluginInfo, current_stage
from medsegpy_core.plugins.load import (
    CORE_PLUGIN,
    Claims,
    Loaded,
    PluginLoader,
    State,
    blocked_plugin,
    duplicate_name,
    trace,
    unknown_in_allow_list,
    unknown_name,
)

if TYPE_CHECKING:
    import click

    from medsegpy_core.data.metadata import SetValues
    from medsegpy_core.data.records import Record
    from medsegpy_core.plugins.specs import (
        Augmentation,
        DatasetSpec,
        EvaluatorSpec,
        LoaderSpec,
        MetricSpec,
        TransformSpec,
    )
    from medsegpy_core.typing import Reader


class PluginManager:
    """The plugins, their records and their queries.

    Plugins are loaded once, when they are first needed. A failing plugin is reported in a `PluginWarning` and in
    `infos`, and does not affect the others. Thread-safe, also after a fork.
    """

    def __init__(self, entry_points: Iterable[EntryPoint] | None = None) -> None:
        """Create a manager that has loaded nothing yet.

        Args:
            entry_points: The plugins to load; None: the installed ones. Empty: the core's records only.
        """
        self._entry_points = None if entry_points is None else tuple(entry_points)
        self._loader = PluginLoader()
        self._lock = ForkSafeLock(wait=True)
        self._state = State()
        self._complete = False

    # The records of plugins, kind by kind: name to record and owner, without names that more than one plugin claims.

    def datasets(self) -> Mapping[str, Owned[DatasetSpec]]:
        """Return the datasets of plugins, without names that more than one claims."""
        return self._uncontested("datasets")

    def readers(self) -> Mapping[str, Owned[Reader]]:
        """Return the readers of plugins, without names that more than one claims."""
        return self._uncontested("readers")

    def loaders(self) -> Mapping[str, Owned[LoaderSpec]]:
        """Return the loaders of plugins, without names that more than one claims."""
        return self._uncontested("loaders")

    def transforms(self) -> Mapping[str, Owned[TransformSpec]]:
        """Return the transforms of plugins, without names that more than one claims."""
        return self._uncontested("transforms")

    def evaluators(self) -> Mapping[str, Owned[EvaluatorSpec]]:
        """Return the evaluators of plugins, without names that more than one claims."""
        return self._uncontested("evaluators")

    def metrics(self) -> Mapping[str, Owned[MetricSpec]]:
        """Return the metrics of plugins, without names that more than one claims."""
        return self._uncontested("metrics")

    def commands(self) -> Mapping[str, Owned[click.Command]]:
        """Return the commands of plugins, without names that more than one claims."""
        return self._uncontested("commands")

    def augmentations(self) -> Sequence[Owned[Augmentation]]:
        """Return the augmentations that plugins declare."""
        return self._loaded().augmentations

    def claims(self, kind: str) -> Claims[Any]:
        """Return name to all owners that claim it; the same object as long as nothing changes.

        Args:
            kind: ``"datasets"``, ``"readers"``, ``"loaders"``, ``"transforms"``, ``"evaluators"``, ``"metrics"`` or
                ``"commands"``.
        """
        return self._loaded().claims[kind]

    def lookup(self, kind: str, name: str, claims: Claims[Any] | None = None) -> Owned[Any]:
        """Return a record by name.

        Args:
            kind: As in `claims`.
            name: The name.
            claims: The claims to search instead of those of the plugins.

        Raises:
            UnknownNameError: There is no such record. The message lists the known names and the failed plugins.
            DuplicateNameError: More than one owner claims the name. The message names them.
        """
        state = self._loaded()
        claims = state.claims[kind] if claims is None else claims
        owners = claims.get(name, ())
        if len(owners) > 1:
            raise duplicate_name(kind, name, owners)
        if not owners:
            raise unknown_name(kind, name, claims, state)
        return owners[0]

    def declared_augmentation(self, dataset: str, number: int) -> Augmentation | None:
        """Return the declared meaning of an augmentation number of a dataset, or None.

        Declarations of the plugin that owns the dataset come first, and among these one for this dataset.

        Raises:
            DuplicateNameError: Two other plugins declare it.
        """
        state = self._loaded()
        return state.declared_augmentation(dataset, number)

    def infos(self) -> list[PluginInfo]:
        """Return the state of each plugin, sorted by name: active, failed and blocked ones."""
        return [plugin.info for entry_point, plugin in self._loaded().loaded.items() if entry_point != CORE_PLUGIN]

    def contested(self) -> dict[tuple[str, str], tuple[Owner, ...]]:
        """Return the names that more than one plugin claims: (kind, name) to the owners. The names of the plugins
        themselves have the kind ``"plugins"``."""
        return self._loaded().contested()

    # Queries.

    def dataset_metadata(self, dataset: str) -> Owned[Mapping[str, Any]] | None:
        """Return the metadata of a dataset from the first plugin that has any, its owner first, or None."""
        return self._ask("medsegpy_dataset_metadata", dataset, _checked_metadata, {"dataset": dataset})

    def tag_augmentation(self, dataset: str, record: Record) -> int | None:
        """Return the augmentation number of an element from the first plugin that knows it, owner first, or None."""
        arguments = {"dataset": dataset, "record": record}
        answer = self._ask("medsegpy_tag_augmentation", dataset, _checked_number, arguments)
        return None if answer is None else answer.record

    def staged_metadata(self, dataset: str) -> list[Owned[SetValues]]:
        """Return the values that plugins passed to ``MetadataCatalog.get(dataset).set`` while they were loaded."""
        return self._loaded().staged_metadata.get(dataset, [])

    def staged_metadata_names(self) -> set[str]:
        """Return the datasets whose metadata plugins set while they were loaded."""
        return set(self._loaded().staged_metadata)

    def register_plugin(self, plugin: Any, name: str, replace: bool = False) -> PluginInfo:
        """Add a plugin that is not installed: a module, or any object with ``@hookimpl`` functions. For notebooks and
        tests.

        Args:
            plugin: The module or object.
            name: Its name.
            replace: Whether to replace a plugin of this name that was added before.

        Raises:
            PluginError: It is broken. Nothing of it is kept.
            DuplicateNameError: A plugin of this name exists.
        """
        self._loaded()
        with self._lock:
            loaded = dict(self._state.loaded)
            for entry_point in [entry_point for entry_point in loaded if entry_point.name == name]:
                if not replace or entry_point.distribution:
                    raise DuplicateNameError(f"There is already a plugin {name!r}: {loaded[entry_point].owner}.")
                self._loader.unload(entry_point)
                del loaded[entry_point]
            entry_point = EntryPoint(name, getattr(plugin, "__name__", type(plugin).__qualname__), "", "")
            result = self._loader.load(entry_point, plugin)
            if result.info.status != "active":
                self._loader.unload(entry_point)
            else:
                loaded[entry_point] = result
            self._state = State.of(loaded)
        if result.info.error is not None:
            raise PluginError(f"Plugin {name!r}: {result.info.error}")
        return result.info

    def _uncontested(self, kind: str) -> dict[str, Owned[Any]]:
        return {name: owners[0] for name, owners in sorted(self.claims(kind).items()) if len(owners) == 1}

    def _loaded(self) -> State:
        stage = current_stage()
        if stage is not None:
            raise PluginError(
                f"{stage.owner} uses a catalog or other plugins while plugins are being loaded. Only register at "
                "this time, and read later: in the `load` function of a dataset, or in what a hook's record builds."
            )
        if not self._complete:
            self._load_all()
        return self._state

    def _load_all(self) -> None:
        problems = []
        with self._lock:
            if not self._complete:
                entry_points = discovery.installed() if self._entry_points is None else self._entry_points
                allowed = allow_list()
                for entry_point in (CORE_PLUGIN, *sorted(set(entry_points))):
                    # A previous attempt, ended by Ctrl-C, may have loaded some.
                    if entry_point not in self._state.loaded:
                        may_load = entry_point == CORE_PLUGIN or is_allowed(entry_point.distribution, allowed)
                        plugin = self._loader.load(entry_point) if may_load else blocked_plugin(entry_point)
                        self._state = State.of({**self._state.loaded, entry_point: plugin})
                self._complete = True
                problems = [_failure(plugin) for plugin in self._state.loaded.values() if plugin.info.error]
                if allowed:
                    problems += unknown_in_allow_list(allowed, {*entry_points, *discovery.installed()})
        # After the commit, because a warning may be turned into an exception.
        _warn_of(problems)

    def _ask(
        self, hook: str, dataset: str, check: Callable[[Any], Any], arguments: Mapping[str, Any]
    ) -> Owned[Any] | None:
        for plugin in self._loaded().asked(hook, dataset):
            try:
                answer = plugin.questions[hook](**arguments)
                answer = None if answer is None else check(answer)
            except KeyboardInterrupt:
                raise
            except BaseException as error:  # noqa: BLE001 -- also a plugin's SystemExit
                warnings.warn(
                    f"{plugin.owner} is skipped: {hook}({dataset!r}) failed with {type(error).__name__}: {error}",
                    PluginWarning,
                    stacklevel=3,
                )
                continue
            trace(f"{plugin.owner}: {hook}({dataset!r}) -> {answer!r}")
            if answer is not None:
                return Owned(answer, plugin.owner)
        return None


def _failure(plugin: Loaded) -> str:
    return f"{plugin.owner} failed and is left out: {plugin.info.error}"


def _warn_of(problems: Sequence[str]) -> None:
    raised: Warning | None = None
    for problem in problems:
        try:
            warnings.warn(problem, PluginWarning, stacklevel=2)
        except Warning as warning:
            # Turned into an exception: issue the other warnings first.
            raised = raised or warning
    if raised is not None:
        raise raised


def _checked_metadata(answer: Any) -> dict[str, Any]:
    if not isinstance(answer, Mapping) or not all(isinstance(key, str) for key in answer):
        raise PluginError(f"expected a mapping with str keys, or None, but the answer is {answer!r}")
    return dict(answer)


def _checked_number(answer: Any) -> int:
    if not isinstance(answer, int) or isinstance(answer, bool) or not 0 <= answer <= 99:
        raise PluginError(f"expected a number from 0 to 99, or None, but the answer is {answer!r}")
    return answer


_default: list[PluginManager] = []
_default_lock = ForkSafeLock()


def default_manager() -> PluginManager:
    """Return the manager of the installed plugins. It is created on the first call."""
    with _default_lock:
        if not _default:
            _default.append(PluginManager())
        return _default[-1]


@contextmanager
def use_manager(manager: PluginManager) -> Iterator[PluginManager]:
    """Use another manager as the default one during a ``with`` block, in all threads. For tests."""
    default_manager()
    _default.append(manager)
    try:
        yield manager
    finally:
        _default.remove(manager)
