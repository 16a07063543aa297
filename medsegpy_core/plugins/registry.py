"""The records of one kind, from the core, the plugins and the process, in one namespace."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from typing import Generic, TypeVar, cast

from medsegpy_core._util.locks import ForkSafeLock
from medsegpy_core.errors import DuplicateNameError, UnknownNameError
from medsegpy_core.plugins.kinds import KINDS, PROCESS, Owned, current_stage
from medsegpy_core.plugins.load import Claims
from medsegpy_core.plugins.manager import PluginManager, default_manager

T = TypeVar("T")


class Registry(Generic[T]):
    """Records of one kind by name.

    Registering never loads plugins: a clash with a plugin's name is reported when the name is looked up. Thread-safe.
    """

    def __init__(self, kind: str, manager: Callable[[], PluginManager] = default_manager) -> None:
        """Create an empty registry.

        Args:
            kind: ``"datasets"``, ``"readers"``, ...: one of the kinds of `PluginManager.claims`.
            manager: Returns the plugin manager.
        """
        self._kind = KINDS[kind]
        self._manager = manager
        self._lock = ForkSafeLock()
        # Name to record, and whether it replaces that of a plugin. Replaced as a whole.
        self._own: Mapping[str, tuple[T, bool]] = {}
        self._merged: tuple[Claims[T], Mapping[str, tuple[T, bool]], Claims[T]] | None = None

    def register(self, record: T, replace: bool = False) -> None:
        """Add a record. While a plugin is being loaded in this thread, the record belongs to the plugin.

        Raises:
            DuplicateNameError: The name is already registered, and `replace` is False.
            PluginError: The record is not valid for this kind.
        """
        stage = current_stage()
        if stage is not None:
            stage.add(self._kind.name, record, replace)
            return
        self._kind.check(record)
        name = _name_of(record)
        with self._lock:
            if name in self._own and not replace:
                first = Owned(self._own[name][0], PROCESS)
                raise DuplicateNameError(
                    f"The {self._kind.noun} name {name!r} is already registered by {first}, and now by "
                    f"{Owned(record, PROCESS)}. Register under another name, or with replace=True."
                )
            self._own = {**self._own, name: (record, replace)}

    def remove(self, name: str) -> None:
        """Remove a record that the process has registered.

        Raises:
            UnknownNameError: The process has not registered this name.
        """
        with self._lock:
            if name in self._own:
                self._own = {known: entry for known, entry in self._own.items() if known != name}
                return
        owned = self.get(name)
        raise UnknownNameError(
            f"The {self._kind.noun} {name!r} comes from {owned.owner}, so it cannot be removed here: uninstall that "
            "package, or name the plugins to load in MEDSEGPY_LOAD_PLUGINS."
        )

    def get(self, name: str) -> Owned[T]:
        """Return a record by name.

        Raises:
            UnknownNameError: There is no such record.
            DuplicateNameError: More than one owner claims the name.
        """
        return cast(Owned[T], self._manager().lookup(self._kind.name, name, self.claims()))

    def names(self) -> list[str]:
        """Return all names, sorted, including contested ones."""
        return sorted(self.claims())

    def claims(self) -> Claims[T]:
        """Return name to all owners that claim it; the same object as long as nothing changes."""
        plugins: Claims[T] = self._manager().claims(self._kind.name)
        own, merged = self._own, self._merged
        if merged is not None and merged[0] is plugins and merged[1] is own:
            return merged[2]
        claims = dict(plugins)
        for name, (record, replace) in own.items():
            others = () if replace else claims.get(name, ())
            claims[name] = (*others, Owned(record, PROCESS))
        self._merged = plugins, own, claims
        return claims

    def own_names(self) -> list[str]:
        """Return the names that the process has registered, without loading plugins."""
        return sorted(self._own)


def _name_of(record: object) -> str:
    return str(record.name)  # type: ignore[attr-defined]
