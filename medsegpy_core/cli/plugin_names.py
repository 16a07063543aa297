"""The names of a new plugin: what pip, Python and medsegpy call it."""

from __future__ import annotations

import builtins
import keyword
import re
from typing import Final

import click
from attrs import frozen

from medsegpy_core.discovery import installed, normalize_distribution

__all__ = ["PluginNames"]

_PREFIX: Final = "medsegpy-"
_LONGEST: Final = 30
# The core, its tests, and what it means by other things.
_RESERVED: Final = frozenset({"api", "core", "dataset", "evaluator", "plugin", "reader", "tests"})


@frozen
class PluginNames:
    """The names that follow from the one that the user gives.

    Attributes:
        name: ``knee-mri``: of the entry point, and of a reader.
        distribution: ``medsegpy-knee-mri``.
        module: ``medsegpy_knee_mri``.
        identifier: ``knee_mri``: what names of datasets begin with.
        class_name: ``KneeMri``.
    """

    name: str
    distribution: str
    module: str
    identifier: str
    class_name: str

    @classmethod
    def of(cls, given: str) -> PluginNames:
        """Work out the names.

        Raises:
            click.BadParameter: A package cannot be called so, or one that is installed is.
        """
        name = re.sub(r"[-_.]+", "-", given.strip().lower()).removeprefix(_PREFIX)
        if len(name) > _LONGEST or re.fullmatch(r"[a-z][a-z0-9]*(-[a-z0-9]+)*", name) is None:
            raise click.BadParameter(
                f"{given!r} is no name of a plugin: it begins with a letter, has ASCII letters, digits and single "
                f"dashes, as in 'knee-mri', and at most {_LONGEST} of them."
            )
        identifier = name.replace("-", "_")
        taken = keyword.iskeyword(identifier) or keyword.issoftkeyword(identifier) or hasattr(builtins, identifier)
        if taken or name in _RESERVED:
            raise click.BadParameter(f"{given!r} means something else in Python or in medsegpy. Take another name.")
        distribution = _PREFIX + name
        for plugin in installed():
            same = normalize_distribution(plugin.distribution) == normalize_distribution(distribution)
            if same or plugin.name == name:
                raise click.BadParameter(
                    f"There is a plugin {plugin.name!r} already ({plugin.distribution} {plugin.version}). Take another "
                    "name, or uninstall it."
                )
        words = identifier.split("_")
        return cls(
            name, distribution, f"medsegpy_{identifier}", identifier, "".join(word.capitalize() for word in words)
        )
