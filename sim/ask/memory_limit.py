"""Leave out the points whose plan needs more memory than a device has."""

from collections.abc import Iterable

from prism.cost import CalibratedProfile
from prism.errors import ConfigError, PlanError
from prism.units import parse_bytes
from prism.workload.memory import check_memory
from sim.ask.point import Point

REASONS = 3  # in one message


def memory_limit(text: str | None, profile: CalibratedProfile) -> float | None:
    """The bytes of each device: as given, else the profile's. Raises ConfigError."""
    return profile.memory_bytes if text is None else parse_bytes(text)


def that_fit(points: Iterable[Point], limit: float | None) -> tuple[list[Point], list[str]]:
    """Keep the points that fit, and say why others don't.

    Raises ConfigError where none does, PlanError for a plan that its model or batch can't have.
    """
    if limit is None:
        return list(points), []
    fitting, reasons = list[Point](), dict[str, None]()
    for point in points:
        point.plan.check(point.model, point.batch)
        try:
            check_memory(point.model, point.plan, point.batch, None, [limit] * point.plan.ranks)
            fitting.append(point)
        except PlanError as error:
            reasons[str(error)] = None
    if not fitting:
        raise ConfigError(f"no plan fits the memory of a device: {'; '.join(list(reasons)[:REASONS])}")
    return fitting, list(reasons)
