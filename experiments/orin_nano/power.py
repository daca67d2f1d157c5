"""Fit the power of each state of a board to the published joules."""

import numpy as np
from numpy.typing import NDArray
from scipy.optimize import least_squares

from experiments.orin_nano.tables import MODEL, NOMINAL_BPS, EnergyRow, Row
from prism.backend import Workload
from prism.cost import CalibratedProfile
from prism.link import LinkSpec
from prism.spec import PowerProfile
from prism.trace.energy import modelled_energy
from sim.engine.backend import SimBackend, identical

RAIL = (
    "assumed: the CPU and GPU rail of every board that takes part, so one in local mode and two otherwise; "
    "the source states neither rail nor boards"
)
STATES = ("idle_w", "compute_w", "copy_w", "transmit_w", "receive_w", "wait_w")
WATTS = {"idle_w": 0.8, "compute_w": 6.0, "copy_w": 2.0, "transmit_w": 1.5, "receive_w": 1.5, "wait_w": 0.8}
WATTS_WIDTH = 0.7  # a factor of two either way


def seconds_in_states(profile: CalibratedProfile, row: Row) -> NDArray[np.float64]:
    """Sum the seconds that all boards spend in each state, [6]: the joules of a profile with one watt there and none
    elsewhere."""
    backend = SimBackend(
        identical(profile, profile.model(), row.plan.ranks, LinkSpec(kind="testbed", rate_bps=NOMINAL_BPS))
    )
    trace = backend.run(row.plan, Workload(model=MODEL, batch=row.batch, warmups=1))
    return np.array([modelled_energy(trace, _watts({state: 1.0})).joules for state in STATES])


def _watts(values: dict[str, float]) -> PowerProfile:
    return PowerProfile(name="orin-nano", covers=RAIL, **{state: values.get(state, 0.0) for state in STATES})


def fit_power(profile: CalibratedProfile, rows: list[EnergyRow]) -> PowerProfile:
    """Fit the watts of each state by robust relative errors and the priors WATTS."""
    seconds = np.array([seconds_in_states(profile, energy.row) for energy in rows])
    joules = np.array([energy.joules for energy in rows])
    start = np.log([WATTS[state] for state in STATES])

    def misfit(logs: NDArray[np.float64]) -> NDArray[np.float64]:
        errors = np.log(seconds @ np.exp(logs) / joules) / 0.1
        soft = np.sign(errors) * np.sqrt(2 * (np.sqrt(1 + errors**2) - 1))
        return np.concatenate([soft, (logs - start) / WATTS_WIDTH])

    found = least_squares(misfit, start)
    return _watts(dict(zip(STATES, map(float, np.exp(found.x)), strict=True)))
