"""``medsegpy profile``."""

from __future__ import annotations

from typing import TYPE_CHECKING

import attrs
import click

from medsegpy_core.cli.output import console, print_json, table
from medsegpy_core.cli.pack import sizes
from medsegpy_core.text import counted

if TYPE_CHECKING:
    from medsegpy_core.diagnostics import Profile


_TAG = "DefaultDataLoader"


@click.command("profile")
@click.argument("name")
@click.option("--tag", default=_TAG, show_default=True, help="The loader: a built-in one, or one of a plugin.")
@click.option("--size", callback=sizes, metavar="H,W,D", help="IMG_SIZE; default: a size that fits all scans.")
@click.option("--categories", help="CATEGORIES, as in 0,(1,2); default: all.")
@click.option("--batch-size", type=click.IntRange(1), help="Elements per batch; default: 16, or 2 for patches.")
@click.option("--batches", type=click.IntRange(1), default=8, show_default=True, help="Batches per measurement.")
@click.option("--threads", type=click.IntRange(0), help="NUM_WORKERS; default: that of the config.")
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
    """Measure where a loader of the dataset NAME spends its time, and what makes it faster.

    All measurements use a sample; one scan is packed into a temporary folder.
    """
    from medsegpy_core.config import Config
    from medsegpy_core.diagnostics import profile

    cfg = Config(TRAIN_DATASET=name, TAG=tag, SEED=0, IMG_SIZE=size or ())
    if categories is not None:
        cfg.merge_from_list(["CATEGORIES", f"({categories},)"])
    if threads is not None:
        cfg.NUM_WORKERS = threads
    found = profile(cfg, name, batch_size or (2 if "Patch" in tag else 16), batches)
    if as_json:
        print_json(attrs.asdict(found) | {"suggestions": [attrs.asdict(trial) for trial in found.suggestions]})
        return
    _print(found)


def _print(found: Profile) -> None:
    screen = console()
    kernels = "compiled kernels" if found.kernels else "no compiled kernels"
    low, high = found.rate_range
    screen.print(
        f"{found.dataset}, {found.tag}, batch size {found.batch_size}, {counted(found.threads, 'thread')}, {kernels}: "
        f"{found.rate:,.0f} elements/s ({low:,.0f} to {high:,.0f})\n",
    )
    if found.padded:
        screen.print(f"Slices differ in size: smaller ones are padded to IMG_SIZE={found.size}.\n")
    if found.stages:
        total = sum(found.stages.values())
        rows = [_stage_row(stage, found, total) for stage in found.stages]
        screen.print(table(["stage", ">ms a batch, 1 thread", ">from", ">to", ">share"], rows))
    else:
        screen.print("The loader comes from a plugin: where its time goes cannot be measured.")
    memory = f"{found.batch_bytes / 1e6:,.1f} MB a batch"
    if found.memory is not None and found.preload_memory is not None:
        memory = (
            f"{found.memory / 1e6:,.0f} MB, with {memory}; PRELOAD_DATA would take {found.preload_memory / 1e6:,.0f} MB"
        )
    screen.print(f"\nMemory: {memory}.\n")
    if not found.kernels:
        screen.print("Kernels: pip install medsegpy-native reads files that are not compressed about twice as fast.")
    _print_advice(found)


def _stage_row(stage: str, found: Profile, total: float) -> tuple[str, ...]:
    low, high = found.stage_ranges[stage]
    seconds = found.stages[stage]
    return stage, *(f"{1000 * value:.2f}" for value in (seconds, low, high)), f"{seconds / total:.0%}"


def _print_advice(found: Profile) -> None:
    screen = console()
    for line in found.advice:
        screen.print(f"Layout: {line}.")
    for line in found.not_tried:
        screen.print(f"Not tried: {line}")
    noise = f"two measurements of the same loader differ by {found.noise - 1:.0%}"
    if found.suggestions:
        rows = [
            (s.change, f"{s.rate:,.0f}", f"{s.gain:.1f} x", f"{s.low:.1f} to {s.high:.1f} x") for s in found.suggestions
        ]
        screen.print(table(["what helps, one at a time", ">elements/s", ">gain", ">range"], rows))
        screen.print(f"\nMeasured in turns; {noise}.")
    else:
        screen.print(f"Nothing that was tried is faster by more than a tenth, and by more than the noise: {noise}.")
