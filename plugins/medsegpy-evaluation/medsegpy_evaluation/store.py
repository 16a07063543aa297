"""Scans that are done, one file each, so that an evaluation that was broken off goes on where it stood."""

from __future__ import annotations

import base64
import hashlib
import json
import os
from collections.abc import Iterable, Mapping
from pathlib import Path
from typing import Any, Final

from attrs import frozen

from medsegpy_core import ReadError
from medsegpy_core.reading import Stamp, file_hash, is_young, stamp_of
from medsegpy_evaluation.prediction_files import file_stem
from medsegpy_evaluation.scoring import ScanScores, StructureScores
from medsegpy_evaluation.writers import json_text, save_file

__all__ = ["Content", "ScanStore", "contents_of", "fingerprint", "is_content"]

_FORMAT: Final = 4


def fingerprint(values: Mapping[str, Any]) -> str:
    """Return a short text that differs where the values (plain ones) differ."""
    return hashlib.sha256(json.dumps(values, sort_keys=True, default=str).encode()).hexdigest()[:32]


@frozen
class Content:
    """What a file held.

    Attributes:
        hash: Of all its bytes.
        stamp: As long as the file has this stamp, it holds the same; None: only the hash tells.
    """

    hash: str
    stamp: Stamp | None


def contents_of(paths: Iterable[Path]) -> dict[str, Content]:
    """Read files, and return what they hold.

    Raises:
        ReadError: A file cannot be read.
    """
    found = {}
    for path in paths:
        before, young = _stamp(path)
        digest = file_hash(path)
        # A file that changes may keep its stamp while it is young; and what was read may be older than the stamp.
        found[str(path)] = Content(digest, before if not young and _stamp(path)[0] == before else None)
    return found


def is_content(path: str, content: Content) -> bool:
    """Say whether a file still holds the same; it is read only if its stamp differs.

    Raises:
        ReadError: It cannot be read.
    """
    return _stamp(path)[0] == content.stamp or file_hash(path) == content.hash


def _stamp(path: str | Path) -> tuple[Stamp, bool]:
    try:
        status = os.stat(path)  # noqa: PTH116
    except OSError as error:
        raise ReadError(f"the file cannot be opened: {error.strerror}", path) from error
    return stamp_of(status), is_young(status)


class ScanStore:
    """A folder of results.

    A result counts only for what it was kept with: the same settings, and files with the same content. Files whose
    size, times and inode are as they were are not read.

    Args:
        folder: Made when the first result is kept.
    """

    def __init__(self, folder: Path):
        self._folder = folder

    def get(self, scan: str, mark: str, paths: Iterable[Path]) -> ScanScores | None:
        """Return the result of a scan, or None if there is none that still holds.

        Args:
            scan: Its id.
            mark: The fingerprint of the settings.
            paths: The files of prediction and truth.
        """
        try:
            kept = json.loads(self._path(scan).read_text(encoding="utf-8"))
            if kept["format"] != _FORMAT or kept["fingerprint"] != mark:
                return None
            scores, files = _scores(kept["scores"]), {path: _content(*item) for path, item in kept["files"].items()}
            if files.keys() != {str(path) for path in paths}:
                return None
            touched = [path for path, content in files.items() if _stamp(path)[0] != content.stamp]
            again = contents_of(map(Path, touched))
            if any(again[path].hash != files[path].hash for path in touched):
                return None
        # Whatever is wrong with the file, the scan can be scored again.
        except (OSError, ValueError, KeyError, TypeError, AttributeError):
            return None
        if touched:
            self.put(scores, mark, {**files, **again})  # so that they are not read next time
        return scores

    def put(self, scores: ScanScores, mark: str, files: Mapping[str, Content]) -> None:
        """Keep the result of a scan.

        Args:
            scores: The result.
            mark: The fingerprint of the settings.
            files: What the files of prediction and truth held when it was made.
        """
        states = {path: [c.hash, None if c.stamp is None else c.stamp.fields] for path, c in files.items()}
        kept = {"format": _FORMAT, "fingerprint": mark, "files": states, "scores": _plain(scores)}
        save_file(self._path(scores.scan), json_text(kept))

    def _path(self, scan: str) -> Path:
        return self._folder / f"{file_stem(scan)}.json"


def _content(digest: str, fields: list[int] | None) -> Content:
    return Content(digest, None if fields is None else Stamp.of_fields(*fields))


def _plain(scores: ScanScores) -> dict[str, Any]:
    return {
        "scan": scores.scan,
        "subject": scores.subject,
        "time_point": scores.time_point,
        "spacing": scores.spacing,
        "shape": scores.shape,
        "structures": [
            {
                "category": s.category,
                "status": s.status,
                "values": dict(s.values),
                "voxels": s.voxels,
                "unknown": s.unknown,
                "truth": s.truth,
                "undefined": dict(s.undefined),
            }
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
            StructureScores(
                s["category"],
                s["status"],
                s["values"],
                tuple(s["voxels"]),
                s["unknown"],
                truth=s["truth"],
                undefined=dict(s["undefined"]),
            )
            for s in plain["structures"]
        ),
        picture=None if plain["picture"] is None else base64.b64decode(plain["picture"]),
    )
