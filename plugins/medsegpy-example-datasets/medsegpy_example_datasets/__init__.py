"""Real images to try medsegpy_core on: the upper abdomen of three people, five organs, as slices and as volumes."""

from medsegpy_example_datasets.plugin import (
    medsegpy_register_augmentations,
    medsegpy_register_commands,
    medsegpy_register_datasets,
)

__all__ = ["medsegpy_register_augmentations", "medsegpy_register_commands", "medsegpy_register_datasets"]
