"""Who imports whom: the contracts in pyproject.toml, and what `import medsegpy_core` costs."""

import subprocess
import sys
from pathlib import Path

import pytest
from importlinter.cli import EXIT_STATUS_SUCCESS, lint_imports

ROOT = Path(__file__).parents[1]


def test_the_layer_contracts_hold(capsys):
    status = lint_imports(config_filename=str(ROOT / "pyproject.toml"), no_cache=True)
    assert status == EXIT_STATUS_SUCCESS, capsys.readouterr().out


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
