"""Where the files are, and what is known of them. Files and facts are made by ``tools/make_example_data.py``."""

from __future__ import annotations

import json
from functools import cache
from pathlib import Path
from typing import TYPE_CHECKING, Any, Final, Literal

if TYPE_CHECKING:
    from medsegpy_core.typing import DatasetDict

__all__ = ["AUGMENTED", "DATA", "SPLITS", "augmentation", "facts", "load_slices", "load_volumes", "metadata"]

Split = Literal["train", "val", "test"]
SPLITS: Final[tuple[Split, ...]] = ("train", "val", "test")
AUGMENTED: Final = "abdomen_slices_train_aug"
DATA: Final = Path(__file__).parent / "data"

# id, name, abbreviation
_CATEGORIES: Final = (
    (0, "liver", "LIV"),
    (1, "spleen", "SPL"),
    (2, "stomach", "STO"),
    (3, "aorta", "AO"),
    (4, "inferior vena cava", "IVC"),
    ((3, 4), "great vessels", "GV"),
)


@cache
def facts() -> dict[str, Any]:
    """Return what ``data/facts.json`` says of the scans: spacing, affine, split, checksums, how they were augmented."""
    loaded: dict[str, Any] = json.loads((DATA / "facts.json").read_text(encoding="utf-8"))
    return loaded


def metadata(form: Literal["slices", "volumes"], split: Split) -> dict[str, Any]:
    """Return the metadata of a dataset."""
    from medsegpy_core.drawing import class_colors

    (scan,) = [scan for scan in facts()["scans"].values() if scan["split"] == split]
    ids, names, abbreviations = zip(*_CATEGORIES, strict=True)
    return {
        "scan_root": str(DATA / form),
        "category_ids": list(ids),
        "categories": list(names),
        "category_id_to_contiguous_id": {category_id: position for position, category_id in enumerate(ids)},
        "category_abbreviations": list(abbreviations),
        "category_colors": class_colors(len(ids)),
        "evaluator_type": "SemSegEvaluator",
        "spacing": tuple(scan["spacing"]),
        # Slices and volumes show the same people: whoever trains on the one must not be scored on the other.
        "collection": "abdomen",
        "modality": scan["modality"],
        "attribution": str(DATA / "NOTICE.md"),
    }


def load_slices(*folders: str) -> list[DatasetDict]:
    """List the slices of some folders under ``data/slices``."""
    from medsegpy_core import scan_directory

    found = [d for folder in folders for d in scan_directory(DATA / "slices" / folder, reader="h5-slices")]
    return [d | _about(d) for d in found]


def load_volumes(split: Split) -> list[DatasetDict]:
    """List the volumes of a split."""
    from medsegpy_core import scan_directory

    return [d | _about(d) for d in scan_directory(DATA / "volumes" / split, reader="h5-volumes")]


def augmentation() -> dict[str, Any]:
    """Return number, name and parameters of what was done to the augmented copy."""
    done: dict[str, Any] = facts()["augmentation"]
    return {key: done[key] for key in ("number", "name", "parameters")}


def _about(d: DatasetDict) -> dict[str, Any]:
    scan = facts()["scans"][str(d["subject_id"])]
    about = {"scan_spacing": tuple(scan["spacing"]), "scan_modality": scan["modality"]}
    if not d.get("augmentation"):
        # A rotated copy lies nowhere in the person's own coordinates.
        about["scan_affine"] = tuple(tuple(row) for row in scan["affine"])
    return about
