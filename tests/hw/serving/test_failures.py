"""Members that die, freeze, come late or are strangers: every batch is answered, and answered right."""

import os
import random
import signal
import socket
import time

import pytest
import torch
from support.serving import FULL, Member, images, key_file, local_answer, serving
from support.waiting import until

from hw.serving.channel import FOLLOWER, LEADER, Channel, ChannelError
from hw.serving.messages import Ping
from prism.plan import LOCAL

TIMEOUT_S = 1.0
SOON_S = 60.0  # a hang is forever; how soon is measured by experiments/faults


@pytest.fixture
def pair(tmp_path):
    with serving(tmp_path, timeout_s=TIMEOUT_S) as service, Member(service.leader.port, tmp_path) as member:
        assert service.leader.wait(60)
        yield service, member


def ask(service, x):
    started = time.monotonic()
    served = service.runtime.run({"x": x})
    torch.testing.assert_close(served.output, local_answer(service, x), rtol=1e-4, atol=1e-4)
    return served, time.monotonic() - started


def test_a_batch_runs_on_both_devices(pair):
    service, _ = pair
    served, _ = ask(service, images(3))
    assert served.ran == FULL and not served.failed
    assert service.runtime.served == {"full": 1}


def test_a_killed_member_costs_no_answer_and_a_new_one_is_taken_in(pair, caplog):
    caplog.set_level("INFO", "hw.serving")
    service, member = pair
    x = images(2)
    ask(service, x)
    member.process.kill()
    for _ in range(5):
        _, seconds = ask(service, x)
        assert seconds < TIMEOUT_S + SOON_S
    assert until(lambda: service.leader.group() is None)
    member.start()
    assert service.leader.wait(60)
    served, _ = ask(service, x)
    assert served.ran == FULL
    for event in ("plan changed to 2 parts, full", "kitchen was lost", "kitchen joined", "formed with kitchen"):
        assert event in caplog.text


def test_a_frozen_member_is_noticed_and_comes_back_quickly(pair):
    service, member = pair
    x = images(2)
    ask(service, x)
    member.process.send_signal(signal.SIGSTOP)
    served, seconds = ask(service, x)
    assert served.ran == LOCAL and served.failed and seconds < TIMEOUT_S + SOON_S
    assert until(lambda: service.leader.group() is None)
    time.sleep(1.5)
    member.process.send_signal(signal.SIGCONT)
    assert service.leader.wait(SOON_S)
    assert ask(service, x)[0].ran == FULL


def test_an_idle_death_is_found_without_a_batch(pair):
    service, member = pair
    member.process.send_signal(signal.SIGSTOP)
    assert until(lambda: service.leader.group() is None)
    member.process.send_signal(signal.SIGCONT)


def test_a_late_joiner_is_taken_in_between_batches(tmp_path):
    with serving(tmp_path, timeout_s=TIMEOUT_S, devices=3) as service, Member(service.leader.port, tmp_path):
        assert service.leader.wait(60)
        first = service.leader.group().epoch
        with Member(service.leader.port, tmp_path, "garden"):
            assert service.leader.wait(60, devices=3)
            assert service.leader.group().epoch > first
        assert until(lambda: (g := service.leader.group()) is not None and g.devices == 2)
        assert ask(service, images(2))[0].ran == FULL


def test_a_member_that_takes_part_in_no_batch_is_kept_alive_under_load(tmp_path):
    with (
        serving(tmp_path, timeout_s=TIMEOUT_S, devices=3) as service,
        Member(service.leader.port, tmp_path),
        Member(service.leader.port, tmp_path, "garden"),
    ):
        assert service.leader.wait(60, devices=3)
        service.runtime.__exit__()  # the ticker, which would do it between batches
        epoch, until_s, x = service.leader.group().epoch, time.monotonic() + 3 * TIMEOUT_S, images(1)
        while time.monotonic() < until_s:
            served = service.runtime.run({"x": x})
            assert served.ran == FULL and not served.failed, "by two of the three devices"
        assert service.leader.group().epoch == epoch


def test_members_join_a_leader_that_was_started_anew(tmp_path):
    with serving(tmp_path, timeout_s=TIMEOUT_S) as service:
        port = service.leader.port
        member = Member(port, tmp_path)
        assert service.leader.wait(60)
    with member, serving(tmp_path, timeout_s=TIMEOUT_S, join_port=port) as service:
        assert service.leader.wait(30)
        assert member.process.poll() is None
        assert ask(service, images(2))[0].ran == FULL


def test_other_weights_are_refused_with_both_hashes(tmp_path):
    with serving(tmp_path) as service:
        member = Member(service.leader.port, tmp_path, "kitchen", None, "--weights", "random")
        said, _ = member.process.communicate(timeout=60)
        assert member.process.returncode == 2 and "copy the leader's model there" in said
        assert service.leader.group() is None


def test_a_stranger_with_another_key_does_not_join(tmp_path):
    (tmp_path / "other").mkdir()
    other = key_file(tmp_path / "other", "another key of some length")
    with serving(tmp_path) as service, Member(service.leader.port, tmp_path, "stranger", other):
        assert until(lambda: service.leader.refusals > 0)
        assert service.leader.group() is None


def test_garbage_neither_stops_nor_fills_the_leader(pair):
    service, _ = pair
    rng = random.Random(0)
    resident = _resident()
    for k in range(3000):
        with socket.create_connection(("127.0.0.1", service.leader.port), timeout=5) as sock:
            raw = rng.randbytes(rng.randint(0, 400))
            try:
                sock.sendall((b"\xff\xff" if k % 3 == 0 else b"") + raw)
                if k % 5 == 0:
                    sock.shutdown(socket.SHUT_WR)
                    sock.settimeout(5)
                    while sock.recv(4096):
                        pass
            except OSError:
                pass  # it hung up on us, which is its right
    assert ask(service, images(2))[0].ran == FULL
    assert _resident() - resident < 50 << 20


def test_a_message_cannot_be_replayed(tmp_path):
    """What a member said on one connection means nothing on another, and no second time on its own."""
    a, b = socket.socketpair()
    one, two = Channel(a, b"k" * 32, LEADER, FOLLOWER), Channel(b, b"k" * 32, FOLLOWER, LEADER)
    two.send(Ping())
    raw = a.recv(4096)
    b.sendall(raw + raw)
    assert isinstance(one.receive(1), Ping)
    with pytest.raises(ChannelError, match="proof is wrong"):
        one.receive(1)


def _resident() -> int:
    with open("/proc/self/statm") as file:
        return int(file.read().split()[1]) * os.sysconf("SC_PAGE_SIZE")
