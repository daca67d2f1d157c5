"""The performance map: measured or predicted cells, and where the better plan changes."""

from prism.perfmap.build import build_map
from prism.perfmap.map import VERSION, Case, Cell, PerformanceMap, Provenance, canonical_plan, load_map, workloads

__all__ = [
    "VERSION",
    "Case",
    "Cell",
    "PerformanceMap",
    "Provenance",
    "build_map",
    "canonical_plan",
    "load_map",
    "workloads",
]
