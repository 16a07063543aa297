"""``python -m medsegpy_core`` is the command ``medsegpy``."""

from __future__ import annotations

import sys

if __name__ == "__main__":
    from medsegpy_core.cli import main

    sys.exit(main())
