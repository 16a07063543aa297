"""Where the time of a loader goes, what would make it faster, and what a layout costs; all measured."""

from medsegpy_core.profiling.layouts import AccessCost, access_costs
from medsegpy_core.profiling.profile import Profile, Trial, compared, profile

__all__ = ["AccessCost", "Profile", "Trial", "access_costs", "compared", "profile"]
