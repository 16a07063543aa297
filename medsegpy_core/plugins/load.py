"""Loading plugins, each isolated from the others. The state is a single immutable object."""

from __future__ import annotations

import importlib
import inspect
import os
import sys
import time
import traceback
from collections.abc import Callable, Iterable, Mapping, Sequence
from typing import TYPE_CHECKING, Any, Final, TypeVar

import pluggy
from attrs import field, frozen

from medsegpy_core.errors import DuplicateNameError, MedSegPyError, PluginError, UnknownNameError, closest_match
from medsegpy_core.plugins.discovery import EntryPoint, normalize_distribution, suggest_plugin
from medsegpy_core.plugins.hookspecs import PROJECT, HookSpecs
from medsegpy_core.plugins.kinds import CORE, KINDS, Owned, Owner, PluginInfo, Stage, collect_records, staging
from medsegpy_core.text import printable
from medsegpy_core.version import API_VERSION, __version__

if TYPE_CHECKING:
    from medsegpy_core.data.metadata import SetValues
    from medsegpy_core.plugins.specs import Augmentation


T = TypeVar("T")

# The records of the core: a plugin like others, but always loaded, first, and not listed as installed.
CORE_PLUGIN: Final = EntryPoint(CORE.plugin, "medsegpy_core.builtin_plugin", CORE.distribution, CORE.version)

# Name to all owners that claim it.
Claims = Mapping[str, tuple[Owned[T], ...]]


@frozen(eq=False)
class State:
    """Everything that is loaded. It is replaced as a whole, so that reading it needs no lock.

    Attributes:
        loaded: The plugins, sorted by name and distribution.
        claims: Kind to name to all owners that claim it, except augmentations.
        augmentations: The augmentations that plugins declare.
        staged_metadata: Dataset to the values that plugins set while they were loaded.
        questions: Name of a query to the plugins that implement it.
    """

    loaded: Mapping[EntryPoint, Loaded] = field(factory=dict)
    claims: Mapping[str, Claims[Any]] = field(factory=lambda: {kind: {} for kind in KINDS})
    augmentations: Sequence[Owned[Augmentation]] = ()
    staged_metadata: Mapping[str, list[Owned[SetValues]]] = field(factory=dict)
    questions: Mapping[str, Sequence[Loaded]] = field(factory=dict)

    @classmethod
    def of(cls, loaded: Mapping[EntryPoint, Loaded]) -> State:
        """Combine the records of plugins."""
        ordered = dict(sorted(loaded.items(), key=lambda item: item[0]))
        claims: dict[str, dict[str, tuple[Owned[Any], ...]]] = {kind: {} for kind in KINDS}
        augmentations: list[Owned[Augmentation]] = []
        staged: dict[str, list[Owned[SetValues]]] = {}
        questions: dict[str, list[Loaded]] = {}
        for plugin in ordered.values():
            for kind, records in plugin.stage.records.items():
                owned = [Owned(record, plugin.owner) for record in records.values()]
                if kind == "augmentations":
                    augmentations.extend(owned)
                    continue
                for one in owned:
                    claims[kind][one.record.name] = (*claims[kind].get(one.record.name, ()), one)
            for dataset, values in plugin.stage.metadata.items():
                staged.setdefault(dataset, []).append(Owned(values, plugin.owner))
            for hook in plugin.questions:
                questions.setdefault(hook, []).append(plugin)
        return cls(ordered, claims, augmentations, staged, questions)

    def owner_of(self, dataset: str) -> Owner | None:
        """Return the plugin that provides a dataset; None unless there is exactly one."""
        owners = self.claims["datasets"].get(dataset, ())
        return owners[0].owner if len(owners) == 1 else None

    def asked(self, hook: str, dataset: str) -> Sequence[Loaded]:
        """Return the plugins that implement a query, the owner of the dataset first."""
        plugins = self.questions.get(hook, ())
        if len(plugins) < 2:
            return plugins
        owner = self.owner_of(dataset)
        return sorted(plugins, key=lambda plugin: plugin.owner != owner)

    def declared_augmentation(self, dataset: str, number: int) -> Augmentation | None:
        """Return the declared meaning of an augmentation number of a dataset, or None.

        Raises:
            DuplicateNameError: Two plugins declare it, and neither owns the dataset.
        """
        owner = self.owner_of(dataset)
        same_number = [owned for owned in self.augmentations if owned.record.number == number]
        its_own = [owned for owned in same_number if owned.owner == owner and owned.record.dataset in (dataset, None)]
        for owned in sorted(its_own, key=lambda owned: owned.record.dataset is None):
            return owned.record
        others = [owned for owned in same_number if owned.record.dataset == dataset]
        if len(others) > 1:
            raise duplicate_name("augmentations", f"{dataset}, number {number}", others)
        return others[0].record if others else None

    def contested(self) -> dict[tuple[str, str], tuple[Owner, ...]]:
        """Return the names that more than one plugin claims."""
        claimed: dict[tuple[str, str], list[Owner]] = {}
        for plugin in self.loaded.values():
            if plugin.info.status != "blocked":
                claimed.setdefault(("plugins", plugin.owner.plugin), []).append(plugin.owner)
        for kind, names in self.claims.items():
            for name, owners in names.items():
                claimed[kind, name] = [owned.owner for owned in owners]
        for owned in self.augmentations:
            if owned.record.dataset is not None:
                name = f"{owned.record.dataset}, number {owned.record.number}"
                claimed.setdefault(("augmentations", name), []).append(owned.owner)
        return {what: tuple(owners) for what, owners in claimed.items() if len(owners) > 1}


