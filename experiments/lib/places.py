"""Locate what studies share: committed results, the published tables, and the command prism-hw."""

import sys
from pathlib import Path

EXPERIMENTS = Path(__file__).parents[1]
RESULTS = EXPERIMENTS / "results"
PRISM_HW = str(Path(sys.executable).with_name("prism-hw"))  # of the same environment
PUBLISHED = Path(__file__).parent / "published"
