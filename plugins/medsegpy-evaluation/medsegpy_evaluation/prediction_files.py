"""Predictions that lie in files, one a scan: found by name, opened, and brought into the order of the categories."""

from __future__ import annotations

import os
from collections.abc import Iterable, Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import Any, Final, TypeAlias
from urllib.parse import quote, unquote

import numpy as np
from attrs import evolve
from numpy.typing import NDArray

from medsegpy_core import ReadError, Record
from medsegpy_core.errors import closest_match
from medsegpy_core.hdf5 import open_array
from medsegpy_core.readers import all_readers, find_reader
from medsegpy_core.typing import LazyArray
from medsegpy_evaluation.scoring import Binarization, ScoreSettings, largest_channel, wrong_values

__all__ = [
    "BACKGROUND",
    "CHANNELS_ATTRIBUTE",
    "decided",
    "default_channels",
    "file_stem",
    "list_predictions",
    "open_prediction",
    "problems_of_layout",
    "scoring_settings",
]

Array: TypeAlias = NDArray[Any]

# The name of the channel that is none of the categories.
BACKGROUND: Final = "background"
# The attribute of the dataset that names its channels, in order.
CHANNELS_ATTRIBUTE: Final = "categories"
_KEYS: Final = ("probs", "labels")
_HDF5: Final = (".h5", ".hdf5")
_MOST_NAMES: Final = 4096


def file_stem(scan: str) -> str:
    """Return the base name of the file of a scan, without a suffix: no id leads out of the folder.

    Example:
        >>> file_stem("0000001_V00"), file_stem("../knee left")
        ('0000001_V00', '..%2Fknee left')
    """
    return quote(scan, safe=" ")


def list_predictions(folder: Path) -> dict[str, Path]:
    """Return the files with predictions in a folder (not recursive), by scan.

    Raises:
        ReadError: There is no such folder, or two files are of one scan.
    """
    if not folder.is_dir():
        raise ReadError("there is no such folder", folder)
    suffixes = {*_HDF5, *(suffix for reader in all_readers().values() for suffix in reader.suffixes)}
    ordered = sorted(suffixes, key=len, reverse=True)
    found: dict[str, Path] = {}
    for name in sorted(os.listdir(folder)):
        suffix = next((suffix for suffix in ordered if name.lower().endswith(suffix)), None)
        if suffix is None or name.startswith("."):
            continue
        scan = unquote(name[: -len(suffix)])
        if scan in found:
            raise ReadError(f"{found[scan].name} and {name} are both predictions of scan {scan!r}; leave one", folder)
        found[scan] = folder / name
    return found


@contextmanager
def open_prediction(path: Path) -> Iterator[tuple[LazyArray, tuple[str, ...] | None]]:
    """Open a prediction.

    HDF5 files hold ``probs`` or ``labels``; what any other reader gives as the image is taken for the prediction.

    Yields:
        The array, H x W [x D] (a label map) or H x W [x D] x C, and the names of its channels where the file says them.

    Raises:
        ReadError: The file cannot be read.
    """
    if path.suffix.lower() in _HDF5:
        yield open_array(path, _KEYS), _channels_in(path)
        return
    record = Record.from_dict({"file_name": str(path), "scan_id": path.name})
    with find_reader(record).open(record) as scan:
        yield scan.image, None


def _channels_in(path: Path) -> tuple[str, ...] | None:
    import h5py

    from medsegpy_core.hdf5.policy import open_dataset, open_file

    with open_file(str(path)) as file:
        dataset, _ = open_dataset(file, str(path), _KEYS)
        name = CHANNELS_ATTRIBUTE.encode()
        if not h5py.h5a.exists(dataset, name):
            return None
        attribute = h5py.h5a.open(dataset, name)
        shape = attribute.shape
        if attribute.get_type().get_class() != h5py.h5t.STRING or len(shape) != 1 or shape[0] > _MOST_NAMES:
            raise ReadError(f"the attribute {CHANNELS_ATTRIBUTE!r} is not a list of names", path)
        values = np.empty(shape, attribute.dtype)
        attribute.read(values)
    return tuple(v.decode() if isinstance(v, bytes) else str(v) for v in values.tolist())


