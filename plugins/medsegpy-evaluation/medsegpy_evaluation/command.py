"""``medsegpy evaluate`` and ``medsegpy compare``, and what they print."""

from __future__ import annotations

import os
from collections.abc import Iterable, Mapping
from pathlib import Path
from typing import TYPE_CHECKING, Any

import click

from medsegpy_core.text import counted

if TYPE_CHECKING:
    from rich.table import Table

    from medsegpy_evaluation.compare import Comparison

__all__ = ["comma_list", "compare", "evaluate", "overview", "summary_table"]


def summary_table(document: Mapping[str, Any]) -> Table:
    """Return the summary of an evaluation as a table.

    Args:
        document: What `SemSegEvaluator.evaluate` returns.
    """
    from medsegpy_core.cli.output import table

    units = {metric["name"]: metric["unit"] for metric in document["settings"]["metrics"]}
    numbers = (">n", ">missed", ">halluc.", ">both empty", ">mean", ">95 % interval", ">sd", ">median")
    rows = []
    last = None
    for row in document["summary"]:
        name, unit = row["metric"], units[row["metric"]]
        first = row["category"] != last
        counts = [str(row[key]) for key in ("missed", "hallucinated", "both_empty")] if first else [""] * 3
        low, high = row["ci_low"], row["ci_high"]
        rows.append(
            [
                row["category"] if first else "",
                f"{name} ({unit})" if unit else name,
                str(row["n"]),
                *counts,
                _number(row["mean"]),
                "" if low is None else f"{_number(low)} .. {_number(high)}",
                _number(row["sd"]),
                _number(row["median"]),
            ]
        )
        last = row["category"]
    return table(["category", "metric", *numbers], rows)


def overview(document: Mapping[str, Any]) -> list[str]:
    """Return what else is to be said of an evaluation, in lines."""
    from medsegpy_evaluation.results import undefined_lines, unknown_line

    scans = document["scans"]
    subjects = len({scan["subject"] for scan in scans})
    lines = [f"{counted(len(scans), 'scan')} of {counted(subjects, 'subject')} of {document['dataset']}."]
    if line := unknown_line(document):
        lines.append(line)
    lines += undefined_lines(document)
    if document["failed"]:
        failed = counted(len(document["failed"]), "scan")
        lines.append(f"{failed} could not be scored, in none of these numbers:")
        lines += [f"  {item['scan']}: {'; '.join(item['problems'])}" for item in document["failed"]]
    return lines


def _number(value: float | None) -> str:
    return "" if value is None else f"{value:.4g}"


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

    screen = console()
    for line in overview(document):
        screen.print(line)
    screen.print(summary_table(document))
    screen.print(f"Tables and report: {folder}")


def model_of(text: str) -> tuple[str | None, list[str]]:
    """Read ``DIR``, ``DIR,DIR`` or ``NAME=DIR,DIR``; what exists is a folder, whatever its name holds."""
    if Path(text).exists():
        return None, [text]
    name, equals, rest = text.partition("=")
    listed = rest if equals else text
    folders = [listed] if listed and Path(listed).exists() else [part for part in listed.split(",") if part]
    if not folders or (equals and not name):
        raise click.BadParameter(f"{text!r} is neither DIR, nor DIR,DIR,..., nor NAME=DIR,DIR,....")
    return (name if equals else None), folders


@click.command("compare", short_help="Compare models by the results of their evaluations.")
@click.argument("results", nargs=-1, required=True)
@click.option("--out", type=click.Path(path_type=Path, file_okay=False), help="Folder for compare.csv, .json, .html.")
@click.option("--metrics", callback=comma_list, help="Comma list. Default: all that were measured.")
@click.option("--categories", callback=comma_list, help="Comma list. Default: all.")
@click.option("--names", callback=comma_list, help="Comma list: what to call the models. Default: as their folders.")
@click.option("--json", "as_json", is_flag=True, help="Print what compare.json holds.")
def compare(
    results: tuple[str, ...],
    out: Path | None,
    metrics: list[str] | None,
    categories: list[str] | None,
    names: list[str] | None,
    as_json: bool,
) -> None:
    """Compare two or more models by the RESULTS of their evaluations, paired by subject.

    RESULTS is the folder that an evaluation wrote; or folders with commas between them, the folds of one
    cross-validation, in which each scan is tested once; or NAME= and one of these, which names the model. Exit status 1
    if the results cannot be compared: different scans, truths, policies or definitions.
    """
    if len(results) < 2:
        raise click.UsageError("Give the results of two models, or of more.")
    from medsegpy_core.cli.output import console, print_json
    from medsegpy_evaluation.compare import compare_results

    found = [model_of(text) for text in results]
    sources = [folders[0] if len(folders) == 1 else folders for _, folders in found]
    given = [name for name, _ in found] if names is None else names
    comparison = compare_results(*sources, metrics=metrics, categories=categories, names=given, output_folder=out)
    if as_json:
        print_json(comparison.as_dict())
        return
    screen = console()
    for line in _lines(comparison):
        screen.print(line)
    _tables(comparison)
    if out is not None:
        screen.print(f"Tables and page: {out}")


def _lines(comparison: Comparison) -> list[str]:
    from medsegpy_evaluation.compare import overview, reasons

    return [*overview(comparison), *reasons(comparison.rows)]


def _tables(comparison: Comparison) -> None:
    from medsegpy_core.cli.output import console, table
    from medsegpy_evaluation.compare import better_in, title
    from medsegpy_evaluation.report import number

    screen = console()

    def shown(value: float | None) -> str:
        return number(value)[0]

    def interval(row: dict[str, float | None]) -> str:
        return "" if row["ci_low"] is None else f"{shown(row['ci_low'])} .. {shown(row['ci_high'])}"

    numbers = (">n", ">left out", ">difference", ">95 % interval", ">p", ">p (Holm)", "better")
    rows = [
        [
            f"{row['a']} - {row['b']}",
            row["category"],
            title(row),
            str(row["n"]),
            str(row["left_out"]),
            shown(row["mean_difference"]),
            interval(row),
            shown(row["p"]),
            shown(row["p_holm"]),
            better_in(row),
        ]
        for row in comparison.rows
    ]
    screen.print(table(["models", "category", "metric", *numbers], rows))
    if comparison.ranks:
        ranks = [[r["model"], shown(r["mean_rank"]), interval(r), shown(r["first"])] for r in comparison.ranks]
        screen.print(table(["model", ">mean rank", ">95 % interval", ">leads"], ranks))
