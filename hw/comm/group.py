"""The process group's life cycle, and the Exchange over it."""

import contextlib
import os
import socket
import time
from collections.abc import Iterator, Mapping, Sequence
from datetime import timedelta

import psutil
import torch
import torch.distributed as dist
from torch import Tensor

from hw.comm.recorder import SpanRecorder
from hw.comm.shaper import SharedMedium
from hw.comm.staging import Stager
from prism.errors import ConfigError, ExchangeError, PeerLostError
from prism.nn.exchange import Expected, Pending

POLL_S = 0.05
CONTROL = 1  # tag of messages outside of batches: a batch's receives are posted before these come


def interface_to(leader: str) -> str:
    """The network interface that packets to `leader` leave by. Raises ConfigError without a route."""
    try:
        with socket.socket(socket.AF_INET, socket.SOCK_DGRAM) as probe:
            probe.connect((leader, 9))  # a UDP connect sends nothing; it only asks for the route
            own = probe.getsockname()[0]
    except OSError as error:
        raise ConfigError(
            f"no route to the terminal at {leader} ({error}); check its address and the network"
        ) from None
    for name, addresses in psutil.net_if_addrs().items():
        if any(address.address == own for address in addresses):
            return name
    raise ConfigError(f"no interface has the address {own} that leads to {leader}; name one with --interface")


def address_of(interface: str) -> str:
    """This machine's IPv4 address on an interface."""
    found = psutil.net_if_addrs().get(check_interface(interface), [])
    for address in found:
        if address.family == socket.AF_INET:
            return address.address
    raise ConfigError(f"interface {interface!r} has no IPv4 address; give it one, or name another with --interface")


def check_interface(name: str) -> str:
    known = sorted(psutil.net_if_addrs())
    if name not in known:
        raise ConfigError(f"interface {name!r} doesn't exist; this machine has {', '.join(known)}")
    return name


def free_port(address: str) -> int:
    with socket.socket() as probe:
        probe.bind((address, 0))
        return int(probe.getsockname()[1])


def open_store(leader: str, port: int, is_leader: bool, timeout_s: float) -> dist.TCPStore:
    """The key-value store where the ranks meet. The terminal serves it on the leader's address only."""
    limit = timedelta(seconds=timeout_s)
    if not is_leader:
        _await_leader(leader, port, timeout_s)
        return dist.TCPStore(leader, port, None, False, timeout=limit, wait_for_workers=False)
    listener = socket.socket()
    listener.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
    try:
        listener.bind((leader, port))
        listener.listen(64)
    except OSError as error:
        listener.close()
        raise ExchangeError(
            f"port {port} on {leader} can't be used ({error.strerror}); free it or choose another with --port"
        ) from None
    return dist.TCPStore(
        leader, port, None, True, timeout=limit, wait_for_workers=False, master_listen_fd=listener.detach()
    )


def _await_leader(leader: str, port: int, timeout_s: float) -> None:
    deadline = time.monotonic() + timeout_s
    while True:
        try:
            socket.create_connection((leader, port), timeout=1).close()
            return
        except OSError as error:
            if time.monotonic() > deadline:
                raise ExchangeError(
                    f"no terminal at {leader}:{port} after {timeout_s:g} s ({error}); start it there, "
                    f"or check the address and port in the cluster file"
                ) from None
            time.sleep(POLL_S)


def await_ranks(store: dist.Store, ranks: Sequence[int], stage: str, timeout_s: float) -> None:
    """Wait until every rank has announced `stage`. Raises ExchangeError that names who failed or never came."""
    deadline = time.monotonic() + timeout_s
    waiting = list(ranks)
    while waiting:
        for rank in ranks:
            if store.check([f"failed/{rank}"]):
                raise ExchangeError(f"rank {rank} failed: {store.get(f'failed/{rank}').decode()}")
        waiting = [rank for rank in waiting if not store.check([f"{stage}/{rank}"])]
        if waiting and time.monotonic() > deadline:
            missing = ", ".join(map(str, waiting))
            raise ExchangeError(
                f"rank {missing} of {len(ranks)} did not come within {timeout_s:g} s; start prism-hw worker there, "
                f"or allow more time with --timeout"
            )
        if waiting:
            time.sleep(POLL_S)


def await_key(store: dist.Store, key: str, timeout_s: float) -> bytes:
    """A value that the terminal will publish. Raises ExchangeError when it doesn't."""
    deadline = time.monotonic() + timeout_s
    while not store.check([key]):
        if time.monotonic() > deadline:
            raise ExchangeError(f"the terminal published no {key} within {timeout_s:g} s; start prism-hw run there")
        time.sleep(POLL_S)
    return bytes(store.get(key))


