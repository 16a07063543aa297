"""Prediction files: found by name, opened, put on the grid of the scan, in the order of the categories, and written."""

from __future__ import annotations

import os
from collections.abc import Iterable, Iterator, Mapping, Sequence
from contextlib import ExitStack, contextmanager
from pathlib import Path
from typing import TYPE_CHECKING, Any, Final, Literal
from urllib.parse import quote, unquote

import numpy as np
from attrs import evolve, field, frozen

from medsegpy_core import MedSegPyError, ReadError, Record
from medsegpy_core.data import Alignment, Grid, alignment, channels_of, describe, same_spacing
from medsegpy_core.errors import closest_match
from medsegpy_core.hdf5 import names_in, open_array
from medsegpy_core.reading import all_readers, find_reader, value_codes
from medsegpy_core.text import some
from medsegpy_core.typing import CategoryId, LazyArray
from medsegpy_evaluation.scoring import largest_channel, wrong_values
from medsegpy_evaluation.settings import Binarization, ScoreSettings

if TYPE_CHECKING:
    from medsegpy_core.typing import Array
    from medsegpy_evaluation.settings import ScoreSettings


__all__ = [
    "BACKGROUND",
    "CHANNELS_ATTRIBUTE",
    "LabelValues",
    "Prediction",
    "decided",
    "default_channels",
    "file_stem",
    "is_label_map",
    "labelled",
    "list_predictions",
    "open_prediction",
    "placed",
    "problems_of_layout",
    "save_prediction",
    "scoring_settings",
]


def placed(
    prediction: Grid, file: Mapping[str, Any], resolved: Mapping[str, Any], shape: Sequence[int], *, trusted: bool
) -> tuple[Alignment, list[str]]:
    """Return how to bring a prediction onto the grid of a scan.

    Affines are compared if both have one. Otherwise voxels are compared by index, and spacings that both state must
    agree within 1 %: a spacing says how large voxels are, often rounded, and not where they lie.

    Args:
        prediction: Its grid.
        file: What the file of the scan says of ``spacing`` and ``affine``.
        resolved: What holds for the scan, by the dataset dict and the metadata. A prediction may be on either grid.
        shape: Of the scan, spatial.
        trusted: Whether the dataset says that voxels correspond by index whatever the files say (`trust_geometry`).

    Returns:
        The alignment (nothing moves if there is none), and what is wrong.
    """
    unmoved = Alignment(tuple(range(len(shape))), ())
    grids = _grids_of_scan(prediction, file, resolved, shape)
    found = {how for grid in grids if (how := _alignment(prediction, grid)) is not None}
    if len(found) == 1:
        return found.pop(), []
    if sorted(prediction.shape) != sorted(shape) or trusted:
        return unmoved, []  # the shape is looked at next
    known = " or ".join(dict.fromkeys(map(describe, grids)))
    if found:
        return unmoved, [f"the prediction, {describe(prediction)}, fits two grids of the scan in two ways: {known}"]
    if prediction.affine is None and prediction.shape != tuple(shape):
        return unmoved, []
    problem = f"the prediction is on another grid than the scan: {describe(prediction)}, not {known}"
    return unmoved, [f"{problem}. Resample it to the scan, or write the affine that holds"]


def _alignment(prediction: Grid, grid: Grid) -> Alignment | None:
    if prediction.affine is not None and grid.affine is not None:
        return alignment(prediction, grid)
    if prediction.shape != grid.shape:
        return None
    # The thickness of a single slice does not matter.
    axes = [axis for axis, n in enumerate(grid.shape) if n > 1]
    sizes = [[s.spacing[a] for a in axes if a < len(s.spacing)] for s in (prediction, grid) if s.spacing is not None]
    agree = len(sizes) < 2 or same_spacing(*sizes)
    return Alignment(tuple(range(len(grid.shape))), ()) if agree else None


def _grids_of_scan(
    prediction: Grid, file: Mapping[str, Any], resolved: Mapping[str, Any], shape: Sequence[int]
) -> list[Grid]:
    """Return the grids that a prediction may be on, with as much as can be compared."""
    stated = [Grid.of(shape, file), Grid.of(shape, resolved)]
    exact = [grid for grid in stated if grid.affine is not None]
    if prediction.affine is not None and exact:
        return exact
    # A spacing in the dataset dict holds, whatever the columns of the file's affine say.
    spacings = [*(grid.spacing for grid in stated), Grid.of(shape, {"spacing": resolved.get("spacing")}).spacing]
    known = dict.fromkeys(spacing for spacing in spacings if spacing is not None)
    return [Grid(shape, None, spacing) for spacing in known] or [Grid(shape)]


