"""Settings of the documentation site: `make docs`."""

import inspect
import re
import textwrap
import tomllib
from pathlib import Path

project = "medsegpy_core"
author = copyright = "the medsegpy_core authors"
release = tomllib.loads((Path(__file__).parents[1] / "pyproject.toml").read_text())["project"]["version"]

extensions = ["myst_parser", "sphinx.ext.autodoc", "sphinx.ext.napoleon"]
myst_enable_extensions = ["colon_fence"]
myst_heading_anchors = 3
exclude_patterns = ["examples/*/README.md", "examples/*/tests"]

html_theme = "furo"
html_title = f"{project} {release}"
html_copy_source = False

autodoc_member_order = "bysource"
autodoc_typehints = "description"
autodoc_typehints_description_target = "documented"
napoleon_google_docstring = True
napoleon_use_ivar = True
# Docstrings write names in single backticks.
default_role = "code"


def _blocks(app: object, what: str, name: str, obj: object, options: object, lines: list[str]) -> None:
    """Turn the fenced code of a docstring into what Sphinx reads."""
    fence = re.compile(r"^(?P<indent> *)```python\n(?P<code>.*?)^ *```$", re.MULTILINE | re.DOTALL)

    def block(match: re.Match[str]) -> str:
        code = textwrap.indent(textwrap.dedent(match["code"]), match["indent"] + "    ")
        return f"{match['indent']}.. code-block:: python\n\n{code}"

    lines[:] = fence.sub(block, inspect.cleandoc("\n".join(lines)) + "\n").splitlines()


def setup(app):
    """Convert before napoleon does."""
    app.connect("autodoc-process-docstring", _blocks, priority=400)
