"""Who imports whom: the contracts in pyproject.toml, and what `import medsegpy_core` costs."""

import re
import shutil
import subprocess
import sys
import tomllib
from pathlib import Path

import pytest

ROOT = Path(__file__).parents[1]
CONTRACTS = tomllib.loads((ROOT / "pyproject.toml").read_text())["tool"]["importlinter"]


def copy_of_the_packages(folder):
    """Copy the contracts, and all sources of their packages."""
    for package in CONTRACTS["root_packages"]:
        (source,) = [path for path in (ROOT / package, *ROOT.glob(f"plugins/*/{package}")) if path.is_dir()]
        for file in source.rglob("*.py"):
            target = folder / package / file.relative_to(source)
            target.parent.mkdir(parents=True, exist_ok=True)
            shutil.copyfile(file, target)
    shutil.copyfile(ROOT / "pyproject.toml", folder / "pyproject.toml")


def broken_contracts(folder):
    """Run the linter on a copy; return the ids of the broken contracts, and its output."""
    code = "from importlinter.cli import lint_imports_command; lint_imports_command()"
    command = [sys.executable, "-c", code, "--no-cache"]
    done = subprocess.run(command, cwd=folder, capture_output=True, text=True, check=False)
    broken = {one["id"] for one in CONTRACTS["contracts"] if re.search(f"{re.escape(one['name'])} BROKEN", done.stdout)}
    assert bool(broken) == bool(done.returncode), done.stdout + done.stderr
    return broken, done.stdout


def test_the_contracts_hold(tmp_path):
    copy_of_the_packages(tmp_path)
    broken, text = broken_contracts(tmp_path)
    assert not broken, text


@pytest.mark.parametrize(
    ("module", "imported", "contract"),
    [
        # A package imports one that imports it; two modules of one package, in the core and in a plugin.
        ("medsegpy_core/data/records.py", "medsegpy_core.datasets", {"layers", "circles"}),
        ("medsegpy_core/loading/order.py", "medsegpy_core.loading.loader", {"circles"}),
        ("medsegpy_core/hdf5/extents.py", "medsegpy_core.hdf5.scan", {"circles"}),
        ("medsegpy_nifti/header.py", "medsegpy_nifti.reader", {"circles"}),
        # A module of a public package, and a package that is not public.
        ("medsegpy_h5_slices/reader.py", "medsegpy_core.hdf5.scan", {"public"}),
        ("medsegpy_evaluation/store.py", "medsegpy_core._util.stamps", {"public"}),
        ("medsegpy_evaluation/store.py", "medsegpy_core.packing", {"public"}),
        ("medsegpy_core/loading/order.py", "h5py", {"h5py"}),
    ],
)
def test_an_import_inside_a_function_breaks_a_contract(module, imported, contract, tmp_path):
    copy_of_the_packages(tmp_path)
    with (tmp_path / module).open("a") as file:
        file.write(f"\n\ndef imports() -> object:\n    import {imported}\n\n    return {imported}\n")
    broken, text = broken_contracts(tmp_path)
    assert broken == contract, text


def test_the_public_modules_are_those_that_the_reference_lists():
    (contract,) = [one for one in CONTRACTS["contracts"] if one["id"] == "public"]
    allowed = {line.removeprefix("** -> ") for line in contract["ignore_imports"]}
    section = (ROOT / "docs/api.md").read_text().partition("## Public modules\n")[2].partition("\n## ")[0]
    assert allowed | {"medsegpy_core"} == set(re.findall(r"^\| `(medsegpy_core[\w.]*)` \|", section, re.MULTILINE))


def modules_after(statement):
    code = f"{statement}\nimport sys\nprint(*sorted(sys.modules), sep='\\n')"
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    return set(done.stdout.split())


@pytest.mark.parametrize(
    "statement",
    [
        "import medsegpy_core",
        "from medsegpy_core import DatasetSpec, hookimpl",
        "import medsegpy_example_datasets",
        "import medsegpy_h5_slices",
        "import medsegpy_h5_volumes",
        "import medsegpy_evaluation",
    ],
)
def test_imports_are_light(statement):
    heavy = {"numpy", "h5py", "scipy", "PIL", "click", "rich", "yaml", "importlib.metadata", "importlib_metadata"}
    assert not heavy & (modules_after(statement) - modules_after("pass"))
