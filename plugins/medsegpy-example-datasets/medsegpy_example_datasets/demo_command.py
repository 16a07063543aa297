"""``medsegpy demo``."""

from __future__ import annotations

from pathlib import Path

import click

__all__ = ["demo"]


@click.command("demo", short_help="Show the main job on real images: from a dataset's name to a picture.")
@click.option(
    "--out", type=click.Path(path_type=Path, file_okay=False), help="A folder; MEDSEGPY_RESULTS/demo if not given."
)
def demo(out: Path | None) -> None:
    """Show the main job on real images: from a dataset's name to batches, predictions, scores and a picture.

    The images are CT and MR of three people (plugin medsegpy-example-datasets). The model is a small baseline of
    statistics, made with NumPy: it shows that everything fits together, not how good a segmentation can be.
    """
    from medsegpy_example_datasets.demo import run

    run(out)
