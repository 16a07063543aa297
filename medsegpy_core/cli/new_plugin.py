"""``medsegpy new-plugin``: names, templates, and the survey of a data folder for a new dataset plugin."""

from __future__ import annotations

import builtins
import json
import keyword
import math
import os
import re
import shutil
from collections.abc import Callable, Mapping, Sequence
from importlib.resources import files
from pathlib import Path
from string import Template
from typing import Any, Final

import click
from attrs import asdict, define, field, frozen

from medsegpy_core.cli.output import console, echo, table, track
from medsegpy_core.data.records import Record
from medsegpy_core.datasets import make_records, scan_directory
from medsegpy_core.errors import LeakageError, ReadError, RecordError
from medsegpy_core.loading.scans import Scan, group_scans
from medsegpy_core.plugins.discovery import installed, normalize_distribution
from medsegpy_core.plugins.manager import default_manager
from medsegpy_core.reading.canonical_scan import open_record
from medsegpy_core.reading.readers import find_reader
from medsegpy_core.splits import FRACTIONS, split_by_subject, subject_of, warn_of_unknown_subjects
from medsegpy_core.text import by
from medsegpy_core.typing import DatasetDict

_PREFIX: Final = "medsegpy-"
_LONGEST: Final = 30
# Names of the core, its tests, and its terms.
_RESERVED: Final = frozenset({"api", "core", "dataset", "evaluator", "plugin", "reader", "tests"})


@frozen
class PluginNames:
    """All names of a plugin, derived from the given one.

    Attributes:
        name: ``knee-mri``: name of the entry point, and of a reader.
        distribution: ``medsegpy-knee-mri``.
        module: ``medsegpy_knee_mri``.
        identifier: ``knee_mri``: prefix of dataset names.
        class_name: ``KneeMri``.
    """

    name: str
    distribution: str
    module: str
    identifier: str
    class_name: str

    @classmethod
    def of(cls, given: str) -> PluginNames:
        """Derive the names.

        Raises:
            click.BadParameter: The name is invalid for a package, or is already installed.
        """
        name = re.sub(r"[-_.]+", "-", given.strip().lower()).removeprefix(_PREFIX)
        if len(name) > _LONGEST or re.fullmatch(r"[a-z][a-z0-9]*(-[a-z0-9]+)*", name) is None:
            raise click.BadParameter(
                f"{given!r} is not a valid plugin name: it must begin with a letter, contain only ASCII letters, "
                f"digits and single dashes, as in 'knee-mri', and have at most {_LONGEST} characters."
            )
        identifier = name.replace("-", "_")
        taken = keyword.iskeyword(identifier) or keyword.issoftkeyword(identifier) or hasattr(builtins, identifier)
        if taken or name in _RESERVED:
            raise click.BadParameter(f"{given!r} has another meaning in Python or in medsegpy. Choose another name.")
        distribution = _PREFIX + name
        for plugin in installed():
            same = normalize_distribution(plugin.distribution) == normalize_distribution(distribution)
            if same or plugin.name == name:
                raise click.BadParameter(
                    f"There is already a plugin {plugin.name!r} ({plugin.distribution} {plugin.version}). Choose "
                    "another name, or uninstall it."
                )
        words = identifier.split("_")
        return cls(
            name, distribution, f"medsegpy_{identifier}", identifier, "".join(word.capitalize() for word in words)
        )


def render(template: str, values: Mapping[str, str]) -> str:
    """Fill in a template.

    Args:
        template: Its path under ``templates``, without ``.tmpl``.
        values: The values of its placeholders.
    """
    text = files("medsegpy_core.cli").joinpath("templates", *f"{template}.tmpl".split("/")).read_text(encoding="utf-8")
    return Template(text).substitute(values)


def python_string(text: str) -> str:
    """Return a Python literal, in double quotes if ruff would use them.

    Example:
        >>> python_string("it's"), python_string('say "yes"')
        ('"it\\'s"', '\\'say "yes"\\'')
    """
    literal = repr(text)
    return f'"{literal[1:-1]}"' if literal[0] == "'" and '"' not in text else literal


