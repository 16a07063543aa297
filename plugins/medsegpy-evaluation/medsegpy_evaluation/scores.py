"""Scores: what became of one structure in a scan, and of all structures of a scan."""

from __future__ import annotations

from collections.abc import Mapping

from attrs import field, frozen

from medsegpy_evaluation.settings import Status


@frozen
class StructureScores:
    """One category in one scan.

    Attributes:
        category: Its name.
        status: What became of it.
        values: By the name of the metric; None: undefined.
        voxels: How many voxels it has in the prediction and in the truth, unknown ones left out.
        unknown: How many voxels of the scan are unknown in the truth.
        errors: Wrong voxels in each slice (last spatial axis), where asked for.
        truth: A text that differs if the truth differs: a voxel, what is unknown, or the shape. None: not recorded.
        undefined: Why metrics have no value for what was predicted, by their names; missing structures are none of it.
    """

    category: str
    status: Status
    values: Mapping[str, float | None]
    voxels: tuple[int, int]
    unknown: int = 0
    errors: tuple[int, ...] = field(default=(), repr=False)
    truth: str | None = field(default=None, kw_only=True)
    undefined: Mapping[str, str] = field(factory=dict, kw_only=True)


@frozen
class ScanScores:
    """One scan.

    Attributes:
        scan: Its id.
        subject: The subject; if it is unknown, the scan's id stands in.
        time_point: The visit, a number or text, or None.
        spacing: mm, one per axis, or None.
        shape: Spatial.
        structures: One per category.
        picture: A PNG of the slice with most wrong voxels, truth beside prediction; None where none was asked for.
    """

    scan: str
    subject: int | str
    time_point: int | str | None
    spacing: tuple[float, ...] | None
    shape: tuple[int, ...]
    structures: tuple[StructureScores, ...]
    picture: bytes | None = field(default=None, repr=False)
