"""Parsing names: those of 2D slice files, ``%07d_V%02d-Aug%02d_%03d``, and those of scans."""

from __future__ import annotations

import re
from typing import Any

from attrs import field, frozen, validators

# `[0-9]`, not `\d`, which also matches digits of other scripts.
_SLICE_NAME = re.compile(r"([0-9]+)_V([0-9]+)-Aug([0-9]+)_([0-9]+)")
_SCAN_NAME = re.compile(r"([0-9]+)_V([0-9]+)(?:-Aug([0-9]+))?")
# The entities of BIDS: a label ends at an underscore or at the end of the stem.
_BIDS_NAME = re.compile(r"(sub-[0-9A-Za-z]+)(?:_(ses-[0-9A-Za-z]+))?(?:-Aug([0-9]+))?(?=[_.]|$)")

_natural = validators.and_(validators.instance_of(int), validators.ge(0))


@frozen(order=True)
class SliceName:
    """The parts of the base name of a slice file.

    Attributes:
        subject_id: Seven digits, or more.
        time_point: Two digits.
        augmentation: Two digits, 0 for none.
        slice_id: Three digits; the first slice of a scan is 1.

    Example:
        >>> SliceName(subject_id=123456, time_point=1, augmentation=0, slice_id=7).stem
        '0123456_V01-Aug00_007'
    """

    subject_id: int = field(validator=_natural)
    time_point: int = field(default=0, validator=_natural)
    augmentation: int = field(default=0, validator=_natural)
    slice_id: int = field(default=1, validator=validators.and_(_natural, validators.ge(1)))

    @property
    def scan_id(self) -> str:
        """``%07d_V%02d``, with ``-AugNN`` for an augmented copy."""
        return scan_name(self.subject_id, self.time_point, self.augmentation)

    @property
    def stem(self) -> str:
        """The base name without a suffix."""
        return "%07d_V%02d-Aug%02d_%03d" % (
            self.subject_id,
            self.time_point,
            self.augmentation,
            self.slice_id,
        )


def scan_name(subject_id: int, time_point: int = 0, augmentation: int = 0) -> str:
    """Return the conventional scan id: ``%07d_V%02d``, plus ``-Aug%02d`` for an augmented copy.

    Example:
        >>> scan_name(42), scan_name(42, 1, augmentation=3)
        ('0000042_V00', '0000042_V01-Aug03')
    """
    name = "%07d_V%02d" % (subject_id, time_point)
    return name + "-Aug%02d" % augmentation if augmentation else name


def parse_slice_name(name: str) -> SliceName:
    """Parse the base name (no folder, no suffix) of a slice file.

    Any zero padding is accepted; `SliceName.stem` has the canonical one.

    Raises:
        ValueError: `name` does not follow the convention, or its slice number is 0.

    Example:
        >>> parse_slice_name("0123456_V00-Aug04_001").augmentation
        4
    """
    match = _SLICE_NAME.fullmatch(name)
    if match is None:
        raise ValueError(
            f"{name!r} is not the name of a slice: expected SUBJECT_Vnn-Augnn_SLICE in digits, "
            "as in '0123456_V00-Aug00_001', without a suffix."
        )
    subject_id, time_point, augmentation, slice_id = map(int, match.groups())
    if slice_id == 0:
        raise ValueError(f"{name!r} names slice 0, but slices are numbered from 1.")
    return SliceName(subject_id, time_point, augmentation, slice_id)


def parse_scan_name(name: str) -> dict[str, int]:
    """Parse the name of a scan: `subject_id` and `time_point` if it begins with ``(\\d+)_V(\\d+)``, and `augmentation`
    if ``-AugNN`` follows. Empty for other names.

    Example:
        >>> parse_scan_name("0000042_V01-Aug03")
        {'subject_id': 42, 'time_point': 1, 'augmentation': 3}
        >>> parse_scan_name("knee left")
        {}
    """
    match = _SCAN_NAME.match(name)
    if match is None:
        return {}
    keys = ("subject_id", "time_point", "augmentation")
    return {key: int(text) for key, text in zip(keys, match.groups(), strict=True) if text is not None}


def parse_identity(name: str) -> dict[str, Any]:
    """Parse subject and time point from the name of a scan, by unambiguous conventions only.

    These are the names of `parse_scan_name`, whose ids are numbers, and those of BIDS, ``sub-LABEL[_ses-LABEL]``, whose
    ids are text as written, prefix included. An ``-AugNN`` after either is the augmentation. The result is empty for
    all other names: a number in them may stand for a person or a scan.

    Example:
        >>> parse_identity("0000042_V01")
        {'subject_id': 42, 'time_point': 1}
        >>> parse_identity("sub-01_ses-baseline_T1w")
        {'subject_id': 'sub-01', 'time_point': 'ses-baseline'}
        >>> parse_identity("patient_17")
        {}
    """
    found: dict[str, Any] = dict(parse_scan_name(name))
    if not found and (match := _BIDS_NAME.match(name)) is not None:
        subject, session, augmentation = match.groups()
        found = {"subject_id": subject}
        if session is not None:
            found["time_point"] = session
        if augmentation is not None:
            found["augmentation"] = int(augmentation)
    return found
