"""Lesion metrics beside panoptica: the same values, and how long they take.

    python plugins/medsegpy-evaluation/tests/benchmarks/bench_lesions.py [--panoptica PYTHON]

panoptica runs in a Python of its own, in which it is installed (``pip install panoptica==2.1.*``); by default
in this one. If it is not installed, that is said, and only our times are printed. The fastest of the rounds
counts. Exits with status 1 if values differ.
"""

from __future__ import annotations

import argparse
import json
import platform
import subprocess
import sys
import tempfile
import time
from pathlib import Path

import numpy as np
from scipy import ndimage

NAMES = ("LesionTP", "LesionFP", "LesionFN", "LesionF1", "LesionPrecision", "LesionRecall", "LesionDSC")
# Run by the Python that has panoptica: reads masks, prints values and seconds. Only the evaluation is timed.
PEER = """
import contextlib, io, json, sys, time
import numpy as np
with contextlib.redirect_stdout(io.StringIO()):
    import panoptica as p
    from panoptica.metrics import Metric
    masks = np.load(sys.argv[1])
    evaluator = p.Panoptica_Evaluator(
        expected_input=p.InputType.SEMANTIC,
        instance_approximator=p.ConnectedComponentsInstanceApproximator(),
        instance_matcher=p.NaiveThresholdMatching(),
        instance_metrics=[Metric.DSC],
        global_metrics=[],
    )
    times = []
    for _ in range(int(sys.argv[2])):
        began = time.perf_counter()
        found = evaluator.evaluate(masks["pred"], masks["truth"], verbose=False)["ungrouped"]
        values = [found.tp, found.fp, found.fn, found.rq, found.prec, found.rec, found.sq_dsc]
        times.append(time.perf_counter() - began)
print("RESULT", json.dumps([[float(value) for value in values], times]))
"""


def masks_of(kind: str) -> tuple[np.ndarray, np.ndarray]:
    """Return prediction and truth of one kind of structure, as uint8."""
    rng = np.random.default_rng(0)
    if kind == "noise, 96 x 96 x 96":
        truth = rng.random((96, 96, 96)) < 0.15
        pred = np.where(rng.random(truth.shape) < 0.3, rng.random(truth.shape) < 0.15, truth)
        return pred.astype(np.uint8), truth.astype(np.uint8)
    if kind == "one organ, 256 x 256 x 160":
        grid = np.ogrid[:256, :256, :160]
        truth = sum(((g - c) / r) ** 2 for g, c, r in zip(grid, (120, 130, 80), (70, 60, 50), strict=True)) < 1
        return np.roll(truth, 3, axis=0).astype(np.uint8), truth.astype(np.uint8)
    many = int(kind.split(maxsplit=1)[0])
    shape = (256, 256, 160)
    seeds = np.zeros(shape, np.float32)
    places = tuple(rng.integers(8, n - 8, many) for n in shape)
    seeds[places] = rng.uniform(0.4, 3, many)
    truth = ndimage.gaussian_filter(seeds, 2.5) > 0.0015
    moved = np.roll(truth, (1, -1, 0), (0, 1, 2))
    noise = ndimage.zoom(rng.random((16, 16, 10)), 16, order=0)
    pred = np.where(noise < 0.15, False, np.where(noise < 0.6, truth, moved))
    return pred.astype(np.uint8), truth.astype(np.uint8)


KINDS = (
    "40 lesions, 256 x 256 x 160",
    "400 lesions, 256 x 256 x 160",
    "one organ, 256 x 256 x 160",
    "noise, 96 x 96 x 96",
)


def ours(pred: np.ndarray, truth: np.ndarray, rounds: int) -> tuple[list[float], list[float]]:
    """Return our values, and the seconds of each round."""
    from medsegpy_evaluation import score_masks

    times = []
    score_masks(pred[:9], truth[:9], metrics=NAMES)  # imports
    for _ in range(rounds):
        began = time.perf_counter()
        found = score_masks(pred, truth, metrics=NAMES)
        times.append(time.perf_counter() - began)
    return [float(found[name] or 0) for name in NAMES], times


def peer(python: str, pred: np.ndarray, truth: np.ndarray, rounds: int) -> tuple[list[float], list[float]] | None:
    """Return those of panoptica; None: it is not installed."""
    with tempfile.TemporaryDirectory() as folder:
        file = Path(folder) / "masks.npz"
        np.savez(file, pred=pred, truth=truth)
        done = subprocess.run([python, "-c", PEER, str(file), str(rounds)], capture_output=True, text=True, check=False)
    if "No module named 'panoptica'" in done.stderr:
        return None
    lines = [line for line in done.stdout.splitlines() if line.startswith("RESULT ")]
    if done.returncode or not lines:
        raise RuntimeError(done.stderr)
    values, times = json.loads(lines[-1].removeprefix("RESULT "))
    return values, times


def main() -> None:
    """Run the benchmark."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--panoptica", default=sys.executable, metavar="PYTHON", help="a Python that has panoptica")
    parser.add_argument("--rounds", type=int, default=5)
    arguments = parser.parse_args()
    print(f"Python {platform.python_version()}, NumPy {np.__version__}, {platform.machine()}\n")
    print("| | TP, FP, FN | ours, s | panoptica, s | ratio | largest difference |")
    print("|---|---|--:|--:|--:|--:|")
    same = True
    for kind in KINDS:
        pred, truth = masks_of(kind)
        values, times = ours(pred, truth, arguments.rounds)
        own = min(times)
        cells = [kind, ", ".join(f"{value:.0f}" for value in values[:3]), f"{own:.4f}"]
        if (other := peer(arguments.panoptica, pred, truth, arguments.rounds)) is None:
            cells += ["not installed", "", ""]
        else:
            theirs = min(other[1])
            difference = max(abs(a - b) for a, b in zip(values, other[0], strict=True))
            same = same and difference < 1e-12
            cells += [f"{theirs:.3f}", f"{theirs / own:.0f}", f"{difference:.0e}"]
        print(f"| {' | '.join(cells)} |", flush=True)
    if not same:
        raise SystemExit("Values differ.")


if __name__ == "__main__":
    main()
