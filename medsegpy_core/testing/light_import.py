"""Whether the module of a plugin can be imported without anything heavy."""

from __future__ import annotations

import importlib
import sys
from collections.abc import Sequence
from typing import Final

from medsegpy_core.testing.outcome import require
from medsegpy_core.testing.processes import in_new_interpreter

__all__ = ["HEAVY", "check_light_import"]

HEAVY: Final = (
    "PIL",
    "SimpleITK",
    "h5py",
    "keras",
    "matplotlib",
    "monai",
    "nibabel",
    "numpy",
    "pandas",
    "pydicom",
    "scipy",
    "skimage",
    "sklearn",
    "tensorflow",
    "torch",
)


def check_light_import(module: str, heavy: Sequence[str] = HEAVY) -> None:
    """Check that a plugin's module imports nothing heavy: every command of every user imports it.

    Raises:
        CheckError: It does, or cannot be imported.
    """
    found = in_new_interpreter(_heavy_after_importing, module, tuple(heavy))
    require(
        not found,
        f"`import {module}` imports {', '.join(found)}. The modules of all plugins are imported at the first question, "
        "so import what is heavy inside the functions that use it",
    )


def _heavy_after_importing(module: str, heavy: Sequence[str]) -> list[str]:
    # What the environment imports at start-up, coverage tools for example, is not the plugin's doing.
    before = set(sys.modules)
    importlib.import_module(module)
    return sorted(set(heavy) & (set(sys.modules) - before))
