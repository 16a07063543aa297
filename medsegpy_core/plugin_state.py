"""What is loaded, as one object that never changes; and the messages about names that are unknown or contested."""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
from typing import TYPE_CHECKING, Any, TypeVar

from attrs import field, frozen

from medsegpy_core.discovery import EntryPoint, normalize_distribution
from medsegpy_core.errors import DuplicateNameError, UnknownNameError, closest_match
from medsegpy_core.known_plugins import suggest_plugin
from medsegpy_core.plugin_loading import Loaded
from medsegpy_core.plugin_records import KINDS, Owned, Owner, PluginInfo, Stage

if TYPE_CHECKING:
    from medsegpy_core.metadata_layers import SetValues
    from medsegpy_core.specs import Augmentation

__all__ = ["Claims", "State", "blocked_plugin", "duplicate_name", "unknown_in_allow_list", "unknown_name"]

T = TypeVar("T")

# Name to everybody who claims it.
Claims = Mapping[str, tuple[Owned[T], ...]]


@frozen(eq=False)
class State:
    """All that is loaded. It is replaced as a whole, so that it is read without a lock.

    Attributes:
        loaded: The plugins, sorted by name and distribution.
        claims: Kind to name to everybody who claims it; without augmentations.
        augmentations: What plugins declare.
        staged_metadata: Dataset to what plugins set while they were loaded.
        questions: Name of a question to the plugins that answer it.
    """

    loaded: Mapping[EntryPoint, Loaded] = field(factory=dict)
    claims: Mapping[str, Claims[Any]] = field(factory=lambda: {kind: {} for kind in KINDS})
    augmentations: Sequence[Owned[Augmentation]] = ()
    staged_metadata: Mapping[str, list[Owned[SetValues]]] = field(factory=dict)
    questions: Mapping[str, Sequence[Loaded]] = field(factory=dict)

    @classmethod
    def of(cls, loaded: Mapping[EntryPoint, Loaded]) -> State:
        """Put together what plugins bring."""
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
        """Return the plugin that brings a dataset; None where there is not exactly one."""
        owners = self.claims["datasets"].get(dataset, ())
        return owners[0].owner if len(owners) == 1 else None

    def asked(self, hook: str, dataset: str) -> Sequence[Loaded]:
        """Return the plugins that answer a question, the owner of the dataset first."""
        plugins = self.questions.get(hook, ())
        if len(plugins) < 2:
            return plugins
        owner = self.owner_of(dataset)
        return sorted(plugins, key=lambda plugin: plugin.owner != owner)

    def declared_augmentation(self, dataset: str, number: int) -> Augmentation | None:
        """Return what an augmentation number of a dataset is declared to mean, or None.

        Raises:
            DuplicateNameError: Two plugins declare it, and neither brings the dataset.
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
        """Return what more than one plugin claims."""
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
    """Say of each name in an `allow_list` that is not the distribution of a plugin what to write instead."""
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
            text += f"none with a plugin is called so.{closest_match(key, known)} Installed are: "
            text += f"{', '.join(known) or 'none'}."
        said.append(text)
    return said


def blocked_plugin(entry_point: EntryPoint) -> Loaded:
    """Return what stands for a plugin that is not to be loaded."""
    owner = Owner(entry_point.name, entry_point.distribution, entry_point.version)
    return Loaded(owner, PluginInfo(owner.plugin, owner.distribution, owner.version, "blocked"), Stage(owner), {})


def duplicate_name(kind: str, name: str, owners: Iterable[Owned[Any]]) -> DuplicateNameError:
    """Return the error for a name that more than one owner claims."""
    owners = list(owners)
    remedies = [f"pip uninstall {owned.owner.distribution}" for owned in owners if owned.owner.distribution]
    remedies.append("name the plugins to load in MEDSEGPY_LOAD_PLUGINS")
    if not all(owned.owner.plugin for owned in owners):
        remedies.insert(0, "register under another name, or with replace=True")
    return DuplicateNameError(
        f"The {KINDS[kind].noun} name {name!r} is claimed by {' and by '.join(map(str, owners))}. "
        f"To choose: {'; or '.join(remedies)}."
    )


def unknown_name(kind: str, name: str, known: Iterable[str], state: State) -> UnknownNameError:
    """Return the error for a name that nobody brings."""
    names = sorted(known)
    infos = [plugin.info for plugin in state.loaded.values()]
    listed = f"Known {kind}: {', '.join(names)}." if names else f"There are no {kind}."
    text = f"There is no {KINDS[kind].noun} {name!r}.{closest_match(str(name), names)} {listed}"
    text += suggest_plugin(kind, name, [info.distribution for info in infos])
    failed = [f"{Owner(info.name, info.distribution, info.version)}: {info.error}" for info in infos if info.error]
    if failed:
        text += f" Plugins that failed, and may have had it: {'; '.join(failed)}."
    blocked = [info.distribution for info in infos if info.status == "blocked"]
    if blocked:
        text += f" Not loaded, because MEDSEGPY_LOAD_PLUGINS does not name them: {', '.join(blocked)}."
    return UnknownNameError(text)
