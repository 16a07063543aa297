"""The version of this package, and that of its hook interface."""

from __future__ import annotations

from typing import Final

__version__: Final = "0.1.0"

# Counted up when a hook changes so that plugins written for the one before would break. A plugin module may say which
# it needs with `medsegpy_api = N`.
API_VERSION: Final = 1
