"""Meters on fake sysfs trees of real files, the jtop client against a real socket, and the sampling thread."""

import subprocess
import sys
import tempfile
import threading
import time
from pathlib import Path

import pytest
from hypothesis import given
from hypothesis import strategies as st

from hw.energy.ina3221 import Ina3221
from hw.energy.jtop import Jtop
from hw.energy.meter import SENSORS, find_meter
from hw.energy.rapl import Rapl
from hw.energy.sampler import PowerSampler
from hw.machine.doctor import _sensors
from prism.errors import ConfigError
from prism.plan import ExecutionPlan, Mode
from prism.trace import Batch, Meter, Power, Trace, TraceHeader
from prism.trace.energy import Energy, measured_energy

ORIN_NANO = {1: ("VDD_IN", 5064, 1000), 2: ("VDD_CPU_GPU_CV", 5048, 240), 3: ("VDD_SOC", 5056, 288)}


def put(path: Path, value: object) -> None:
    """Write a file at once: a reader sees the old text or the new one, as in sysfs."""
    path.parent.mkdir(parents=True, exist_ok=True)
    part = path.with_name(path.name + ".part")
    part.write_text(f"{value}\n")
    part.rename(path)


def ina3221(root: Path, channels: dict[int, tuple[str, int, int]], number: int = 1) -> Path:
    """hwmon folder of the kernel's driver, with shunt voltages and their sums, beside another sensor."""
    put(root / "hwmon0/name", "tj_thermal")
    put(root / "hwmon0/in1_label", "VDD_IN")
    chip = root / f"hwmon{number}"
    put(chip / "name", "ina3221")
    for channel, (label, millivolts, milliamperes) in channels.items():
        put(chip / f"in{channel}_label", label)
        put(chip / f"in{channel}_input", millivolts)
        put(chip / f"curr{channel}_input", milliamperes)
        put(chip / f"in{channel + 3}_input", 5000)
    put(chip / "in7_label", "sum of shunt voltages")
    put(chip / "in7_input", 15000)
    put(chip / "curr4_input", 9999)
    put(chip / "in4_label", "sum of nothing")
    return chip


def rapl(root: Path, counters: dict[str, int], top: int = 1000_000) -> Path:
    """powercap folders: two packages with a part each, psys, and the mmio copy of the first package."""
    zones = {
        "intel-rapl": "",
        "intel-rapl:0": "package-0",
        "intel-rapl:0:0": "core",
        "intel-rapl:1": "package-1",
        "intel-rapl:1:0": "dram",
        "intel-rapl:2": "psys",
        "intel-rapl-mmio:0": "package-0",
    }
    for zone, name in zones.items():
        if name:
            put(root / zone / "name", name)
            put(root / zone / "max_energy_range_uj", top)
            put(root / zone / "energy_uj", counters.get(zone, 500))
    return root


class Clock:
    def __init__(self) -> None:
        self.now_ns = 1_000

    def __call__(self) -> int:
        return self.now_ns


# -- INA3221 --------------------------------------------------------------------------------------------


def test_orin_nano_reads_three_rails_in_watts_and_no_pseudo_channel(tmp_path):
    ina3221(tmp_path, ORIN_NANO)
    meter = Ina3221(tmp_path)
    assert meter.sample() == pytest.approx({"VDD_IN": 5.064, "VDD_CPU_GPU_CV": 5.048 * 0.24, "VDD_SOC": 5.056 * 0.288})
    assert meter.describe(1, (1, 2)) == Meter(
        rank=1, source="ina3221", rails=("VDD_IN", "VDD_CPU_GPU_CV", "VDD_SOC"), total="VDD_IN", covers=(1, 2)
    )


def test_agx_orin_has_two_monitors_and_is_the_sum_of_its_rails(tmp_path):
    ina3221(tmp_path, {1: ("VDD_GPU_SOC", 19000, 100), 2: ("VDD_CPU_CV", 19000, 50), 3: ("VIN_SYS_5V0", 5000, 700)})
    ina3221(tmp_path, {1: ("NC", 0, 0), 2: ("VDDQ_VDD2_1V8AO", 5000, 120), 3: ("NC", 0, 0)}, number=2)
    meter = Ina3221(tmp_path).describe(0, (0,))
    assert meter.rails == ("VDD_GPU_SOC", "VDD_CPU_CV", "VIN_SYS_5V0", "VDDQ_VDD2_1V8AO")
    assert meter.total == ""


