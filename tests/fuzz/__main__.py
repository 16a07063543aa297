"""``python -m tests.fuzz``: read any number of damaged files.

The exit status is 1 if a file was read wrong or failed without a named error; such files are kept.
"""

import argparse
import sys
import tempfile
import time
from collections import Counter
from pathlib import Path

from tests.fuzz.corpus import CORPUS
from tests.fuzz.run import Reader, fuzz

BAD = {"isolate": {"wrong", "unnamed", "crash", "hang"}, "default": {"wrong", "unnamed"}}


def main():
    parser = argparse.ArgumentParser(prog="python -m tests.fuzz", description=__doc__)
    parser.add_argument("--cases", type=int, default=1000, help="how many files (default: 1000)")
    parser.add_argument("--first", type=int, default=0, help="the number of the first; the same number, the same file")
    parser.add_argument("--modes", default="default,isolate", help="ways to read, of default and isolate")
    parser.add_argument("--keep", default=None, help="a folder for files that are not just read or refused")
    parser.add_argument("--corpus", action="store_true", help="read the odd files of the corpus instead")
    given = parser.parse_args()
    if given.corpus:
        return odd_files()
    modes = given.modes.split(",")
    folder = given.keep or tempfile.mkdtemp(prefix="medsegpy-fuzz-")
    Path(folder).mkdir(exist_ok=True)
    began = time.monotonic()

    def report(case, mode, verdict, words):
        print(f"case {case} {mode}: {verdict} {words}", flush=True)

    counts = fuzz(range(given.first, given.first + given.cases), folder, modes, report)
    print(f"{given.cases} files in {time.monotonic() - began:.0f} s; {folder} has those that were reported")
    for mode, counted in counts.items():
        print(f"{mode:8}", ", ".join(f"{verdict} {n}" for verdict, n in counted.most_common()))
    return 1 if any(counts[mode][verdict] for mode in modes for verdict in BAD[mode]) else 0


def odd_files():
    """Read the corpus in all ways, and count the verdicts."""
    counts = {mode: Counter() for mode in ("plain", "default", "isolate")}
    with tempfile.TemporaryDirectory() as folder:
        for name, (build, expected, _) in CORPUS.items():
            path = Path(folder) / name / "file.h5"
            path.parent.mkdir()
            build(path)
            for mode, counted in counts.items():
                reader = Reader(mode)
                reader.ask(path, False)
                seen = reader.answer()
                reader.close()
                verdict = seen["host"][0] if "host" in seen else "returned" if seen["image"][0] == "ok" else "refused"
                if mode == "plain" and verdict == "returned" and expected == "refused":
                    verdict = "returned what no image is"
                    print(f"plain h5py reads {name}")
                counted[verdict] += 1
    for mode, counted in counts.items():
        print(f"{mode:8}", ", ".join(f"{verdict} {n}" for verdict, n in counted.most_common()))
    return 0


if __name__ == "__main__":
    sys.exit(main())