@contextlib.contextmanager
def process_group(
    store: dist.Store, rank: int, world_size: int, *, interface: str, timeout_s: float, epoch: int = 0
) -> Iterator[None]:
    """A gloo group over one named interface, on a fresh prefix of the store; destroyed on the way out.

    A broken group can't be mended: leave the context and enter a new one with the next epoch.
    """
    os.environ["GLOO_SOCKET_IFNAME"] = check_interface(interface)
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
            f"gloo could not connect rank {rank} over {interface} within {timeout_s:g} s ({_first(error)}); "
            f"check that the devices reach each other over it"
        ) from None
    try:
        yield
    finally:
        dist.destroy_process_group()


def _forget_failed_group() -> None:
    """torch counts the groups that a process has begun, and ranks meet under that number. One that failed stays counted,
    until some group is destroyed: ranks that failed unequally often would never meet again."""
    os.environ["GLOO_SOCKET_IFNAME"] = "lo"
    with contextlib.suppress(RuntimeError):  # without a loopback it stays counted; the caller says what failed first
        dist.init_process_group("gloo", store=dist.HashStore(), rank=0, world_size=1)
        dist.destroy_process_group()


class GlooExchange:
    """The Exchange of prism.nn.exchange over the current process group."""

    def __init__(self, stager: Stager, recorder: SpanRecorder, medium: SharedMedium | None = None) -> None:
        self.rank = dist.get_rank()
        self.world_size = dist.get_world_size()
        self._stager, self._recorder, self._medium = stager, recorder, medium
        self.deadline_s: float | None = None  # on time.monotonic(): no wait goes on beyond it
        self._generation = 0
        self._leaving: list[_Send] = []
        self._expected: dict[tuple[str, int], dict[int, tuple[dist.Work, Tensor]]] = {}

    def with_stager(self, stager: Stager) -> "GlooExchange":
        """Another over the same group and medium."""
        return GlooExchange(stager, self._recorder, self._medium)

    def start(self, outgoing: Mapping[int, Tensor], incoming: Mapping[int, Expected], op: str, block: int) -> Pending:
        self._generation += 1
        hosts: dict[int, Tensor] = {}
        for peer, tensor in outgoing.items():
            if id(tensor) not in hosts:  # one payload for many peers is staged once
                hosts[id(tensor)] = self._stager.to_host(tensor, op, block)
            host = hosts[id(tensor)]
            if self._medium is not None:
                self._medium.send(peer, host.nbytes)
            with _lost_peer(peer, op, block):
                self._leaving.append((self._generation, peer, _work(dist.isend(host, peer)), host))
        if outgoing:
            sent = sum(tensor.nbytes for tensor in outgoing.values())
            self._recorder.handed_over(op, block, sent)
        self.expect(incoming, op, block)
        return _Posted(self, self._expected.pop((op, block)), op, block, self._generation)

    def expect(self, incoming: Mapping[int, Expected], op: str, block: int) -> None:
        receives = self._expected.setdefault((op, block), {})
        for peer, expected in incoming.items():
            if peer not in receives:
                buffer = self._stager.buffer(("in", op, peer, block % 2), expected)
                with _lost_peer(peer, op, block):
                    receives[peer] = (_work(dist.irecv(buffer, peer)), buffer)

    def start_ring(self, own: Tensor, incoming: Mapping[int, Expected], op: str, block: int) -> Pending:
        self._generation += 1
        host = self._stager.to_host(own, op, block)
        longest = max(torch.Size(shape).numel() for shape, _ in incoming.values())
        longest = max(longest, host.numel())
        flat = torch.nn.functional.pad(host.flatten(), (0, longest - host.numel()))  # gloo wants equal shapes
        gathered = [
            self._stager.buffer(("ring", op, rank, block % 2), ((longest,), host.dtype))
            for rank in range(self.world_size)
        ]
        sent = flat.nbytes * (self.world_size - 1)
        if self._medium is not None:
            self._medium.send((self.rank + 1) % self.world_size, sent)
        with _lost_peer(-1, op, block):
            work = _work(dist.all_gather(gathered, flat, async_op=True))
        self._recorder.handed_over(op, block, sent)
        views = {peer: gathered[peer][: torch.Size(shape).numel()].view(shape) for peer, (shape, _) in incoming.items()}
        return _Posted(self, {-1: (work, flat)}, op, block, self._generation, ring=views)

    def flush(self) -> None:
        if self._leaving:
            self._recorder.switch("wire", "flush", -1)
            self.finish_sends(self._generation, "flush", -1)

    def finish_sends(self, generation: int, op: str, block: int) -> None:
        """Wait for what was posted up to a generation; bounds what is under way without stalling the newest."""
        while self._leaving and self._leaving[0][0] <= generation:
            _, peer, work, _ = self._leaving.pop(0)
            with _lost_peer(peer, op, block):
                self.finish(work)

    def finish(self, work: dist.Work) -> None:
        """Wait for a message: until the deadline where there is one, else the group's timeout. After a wait in vain
        the group is dead. Raises RuntimeError, as gloo does."""
        if self.deadline_s is None:
            work.wait()
            return
        left = self.deadline_s - time.monotonic()
        if left <= 0:
            raise RuntimeError("the batch's deadline has passed")
        work.wait(timedelta(seconds=left))

    def arrived(self, parts: dict[int, Tensor], op: str, block: int, ring: bool) -> dict[int, Tensor]:
        """Hold the parts back until a shaped link would have them here, then stage them."""
        if self._medium is not None and ring:
            self._medium.arrive((self.rank - 1) % self.world_size, steps=self.world_size - 1)
        elif self._medium is not None:
            for peer in parts:
                self._medium.arrive(peer)
        self._recorder.received(tuple(parts), sum(part.nbytes for part in parts.values()))
        return self._stager.to_device(parts, op, block)


