"""Questions to the simulator: one point, a study over many, a break-even, and what calibration asks."""
