"""A fit, and a comparison of predictions with measurements, as pages and as tables."""

from calibration.report.comparison import comparison_page
from calibration.report.fit import fit_line, fit_page
from calibration.report.scores import goal_rows

__all__ = ["comparison_page", "fit_line", "fit_page", "goal_rows"]
