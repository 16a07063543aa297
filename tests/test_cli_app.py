"""The program ``medsegpy``: commands of plugins, errors, exit statuses."""

import os
import subprocess
import sys
from pathlib import Path

import pytest
from click.testing import CliRunner

from medsegpy_core import PluginWarning, __version__
from medsegpy_core.cli import cli

HELLO = """
import click
from medsegpy_core import hookimpl

@click.command("hello")
@click.option("--name", default="you")
def hello(name):
    "Say hello."
    if name == "bug":
        raise ZeroDivisionError("by nothing")
    if name == "file":
        open("/absent/file")
    click.echo(f"hello {name}")

@click.command("view")
def view():
    "Take the place of a command of the core."
    click.echo("not the core's")

@hookimpl
def medsegpy_register_commands():
    return [hello, view]
"""


def run(*args, **environ):
    """Run the program in a new process."""
    command = [sys.executable, "-m", "medsegpy_core", *args]
    env = {**os.environ, "PYTHONPATH": str(Path(__file__).parent.parent), **environ}
    return subprocess.run(command, env=env, capture_output=True, text=True, check=False)


@pytest.fixture
def medsegpy(plugins):
    return lambda *args: CliRunner().invoke(cli, args)


def test_version(medsegpy):
    assert medsegpy("--version").output == f"medsegpy, version {__version__}\n"


def test_help_lists_the_core_and_the_plugins(site, plugins, medsegpy):
    site.add("hello", HELLO, distribution="medsegpy-greetings")
    plugins()
    text = medsegpy("--help").output
    for name in ("datasets", "plugins", "view", "hello"):
        assert f"  {name} " in text
    assert "Say hello. [medsegpy-greetings]" in text
    for name in ("datasets", "datasets list", "datasets show", "plugins", "view", "hello"):
        result = medsegpy(*name.split(), "--help")
        assert result.exit_code == 0
        assert f"Usage: cli {name}" in result.output


def test_commands_of_plugins_run_but_do_not_replace_those_of_the_core(site, plugins, medsegpy):
    site.add("hello", HELLO)
    plugins()
    assert medsegpy("hello", "--name", "world").output == "hello world\n"
    result = medsegpy("view")
    assert "not the core's" not in result.output
    assert result.exit_code == 2


def test_wrong_usage_is_status_2(medsegpy):
    for args in (["nonsense"], ["datasets", "nonsense"], ["view"], ["view", "x", "--slices", "0"], ["plugins", "--no"]):
        result = medsegpy(*args)
        assert result.exit_code == 2
        assert "Usage" in result.stderr
        assert result.stdout == ""


def test_an_unknown_command_names_the_plugin_that_provides_it(site, plugins, medsegpy):
    result = medsegpy("demo", "--out", "folder")
    assert result.exit_code == 2
    assert "pip install medsegpy-example-datasets" in result.stderr
    site.add("hello", HELLO)
    site.add("broken", "raise RuntimeError('no luck')")
    with pytest.warns(PluginWarning, match="no luck"):
        plugins().infos()
    result = medsegpy("helo")
    assert result.exit_code == 2
    assert "There is no command 'helo'. Did you mean 'hello'? Known commands: datasets, hello, " in result.stderr
    assert "no luck" in result.stderr


def test_a_command_that_two_plugins_provide_names_both(site, plugins, medsegpy):
    site.add("one", HELLO)
    site.add("two", HELLO)
    plugins()
    result = medsegpy("hello")
    assert result.exit_code == 1
    assert "medsegpy-one" in result.stderr
    assert "medsegpy-two" in result.stderr


def test_an_error_is_one_message_on_stderr(site, plugins, medsegpy):
    site.add("hello", HELLO)
    plugins()
    result = medsegpy("datasets", "show", "absent")
    assert (result.exit_code, result.stdout) == (1, "")
    assert result.stderr.startswith("Error: There is no dataset 'absent'.")
    result = medsegpy("hello", "--name", "file")
    assert (result.exit_code, result.stdout) == (1, "")
    assert result.stderr == "Error: [Errno 2] No such file or directory: '/absent/file'\n"
    result = medsegpy("hello", "--name", "bug")
    assert result.exit_code == 1
    assert "ZeroDivisionError in " in result.stderr
    assert "fake_medsegpy_hello_hello.py, line 10: by nothing" in result.stderr
    assert "medsegpy --debug" in result.stderr


def test_debug_raises_it(site, plugins, medsegpy):
    site.add("hello", HELLO)
    plugins()
    assert isinstance(medsegpy("--debug", "hello", "--name", "bug").exception, ZeroDivisionError)


def test_as_a_process():
    result = run("datasets", "show", "absent", MEDSEGPY_LOAD_PLUGINS="")
    assert (result.returncode, result.stdout) == (1, "")
    assert result.stderr.startswith("Error: There is no dataset 'absent'.")
    assert "Traceback" not in result.stderr
    result = run("--debug", "datasets", "show", "absent", MEDSEGPY_LOAD_PLUGINS="")
    assert result.returncode == 1
    assert "Traceback" in result.stderr
    assert "UnknownNameError" in result.stderr
    assert run("nonsense").returncode == 2


def test_a_broken_plugin_is_one_line_and_only_if_plugins_are_loaded(site):
    site.add("broken", "raise RuntimeError('no luck')")
    path = os.pathsep.join([str(site.folder), str(Path(__file__).parent.parent)])
    result = run("--version", PYTHONPATH=path)
    assert (result.returncode, result.stderr) == (0, "")
    result = run("--help", PYTHONPATH=path, MEDSEGPY_LOAD_PLUGINS="medsegpy-broken")
    assert result.returncode == 0
    (line,) = result.stderr.splitlines()
    assert line.startswith("Warning: plugin 'broken' (medsegpy-broken 1.0)")
    assert "no luck" in line


def test_a_closed_pipe_is_no_error():
    script = f'"{sys.executable}" -m medsegpy_core --help | true'
    result = subprocess.run(script, shell=True, capture_output=True, text=True, check=False)
    assert "Traceback" not in result.stderr
