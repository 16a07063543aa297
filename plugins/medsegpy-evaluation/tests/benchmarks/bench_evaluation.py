"""How fast masks are scored, beside MedPy, surface-distance, MONAI and SimpleITK, and whether the values agree.

    python plugins/medsegpy-evaluation/tests/benchmarks/bench_evaluation.py [--rounds 3] [--far] [--without NAME]

One scan of 384 x 384 x 160 with four thin curved structures. Every contestant computes DSC, ASSD, HD95 and NSD, as
far as it has them, on boolean masks in memory. Contestants take turns within each round; ratios are medians over the
rounds.
Peers that are not installed are left out, and named. Their packages: MedPy, surface-distance, monai, SimpleITK.
"""

from __future__ import annotations

import argparse
import importlib.util
import platform
import statistics
import time
import tracemalloc
import warnings

import numpy as np
from scipy import ndimage

from medsegpy_evaluation import score_masks

SHAPE = (384, 384, 160)
SPACING = (0.4, 0.4, 0.7)
TOLERANCE = 1.0
METRICS = ("DSC", "ASSD", "HD95", "NSD")


def structures(*, far: bool) -> list[tuple[np.ndarray, np.ndarray]]:
    """Return prediction and truth of four shells with waves, the prediction displaced here and there."""
    x, y, z = np.ogrid[: SHAPE[0], : SHAPE[1], : SHAPE[2]]
    rng = np.random.default_rng(0)
    pairs = []
    for k, (radius, thickness, center) in enumerate([(90, 5, 190), (70, 4, 210), (55, 4, 180), (40, 6, 200)]):
        distance = np.sqrt((x - center) ** 2 + (y - 190.0) ** 2 + ((z - 80.0) * 1.8) ** 2)
        wave = 6 * np.sin(x / 17.0 + k) * np.cos(z / 23.0)
        shell = np.abs(distance + wave - radius) < thickness / 2 * (1.2 + np.sin(y / 31.0))
        truth = shell & (x - center > -0.2 * radius)
        noise = ndimage.gaussian_filter(rng.standard_normal((96, 96, 40)), 2)
        pred = np.roll(truth, (1, -1, 1), (0, 1, 2))
        pred = np.where(ndimage.zoom(noise, 4, order=1) > 0.05, np.roll(pred, 2, 0), pred)
        if far:
            pred[20:30, 20:40, 10:20] = True
        pairs.append((np.ascontiguousarray(pred), np.ascontiguousarray(truth)))
    return pairs


def ours(pred, truth):
    """The metric function."""
    return score_masks(pred, truth, SPACING, METRICS, TOLERANCE)


class Whole:
    """The whole of `SemSegEvaluator`: probabilities in, tables and report out."""

    def __init__(self, pairs):
        import tempfile

        from medsegpy_core import Config, MetadataCatalog
        from medsegpy_evaluation import SemSegEvaluator

        names = [f"structure {n}" for n in range(len(pairs))]
        MetadataCatalog.get("benchmark").set(
            category_ids=list(range(len(pairs))),
            categories=names,
            category_id_to_contiguous_id={n: n for n in range(len(pairs))},
            evaluator_type="SemSegEvaluator",
            spacing=SPACING,
        )
        self.outputs = {
            "y_true": np.stack([truth for _, truth in pairs], axis=-1).astype(np.uint8),
            "y_pred": np.stack([pred for pred, _ in pairs], axis=-1).astype(np.float32) * np.float32(0.9),
        }
        self.inputs = {"scan_id": "scan", "x": np.random.default_rng(0).random(SHAPE, np.float32)}
        self.folder = tempfile.TemporaryDirectory()
        cfg = Config(TEST_METRICS=list(METRICS), NSD_TOLERANCE=TOLERANCE)
        self.evaluator = SemSegEvaluator("benchmark", cfg, self.folder.name)

    def __call__(self):
        """Score the scan, and write everything."""
        self.evaluator.reset()
        self.evaluator.process([self.inputs], [self.outputs])
        rows = self.evaluator.evaluate()["metrics"]
        return [{r["metric"]: r["value"] for r in rows[n : n + 4]} for n in range(0, len(rows), 4)]


def medpy(pred, truth):
    """MedPy: no NSD."""
    from medpy.metric import binary

    return {
        "DSC": binary.dc(pred, truth),
        "ASSD": binary.assd(pred, truth, SPACING),
        "HD95": binary.hd95(pred, truth, SPACING),
    }


def surface_distance(pred, truth):
    """DeepMind's surface-distance: surface elements weighted by area, the larger of two directed percentiles."""
    import surface_distance as sd

    found = sd.compute_surface_distances(truth, pred, SPACING)
    return {
        "DSC": sd.compute_dice_coefficient(truth, pred),
        "ASSD": float(np.mean(sd.compute_average_surface_distance(found))),
        "HD95": sd.compute_robust_hausdorff(found, 95),
        "NSD": sd.compute_surface_dice_at_tolerance(found, TOLERANCE),
    }