def test_a_channel_without_label_or_current_is_left_out(tmp_path):
    chip = ina3221(tmp_path, ORIN_NANO)
    (chip / "curr2_input").unlink()
    (chip / "in3_label").unlink()
    assert list(Ina3221(tmp_path).sample()) == ["VDD_IN"]
    (chip / "in1_label").unlink()
    with pytest.raises(ConfigError, match="without labelled channels"):
        Ina3221(tmp_path)


def test_a_rail_that_refuses_leaves_no_meter_that_would_pass_for_the_device(tmp_path):
    chip = ina3221(tmp_path, ORIN_NANO)
    (chip / "in1_input").unlink()
    (chip / "in1_input").mkdir()  # refuses to be read, as the driver does where a channel is off
    with pytest.raises(ConfigError, match=r"a rail can't be read.*in1_input"):
        Ina3221(tmp_path)


def test_rails_of_one_name_on_two_monitors_stay_two(tmp_path):
    ina3221(tmp_path, {1: ("VDD", 5000, 100)})
    ina3221(tmp_path, {1: ("VDD", 5000, 300)}, number=2)
    assert Ina3221(tmp_path).sample() == pytest.approx({"VDD": 0.5, "VDD hwmon2": 1.5})


def test_the_monitors_own_interval_bounds_the_period(tmp_path):
    chip = ina3221(tmp_path, ORIN_NANO)
    assert Ina3221(tmp_path).period_s == 0
    put(chip / "update_interval", 33)
    assert Ina3221(tmp_path).period_s == pytest.approx(0.033)


# -- RAPL -----------------------------------------------------------------------------------------------


@given(st.lists(st.tuples(st.integers(1, 999_999), st.integers(1_000_000, 10**9)), min_size=1, max_size=8))
def test_rapl_is_the_counters_difference_through_every_wraparound(steps):
    with tempfile.TemporaryDirectory() as folder:
        root, clock = rapl(Path(folder), {}), Clock()
        meter = Rapl(root, clock)
        assert meter.describe(0, (0,)).rails == ("package-0", "package-1")
        assert meter.describe(0, (0,)).total == ""
        counter = 500
        for joules_e6, after_ns in steps:
            counter = (counter + joules_e6) % 1_000_000
            clock.now_ns += after_ns
            put(root / "intel-rapl:0/energy_uj", counter)
            watts = meter.sample()
            assert watts == pytest.approx({"package-0": joules_e6 * 1e3 / after_ns, "package-1": 0.0})


def test_a_counter_for_root_alone_says_so(tmp_path, monkeypatch):
    rapl(tmp_path, {})
    opened = open

    def refuse(path, *args, **kwargs):
        if Path(path).name == "energy_uj":
            raise PermissionError(13, "Permission denied", str(path))
        return opened(path, *args, **kwargs)

    monkeypatch.setattr("builtins.open", refuse)  # root, who may run the tests, can read every file
    with pytest.raises(ConfigError, match=r"'rapl'.*Permission denied.*energy_uj.*run as root"):
        Rapl(tmp_path)
    assert find_meter("auto", dict(ina3221=tmp_path, rapl=tmp_path, jtop=tmp_path / "no")) is None


# -- jtop -----------------------------------------------------------------------------------------------


@pytest.fixture
def jtop_service(monkeypatch):
    """A service on a socket of its own; AF_UNIX allows 107 bytes of path."""
    jtop_module = pytest.importorskip("jtop")
    with tempfile.TemporaryDirectory(prefix="jt") as folder:
        socket = Path(folder, "s")
        program = Path(__file__).parents[2] / "support/jtop_service.py"
        process = subprocess.Popen([sys.executable, str(program), str(socket)])
        until = time.monotonic() + 20
        while not socket.exists() and process.poll() is None and time.monotonic() < until:
            time.sleep(0.02)
        monkeypatch.setattr(jtop_module.service, "JTOP_PIPE", str(socket))
        yield socket, process
        process.kill()
        process.wait()


