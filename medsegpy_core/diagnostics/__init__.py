"""Measure what is wrong with a dataset, where a loader spends its time, and what makes it faster."""

from medsegpy_core.diagnostics.check import Checked, Finding, check_dataset
from medsegpy_core.diagnostics.profile import Profile, Trial, compared, profile
from medsegpy_core.diagnostics.stages import AccessCost, access_costs

__all__ = [
    "AccessCost",
    "Checked",
    "Finding",
    "Profile",
    "Trial",
    "access_costs",
    "check_dataset",
    "compared",
    "profile",
]
