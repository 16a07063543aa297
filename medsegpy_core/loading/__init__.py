"""Loaders: plan -> order -> fetch -> collate -> batch; and inference on whole scans."""

from medsegpy_core.loading.build import build_loader, filter_dicts, load_scan
from medsegpy_core.loading.dataset_scans import DatasetScan, list_scans
from medsegpy_core.loading.loader import (
    DataLoader,
    DefaultDataLoader,
    N5dDataLoader,
    PatchDataLoader,
    RandomPatchDataLoader,
    S25dDataLoader,
)
from medsegpy_core.loading.windows import Element, compute_patches

__all__ = [
    "DataLoader",
    "DatasetScan",
    "DefaultDataLoader",
    "Element",
    "N5dDataLoader",
    "PatchDataLoader",
    "RandomPatchDataLoader",
    "S25dDataLoader",
    "build_loader",
    "compute_patches",
    "filter_dicts",
    "list_scans",
    "load_scan",
]