def next_sample(meter: Jtop) -> dict[str, float]:
    until = time.monotonic() + 10
    while time.monotonic() < until:
        if watts := meter.sample():
            return watts
        time.sleep(0.005)
    raise AssertionError("no update in 10 s")


def test_jtop_gives_each_update_once_and_no_power_supply(jtop_service):
    meter = find_meter("jtop", {"jtop": jtop_service[0]})
    assert isinstance(meter, Jtop)
    try:
        described = meter.describe(0, (0,))
        assert set(described.rails) == {"VDD_IN", "VDD_CPU_GPU_CV", "VDD_SOC"} and described.total == "VDD_IN"
        first, second = next_sample(meter), next_sample(meter)
        assert first["VDD_SOC"] == 0.9 and first["VDD_CPU_GPU_CV"] == 1.5
        grown = second["VDD_IN"] - first["VDD_IN"]  # 1 W an update, in watts, and never the average
        assert grown >= 1 and grown == int(grown)
    finally:
        meter.close()


def test_a_jtop_service_that_ends_is_an_error_of_the_meter(jtop_service):
    socket, process = jtop_service
    meter = Jtop(socket)
    next_sample(meter)
    process.kill()
    process.wait()
    with pytest.raises(OSError, match="jtop service was lost"):
        wait_for(lambda: meter.sample() == "never")


def test_a_socket_that_nobody_serves_is_absent(tmp_path, monkeypatch):
    jtop_module = pytest.importorskip("jtop")
    socket = tmp_path / "s"
    socket.write_text("")
    monkeypatch.setattr(jtop_module.service, "JTOP_PIPE", str(socket))
    with pytest.raises(ConfigError, match=r"'jtop'.*doesn't serve"):
        find_meter("jtop", {"jtop": socket})


# -- choosing -------------------------------------------------------------------------------------------


def test_auto_takes_the_first_there_is_and_none_takes_none(tmp_path):
    roots = dict(ina3221=tmp_path / "hwmon", rapl=tmp_path / "powercap", jtop=tmp_path / "sock")
    assert find_meter("auto", roots) is None
    assert find_meter("none", roots) is None
    for name in SENSORS:
        with pytest.raises(ConfigError, match=f"energy meter '{name}': .*choose auto or none"):
            find_meter(name, roots)
    rapl(tmp_path / "powercap", {})
    assert isinstance(find_meter("auto", roots), Rapl)
    ina3221(tmp_path / "hwmon", ORIN_NANO)
    assert isinstance(find_meter("auto", roots), Ina3221)
    assert isinstance(find_meter("rapl", roots), Rapl)
    assert find_meter("none", roots) is None


def test_doctor_names_rails_or_what_is_missing(tmp_path):
    roots = dict(ina3221=tmp_path / "hwmon", rapl=tmp_path / "powercap", jtop=tmp_path / "sock")
    check = _sensors(roots)
    assert check.status == "note" and "not measured" in check.found
    assert all(name in check.remedy for name in SENSORS)
    ina3221(tmp_path / "hwmon", ORIN_NANO)
    check = _sensors(roots)
    assert check.status == "ok" and check.found == "ina3221 (VDD_IN, VDD_CPU_GPU_CV, VDD_SOC)"


# -- sampling -------------------------------------------------------------------------------------------


def wait_for(condition) -> None:
    until = time.monotonic() + 20
    while not condition():
        assert time.monotonic() < until
        time.sleep(0.005)


def test_samples_are_stamped_on_the_monotonic_clock_and_taken_once(tmp_path):
    ina3221(tmp_path, ORIN_NANO)
    before = time.monotonic_ns()
    sampler = PowerSampler(Ina3221(tmp_path), rank=1, covers=(1,), period_s=0.002)
    sampler.start()
    taken: list = []
    wait_for(lambda: taken.extend(sampler.take()) or len(taken) > 100)
    sampler.stop()
    after = time.monotonic_ns()
    taken += sampler.take()
    assert isinstance(taken[0], Meter) and sampler.take() == []
    power = taken[1:]
    assert {type(sample) for sample in power} == {Power} and {sample.rank for sample in power} == {1}
    assert len(power) % 3 == 0
    times = [sample.at_ns for sample in power if sample.rail == "VDD_IN"]
    assert times == sorted(set(times)) and before <= times[0] and times[-1] <= after


