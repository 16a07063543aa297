"""The exceptions and warnings.

Every error subclasses a built-in exception as well as `MedSegPyError`, so that both ``except ValueError`` and
``except MedSegPyError`` work. Its message states the problem, the available choices, and what to do next.
"""

from __future__ import annotations

import difflib
from collections.abc import Iterable
from pathlib import Path

from medsegpy_core.text import printable

__all__ = [
    "AmbiguousReaderError",
    "AugmentationError",
    "CategoryError",
    "ConfigError",
    "ConfigWarning",
    "DataWarning",
    "DuplicateNameError",
    "GeometryError",
    "LeakageError",
    "MedSegPyError",
    "MedSegPyWarning",
    "MemoryLimitError",
    "MetadataConflictError",
    "MetadataError",
    "PluginError",
    "PluginWarning",
    "ReadError",
    "RecordError",
    "ShapeError",
    "UnknownNameError",
    "closest_match",
]


class MedSegPyError(Exception):
    """Base class of every error that medsegpy_core raises deliberately.

    Its text is safe to show: control characters in quoted names are escaped.
    """

    def __str__(self) -> str:
        return printable(super().__str__(), lines=True)


class _PlainKeyError(MedSegPyError, KeyError):
    """A ``KeyError`` whose message is shown as written (``KeyError`` shows its ``repr``)."""

    def __str__(self) -> str:
        return printable(str(self.args[0]), lines=True) if self.args else ""


class UnknownNameError(_PlainKeyError):
    """A dataset, reader, loader, transform, evaluator or metric name that is not registered."""


class DuplicateNameError(MedSegPyError, ValueError):
    """A name with more than one owner."""


class ConfigError(_PlainKeyError, ValueError):
    """An unknown config key, or an invalid value of a key."""


class MetadataError(MedSegPyError, ValueError):
    """Metadata that are missing or inconsistent."""


class MetadataConflictError(MetadataError):
    """A metadata key set to a second, different value without ``replace=True``."""


class RecordError(MedSegPyError, ValueError):
    """A dataset dict that lacks a required key, has a wrong type, or contradicts another."""


class CategoryError(MedSegPyError, ValueError):
    """A category id that is malformed or that a mask file does not have."""


class ShapeError(MedSegPyError, ValueError):
    """Elements whose sizes do not fit into one batch, or do not fit ``IMG_SIZE``."""


class AmbiguousReaderError(MedSegPyError, ValueError):
    """Two readers claim one file, and nothing decides between them."""


class AugmentationError(MedSegPyError, ValueError):
    """Augmented elements in an evaluation dataset, or an augmentation that is not declared correctly."""


class LeakageError(MedSegPyError, ValueError):
    """The same subject in training and in evaluation data."""


class PluginError(MedSegPyError, RuntimeError):
    """A plugin violated a rule of the plugin interface."""


class ReadError(MedSegPyError, OSError):
    """A file that is missing, broken, malicious, or of the wrong shape.

    Attributes:
        reason: The problem.
        path: The file, or None if the problem is not that of a single file.
        key: The dataset inside the file, or None.
        element: A description of the element that was read and its dataset; None if unknown.
    """

    def __init__(self, reason: str, path: str | Path | None = None, key: str | None = None, element: str | None = None):
        self.reason = reason
        self.path = None if path is None else Path(path)
        self.key = key
        self.element = element
        super().__init__(reason)

    def __str__(self) -> str:
        where = [printable(str(self.path))] if self.path is not None else []
        if self.key is not None:
            where.append(f"dataset {self.key!r}")
        text = f"{', '.join(where)}: {self.reason}" if where else self.reason
        return printable(text if self.element is None else f"{text} ({self.element})", lines=True)

    def __reduce__(self) -> tuple[type, tuple[str, Path | None, str | None, str | None]]:
        return type(self), (self.reason, self.path, self.key, self.element)


class GeometryError(ReadError):
    """An image and a mask, or a prediction, that state different grids."""


class MemoryLimitError(MedSegPyError, MemoryError):
    """An operation would need more memory than ``MEDSEGPY_MEMORY`` allows; raised before allocation."""


class MedSegPyWarning(UserWarning):
    """Base class of the warnings that medsegpy_core issues. Their text is safe to show, like that of errors."""

    def __str__(self) -> str:
        return printable(super().__str__(), lines=True)


class PluginWarning(MedSegPyWarning):
    """A plugin failed. The others are not affected."""


class DataWarning(MedSegPyWarning):
    """A problem in data that can still be used."""


class ConfigWarning(MedSegPyWarning):
    """A setting in a config file has no effect."""


def closest_match(name: str, known: Iterable[str]) -> str:
    """Return ``" Did you mean 'x'?"`` for the closest of the known names, or an empty string."""
    match = difflib.get_close_matches(name, list(known), n=1, cutoff=0.6)
    return f" Did you mean {match[0]!r}?" if match else ""
