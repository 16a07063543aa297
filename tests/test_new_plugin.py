"""Packages that `medsegpy new-plugin` writes: they install, pass their own tests, and match the files."""

import json
import os
import subprocess
import sys
import warnings
from pathlib import Path

import h5py
import numpy as np
import pytest
from click.testing import CliRunner

from medsegpy_core import write_volume
from medsegpy_core.cli import cli
from medsegpy_core.cli import new_plugin as scaffold_module
from medsegpy_core.testing import example_scan, write_slice_files, write_volume_file

BIN = Path(sys.executable).parent


def new_plugin(*arguments):
    return CliRunner().invoke(cli, ["new-plugin", *map(str, arguments)])


def written(*arguments):
    done = new_plugin(*arguments)
    assert done.exit_code == 0, done.output
    return done.output


def run(*command, cwd, target):
    settings = {key: value for key, value in os.environ.items() if not key.startswith("MEDSEGPY_")}
    settings["PYTHONPATH"] = str(target)
    command = [sys.executable, *map(str, command)]
    return subprocess.run(command, cwd=cwd, env=settings, capture_output=True, text=True, check=False)


KINDS = {
    "reader": ("reader", "my-format", ()),
    "evaluator": ("evaluator", "volumes", ()),
    "dataset": ("dataset", "knee", ()),
    "dataset of slices": ("dataset", "hip.joint", ("--from", "slices")),
    "dataset in folders": ("dataset", "hand", ("--from", "folders")),
}


@pytest.fixture(scope="module")
def packages(tmp_path_factory):
    """One package of each kind, installed into one folder; kind -> folder of the package."""
    root = tmp_path_factory.mktemp("packages")
    for subject in range(1, 8):
        write_slice_files(root / "slices", subject_id=subject, channels=3)
        folder = "train" if subject < 5 else "valid" if subject == 5 else "test"
        write_volume_file(root / "folders" / folder / f"{subject:07d}_V00.h5", seed=subject)
    write_slice_files(root / "slices", subject_id=1, channels=3, augmentation=4)
    folders = {}
    for kind, (what, name, options) in KINDS.items():
        options = [str(root / option) if (root / option).is_dir() else option for option in options]
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")  # the augmented copy may be left out
            written(what, name, "--out", root, *options)
        folders[kind] = root / f"medsegpy-{name.replace('.', '-')}"
    target = root / "installed"
    install = [sys.executable, "-m", "pip", "install", "--quiet", "--no-deps", "--no-build-isolation", "--no-index"]
    install += ["--disable-pip-version-check", "--target", str(target), *map(str, folders.values())]
    subprocess.run(install, check=True)
    return folders, target


@pytest.mark.slow
def test_the_packages_are_valid_plugins(packages, tmp_path):
    _, target = packages
    checked = run("-m", "medsegpy_core", "plugins", "--check", "--json", cwd=tmp_path, target=target)
    assert checked.returncode == 0, checked.stderr
    provides = {plugin["name"]: plugin["provides"] for plugin in json.loads(checked.stdout)}
    assert provides["my-format"]["readers"] == ["my-format"]
    assert provides["volumes"]["evaluators"] == ["VolumesEvaluator"]
    for name in ("knee", "hip_joint", "hand"):
        splits = [f"{name}_{split}" for split in ("test", "train", "val")]
        assert provides[name.replace("_", "-")]["datasets"] == splits


@pytest.mark.slow
@pytest.mark.parametrize("kind", KINDS)
def test_each_package_passes_its_own_tests(packages, kind):
    folders, target = packages
    done = run("-m", "pytest", "-q", "-p", "no:cacheprovider", cwd=folders[kind], target=target)
    assert done.returncode == 0, done.stdout + done.stderr
    assert "skipped" not in done.stdout
    expected = {"reader": 15, "evaluator": 3}.get(kind, 9)
    assert f"{expected} passed" in done.stdout


@pytest.mark.slow
@pytest.mark.parametrize("kind", KINDS)
def test_each_package_is_clean(packages, kind):
    folders, _ = packages
    for command in (["check", "--no-cache", "."], ["format", "--no-cache", "--check", "."]):
        done = subprocess.run([BIN / "ruff", *command], cwd=folders[kind], capture_output=True, text=True, check=False)
        assert done.returncode == 0, done.stdout
    names = {str(path.relative_to(folders[kind])) for path in folders[kind].rglob("*") if path.is_file()}
    assert {"pyproject.toml", "README.md", ".gitignore", ".github/workflows/tests.yml"} <= names
    text = "".join(path.read_text() for path in folders[kind].rglob("*") if path.suffix in (".py", ".md", ".toml"))
    assert "$" not in text.replace("\n$ ", "\n")


