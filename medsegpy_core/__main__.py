"""``python -m medsegpy_core`` is the command ``medsegpy``."""

from __future__ import annotations

if __name__ == "__main__":
    from medsegpy_core.cli import main

    main()
