"""The outcomes of a check: success, or a `CheckError`, a `NotCheckableError` or an `UndecidedError`."""

from __future__ import annotations

from typing import Literal

from attrs import frozen

from medsegpy_core.errors import MedSegPyError


class CheckError(MedSegPyError, AssertionError):
    """A plugin violates a requirement. The message states which, and how to fix it."""


class NotCheckableError(MedSegPyError):
    """A check cannot run here: it needs a file with a mask, a larger file, or another operating system."""


class UndecidedError(MedSegPyError):
    """A check ran, but the information in the datasets is not enough to decide."""


@frozen
class Finding:
    """The outcome of one check.

    Attributes:
        subject: The subject of the check: ``"reader 'nifti'"``, ``"dataset 'knee_train'"``.
        check: The requirement, in a few words.
        status: ``"passed"``, ``"failed"``, ``"unknown"`` (it ran, but cannot tell) or ``"skipped"`` (it could not run).
        message: Why it did not pass; empty if it did.
    """

    subject: str
    check: str
    status: Literal["passed", "failed", "unknown", "skipped"]
    message: str = ""


def require(condition: object, message: str) -> None:
    """Raise `CheckError` unless the condition holds."""
    if not condition:
        raise CheckError(message)
