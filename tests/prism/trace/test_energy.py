"""Energy against closed forms: a ramp, constants, a sine; and every reason for having no figure."""

import math

import msgspec
import pytest
from hypothesis import given
from hypothesis import strategies as st

from prism.errors import ConfigError, TraceError
from prism.plan import ExecutionPlan, Mode
from prism.spec import PowerProfile, load_power_profile
from prism.trace import Batch, Idle, Meter, Power, Span, Trace, TraceHeader, TraceWriter, aligned_power, read_trace
from prism.trace.energy import Energy, measured_energy, modelled_energy
from prism.trace.metrics import summarise

S = 1_000_000_000
PROFILE = PowerProfile(
    name="board", covers="the module", idle_w=2, compute_w=10, copy_w=6, transmit_w=5, receive_w=4, wait_w=3
)


def trace(records, devices=1, power=None):
    header = TraceHeader(
        source="measured",
        created="2026-01-01T00:00:00Z",
        model="m",
        weights="random",
        plan=ExecutionPlan(mode=Mode.FULL, devices=devices),
        batch=1,
        tokens=8,
        link="loopback",
        seed=0,
        command="c",
        power=power,
    )
    return Trace(header=header, records=tuple(records))


def batch(number, start_s, end_s, **fields):
    return Batch(batch=number, size=1, start_ns=round(start_s * S), end_ns=round(end_s * S), **fields)


def batches(start_s, length_s, count, pause_s=0.0, first=0, **fields):
    step = length_s + pause_s
    return [batch(first + k, start_s + k * step, start_s + k * step + length_s, **fields) for k in range(count)]


def samples(watts, start_s, end_s, period_s=0.01, rank=0, rail="VDD_IN"):
    count = round((end_s - start_s) / period_s) + 1
    times = [start_s + k * period_s for k in range(count)]
    return [Power(rank=rank, rail=rail, at_ns=round(t * S), watts=watts(t)) for t in times]


def meter(rank=0, rails=("VDD_IN",), total="VDD_IN", **fields):
    return Meter(rank=rank, source="ina3221", rails=rails, total=total, **fields)


def figure(records, **fields):
    energy = measured_energy(trace(records, **fields))
    assert isinstance(energy, Energy), energy
    return energy


@given(slope=st.floats(-2, 2), start=st.floats(0.1, 1), length=st.floats(0.25, 0.6), phase=st.floats(0, 0.0099))
def test_a_ramp_is_exact_wherever_the_edges_fall_between_samples(slope, start, length, phase):
    run = batches(start, length, 8)
    power = samples(lambda t: 10 + slope * t, phase, 8)
    energy = figure([meter(), *run, *power])
    # rounding of the instants to nanoseconds is all that stands between the two
    whole = 10 * 8 * length + slope * ((start + 8 * length) ** 2 - start**2) / 2
    assert energy.joules == pytest.approx(whole / 8, rel=1e-6)
    assert energy.samples == pytest.approx(8 * length / 0.01, abs=1)
    assert energy.above_idle_j is None and energy.idle_w == {}
    assert not energy.modelled and energy.source == "ina3221"


def test_a_sine_sampled_finely_is_its_integral():
    energy = figure([meter(), *batches(0.5, 0.2, 10), *samples(lambda t: 8 + 3 * math.sin(20 * t), 0, 3, 0.002)])
    whole = 8 * 2 + 3 / 20 * (math.cos(20 * 0.5) - math.cos(20 * 2.5))
    assert energy.joules == pytest.approx(whole / 10, rel=1e-4)


def test_pauses_between_batches_are_not_counted():
    # 30 W are drawn in every pause of 0.1 s, 5 W in every batch of 0.3 s
    run = batches(1, 0.3, 6, pause_s=0.1)
    power = samples(lambda t: 30.0 if (t - 1) % 0.4 > 0.3 + 1e-9 else 5.0, 0, 4, 0.001)
    assert figure([meter(), *run, *power]).joules == pytest.approx(1.5, rel=0.02)


