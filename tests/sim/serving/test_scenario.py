"""Queues against theory, and what faults do to a served stream."""

import numpy as np
import pytest
import simpy
from support.profiles import SMALL, profile

from prism.backend import Workload
from prism.decide.policy import Decision, FixedPolicy
from prism.errors import ConfigError
from prism.link import LinkSpec
from prism.plan import LOCAL, ExecutionPlan, Mode
from prism.trace.metrics import summarise
from sim.engine.backend import SimBackend, identical
from sim.serving.fleet import Fault
from sim.serving.requests import Arrivals, Batching, Queue, arrive, parse_arrivals, serve_queue
from sim.serving.scenario import PredictingPolicy, Scenario, simulate_serving

FULL3 = ExecutionPlan(mode=Mode.FULL, devices=3)
MACHINES = identical(profile(), profile().model(), 3, LinkSpec(kind="shaper", rate_bps=300e6))


def poisson(rate: float, requests: int) -> Arrivals:
    return Arrivals(pattern="poisson", requests=requests, rate_per_s=rate)


def seconds(plan: ExecutionPlan, batch: int = 1) -> float:
    trace = SimBackend(MACHINES).run(plan, Workload(model=SMALL, batch=batch))
    return summarise(trace).latency_ms.p50 / 1e3


def mean_wait_s(arrivals: Arrivals, service_s, seed: int) -> float:
    env = simpy.Environment()
    queue = Queue(env)
    rng = np.random.default_rng(seed)

    def run(batch):
        yield env.timeout(int(service_s(rng) * 1e9))
        return ""

    env.process(arrive(env, queue, arrivals, seed))
    env.run(until=env.process(serve_queue(env, queue, arrivals, Batching(), run)))
    return float(np.mean([request.started_ns - request.arrived_ns for request in queue.all])) / 1e9


@pytest.mark.parametrize(("share", "requests"), [(0.3, 40_000), (0.6, 60_000), (0.8, 120_000)])
def test_exponential_service_waits_as_m_m_1(share, requests):
    mean = 0.01
    waits = [mean_wait_s(poisson(share / mean, requests), lambda rng: rng.exponential(mean), s) for s in (1, 2)]
    assert np.mean(waits) == pytest.approx(share / (1 - share) * mean, rel=0.08)


@pytest.mark.parametrize("share", [0.4, 0.7])
def test_one_device_waits_as_m_d_1(share):
    service = seconds(LOCAL)
    found = simulate_serving(
        MACHINES, Scenario(model=SMALL, arrivals=poisson(share / service, 6000)), FixedPolicy(LOCAL)
    )
    theory = share / (2 * (1 - share)) * service
    assert found.waiting_ms["mean"] / 1e3 == pytest.approx(theory, rel=0.12)
    # Little's law ties the queue's length to the wait
    assert found.queue_mean == pytest.approx(found.throughput_per_s * found.waiting_ms["mean"] / 1e3, rel=0.01)


def test_overload_grows_a_queue_and_batching_serves_it():
    service = seconds(LOCAL)
    backlogs = [
        simulate_serving(
            MACHINES, Scenario(model=SMALL, arrivals=poisson(1.5 / service, n)), FixedPolicy(LOCAL)
        ).backlog
        for n in (300, 600, 1200)
    ]
    assert backlogs[0] * 1.6 < backlogs[1] and backlogs[1] * 1.6 < backlogs[2]
    assert backlogs[2] == pytest.approx(1200 / 3, rel=0.25)
    batched = Scenario(model=SMALL, arrivals=poisson(1.5 / service, 1200), batching=Batching(largest=16))
    assert simulate_serving(MACHINES, batched, FixedPolicy(LOCAL)).backlog < 20


def test_the_patterns_of_mlperf():
    service = seconds(LOCAL)
    single = Scenario(model=SMALL, arrivals=Arrivals(pattern="single-stream", requests=20))
    assert simulate_serving(MACHINES, single, FixedPolicy(LOCAL)).latency_ms["p99"] == pytest.approx(
        1e3 * service, rel=1e-3
    )
    multi = Scenario(model=SMALL, arrivals=Arrivals(pattern="multi-stream", requests=20, samples=4))
    found = simulate_serving(MACHINES, multi, FixedPolicy(LOCAL))
    assert (found.requests, found.batches) == (80, 20)
    assert found.latency_ms["p50"] == pytest.approx(1e3 * seconds(LOCAL, 4), rel=1e-3)
    offline = Scenario(model=SMALL, arrivals=Arrivals(pattern="offline", requests=64), batching=Batching(largest=16))
    assert simulate_serving(MACHINES, offline, FixedPolicy(LOCAL)).seconds == pytest.approx(
        4 * seconds(LOCAL, 16), rel=1e-3
    )


