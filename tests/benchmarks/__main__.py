"""Run the benchmarks: ``python -m tests.benchmarks [--only NAME ...] [--rounds N] [--write]``."""

from __future__ import annotations

import argparse
import importlib
from pathlib import Path

HERE = Path(__file__).parent
PAGE = HERE.parents[1] / "docs" / "benchmarks.md"


def main() -> None:
    """Print the tables; with ``--write`` also write them to docs/benchmarks.md, between the named comments."""
    names = sorted(path.stem.removeprefix("bench_") for path in HERE.glob("bench_*.py"))
    parser = argparse.ArgumentParser(prog="python -m tests.benchmarks", description=__doc__)
    parser.add_argument(
        "--only", nargs="*", default=names, metavar="NAME", help=f"of {', '.join(names)}; all by default"
    )
    parser.add_argument("--tables", nargs="*", default=(), help="only these tables of a benchmark")
    parser.add_argument("--rounds", type=int, default=9)
    parser.add_argument("--write", action="store_true", help="write the tables into docs/benchmarks.md")
    asked = parser.parse_args()
    for name in asked.only:
        tables = []
        for table in importlib.import_module(f"tests.benchmarks.bench_{name}").run(asked.rounds, asked.tables):
            print(table, flush=True)
            tables.append(table)
        if asked.write:
            page, text = PAGE.read_text(), "\n".join(tables)
            if f"<!-- begin {name} -->\n" not in page or f"<!-- end {name} -->" not in page:
                parser.error(f"{PAGE} has no place for {name}: <!-- begin {name} --> ... <!-- end {name} -->")
            before, _, rest = page.partition(f"<!-- begin {name} -->\n")
            after = rest.partition(f"<!-- end {name} -->")[2]
            PAGE.write_text(f"{before}<!-- begin {name} -->\n\n{text}\n<!-- end {name} -->{after}")


if __name__ == "__main__":
    main()
