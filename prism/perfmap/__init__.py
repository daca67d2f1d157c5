"""The performance map: measured or predicted cells, and where the better plan changes."""

from prism.perfmap.map import *  # noqa: F403
