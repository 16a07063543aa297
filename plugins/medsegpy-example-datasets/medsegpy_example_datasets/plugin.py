"""The hooks of the plugin. What a file says is in `datasets.py`, what the images are in `data/NOTICE.md`."""

from __future__ import annotations

from functools import partial

from medsegpy_core import Augmentation, DatasetSpec, hookimpl
from medsegpy_example_datasets.datasets import AUGMENTED, SPLITS, augmentation, load_slices, load_volumes, metadata

__all__ = ["medsegpy_register_augmentations", "medsegpy_register_datasets"]

_PERSON = {"train": "person 1, CT", "val": "person 3, MR", "test": "person 2, CT"}


@hookimpl
def medsegpy_register_datasets() -> list[DatasetSpec]:
    """Bring the abdomen, as slices and as volumes, split by person."""
    specs = [
        DatasetSpec(
            name=AUGMENTED,
            load=partial(load_slices, "train", "train_aug"),
            split="train",
            metadata=metadata("slices", "train"),
            description="upper abdomen, 2D slices, person 1, CT, with one augmented copy",
        )
    ]
    for split in SPLITS:
        for form, what, load in (("slices", "2D slices", load_slices), ("volumes", "3D volume", load_volumes)):
            specs.append(
                DatasetSpec(
                    name=f"abdomen_{form}_{split}",
                    load=partial(load, split),
                    split=split,
                    metadata=metadata(form, split),
                    description=f"upper abdomen, {what}, {_PERSON[split]}",
                )
            )
    return specs


@hookimpl
def medsegpy_register_augmentations() -> list[Augmentation]:
    """Say what was done to the augmented copy."""
    return [Augmentation(dataset=AUGMENTED, **augmentation())]
