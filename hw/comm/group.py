"""The life cycle of a group of ranks: formed over one interface, used, and destroyed.

gloo takes its interface from the environment, GLOO_SOCKET_IFNAME, and from nowhere else. It reads the variable while a
group is formed, so this module alone sets it, right before each group; a process forms one group at a time.
"""

import contextlib
import logging
import os
from collections.abc import Iterator
from datetime import timedelta

import torch.distributed as dist

from hw.comm.control import Control, LoneControl
from hw.comm.gloo import GlooControl, reason
from hw.comm.interfaces import check_interface
from hw.comm.rendezvous import Store, join_store
from prism.errors import ExchangeError

log = logging.getLogger(__name__)

INTERFACE = "GLOO_SOCKET_IFNAME"


def built_in() -> dict[str, bool]:
    """Say what this torch was built with: torch.distributed itself, gloo and NCCL."""
    there = dist.is_available()
    return {
        "torch.distributed": there,
        "gloo": there and dist.is_gloo_available(),
        "NCCL": there and dist.is_nccl_available(),
    }


@contextlib.contextmanager
def joined_group(
    leader: str, port: int, rank: int, world_size: int, *, interface: str, timeout_s: float, serve: bool
) -> Iterator[Control]:
    """Meet the other ranks at the leader, and form the group. serve: whether this process opens the leader's store.

    Raises ExchangeError and PeerLostError. A group of one rank needs neither store nor interface.
    """
    if world_size == 1:
        yield LoneControl()
        return
    store = join_store(leader, port, rank, world_size, serve=serve, timeout_s=timeout_s)
    with process_group(store, rank, world_size, interface=interface, timeout_s=timeout_s) as control:
        yield control


@contextlib.contextmanager
def process_group(
    store: Store, rank: int, world_size: int, *, interface: str, timeout_s: float, epoch: int = 0
) -> Iterator[Control]:
    """Form a gloo group over one named interface, on a fresh prefix of the store; destroy it on the way out.

    A broken group can't be mended: leave the context and enter a new one with the next epoch. Raises ConfigError for an
    unknown interface, and ExchangeError where the ranks can't connect.
    """
    os.environ[INTERFACE] = check_interface(interface)
    try:
        dist.init_process_group(
            "gloo",
            store=dist.PrefixStore(f"epoch-{epoch}", store),
            rank=rank,
            world_size=world_size,
            timeout=timedelta(seconds=timeout_s),
        )
    except Exception as error:
        _forget_failed_group()
        if not isinstance(error, RuntimeError):  # of the store
            raise
        raise ExchangeError(
            f"gloo could not connect rank {rank} over {interface} within {timeout_s:g} s ({reason(error)}); "
            f"check that the devices reach each other over it"
        ) from None
    log.debug("rank %d of %d: group of epoch %d formed over %s", rank, world_size, epoch, interface)
    try:
        yield GlooControl()
    finally:
        dist.destroy_process_group()
        log.debug("rank %d of %d: group of epoch %d destroyed", rank, world_size, epoch)


def _forget_failed_group() -> None:
    """Reset torch's count of groups after one that could not be formed.

    torch counts the groups that a process has begun, and ranks meet under that number. A failed one stays counted until
    some group is destroyed, so ranks with unequally many failures would never meet again.
    """
    os.environ[INTERFACE] = "lo"
    with contextlib.suppress(RuntimeError):  # without a loopback it stays counted; the caller reports the first failure
        dist.init_process_group("gloo", store=dist.HashStore(), rank=0, world_size=1)
        dist.destroy_process_group()
