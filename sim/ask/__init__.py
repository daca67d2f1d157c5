"""Ask the simulator: one point, a study over many, a break-even, and the cells of a calibration."""
