"""The runtime by itself: corrections, its log, and the peer that breaks group after group."""

import socket
import threading
import time
from pathlib import Path

import msgspec
import pytest
from support.answers import accuracy_table
from support.serving import FULL, MODEL, Member, images, map_file, serving
from support.waiting import until

from hw.comm.group import process_group
from hw.comm.rendezvous import RelayStore
from hw.serving.backoff import FAILURES
from hw.serving.channel import respond
from hw.serving.device import load_served
from hw.serving.messages import Form, Hello, Refused, Welcome
from hw.serving.runtime import PROBE_BYTES, AdaptiveRuntime, Strategy
from prism.decide.corrections import RESIDUALS
from prism.decide.log import Answered, Corrected, Decided, read_decisions
from prism.decide.policy import PrismPolicy
from prism.decide.replay import replay
from prism.decide.table import Objective, Observation, table_of
from prism.errors import ConfigError, ExchangeError
from prism.perfmap import load_map
from prism.plan import LOCAL


class Alone:
    using = threading.Lock()

    def group(self):
        return None

    def broken(self, epoch, why):
        raise AssertionError("there was no group")


def known_table(folder):
    return table_of([load_map(Path(map_file(folder)))], MODEL)


def lone_runtime(folder) -> AdaptiveRuntime:
    return AdaptiveRuntime(load_served(MODEL, None, 0, 1), Alone(), Strategy(known_table(folder), PrismPolicy()))


@pytest.mark.parametrize("learn", [True, False])
def test_a_map_that_is_wrong_is_corrected_unless_told_not_to(tmp_path, learn):
    with serving(tmp_path, key_file="", policy=PrismPolicy(), learn=learn, decisions=str(tmp_path / "log")) as service:
        for _ in range(RESIDUALS + 3):
            service.runtime.run({"x": images(1)})
        assert service.runtime.corrections == int(learn)
    log = read_decisions(tmp_path / "log")
    corrected = [entry for entry in log.entries if isinstance(entry, Corrected)]
    assert len(corrected) == int(learn)
    if learn:
        assert corrected[0].place.plan == LOCAL and corrected[0].factor < 0.9, "the map says 100 ms"
        decided = [entry for entry in log.entries if isinstance(entry, Decided)]
        assert decided[-1].expected_ms < decided[0].expected_ms == pytest.approx(100.0)
    assert sum(isinstance(entry, Answered) for entry in log.entries) == RESIDUALS + 3
    assert replay(log).identical


def test_a_link_that_changed_is_no_wrong_cell(tmp_path):
    """A batch that took as long as the map says for the rate that it met corrects nothing, whatever was estimated."""
    runtime = lone_runtime(tmp_path)
    believed = Observation(batch=1, devices=2, bandwidth_bps=1e9, at_s=0.0)
    met = known_table(tmp_path).at(msgspec.structs.replace(believed, bandwidth_bps=20e6), Objective()).of(FULL)
    runtime._learn_rate(FULL, 1, 1000 / 20)
    for _ in range(3 * RESIDUALS):
        runtime._compare(believed, FULL, met.ms, 0.0)
    assert runtime.corrections == 0
    for _ in range(RESIDUALS):
        runtime._compare(believed, FULL, 1.3 * met.ms, 0.0)
    assert runtime.corrections == 1


def test_beyond_the_map_nothing_is_corrected(tmp_path):
    """There a line goes on from the last cells: one cell's factor would come back many times as large, and diverge."""
    runtime = lone_runtime(tmp_path)
    for _ in range(5 * RESIDUALS):
        runtime._compare(Observation(batch=64, devices=1, bandwidth_bps=None, at_s=0.0), LOCAL, 20_000.0, 0.0)
    assert runtime.corrections == 0
    for _ in range(RESIDUALS):
        runtime._compare(Observation(batch=8, devices=1, bandwidth_bps=None, at_s=0.0), LOCAL, 1600.0, 0.0)
    assert runtime.corrections == 1


def test_floors_that_nothing_known_can_keep_are_refused(tmp_path):
    with (
        pytest.raises(ConfigError, match="pass --accuracy"),
        serving(tmp_path, objective=Objective(least_accuracy=0.5)),
    ):
        raise AssertionError("served")
    other = tmp_path / "accuracy.json"
    accuracy_table(MODEL, {LOCAL: (0.9, 1.0)}).save(other)
    with pytest.raises(ConfigError, match="of weights"), serving(tmp_path, accuracy=str(other)):
        raise AssertionError("served")


def test_a_slow_first_round_trip_makes_no_fast_link(tmp_path):
    """23 ms for nothing, then 20 ms for a probe: at most the rate that half of them allow."""
    runtime = lone_runtime(tmp_path)
    runtime._round_trips.append(23e-3)
    runtime._probed(20e-3)
    assert runtime.estimate.rate_bps == pytest.approx(2 * 8 * PROBE_BYTES / 10e-3)
    runtime._round_trips.append(2e-3)
    runtime._probed(20e-3)
    assert runtime.estimate.rate_bps < 0.9 * 2 * 8 * PROBE_BYTES / 10e-3


def test_alone_it_answers_and_stops(tmp_path):
    with lone_runtime(tmp_path) as runtime:
        served = runtime.run({"x": images(2)})
    assert served.ran == LOCAL and not served.failed and served.decision.why == "the first decision"


def test_a_peer_that_breaks_every_group_is_kept_waiting(tmp_path, caplog):
    caplog.set_level("INFO", "hw.serving")
    with serving(tmp_path) as service:
        key = (tmp_path / "key").read_bytes()
        hello = Hello(name="flaky", model=MODEL, fingerprint=service.served.fingerprint)

        def join():
            with socket.create_connection(("127.0.0.1", service.leader.port)) as sock:
                channel = respond(sock, key)
                channel.send(hello)
                reply = channel.receive(2)
                while isinstance(reply, Welcome) and not isinstance(channel.receive(5), Form):
                    pass
                return reply

        def broken() -> int:
            return sum("could not be formed" in record.getMessage() for record in list(caplog.records))

        for count in range(1, FAILURES + 2):  # the last of them after its wait
            reply = join()
            while isinstance(reply, Refused):
                assert count == FAILURES + 1 and 0 < reply.retry_s <= 1
                time.sleep(reply.retry_s)
                reply = join()
            assert isinstance(reply, Welcome)
            assert until(lambda n=count: broken() >= n)
        refused = join()
        assert isinstance(refused, Refused) and 1 < refused.retry_s <= 2, "twice as long each time"


def test_a_group_forms_after_tries_that_failed_on_one_side_alone(tmp_path):
    """Both sides meet under a number that torch counts, and a failed try counts."""

    def fails():
        with (
            pytest.raises(ExchangeError, match="did not come"),
            process_group(RelayStore(lambda key, value: None, 0.05), 0, 2, interface="lo", timeout_s=1.0),
        ):
            raise AssertionError("nobody else was there")

    for _ in range(2):
        fails()
    with serving(tmp_path) as service, Member(service.leader.port, tmp_path):
        assert service.leader.wait(60)


def test_a_store_gives_up_when_a_member_is_gone():
    store = RelayStore(lambda key, value: None, 30.0)
    threading.Timer(0.1, store.give_up).start()
    with pytest.raises(RuntimeError, match="did not come"):
        store.get("absent")
    with pytest.raises(RuntimeError, match="did not come"):
        RelayStore(lambda key, value: None, 0.05).wait(["absent"])
