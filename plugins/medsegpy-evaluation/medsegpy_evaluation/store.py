"""Scans that are done, one file each, so that an evaluation that was broken off goes on where it stood."""

from __future__ import annotations

import base64
import hashlib
import json
from collections.abc import Mapping
from pathlib import Path
from typing import Any, Final

from medsegpy_evaluation.prediction_files import file_stem
from medsegpy_evaluation.scoring import ScanScores, StructureScores
from medsegpy_evaluation.writers import json_text, replace_file

__all__ = ["ScanStore", "fingerprint"]

_FORMAT: Final = 1


def fingerprint(values: Mapping[str, Any]) -> str:
    """Return a short text that differs where the values (plain ones) differ."""
    return hashlib.sha256(json.dumps(values, sort_keys=True, default=str).encode()).hexdigest()[:32]


class ScanStore:
    """A folder of results.

    A result counts only for the fingerprint that it was kept with: that of the settings, the prediction and the truth.

    Args:
        folder: Made when the first result is kept.
    """

    def __init__(self, folder: Path):
        self._folder = folder

    def get(self, scan: str, mark: str) -> ScanScores | None:
        """Return the result of a scan, or None where there is none that still holds."""
        try:
            kept = json.loads(self._path(scan).read_text())
            if kept["format"] != _FORMAT or kept["fingerprint"] != mark:
                return None
            return _scores(kept["scores"])
        # Whatever is wrong with the file, the scan can be scored again.
        except (OSError, ValueError, KeyError, TypeError):
            return None

    def put(self, scores: ScanScores, mark: str) -> None:
        """Keep the result of a scan."""
        kept = {"format": _FORMAT, "fingerprint": mark, "scores": _plain(scores)}
        replace_file(self._path(scores.scan), json_text(kept))

    def _path(self, scan: str) -> Path:
        return self._folder / f"{file_stem(scan)}.json"


def _plain(scores: ScanScores) -> dict[str, Any]:
    return {
        "scan": scores.scan,
        "subject": scores.subject,
        "time_point": scores.time_point,
        "spacing": scores.spacing,
        "shape": scores.shape,
        "structures": [
            {"category": s.category, "status": s.status, "values": dict(s.values), "voxels": s.voxels}
            for s in scores.structures
        ],
        "picture": None if scores.picture is None else base64.b64encode(scores.picture).decode(),
    }


def _scores(plain: Mapping[str, Any]) -> ScanScores:
    return ScanScores(
        scan=plain["scan"],
        subject=plain["subject"],
        time_point=plain["time_point"],
        spacing=None if plain["spacing"] is None else tuple(plain["spacing"]),
        shape=tuple(plain["shape"]),
        structures=tuple(
            StructureScores(s["category"], s["status"], s["values"], (s["voxels"][0], s["voxels"][1]))
            for s in plain["structures"]
        ),
        picture=None if plain["picture"] is None else base64.b64decode(plain["picture"]),
    )
