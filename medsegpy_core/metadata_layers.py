"""Metadata from several sources, put on top of each other."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any, Final, NoReturn

from attrs import evolve, field, frozen

from medsegpy_core.errors import MetadataConflictError, MetadataError
from medsegpy_core.metadata_values import check_together, check_value, copied, given, same, shown

__all__ = ["RESERVED_KEYS", "Layer", "SetValues", "resolve"]

# What `Metadata` and `MetadataView` call something else.
RESERVED_KEYS: Final = frozenset(("as_dict", "clear", "for_scan", "get", "name", "own", "require", "set", "view"))


@frozen
class Layer:
    """Values from one source.

    Attributes:
        source: Whose they are, for messages.
        values: Keys and values. None as the value of a known key stands for "not given".
        overrides: Whether they beat the layers below; else a value that differs from one below is a conflict.
    """

    source: str
    values: Mapping[str, Any]
    overrides: bool = False


@frozen
class SetValues:
    """What ``.set`` has said so far. A change makes a new object, so a refused one leaves nothing behind.

    Attributes:
        plain: Values that must agree with those of the plugin.
        replaced: Values set with ``replace=True``, which count instead of the plugin's.
    """

    plain: Mapping[str, Any] = field(factory=dict)
    replaced: Mapping[str, Any] = field(factory=dict)

    def set(self, name: str, values: Mapping[str, Any], replace: bool) -> SetValues:
        """Return these values with more of them.

        Raises:
            MetadataConflictError: A key has another value already, and `replace` is False.
            MetadataError: A value does not fit its key, or the other values.
        """
        before = {**self.plain, **self.replaced}
        new = {key: copied(value) for key, value in given(values).items()}
        if replace:
            dropped = values.keys()
            plain = {key: value for key, value in self.plain.items() if key not in dropped}
            kept = {key: value for key, value in self.replaced.items() if key not in dropped}
            result = evolve(self, plain=plain, replaced={**kept, **new})
        else:
            for key in new.keys() & before.keys():
                if not same(before[key], new[key]):
                    _conflict(name, key, before[key], "what was set before", new[key], "what is set now")
            result = evolve(self, plain={**self.plain, **{key: new[key] for key in new if key not in before}})
        resolve(name, [Layer("MetadataCatalog", {**result.plain, **result.replaced})])
        return result

    def layers(self, source: str) -> tuple[Layer, ...]:
        """Return these values as layers, without empty ones."""
        layers = Layer(source, self.plain), Layer(source, self.replaced, overrides=True)
        return tuple(layer for layer in layers if layer.values)


def resolve(name: str, layers: Sequence[Layer]) -> dict[str, Any]:
    """Put layers on top of each other, the first at the bottom.

    Raises:
        MetadataConflictError: A layer that does not override has another value than one below it.
        MetadataError: A value does not fit its key, or the others.
    """
    values: dict[str, Any] = {}
    source: dict[str, str] = {}
    for layer in layers:
        _check_names(name, layer.values)
        for key, value in given(layer.values).items():
            check_value(name, key, value, layer.source)
            if key in values and not layer.overrides and not same(values[key], value):
                _conflict(name, key, values[key], source[key], value, layer.source)
            values[key], source[key] = value, layer.source
    check_together(name, values, ", ".join(dict.fromkeys(source.values())))
    return values


def _conflict(name: str, key: str, old: Any, old_source: str, new: Any, new_source: str) -> NoReturn:
    raise MetadataConflictError(
        f"Metadata {key!r} of dataset {name!r} is {shown(old)} ({old_source}), but {shown(new)} ({new_source}). "
        f"If the second is right: MetadataCatalog.get({name!r}).set(replace=True, {key}={shown(new)})."
    )


def _check_names(name: str, values: Mapping[str, Any]) -> None:
    for key in values:
        if not isinstance(key, str):
            raise MetadataError(f"Metadata keys of dataset {name!r} must be str, not {key!r}.")
        if key in RESERVED_KEYS:
            raise MetadataError(
                f"Dataset {name!r} cannot have a metadata key {key!r}: `Metadata.{key}` is something else. "
                "Take another name."
            )