def unknown_in_allow_list(allowed: str | None, entry_points: Iterable[EntryPoint]) -> list[str]:
    """Return a message for each name in an `allow_list` that is not the distribution of a plugin."""
    distributions = {normalize_distribution(point.distribution): point.distribution for point in entry_points}
    owners: dict[str, list[str]] = {}
    for point in entry_points:
        owners.setdefault(normalize_distribution(point.name), []).append(point.distribution)
    said = []
    for name in filter(None, map(str.strip, (allowed or "").split(","))):
        if (key := normalize_distribution(name)) in distributions:
            continue
        text = f"MEDSEGPY_LOAD_PLUGINS names {name!r}, but it takes the names of distributions, and "
        if key in owners:
            text += f"{name!r} is the name of a plugin: write {' or '.join(map(repr, sorted(owners[key])))} instead."
        else:
            known = sorted(distributions.values())
            text += f"no distribution with a plugin has this name.{closest_match(key, known)} Installed: "
            text += f"{', '.join(known) or 'none'}."
        said.append(text)
    return said


def blocked_plugin(entry_point: EntryPoint) -> Loaded:
    """Return the placeholder for a plugin that must not be loaded."""
    owner = Owner(entry_point.name, entry_point.distribution, entry_point.version)
    return Loaded(owner, PluginInfo(owner.plugin, owner.distribution, owner.version, "blocked"), Stage(owner), {})


def duplicate_name(kind: str, name: str, owners: Iterable[Owned[Any]]) -> DuplicateNameError:
    """Return the error for a name that more than one owner claims."""
    owners = list(owners)
    remedies = [
        f"pip uninstall {owned.owner.distribution}"
        for owned in owners
        if owned.owner.distribution and owned.owner != CORE
    ]
    remedies.append("name the plugins to load in MEDSEGPY_LOAD_PLUGINS")
    if not all(owned.owner.plugin for owned in owners):
        remedies.insert(0, "register under another name, or with replace=True")
    return DuplicateNameError(
        f"The {KINDS[kind].noun} name {name!r} is claimed by {' and by '.join(map(str, owners))}. "
        f"To choose: {'; or '.join(remedies)}."
    )


def unknown_name(kind: str, name: str, known: Iterable[str], state: State) -> UnknownNameError:
    """Return the error for an unknown name."""
    names = sorted(known)
    infos = [plugin.info for plugin in state.loaded.values()]
    listed = f"Known {kind}: {', '.join(names)}." if names else f"There are no {kind}."
    text = f"There is no {KINDS[kind].noun} {name!r}.{closest_match(str(name), names)} {listed}"
    text += suggest_plugin(kind, name, [info.distribution for info in infos])
    failed = [f"{Owner(info.name, info.distribution, info.version)}: {info.error}" for info in infos if info.error]
    if failed:
        text += f" Plugins that failed and may provide it: {'; '.join(failed)}."
    blocked = [info.distribution for info in infos if info.status == "blocked"]
    if blocked:
        text += f" Not loaded, because MEDSEGPY_LOAD_PLUGINS does not name them: {', '.join(blocked)}."
    return UnknownNameError(text)


