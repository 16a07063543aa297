"""``medsegpy datasets``."""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from functools import partial
from typing import TYPE_CHECKING, Any

import click

from medsegpy_core.catalog import DatasetCatalog, MetadataCatalog, dataset_owner, dataset_spec
from medsegpy_core.cli.output import console, print_json, table, track
from medsegpy_core.errors import MedSegPyError
from medsegpy_core.text import by, counted, printable

if TYPE_CHECKING:
    from medsegpy_core.diagnostics import AccessCost, Checked


@click.group("datasets")
def command() -> None:
    """List the datasets, or show the content of one."""


@command.command("list")
@click.option("--json", "as_json", is_flag=True, help="Print JSON: a list with one object for each dataset.")
def list_datasets(as_json: bool) -> None:
    """List the names of all datasets, without reading them."""
    found = [_identity(name) for name in DatasetCatalog.list()]
    if as_json:
        print_json(found)
    elif not found:
        console().print("There are no datasets. They come from plugins: pip install medsegpy-example-datasets")
    else:
        rows = [
            (
                d["name"],
                d["split"] or "",
                d["error"] or d["description"],
                f"{d['distribution'] or ''} {d['version'] or ''}",
            )
            for d in found
        ]
        console().print(table(["dataset", "split", "~description", "from"], rows))


@command.command("show")
@click.argument("name")
@click.option("--json", "as_json", is_flag=True, help="Print JSON: one object.")
@click.option("--fast", is_flag=True, help="Read one header per scan; do not count voxels.")
def show_dataset(name: str, as_json: bool, fast: bool) -> None:
    """Show the content of the dataset NAME: subjects, scans, slices, shapes, voxels of each class."""
    from medsegpy_core.diagnostics.survey import survey

    identity = _identity(name, must_exist=True)
    watch = partial(track, description=f"Reading {name}")
    found = survey(name, fast, lambda scans, total: watch(scans, total=total)).as_dict(name)
    metadata = MetadataCatalog.get(name).as_dict()
    reads = _access_costs(name)
    if as_json:
        print_json(identity | found | {"metadata": metadata, "reads": [_as_dict(cost) for cost in reads]})
        return
    _print_counts(identity, found, metadata)
    for cost in reads:
        if cost.wasteful:
            console().print(f"\nLayout: {cost.advice(name)}.")


def _access_costs(name: str) -> list[AccessCost]:
    """Return the costs of reading a slice and a patch of the first scan."""
    from medsegpy_core.datasets import load_records
    from medsegpy_core.diagnostics import access_costs
    from medsegpy_core.loading.scans import Opener, group_scans

    records = load_records(name)
    return access_costs(group_scans(records)[0], Opener.of(records)) if records else []


def _as_dict(cost: AccessCost) -> dict[str, Any]:
    return {"what": cost.what, "bytes_touched": cost.touched, "bytes_needed": cost.needed, "wasteful": cost.wasteful}


@command.command("check")
@click.argument("target", metavar="NAME|DIR")
@click.option("--json", "as_json", is_flag=True, help="Print JSON: one object, with a list of findings.")
@click.option(
    "--timeout",
    type=click.FloatRange(min=0, min_open=True),
    default=60.0,
    show_default=True,
    help="Seconds that the HDF5 library may take per file, plus one for each 10 MB.",
)
@click.pass_context
def check_dataset(ctx: click.Context, target: str, as_json: bool, timeout: float) -> None:
    """Read all of the dataset NAME, or of the files in DIR, and report problems. Exit status 1 if there are any.

    No file can crash or hang the check: the HDF5 library runs in a separate process.
    """
    from medsegpy_core import diagnostics

    watch = partial(_watch, target)
    checked = diagnostics.check_dataset(target, seconds=timeout, watch=watch)
    if as_json:
        print_json(checked.as_dict())
    else:
        _print_findings(checked)
    ctx.exit(1 if checked.findings or not checked.elements else 0)


def _watch(target: str, items: Iterable[Any], total: int, doing: str) -> Iterable[Any]:
    return track(items, f"{doing} {target}", total)