def write_package(
    out: Path, names: PluginNames, contents: Mapping[str, str], description: str, dependencies: list[str]
) -> Path:
    """Write a package into a new folder.

    Args:
        out: The parent of the new folder. It is created if it does not exist.
        names: The names of the plugin.
        contents: The files: path inside the package's folder to text. Files of all packages are added.
        description: One line.
        dependencies: The dependencies besides medsegpy-core.

    Returns:
        The new folder.

    Raises:
        FileExistsError: The folder already exists. Nothing is written then.
    """
    target = out.absolute() / names.distribution
    if target.exists() or target.is_symlink():
        raise FileExistsError(f"{target} already exists. Remove it, or name another folder with --out.")
    needed = ", ".join(f'"{one}"' for one in sorted({"medsegpy-core>=0.1,<0.2", *dependencies}))
    values: dict[str, Any] = {**asdict(names), "description": description, "dependencies": needed}
    common = {
        "pyproject.toml": render("common/pyproject.toml", values),
        ".github/workflows/tests.yml": render("common/tests.yml", values),
        ".gitignore": render("common/gitignore", values),
        f"{names.module}/py.typed": "",
    }
    # Next to the target, so that renaming it is atomic.
    staged = target.with_name(f".{names.distribution}.{os.getpid()}.tmp")
    try:
        for name, text in {**common, **contents}.items():
            path = staged / name
            path.parent.mkdir(parents=True, exist_ok=True)
            path.write_text(text, encoding="utf-8")
        staged.rename(target)
    finally:
        shutil.rmtree(staged, ignore_errors=True)
    return target


_FOLDERS: Final[Mapping[str, tuple[str, ...]]] = {
    "train": ("train", "training"),
    "val": ("val", "valid", "validation"),
    "test": ("test", "testing"),
}
_SCANS: Final = 200  # number of scans whose files are opened


@frozen
class FolderSurvey:
    """The survey of a data folder.

    Attributes:
        root: The folder.
        folders: Split to subfolder; empty if there are none and the splits are proposed.
        subjects: Split to its subjects, sorted.
        elements: Split to its number of elements.
        readers: The readers of the files.
        distributions: The plugins that provide them.
        channels: The number of channels of the masks; 0: no mask was found.
        label_map: Whether integer masks must be declared as label maps.
        spacing: Millimeters; None: the files do not state it, or differ.
        spacings: The number of different spacings in the files.
    """

    root: Path
    folders: Mapping[str, str]
    subjects: Mapping[str, Sequence[int | str]]
    elements: Mapping[str, int]
    readers: Sequence[str]
    distributions: Sequence[str]
    channels: int
    label_map: bool
    spacing: tuple[float, ...] | None
    spacings: int


@define
class _Seen:
    """Properties of the files, collected one by one."""

    channels: int = 0
    largest: int = 0
    label_map: bool = False
    spacings: set[tuple[float, ...]] = field(factory=set)
    silent: bool = False


