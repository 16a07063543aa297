"""``medsegpy evaluate``."""

from __future__ import annotations

import os
from collections.abc import Iterable
from pathlib import Path
from typing import Any

import click

__all__ = ["comma_list", "evaluate"]


def _thresholds(context: click.Context, parameter: click.Parameter, texts: tuple[str, ...]) -> Any:  # noqa: ARG001
    """Read ``0.4`` and ``liver=0.4``."""
    named: dict[str, float] = {}
    common = 0.5
    for text in texts:
        name, _, number = text.rpartition("=")
        try:
            value = float(number)
        except ValueError:
            raise click.BadParameter(f"{text!r} is neither a number nor NAME=NUMBER.") from None
        if name:
            named[name] = value
        else:
            common = value
    if named and common != 0.5:
        raise click.BadParameter("Give one number for all categories, or NAME=NUMBER for some.")
    return named or common


def comma_list(context: click.Context, parameter: click.Parameter, text: str | None) -> list[str] | None:  # noqa: ARG001
    """Read an option that is a comma list."""
    return None if text is None else [name.strip() for name in text.split(",") if name.strip()]


@click.command("evaluate", short_help="Score predictions that lie in files.")
@click.argument("dataset")
@click.option(
    "--predictions",
    required=True,
    type=click.Path(path_type=Path),
    help="Folder with one file a scan, named by the scan's id: HDF5 with 'probs' or 'labels', or what a reader reads.",
)
@click.option(
    "--output",
    type=click.Path(path_type=Path, file_okay=False),
    help="Where tables and report go. Default: MEDSEGPY_RESULTS/DATASET.",
)
@click.option("--config", type=click.Path(path_type=Path, exists=True, dir_okay=False), help="A config file.")
@click.option("--categories", callback=comma_list, help="Comma list of names, instead of the config's CATEGORIES.")
@click.option("--metrics", callback=comma_list, help="Comma list, instead of the config's TEST_METRICS.")
@click.option("--tolerance", type=click.FloatRange(min=0), help="Of NSD, in mm, instead of the config's NSD_TOLERANCE.")
@click.option("--channels", callback=comma_list, help="Comma list: the predictions' channels by name.")
@click.option("--threshold", multiple=True, callback=_thresholds, help="NUMBER, or NAME=NUMBER, several times.")
@click.option("--argmax", is_flag=True, help="The largest channel counts, the background among them.")
@click.option("--keep-going", is_flag=True, help="Score what can be scored, and list the rest.")
@click.option("--fresh", is_flag=True, help="Score scans again that are done.")
@click.option("--workers", type=click.IntRange(min=1), help="Scans side by side. Default: as many as there are cores.")
@click.option("--isolate", is_flag=True, help="The HDF5 library runs in a helper process, which files may crash.")
@click.option("--no-pictures", is_flag=True, help="A report without pictures.")
@click.option("--json", "as_json", is_flag=True, help="Print what metrics.json holds.")
def evaluate(
    dataset: str,
    predictions: Path,
    output: Path | None,
    config: Path | None,
    categories: list[str] | None,
    metrics: list[str] | None,
    tolerance: float | None,
    channels: list[str] | None,
    threshold: Any,
    argmax: bool,
    keep_going: bool,
    fresh: bool,
    workers: int | None,
    isolate: bool,
    no_pictures: bool,
    as_json: bool,
) -> None:
    """Score the predictions of a DATASET that lie in files, one a scan.

    Everything is checked before anything is scored. Scans that are done are not done again. Exit status 1 if a scan
    could not be scored.
    """
    from concurrent.futures import ThreadPoolExecutor

    from medsegpy_core import Config, DatasetCatalog, MetadataCatalog
    from medsegpy_core.hdf5 import Access, accessing
    from medsegpy_evaluation.predictions import evaluate_predictions
    from medsegpy_evaluation.settings import category_ids_of

    cfg = Config.from_file(config) if config is not None else Config()
    if categories is not None:
        if not categories:
            raise click.BadParameter("it names none.", param_hint="--categories")
        if dataset not in DatasetCatalog:
            DatasetCatalog.get(dataset)  # the error for an unknown name
        cfg.CATEGORIES = category_ids_of(categories, MetadataCatalog.get(dataset))
    if metrics is not None:
        cfg.TEST_METRICS = metrics
    if tolerance is not None:
        cfg.NSD_TOLERANCE = tolerance
    if argmax:
        cfg.LOSS = ("argmax", "softmax")
        cfg.INCLUDE_BACKGROUND = True
    folder = output or Path(os.environ.get("MEDSEGPY_RESULTS") or "results") / dataset
    with accessing(Access(isolate=isolate)), ThreadPoolExecutor(workers or os.cpu_count() or 1) as executor:
        document = evaluate_predictions(
            dataset,
            predictions,
            cfg,
            folder,
            channels=channels,
            thresholds=threshold,
            executor=executor,
            keep_going=keep_going,
            fresh=fresh,
            pictures=not no_pictures,
            progress=_progress,
        )
    _show(document, folder, as_json=as_json)
    if document["failed"]:
        raise click.exceptions.Exit(1)


def _progress(items: Iterable[Any], total: int) -> Iterable[Any]:
    from medsegpy_core.cli.output import track

    return track(items, "Scans", total)


def _show(document: dict[str, Any], folder: Path, *, as_json: bool) -> None:
    from medsegpy_core.cli.output import console, print_json

    if as_json:
        print_json(document)
        return
    from medsegpy_evaluation.terminal import overview, summary_table

    screen = console()
    for line in overview(document):
        screen.print(line)
    screen.print(summary_table(document))
    screen.print(f"Tables and report: {folder}")
