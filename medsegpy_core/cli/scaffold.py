"""Write a package from templates: all of it, or nothing."""

from __future__ import annotations

import os
import shutil
from collections.abc import Mapping
from importlib.resources import files
from pathlib import Path
from string import Template
from typing import Any

from attrs import asdict

from medsegpy_core.cli.plugin_names import PluginNames

__all__ = ["python_string", "render", "write_package"]


def render(template: str, values: Mapping[str, str]) -> str:
    """Fill in a template.

    Args:
        template: Its path under ``templates``, without ``.tmpl``.
        values: What its placeholders stand for.
    """
    text = files("medsegpy_core.cli").joinpath("templates", *f"{template}.tmpl".split("/")).read_text(encoding="utf-8")
    return Template(text).substitute(values)


def python_string(text: str) -> str:
    """Return a Python literal, in double quotes where ruff would have them.

    Example:
        >>> python_string("it's"), python_string('say "yes"')
        ('"it\\'s"', '\\'say "yes"\\'')
    """
    literal = repr(text)
    return f'"{literal[1:-1]}"' if literal[0] == "'" and '"' not in text else literal


def write_package(
    out: Path, names: PluginNames, contents: Mapping[str, str], description: str, dependencies: list[str]
) -> Path:
    """Write a package into a new folder.

    Args:
        out: The folder that the new one is made in; it is made where it does not exist.
        names: The names of the plugin.
        contents: The files: path inside the package's folder to text. What all packages have is added.
        description: One line.
        dependencies: What the package needs, medsegpy-core aside.

    Returns:
        The new folder.

    Raises:
        FileExistsError: It is there already. Nothing was written then.
    """
    target = out.absolute() / names.distribution
    if target.exists() or target.is_symlink():
        raise FileExistsError(f"{target} is there already. Remove it, or name another folder with --out.")
    needed = ", ".join(f'"{one}"' for one in sorted({"medsegpy-core>=0.1,<0.2", *dependencies}))
    values: dict[str, Any] = {**asdict(names), "description": description, "dependencies": needed}
    common = {
        "pyproject.toml": render("common/pyproject.toml", values),
        ".github/workflows/tests.yml": render("common/tests.yml", values),
        ".gitignore": render("common/gitignore", values),
        f"{names.module}/py.typed": "",
    }
    # Beside the target, so that the rename is one step on one file system.
    staged = target.with_name(f".{names.distribution}.{os.getpid()}.tmp")
    try:
        for name, text in {**common, **contents}.items():
            path = staged / name
            path.parent.mkdir(parents=True, exist_ok=True)
            path.write_text(text, encoding="utf-8")
        staged.rename(target)
    finally:
        shutil.rmtree(staged, ignore_errors=True)
    return target