_SPECS: Final = {name: value for name, value in vars(HookSpecs).items() if name.startswith("medsegpy_")}
_QUESTIONS: Final = frozenset(_SPECS) - {kind.hook for kind in KINDS.values()}


@frozen(eq=False)
class Loaded:
    """A plugin after the attempt to load it.

    Attributes:
        owner: The plugin.
        info: Its state.
        stage: Its records; empty if it failed.
        questions: Name of a query to its implementation.
    """

    owner: Owner
    info: PluginInfo
    stage: Stage
    questions: Mapping[str, Callable[..., Any]]


class PluginLoader:
    """Loads plugins one by one into pluggy, each isolated from faults of the others."""

    def __init__(self) -> None:
        self._pluggy = pluggy.PluginManager(PROJECT)
        self._pluggy.add_hookspecs(HookSpecs)
        # Successful imports. A module runs only once, so its registrations must survive a Ctrl-C during its hooks.
        self._imported: dict[EntryPoint, tuple[Any, Stage]] = {}

    def load(self, entry_point: EntryPoint, plugin: Any = None) -> Loaded:
        """Load a plugin. A failure is reported in the result, never raised.

        Args:
            entry_point: Its name, module and distribution.
            plugin: The module, if it is already imported.
        """
        owner = Owner(entry_point.name, entry_point.distribution, entry_point.version)
        try:
            stage = self._import(entry_point, owner, plugin)
            plugin = self._imported[entry_point][0]
            with staging(stage):
                questions = self._register(entry_point, plugin, stage)
        except KeyboardInterrupt:
            raise
        except BaseException as error:  # noqa: BLE001 -- SystemExit, or a test framework's, must not end the program
            info = PluginInfo(*_identity(owner), status="failed", error=_explain(error, entry_point))
            return Loaded(owner, info, Stage(owner), {})
        hooks = tuple(sorted(name for name, _ in _implementations(self._pluggy, plugin)))
        info = PluginInfo(*_identity(owner), status="active", provides=stage.names(), hooks=hooks)
        return Loaded(owner, info, stage, questions)

    def unload(self, entry_point: EntryPoint) -> None:
        """Remove a plugin."""
        self._imported.pop(entry_point, None)
        self._pluggy.unregister(name=_key(entry_point))

    def _import(self, entry_point: EntryPoint, owner: Owner, plugin: Any) -> Stage:
        """Import the module, and return a copy of what it registered during the import."""
        if entry_point not in self._imported:
            stage = Stage(owner)
            if plugin is None:
                with staging(stage):
                    start = time.perf_counter()
                    plugin = _import(entry_point)
                    trace(f"{owner}: imported in {(time.perf_counter() - start) * 1e3:.1f} ms")
            self._imported[entry_point] = plugin, stage
        imported = self._imported[entry_point][1]
        records = {kind: dict(records) for kind, records in imported.records.items()}
        return Stage(owner, records, dict(imported.metadata))

    def _register(self, entry_point: EntryPoint, plugin: Any, stage: Stage) -> dict[str, Callable[..., Any]]:
        _check_api(plugin)
        _check_hooks(self._pluggy, plugin)
        if (other := self._pluggy.get_name(plugin)) is not None:
            raise PluginError(f"its module {entry_point.value!r} is already loaded, as the plugin {other}")
        try:
            self._pluggy.register(plugin, name=_key(entry_point))
            functions = self._functions_of(plugin)
            for kind in KINDS.values():
                if kind.hook in functions and (result := functions[kind.hook]()) is not None:
                    collect_records(stage, kind, result)
                    trace(f"{stage.owner}: {kind.hook}() -> {', '.join(stage.names().get(kind.name, ()))}")
        except BaseException:
            self._pluggy.unregister(name=_key(entry_point))
            raise
        return {hook: function for hook, function in functions.items() if hook in _QUESTIONS}

    def _functions_of(self, plugin: Any) -> dict[str, Callable[..., Any]]:
        """Return the hooks that a registered plugin implements: name to function, which accepts all arguments."""
        return {
            caller.name: _by_name(implementation)
            for caller in self._pluggy.get_hookcallers(plugin) or ()
            for implementation in caller.get_hookimpls()
            if implementation.plugin is plugin
        }


def trace(text: str) -> None:
    """Write a line to stderr if `MEDSEGPY_TRACE_PLUGINS` is set."""
    if os.environ.get("MEDSEGPY_TRACE_PLUGINS", "0") not in ("", "0"):
        sys.stderr.write(f"medsegpy: {printable(text)}\n")


