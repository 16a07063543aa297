"""One scan: checked, made binary, and scored category by category."""

from __future__ import annotations

import hashlib
import math
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from concurrent.futures import Executor
from contextlib import contextmanager
from typing import TYPE_CHECKING, Any, TypeAlias

import numpy as np
from numpy.typing import NDArray

from medsegpy_core.reading import UNLABELLED, UNLABELLED_UINT8
from medsegpy_evaluation.calibration import has_probabilities
from medsegpy_evaluation.metrics import MaskPair, Metric, MetricOptions, UndefinedMetricError, builtin
from medsegpy_evaluation.scores import ScanScores, StructureScores
from medsegpy_evaluation.settings import MissingPolicy, ScoreSettings, status_of
from medsegpy_evaluation.surfaces import joint_box

if TYPE_CHECKING:
    Array: TypeAlias = NDArray[Any]
    Bool: TypeAlias = NDArray[np.bool_]

__all__ = [
    "largest_channel",
    "problems_of",
    "score_masks",
    "score_scan",
    "truth_fingerprint",
    "unknown_voxels",
    "workers",
    "wrong_values",
]

# Averages of overlapping patches and float32 softmax may pass 1 by rounding.
_ROUNDING = 1e-5
# Bytes that are looked at in one go: a slab stays in the cache for all that is asked of it.
_SLAB = 1 << 21


@contextmanager
def workers(executor: Executor | None, tasks: int) -> Iterator[Callable[..., Iterable[Any]]]:
    """Yield a `map`: that of an executor, or of threads on the cores for as long as the context lasts."""
    import os
    from concurrent.futures import ThreadPoolExecutor

    if executor is not None:
        yield executor.map
        return
    count = min(tasks, os.cpu_count() or 1)
    if count < 2:
        yield map
        return
    with ThreadPoolExecutor(count, thread_name_prefix="medsegpy-evaluation") as threads:
        yield threads.map


def problems_of(truth: Any, pred: Any, channels: int) -> list[str]:
    """Say what is wrong with the masks of a scan; nothing if the list is empty.

    Args:
        truth: H x W [x D] x C.
        pred: What was predicted, of the same shape.
        channels: How many channels are expected.
    """
    if truth is None:
        return ["y_true is None: the scan is not labelled throughout, so there is nothing to compare with"]
    if pred is None:
        return ["y_pred is None"]
    if not isinstance(truth, np.ndarray) or not isinstance(pred, np.ndarray):
        return ["y_true and y_pred must be NumPy arrays"]
    if truth.shape != pred.shape:
        return [f"y_pred has the shape {pred.shape}, y_true {truth.shape}"]
    if truth.ndim < 2 or truth.shape[-1] != channels:
        return [f"the masks have the shape {truth.shape}, but {channels} channels on the last axis are expected"]
    if not truth.size:
        return [f"the masks have the shape {truth.shape}: there is no voxel"]
    if pred.dtype.kind not in "fbiu" or truth.dtype.kind not in "fbiu":
        return [f"y_pred is {pred.dtype} and y_true {truth.dtype}: numbers are expected"]
    return [*wrong_values("y_pred", pred, binary=False), *wrong_values("y_true", truth, binary=True, unknown=True)]


def unknown_voxels(truth: Array) -> NDArray[np.bool_]:
    """Return where nothing is known: 255, and -1 in masks that are not uint8."""
    marked: NDArray[np.bool_] = truth == UNLABELLED_UINT8
    return marked if truth.dtype.kind in "bu" else marked | (truth == UNLABELLED)


