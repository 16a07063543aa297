"""Checking a dataset before it is used."""

from medsegpy_core.checking.check import check_dataset
from medsegpy_core.checking.findings import Checked, Finding

__all__ = ["Checked", "Finding", "check_dataset"]
