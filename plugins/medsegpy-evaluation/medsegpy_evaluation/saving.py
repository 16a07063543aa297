"""Predictions as files: one HDF5 file a scan, that ``medsegpy evaluate`` reads again."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any, Literal, TypeAlias

import numpy as np
from numpy.typing import NDArray

from medsegpy_evaluation.prediction_files import CHANNELS_ATTRIBUTE, default_channels
from medsegpy_evaluation.scoring import largest_channel

if TYPE_CHECKING:
    from medsegpy_evaluation.scoring import ScoreSettings

    Array: TypeAlias = NDArray[Any]

__all__ = ["save_prediction"]


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