def _print_findings(checked: Checked) -> None:
    screen = console()
    for found in checked.findings:
        times = f" ({found.elements:,} elements)" if found.elements > 1 else ""
        where = f"{printable(str(found.file))}: " if found.file else ""
        screen.print(f"{found.kind:>8}  {where}{found.message}{times}")
    elements, scans = counted(checked.elements, "element"), counted(checked.scans, "scan")
    what = f"{elements} of {scans} in {counted(checked.files, 'file')}"
    wrong = len(checked.findings)
    said = counted(wrong, "finding") if wrong else "nothing is wrong"
    if not checked.elements:
        said = f"there is nothing to check{', ' + said if wrong else ''}"
    screen.print(f"{checked.name}: {what}: {said}.")
    if checked.scans_without_subject:
        unknown = counted(checked.scans_without_subject, "scan")
        screen.print(f"The subject of {unknown} is unknown (no subject_id): a split may divide the scans of a person.")


def _identity(name: str, must_exist: bool = False) -> dict[str, Any]:
    """Return the description of a dataset, without listing it."""
    try:
        spec, owner = dataset_spec(name), dataset_owner(name)
    except MedSegPyError as error:  # two plugins claim the name
        if must_exist:
            raise
        keys = ("split", "description", "plugin", "distribution", "version")
        return {"name": name, **dict.fromkeys(keys), "error": str(error)}
    return {
        "name": name,
        "split": spec.split,
        "description": spec.description,
        "plugin": owner.plugin or None,
        "distribution": owner.distribution or None,
        "version": owner.version or None,
        "error": None,
    }


def _print_counts(identity: Mapping[str, Any], counted: Mapping[str, Any], metadata: Mapping[str, Any]) -> None:
    screen = console()
    screen.print(printable(identity["name"]), style="bold", end="")
    packaged = f"{identity['distribution']} {identity['version']}" if identity["distribution"] else "this process"
    split = f", split {identity['split']}" if identity["split"] else ""
    screen.print(f"  {identity['description']} ({packaged}{split})")
    screen.print()
    rows: list[tuple[str, str]] = [
        ("subjects", f"{counted['subjects']:,}" + _extra(counted["scans_without_subject"], "scans without subject_id")),
        ("scans", f"{counted['scans']:,}"),
        ("slices", f"{counted['slices']:,}" + _extra(counted["missing_slices"], "missing")),
        ("labelled", f"{counted['labelled']:,} of {counted['elements']:,} elements"),
        ("shape (H x W x D)", _tally((by(s["shape"]), s["scans"]) for s in counted["shapes"])),
        ("spacing (mm)", _tally((by(s["spacing"] or ("unknown",)), s["scans"]) for s in counted["spacings"])),
        ("image type", _tally(counted["image_dtypes"].items())),
        ("mask type", _tally(counted["mask_dtypes"].items()) or "-"),
    ]
    screen.print(table(["", "~"], rows))
    screen.print(
        table([">augmentation", "name", "~parameters", ">elements"], map(_augmentation, counted["augmentations"]))
    )
    screen.print()
    if counted["voxels"] is not None:
        total = sum(counted["voxels"].values())
        ids = metadata.get("category_ids") or [name.removeprefix("channel ") for name in counted["voxels"]]
        voxels = [
            (str(category_id), name, n, f"{100 * n / total:.2f} %" if total else "-")
            for category_id, (name, n) in zip(ids, counted["voxels"].items(), strict=True)
        ]
        screen.print(table([">id", "class", ">voxels", ">of all counted"], voxels))


def _augmentation(found: Mapping[str, Any]) -> tuple[object, ...]:
    parameters = ", ".join(f"{key}={value}" for key, value in found["parameters"].items())
    return found["number"], found["name"] or "(not declared)", parameters, found["elements"]


def _extra(count: int, what: str) -> str:
    return f" ({count:,} {what})" if count else ""


def _tally(counts: Any) -> str:
    """Return the values, the most frequent first, with counts if there are several."""
    pairs = list(counts)
    if len(pairs) == 1:
        return str(pairs[0][0])
    shown = [f"{what} ({n:,})" for what, n in pairs[:6]]
    return ", ".join(shown) + (f", and {len(pairs) - 6} more" if len(pairs) > 6 else "")
