"""``medsegpy plugins`` and ``medsegpy plugins test``."""

from __future__ import annotations

import os
import warnings
from collections.abc import Mapping, Sequence
from pathlib import Path

import click
from attrs import asdict

from medsegpy_core.cli.output import console, echo, print_json, table
from medsegpy_core.errors import PluginWarning
from medsegpy_core.plugins.kinds import Owner, PluginInfo
from medsegpy_core.plugins.manager import default_manager
from medsegpy_core.testing.outcome import Finding
from medsegpy_core.text import printable

_FINDING_STYLE = {"passed": "green", "failed": "bold red", "unknown": "yellow", "skipped": "yellow"}


@click.command("test")
@click.argument("name")
@click.option(
    "--data",
    type=click.Path(exists=True, file_okay=False, path_type=Path),
    help="A folder with files for the plugin's readers; default: files of an installed dataset.",
)
@click.option("--json", "as_json", is_flag=True, help="Print JSON: a list with one object for each check.")
def test_command(name: str, data: Path | None, as_json: bool) -> None:
    """Check what the plugin NAME provides, with the checks of the suites in medsegpy_core.testing.

    Exit status 1 if a check failed.
    """
    from medsegpy_core.testing import check_plugin

    findings = []
    for finding in check_plugin(name, None if data is None else data.absolute()):
        findings.append(finding)
        if not as_json:
            _show_finding(finding)
    if as_json:
        print_json([asdict(finding) for finding in findings])
    else:
        counts = {status: sum(finding.status == status for finding in findings) for status in _FINDING_STYLE}
        click.echo(", ".join(f"{count} {status}" for status, count in counts.items() if count))
    if any(finding.status == "failed" for finding in findings):
        raise click.exceptions.Exit(1)


def _show_finding(finding: Finding) -> None:
    screen = console()
    screen.print(f"{finding.status:<8}", style=_FINDING_STYLE[finding.status], end="")
    screen.print(f"{finding.subject} {finding.check}")
    if finding.message:
        screen.print(f"        {finding.message}")


_STYLE = {"active": "green", "failed": "bold red", "blocked": "yellow"}


@click.group("plugins", invoke_without_command=True)
@click.option("--json", "as_json", is_flag=True, help="Print JSON: a list with one object for each plugin.")
@click.option("--check", is_flag=True, help="Exit with status 1 if a plugin failed, or two claim the same name.")
@click.option("--trace", is_flag=True, help="Log to stderr what is imported and called, and how long it takes.")
@click.pass_context
def command(ctx: click.Context, as_json: bool, check: bool, trace: bool) -> None:
    """List the installed plugins, what they provide, and which failed.

    A failing plugin does not affect the others. MEDSEGPY_LOAD_PLUGINS, a comma-separated list of distributions, limits
    what is loaded.
    """
    if trace:
        os.environ["MEDSEGPY_TRACE_PLUGINS"] = "1"
    if ctx.invoked_subcommand is not None:
        return
    with warnings.catch_warnings():
        # The table shows the reasons.
        warnings.simplefilter("ignore", PluginWarning)
        infos, contested = default_manager().infos(), default_manager().contested()
    if as_json:
        print_json([_as_json(info) for info in infos])
    else:
        show_plugins(infos)
    for (kind, name), owners in contested.items():
        echo(f"Contested: {_contest(kind, name, owners)}", err=True)
    if check and (contested or any(info.status == "failed" for info in infos)):
        raise click.exceptions.Exit(1)


command.add_command(test_command)


def show_plugins(infos: Sequence[PluginInfo]) -> None:
    """Print a table of plugins, followed by the reasons why some failed."""
    screen = console()
    if not infos:
        screen.print("No plugin is installed. Datasets and readers come from plugins: pip install medsegpy-h5-slices")
        return
    rows = [(info.name, info.distribution, info.version, info.status, _provides(info.provides)) for info in infos]
    shown = table(["plugin", "distribution", "version", "status", "~provides"], rows)
    for row, info in zip(shown.rows, infos, strict=True):
        row.style = "" if info.status == "active" else _STYLE.get(info.status, "")
    screen.print(shown)
    for info in infos:
        if info.error is not None:
            screen.print(f"\n{info.name} ({info.distribution} {info.version}) failed:", style="bold red")
            screen.print(f"  {info.error}")


def _provides(provides: Mapping[str, Sequence[str]]) -> str:
    return "\n".join(f"{kind}: {', '.join(map(printable, names))}" for kind, names in provides.items() if names) or "-"


def _as_json(info: PluginInfo) -> dict[str, object]:
    return {
        "name": info.name,
        "distribution": info.distribution,
        "version": info.version,
        "status": info.status,
        "error": info.error,
        "provides": {kind: list(names) for kind, names in info.provides.items()},
    }


def _contest(kind: str, name: str, owners: Sequence[Owner]) -> str:
    return f"{name!r} of {kind} is claimed by {' and by '.join(map(str, owners))}."
