"""Read many bad files in processes that may crash, and compare the results."""

import contextlib
import json
import random
import selectors
import signal
import subprocess
import sys
from collections import Counter
from pathlib import Path

from tests.fuzz.mutate import damaged
from tests.fuzz.seeds import random_file, sound_files

ROOT = Path(__file__).parents[2]
PATIENCE = 300.0  # seconds, for a file that waits; one that is at work is ended by the limit of `worker`


class Reader:
    """A worker, restarted when a file has ended it."""

    def __init__(self, mode):
        self.mode = mode
        self._process = None

    def ask(self, path, is_slice):
        """Send a file to read; `answer` returns the result."""
        if self._process is None:
            command = [sys.executable, "-m", "tests.fuzz.worker", self.mode]
            self._process = subprocess.Popen(
                command, cwd=ROOT, stdin=subprocess.PIPE, stdout=subprocess.PIPE, stderr=subprocess.DEVNULL, text=True
            )
        self._process.stdin.write(json.dumps({"path": str(path), "slice": is_slice}) + "\n")
        with contextlib.suppress(BrokenPipeError):
            self._process.stdin.flush()

    def answer(self):
        """Return what it read, or that it crashed or hung."""
        with selectors.DefaultSelector() as selector:
            selector.register(self._process.stdout, selectors.EVENT_READ)
            ready = selector.select(PATIENCE)
        line = self._process.stdout.readline() if ready else None
        if line:
            return json.loads(line)
        if line is None:
            self._process.kill()
        status = self.close()
        hangs = line is None or status == -signal.SIGXCPU
        return {"host": ["hang", ""] if hangs else ["crash", _named(status)]}

    def close(self):
        """End it."""
        process, self._process = self._process, None
        if process is None:
            return 0
        with contextlib.suppress(BrokenPipeError):
            process.stdin.close()
        status = process.wait()
        process.stdout.close()
        return status


def _named(status):
    return signal.Signals(-status).name if status < 0 else f"exit status {status}"


def judge(plain, ours):
    """Return the verdict on each array that we read: a list of (verdict, words).

    ``read`` (as h5py), ``refused`` (by name), ``lenient`` (read, though h5py does not), ``wrong``, ``unnamed``
    (another error), ``crash``, ``hang``.
    """
    if "host" in ours:
        return [tuple(ours["host"])]
    said = []
    for name, (verdict, *rest) in ours.items():
        if verdict != "ok":
            said.append((verdict, rest[0]))
            continue
        reference = (plain or {}).get(name, ["refused", "plain h5py was not asked, or did not survive it"])
        if reference[0] != "ok":
            said.append(("lenient", reference[1]))
        elif [*reference[1:]] == rest or _is_boolean_of(reference[1:], rest):
            said.append(("read", ""))
        else:
            said.append(("wrong", f"{name}: {rest}, h5py {reference[1:]}"))
    return said


def _is_boolean_of(reference, ours):
    return {reference[0], ours[0]} == {"|b1", "|u1"} and reference[1:] == ours[1:]


def make_case(case, folder):
    """Write the file of a case (deterministic by its number); returns its path, and whether it is a slice."""
    r = random.Random(case)
    path = Path(folder) / f"case{case}.h5"
    if case % 3:
        is_slice, data = r.choice(sound_files(str(folder)))
        path.write_bytes(damaged(data, r))
    else:
        is_slice = random_file(path, case)
        if r.random() < 0.6:
            path.write_bytes(damaged(path.read_bytes(), r))
    return path, is_slice


def fuzz(cases, folder, modes=("default", "isolate"), report=lambda *_: None):
    """Read the files of many cases.

    Args:
        cases: Their numbers.
        folder: Where files are written; removed again if the result is fine.
        modes: Ways to read.
        report: Called with case, mode, verdict and words if a file is neither read nor rejected.

    Returns:
        The counts of verdicts: mode to Counter; for plain h5py, how often it crashed or hung.
    """
    readers = {mode: Reader(mode) for mode in ("plain", *modes)}
    counts = {mode: Counter() for mode in readers}
    try:
        for case in cases:
            path, is_slice = make_case(case, folder)
            for reader in readers.values():
                reader.ask(path, is_slice)
            seen = {mode: reader.answer() for mode, reader in readers.items()}
            counts["plain"].update([seen["plain"]["host"][0] if "host" in seen["plain"] else "returned"])
            bad = False
            for mode in modes:
                for verdict, words in judge(seen["plain"], seen[mode]):
                    if "SIG" in words or "come to an end" in words:
                        counts[mode]["survived in the helper"] += mode == "isolate"
                    counts[mode][verdict] += 1
                    if verdict not in ("read", "refused"):
                        bad = True
                        report(case, mode, verdict, words)
            if not bad:
                path.unlink()
    finally:
        for reader in readers.values():
            reader.close()
    return counts