def problems_of_layout(
    shape: Sequence[int], expected: Sequence[int], channels: Sequence[str], settings: ScoreSettings
) -> list[str]:
    """Say why a prediction does not fit a scan, by its shape and the names of its channels.

    Args:
        shape: Of the prediction.
        expected: The spatial shape of the scan.
        channels: The names of the prediction's channels.
        settings: What is to be scored.
    """
    problems = []
    spatial = tuple(shape[: len(expected)])
    if spatial != tuple(expected) or len(shape) - len(expected) not in (0, 1):
        problems.append(f"the prediction has the shape {tuple(shape)}, the scan {tuple(expected)}")
    elif len(shape) > len(expected) and shape[-1] != len(channels):
        problems.append(f"the prediction has {shape[-1]} channels for {len(channels)} names: {_listed(channels)}")
    missing = [name for name in settings.categories if name not in channels]
    if missing:
        hint = closest_match(missing[0], channels).rstrip("?.")
        problems.append(f"the prediction has no channel for {_listed(missing)}; it has {_listed(channels)}.{hint}")
    is_map = len(shape) == len(expected)
    if settings.binarization.activation == "softmax" and not is_map and BACKGROUND not in channels:
        problems.append(f"the largest channel is asked for, but none of {_listed(channels)} is the {BACKGROUND!r}")
    return problems


def decided(array: Array, channels: Sequence[str], spatial: int, settings: ScoreSettings) -> tuple[Array, list[str]]:
    """Turn a prediction into masks of the categories.

    Args:
        array: H x W [x D] with 0 for none and v for the channel v - 1 (the background not counted), or H x W [x D] x C.
        channels: The names of its channels.
        spatial: How many axes are spatial.
        settings: How probabilities become masks.

    Returns:
        uint8, H x W [x D] x categories, and what is wrong with the values.
    """
    if array.dtype.kind not in "fbiu":
        return array, [f"the prediction is {array.dtype}: numbers are expected"]
    masks = np.zeros((*array.shape[:spatial], len(settings.categories)), np.uint8)
    if array.ndim == spatial:
        return _from_label_map(array, channels, masks, settings)
    if problems := wrong_values("the prediction", array, binary=False):
        return array, problems
    if settings.binarization.activation == "softmax":
        largest = largest_channel(array)
        for category, name in enumerate(settings.categories):
            np.equal(largest, list(channels).index(name), out=masks[..., category], casting="unsafe")
        return masks, []
    for category, name in enumerate(settings.categories):
        plane = array[..., list(channels).index(name)]
        np.greater(plane, settings.binarization.thresholds[category], out=masks[..., category], casting="unsafe")
    return masks, []


def _from_label_map(
    array: Array, channels: Sequence[str], masks: Array, settings: ScoreSettings
) -> tuple[Array, list[str]]:
    names = [name for name in channels if name != BACKGROUND]
    low, high = (float(array.min()), float(array.max())) if array.size else (0.0, 0.0)
    # `not >=` and `not <=` hold for NaN, too.
    if not low >= 0 or not high <= len(names) or (array.dtype.kind == "f" and bool((array != np.rint(array)).any())):
        wanted = f"whole numbers from 0 (none) to {len(names)} ({_listed(names)}) are expected"
        return array, [f"the label map has values from {low:g} to {high:g}; {wanted}"]
    for category, name in enumerate(settings.categories):
        np.equal(array, names.index(name) + 1, out=masks[..., category], casting="unsafe")
    return masks, []


def scoring_settings(settings: ScoreSettings) -> ScoreSettings:
    """Return the settings for masks that `decided` has made: no background, and nothing left to decide."""
    return evolve(settings, background=False, binarization=Binarization("sigmoid", (0.5,) * len(settings.categories)))


def default_channels(settings: ScoreSettings) -> tuple[str, ...]:
    """Return the names of the channels of a prediction that says nothing else."""
    return (BACKGROUND, *settings.categories) if settings.background else settings.categories


def _listed(names: Iterable[str]) -> str:
    return ", ".join(map(repr, names)) or "no name"
