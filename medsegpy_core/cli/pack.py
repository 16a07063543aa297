"""``medsegpy pack``."""

from __future__ import annotations

from functools import partial
from pathlib import Path
from typing import TYPE_CHECKING, cast

import click

from medsegpy_core.cli.output import echo, print_json, track
from medsegpy_core.text import counted

if TYPE_CHECKING:
    from medsegpy_core.packing.scans import Compression, LayoutName


def sizes(_ctx: click.Context, _param: click.Parameter, value: str | None) -> tuple[int, int, int] | None:
    """Parse ``128,128,64`` or ``128x128x64`` into three ints."""
    if value is None:
        return None
    try:
        h, w, d = (int(part) for part in value.replace("x", ",").split(","))
    except ValueError:
        h = w = d = 0
    if min(h, w, d) < 1:
        raise click.BadParameter(f"{value!r}: expected three ints of at least 1, as in 128,128,64.")
    return h, w, d


@click.command("pack")
@click.argument("name")
@click.option(
    "--out", type=click.Path(path_type=Path), help="A folder, or an .h5 file; default: MEDSEGPY_DATASETS/packed."
)
@click.option(
    "--layout", type=click.Choice(["slices", "patches"]), default="slices", show_default=True, help="What you read."
)
@click.option(
    "--patch",
    callback=sizes,
    metavar="H,W,D",
    help="The chunks of the layout patches; default: contiguous, or with gzip 32,32,32.",
)
@click.option("--compression", type=click.Choice(["none", "gzip"]), default="none", show_default=True)
@click.option("--shards", type=click.IntRange(1), default=1, show_default=True, help="The number of files.")
@click.option("--jobs", type=click.IntRange(1), default=1, show_default=True, help="The number of processes.")
@click.option("--overwrite", is_flag=True, help="Replace a dataset packed from other files or with other settings.")
@click.option("--json", "as_json", is_flag=True, help="Print JSON: one object.")
def command(
    name: str,
    out: Path | None,
    layout: str,
    patch: tuple[int, int, int] | None,
    compression: str,
    shards: int,
    jobs: int,
    overwrite: bool,
    as_json: bool,
) -> None:
    """Rewrite the dataset NAME into one HDF5 file for fast reading.

    Layout "slices" is for loaders of slices and of windows of slices, "patches" for those of patches. Masks become bit
    fields; images keep their type. Every scan is read back and compared. If the command is interrupted, run it again:
    finished scans are kept.
    """
    from medsegpy_core.packing import pack_dataset

    if patch is not None and layout != "patches":
        raise click.UsageError("--patch needs --layout patches.")
    watch = partial(track, description=f"Packing {name}")
    packed = pack_dataset(
        name,
        out,
        layout=cast("LayoutName", layout),
        compression=cast("Compression", compression),
        patch=patch,
        shards=shards,
        jobs=jobs,
        overwrite=overwrite,
        watch=lambda names, total: watch(names, total=total),
    )
    if as_json:
        print_json(
            {
                "manifest": packed.manifest,
                "files": packed.files,
                "scans": packed.scans,
                "scans_packed": packed.scans_packed,
                "source_bytes": packed.source_bytes,
                "packed_bytes": packed.packed_bytes,
            }
        )
        return
    before = packed.scans - packed.scans_packed
    done = f" ({before} of them already packed)" if before else ""
    sizes = f"{packed.packed_bytes / 1e6:,.1f} MB instead of {packed.source_bytes / 1e6:,.1f} MB"
    echo(f"{counted(packed.scans, 'scan')}{done}, {sizes}: {', '.join(map(str, packed.files))}")
    echo(f"Use it: register_packed({str(packed.manifest)!r}, {name + '_packed'!r})")