def test_a_sensor_that_vanishes_ends_the_sampling_with_its_reason(tmp_path):
    chip = ina3221(tmp_path, ORIN_NANO)
    sampler = PowerSampler(Ina3221(tmp_path), rank=0, covers=(0,), period_s=0.001)
    sampler.start()
    records: list = []
    wait_for(lambda: records.extend(sampler.take()) or len(records) > 30)
    (chip / "curr3_input").unlink()
    wait_for(lambda: records.extend(sampler.take()) or (isinstance(records[-1], Meter) and records[-1].ended))
    sampler.stop()
    assert "curr3_input" in records[-1].ended and records[-1].rails == records[0].rails
    assert not any(isinstance(record, Meter) for record in records[1:-1])


def test_what_is_sampled_adds_up_to_what_was_drawn(tmp_path):
    """The whole way, from files to joules: 9 W and 10 W on two devices, for as many batches as it takes
    this machine to sample them without a hole."""
    for rank in (0, 1):
        ina3221(tmp_path / str(rank), {1: ("VDD_IN", 5000, 1800 + 200 * rank)})
    samplers = [PowerSampler(Ina3221(tmp_path / str(r)), rank=r, covers=(r,), period_s=0.001) for r in (0, 1)]
    for sampler in samplers:
        sampler.start()
    header = TraceHeader(
        source="measured",
        created="",
        model="m",
        weights="",
        plan=ExecutionPlan(mode=Mode.FULL, devices=2),
        batch=1,
        tokens=8,
        link="loopback",
        seed=0,
        command="",
    )
    records: list = []
    found: list[Energy | str] = []
    edges = [time.monotonic_ns()]

    def measured() -> bool:
        time.sleep(0.05)
        edges.append(time.monotonic_ns())
        number = len(edges) - 2
        records.append(Batch(batch=number, size=1, start_ns=edges[-2], end_ns=edges[-1]))
        for sampler in samplers:
            records.extend(sampler.take())
        found.append(measured_energy(Trace(header=header, records=tuple(records))))
        return isinstance(found[-1], Energy)

    wait_for(measured)
    for sampler in samplers:
        sampler.stop()
    energy = found[-1]
    assert isinstance(energy, Energy)
    assert "samples" in str(found[0])  # one batch of 50 ms is too short
    seconds = (edges[-1] - edges[0]) / 1e9 / (len(edges) - 1)
    assert energy.per_device_j == pytest.approx({0: 9 * seconds, 1: 10 * seconds})
    assert energy.samples >= 100 and energy.source == "ina3221"


class Means:
    """A meter whose samples are means over the time since the one before, as RAPL's are."""

    period_s, averages = 0.0, True

    def __init__(self) -> None:
        self.reads: list[int] = []

    def describe(self, rank: int, covers: tuple[int, ...]) -> Meter:
        return Meter(rank=rank, source="rapl", rails=("package-0",), covers=covers)

    def sample(self) -> dict[str, float]:
        self.reads.append(time.monotonic_ns())
        return {"package-0": 1.0}

    def close(self) -> None:
        self.reads.append(-1)


def test_a_mean_is_stamped_in_the_middle_of_what_it_covers():
    meter = Means()
    sampler = PowerSampler(meter, rank=0, covers=(0,), period_s=0.005)
    sampler.start()
    wait_for(lambda: len(meter.reads) > 5)
    sampler.stop()
    power = [record for record in sampler.take() if isinstance(record, Power)]
    reads = meter.reads[:-1]
    assert meter.reads[-1] == -1 and len(power) == len(reads) - 1
    for sample, before, after in zip(power, reads, reads[1:], strict=False):
        assert before < sample.at_ns <= after


def test_a_thread_is_left_by_nobody(tmp_path):
    ina3221(tmp_path, ORIN_NANO)
    sampler = PowerSampler(Ina3221(tmp_path), rank=0, covers=(0,), period_s=10.0)
    sampler.start()
    sampler.stop()  # does not wait for the period to end
    sampler.stop()
    assert not any(thread.name == "power" for thread in threading.enumerate())