def survey_folder(root: Path, seed: int) -> FolderSurvey:
    """Survey a folder.

    Args:
        root: The folder. If it has any of the subfolders train, val, test, these are the splits; otherwise subjects are
            divided.
        seed: A different seed gives a different split.

    Raises:
        ReadError: A file cannot be read.
        RecordError: There are no scans.
        LeakageError: A subject is in two of the subfolders.
    """
    folders = {
        split: found[0] for split, names in _FOLDERS.items() if (found := [n for n in names if (root / n).is_dir()])
    }
    splits = _in_folders(root, folders) if folders else _proposed(root, seed)
    records = make_records([d for dicts in splits.values() for d in dicts], [""] * sum(map(len, splits.values())))
    readers = {find_reader(record).name for record in records[:: max(1, len(records) // _SCANS)]}
    seen = _look_into(group_scans(records))
    owners = [default_manager().readers()[name].owner.distribution for name in readers & {*default_manager().readers()}]
    said = len(seen.spacings) == 1 and not seen.silent
    return FolderSurvey(
        root=root,
        folders=folders,
        subjects={split: _subjects(dicts) for split, dicts in splits.items()},
        elements={split: len(dicts) for split, dicts in splits.items()},
        readers=sorted(readers),
        distributions=sorted(filter(None, owners)),
        channels=max(seen.channels, seen.largest),
        label_map=seen.label_map,
        spacing=next(iter(seen.spacings)) if said else None,
        spacings=len(seen.spacings),
    )


def _in_folders(root: Path, folders: Mapping[str, str]) -> dict[str, list[DatasetDict]]:
    splits = {split: scan_directory(root / folder) for split, folder in folders.items()}
    empty = [str(root / folders[split]) for split, dicts in splits.items() if not dicts]
    if empty:
        raise RecordError(f"There are no scans in {', '.join(empty)}. Subfolders are not searched.")
    where: dict[int | str, str] = {}
    for split, dicts in splits.items():
        for subject in _subjects(dicts):
            if subject in where:
                raise LeakageError(
                    f"Subject {subject!r} is in {root / folders[where[subject]]} and in {root / folders[split]}. A "
                    "model must not be evaluated on its training data: move the files so that each is in one folder."
                )
            where[subject] = split
    warn_of_unknown_subjects([d for dicts in splits.values() for d in dicts], "may be in two of the folders")
    return splits


def _proposed(root: Path, seed: int) -> dict[str, list[DatasetDict]]:
    dicts = scan_directory(root)
    if not dicts:
        raise RecordError(f"There are no scans in {root}. Subfolders are not searched, except for train, val and test.")
    return {split: part for split, part in split_by_subject(dicts, FRACTIONS, seed).items() if part}


def _subjects(dicts: Sequence[DatasetDict]) -> list[int | str]:
    return sorted(
        {subject_of(d) for d in dicts}, key=lambda subject: (isinstance(subject, str), subject)
    )  # numbers first


def _look_into(scans: Sequence[Scan]) -> _Seen:
    seen = _Seen()
    chosen = scans[:: math.ceil(len(scans) / _SCANS)] if scans else []
    for scan in track(chosen, "Reading headers and masks", len(chosen)):
        _look_at(scan.records[len(scan.records) // 2], seen)
        # The largest label may be in any slice.
        for record in scan.records if seen.label_map and not scan.is_volume else ():
            _look_at(record, seen)
    return seen


def _look_at(record: Record, seen: _Seen) -> None:
    reader = find_reader(record)
    with reader.open(record) as opened:
        spatial = 2 if record.kind == "slice" else 3
        mask = opened.mask
        if mask is not None and mask.shape[spatial:] in ((), (1,)) and mask.dtype.kind in "iu":
            values = mask[...]
            largest = int(values.max(initial=0))
            # 0 and 255: a binary mask written as an image.
            if largest > 1 and not (largest == 255 and not ((values > 0) & (values < 255)).any()):
                seen.label_map = seen.label_map or not record.extra.get("label_map")
                seen.largest = max(seen.largest, largest)
                record = record.with_extra({"label_map": True})
    with open_record(record, reader) as scan:
        if scan.mask is not None:
            if scan.mask.shape[:spatial] != scan.image.shape[:spatial]:
                raise ReadError("image and mask differ in size", record.sem_seg_file)
            seen.channels = max(seen.channels, scan.mask.shape[-1])
        _hear(scan.metadata, seen)


def _hear(metadata: Mapping[str, Any], seen: _Seen) -> None:
    spacing = metadata.get("spacing")
    if spacing is None:
        seen.silent = True
    else:
        seen.spacings.add(tuple(float(f"{size:.6g}") for size in spacing))


_SLICES = "medsegpy-h5-slices"
_NUMPY = "numpy>=2"


def _common(function: Callable[..., None]) -> Callable[..., None]:
    out = click.option(
        "--out",
        type=click.Path(file_okay=False, path_type=Path),
        default=Path(),
        help="The parent of the package's folder; default: the current folder.",
    )
    name = click.argument("names", metavar="NAME", callback=lambda _ctx, _parameter, given: PluginNames.of(given))
    return name(out(function))


@click.group("new-plugin")
def command() -> None:
    """Write the package of a new plugin: module, tests, README, CI file.

    The package installs and passes its own tests and `medsegpy plugins --check` without changes. NAME is short, such as
    'knee': the package is then called medsegpy-knee.
    """


@command.command("dataset")
@click.option(
    "--from",
    "source",
    type=click.Path(exists=True, file_okay=False, path_type=Path),
    help="A folder with your files. Splits, classes and spacing are taken from it.",
)
@click.option("--seed", default=0, show_default=True, help="With --from: seed of the split.")
@_common
def new_dataset(names: PluginNames, out: Path, source: Path | None, seed: int) -> None:
    """Write a plugin that provides datasets.

    With --from, subfolders train, val and test are the splits. If there are none, subjects are divided (70, 15 and
    15 percent), and splits.json of the module lists them.
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
    """Write a plugin that provides a reader of a file format. The files' suffix is the plugin's name."""
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
    """Write a plugin that provides an evaluator of whole scans."""
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
    """Return the values of the placeholders in the templates of a dataset."""
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
    return f"{{{', '.join(pairs)}}}  # split -> folder"


def _metadata_lines(survey: FolderSurvey | None) -> list[str]:
    lines = ['"label_map": True,  # value v of a mask is channel v - 1'] if survey and survey.label_map else []
    if survey is not None and survey.spacing is not None:
        return [*lines, f'"spacing": {survey.spacing!r},  # millimeters: dH, dW, dD']
    if survey is not None and survey.spacings > 1:
        return [*lines, "# Each file states its own spacing."]
    return [*lines, '# "spacing": (0.3, 0.3, 0.7),  # millimeters: dH, dW, dD; required for distances']


def _to_do(survey: FolderSurvey | None) -> list[str]:
    lines = ["name the classes in `CATEGORIES`, and add superclasses if there are any"]
    if survey is None:
        lines.append("put the files into the folders of `SPLITS` under `ROOT`, or change the paths")
    else:
        lines.append("make `ROOT` a relative path if others will use the plugin")
    if survey is None or (survey.spacing is None and survey.spacings < 2):
        lines.append("set the spacing, if it is known")
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