# The name of the channel that is none of the categories.
BACKGROUND: Final = "background"
# The attribute of the dataset that names its channels, in order.
CHANNELS_ATTRIBUTE: Final = "categories"
_KEYS: Final = ("probs", "labels")
_HDF5: Final = (".h5", ".hdf5")
# How far a label may be from a whole number: scale factors of files round.
_WHOLE: Final = 1e-3
# Voxels that are looked up at once.
_SLAB: Final = 1 << 20


@frozen
class Prediction:
    """A prediction that is open.

    Attributes:
        array: H x W [x D], or H x W [x D] x C.
        form: What an HDF5 file calls it: ``"probs"`` (or binary masks), ``"labels"``; None: another format, which does
            not say what its numbers mean.
        names: Of its channels; None: the file does not say.
        metadata: What the file says of ``spacing`` and ``affine``.
    """

    array: LazyArray
    form: Literal["probs", "labels"] | None
    names: tuple[str, ...] | None
    metadata: Mapping[str, Any] = field(factory=dict)


@frozen
class LabelValues:
    """Which values of a label map mean the categories.

    Attributes:
        wanted: The values of each category.
        known: All values that may occur, beside 0.
    """

    wanted: tuple[tuple[int, ...], ...]
    known: Sequence[int]

    @classmethod
    def named(cls, names: Sequence[str], categories: Sequence[str]) -> LabelValues:
        """The value v is the v-th of the names, the background not counted."""
        names = [name for name in names if name != BACKGROUND]
        return cls(tuple((names.index(name) + 1,) for name in categories), range(1, len(names) + 1))

    @classmethod
    def of_dataset(
        cls, category_ids: Sequence[CategoryId], channels: int, label_values: Sequence[int] | None
    ) -> LabelValues:
        """What the dataset's own label maps hold, so that collated categories are found in their parts.

        Args:
            category_ids: Of the categories.
            channels: How many channels the masks of the dataset have.
            label_values: The value of each channel; None: v is channel v - 1.
        """
        values = range(1, channels + 1) if label_values is None else [int(value) for value in label_values]
        members = [channels_of(category_id) for category_id in category_ids]
        return cls(tuple(tuple(values[c] for c in some if c < len(values)) for some in members), values)


def file_stem(scan: str) -> str:
    """Return the base name of the file of a scan, without a suffix: no id leads out of the folder.

    Example:
        >>> file_stem("0000001_V00"), file_stem("../knee left")
        ('0000001_V00', '%2E.%2Fknee left')
    """
    # Names that begin with a dot are hidden: what other programs put beside files, and files that are being written.
    stem = quote(scan, safe=" ", errors="surrogatepass")
    return f"%2E{stem[1:]}" if stem.startswith(".") else stem


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
        scan = unquote(name[: -len(suffix)], errors="surrogatepass")
        if scan in found:
            raise ReadError(f"{found[scan].name} and {name} are both predictions of scan {scan!r}; leave one", folder)
        found[scan] = folder / name
    return found


@contextmanager
def open_prediction(path: Path) -> Iterator[Prediction]:
    """Open a prediction.

    HDF5 files hold ``probs`` or ``labels``; what any other reader gives as the image is taken for the prediction.

    Raises:
        ReadError: The file cannot be read.
    """
    if path.suffix.lower() in _HDF5:
        array = open_array(path, _KEYS)
        names = names_in(str(path), (array.key,), CHANNELS_ATTRIBUTE)
        yield Prediction(array, "probs" if array.key == "probs" else "labels", names, array.said.metadata())
        return
    record = Record.from_dict({"file_name": str(path), "scan_id": path.name})
    with ExitStack() as stack:
        reader = find_reader(record)
        try:
            scan = stack.enter_context(reader.open(record))
        except MedSegPyError:
            raise
        except Exception as error:
            found = f"{type(error).__name__}: {error}"
            raise ReadError(f"reader {reader.name!r} cannot open it ({found})", path) from error
        yield Prediction(scan.image, None, None, scan.metadata)


