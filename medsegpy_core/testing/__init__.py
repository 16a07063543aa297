"""What plugin authors test with: suites to subclass, the checks that they are made of, and a pytest plugin.

pytest imports this package in every run of everybody who has medsegpy_core installed, so that names are loaded when
they are first used.
"""

from __future__ import annotations

import importlib
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from medsegpy_core.testing.dataset_suite import DatasetTests
    from medsegpy_core.testing.example_files import Example, example_scan, write_slice_files, write_volume_file
    from medsegpy_core.testing.outcome import CheckError, Finding, NotCheckableError, UndecidedError
    from medsegpy_core.testing.plugin_checks import check_plugin
    from medsegpy_core.testing.reader_suite import ReaderTests

__all__ = [
    "CheckError",
    "DatasetTests",
    "Example",
    "Finding",
    "NotCheckableError",
    "ReaderTests",
    "UndecidedError",
    "check_plugin",
    "example_scan",
    "write_slice_files",
    "write_volume_file",
]

_MODULES = {
    "dataset_suite": "DatasetTests",
    "example_files": "Example example_scan write_slice_files write_volume_file",
    "outcome": "CheckError Finding NotCheckableError UndecidedError",
    "plugin_checks": "check_plugin",
    "reader_suite": "ReaderTests",
}
_MODULE_OF = {name: module for module, names in _MODULES.items() for name in names.split()}


def __getattr__(name: str) -> Any:
    if name not in _MODULE_OF:
        raise AttributeError(f"module 'medsegpy_core.testing' has no attribute {name!r}", name=name, obj=None)
    value = getattr(importlib.import_module(f"medsegpy_core.testing.{_MODULE_OF[name]}"), name)
    globals()[name] = value
    return value


def __dir__() -> list[str]:
    return sorted({*globals(), *__all__})
