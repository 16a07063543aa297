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
from medsegpy_core.categories import channels_of
from medsegpy_core.errors import closest_match
from medsegpy_core.hdf5 import open_array
from medsegpy_core.readers import all_readers, find_reader
from medsegpy_core.typing import CategoryId, LazyArray
from medsegpy_evaluation.scoring import Binarization, ScoreSettings, largest_channel, wrong_values

__all__ = [
    "BACKGROUND",
    "CHANNELS_ATTRIBUTE",
    "decided",
    "default_channels",
    "file_stem",
    "labelled",
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
    shape: Sequence[int], expected: Sequence[int], names: Sequence[str] | None, settings: ScoreSettings
) -> list[str]:
    """Say why a prediction does not fit a scan, by its shape and the names of its channels.

    Args:
        shape: Of the prediction.
        expected: The spatial shape of the scan.
        names: Those of the prediction's channels; None: nobody says.
        settings: What is to be scored.
    """
    channels = default_channels(settings) if names is None else names
    is_map = len(shape) == len(expected)
    problems = []
    if tuple(shape[: len(expected)]) != tuple(expected) or len(shape) - len(expected) not in (0, 1):
        problems.append(f"the prediction has the shape {tuple(shape)}, the scan {tuple(expected)}")
    elif not is_map and shape[-1] != len(channels):
        problems.append(f"the prediction has {shape[-1]} channels for {len(channels)} names: {_listed(channels)}")
    missing = [name for name in settings.categories if name not in channels]
    if missing:
        hint = closest_match(missing[0], channels).rstrip("?.")
        problems.append(f"the prediction has no channel for {_listed(missing)}; it has {_listed(channels)}.{hint}")
    if settings.binarization.activation == "softmax" and not is_map and BACKGROUND not in channels:
        problems.append(f"the largest channel is asked for, but none of {_listed(channels)} is the {BACKGROUND!r}")
    return problems


def decided(array: Array, names: Sequence[str] | None, settings: ScoreSettings) -> tuple[Array, list[str]]:
    """Turn probabilities, or binary masks, into masks of the categories.

    Args:
        array: H x W [x D] x C.
        names: Those of its channels; None: nobody says.
        settings: How probabilities become masks.

    Returns:
        uint8, H x W [x D] x categories, and what is wrong with the values.
    """
    if problems := wrong_values("the prediction", array, binary=False):
        return array, problems
    channels = list(default_channels(settings) if names is None else names)
    masks = np.zeros((*array.shape[:-1], len(settings.categories)), np.uint8)
    largest = largest_channel(array) if settings.binarization.activation == "softmax" else None
    for category, name in enumerate(settings.categories):
        channel, out = channels.index(name), masks[..., category]
        if largest is not None:
            np.equal(largest, channel, out=out, casting="unsafe")
        else:
            np.greater(array[..., channel], settings.binarization.thresholds[category], out=out, casting="unsafe")
    return masks, []


def labelled(
    array: Array, names: Sequence[str] | None, category_ids: Sequence[CategoryId], values: int, settings: ScoreSettings
) -> tuple[Array, list[str]]:
    """Turn a label map into masks of the categories; 0 is none of them.

    Args:
        array: H x W [x D].
        names: The value v is the v-th of these, the background not counted; None: v is channel v - 1 of the dataset's
            masks, as in its own label maps, so that collated categories are found in their parts.
        category_ids: Of the categories.
        values: How many channels the dataset's masks have.
        settings: What is to be scored.

    Returns:
        uint8, H x W [x D] x categories, and what is wrong with the values.
    """
    if names is not None:
        names = [name for name in names if name != BACKGROUND]
        wanted = [[names.index(name) + 1] for name in settings.categories]
        values = len(names)
    else:
        wanted = [[channel + 1 for channel in channels_of(category_id)] for category_id in category_ids]
    low, high = (float(array.min()), float(array.max())) if array.size else (0.0, 0.0)
    # `not >=` and `not <=` hold for NaN, too.
    if not low >= 0 or not high <= values or (array.dtype.kind == "f" and bool((array != np.rint(array)).any())):
        expected = f"whole numbers from 0 (none) to {values} are expected"
        return array, [f"the label map has values from {low:g} to {high:g}; {expected}"]
    masks = np.zeros((*array.shape, len(settings.categories)), np.uint8)
    for category, numbers in enumerate(wanted):
        for number in numbers:
            masks[..., category] |= array == number
    return masks, []


def scoring_settings(settings: ScoreSettings) -> ScoreSettings:
    """Return the settings for masks that `decided` has made: no background, and nothing left to decide."""
    return evolve(settings, background=False, binarization=Binarization("sigmoid", (0.5,) * len(settings.categories)))


def default_channels(settings: ScoreSettings) -> tuple[str, ...]:
    """Return the names of the channels of a prediction that says nothing else."""
    return (BACKGROUND, *settings.categories) if settings.background else settings.categories


def _listed(names: Iterable[str]) -> str:
    return ", ".join(map(repr, names)) or "no name"