def wrong_values(name: str, array: Array, *, binary: bool, unknown: bool = False) -> list[str]:
    """Say what is wrong with the values of a mask: NaN, out of range, or, where it has to be binary, in between.

    Args:
        name: What to call it.
        array: Numbers.
        binary: Whether nothing but 0 and 1 may occur.
        unknown: Whether voxels may be unknown.
    """
    if array.dtype.kind == "b" or not array.size:
        return []
    step = max(1, _SLAB * array.shape[0] // array.nbytes)
    lowest, highest, whole = math.inf, -math.inf, True
    for start in range(0, array.shape[0], step):
        slab = array[start : start + step]
        low, high = slab.min(), slab.max()
        # NumPy's minimum of anything with a NaN in it is NaN.
        if low != low:
            return [f"{name} has NaN values"]
        if unknown and (low < 0 or high > 1):
            slab = slab[~unknown_voxels(slab)]
            low, high = slab.min(initial=1), slab.max(initial=0)
        lowest, highest = min(lowest, float(low)), max(highest, float(high))
        if binary and array.dtype.kind == "f":
            whole = whole and bool(((slab == 0) | (slab == 1)).all())
    margin = 0 if binary else _ROUNDING
    if lowest < -margin or highest > 1 + margin:
        expected = "0 and 1" if binary else "probabilities, or 0 and 1,"
        return [f"{name} has values from {lowest:g} to {highest:g}, where {expected} are expected"]
    return [] if whole else [f"{name} has values between 0 and 1, where 0 and 1 are expected"]


def score_masks(
    pred: Bool,
    truth: Bool,
    spacing: Sequence[float] | None = None,
    metrics: Sequence[str] = ("DSC", "VOE", "CV", "ASSD", "HD95", "NSD"),
    tolerance: float = 1.0,
    options: MetricOptions | None = None,
) -> dict[str, float | None]:
    """Score one structure, without datasets, configs or files.

    Args:
        pred: Mask, boolean or 0 and 1, spatial axes only.
        truth: Mask of the same shape.
        spacing: mm, one per axis; needed for distances and volumes. Axes of length 1 count for volumes only.
        metrics: Names of this package's metrics.
        tolerance: That of `NSD`, in mm.
        options: What other metrics depend on; if given, its tolerance counts.

    Returns:
        A value per metric, by the default policy where a structure is missing; None: undefined. `ECE` and `Brier` are,
        since masks hold no probabilities.

    Raises:
        ValueError: The shapes differ, a mask has other values than 0 and 1, or the spacing is needed and not given.
        UnknownNameError: There is no such metric.

    Example:
        >>> truth = np.zeros((8, 8), bool)
        >>> truth[2:6, 2:6] = True
        >>> score_masks(np.roll(truth, 1, axis=0), truth, (1.0, 1.0), ["DSC", "HD"])
        {'DSC': 0.75, 'HD': 1.0}
    """
    options = options or MetricOptions(tolerance)
    pair = MaskPair(_boolean("the prediction", pred), _boolean("the truth", truth), spacing, options)
    return {metric.name: _value(metric, pair) for metric in map(builtin, metrics)}


def _value(metric: Metric, pair: MaskPair) -> float | None:
    try:
        return MissingPolicy().score(metric, pair)
    except UndefinedMetricError:
        return None


def _boolean(name: str, mask: Array) -> Bool:
    """Probabilities, or NaN, would silently become a mask of all that is not 0."""
    array = np.asarray(mask)
    if problems := wrong_values(name, array, binary=True):
        raise ValueError("; ".join(problems))
    return array.view(np.bool_) if array.dtype.kind in "iu" and array.itemsize == 1 else array.astype(bool, copy=False)


def score_scan(
    identity: Mapping[str, Any],
    truth: Array,
    pred: Array,
    settings: ScoreSettings,
    *,
    probabilities: Sequence[Array] | None = None,
    image: Array | None = None,
    colors: Sequence[tuple[int, int, int]] | None = None,
    affine: Any = None,
    run: Callable[..., Iterable[Any]] = map,
) -> ScanScores:
    """Score a scan that has been checked with `problems_of`.

    Args:
        identity: `scan`, `subject`, `time_point` and `spacing`, as in `ScanScores`.
        truth: H x W [x D] x C: 0, 1, and 255 where nothing is known.
        pred: The same shape, probabilities or 0 and 1.
        settings: What to measure.
        probabilities: One array per category; None: those of `pred`, if it holds any.
        image: H x W [x D], for the picture.
        colors: Of the categories, for the picture; None: no picture.
        affine: 4 x 4, voxel index to RAS+ mm, for the picture; None: not known.
        run: A `map` that the categories are scored with.
    """
    labels = largest_channel(pred) if settings.binarization.activation == "softmax" else None
    channels = [settings.channel(category) for category in range(len(settings.categories))]
    if probabilities is None and settings.needing_probabilities and has_probabilities(pred):
        probabilities = [pred[..., channel] for channel in channels]
    tasks = []
    for category, channel in enumerate(channels):
        source = (pred[..., channel], None) if labels is None else (labels, channel)
        own = None if probabilities is None else probabilities[category]
        tasks.append((identity, truth[..., channel], *source, own, category, settings, colors is not None))
    structures = tuple(run(_score_structure, tasks))
    picture = None
    if colors is not None:
        from medsegpy_evaluation.pictures import picture_of

        found = pred if labels is None else labels
        picture = picture_of(truth, found, structures, settings, image, colors, identity["spacing"], affine)
    return ScanScores(shape=truth.shape[:-1], structures=structures, picture=picture, **identity)


def _score_structure(task: tuple[Any, ...]) -> StructureScores:
    identity, truth, pred, label, probabilities, category, settings, with_errors = task
    name = settings.categories[category]
    threshold = settings.binarization.thresholds[category]
    # The planes lie strided among the other channels: brought together once, they are read many times faster.
    mask = np.ascontiguousarray(truth)
    found = np.ascontiguousarray(np.greater(pred, threshold) if label is None else np.equal(pred, label))
    mask, hidden = _without_unknown(mask, found)
    unknown = 0 if hidden is None else int(np.count_nonzero(hidden))
    pair = MaskPair(found, mask, identity["spacing"], settings.options, probabilities=probabilities, unknown=hidden)
    mark = truth_fingerprint(pair, hidden)
    if unknown == mask.size:
        nothing = dict.fromkeys(m.name for m in settings.metrics)
        return StructureScores(name, "unknown", nothing, (0, 0), unknown, truth=mark)
    values: dict[str, float | None] = {}
    undefined: dict[str, str] = {}
    for metric in settings.metrics:
        try:
            values[metric.name] = settings.policy.score(metric, pair)
        except UndefinedMetricError as reason:
            values[metric.name], undefined[metric.name] = None, str(reason)
        except Exception as error:
            error.add_note(f"This was the metric {metric.name!r} of {name!r} in scan {identity['scan']!r}.")
            raise
    errors = _errors(pair) if with_errors else ()
    return StructureScores(
        name, status_of(pair), values, pair.counts[:2], unknown, errors, truth=mark, undefined=undefined
    )


def truth_fingerprint(pair: MaskPair, unknown: NDArray[np.bool_] | None = None) -> str:
    """Return a short text that differs where the truth of a structure differs, whatever was predicted.

    Args:
        pair: The masks; of the prediction only the box is used, which is known already.
        unknown: Where the truth is unknown; None: nowhere.
    """
    mark = hashlib.blake2b(digest_size=16)
    mark.update(repr(pair.truth.shape).encode())
    if pair.box is not None:
        # Only the structure's own box: a few percent of the scan, so that this costs next to nothing.
        inside = pair.truth[pair.box]
        if (own := joint_box(inside)) is not None:
            corners = [(outer.start + s.start, outer.start + s.stop) for outer, s in zip(pair.box, own, strict=True)]
            mark.update(repr(corners).encode())
            mark.update(np.packbits(inside[own]).tobytes())
    if unknown is not None and unknown.any():
        mark.update(b"unknown")
        mark.update(np.packbits(unknown).tobytes())
    return mark.hexdigest()


def _without_unknown(truth: Array, found: NDArray[np.bool_]) -> tuple[NDArray[np.bool_], NDArray[np.bool_] | None]:
    """Return the truth as a mask in which unknown voxels are background, as they are in `found` from now on, and where
    they are (None: nowhere). A structure that goes on into unknown voxels ends at them in both masks, as at the border
    of the scan."""
    if truth.dtype.kind == "b" or (truth.max() <= 1 and (truth.dtype.kind == "u" or truth.min() >= 0)):
        return truth.view(np.bool_) if truth.dtype == np.uint8 else truth.astype(np.bool_), None
    unknown = unknown_voxels(truth)
    found[unknown] = False
    return (truth != 0) & ~unknown, unknown


def _errors(pair: MaskPair) -> tuple[int, ...]:
    """Count the wrong voxels of each slice."""
    counts = np.zeros(pair.pred.shape[-1] if pair.pred.ndim > 2 else 1, np.int64)
    if pair.box is not None:
        wrong = pair.pred[pair.box] ^ pair.truth[pair.box]
        if wrong.ndim > 2:
            counts[pair.box[-1]] = np.count_nonzero(wrong.reshape(-1, wrong.shape[-1]), axis=0)
        else:
            counts[0] = np.count_nonzero(wrong)
    return tuple(counts.tolist())


def largest_channel(pred: Array) -> Array:
    """Return the channel with the largest value of each voxel, the first of those that are equal.

    As `numpy.argmax`, but slab by slab and channel by channel: many times faster on a short last axis, and without
    eight bytes a voxel.
    """
    labels = np.zeros(pred.shape[:-1], np.min_scalar_type(pred.shape[-1]))
    step = max(1, _SLAB * pred.shape[0] // max(1, pred.nbytes))
    for start in range(0, pred.shape[0], step):
        slab, out = pred[start : start + step], labels[start : start + step]
        best = slab[..., 0].copy()
        for channel in range(1, pred.shape[-1]):
            higher = slab[..., channel] > best
            np.copyto(best, slab[..., channel], where=higher)
            np.copyto(out, channel, where=higher, casting="unsafe")
    return labels