def test_a_batch_waits_for_others_as_long_as_its_first_has_patience():
    times = Arrivals(pattern="trace", requests=3, times_s=(0.0, 0.05, 5.0))
    served = Scenario(model=SMALL, arrivals=times, batching=Batching(largest=2, patience_s=0.2))
    found = simulate_serving(MACHINES, served, FixedPolicy(LOCAL))
    assert found.batches == 2
    assert found.waiting_ms["max"] == pytest.approx(50, abs=0.1)


def test_the_same_seed_serves_the_same():
    served = Scenario(model=SMALL, arrivals=poisson(50, 200), seed=3)
    assert simulate_serving(MACHINES, served, FixedPolicy(FULL3)) == simulate_serving(
        MACHINES, served, FixedPolicy(FULL3)
    )


@pytest.mark.parametrize("silent", [False, True])
def test_a_lost_device_fails_one_batch_and_the_rest_go_on_without_it(silent):
    fault = Fault(kind="device", device=1, at_s=0.5, silent=silent)
    served = Scenario(
        model=SMALL, arrivals=Arrivals(pattern="single-stream", requests=200), faults=(fault,), timeout_s=2.0
    )
    two = ExecutionPlan(mode=Mode.FULL, devices=2)

    class Widest:
        def decide(self, observation, table, objective, state):
            return Decision(plan={3: FULL3, 2: two, 1: LOCAL}[observation.devices], why="widest")

    found = simulate_serving(MACHINES, served, Widest())
    assert found.requests == 200 and set(found.modes) == {"full"}
    assert len(found.failures) == 1 and "device 1 was lost" in found.failures[0]
    stall = found.latency_ms["max"] / 1e3
    assert (2.0 < stall < 2.5) if silent else (0.03 < stall < 0.3)


def test_an_outage_shorter_than_the_timeout_only_stalls_and_a_longer_one_sends_the_policy_home():
    def served(until: float):
        fault = Fault(kind="link", at_s=0.5, until_s=until)
        scenario = Scenario(
            model=SMALL, arrivals=Arrivals(pattern="single-stream", requests=400), faults=(fault,), timeout_s=1.0
        )
        return simulate_serving(MACHINES, scenario, FixedPolicy(FULL3))

    short, long = served(1.2), served(4.0)
    assert not short.failures and short.latency_ms["max"] == pytest.approx(700, rel=0.2)
    assert long.failures == (long.failures[0],) and "link was out" in long.failures[0]
    assert set(long.modes) == {"full", "local"}


def test_the_policy_in_the_loop_takes_what_the_simulator_says_is_faster():
    slow = identical(profile(), profile().model(), 3, LinkSpec(kind="shaper", rate_bps=1e6))
    served = Scenario(model=SMALL, arrivals=Arrivals(pattern="single-stream", requests=5))
    assert simulate_serving(slow, served, PredictingPolicy(slow, SMALL, [FULL3])).modes == {"local": 5}


def test_joules_count_idle_devices():
    served = Scenario(model=SMALL, arrivals=Arrivals(pattern="trace", requests=2, times_s=(0.0, 10.0)))
    found = simulate_serving(MACHINES, served, FixedPolicy(LOCAL))
    busy = 2 * seconds(LOCAL)
    assert found.joules_per_sample * 2 == pytest.approx(busy * 7.0 + (3 * found.seconds - busy) * 1.0, rel=1e-3)


@pytest.mark.parametrize(
    "text", ["poisson", "poisson:-1", "poisson:x", "steady:4", "single-stream:3", "trace:none.csv"]
)
def test_arrivals_that_can_not_be_are_one_line(text):
    with pytest.raises(ConfigError):
        parse_arrivals(text, 10)


def test_a_fault_of_the_terminal_is_refused():
    served = Scenario(model=SMALL, arrivals=poisson(1, 1), faults=(Fault(kind="device", device=0, at_s=1),))
    with pytest.raises(ConfigError, match="0 is the leader"):
        simulate_serving(MACHINES, served, FixedPolicy(LOCAL))
