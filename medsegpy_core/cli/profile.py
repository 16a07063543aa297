"""``medsegpy profile``."""

from __future__ import annotations

from collections.abc import Sequence

import attrs
import click

from medsegpy_core.cli.output import console, print_json, table
from medsegpy_core.cli.pack import sizes

__all__ = ["command"]

_TAGS = ["DefaultDataLoader", "S25dDataLoader", "N5dDataLoader", "PatchDataLoader", "RandomPatchDataLoader"]


@click.command("profile")
@click.argument("name")
@click.option("--tag", type=click.Choice(_TAGS), default=_TAGS[0], show_default=True, help="The loader.")
@click.option("--size", callback=sizes, metavar="H,W,D", help="IMG_SIZE; by default what suits the first scan.")
@click.option("--categories", help="CATEGORIES, as in 0,(1,2); all by default.")
@click.option("--batch-size", type=click.IntRange(1), help="Elements a batch; 16, of patches 2, if not given.")
@click.option("--batches", type=click.IntRange(1), default=8, show_default=True, help="Batches a measurement.")
@click.option("--threads", type=click.IntRange(0), help="NUM_WORKERS; the config's default if not given.")
@click.option("--json", "as_json", is_flag=True, help="Print JSON: one object.")
def command(
    name: str,
    tag: str,
    size: tuple[int, int, int] | None,
    categories: str | None,
    batch_size: int | None,
    batches: int,
    threads: int | None,
    as_json: bool,
) -> None:
    """Say where the time of a loader of the dataset NAME goes, and what would make it faster.

    Everything is measured on a sample; one scan is packed into a temporary folder.
    """
    from medsegpy_core.config import Config
    from medsegpy_core.profiling import profile

    cfg = Config(TRAIN_DATASET=name, TAG=tag, SEED=0, IMG_SIZE=size or _fitting_size(name, tag))
    if categories is not None:
        cfg.merge_from_list(["CATEGORIES", f"({categories},)"])
    if threads is not None:
        cfg.NUM_WORKERS = threads
    found = profile(cfg, name, batch_size or (2 if "Patch" in tag else 16), batches)
    if as_json:
        print_json(attrs.asdict(found) | {"suggestions": [attrs.asdict(trial) for trial in found.suggestions]})
        return
    screen = console()
    kernels = "compiled kernels" if found.kernels else "no compiled kernels"
    screen.print(
        f"{name}, {tag}, batch size {found.batch_size}, {found.threads} threads, {kernels}: "
        f"{found.rate:,.0f} elements/s\n",
    )
    total = sum(found.stages.values())
    rows = [(stage, f"{1000 * seconds:.2f}", f"{seconds / total:.0%}") for stage, seconds in found.stages.items()]
    screen.print(table(["stage", ">ms a batch, 1 thread", ">share"], rows))
    screen.print(
        f"\nMemory: {found.memory / 1e6:,.0f} MB, with {found.batch_bytes / 1e6:,.1f} MB a batch; PRELOAD_DATA would "
        f"take {found.preload_memory / 1e6:,.0f} MB.\n"
    )
    if not found.kernels:
        screen.print("Kernels: pip install medsegpy-native reads files that are not compressed about twice as fast.")
    _print_advice(found.advice, [(s.change, f"{s.rate:,.0f}", f"{s.gain:.1f} x") for s in found.suggestions])


def _print_advice(advice: Sequence[str], suggestions: Sequence[tuple[str, str, str]]) -> None:
    screen = console()
    for line in advice:
        screen.print(f"Layout: {line}.")
    if suggestions:
        screen.print(table(["what helps, one at a time", ">elements/s", ">gain"], suggestions))
    else:
        screen.print("Nothing that was tried is more than a tenth faster.")


def _fitting_size(name: str, tag: str) -> tuple[int, ...]:
    """Return an IMG_SIZE that suits the first scan of a dataset."""
    from medsegpy_core.datasets import load_records
    from medsegpy_core.loading.scans import Opener, group_scans

    if tag == "DefaultDataLoader":
        return ()
    records = load_records(name)
    if not records:
        return (1, 1, 1)
    scan = group_scans(records)[0]
    with Opener.of(records).open(scan.records[0]) as opened:
        shape = opened.image.shape[:3] if scan.is_volume else (*opened.image.shape[:2], len(scan.records))
    if "Patch" in tag:
        return tuple(min(n, p) for n, p in zip(shape, (128, 128, 64), strict=True))
    return (*shape[:2], 3)
