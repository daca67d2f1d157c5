"""A table of fitted parameters, by name: value, bounds, source and standard error, with their covariance."""

import math
from collections.abc import Iterable, Mapping, Sequence

import msgspec
import numpy as np
from numpy.typing import NDArray

from prism.cost import Term

Array = NDArray[np.float64]


class Parameter(msgspec.Struct, frozen=True, kw_only=True):
    """One term of the cost model as it came out of a fit.

    source: what it was fitted to. bounds: within which it was looked for. fitted: whether data decided it at all.
    """

    name: str
    value: float
    source: str
    bounds: tuple[float, float] = (0.0, math.inf)
    fitted: bool = True

    def term(self) -> Term:
        """Make the profile's term. A value of 0 at the lower bound says that the data didn't need the term."""
        needed = self.fitted and self.value > self.bounds[0]
        return Term(name=self.name, value=self.value, origin="fitted" if needed else "prior", source=self.source)


class Parameters:
    """Parameters in the order of a profile's terms, with the covariance of the logarithms of their values."""

    def __init__(self, parameters: Iterable[Parameter]) -> None:
        self._by_name = {parameter.name: parameter for parameter in parameters}
        self._place = {name: place for place, name in enumerate(self._by_name)}
        self._covariance = np.zeros((len(self._place), len(self._place)))

    def correlate(self, names: Sequence[str], covariance: Array) -> None:
        """Set the covariance of some parameters among each other, [names, names]."""
        places = [self._place[name] for name in names]
        self._covariance[np.ix_(places, places)] = covariance

    def set_values(self, values: Mapping[str, float]) -> None:
        """Replace the values of some parameters."""
        for name, value in values.items():
            self._by_name[name] = msgspec.structs.replace(self._by_name[name], value=value)

    def standard_error(self, name: str) -> float:
        """Of the logarithm of a parameter's value."""
        return float(np.sqrt(self._covariance[self._place[name], self._place[name]]))

    def terms(self) -> tuple[Term, ...]:
        """Make the profile's terms."""
        return tuple(parameter.term() for parameter in self._by_name.values())

    def covariance(self) -> tuple[tuple[float, ...], ...]:
        """The whole covariance, in the order of the terms."""
        return tuple(tuple(map(float, row)) for row in self._covariance)
