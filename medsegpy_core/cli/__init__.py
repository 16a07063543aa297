"""The command ``medsegpy``."""

from medsegpy_core.cli.app import cli, main

__all__ = ["cli", "main"]
