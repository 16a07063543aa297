"""Write docs/hooks.md from the hook specs: ``python docs/make_hook_reference.py``."""

from __future__ import annotations

import inspect
from pathlib import Path
from typing import Any

from medsegpy_core.plugins.hookspecs import PROJECT, HookSpecs
from medsegpy_core.plugins.kinds import KINDS

PAGE = Path(__file__).parent / "hooks.md"
HEAD = """\
<!-- Made by docs/make_hook_reference.py from medsegpy_core/plugins/hookspecs.py; do not edit. -->
# Hook reference

A plugin is a module with functions of these names, marked `@hookimpl`. An entry point of the group `medsegpy` names
the module. Implement the hooks that you need. [Writing a dataset plugin](dataset-plugin.md) and
[writing a reader plugin](reader-plugin.md) show whole packages.

*Register hooks* take no argument and return records, each with a `name`, as a list or from a generator. They are called
once, when plugins are first needed. The [API](api.md) describes the records. *Queries* are about one dataset. The
plugin that owns the dataset is called first, and its answer counts unless it is `None`.

A function may leave out arguments that it does not need. A misspelled argument, an unknown hook, or an exception during
import or in a hook makes the plugin fail, with one warning. Other plugins are not affected, and `medsegpy plugins`
shows the reason.
"""
TAIL = """
## When hooks change

`medsegpy_core.API_VERSION` is the version number of the hooks. A plugin's module may declare the version it needs:

```python
medsegpy_api = 1
```

If it needs a newer version than the installed one, it fails with this reason and the `pip install --upgrade` command,
not with an obscure error.

* New hooks and new arguments of hooks break nothing: a plugin implements the hooks that it needs, and its functions
  take the arguments that they name. The number stays the same.
* A hook or an argument is deprecated before it is removed: for at least one minor release it works as before, and a
  plugin that uses it gets a `DeprecationWarning` that names the replacement. The changelog lists it under "Deprecated".
* When it is removed, the number is increased. Require the release that you tested with, as in
  `medsegpy-core>=0.1,<0.2`.
"""


def hooks() -> list[tuple[str, Any]]:
    """Return name and function of each hook, in the order of the file."""
    return [(name, hook) for name, hook in vars(HookSpecs).items() if name.startswith(f"{PROJECT}_")]


def signature(name: str, hook: Any) -> str:
    """Return the signature as a plugin writes it, without `self`."""
    given = inspect.signature(hook)
    parameters = [parameter for parameter in given.parameters.values() if parameter.name != "self"]
    return f"{name}{given.replace(parameters=parameters)}".replace("'", "")


def prose(docstring: str) -> str:
    """Return a docstring as Markdown: the example's fence at the margin, arguments as a list."""
    lines: list[str] = []
    section = ""
    for line in inspect.cleandoc(docstring).splitlines():
        if line in ("Args:", "Returns:", "Raises:", "Example:"):
            section = line.removesuffix(":")
            lines += [] if section == "Example" else [f"**{section}**", ""]
        elif not section or not line:
            lines.append(line)
        elif section == "Args" and line[4:5] != " ":
            name, _, text = line.strip().partition(": ")
            lines.append(f"* `{name}`: {text}")
        else:
            lines.append(line.removeprefix("    "))
    return "\n".join(lines).strip()


def reference() -> str:
    """Return the page."""
    parts = [HEAD]
    register = {kind.hook for kind in KINDS.values()}
    for title, registers in (("Register hooks", True), ("Queries", False)):
        parts.append(f"\n## {title}\n")
        for name, hook in hooks():
            if (name in register) is registers:
                # Not run: it is a signature.
                parts.append(f"\n### {name}\n\n```text\n{signature(name, hook)}\n```\n\n{prose(hook.__doc__)}\n")
    return "".join([*parts, TAIL])


if __name__ == "__main__":
    PAGE.write_text(reference(), encoding="utf-8")