_Send = tuple[int, int, dist.Work, Tensor]  # generation, peer, work, and the tensor, kept alive until it has left


class _Posted:
    """Receives under way: one a peer, or the one collective of a ring (with views of its result)."""

    def __init__(
        self,
        exchange: GlooExchange,
        works: dict[int, tuple[dist.Work, Tensor]],
        op: str,
        block: int,
        generation: int,
        ring: dict[int, Tensor] | None = None,
    ) -> None:
        self._exchange, self._works, self._op, self._block = exchange, works, op, block
        self._generation, self._ring = generation, ring

    def wait(self) -> dict[int, Tensor]:
        exchange, op, block = self._exchange, self._op, self._block
        exchange._recorder.switch("wire", op, block)
        exchange.finish_sends(self._generation - 1, op, block)
        for peer, (work, _) in self._works.items():
            with _lost_peer(peer, op, block):
                exchange.finish(work)
        parts = self._ring if self._ring is not None else {peer: tensor for peer, (_, tensor) in self._works.items()}
        return exchange.arrived(parts, op, block, ring=self._ring is not None)


@contextlib.contextmanager
def _lost_peer(peer: int, op: str, block: int) -> Iterator[None]:
    try:
        yield
    except RuntimeError as error:
        who = f"rank {peer}" if peer >= 0 else "a rank of the ring"
        where = f"{op} of block {block}" if block >= 0 else op
        raise PeerLostError(
            f"{who} was lost during {where} ({_first(error)}); see what happened there, then run again"
        ) from None


def _work(work: "dist.Work | None") -> "dist.Work":
    if work is None:
        raise ExchangeError("this process is no member of the group; start as many ranks as the plan has devices")
    return work


def _first(error: Exception) -> str:
    """The part of a gloo message that a person can use."""
    line = str(error).strip().splitlines()[0]
    return line.rsplit("] ", 1)[-1][:160]


def estimate_offset(rank: int, worker: int, rounds: int = 16) -> tuple[int, int]:
    """The worker's monotonic clock minus the terminal's, and the error bound, in ns (Cristian's
    method: of all round trips the shortest counts, half of it is the bound). Both ranks call it;
    only the terminal's result means anything."""
    stamp = torch.zeros(1, dtype=torch.int64)
    best, offset = 2**62, 0
    with _lost_peer(worker if rank == 0 else 0, "clock estimate", -1):
        for _ in range(rounds):
            if rank == 0:
                sent = time.monotonic_ns()
                dist.send(stamp, worker, tag=CONTROL)
                dist.recv(stamp, worker, tag=CONTROL)
                back = time.monotonic_ns()
                if back - sent < best:
                    best, offset = back - sent, int(stamp) - (sent + back) // 2
            else:
                dist.recv(stamp, 0, tag=CONTROL)
                stamp.fill_(time.monotonic_ns())
                dist.send(stamp, 0, tag=CONTROL)
    return offset, best // 2


def send_bytes(data: bytes, peer: int) -> None:
    """A message of any length, outside of any measured batch."""
    with _lost_peer(peer, "control", -1):
        dist.send(torch.tensor([len(data)]), peer, tag=CONTROL)
        if data:
            dist.send(torch.frombuffer(bytearray(data), dtype=torch.uint8), peer, tag=CONTROL)


def receive_bytes(peer: int, limit: int = 1 << 26) -> bytes:
    """Raises ExchangeError for a message longer than `limit` bytes."""
    size = torch.zeros(1, dtype=torch.int64)
    with _lost_peer(peer, "control", -1):
        dist.recv(size, peer, tag=CONTROL)
    length = int(size)
    if not 0 <= length <= limit:
        raise ExchangeError(f"rank {peer} announces {length} bytes, the limit is {limit}; run the same version there")
    data = torch.empty(length, dtype=torch.uint8)
    if length:
        with _lost_peer(peer, "control", -1):
            dist.recv(data, peer, tag=CONTROL)
    return data.numpy().tobytes()


def share_addresses(rank: int, world_size: int, interface: str) -> list[str]:
    """Every rank's address on its interface, by rank; all ranks call it."""
    own = address_of(interface)
    if rank:
        send_bytes(own.encode(), 0)
        return receive_bytes(0).decode().split()
    addresses = [own, *(receive_bytes(peer).decode() for peer in range(1, world_size))]
    for peer in range(1, world_size):
        send_bytes(" ".join(addresses).encode(), peer)
    return addresses