def test_fewer_than_a_hundred_samples_are_no_figure():
    power = samples(lambda t: 5.0, 0, 4)
    # the window is closed at its start and open at its end: 100 samples in 1 s, 99 in 0.99 s
    assert figure([meter(), *batches(1, 0.25, 4), *power]).samples == 100
    reason = measured_energy(trace([meter(), *batches(1, 0.2475, 4), *power]))
    assert reason == "ina3221 VDD_IN of rank 0 has 99 samples in 0.99 s without a pause, 100 are needed"


def test_a_long_pause_a_warmup_or_a_failure_ends_a_window():
    power = samples(lambda t: 5.0, 0, 9)
    halves = [*batches(1, 0.1, 6), *batches(3, 0.1, 6, first=6)]
    assert "60 samples in 0.6 s" in measured_energy(trace([meter(), *halves, *power]))
    for fields in ({"warmup": True}, {"failed": "lost"}):
        between = [*batches(1, 0.1, 6), batch(6, 1.6, 1.7, **fields), *batches(1.7, 0.1, 6, first=7)]
        assert "60 samples" in measured_energy(trace([meter(), *between, *power]))
    # two windows that are long enough are both used, a third that is too short is not
    power = samples(lambda t: 5.0 if t < 3.5 else 9.0, 0, 9)
    runs = [*batches(1, 0.25, 5), *batches(4, 0.25, 5, first=5), *batches(7, 0.25, 2, first=10)]
    energy = figure([meter(), *runs, *power])
    assert energy.joules == pytest.approx((5 * 1.25 + 9 * 1.25) / 10)
    assert energy.samples == 250


def test_warmups_alone_are_no_figure():
    records = [meter(), *batches(1, 0.5, 4, warmup=True), *samples(lambda t: 5.0, 0, 4)]
    assert "no complete measured batch" in measured_energy(trace(records))


def test_a_total_rail_stands_for_the_device_and_its_parts_are_not_added():
    rails = {"VDD_IN": 9.0, "VDD_CPU_GPU_CV": 5.0, "VDD_SOC": 2.0}
    power = [s for rail, w in rails.items() for s in samples(lambda t, w=w: w, 0, 3, rail=rail)]
    energy = figure([meter(rails=tuple(rails)), *batches(1, 0.5, 3), *power])
    assert energy.joules == pytest.approx(4.5)
    assert energy.per_rail_j == {0: pytest.approx({name: w / 2 for name, w in rails.items()})}
    without = figure([meter(rails=tuple(rails), total=""), *batches(1, 0.5, 3), *power])
    assert without.joules == pytest.approx(8.0)


def test_two_devices_add_up_and_idle_is_apart():
    records = [
        meter(0),
        meter(1),
        Idle(start_ns=1 * S, end_ns=3 * S),
        *batches(5, 0.5, 4),
        *samples(lambda t: 12.0 if t > 4.5 else 3.0, 0, 8),
        *samples(lambda t: 7.0 if t > 4.5 else 2.0, 0, 8, rank=1),
    ]
    energy = figure(records, devices=2)
    assert energy.per_device_j == pytest.approx({0: 6.0, 1: 3.5})
    assert energy.joules == pytest.approx(9.5)
    assert energy.idle_w == pytest.approx({0: 3.0, 1: 2.0})
    assert energy.above_idle_j == pytest.approx(9.5 - 2.5)


def test_idle_of_one_device_alone_gives_no_above_idle():
    records = [
        meter(0),
        meter(1),
        Idle(start_ns=1 * S, end_ns=3 * S),
        *batches(5, 0.5, 4),
        *samples(lambda t: 12.0, 0, 8),
        *samples(lambda t: 7.0, 4, 8, rank=1),
    ]
    energy = figure(records, devices=2)
    assert energy.idle_w == {0: pytest.approx(12)} and energy.above_idle_j is None