def monai(pred, truth):
    """MONAI: NSD as ours; the larger of two directed percentiles."""
    import torch
    from monai import metrics

    p, t = (torch.from_numpy(mask)[None, None] for mask in (pred, truth))
    options = {"include_background": True, "spacing": SPACING}
    return {
        "DSC": float(metrics.compute_dice(p, t)),
        "ASSD": float(metrics.compute_average_surface_distance(p, t, symmetric=True, **options)),
        "HD95": float(metrics.compute_hausdorff_distance(p, t, percentile=95, **options)),
        "NSD": float(metrics.compute_surface_dice(p, t, class_thresholds=[TOLERANCE], **options)),
    }


def simpleitk(pred, truth):
    """SimpleITK: contours and Maurer's distance maps."""
    import SimpleITK as sitk

    images = []
    for mask in (pred, truth):
        image = sitk.GetImageFromArray(mask.astype(np.uint8))
        image.SetSpacing(SPACING[::-1])
        images.append(image)
    overlap = sitk.LabelOverlapMeasuresImageFilter()
    overlap.Execute(*images)
    surfaces = [sitk.GetArrayFromImage(sitk.LabelContour(i)) > 0 for i in images]
    maps = [sitk.SignedMaurerDistanceMap(sitk.LabelContour(i), False, False, True) for i in images]
    # Negative inside of a contour that is thicker than a voxel, where the distance to it is 0.
    fields = [np.maximum(sitk.GetArrayViewFromImage(m), 0) for m in maps]
    there, back = fields[1][surfaces[0]], fields[0][surfaces[1]]
    pooled = np.concatenate((there, back))
    return {
        "DSC": overlap.GetDiceCoefficient(1),
        "ASSD": float(pooled.mean()),
        "HD95": float(np.percentile(pooled, 95)),
        "NSD": float((pooled <= TOLERANCE).mean()),
    }


PEERS = {
    "medpy": (medpy, "medpy"),
    "surface-distance": (surface_distance, "surface_distance"),
    "monai": (monai, "monai"),
    "simpleitk": (simpleitk, "SimpleITK"),
}


def over_all(function, pairs):
    """Return a function that scores all structures, one after the other."""
    return lambda: [function(pred, truth) for pred, truth in pairs]


def memory_of(whole) -> float:
    """Return the peak of what `process` allocates, in bytes, over the size of its masks as bytes."""
    tracemalloc.start()
    before = tracemalloc.get_traced_memory()[0]
    tracemalloc.reset_peak()
    whole()
    peak = tracemalloc.get_traced_memory()[1] - before
    tracemalloc.stop()
    return peak / (2 * whole.outputs["y_true"].nbytes)


def main() -> None:
    """Run the benchmark."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--rounds", type=int, default=3)
    parser.add_argument("--far", action="store_true", help="a false positive far away from each structure")
    parser.add_argument("--without", action="append", default=[], choices=list(PEERS))
    arguments = parser.parse_args()
    warnings.simplefilter("ignore")
    pairs = structures(far=arguments.far)
    whole = Whole(pairs)
    runs = {"score_masks": over_all(ours, pairs), "SemSegEvaluator": whole}
    absent = [name for name, (_, module) in PEERS.items() if importlib.util.find_spec(module) is None]
    for name, (function, _) in PEERS.items():
        if name not in absent and name not in arguments.without:
            runs[name] = over_all(function, pairs)
    for name in ("score_masks", "SemSegEvaluator"):
        runs[name]()
    times: dict[str, list[float]] = {name: [] for name in runs}
    values = {}
    for _ in range(arguments.rounds):
        for name, run in runs.items():
            began = time.perf_counter()
            values[name] = run()
            times[name].append(time.perf_counter() - began)
    report(times, values, whole, absent)


def report(times, values, whole, absent) -> None:
    """Print the table."""
    print(f"Python {platform.python_version()}, NumPy {np.__version__}, {platform.machine()}")
    print(f"absent: {', '.join(absent) or 'none'}; memory over masks: {memory_of(whole):.2f}\n")
    print("| | s, median | x score_masks | x SemSegEvaluator | DSC | ASSD | HD95 | NSD |")
    print("|---|--:|--:|--:|--:|--:|--:|--:|")
    for name, taken in times.items():
        ratios = [
            statistics.median(other / own for other, own in zip(taken, times[base], strict=True))
            for base in ("score_masks", "SemSegEvaluator")
        ]
        # The largest difference from our values over the structures.
        differences = []
        for metric in METRICS:
            pairs = [(v.get(metric), o[metric]) for v, o in zip(values[name], values["score_masks"], strict=True)]
            known = [abs(float(theirs) - own) for theirs, own in pairs if theirs is not None]
            differences.append(f"{max(known):.0e}" if known and max(known) else ("=" if known else ""))
        cells = " | ".join([f"{statistics.median(taken):.3f}", *(f"{ratio:.1f}" for ratio in ratios), *differences])
        print(f"| {name} | {cells} |")


if __name__ == "__main__":
    main()
