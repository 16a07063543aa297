"""The plugins of this project, so that a message can name the one that is not installed."""

from __future__ import annotations

from collections.abc import Collection, Mapping
from typing import Final

from medsegpy_core.discovery import normalize_distribution

__all__ = ["suggest_for_suffix", "suggest_plugin"]

# kind -> name -> distribution
_PROVIDES: Final[Mapping[str, Mapping[str, str]]] = {
    "readers": {
        "h5-slices": "medsegpy-h5-slices",
        "h5-volumes": "medsegpy-h5-volumes",
        "nifti": "medsegpy-nifti",
    },
    "evaluators": {"SemSegEvaluator": "medsegpy-evaluation"},
    "metrics": dict.fromkeys(
        ("DSC", "VOE", "CV", "ASSD", "HD95", "HD", "NSD", "Precision", "Recall", "RVD"), "medsegpy-evaluation"
    ),
}

# Endings of file names; a longer one stands before a shorter one that ends alike.
_READS: Final[Mapping[str, str]] = {
    ".im": "medsegpy-h5-slices",
    ".seg": "medsegpy-h5-slices",
    ".h5": "medsegpy-h5-volumes",
    ".hdf5": "medsegpy-h5-volumes",
    ".nii.gz": "medsegpy-nifti",
    ".nii": "medsegpy-nifti",
}


def suggest_plugin(kind: str, name: str, installed: Collection[str]) -> str:
    """Return a sentence with the ``pip install`` line of the plugin that brings `name`; empty where none is known,
    or where it is installed."""
    return _line(_PROVIDES.get(kind, {}).get(name), installed)


def suggest_for_suffix(file_name: str, installed: Collection[str]) -> str:
    """Return the same for the plugin that reads files of this ending."""
    low = file_name.lower()
    return _line(next((dist for suffix, dist in _READS.items() if low.endswith(suffix)), None), installed)


def _line(distribution: str | None, installed: Collection[str]) -> str:
    if distribution is None or normalize_distribution(distribution) in map(normalize_distribution, installed):
        return ""
    return f" The plugin {distribution} brings it: pip install {distribution}."