def test_a_device_that_waits_counts_and_one_without_a_meter_leaves_no_figure():
    both = [*batches(1, 0.5, 3), *samples(lambda t: 4.0, 0, 4), *samples(lambda t: 1.0, 0, 4, rank=1)]
    assert figure([meter(0), meter(1), *both], devices=1).joules == pytest.approx(2.5)
    assert "device of rank 1" in measured_energy(trace([meter(0), *both], devices=2))
    # two ranks on one machine share its one meter
    assert figure([meter(0, covers=(0, 1)), *both], devices=2).joules == pytest.approx(2.0)


def test_the_order_of_records_does_not_matter():
    ordered = samples(lambda t: 10 + t, 0, 4)
    run = batches(1, 0.5, 4)
    assert figure([*run, *ordered[::-1], meter()]) == figure([meter(), *run, *ordered])


def test_samples_of_another_clock_are_shifted_before_they_count():
    # rank 1's clock is 100 s ahead of the leader's
    theirs = samples(lambda t: 6.0 if 101 <= t <= 103 else 1.0, 100, 104, 0.001, rank=1)
    records = [meter(0), meter(1), *batches(1, 0.5, 4), *samples(lambda t: 2.0, 0, 4), *theirs]
    assert "rank 1 has 0 samples" in measured_energy(trace(records, devices=2))
    energy = figure(aligned_power(records, {1: 100 * S}), devices=2)
    assert energy.per_device_j == pytest.approx({0: 1.0, 1: 3.0}, rel=2e-3)


def test_a_meter_that_vanishes_midway_leaves_no_figure_but_its_reason():
    run = batches(1, 0.5, 8)
    gone = [meter(), *samples(lambda t: 5.0, 0, 3), meter(ended="no such device"), *run]
    reason = measured_energy(trace(gone))
    assert "no sample for 2 of 4 s" in reason and "no such device" in reason
    # a window that was whole before that still counts
    early = [*batches(0.5, 0.25, 5), *batches(4, 0.25, 5, first=5)]
    assert figure([meter(), *samples(lambda t: 5.0, 0, 3), *early]).joules == pytest.approx(1.25)


def test_a_hole_in_the_samples_is_not_drawn_through():
    power = [s for s in samples(lambda t: 5.0, 0, 6) if not 2 * S < s.at_ns < 2.5 * S]
    assert "no sample for 0.5 of 4 s, 10% may be missing" in measured_energy(
        trace([meter(), *batches(1, 0.5, 8), *power])
    )


def test_a_rail_without_samples_leaves_no_figure():
    records = [meter(rails=("VDD_IN", "VDD_SOC")), *batches(1, 0.5, 4), *samples(lambda t: 5.0, 0, 4)]
    assert "VDD_SOC of rank 0 has 0 samples" in measured_energy(trace(records))


# -- modelled -------------------------------------------------------------------------------------------

STATES = {"compute": 10.0, "stage_d2h": 6.0, "stage_h2d": 6.0, "wait": 3.0}


def span(kind, start_s, end_s, rank=0, number=0, **fields):
    return Span(
        batch=number,
        rank=rank,
        kind=kind,
        op="x",
        block=0,
        start_ns=round(start_s * S),
        end_ns=round(end_s * S),
        **fields,
    )


