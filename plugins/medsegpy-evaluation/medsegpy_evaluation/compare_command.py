"""``medsegpy compare``."""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING

import click

from medsegpy_evaluation.command import comma_list

if TYPE_CHECKING:
    from medsegpy_evaluation.compare import Comparison

__all__ = ["compare"]


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
    from medsegpy_evaluation.compare_page import overview, reasons

    return [*overview(comparison), *reasons(comparison.rows)]


def _tables(comparison: Comparison) -> None:
    from medsegpy_core.cli.output import console, table
    from medsegpy_evaluation.compare_page import better_in, title
    from medsegpy_evaluation.pages import number

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
