"""``medsegpy plugins test``."""

from __future__ import annotations

from pathlib import Path

import click
from attrs import asdict

from medsegpy_core.cli.output import console, print_json
from medsegpy_core.testing.outcome import Finding

__all__ = ["command"]

_STYLE = {"passed": "green", "failed": "bold red", "unknown": "yellow", "skipped": "yellow"}


@click.command("test")
@click.argument("name")
@click.option(
    "--data",
    type=click.Path(exists=True, file_okay=False, path_type=Path),
    help="A folder with files to try the plugin's readers on; else those of an installed dataset are tried.",
)
@click.option("--json", "as_json", is_flag=True, help="Print JSON: a list with one object for each check.")
def command(name: str, data: Path | None, as_json: bool) -> None:
    """Check what the plugin NAME brings, as the suites of medsegpy_core.testing do.

    Exit status 1 if a check failed.
    """
    from medsegpy_core.testing import check_plugin

    findings = []
    for finding in check_plugin(name, None if data is None else data.absolute()):
        findings.append(finding)
        if not as_json:
            _show(finding)
    if as_json:
        print_json([asdict(finding) for finding in findings])
    else:
        counts = {status: sum(finding.status == status for finding in findings) for status in _STYLE}
        click.echo(", ".join(f"{count} {status}" for status, count in counts.items() if count))
    if any(finding.status == "failed" for finding in findings):
        raise click.exceptions.Exit(1)


def _show(finding: Finding) -> None:
    screen = console()
    screen.print(f"{finding.status:<8}", style=_STYLE[finding.status], end="")
    screen.print(f"{finding.subject} {finding.check}")
    if finding.message:
        screen.print(f"        {finding.message}")
