"""What a trace header says of the machine. A thing that can't be read is left out, never guessed."""

import os
import platform
from importlib.metadata import PackageNotFoundError, version
from pathlib import Path
from typing import Any

PACKAGES = ("prism-edge", "torch", "timm", "transformers", "numpy")


def read_text(path: str) -> str | None:
    try:
        return Path(path).read_text().strip()
    except OSError:
        return None


def versions() -> dict[str, str]:
    found = {"python": platform.python_version()}
    for package in PACKAGES:
        try:
            found[package] = version(package)
        except PackageNotFoundError:
            continue
    return found


def describe(threads: int) -> dict[str, Any]:
    facts: dict[str, Any] = {
        "system": f"{platform.system()} {platform.release()} {platform.machine()}",
        "processor": _processor(),
        "cores": os.cpu_count(),
        "cores_of_rank": sorted(os.sched_getaffinity(0)),
        "threads": threads,
        "device": _device(),
        "versions": versions(),
        "governor": read_text("/sys/devices/system/cpu/cpu0/cpufreq/scaling_governor"),
        "tcp_congestion_control": read_text("/proc/sys/net/ipv4/tcp_congestion_control"),
        "clock_mhz": _clock_mhz(),
        "power_mode": read_text("/var/lib/nvpmodel/status"),
    }
    return {key: value for key, value in facts.items() if value is not None}


def _device() -> str:
    """What computes: the GPU's name, or "cpu"."""
    import torch

    return torch.cuda.get_device_name() if torch.cuda.is_available() else "cpu"


def _clock_mhz() -> float | None:
    """What the first core runs at now."""
    scaled = read_text("/sys/devices/system/cpu/cpu0/cpufreq/scaling_cur_freq")
    if scaled:
        return float(scaled) / 1e3
    for line in (read_text("/proc/cpuinfo") or "").splitlines():
        if line.startswith("cpu MHz"):
            return float(line.split(":")[1])
    return None


def _processor() -> str | None:
    model = read_text("/proc/device-tree/model")  # a Jetson or another board names itself here
    if model:
        return model.rstrip("\0")
    for line in (read_text("/proc/cpuinfo") or "").splitlines():
        if line.startswith("model name"):
            return line.split(":", 1)[1].strip()
    return None


def flops_per_s(threads: int) -> float:
    """What a matrix product reaches here and now: the best of a few, for estimates of time only."""
    import time

    import torch

    torch.set_num_threads(threads)
    size = 512
    a = torch.randn(size, size)
    best = float("inf")
    for _ in range(8):
        began = time.perf_counter()
        a @ a
        best = min(best, time.perf_counter() - began)
    return 2 * size**3 / best
