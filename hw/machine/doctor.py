"""Diagnose this machine: each finding with its consequence and the remedy."""

import os
import shutil
import subprocess
from collections.abc import Callable, Mapping
from importlib.metadata import PackageNotFoundError, version
from pathlib import Path
from typing import Literal

import msgspec
import psutil

from hw.energy.meter import SENSORS, find_meter
from hw.machine import facts
from hw.machine.overheating import zones
from prism.errors import ConfigError
from prism.trace import SensorName
from prism.units import format_bytes

Status = Literal["ok", "note", "missing"]
QDISCS = ("netem", "tbf", "htb", "ifb")


class Check(msgspec.Struct, frozen=True, kw_only=True):
    """One finding. status: "missing" stops something from working, "note" only limits it."""

    name: str
    status: Status
    found: str
    remedy: str = ""


def examine() -> list[Check]:
    """Make every check, in the order in which a newcomer should read them. None of them changes anything."""
    of_torch: list[Callable[[], Check]] = [_torchvision, _distributed, _gloo, _cuda, _nccl]
    of_machine: list[Callable[[], Check]] = [
        _cores,
        _memory,
        _interfaces,
        _congestion,
        _wifi_power_save,
        _namespaces,
        _qdiscs,
        _sensors,
        _governor,
        _temperature,
    ]
    torch = _torch()
    return [_python(), torch, *(check() for check in (of_torch if torch.status == "ok" else []) + of_machine)]


def _python() -> Check:
    import platform

    return Check(name="python", status="ok", found=platform.python_version())


def _torch() -> Check:
    try:
        return Check(name="torch", status="ok", found=version("torch"))
    except PackageNotFoundError:
        return Check(
            name="torch",
            status="missing",
            found="not installed",
            remedy="pip install torch torchvision; on a Jetson install NVIDIA's wheels first (docs/jetson.md)",
        )


def _torchvision() -> Check:
    try:
        import torchvision
    except Exception as error:
        first = str(error).splitlines()[0] if str(error) else type(error).__name__
        return Check(
            name="torchvision",
            status="missing",
            found=f"doesn't import: {first}",
            remedy="install the torchvision built for this torch; timm needs it",
        )
    return Check(name="torchvision", status="ok", found=str(torchvision.__version__))


def _distributed() -> Check:
    from hw.comm.group import built_in

    if built_in()["torch.distributed"]:
        return Check(name="torch.distributed", status="ok", found="available")
    return Check(
        name="torch.distributed",
        status="missing",
        found="not built into this torch",
        remedy="install a torch built with USE_DISTRIBUTED=1 (docs/jetson.md)",
    )


def _gloo() -> Check:
    from hw.comm.group import built_in

    if built_in()["gloo"]:
        return Check(name="gloo", status="ok", found="available, plain TCP")
    return Check(name="gloo", status="missing", found="not built in", remedy="install a torch built with USE_GLOO=1")


def _cuda() -> Check:
    import torch

    if not torch.cuda.is_available():
        return Check(
            name="CUDA",
            status="note",
            found="no usable GPU: ranks compute on the CPU",
            remedy="nothing to do on a machine without one; on a Jetson install NVIDIA's torch wheel",
        )
    major, minor = torch.cuda.get_device_capability()
    name, built = torch.cuda.get_device_name(), torch.cuda.get_arch_list()
    if f"sm_{major}{minor}" in built or any(arch.startswith("compute_") for arch in built):
        return Check(name="CUDA", status="ok", found=f"{name}, sm_{major}{minor}")
    return Check(
        name="CUDA",
        status="missing",
        found=f"{name} is sm_{major}{minor}, this torch has {', '.join(built)}",
        remedy="install a torch built for this GPU",
    )


def _nccl() -> Check:
    from hw.comm.group import built_in

    found = built_in()["NCCL"]
    return Check(
        name="NCCL",
        status="ok" if found else "note",
        found="available" if found else "not built in",
        remedy="" if found else "not needed: the exchange is gloo's",
    )


def _cores() -> Check:
    usable = len(os.sched_getaffinity(0))
    threads = os.environ.get("OMP_NUM_THREADS", "unset")
    return Check(
        name="cores",
        status="ok" if usable > 1 else "note",
        found=f"{usable} usable of {os.cpu_count()}; a rank gets one core and --threads threads "
        f"(OMP_NUM_THREADS {threads})",
        remedy="" if usable > 1 else "two ranks on one core share it: their times are marked oversubscribed",
    )


def _memory() -> Check:
    return Check(name="memory", status="ok", found=memory_text())


def memory_text() -> str:
    """Say what memory is free of this machine and, where it has some of its own, of the GPU."""
    host = psutil.virtual_memory()
    text = f"{format_bytes(host.available)} free of {format_bytes(host.total)}"
    try:
        import torch
    except ImportError:
        return text
    if not torch.cuda.is_available() or torch.cuda.get_device_properties(0).is_integrated:
        return text
    free, total = torch.cuda.mem_get_info()
    return f"{text}, of the GPU {format_bytes(free)} of {format_bytes(total)}"


