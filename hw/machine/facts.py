"""Facts of this machine, as trace headers record them. What can't be read is left out, never guessed."""

import os
import platform
import shutil
import subprocess
from importlib.metadata import PackageNotFoundError, version
from pathlib import Path
from typing import Any, NamedTuple

PACKAGES = ("prism-edge", "torch", "timm", "transformers", "numpy")


def read_text(path: str) -> str | None:
    """Read a small file without surrounding white space; None where it can't be read."""
    try:
        return Path(path).read_text().strip()
    except OSError:
        return None


def versions() -> dict[str, str]:
    """List the versions of Python and of the packages that matter to a measurement."""
    installed = {"python": platform.python_version()}
    for package in PACKAGES:
        try:
            installed[package] = version(package)
        except PackageNotFoundError:
            continue
    return installed


def describe_machine(threads: int) -> dict[str, Any]:
    """Describe the machine for a trace header. threads: of each rank."""
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


class WifiPowerSave(NamedTuple):
    """The driver's own report of WiFi power saving. state: None where iw is missing."""

    interface: str
    state: str | None

    @property
    def text(self) -> str:
        """The finding in words."""
        if not self.interface:
            return "no wireless interface"
        return "unknown" if self.state is None else f"{self.interface}: {self.state or 'unknown'}"


def wifi_power_save(net: Path = Path("/sys/class/net")) -> WifiPowerSave:
    """Ask the driver of the first wireless interface whether it saves power. interface: "" where there is none."""
    wireless = sorted(path.parent.name for path in net.glob("*/wireless"))
    if not wireless:
        return WifiPowerSave("", None)
    iw = shutil.which("iw")
    if iw is None:
        return WifiPowerSave(wireless[0], None)
    asked = subprocess.run([iw, "dev", wireless[0], "get", "power_save"], capture_output=True, text=True)
    return WifiPowerSave(wireless[0], asked.stdout.strip())


def _device() -> str:
    """Name what computes: the GPU, or "cpu"."""
    import torch

    return torch.cuda.get_device_name() if torch.cuda.is_available() else "cpu"


def _clock_mhz() -> float | None:
    """Read the current clock of the first core."""
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
    """Time a matrix product, the best of a few: for rough estimates of duration only."""
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
