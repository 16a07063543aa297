"""How a check ends: quietly, with a `CheckError`, a `NotCheckableError` or an `UndecidedError`."""

from __future__ import annotations

from typing import Literal

from attrs import frozen

from medsegpy_core.errors import MedSegPyError


class CheckError(MedSegPyError, AssertionError):
    """A plugin does not do what its kind of plugin must. The message says what, and what to do about it."""


class NotCheckableError(MedSegPyError):
    """What a check needs is not there: a file with a mask, a file that is large enough, an operating system."""


class UndecidedError(MedSegPyError):
    """A check ran, but what the datasets say does not decide whether it holds."""


@frozen
class Finding:
    """How one check of one subject ended.

    Attributes:
        subject: What was checked: ``"reader 'nifti'"``, ``"dataset 'knee_train'"``.
        check: What of it, in a few words.
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
