"""Transforms by name, as the config's `PREPROCESSING` says them."""

from __future__ import annotations

import importlib
from collections.abc import Callable, Mapping
from typing import Any

from medsegpy_core.errors import ConfigError
from medsegpy_core.registry import Registry
from medsegpy_core.specs import TransformSpec
from medsegpy_core.typing import Transform

__all__ = ["build_transform", "register_transform", "transform_names"]


def _builtin(name: str) -> TransformSpec:
    def build(*args: Any, **kwargs: Any) -> Transform:
        # By name: the transforms need NumPy, their names do not.
        made: Transform = getattr(importlib.import_module("medsegpy_core.transforms"), name)(*args, **kwargs)
        return made

    return TransformSpec(name, build)


_registry = Registry(
    "transforms", builtins=map(_builtin, ("AffineNormalization", "Windowing", "ZeroMeanNormalization"))
)


def register_transform(name: str, build: Callable[..., Transform], *, replace: bool = False) -> None:
    """Register a transform in this process.

    Args:
        name: What `PREPROCESSING` says.
        build: ``build(**args)`` returns ``(image, mask) -> (image, mask)``; `args` come from `PREPROCESSING_ARGS`.
        replace: Whether it may take the place of another of this name.

    Raises:
        DuplicateNameError: The name is registered already. A clash with a plugin shows when the transform is built.
    """
    _registry.register(TransformSpec(name, build), replace)


def build_transform(name: str, args: Mapping[str, Any] | None = None) -> Transform:
    """Build a transform.

    Args:
        name: The name of a transform of the core, of a plugin, or registered in the process.
        args: Its arguments.

    Raises:
        UnknownNameError: There is no such transform.
        DuplicateNameError: More than one plugin brings it.
        ConfigError: It does not take these arguments, or is no function in the end.
    """
    owned = _registry.get(name)
    if not isinstance(args or {}, Mapping) or not all(isinstance(key, str) for key in args or {}):  # type: ignore[redundant-expr]
        raise ConfigError(f"The arguments of the transform {name!r} must be a dict of names and values, not {args!r}.")
    try:
        transform = owned.record.build(**(args or {}))
    except (TypeError, ValueError) as error:
        raise ConfigError(
            f"The transform {name!r} ({owned}) cannot be built with {dict(args or {})}: {error}"
        ) from error
    if not callable(transform):
        raise ConfigError(f"The transform {name!r} ({owned}) built {transform!r}, which cannot be called.")
    return transform


def transform_names() -> list[str]:
    """Return the names of all transforms, sorted."""
    return _registry.names()
