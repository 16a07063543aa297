import ast
import importlib
import json
import subprocess
import sys
from pathlib import Path

import pytest

import medsegpy_core


def modules_after(code, site=None, **environ):
    code += "\nimport json, sys; print(json.dumps(sorted(sys.modules)))"
    if site is not None:
        done = site.run(code, **environ)
    else:
        done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stderr
    return set(json.loads(done.stdout.splitlines()[-1]))


def test_importing_the_core_is_light(site):
    for number in range(10):
        site.add(f"p{number}", "raise RuntimeError('a plugin was imported')")
    # What a site-packages of a development environment imports by itself does not count.
    bare = modules_after("import importlib", site)
    loaded = modules_after("import medsegpy_core", site) - bare
    assert "medsegpy_core.plugins.discovery" in loaded
    heavy = {"numpy", "h5py", "click", "rich", "yaml", "importlib.metadata", "attr", "pluggy", "scipy", "PIL", "email"}
    assert not loaded & heavy
    assert not {name for name in loaded if name.startswith(("fake_", "medsegpy_")) and "medsegpy_core" not in name}
    ours = {name for name in loaded if name.startswith("medsegpy_core")}
    assert ours == {
        "medsegpy_core",
        "medsegpy_core._util",
        "medsegpy_core._util.exports",
        "medsegpy_core.plugins",
        "medsegpy_core.plugins.discovery",
    }


def test_catalogs_need_no_numpy():
    loaded = modules_after(
        "from medsegpy_core import DatasetCatalog, MetadataCatalog, hookimpl, DatasetSpec, Record\n"
        "DatasetCatalog.register('x', list); MetadataCatalog.get('x').set(spacing=(1, 1))"
    )
    assert not loaded & {"numpy", "h5py", "click", "rich", "yaml", "importlib.metadata"}
    assert not loaded & {"medsegpy_h5_slices", "medsegpy_evaluation"}


def test_names_of_loaders_and_transforms_need_no_numpy(site):
    loaded = modules_after(
        "from medsegpy_core.plugins import default_manager; assert default_manager().loaders()",
        site,
        MEDSEGPY_LOAD_PLUGINS="",
    )
    assert "medsegpy_core.builtin_plugin" in loaded
    assert not loaded & {"numpy", "h5py", "click", "rich", "yaml", "medsegpy_core.loading", "medsegpy_core.transforms"}


def test_every_public_name_exists():
    assert sorted(medsegpy_core.__all__) == medsegpy_core.__all__
    assert len(set(medsegpy_core.__all__)) == len(medsegpy_core.__all__)
    for name in medsegpy_core.__all__:
        assert getattr(medsegpy_core, name) is not None
        assert name in dir(medsegpy_core)
    assert medsegpy_core.API_VERSION == 1


@pytest.mark.parametrize("package", ["", ".data", ".plugins", ".reading", ".testing"])
def test_stubs_and_run_time_have_the_same_public_names(package):
    module = importlib.import_module(f"medsegpy_core{package}")
    stub = Path(module.__file__).with_suffix(".pyi").read_text()
    declared = {}
    for node in ast.parse(stub).body:
        for alias in node.names:
            assert alias.asname == alias.name
            declared[alias.name] = getattr(importlib.import_module(node.module), alias.name)
    assert sorted(declared) == module.__all__
    assert all(getattr(module, name) is value for name, value in declared.items())


def test_an_unknown_name_is_an_attribute_error():
    assert not hasattr(medsegpy_core, "absent")
    done = subprocess.run(
        [sys.executable, "-c", "from medsegpy_core import absent"], capture_output=True, text=True, check=False
    )
    assert "ImportError: cannot import name 'absent' from 'medsegpy_core'" in done.stderr


def test_module_as_a_program():
    done = subprocess.run(
        [sys.executable, "-m", "medsegpy_core", "--help"], capture_output=True, text=True, check=False
    )
    assert done.returncode == 0, done.stderr
    assert "plugins" in done.stdout
