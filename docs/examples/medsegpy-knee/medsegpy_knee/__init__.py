"""Knees: 2D slices under ``$MEDSEGPY_DATASETS/knee/{train,val,test}``."""

from __future__ import annotations

from functools import partial
from typing import Any

from medsegpy_core import Augmentation, DatasetSpec, hookimpl

__all__ = ["medsegpy_register_augmentations", "medsegpy_register_datasets"]

CATEGORIES: list[dict[str, Any]] = [
    {"id": 0, "name": "femoral cartilage", "abbreviation": "FC", "color": (230, 159, 0)},
    {"id": 1, "name": "tibial cartilage", "abbreviation": "TC", "color": (86, 180, 233)},
    {"id": 2, "name": "meniscus", "abbreviation": "MEN", "color": (0, 158, 115)},
    {"id": (0, 1), "name": "cartilage", "abbreviation": "CART", "color": (213, 94, 0)},
]


def load(split: str) -> list[dict[str, Any]]:
    """List the slices of a split."""
    from medsegpy_core import scan_directory

    return scan_directory(f"knee/{split}", reader="h5-slices")


@hookimpl
def medsegpy_register_datasets() -> list[DatasetSpec]:
    """Return one dataset per split."""
    return [
        DatasetSpec(
            name=f"knee_{split}",
            load=partial(load, split),
            split=split,
            description=f"knees, {split} split",
            metadata={
                "scan_root": f"knee/{split}",
                "category_ids": [category["id"] for category in CATEGORIES],
                "categories": [category["name"] for category in CATEGORIES],
                "category_id_to_contiguous_id": {category["id"]: i for i, category in enumerate(CATEGORIES)},
                "category_abbreviations": [category["abbreviation"] for category in CATEGORIES],
                "category_colors": [category["color"] for category in CATEGORIES],
                "evaluator_type": "SemSegEvaluator",
                "spacing": (0.31, 0.31, 0.7),
            },
        )
        for split in ("train", "val", "test")
    ]


@hookimpl
def medsegpy_register_augmentations() -> list[Augmentation]:
    """Return the meanings of the numbers in the file names."""
    return [Augmentation(1, "gamma", {"gamma": 0.8})]
