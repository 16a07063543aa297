"""``medsegpy new-plugin``."""

from __future__ import annotations

import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import click
from attrs import asdict

from medsegpy_core.cli.folder_survey import FolderSurvey, survey_folder
from medsegpy_core.cli.output import by, console, echo, table
from medsegpy_core.cli.plugin_names import PluginNames
from medsegpy_core.cli.scaffold import python_string, render, write_package

__all__ = ["command"]

_SLICES = "medsegpy-h5-slices"
_NUMPY = "numpy>=2"


def _common(function: Callable[..., None]) -> Callable[..., None]:
    out = click.option(
        "--out",
        type=click.Path(file_okay=False, path_type=Path),
        default=Path(),
        help="The folder to make the package's folder in; left out, the current one.",
    )
    name = click.argument("names", metavar="NAME", callback=lambda _ctx, _parameter, given: PluginNames.of(given))
    return name(out(function))


@click.group("new-plugin")
def command() -> None:
    """Write the package of a new plugin: module, tests, README, CI file.

    It installs, passes its own tests and `medsegpy plugins --check` as it is. NAME is short, as 'knee': the package is
    then called medsegpy-knee.
    """


@command.command("dataset")
@click.option(
    "--from",
    "source",
    type=click.Path(exists=True, file_okay=False, path_type=Path),
    help="A folder with files of yours: splits, classes and spacing are taken from them.",
)
@click.option("--seed", default=0, show_default=True, help="With --from: another seed, other splits.")
@_common
def new_dataset(names: PluginNames, out: Path, source: Path | None, seed: int) -> None:
    """Write a plugin that brings datasets.

    With --from, subfolders train, val and test are the splits; if there are none, subjects are shared out (70, 15 and
    15 percent), and the module's splits.json lists them.
    """
    survey = None if source is None else survey_folder(source.absolute(), seed)
    values = _dataset_values(names, survey)
    kind = "small" if survey is None else "real"
    contents = {
        f"{names.module}/__init__.py": render("dataset/module.py", values),
        f"tests/test_{names.identifier}.py": render(f"dataset/test_{kind}.py", values),
        "README.md": render("dataset/README.md", values),
    }
    if survey is not None and not survey.folders:
        listed = {split: list(subjects) for split, subjects in survey.subjects.items()}
        contents[f"{names.module}/splits.json"] = json.dumps(listed, indent=2) + "\n"
    needed = [_SLICES] if survey is None else list(survey.distributions)
    path = write_package(out, names, contents, f"The datasets {names.name} for medsegpy_core.", needed)
    if survey is not None:
        _show(survey)
    _say_what_next(path)


@command.command("reader")
@_common
def new_reader(names: PluginNames, out: Path) -> None:
    """Write a plugin that brings a reader of a file format; the files' suffix is the plugin's name."""
    values = {
        **asdict(names),
        "suffix": f".{names.name}",
        "array": f"{names.class_name}Array",
        "scan": f"{names.class_name}Scan",
    }
    contents = {
        f"{names.module}/__init__.py": render("reader/module.py", values),
        f"{names.module}/reader.py": render("reader/reader.py", values),
        f"tests/test_{names.identifier}.py": render("reader/test.py", values),
        "README.md": render("reader/README.md", values),
    }
    needed = ["attrs>=23.2", _NUMPY]
    _say_what_next(write_package(out, names, contents, f"Reads {values['suffix']} files for medsegpy_core.", needed))


@command.command("evaluator")
@_common
def new_evaluator(names: PluginNames, out: Path) -> None:
    """Write a plugin that brings an evaluator of whole scans."""
    values = asdict(names)
    contents = {
        f"{names.module}/__init__.py": render("evaluator/module.py", values),
        f"{names.module}/evaluator.py": render("evaluator/evaluator.py", values),
        f"tests/test_{names.identifier}.py": render("evaluator/test.py", values),
        "README.md": render("evaluator/README.md", values),
    }
    description = f"The evaluator {names.class_name}Evaluator for medsegpy_core."
    _say_what_next(write_package(out, names, contents, description, [_NUMPY]))


def _dataset_values(names: PluginNames, survey: FolderSurvey | None) -> dict[str, str]:
    """Return what the placeholders of the templates of a dataset stand for."""
    splits = ["train", "val", "test"] if survey is None else list(survey.elements)
    folders = {split: split for split in splits} if survey is None else survey.folders
    reader = survey is not None and len(survey.readers) == 1 and survey.readers[0]
    values = {
        **asdict(names),
        "names": ", ".join(f"`{names.identifier}_{split}`" for split in splits),
        "root": python_string(names.name if survey is None else str(survey.root)),
        "splits": f"SPLITS = {_shown_splits(splits, folders)}\n",
        "categories": "\n".join(
            f'    {{"id": {i}, "name": "class {i}"}},' for i in range(2 if survey is None else max(1, survey.channels))
        ),
        "reader": f', reader="{reader}"' if reader else "",
        "metadata": "\n".join(f"                {line}" for line in _metadata_lines(survey)),
        "to_do": "\n".join(f"* {line};" for line in _to_do(survey)).removesuffix(";") + ".",
    }
    return values | {"load": render(f"dataset/load_{'folders' if folders else 'subjects'}.py", values).rstrip()}


def _shown_splits(splits: list[str], folders: Any) -> str:
    if not folders:
        return f"({', '.join(map(python_string, splits))}{',' if len(splits) == 1 else ''})"
    pairs = (f"{python_string(split)}: {python_string(folders[split])}" for split in splits)
    return f"{{{', '.join(pairs)}}}  # and the folder of each"


def _metadata_lines(survey: FolderSurvey | None) -> list[str]:
    lines = ['"label_map": True,  # value v of a mask is channel v - 1'] if survey and survey.label_map else []
    if survey is not None and survey.spacing is not None:
        return [*lines, f'"spacing": {survey.spacing!r},  # millimetres: dH, dW, dD']
    if survey is not None and survey.spacings > 1:
        return [*lines, "# Each file says its own spacing."]
    return [*lines, '# "spacing": (0.3, 0.3, 0.7),  # millimetres: dH, dW, dD; distances need it']


def _to_do(survey: FolderSurvey | None) -> list[str]:
    lines = ["give the classes in `CATEGORIES` their names, and their superclasses if there are any"]
    if survey is None:
        lines.append("put the files into the folders of `SPLITS`, under `ROOT`, or say where they are")
    else:
        lines.append("make `ROOT` a relative path if others are to use the plugin")
    if survey is None or (survey.spacing is None and survey.spacings < 2):
        lines.append("say the spacing, if it is known")
    return lines


def _show(survey: FolderSurvey) -> None:
    screen = console()
    rows = [
        (split, len(survey.subjects[split]), count, survey.folders.get(split, "proposed"))
        for split, count in survey.elements.items()
    ]
    screen.print(table(["split", ">subjects", ">elements", "folder"], rows))
    kind = " (label maps)" if survey.label_map else ""
    several = "differs from file to file" if survey.spacings > 1 else "not known"
    screen.print(f"classes: {survey.channels or 'no masks'}{kind}")
    screen.print(f"spacing: {by(survey.spacing) + ' mm' if survey.spacing else several}")


def _say_what_next(path: Path) -> None:
    echo(f"Written: {path}\nNext: pip install -e {path}, then python -m pytest {path}, then its README.md.")
