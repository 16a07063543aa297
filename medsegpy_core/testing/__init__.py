"""What plugin authors test with: suites to subclass, the checks that they are made of, and a pytest plugin.

pytest imports this package in every run of everybody who has medsegpy_core installed, so that names are loaded when
they are first used.
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