def _key(entry_point: EntryPoint) -> str:
    """Return the unique name for pluggy: names of entry points alone need not differ."""
    return f"{entry_point.name} ({entry_point.distribution or 'this process'}: {entry_point.value})"


def _identity(owner: Owner) -> tuple[str, str, str]:
    return owner.plugin, owner.distribution, owner.version


def _import(entry_point: EntryPoint) -> Any:
    module, _, attributes = entry_point.value.partition("[")[0].partition(":")
    if not module.strip():
        raise PluginError(f"its entry point {entry_point.name!r} names no module: expected 'name = package.module'")
    value: Any = importlib.import_module(module.strip())
    for attribute in filter(None, attributes.strip().split(".")):
        value = getattr(value, attribute)
    return value


def _check_api(plugin: Any) -> None:
    needed = getattr(plugin, "medsegpy_api", API_VERSION)
    if not isinstance(needed, int) or isinstance(needed, bool) or needed < 1:
        raise PluginError(
            f"its `medsegpy_api` is {needed!r}, expected the version number of the hooks, such as {API_VERSION}"
        )
    if needed > API_VERSION:
        raise PluginError(
            f"it needs version {needed} of the hooks, but medsegpy-core {__version__} has {API_VERSION}: "
            "pip install --upgrade medsegpy-core"
        )


def _implementations(manager: pluggy.PluginManager, plugin: Any) -> list[tuple[str, Any]]:
    """Return the hook name and the options of each function that is marked with ``@hookimpl``."""
    options = ((name, manager.parse_hookimpl_opts(plugin, name)) for name in dir(plugin))
    return [(found.get("specname") or name, found) for name, found in options if found is not None]


def _check_hooks(manager: pluggy.PluginManager, plugin: Any) -> None:
    """Check what pluggy does not check, or reports less clearly."""
    implementations = _implementations(manager, plugin)
    marked = [name for name, _ in implementations]
    for name, options in implementations:
        if name not in _SPECS and not options.get("optionalhook"):
            raise PluginError(
                f"there is no hook {name!r}.{closest_match(name, _SPECS)} The hooks are: {', '.join(sorted(_SPECS))}"
            )
        if options.get("hookwrapper") or options.get("wrapper"):
            raise PluginError(f"{name} is a hook wrapper, which medsegpy_core does not support")
        if marked.count(name) > 1:
            raise PluginError(f"it implements {name} twice")
    for name in set(_SPECS) - set(marked):
        if inspect.isroutine(getattr(plugin, name, None)):
            raise PluginError(f"its function {name} is not marked with @hookimpl")


def _by_name(implementation: Any) -> Callable[..., Any]:
    """Return a function that accepts all arguments of a hook and passes on those that the plugin accepts."""
    function, wanted = implementation.function, implementation.argnames

    def ask(**arguments: Any) -> Any:
        return function(*[arguments[name] for name in wanted])

    return ask


def _explain(error: BaseException, entry_point: EntryPoint) -> str:
    """Return the cause of a failure in one paragraph, with the line in the plugin."""
    try:
        text = str(error)
    except Exception:  # noqa: BLE001 -- the plugin's own exception may be broken
        text = "(its message cannot be shown)"
    if isinstance(error, pluggy.PluginValidationError):
        return " ".join(text.split())
    if isinstance(error, PluginError):
        return text
    if isinstance(error, SystemExit):
        text = f"SystemExit: it tried to end the program with status {text or 0}"
    elif not isinstance(error, MedSegPyError):
        text = f"{type(error).__name__}: {text}" if text else type(error).__name__
    if isinstance(error, ImportError) and error.name == "medsegpy_core":
        text += f" (this is medsegpy-core {__version__}; the plugin may need another version)"
    return text + _line_of(error, entry_point)


def _line_of(error: BaseException, entry_point: EntryPoint) -> str:
    """Return the innermost line of the plugin's own package."""
    package = entry_point.value.partition(":")[0].strip().partition(".")[0]
    lines = [
        f" [{frame.f_code.co_filename}, line {number}]"
        for frame, number in traceback.walk_tb(error.__traceback__)
        if str(frame.f_globals.get("__name__")).partition(".")[0] == package
    ]
    return lines[-1] if lines else ""
