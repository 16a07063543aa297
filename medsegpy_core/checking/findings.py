"""What a check finds."""

from __future__ import annotations

import os
from typing import Any

from attrs import asdict, define, field, frozen

from medsegpy_core.errors import MedSegPyError, ReadError

__all__ = ["Checked", "Finding"]


@frozen
class Finding:
    """Something that is wrong.

    Attributes:
        kind: ``"listing"`` (left aside when the folder was listed), ``"dict"``, ``"file"`` (cannot be read, or is not
            what it should be), ``"values"``, ``"labels"`` (values that no category declares), ``"shape"``,
            ``"type"``, ``"channels"``, ``"gaps"``, ``"name"``,
            ``"geometry"`` (what is stated of the grids of image, mask and dataset does not agree), ``"orientation"``
            (the axes of the scans run in different directions), ``"content"`` (another hash than when it was packed) or
            ``"metadata"``.
        message: What is wrong.
        file: The file, or None.
        elements: How many elements of the dataset are concerned.
    """

    kind: str
    message: str
    file: str | None = None
    elements: int = 1


@define
class Checked:
    """What came out.

    Attributes:
        name: The dataset, or the folder.
        elements: How many slices or volumes there are.
        scans: How many scans they make.
        files: How many different files.
        scans_without_subject: How many scans have no `subject_id`, so that splits cannot be checked for people who are
            in two of them.
        findings: What is wrong, in the order of the elements.
    """

    name: str
    elements: int = 0
    scans: int = 0
    files: int = 0
    scans_without_subject: int = 0
    _found: dict[tuple[str, str, str | None], int] = field(factory=dict)

    @property
    def findings(self) -> list[Finding]:
        """What is wrong; what is wrong with one file for several elements comes once."""
        return [Finding(kind, message, file, n) for (kind, message, file), n in self._found.items()]

    def blames(self, file: str | os.PathLike[str]) -> bool:
        """Say whether something was found that is wrong with a file as such."""
        return any(kind == "file" and path == os.fspath(file) for kind, _, path in self._found)

    def add(self, kind: str, message: str, file: str | os.PathLike[str] | None = None) -> None:
        """Note something that is wrong."""
        key = (kind, message, None if file is None else os.fspath(file))
        self._found[key] = self._found.get(key, 0) + 1

    def add_error(self, kind: str, error: Exception, file: str | os.PathLike[str] | None = None) -> None:
        """Note an error."""
        if isinstance(error, ReadError):
            where = "" if error.key is None else f"dataset {error.key!r}: "
            self.add(kind, where + error.reason, error.path or file)
        else:
            ours = isinstance(error, MedSegPyError)
            self.add(kind, str(error) if ours else f"{type(error).__name__}: {error}", file)

    def as_dict(self) -> dict[str, Any]:
        """Return this for JSON."""
        keys = ("name", "elements", "scans", "files", "scans_without_subject")
        counts: dict[str, Any] = {key: getattr(self, key) for key in keys}
        return counts | {"findings": [asdict(finding) for finding in self.findings]}