@pytest.mark.slow
def test_proposed_splits_are_those_of_the_installed_plugin(packages, tmp_path):
    folders, target = packages
    code = (
        "from medsegpy_core import DatasetCatalog, MetadataCatalog\n"
        "import json\n"
        "names = [f'hip_joint_{split}' for split in ('train', 'val', 'test')]\n"
        "dicts = {name: DatasetCatalog.get(name) for name in names}\n"
        "print(json.dumps({n: [len({d['subject_id'] for d in dicts[n]}), len(dicts[n]),\n"
        "                      len(MetadataCatalog.get(n).categories)] for n in names}))"
    )
    done = run("-c", code, cwd=tmp_path, target=target)
    found = json.loads(done.stdout)
    listed = json.loads((folders["dataset of slices"] / "medsegpy_hip_joint" / "splits.json").read_text())
    copies = 6 if 1 in listed["train"] else 0
    assert found == {"hip_joint_train": [5, 30 + copies, 3], "hip_joint_val": [1, 6, 3], "hip_joint_test": [1, 6, 3]}


# What is read from a folder; nothing is installed here.


def module_of(out, name):
    return (out / f"medsegpy-{name}" / f"medsegpy_{name}" / "__init__.py").read_text()


def test_spacing_and_label_maps_are_found(tmp_path):
    image, mask = example_scan((8, 7, 6), channels=4)
    (tmp_path / "data").mkdir()
    for number in range(3):
        with h5py.File(tmp_path / "data" / f"{number:07d}_V00.h5", "w") as file:
            file["volume"], file["seg"] = image, (mask * [1, 2, 3, 4]).sum(-1).astype("u1")
            file["volume"].attrs["spacing"] = (0.5, 0.5, 2.0)
    output = written("dataset", "labels", "--from", tmp_path / "data", "--out", tmp_path)
    assert "classes: 4 (label maps)" in output
    assert "spacing: 0.5 x 0.5 x 2 mm" in output
    module = module_of(tmp_path, "labels")
    assert '"label_map": True,' in module
    assert '"spacing": (0.5, 0.5, 2.0),' in module
    assert module.count('"name": "class ') == 4
    with h5py.File(tmp_path / "data" / "0000002_V00.h5", "a") as file:
        file["volume"].attrs["spacing"] = (0.5, 0.5, 3.0)
    assert "spacing: differs from file to file" in written(
        "dataset", "x", "--from", tmp_path / "data", "--out", tmp_path
    )
    assert "Each file states its own spacing" in module_of(tmp_path, "x")


def test_the_largest_label_may_be_in_any_slice(tmp_path):
    dicts = write_slice_files(tmp_path / "data", shape=(5, 4, 4))
    for label, d in zip((6, 1, 2, 0), dicts, strict=True):
        with h5py.File(d["sem_seg_file"], "w") as file:
            file["data"] = np.full((5, 4, 1), label, "u1")
    assert "classes: 6 (label maps)" in written("dataset", "labels", "--from", tmp_path / "data", "--out", tmp_path)


def test_many_scans_in_a_file_and_another_seed(tmp_path):
    (tmp_path / "data").mkdir()
    with h5py.File(tmp_path / "data" / "all.h5", "w") as file:
        for number in range(12):
            file[f"{number:07d}_V00/volume"] = np.zeros((3, 3, 3))
            file[f"{number:07d}_V00/seg"] = np.zeros((3, 3, 3, 2), "u1")
    splits = []
    for seed in (0, 0, 1):
        out = tmp_path / str(len(splits))
        written("dataset", "many", "--from", tmp_path / "data", "--out", out, "--seed", seed)
        splits.append(json.loads((out / "medsegpy-many" / "medsegpy_many" / "splits.json").read_text()))
    assert splits[0] == splits[1] != splits[2]
    assert sorted(subject for part in splits[0].values() for subject in part) == list(range(12))


def test_subjects_of_bids_names_stay_in_one_split(tmp_path):
    for person in range(10):
        for session in (1, 2):
            write_volume(tmp_path / "data" / f"sub-{person:02d}_ses-{session}.h5", np.zeros((3, 3, 3)))
    written("dataset", "people", "--from", tmp_path / "data", "--out", tmp_path)
    splits = json.loads((tmp_path / "medsegpy-people" / "medsegpy_people" / "splits.json").read_text())
    assert sorted(person for part in splits.values() for person in part) == [f"sub-{n:02d}" for n in range(10)]


@pytest.mark.parametrize("folders", [("",), ("train", "test")])
def test_scans_that_may_be_of_one_subject_are_reported(tmp_path, folders):
    for number, name in enumerate("abcd"):
        write_volume(tmp_path / "data" / folders[number % len(folders)] / f"{name}.h5", np.zeros((3, 3, 3)))
    with warnings.catch_warnings():
        warnings.simplefilter("default")
        done = new_plugin("dataset", "scans", "--from", tmp_path / "data", "--out", tmp_path)
    assert done.exit_code == 0
    assert "4 scans without subject_id" in " ".join(done.output.split())


def test_one_subject_gives_one_split(tmp_path):
    write_volume(tmp_path / "data" / "only.h5", np.zeros((3, 3, 3)))
    assert "no masks" in written("dataset", "one", "--from", tmp_path / "data", "--out", tmp_path)
    assert 'SPLITS = ("train",)' in module_of(tmp_path, "one")


