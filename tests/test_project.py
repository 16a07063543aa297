"""The packages of the repository agree with each other, and the pinned versions cover what they need."""

import re
import subprocess
import sys
import tomllib
import zipfile
from email import message_from_bytes
from pathlib import Path

import pytest
from packaging.requirements import Requirement
from packaging.utils import canonicalize_name

from medsegpy_core import __version__

ROOT = Path(__file__).parents[1]
PACKAGES = [ROOT, *sorted(path.parent for path in ROOT.glob("plugins/*/pyproject.toml"))]
PLUGINS = PACKAGES[1:]


def project(package):
    return tomllib.loads((package / "pyproject.toml").read_text())["project"]


def requirements(package):
    declared = project(package)
    build = tomllib.loads((package / "pyproject.toml").read_text())["build-system"]["requires"]
    extras = [text for many in declared.get("optional-dependencies", {}).values() for text in many]
    return [Requirement(text) for text in [*build, *declared["dependencies"], *extras]]


def pinned():
    lines = (ROOT / "constraints.txt").read_text().splitlines()
    requirements = [Requirement(line) for line in lines if line and not line.startswith("#")]
    return {canonicalize_name(one.name): one for one in requirements}


OURS = {canonicalize_name(project(package)["name"]) for package in PACKAGES}


def test_every_requirement_is_pinned_to_an_allowed_version():
    pins = pinned()
    for package in PACKAGES:
        for requirement in requirements(package):
            name = canonicalize_name(requirement.name)
            if name in OURS:
                continue
            assert name in pins, f"{requirement} of {package.name} is not in constraints.txt"
            (pin,) = pins[name].specifier
            assert pin.operator == "=="
            assert requirement.specifier.contains(pin.version), f"{package.name} wants {requirement}, pinned is {pin}"


def test_pins_have_no_urls():
    assert not re.search(r"://|@|--", (ROOT / "constraints.txt").read_text())


def test_the_packages_have_one_version_and_allow_each_other():
    versions = {project(package)["name"]: project(package)["version"] for package in PACKAGES}
    assert set(versions.values()) == {__version__}
    for package in PLUGINS:
        ours = [one for one in requirements(package) if canonicalize_name(one.name) in OURS]
        assert any(one.name == "medsegpy-core" for one in ours)
        assert all(one.specifier.contains(versions[one.name]) for one in ours)


@pytest.mark.parametrize("package", PLUGINS, ids=lambda package: package.name)
def test_a_plugin_follows_the_names_of_the_project(package):
    name = package.name.removeprefix("medsegpy-")
    module = f"medsegpy_{name.replace('-', '_')}"
    declared = project(package)
    assert declared["name"] == package.name
    assert declared["entry-points"] == {"medsegpy": {name: module}}
    assert (package / module / "__init__.py").is_file()
    assert (package / module / "py.typed").is_file()
    assert (package / "LICENSE").read_text() == (ROOT / "LICENSE").read_text()
    assert f"plugins/{package.name}" in str((ROOT / "pyproject.toml").read_text()), "mypy_path"


def test_classifiers_exist():
    from trove_classifiers import classifiers

    for package in PACKAGES:
        assert set(project(package)["classifiers"]) <= set(classifiers)


@pytest.mark.slow
@pytest.mark.parametrize("package", PACKAGES, ids=lambda package: project(package)["name"])
def test_the_wheel_contains_only_the_package(package, tmp_path):
    command = [sys.executable, "-m", "build", "--no-isolation", "--wheel", "--outdir", str(tmp_path), str(package)]
    subprocess.run(command, check=True, capture_output=True)
    (wheel,) = tmp_path.glob("*.whl")
    module = project(package)["name"].replace("-", "_")
    with zipfile.ZipFile(wheel) as archive:
        names = archive.namelist()
        (metadata,) = [name for name in names if name.endswith("METADATA")]
        message = message_from_bytes(archive.read(metadata))
    assert {name.split("/")[0] for name in names} == {module, f"{module}-{project(package)['version']}.dist-info"}
    assert f"{module}/py.typed" in names
    assert not [name for name in names if "__pycache__" in name or "/tests/" in name]
    assert message["License-Expression"] == "Apache-2.0"
    assert any(name.endswith("licenses/LICENSE") for name in names)
