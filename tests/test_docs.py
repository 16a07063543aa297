"""Every code block of the documentation runs, or states why not; the hook reference matches the hook specs."""

import doctest
import importlib
import importlib.util
import inspect
import os
import pkgutil
import re
import subprocess
import sys
from pathlib import Path

import pytest

import medsegpy_core
from medsegpy_core.plugins.discovery import EntryPoint
from medsegpy_core.plugins.hookspecs import HookSpecs
from medsegpy_core.plugins.manager import PluginManager

ROOT = Path(__file__).parents[1]
PAGES = sorted(
    page
    for pattern in ("*.md", "docs/*.md", "docs/examples/*/*.md", "plugins/*/README.md")
    for page in ROOT.glob(pattern)
)
MODULES = [module.name for module in pkgutil.walk_packages(medsegpy_core.__path__, "medsegpy_core.")]


def load(path):
    spec = importlib.util.spec_from_file_location(path.stem, path)
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    return module


run_page = load(ROOT / "tests" / "run_page.py")
make_hook_reference = load(ROOT / "docs" / "make_hook_reference.py")


def environment():
    kept = {key: value for key, value in os.environ.items() if not key.startswith("MEDSEGPY_")}
    return kept | {"PATH": f"{Path(sys.executable).parent}{os.pathsep}{os.environ['PATH']}", "COLUMNS": "120"}


@pytest.mark.parametrize("page", PAGES, ids=lambda page: str(page.relative_to(ROOT)))
def test_code_on_the_page_runs(page, tmp_path):
    command = [sys.executable, "-W", "error", str(ROOT / "tests" / "run_page.py"), str(page)]
    done = subprocess.run(command, cwd=tmp_path, capture_output=True, text=True, env=environment(), check=False)
    assert done.returncode == 0, done.stdout + done.stderr


def test_the_runner_detects_errors(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    page = tmp_path / "page.md"

    def run(text):
        page.write_text(text)
        return run_page.run(page)

    assert run("<!-- setup\nx = 1\n-->\n```python\nx += 1\n```\n\n```pycon\n>>> x\n2\n```\n") == 3
    assert run("<!-- file: a/b.yaml -->\n\n```yaml\nx: 1\n```\n```console\n$ cat a/b.yaml\nx:...1\n```\n") == 1
    assert run("<!-- raises: KeyError -->\n```python\n{}[1]\n```\n") == 1
    assert run("<!-- not run: too long -->\n```python\n1 / 0\n```\n") == 0
    for wrong in (
        "```python\n1 / 0\n```\n",
        "```pycon\n>>> 1\n2\n```\n",
        "```console\n$ false\n```\n",
        "```console\n$ echo one\ntwo\n```\n",
        "```sh\nls\n```\n",
        "<!-- not run: -->\n```python\n1 / 0\n```\n",
        "<!-- not run: too long -->\n\nwords\n\n```python\n1 / 0\n```\n",
        "<!-- raises: KeyError -->\n```python\n1 / 0\n```\n",
        "<!-- raises: KeyError -->\n```python\n1\n```\n",
        "<!-- from: a/b.yaml -->\n```yaml\ny: 1\n```\n",
    ):
        with pytest.raises((AssertionError, ZeroDivisionError)):
            run(wrong)


@pytest.mark.parametrize("name", MODULES)
def test_examples_in_docstrings_run(name):
    if name == "medsegpy_core.__main__":
        pytest.skip("importing it runs the program")
    module = importlib.import_module(name)
    flags = doctest.ELLIPSIS | doctest.NORMALIZE_WHITESPACE
    assert doctest.testmod(module, optionflags=flags).failed == 0


def test_the_hook_reference_is_up_to_date():
    page = (ROOT / "docs" / "hooks.md").read_text()
    assert page == make_hook_reference.reference(), "run: python docs/make_hook_reference.py"


def test_every_hook_is_in_the_reference_with_its_signature():
    names = [name for name, _ in make_hook_reference.hooks()]
    assert len(names) == 10
    assert set(names) == {name for name in vars(HookSpecs) if name.startswith("medsegpy_")}
    page = (ROOT / "docs" / "hooks.md").read_text()
    assert "medsegpy_tag_augmentation(dataset: str, record: Record) -> int | None" in page
    assert all(page.count(f"\n### {name}\n") == 1 for name in names)


def test_every_public_name_is_in_the_api_reference():
    page = (ROOT / "docs" / "api.md").read_text()
    shown = re.findall(r"medsegpy_core\.(\w+)|`(\w+)`", page)
    assert not set(medsegpy_core.__all__) - {name for pair in shown for name in pair}


def test_every_key_of_the_config_is_on_its_page():
    from medsegpy_core.config.keys import OWN_KEYS

    page = (ROOT / "docs" / "config.md").read_text()
    assert not [key for key in OWN_KEYS if f"`{key}`" not in page]


def test_a_change_needs_few_files_and_they_exist():
    page = (ROOT / "docs" / "where.md").read_text()
    rows = [line.split(" | ") for line in page.splitlines() if line.startswith("| ")][1:]
    assert len(rows) == 10
    for change, files, _ in rows:
        paths = re.findall("`([^`]+)`", files)
        assert 1 <= len(paths) <= 3, change
        assert not [path for path in paths if not (ROOT / path).is_file()], change


def test_every_page_is_in_the_table_of_contents():
    contents = (ROOT / "docs" / "index.md").read_text().split("{toctree}", 1)[1].split()
    assert {page.stem for page in (ROOT / "docs").glob("*.md")} - {"index"} <= set(contents)


def hook_example(hook):
    (block,) = run_page.blocks(inspect.cleandoc(hook.__doc__))
    return block.code


@pytest.mark.parametrize(("name", "hook"), make_hook_reference.hooks(), ids=dict(make_hook_reference.hooks()))
def test_the_example_of_each_hook_is_a_plugin_that_works(name, hook, tmp_path, monkeypatch):
    module = f"example_of_{name}"
    (tmp_path / f"{module}.py").write_text(hook_example(hook))
    monkeypatch.syspath_prepend(tmp_path)
    monkeypatch.delenv("MEDSEGPY_LOAD_PLUGINS", raising=False)
    manager = PluginManager([EntryPoint(name="example", value=module, distribution="medsegpy-example", version="1.0")])
    (info,) = manager.infos()
    assert (info.status, info.error, info.hooks) == ("active", None, (name,))
    if name.startswith("medsegpy_register_"):
        assert info.provides[name.removeprefix("medsegpy_register_")]


def test_every_command_is_on_the_page_of_the_command_line():
    run = [sys.executable, "-m", "medsegpy_core", "--help"]
    shown = subprocess.run(run, capture_output=True, text=True, env=environment(), check=True).stdout
    commands = re.findall(r"^  ([a-z-]+)  +[A-Z]", shown.partition("Commands:")[2], flags=re.MULTILINE)
    assert {"demo", "plugins", "datasets", "view"} <= set(commands)
    page = (ROOT / "docs" / "command-line.md").read_text()
    assert not [command for command in commands if f"`medsegpy {command}" not in page]