def _interfaces() -> Check:
    up = [name for name, stats in psutil.net_if_stats().items() if stats.isup]
    addresses = psutil.net_if_addrs()
    shown = [f"{name} {a.address}" for name in up for a in addresses.get(name, []) if a.family.name == "AF_INET"]
    others = [text for text in shown if not text.startswith("lo ")]
    return Check(
        name="interfaces",
        status="ok" if others else "note",
        found=", ".join(shown) or "none up",
        remedy="" if others else "only the loopback: runs over several machines need a network",
    )


def _congestion() -> Check:
    path = Path("/proc/sys/net/ipv4/tcp_congestion_control")
    found = path.read_text().strip() if path.exists() else "unknown"
    return Check(name="TCP congestion control", status="ok", found=found)


def _wifi_power_save() -> Check:
    name, power_save = "WiFi power save", facts.wifi_power_save()
    if not power_save.interface:
        return Check(name=name, status="note", found=power_save.text, remedy="nothing to do")
    if power_save.state is None:
        return Check(name=name, status="note", found=power_save.text, remedy="apt install iw, then ask again")
    if power_save.state.endswith("off"):
        return Check(name=name, status="ok", found=power_save.text)
    remedy = f"sudo iw dev {power_save.interface} set power_save off: it costs tens of ms a round trip"
    return Check(name=name, status="missing", found=power_save.text, remedy=remedy)


def _namespaces() -> Check:
    if os.geteuid() != 0:
        return Check(
            name="network namespaces",
            status="note",
            found="need root",
            remedy="run as root for a testbed; without, use --link shaper:RATE",
        )
    if shutil.which("ip") is None:
        return Check(name="network namespaces", status="note", found="no ip command", remedy="apt install iproute2")
    name = f"prism-doctor-{os.getpid()}"
    made = subprocess.run(["ip", "netns", "add", name], capture_output=True, text=True)
    subprocess.run(["ip", "netns", "del", name], capture_output=True)
    if made.returncode == 0:
        return Check(name="network namespaces", status="ok", found="can be made")
    return Check(name="network namespaces", status="note", found=made.stderr.strip(), remedy="use --link shaper:RATE")


def _qdiscs() -> Check:
    have = [name for name in QDISCS if has_module(name)]
    lacking = [name for name in QDISCS if name not in have]
    return Check(
        name="qdiscs",
        status="ok" if not lacking else "note",
        found=", ".join(have) or "none seen",
        remedy=f"{', '.join(lacking)} not seen: shape at the access point, or use --link shaper:RATE"
        if lacking
        else "",
    )


def has_module(name: str) -> bool:
    """Find out whether the running kernel has a scheduler or device type: built in, loaded, or loadable."""
    release = os.uname().release
    modules = Path("/lib/modules") / release
    stem = name if name == "ifb" else f"sch_{name}"
    if Path("/sys/module", stem).exists():
        return True
    for listing in ("modules.builtin", "modules.dep"):
        path = modules / listing
        if path.exists() and f"/{stem}.ko" in path.read_text(errors="replace"):
            return True
    config = Path("/proc/config.gz")
    if config.exists():
        import gzip

        option = "CONFIG_IFB" if name == "ifb" else f"CONFIG_NET_SCH_{name.upper()}"
        return any(f"{option}={value}" in gzip.decompress(config.read_bytes()).decode() for value in "ym")
    return False


def _sensors(roots: Mapping[SensorName, Path] | None = None) -> Check:
    usable, reasons = [], []
    for sensor in SENSORS:
        try:
            meter = find_meter(sensor, roots)
        except ConfigError as error:
            reasons.append(str(error))
            continue
        if meter is not None:
            usable.append(f"{sensor} ({', '.join(meter.describe(0, ()).rails)})")
            meter.close()
    return Check(
        name="power sensors",
        status="ok" if usable else "note",
        found="; ".join(usable) or "none usable: energy is not measured",
        remedy="" if usable else " / ".join(reasons),
    )


def _governor() -> Check:
    path = Path("/sys/devices/system/cpu/cpu0/cpufreq/scaling_governor")
    if not path.exists():
        return Check(name="CPU governor", status="note", found="not shown by this kernel", remedy="clocks are unknown")
    governor = path.read_text().strip()
    good = governor == "performance"
    return Check(
        name="CPU governor",
        status="ok" if good else "note",
        found=governor,
        remedy="" if good else "set it to performance (on a Jetson: sudo jetson_clocks) for steady times",
    )


def _temperature() -> Check:
    hottest = next(iter(zones()), None)
    if hottest is None:
        return Check(name="temperature", status="ok", found="the kernel shows no zone that it throttles for")
    found = f"{hottest.name} {hottest.celsius:.0f} of {hottest.throttles_at:.0f} °C"
    if not hottest.throttled:
        return Check(name="temperature", status="ok", found=found)
    remedy = "give it a fan or a lower power mode; profile waits while the board throttles"
    return Check(name="temperature", status="note", found=f"{found}: throttled", remedy=remedy)