def test_a_subject_in_two_folders_is_rejected(tmp_path):
    for folder in ("train", "test"):
        write_slice_files(tmp_path / "data" / folder, subject_id=5)
    done = new_plugin("dataset", "leak", "--from", tmp_path / "data", "--out", tmp_path / "out")
    assert done.exit_code == 1
    assert "Subject 5 is in" in done.output
    assert not (tmp_path / "out").exists()


def test_a_folder_without_scans_is_rejected(tmp_path):
    (tmp_path / "empty").mkdir()
    done = new_plugin("dataset", "none", "--from", tmp_path / "empty")
    assert done.exit_code == 1
    assert f"There are no scans in {tmp_path / 'empty'}" in done.output
    (tmp_path / "empty" / "train").mkdir()
    done = new_plugin("dataset", "none", "--from", tmp_path / "empty")
    assert f"There are no scans in {tmp_path / 'empty' / 'train'}" in done.output
    assert new_plugin("dataset", "none", "--from", tmp_path / "absent").exit_code == 2


@pytest.mark.parametrize(
    ("name", "reason"),
    [
        ("", "is not a valid plugin name"),
        ("1knee", "is not a valid plugin name"),
        ("knee mri", "is not a valid plugin name"),
        ("kn\N{LATIN SMALL LETTER E WITH ACUTE}e", "is not a valid plugin name"),
        ("knee-", "is not a valid plugin name"),
        ("a/b", "is not a valid plugin name"),
        ("..", "is not a valid plugin name"),
        ("a" * 31, "at most 30 characters"),
        ("class", "has another meaning"),
        ("match", "has another meaning"),
        ("print", "has another meaning"),
        ("core", "has another meaning"),
        ("MedSegPy_Core", "has another meaning"),
        ("h5-slices", "There is already a plugin 'h5-slices'"),
        ("medsegpy.H5_volumes", "There is already a plugin 'h5-volumes'"),
    ],
)
def test_invalid_plugin_names(name, reason, tmp_path):
    done = new_plugin("reader", "--out", tmp_path, "--", name)
    assert done.exit_code == 2
    assert reason in " ".join(done.output.split())
    assert list(tmp_path.iterdir()) == []


@pytest.mark.parametrize("given", ["Knee_MRI", "knee.mri", "medsegpy-knee--mri", "MEDSEGPY_knee-mri"])
def test_spellings_of_a_name(given, tmp_path):
    written("reader", given, "--out", tmp_path)
    (package,) = tmp_path.iterdir()
    assert package.name == "medsegpy-knee-mri"
    assert 'knee-mri = "medsegpy_knee_mri"' in (package / "pyproject.toml").read_text()
    assert "class KneeMriReader" in (package / "medsegpy_knee_mri" / "reader.py").read_text()


@pytest.mark.parametrize("name", ["x", "quite-a-long-name-for-a-plugin"])
def test_code_is_formatted_whatever_the_name(name, tmp_path):
    for kind in ("dataset", "reader", "evaluator"):
        written(kind, name, "--out", tmp_path / kind)
    write_volume_file(tmp_path / "data" / "a.h5")
    written("dataset", name, "--from", tmp_path / "data", "--out", tmp_path / "from")
    for package in tmp_path.glob("*/medsegpy-*"):
        for command in (["check", "--no-cache", "."], ["format", "--no-cache", "--check", "."]):
            done = subprocess.run([BIN / "ruff", *command], cwd=package, capture_output=True, text=True, check=False)
            assert done.returncode == 0, done.stdout


def test_nothing_is_overwritten(tmp_path):
    written("evaluator", "mine", "--out", tmp_path)
    (tmp_path / "medsegpy-mine" / "README.md").write_text("my own words")
    done = new_plugin("evaluator", "mine", "--out", tmp_path)
    assert done.exit_code == 1
    assert "already exists. Remove it, or name another folder with --out." in done.output
    assert (tmp_path / "medsegpy-mine" / "README.md").read_text() == "my own words"


def test_nothing_is_left_when_writing_fails(tmp_path, monkeypatch):
    monkeypatch.setattr(scaffold_module.Path, "rename", lambda *_: (_ for _ in ()).throw(OSError(28, "No space left")))
    done = new_plugin("reader", "mine", "--out", tmp_path)
    assert done.exit_code == 1
    assert "No space left" in done.output
    assert list(tmp_path.iterdir()) == []


def test_odd_folders_are_quoted(tmp_path):
    folder = tmp_path / 'it\'s "odd" \N{GREEK SMALL LETTER ALPHA}'
    write_volume_file(folder / "1.h5")
    written("dataset", "odd", "--from", folder, "--out", tmp_path)
    namespace = {}
    exec(module_of(tmp_path, "odd"), namespace)
    assert namespace["ROOT"] == str(folder)


def test_help():
    for arguments in ((), ("dataset",), ("reader",), ("evaluator",)):
        assert "Usage:" in written(*arguments, "--help")
    assert new_plugin("dataset").exit_code == 2
