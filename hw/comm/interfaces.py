"""Network interfaces and ports of this machine. No torch."""

import socket

import psutil

from prism.errors import ConfigError


def interface_to(leader: str) -> str:
    """Name the network interface on the route to the leader. Raises ConfigError without a route."""
    try:
        with socket.socket(socket.AF_INET, socket.SOCK_DGRAM) as probe:
            probe.connect((leader, 9))  # a UDP connect sends nothing; it only looks up the route
            own = probe.getsockname()[0]
    except OSError as error:
        raise ConfigError(f"no route to the leader at {leader} ({error}); check its address and the network") from None
    for name, addresses in psutil.net_if_addrs().items():
        if any(address.address == own for address in addresses):
            return name
    raise ConfigError(f"no interface has the address {own} that leads to {leader}; name one with --interface")


def address_of(interface: str) -> str:
    """Look up this machine's IPv4 address on an interface. Raises ConfigError where it has none."""
    for address in psutil.net_if_addrs().get(check_interface(interface), []):
        if address.family == socket.AF_INET:
            return address.address
    raise ConfigError(f"interface {interface!r} has no IPv4 address; give it one, or name another with --interface")


def check_interface(name: str) -> str:
    """Return the name of an interface of this machine. Raises ConfigError for one that doesn't exist."""
    existing = sorted(psutil.net_if_addrs())
    if name not in existing:
        raise ConfigError(f"interface {name!r} doesn't exist; this machine has {', '.join(existing)}")
    return name


def free_port(address: str) -> int:
    """Find a TCP port that nothing listens on just now."""
    with socket.socket() as probe:
        probe.bind((address, 0))
        return int(probe.getsockname()[1])
