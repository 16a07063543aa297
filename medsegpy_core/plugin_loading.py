"""Load one plugin: import its module, check its hooks, replay the register hooks into a stage.

Whatever goes wrong in a plugin stays in it.
"""

from __future__ import annotations

import importlib
import inspect
import os
import sys
import time
import traceback
from collections.abc import Callable, Mapping
from functools import partial
from typing import Any, Final

import pluggy
from attrs import frozen

from medsegpy_core.discovery import EntryPoint
from medsegpy_core.errors import MedSegPyError, PluginError, closest_match
from medsegpy_core.hookspecs import PROJECT, HookSpecs
from medsegpy_core.plugin_records import KINDS, Owner, PluginInfo, Stage, collect_records, staging
from medsegpy_core.text import printable
from medsegpy_core.version import API_VERSION, __version__

__all__ = ["Loaded", "PluginLoader", "trace"]

_SPECS: Final = {name: value for name, value in vars(HookSpecs).items() if name.startswith("medsegpy_")}
_QUESTIONS: Final = frozenset(_SPECS) - {kind.hook for kind in KINDS.values()}


@frozen(eq=False)
class Loaded:
    """A plugin after the attempt to load it.

    Attributes:
        owner: The plugin.
        info: How it went.
        stage: What it brings; nothing where it failed.
        questions: Name of a question to its implementation.
    """

    owner: Owner
    info: PluginInfo
    stage: Stage
    questions: Mapping[str, Callable[..., Any]]


class PluginLoader:
    """Loads plugins one by one into pluggy, each isolated from the others' faults."""

    def __init__(self) -> None:
        self._pluggy = pluggy.PluginManager(PROJECT)
        self._pluggy.add_hookspecs(HookSpecs)
        self._stage = Stage(Owner(""))
        # Imports that went well, so that what a module registered is not lost when Ctrl-C ends its hooks: it runs once.
        self._imported: dict[EntryPoint, tuple[Any, Stage]] = {}
        for kind in KINDS.values():
            getattr(self._pluggy.hook, kind.hook).call_historic(partial(self._collect, kind.name))

    def load(self, entry_point: EntryPoint, plugin: Any = None) -> Loaded:
        """Load a plugin; a failure is told in the result, never raised.

        Args:
            entry_point: Its name, where it is, and whose it is.
            plugin: The module, where it is at hand already.
        """
        owner = Owner(entry_point.name, entry_point.distribution, entry_point.version)
        try:
            stage = self._import(entry_point, owner, plugin)
            plugin = self._imported[entry_point][0]
            with staging(stage):
                questions = self._register(entry_point, plugin, stage)
        except KeyboardInterrupt:
            raise
        except BaseException as error:  # noqa: BLE001 -- SystemExit, and test frameworks' own, end a plugin, not the program
            info = PluginInfo(*_identity(owner), status="failed", error=_explain(error, entry_point))
            return Loaded(owner, info, Stage(owner), {})
        hooks = tuple(sorted(name for name, _ in _implementations(self._pluggy, plugin)))
        info = PluginInfo(*_identity(owner), status="active", provides=stage.names(), hooks=hooks)
        return Loaded(owner, info, stage, questions)

    def unload(self, entry_point: EntryPoint) -> None:
        """Forget a plugin."""
        self._imported.pop(entry_point, None)
        self._pluggy.unregister(name=_key(entry_point))

    def _import(self, entry_point: EntryPoint, owner: Owner, plugin: Any) -> Stage:
        """Import the module, and return a copy of what it registered meanwhile."""
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
            raise PluginError(f"its module {entry_point.value!r} is loaded already, as the plugin {other}")
        self._stage = stage
        try:
            self._pluggy.register(plugin, name=_key(entry_point))
        except BaseException:
            # pluggy keeps a plugin whose replay raised.
            self._pluggy.unregister(name=_key(entry_point))
            raise
        found = {}
        for name in _QUESTIONS:
            for implementation in getattr(self._pluggy.hook, name).get_hookimpls():
                if implementation.plugin is plugin:
                    found[name] = _by_name(implementation)
        return found

    def _collect(self, kind: str, result: Any) -> None:
        collect_records(self._stage, KINDS[kind], result)
        trace(f"{self._stage.owner}: {KINDS[kind].hook}() -> {', '.join(self._stage.names().get(kind, ()))}")


def trace(text: str) -> None:
    """Write a line to stderr where `MEDSEGPY_TRACE_PLUGINS` is set."""
    if os.environ.get("MEDSEGPY_TRACE_PLUGINS", "0") not in ("", "0"):
        sys.stderr.write(f"medsegpy: {printable(text)}\n")


def _key(entry_point: EntryPoint) -> str:
    """Return what pluggy calls the plugin: the names of entry points alone need not differ."""
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
            f"its `medsegpy_api` is {needed!r}, expected the number of a hook interface, as {API_VERSION}"
        )
    if needed > API_VERSION:
        raise PluginError(
            f"it is built for hook interface {needed}, but medsegpy-core {__version__} has {API_VERSION}: "
            "pip install --upgrade medsegpy-core"
        )


def _implementations(manager: pluggy.PluginManager, plugin: Any) -> list[tuple[str, Any]]:
    """Return the name of the hook and the options of each function that is marked with ``@hookimpl``."""
    options = ((name, manager.parse_hookimpl_opts(plugin, name)) for name in dir(plugin))
    return [(found.get("specname") or name, found) for name, found in options if found is not None]


def _check_hooks(manager: pluggy.PluginManager, plugin: Any) -> None:
    """Say what pluggy would not, or not so that one could understand it."""
    implementations = _implementations(manager, plugin)
    marked = [name for name, _ in implementations]
    for name, options in implementations:
        if name not in _SPECS and not options.get("optionalhook"):
            raise PluginError(
                f"there is no hook {name!r}.{closest_match(name, _SPECS)} The hooks are: {', '.join(sorted(_SPECS))}"
            )
        if options.get("hookwrapper") or options.get("wrapper"):
            raise PluginError(f"{name} is a hook wrapper, which medsegpy_core does not have")
        if marked.count(name) > 1:
            raise PluginError(f"it implements {name} twice")
    for name in set(_SPECS) - set(marked):
        if inspect.isroutine(getattr(plugin, name, None)):
            raise PluginError(f"its function {name} is not marked with @hookimpl")


def _by_name(implementation: Any) -> Callable[..., Any]:
    """Return a function that takes all arguments of a question and passes on those that the plugin wants."""
    function, wanted = implementation.function, implementation.argnames

    def ask(**arguments: Any) -> Any:
        return function(*[arguments[name] for name in wanted])

    return ask


def _explain(error: BaseException, entry_point: EntryPoint) -> str:
    """Say in one paragraph what went wrong, and in which line of the plugin."""
    try:
        text = str(error)
    except Exception:  # noqa: BLE001 -- an exception of the plugin's own, broken itself
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
        text += f" (this is medsegpy-core {__version__}; the plugin may be built for another)"
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
