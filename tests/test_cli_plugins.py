"""``medsegpy plugins``."""

import json

import pytest
from click.testing import CliRunner

from medsegpy_core.cli import cli

GOOD = """
from medsegpy_core import DatasetSpec, hookimpl

@hookimpl
def medsegpy_register_datasets():
    return [DatasetSpec("knee_train", list, split="train", description="knees"), DatasetSpec("knee_test", list)]
"""


@pytest.fixture
def medsegpy(plugins):
    return lambda *args: CliRunner().invoke(cli, args)


def test_json_lists_everything_about_each_plugin(site, plugins, medsegpy, monkeypatch):
    site.add("knee", GOOD, version="2.1")
    site.add("broken", "import a_module_that_is_not_there")
    site.add("unwanted", GOOD)
    monkeypatch.setenv("MEDSEGPY_LOAD_PLUGINS", "medsegpy-knee, medsegpy_broken")
    plugins()
    result = medsegpy("plugins", "--json")
    broken, knee, unwanted = json.loads(result.stdout)
    assert result.exit_code == 0
    assert knee == {
        "name": "knee",
        "distribution": "medsegpy-knee",
        "version": "2.1",
        "status": "active",
        "error": None,
        "provides": {"datasets": ["knee_test", "knee_train"]},
    }
    assert (broken["status"], broken["provides"]) == ("failed", {})
    assert "a_module_that_is_not_there" in broken["error"]
    assert (unwanted["name"], unwanted["status"]) == ("unwanted", "blocked")


def test_the_table_shows_why_a_plugin_failed(site, plugins, medsegpy):
    site.add("knee", GOOD)
    site.add("broken", "raise RuntimeError('no [luck] today')")
    plugins()
    result = medsegpy("plugins")
    assert result.exit_code == 0
    assert "datasets: knee_test, knee_train" in result.stdout
    assert "broken (medsegpy-broken 1.0) failed:" in result.stdout
    assert "no [luck] today" in result.stdout
    assert result.stderr == ""


def test_none_installed(medsegpy):
    assert "No plugin is installed" in medsegpy("plugins").stdout
    assert json.loads(medsegpy("plugins", "--json").stdout) == []
    assert medsegpy("plugins", "--check").exit_code == 0


def test_check_fails_for_failures(site, plugins, medsegpy):
    site.add("knee", GOOD)
    plugins()
    assert medsegpy("plugins", "--check").exit_code == 0
    site.add("broken", "raise SystemExit(0)")
    plugins()
    assert medsegpy("plugins", "--check", "--json").exit_code == 1


def test_check_fails_for_contested_names(site, plugins, medsegpy):
    site.add("knee", GOOD)
    site.add("other", GOOD.replace("knee_train", "hip_train"))
    plugins()
    result = medsegpy("plugins", "--check")
    assert result.exit_code == 1
    (line,) = result.stderr.splitlines()
    assert "Contested: 'knee_test'" in line
    assert "medsegpy-knee" in line
    assert "medsegpy-other" in line


def test_trace_shows_the_calls(site, plugins, medsegpy, monkeypatch):
    monkeypatch.setenv("MEDSEGPY_TRACE_PLUGINS", "0")
    site.add("knee", GOOD)
    plugins()
    result = medsegpy("plugins", "--trace", "--json")
    assert "imported in" in result.stderr
    assert "medsegpy_register_datasets() -> knee_test, knee_train" in result.stderr
    assert json.loads(result.stdout)[0]["name"] == "knee"
