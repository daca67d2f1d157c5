"""What an operation costs: a calibrated profile as data, and the model that computes seconds from it."""

from prism.cost.model import ClockGovernor, CostModel, Curve, normal_scores
from prism.cost.profile import PROFILES, CalibratedProfile, Tag, Taken, Term, columns, load_profile

__all__ = [
    "PROFILES",
    "CalibratedProfile",
    "ClockGovernor",
    "CostModel",
    "Curve",
    "Tag",
    "Taken",
    "Term",
    "columns",
    "load_profile",
    "normal_scores",
]