@given(
    st.lists(
        st.tuples(st.sampled_from([*STATES, "idle", "wire"]), st.integers(1, 500), st.integers(0, 9)),
        min_size=1,
        max_size=12,
    )
)
def test_modelled_energy_is_the_time_in_each_state_times_its_watts(states):
    now, spans, expected = 0, [], 0.0
    for kind, length, sent in states:
        seconds = length / 1000
        if kind == "wire":
            fields = {"sent_bytes": 100 * sent, "received_bytes": 100 * (9 - sent)}
            watts = PROFILE.transmit_w * sent / 9 + PROFILE.receive_w * (9 - sent) / 9
        else:
            fields, watts = {}, STATES.get(kind, PROFILE.idle_w)
        if kind != "idle":
            spans.append(span(kind, now / 1000, (now + length) / 1000, **fields))
        expected += seconds * watts
        now += length
    energy = modelled_energy(trace([*spans, batch(0, 0, now / 1000)]), PROFILE)
    assert energy.joules == pytest.approx(expected)
    assert energy.above_idle_j == pytest.approx(expected - PROFILE.idle_w * now / 1000)
    assert energy.modelled and energy.samples == 0 and energy.per_rail_j == {}


def test_modelled_ranks_add_up_over_measured_batches_and_a_late_worker_counts():
    records = [
        span("compute", 0, 1, number=0),
        batch(0, 0, 1, warmup=True),
        span("compute", 1, 2, number=1),
        span("wait", 1.5, 2.5, rank=1, number=1),
        batch(1, 1, 2),
        span("compute", 2, 4, number=2),
        span("wire", 2, 3, rank=1, number=2),
        batch(2, 2, 4),
    ]
    energy = modelled_energy(trace(records, devices=2), PROFILE)
    # rank 1: 0.5 s idle and 1 s waiting, then 1 s listening and 1 s idle
    assert energy.per_device_j == pytest.approx({0: (10 + 20) / 2, 1: (1 + 3 + 4 + 2) / 2})
    assert "board" in energy.source and "the module" in energy.source
    with pytest.raises(TraceError, match="no complete measured batch"):
        modelled_energy(trace(records[:2], devices=2), PROFILE)


def test_a_summary_prefers_measured_and_marks_modelled():
    run = [r for k in range(4) for r in (span("compute", 1 + k / 2, 1.5 + k / 2, number=k),)]
    run += batches(1, 0.5, 4)
    measured = [meter(), *samples(lambda t: 8.0, 0, 4), *run]
    summary = summarise(trace(measured, power=PROFILE))
    assert summary.energy_j == pytest.approx(4.0) and summary.energy_note == ""
    summary = summarise(trace(run, power=PROFILE))
    assert summary.energy is not None and summary.energy.modelled
    assert summary.energy.joules == pytest.approx(5.0)
    assert summary.energy_j is None  # what is modelled never passes as measured
    assert summary.energy_note == "modelled, not measured: no power meter was read"
    summary = summarise(trace(run))
    assert (summary.energy, summary.energy_note) == (None, "not measured: no power meter was read")


def test_a_profile_is_read_from_toml_and_travels_in_the_header(tmp_path):
    path = tmp_path / "board.toml"
    fields = msgspec.to_builtins(PROFILE)
    path.write_text("".join(f"{key} = {value!r}\n" for key, value in fields.items()))
    assert load_power_profile(path) == PROFILE
    for change, words in [
        (("idle_w", "idel_w"), "did you mean 'idle_w'"),
        (("= 10", "= -10"), "compute_w -10"),
        (("= 10", "= inf"), "compute_w inf"),
        (("= 10", "= nan"), "compute_w nan"),
        (("wait_w = 3\n", ""), "wait_w"),
    ]:
        path.write_text(
            "".join(f"{k} = {v!r}\n" for k, v in fields.items())
            .replace("3.0", "3")
            .replace("10.0", "10")
            .replace(*change)
        )
        with pytest.raises(ConfigError, match=words):
            load_power_profile(path)
    with open(tmp_path / "t.jsonl", "wb") as file:
        TraceWriter(file, trace([], power=PROFILE).header).write([meter(ended="gone"), Idle(start_ns=1, end_ns=2)])
    loaded = read_trace(tmp_path / "t.jsonl")
    assert loaded.header.power == PROFILE and loaded.records == (meter(ended="gone"), Idle(start_ns=1, end_ns=2))
