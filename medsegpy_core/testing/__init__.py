"""Testing tools for plugin authors: suites to subclass, their individual checks, and a pytest plugin.

Names are imported on first use, because pytest imports this package in every run of everyone who has medsegpy_core
installed.
"""

from __future__ import annotations

from medsegpy_core._util.exports import lazy_exports

__all__, __getattr__, __dir__ = lazy_exports(
    __name__,
    {
        "suites": "DatasetTests ReaderTests",
        "example_files": "Example example_scan write_slice_files write_volume_file",
        "outcome": "CheckError Finding NotCheckableError UndecidedError",
        "plugin_checks": "check_plugin",
    },
)