def problems_of_layout(
    prediction: Prediction,
    shape: Sequence[int],
    expected: Sequence[int],
    names: Sequence[str] | None,
    settings: ScoreSettings,
) -> list[str]:
    """Say why a prediction does not fit a scan, by its shape and the names of its channels.

    Args:
        prediction: The prediction.
        shape: Of the prediction on the grid of the scan.
        expected: The spatial shape of the scan.
        names: Those of the prediction's channels; None: neither the file nor the caller says.
        settings: What is to be scored.
    """
    channels = default_channels(settings) if names is None else names
    flat = len(shape) == len(expected)
    problems = []
    if tuple(shape[: len(expected)]) != tuple(expected) or len(shape) - len(expected) not in (0, 1):
        problems.append(f"the prediction has the shape {tuple(shape)}, the scan {tuple(expected)}")
    elif not flat and shape[-1] != len(channels):
        problems.append(f"the prediction has {shape[-1]} channels for {len(channels)} names: {_listed(channels)}")
    elif flat and prediction.form == "probs" and len(channels) != 1:
        problems.append(_no_channel_axis(channels))
    missing = [name for name in settings.categories if name not in channels]
    if missing:
        hint = closest_match(missing[0], channels).rstrip("?.")
        problems.append(f"the prediction has no channel for {_listed(missing)}; it has {_listed(channels)}.{hint}")
    if settings.binarization.activation == "softmax" and not flat and BACKGROUND not in channels:
        problems.append(f"the largest channel is asked for, but none of {_listed(channels)} is the {BACKGROUND!r}")
    return problems


def is_label_map(
    array: Array,
    form: Literal["probs", "labels"] | None,
    names: Sequence[str] | None,
    values: LabelValues,
    settings: ScoreSettings,
) -> tuple[bool, list[str]]:
    """Say whether an array without a channel axis is a label map; else it has the probabilities of the one category.

    What is called ``labels``, and integers, are labels. What is called ``probs``, and numbers that are not whole, are
    probabilities. Floats that are all 0 and 1 may be either, which matters only where 1 is not the label of the one
    category.

    Args:
        array: H x W [x D].
        form: What the file calls it.
        names: The names of its channels; None: unknown.
        values: Which labels mean what.
        settings: What is to be scored.

    Returns:
        The answer, and why there is none.
    """
    channels = default_channels(settings) if names is None else names
    single = len(channels) == 1 and len(settings.categories) == 1
    if form is not None:
        return form == "labels", []
    if array.dtype.kind in "iu":
        return True, []
    if array.dtype.kind == "b":
        return not single, []
    if not _whole(array):
        return False, [] if single else [_no_channel_axis(channels)]
    if single and names is None and 1 not in values.wanted[0] and 0.5 < array.max(initial=0) < 1.5:
        name = settings.categories[0]
        problem = (
            "the prediction holds floats that are 0 and 1, and no channel axis: a label map in which 1 is another "
            f"category than {name!r}, or the mask of {name!r}. Save label maps as integers, or say that the mask is "
            f"all there is: channels=[{name!r}] (--channels)"
        )
        return True, [problem]
    return True, []


def _whole(array: Array) -> bool:
    """Say whether all numbers are whole, as labels are; NaN is not."""
    flat = array.reshape(-1)
    parts = (flat[start : start + _SLAB] for start in range(0, flat.size, _SLAB))
    return all(bool((np.abs(part - np.rint(part)) <= _WHOLE).all()) for part in parts)


def _no_channel_axis(channels: Sequence[str]) -> str:
    return (
        f"the prediction holds probabilities without a channel axis, but there are {len(channels)} channels: "
        f"{_listed(channels)}. Save it with the channels on the last axis"
    )


