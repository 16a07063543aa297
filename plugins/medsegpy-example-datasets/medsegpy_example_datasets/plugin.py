"""The hooks of the plugin. What a file says is in `datasets.py`, what the images are in `data/NOTICE.md`."""

from __future__ import annotations

from functools import partial
from typing import TYPE_CHECKING

from medsegpy_core import Augmentation, DatasetSpec, hookimpl
from medsegpy_example_datasets.datasets import AUGMENTED, SPLITS, augmentation, load_slices, load_volumes, metadata

if TYPE_CHECKING:
    import click

__all__ = ["medsegpy_register_augmentations", "medsegpy_register_commands", "medsegpy_register_datasets"]

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
        specs += [
            DatasetSpec(
                name=f"abdomen_slices_{split}",
                load=partial(load_slices, split),
                split=split,
                metadata=metadata("slices", split),
                description=f"upper abdomen, 2D slices, {_PERSON[split]}",
            ),
            DatasetSpec(
                name=f"abdomen_volumes_{split}",
                load=partial(load_volumes, split),
                split=split,
                metadata=metadata("volumes", split),
                description=f"upper abdomen, 3D volume, {_PERSON[split]}",
            ),
        ]
    return specs


@hookimpl
def medsegpy_register_augmentations() -> list[Augmentation]:
    """Say what was done to the augmented copy."""
    return [Augmentation(dataset=AUGMENTED, **augmentation())]


@hookimpl
def medsegpy_register_commands() -> list[click.Command]:
    """Return ``medsegpy demo``."""
    from medsegpy_example_datasets.demo_command import demo

    return [demo]
