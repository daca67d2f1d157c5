"""What hangs on the share of the processor that Prism gets: windows of probes, a meter's rate, the end of a run."""

import os
import signal
import subprocess
import sys
import time

import pytest
import torch
from support.reference import core_share, judged
from support.waiting import until

from hw.energy.ina3221 import Ina3221
from hw.energy.sampler import PowerSampler
from hw.probe.cells import cells
from hw.probe.suite import WINDOW_NS, ProbeConfig, run_probes
from prism.trace import Power

pytestmark = pytest.mark.measure


def test_a_probe_lasts_as_long_as_its_window(monkeypatch):
    light = tuple(cell for cell in cells(cuda=False) if cell.flops < 5e8)[::3]
    monkeypatch.setattr("hw.probe.suite.cells", lambda cuda: light)

    def judge(probes, _):
        measured = [probe for probe in probes if not probe.warmup and probe.calls < 4096]
        long_enough = [probe.end_ns - probe.start_ns >= WINDOW_NS / 2 for probe in measured]
        assert sum(long_enough) > 0.9 * len(long_enough)

    judged(lambda: run_probes(ProbeConfig(budget_s=1e-3), torch.device("cpu"), 0, lambda _: None), judge, core_share)


def test_a_meter_is_sampled_at_its_rate(tmp_path):
    chip = tmp_path / "hwmon0"
    chip.mkdir()
    for name, text in {"name": "ina3221", "in1_label": "VDD_IN", "in1_input": "5000", "curr1_input": "800"}.items():
        (chip / name).write_text(f"{text}\n")

    def sampled():
        sampler = PowerSampler(Ina3221(tmp_path), rank=0, covers=(0,), period_s=0.01)
        sampler.start()
        time.sleep(2)
        sampler.stop()
        return [record for record in sampler.take() if isinstance(record, Power)]

    def judge(samples, _):
        assert 0.9 * 200 < len(samples) <= 202

    judged(sampled, judge, core_share)


def test_ctrl_c_ends_every_rank_within_two_seconds(tmp_path):
    trace = tmp_path / "t.jsonl"
    command = [sys.executable, "-m", "hw.cli.main", "run", "fashion-vit", "--batches", "1000000", "--trace", str(trace)]

    def seconds_to_end():
        trace.unlink(missing_ok=True)
        process = subprocess.Popen(command, stderr=subprocess.DEVNULL, stdout=subprocess.DEVNULL)
        try:
            assert until(lambda: trace.exists() and trace.read_bytes().count(b'"type":"batch"') > 5)
            began = time.monotonic()
            os.kill(process.pid, signal.SIGINT)
            assert process.wait(60) == 130
            return time.monotonic() - began
        finally:
            process.kill()
            process.wait()

    def judge(seconds, _):
        assert seconds < 2

    judged(seconds_to_end, judge, core_share)
