"""The runtime by itself: corrections, its log, and the peer that breaks group after group."""

import socket
import threading
import time
from pathlib import Path

import pytest
from support.serving import MODEL, images, map_file, serving, until

from hw.loading import fingerprint
from hw.recorder import SpanRecorder
from hw.serving.channel import Form, Hello, Refused, Welcome, answer
from hw.serving.members import FLAPS
from hw.serving.rendezvous import RelayStore
from hw.serving.runtime import RESIDUALS, AdaptiveRuntime
from prism.decisions import Answered, Corrected, Decided, read_decisions, replay
from prism.perfmap import load_map
from prism.policy import PrismPolicy
from prism.table import LOCAL, Objective, table_of
from prism.zoo import load_model


class Alone:
    using = threading.Lock()

    def group(self):
        return None

    def broken(self, epoch, why):
        raise AssertionError("there was no group")


@pytest.mark.parametrize("learn", [True, False])
def test_a_map_that_is_wrong_is_corrected_unless_told_not_to(tmp_path, learn):
    with serving(
        tmp_path, key_file="", policy=PrismPolicy(), learn=learn, decisions=str(tmp_path / "log")
    ) as service:
        for _ in range(RESIDUALS + 3):
            service.runtime.run({"x": images(1)})
        assert service.runtime.corrections == int(learn)
    log = read_decisions(tmp_path / "log")
    corrected = [entry for entry in log.entries if isinstance(entry, Corrected)]
    assert len(corrected) == int(learn)
    if learn:
        assert corrected[0].plan == LOCAL and corrected[0].factor < 0.9, "the map says 100 ms"
        decided = [entry for entry in log.entries if isinstance(entry, Decided)]
        assert decided[-1].expected_ms < decided[0].expected_ms == pytest.approx(100.0)
    assert sum(isinstance(entry, Answered) for entry in log.entries) == RESIDUALS + 3
    assert replay(log).identical


def test_alone_it_answers_and_stops(tmp_path):
    model, table = load_model(MODEL).model, table_of([load_map(Path(map_file(tmp_path)))], MODEL)
    with AdaptiveRuntime(model, Alone(), SpanRecorder(0), table, PrismPolicy(), Objective()) as runtime:
        served = runtime.run({"x": images(2)})
    assert served.ran == LOCAL and not served.failed and served.decision.why == "the first decision"


def test_a_peer_that_breaks_every_group_is_kept_waiting(tmp_path):
    with serving(tmp_path) as service:
        key = (tmp_path / "key").read_bytes()
        hello = Hello(name="flaky", model=MODEL, fingerprint=fingerprint(service.model))

        def join():
            with socket.create_connection(("127.0.0.1", service.members.port)) as sock:
                channel = answer(sock, key)
                channel.send(hello)
                reply = channel.receive(2)
                while isinstance(reply, Welcome) and not isinstance(channel.receive(5), Form):
                    pass
                return reply

        def broken() -> int:
            return sum("could not be formed" in text for _, text in service.members.history)

        for count in range(1, FLAPS + 2):  # the last of them after its wait
            reply = join()
            while isinstance(reply, Refused):
                assert count == FLAPS + 1 and 0 < reply.retry_s <= 1
                time.sleep(reply.retry_s)
                reply = join()
            assert isinstance(reply, Welcome)
            assert until(lambda n=count: broken() >= n, 10)
        refused = join()
        assert isinstance(refused, Refused) and 1 < refused.retry_s <= 2, "twice as long each time"


def test_a_store_gives_up_when_a_member_is_gone():
    store = RelayStore(lambda key, value: None, 30.0)
    threading.Timer(0.1, store.give_up).start()
    with pytest.raises(RuntimeError, match="did not come"):
        store.get("absent")
    with pytest.raises(RuntimeError, match="did not come"):
        RelayStore(lambda key, value: None, 0.05).wait(["absent"])
