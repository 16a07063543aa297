"""The command group: it imports commands on demand, and shows errors as one readable message."""

from __future__ import annotations

import importlib
import io
import traceback
import warnings
from typing import IO, Any, Final, TextIO

import click

from medsegpy_core.cli.output import tolerant_streams
from medsegpy_core.errors import MedSegPyError, MedSegPyWarning, UnknownNameError
from medsegpy_core.plugins.manager import default_manager
from medsegpy_core.text import printable
from medsegpy_core.version import __version__

# command -> its module and its line in --help, so that --help imports none of the modules.
_COMMANDS: Final = {
    "datasets": ("datasets", "List the datasets, or show the content of one."),
    "new-plugin": ("new_plugin", "Write the package of a new plugin, with its tests."),
    "pack": ("pack", "Rewrite a dataset into one HDF5 file for fast reading."),
    "plugins": ("plugins", "List the installed plugins, what they provide, and which failed."),
    "profile": ("profile", "Measure where a loader spends its time, and what makes it faster."),
    "view": ("view", "Draw a scan with its segmentation into a PNG."),
}


class _Failure(click.ClickException):
    """An error with a single message; exit status 1."""

    def format_message(self) -> str:
        return self.message


class _Printable(click.ClickException):
    """An error with escaped text, because it quotes names from files, plugins and the command line."""

    def __init__(self, error: click.ClickException):
        super().__init__(error.message)
        self.exit_code = error.exit_code  # type: ignore[misc]  # click sets it per object as well
        self._error = error

    def show(self, file: IO[Any] | None = None) -> None:
        text = io.StringIO()
        self._error.show(text)
        click.echo(printable(text.getvalue(), lines=True), file=file, err=file is None, nl=False)


class App(click.Group):
    """The core's commands, and those of plugins, which are loaded only if the core has no command of the name."""

    def list_commands(self, ctx: click.Context) -> list[str]:
        """Return all names, including those of plugins."""
        return sorted({*_COMMANDS, *default_manager().commands()})

    def get_command(self, ctx: click.Context, cmd_name: str) -> click.Command | None:
        """Return a command, or None for an unknown name."""
        if cmd_name in _COMMANDS:
            module, _ = _COMMANDS[cmd_name]
            command: click.Command = importlib.import_module(f"medsegpy_core.cli.{module}").command
            return command
        owned = default_manager().commands().get(cmd_name)
        return None if owned is None else owned.record

    def resolve_command(
        self, ctx: click.Context, args: list[str]
    ) -> tuple[str | None, click.Command | None, list[str]]:
        """Find the command that the first argument names. For an unknown one, suggest the plugin that provides it."""
        name = args[0]
        if not name.startswith("-") and self.get_command(ctx, name) is None:
            manager = default_manager()
            try:
                manager.lookup("commands", name, {**dict.fromkeys(_COMMANDS, ()), **manager.claims("commands")})
            except UnknownNameError as error:
                raise click.UsageError(str(error), ctx) from error
        return super().resolve_command(ctx, args)

    def format_commands(self, ctx: click.Context, formatter: click.HelpFormatter) -> None:
        """Write the list of commands, with the distributions of those of plugins."""
        rows = [(name, text) for name, (_, text) in _COMMANDS.items()]
        for name, owned in default_manager().commands().items():
            if name not in _COMMANDS:
                text = f"{owned.record.get_short_help_str(60)} [{owned.owner.distribution}]"
                rows.append((printable(name), printable(text)))
        with formatter.section("Commands"):
            formatter.write_dl(sorted(rows))

    def main(self, *args: Any, **kwargs: Any) -> Any:
        """Run the program: parse, run the command, exit."""
        tolerant_streams()
        with warnings.catch_warnings():
            warnings.showwarning = _show_warning
            return super().main(*args, **kwargs)

    def make_context(self, *args: Any, **kwargs: Any) -> click.Context:
        """Parse the program's own options."""
        try:
            return super().make_context(*args, **kwargs)
        except click.ClickException as error:
            raise _Printable(error) from error

    def invoke(self, ctx: click.Context) -> Any:
        """Run the selected command."""
        try:
            return super().invoke(ctx)
        except click.ClickException as error:
            raise _Printable(error) from error
        except (click.exceptions.Exit, click.Abort, BrokenPipeError):
            raise
        except Exception as error:
            if ctx.params.get("debug"):
                raise
            raise _Printable(_Failure(_described(error))) from error


def _described(error: Exception) -> str:
    """Return the message of an error; for an unexpected one, with the place in the code."""
    notes = "".join(f"\n{note}" for note in getattr(error, "__notes__", ()))
    if isinstance(error, MedSegPyError | OSError):
        return f"{error}{notes}"
    frames = traceback.extract_tb(error.__traceback__)
    where = f" in {frames[-1].filename}, line {frames[-1].lineno}" if frames else ""
    return f"{type(error).__name__}{where}: {error}{notes}\nThe whole traceback: medsegpy --debug ..."


def _show_warning(
    message: Warning | str,
    category: type[Warning],
    filename: str,
    lineno: int,
    file: TextIO | None = None,
    line: str | None = None,  # noqa: ARG001 - the signature of warnings.showwarning
) -> None:
    # Our own messages are complete; the place in the library does not help a user of the command.
    where = "" if issubclass(category, MedSegPyWarning) else f" ({filename}:{lineno})"
    click.echo(printable(f"Warning: {message}{where}", lines=True), file=file, err=file is None)


@click.group(cls=App, context_settings={"help_option_names": ["-h", "--help"]})
@click.version_option(__version__, prog_name="medsegpy")
@click.option("--debug", is_flag=True, help="Show the whole traceback of an error.")
def cli(debug: bool) -> None:
    """Datasets of medical images: from pip-installed plugins to batches, scans and tables.

    Every command has its own --help. Exit status: 0 for success, 1 for a problem found, 2 for wrong usage.
    """


def main() -> None:
    """Run the program ``medsegpy``."""
    cli(prog_name="medsegpy")
