"""Check that traffic to another device is encrypted: `prism-hw doctor --secure ADDRESS`."""

import ipaddress
import shutil
from collections.abc import Callable
from pathlib import Path

from hw.comm.interfaces import interface_to
from hw.machine.doctor import Check, has_module

NET = Path("/sys/class/net")


def examine(address: str, net: Path = NET, interface: Callable[[str], str] = interface_to) -> list[Check]:
    """Check the interface and the kernel below gloo on the way to an address. Raises ConfigError without a route."""
    return [_tunnel(address, interface(address), net), _kernel(net), _tool()]


def _tunnel(address: str, interface: str, net: Path) -> Check:
    if ipaddress.ip_address(address).is_loopback:
        return Check(name="way to the device", status="ok", found=f"{interface}: nothing leaves this machine")
    if is_wireguard(interface, net):
        return Check(name="way to the device", status="ok", found=f"{interface} is a WireGuard interface")
    return Check(
        name="way to the device",
        status="missing",
        found=f"{interface} is no WireGuard interface: others on the network can read and change what gloo sends",
        remedy="wg-quick up on both devices, and give their WireGuard addresses to --join (docs/serving.md)",
    )


def is_wireguard(interface: str, net: Path = NET) -> bool:
    """Find out from sysfs whether an interface is a WireGuard tunnel."""
    try:
        return "DEVTYPE=wireguard" in (net / interface / "uevent").read_text().splitlines()
    except OSError:
        return False


def _kernel(net: Path) -> Check:
    there = has_module("wireguard") or any(is_wireguard(path.name, net) for path in net.glob("*"))
    return Check(
        name="WireGuard in the kernel",
        status="ok" if there else "note",
        found="there" if there else "not seen",
        remedy="" if there else "use a kernel with CONFIG_WIREGUARD, or wireguard-go in user space",
    )


def _tool() -> Check:
    found = shutil.which("wg")
    return Check(
        name="wg",
        status="ok" if found else "note",
        found=found or "not installed",
        remedy="" if found else "apt install wireguard-tools",
    )