def decided(array: Array, names: Sequence[str] | None, settings: ScoreSettings) -> tuple[Array, list[str]]:
    """Turn probabilities, or binary masks, into masks of the categories.

    Args:
        array: H x W [x D] x C.
        names: The names of its channels; None: unknown.
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


def labelled(array: Array, values: LabelValues, categories: Sequence[str]) -> tuple[Array, list[str]]:
    """Turn a label map into masks of the categories; 0 is none of them.

    Args:
        array: H x W [x D].
        values: Which labels mean what.
        categories: Their names.

    Returns:
        uint8, H x W [x D] x categories, and what is wrong with the values.
    """
    low, high = (float(array.min()), float(array.max())) if array.size else (0.0, 0.0)
    # `not >=` and `not <` hold for NaN, too.
    if not low >= -_WHOLE or not high < 1 << 53:
        return array, [_wrong_labels(values, f"values from {low:g} to {high:g}")]
    # No channel for each value up to the largest label: cost is that of voxels and categories.
    known = sorted({*values.known, *(v for some in values.wanted for v in some)} - {0})
    codes = value_codes(tuple(known))
    table = np.zeros((codes.other + 1, len(categories)), np.uint8)
    for category, wanted in enumerate(values.wanted):
        table[[known.index(value) + 1 for value in wanted], category] = 1
    masks = np.empty((*array.shape, len(categories)), np.uint8)
    flat, out = array.reshape(-1), masks.reshape(-1, len(categories))
    for start in range(0, flat.size, _SLAB):
        part = flat[start : start + _SLAB]
        labels = np.rint(part).astype(np.int64) if part.dtype.kind == "f" else part
        if labels is not part and not bool((np.abs(labels - part) <= _WHOLE).all()):
            return array, [_wrong_labels(values, f"values from {low:g} to {high:g}, some of them in between")]
        found = codes.of(labels)
        if bool((unknown := found == codes.other).any()):
            return array, [_wrong_labels(values, f"the value {int(labels[unknown][0])}")]
        np.take(table, found, axis=0, out=out[start : start + _SLAB])
    return masks, []


def _wrong_labels(values: LabelValues, found: str) -> str:
    known = values.known
    if isinstance(known, range):
        expected = f"whole numbers from 0 (none) to {len(known)}"
    else:
        expected = f"0 (none) and the label_values of the dataset ({some(known, 20)})"
    return f"the label map has {found}; {expected} are expected. If they mean something else, name them: --channels"


def scoring_settings(settings: ScoreSettings) -> ScoreSettings:
    """Return the settings for masks that `decided` has made: no background, and nothing left to decide."""
    return evolve(settings, background=False, binarization=Binarization("sigmoid", (0.5,) * len(settings.categories)))


def default_channels(settings: ScoreSettings) -> tuple[str, ...]:
    """Return the names of the channels of a prediction that says nothing else."""
    return (BACKGROUND, *settings.categories) if settings.background else settings.categories


def _listed(names: Iterable[str]) -> str:
    return ", ".join(map(repr, names)) or "no name"


def save_prediction(
    path: Path,
    pred: Array,
    form: Literal["labels", "probs"],
    settings: ScoreSettings,
    spacing: Sequence[float] | None,
    affine: Any = None,
) -> None:
    """Write a prediction atomically, over an older one.

    Args:
        path: The file.
        pred: H x W [x D] x C.
        form: ``"probs"``: float32 as they are. ``"labels"``: binary, uint8, H x W [x D] x C: categories may overlap.
        settings: Names the channels, and says what counts.
        spacing: mm, kept as an attribute where it is known.
        affine: 4 x 4, voxel index to RAS+ mm, kept as an attribute where it is known.
    """
    from medsegpy_core.hdf5 import atomic_h5

    path.parent.mkdir(parents=True, exist_ok=True)
    if form == "probs":
        data = np.asarray(pred, np.float32)
    elif settings.binarization.activation == "softmax":
        data = (largest_channel(pred)[..., None] == np.arange(pred.shape[-1])).view(np.uint8)
    else:
        # The background has no threshold of its own; it is written for completeness, never scored.
        thresholds = (0.5,) * settings.background + settings.binarization.thresholds
        data = np.empty(pred.shape, np.uint8)
        for channel, threshold in enumerate(thresholds):
            np.greater(pred[..., channel], threshold, out=data[..., channel], casting="unsafe")
    with atomic_h5(path, overwrite=True) as file:
        dataset = file.create_dataset(form, data=data, chunks=True, compression="gzip", compression_opts=1)
        names = [name.encode(errors="surrogateescape") for name in default_channels(settings)]
        dataset.attrs[CHANNELS_ATTRIBUTE] = np.array(names)
        if spacing is not None:
            dataset.attrs["spacing"] = np.asarray(spacing, np.float64)
        if affine is not None:
            dataset.attrs["affine"] = np.asarray(affine, np.float64)
