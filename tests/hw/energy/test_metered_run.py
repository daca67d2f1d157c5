"""A whole run of two devices beside their power sensors: the fakes are the sensors' files, all else is real."""

import msgspec
import pytest

from hw.run.config import RunConfig
from hw.run.launch import Site
from hw.run.messages import RunStep
from hw.run.processes import Ranks
from prism.trace import Meter, Power, read_trace


def sensor(root, milliamperes):
    """An INA3221 of an Orin Nano at 5 V; VDD_IN is the device, the others are parts of it."""
    chip = root / "hwmon0"
    chip.mkdir(parents=True)
    (chip / "name").write_text("ina3221\n")
    for channel, (label, share) in enumerate({"VDD_IN": 1.0, "VDD_CPU_GPU_CV": 0.5, "VDD_SOC": 0.25}.items(), 1):
        (chip / f"in{channel}_label").write_text(f"{label}\n")
        (chip / f"in{channel}_input").write_text("5000\n")
        (chip / f"curr{channel}_input").write_text(f"{milliamperes * share:.0f}\n")
    return str(root)


def metered(tmp_path, config, roots):
    """Run with a sensor of its own for each rank that has one in `roots`."""
    trace = tmp_path / "t.jsonl"
    config = msgspec.structs.replace(config, trace=str(trace))
    with Site(config.link_spec(), 2, config) as site:
        jobs = [
            msgspec.structs.replace(
                job, meter_covers=(job.rank,) if job.rank in roots else (), hwmon=roots.get(job.rank, "/none")
            )
            for job in site.jobs("test")
        ]
        with Ranks(jobs, site.folder) as ranks:
            return ranks.perform(RunStep(config=config), lambda _: None), read_trace(trace)


CONFIG = RunConfig(batch=10, batches=2, warmups=1, link="shaper:100Mbps")


def test_joules_of_both_devices_waiting_included(tmp_path):
    roots = {0: sensor(tmp_path / "a", 1200), 1: sensor(tmp_path / "b", 800)}
    outcome, trace = metered(tmp_path, CONFIG, roots)
    seconds = sum(batch.end_ns - batch.start_ns for batch in trace.measured) / len(trace.measured) / 1e9
    energy = outcome.energy
    assert energy is not None, outcome.energy_note
    assert energy.samples >= 100 and len(trace.measured) > 2  # it went on until the window was long enough
    assert energy.per_device_j == pytest.approx({0: 6.0 * seconds, 1: 4.0 * seconds}, rel=1e-6)
    assert outcome.energy_j == pytest.approx(10.0 * seconds, rel=1e-6)
    assert energy.idle_w == pytest.approx({0: 6.0, 1: 4.0})
    assert energy.above_idle_j == pytest.approx(0.0, abs=1e-6)
    assert not energy.modelled and outcome.agreement == 1
    assert {record.rank for record in trace.records if isinstance(record, Meter)} == {0, 1}
    assert {record.rail for record in trace.records if isinstance(record, Power)} == {
        "VDD_IN",
        "VDD_CPU_GPU_CV",
        "VDD_SOC",
    }


def test_one_device_without_a_meter_leaves_no_figure(tmp_path):
    outcome, _ = metered(tmp_path, CONFIG, {0: sensor(tmp_path / "a", 1200)})
    assert outcome.energy is None and outcome.energy_j is None
    assert "not measured" in outcome.energy_note and "rank 1" in outcome.energy_note


def test_a_declared_profile_is_marked_modelled(tmp_path):
    profile = tmp_path / "power.toml"
    states = ("idle", "compute", "copy", "transmit", "receive", "wait")
    profile.write_text('name = "two watts"\ncovers = "test"\n' + "".join(f"{state}_w = 2.0\n" for state in states))
    outcome, trace = metered(tmp_path, msgspec.structs.replace(CONFIG, power=str(profile)), {})
    seconds = sum(batch.end_ns - batch.start_ns for batch in trace.measured) / len(trace.measured) / 1e9
    assert outcome.energy is not None and outcome.energy.modelled
    # what a follower still does when the leader has its answer counts too
    ends = {batch.batch: batch.end_ns for batch in trace.measured}
    late = sum(s.end_ns - max(s.start_ns, ends[s.batch]) for s in trace.spans if s.end_ns > ends.get(s.batch, s.end_ns))
    after = late / len(ends) / 1e9
    assert outcome.energy.joules == pytest.approx(2.0 * (2 * seconds + after), rel=0.01)
    assert outcome.energy_j is None
