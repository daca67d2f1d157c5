"""Who serves with the terminal: devices join with the shared key, die, freeze and come back; the group is formed anew in
the background each time, and only the terminal decides it."""

import contextlib
import socket
import threading
import time
from collections.abc import Callable
from typing import NamedTuple

import msgspec

from hw.comm import group as comm
from hw.serving.channel import (
    HANDSHAKE_S,
    Broken,
    Channel,
    ChannelError,
    Form,
    Formed,
    Hello,
    Ping,
    Put,
    Refused,
    Welcome,
    challenge,
    listen,
)
from hw.serving.rendezvous import RelayStore
from prism.errors import ExchangeError

STRANGERS = 16  # connections that may be under challenge at once
FLAP_S = 1.0  # a group that broke before it was this old was a flap of whoever broke it
FLAPS = 5  # in a row, before a peer is kept waiting
LONGEST_WAIT_S = 60.0


class Meeting(msgspec.Struct, frozen=True, kw_only=True):
    """Where devices join, and the patience with them. devices: of a group at most, the terminal among them. silence_s:
    without a word a member counts as dead. timeout_s: of one message inside a group. form_s: to form a group in."""

    address: str
    port: int
    interface: str
    devices: int = 2
    ping_s: float = 0.2
    silence_s: float = 1.0
    timeout_s: float = 2.0
    form_s: float = 1.5


class Group(NamedTuple):
    """A group that can be used: its exchange belongs to whoever holds Members.using."""

    epoch: int
    names: tuple[str, ...]
    exchange: comm.GlooExchange

    @property
    def devices(self) -> int:
        return 1 + len(self.names)


class _Peer:
    def __init__(self, name: str, channel: Channel) -> None:
        self.name, self.channel = name, channel
        self.formed = -1


class Members:
    """The terminal's side. `exchange` makes the exchange of a group that was just formed. Used as a context manager."""

    def __init__(
        self, meeting: Meeting, key: bytes, model: str, fingerprint: str, exchange: Callable[[], comm.GlooExchange]
    ) -> None:
        self._meeting, self._key, self._model, self._fingerprint = meeting, key, model, fingerprint
        self._exchange = exchange
        self.using = threading.Lock()  # held while messages of the group are under way
        self._news = threading.Condition()
        self._peers: dict[str, _Peer] = {}
        self._group: Group | None = None
        self._formed_at = 0.0
        self._stack = contextlib.ExitStack()
        self._inside = False  # a group that the stack will leave
        self._store: RelayStore | None = None
        self._epoch = 0
        self._flaps: dict[str, int] = {}
        self._until: dict[str, float] = {}
        self._invited: tuple[str, ...] = ()
        self._strangers = threading.BoundedSemaphore(STRANGERS)
        self._closing = False
        self.refusals = 0
        self.history: list[tuple[float, str]] = []  # what happened, by time.monotonic()

    def __enter__(self) -> "Members":
        self._listener = listen(self._meeting.address, self._meeting.port)
        self.port = int(self._listener.getsockname()[1])
        self._threads = [
            threading.Thread(target=body, daemon=True) for body in (self._accept, self._beat, self._manage)
        ]
        for thread in self._threads:
            thread.start()
        return self

    def __exit__(self, *error: object) -> None:
        with self._news:
            self._closing = True
            peers = list(self._peers.values())
            self._news.notify_all()
        with contextlib.suppress(OSError):
            self._listener.shutdown(socket.SHUT_RDWR)  # wakes the thread that waits in accept()
        self._listener.close()
        for peer in peers:
            peer.channel.close()
        for thread in self._threads:
            thread.join(self._meeting.form_s + 1)
        with self.using:
            self._stack.close()

    # -- for whoever serves -------------------------------------------------------------------------------

    def group(self) -> Group | None:
        """What can be used now."""
        return self._group

    def broken(self, epoch: int, why: str) -> None:
        """The group of an epoch can't be used any more: form another."""
        with self._news:
            if self._group is not None and self._group.epoch == epoch:
                self._note(f"epoch {epoch} broke: {why}")
                self._break()

    def wait(self, seconds: float, devices: int = 2) -> bool:
        """Until a group of so many devices is there."""
        with self._news:
            return self._news.wait_for(lambda: self._group is not None and self._group.devices >= devices, seconds)

    # -- joining ------------------------------------------------------------------------------------------

    def _accept(self) -> None:
        while not self._closing:
            try:
                sock, _ = self._listener.accept()
            except OSError:
                if self._closing:
                    return
                time.sleep(0.05)  # out of descriptors, say: whoever is served goes on being served
                continue
            if self._strangers.acquire(blocking=False):
                threading.Thread(target=self._admit, args=(sock,), daemon=True).start()
            else:
                sock.close()

    def _admit(self, sock: socket.socket) -> None:
        """Challenge whoever called, then listen to it as long as it is a member."""
        sock.settimeout(HANDSHAKE_S)  # of a send; reading waits by itself
        peer = None
        try:
            try:
                channel = challenge(sock, self._key)
                hello = channel.receive(HANDSHAKE_S)
                peer = self._welcome(channel, hello) if isinstance(hello, Hello) else None
            finally:
                self._strangers.release()
            if peer is not None:
                self._listen(peer)
        except ChannelError as error:
            if peer is None:
                self.refusals += 1
            else:
                self._lost(peer, str(error))
        finally:
            sock.close()

    def _welcome(self, channel: Channel, hello: Hello) -> _Peer | None:
        refused = self._refusal(hello)
        if refused is not None:
            self.refusals += 1
            channel.send(refused)
            return None
        channel.send(Welcome())
        peer = _Peer(hello.name, channel)
        with self._news:
            before = self._peers.pop(hello.name, None)
            if before is not None:  # it came back before its death was noticed
                before.channel.close()
            self._peers[hello.name] = peer
            self._note(f"{hello.name} joined")
            if self._group is not None and hello.name in self._group.names:
                self._break()
            self._news.notify_all()
        return peer

    def _refusal(self, hello: Hello) -> Refused | None:
        if (hello.model, hello.fingerprint) != (self._model, self._fingerprint):
            return Refused(
                f"{hello.name} holds {hello.model} with weights {hello.fingerprint}, the terminal {self._model} with "
                f"{self._fingerprint}; copy the terminal's model there"
            )
        left = self._until.get(hello.name, 0.0) - time.monotonic()
        if left > 0:
            return Refused(f"{hello.name} broke {FLAPS} groups in a row; wait {left:.1f} s", left)
        return None

    def _judge(self, names: tuple[str, ...], young: bool) -> None:
        """A group ended. Who breaks one young group after the other waits longer each time before it may join again;
        an old group's end is forgiven. The lock is held."""
        for name in names:
            flaps = self._flaps[name] = self._flaps.get(name, 0) + 1 if young else 0
            if flaps >= FLAPS:
                wait = min(2.0 ** (flaps - FLAPS), LONGEST_WAIT_S)
                self._until[name] = time.monotonic() + wait
                self._note(f"{name} broke {flaps} groups in a row, and waits {wait:g} s")

    def _listen(self, peer: _Peer) -> None:
        while True:
            message = peer.channel.receive(self._meeting.silence_s)
            with self._news:
                if isinstance(message, Put) and self._store is not None and message.epoch == self._epoch:
                    self._store.put(message.key, message.value)
                    others = [p for p in self._peers.values() if p is not peer]
                    for other in others:
                        with contextlib.suppress(ChannelError):
                            other.channel.send(message)
                elif isinstance(message, Formed):
                    peer.formed = message.epoch
                    self._news.notify_all()
                elif isinstance(message, Broken) and message.epoch == self._epoch:
                    self._note(f"{peer.name}: epoch {message.epoch} broke: {message.why}")
                    self._break()

    def _lost(self, peer: _Peer, why: str) -> None:
        with self._news:
            if self._peers.get(peer.name) is peer:
                del self._peers[peer.name]
                self._note(f"{peer.name} was lost: {why}")
                if self._group is not None and peer.name in self._group.names:
                    self._break()
                if self._store is not None:
                    self._store.give_up()
                self._news.notify_all()

    def _break(self) -> None:
        """The lock is held."""
        group, self._group = self._group, None
        if group is not None:
            self._judge(group.names, young=time.monotonic() - self._formed_at < FLAP_S)
        self._news.notify_all()

    def _note(self, text: str) -> None:
        self.history.append((time.monotonic(), text))
        del self.history[:-1000]

    # -- forming groups -----------------------------------------------------------------------------------

    def _beat(self) -> None:
        while not self._closing:
            for peer in list(self._peers.values()):
                with contextlib.suppress(ChannelError):  # its listener will notice
                    peer.channel.send(Ping())
            time.sleep(self._meeting.ping_s)

    def _manage(self) -> None:
        while True:
            with self._news:
                self._news.wait_for(lambda: self._closing or self._outdated())
                if self._closing:
                    return
                self._group = None
            self._leave()
            if why := self._why_not_formed():
                with self._news:
                    self._note(f"epoch {self._epoch} could not be formed: {why}")
                    gone = tuple(name for name in self._invited if name not in self._peers)
                    self._judge(gone, young=True)  # who stays may be slow, and is tried again
                time.sleep(self._meeting.ping_s)

    def _wanted(self) -> tuple[str, ...]:
        return tuple(self._peers)[: self._meeting.devices - 1]

    def _outdated(self) -> bool:
        """A group is broken and not yet left, or isn't the one of those who are there."""
        if self._group is None:
            return self._inside or bool(self._wanted())
        return self._group.names != self._wanted()

    def _leave(self) -> None:
        """Destroy what is left of a group, so that whoever still waits in it fails at once."""
        with self.using:
            self._stack.close()
            self._inside = False

    def _why_not_formed(self) -> str:
        """Form the group of those who are there, if anybody is; or why that failed."""
        if not self._wanted():
            return ""
        try:
            self._form()
        except Exception as error:  # whatever it was, the next try may do
            self._leave()
            return str(error)
        return ""

    def _form(self) -> None:
        with self._news:
            names = self._wanted()
            peers = [self._peers[name] for name in names]
            self._invited = names
            self._epoch += 1
            epoch = self._epoch

            def tell(key: str, value: bytes) -> None:
                for peer in peers:
                    peer.channel.send(Put(epoch, key, value))

            self._store = RelayStore(tell, self._meeting.form_s)
            for rank, peer in enumerate(peers, 1):
                peer.channel.send(Form(epoch, rank, 1 + len(peers)))
        self._stack.enter_context(
            comm.process_group(
                self._store,
                0,
                1 + len(peers),
                interface=self._meeting.interface,
                timeout_s=self._meeting.timeout_s,
                epoch=epoch,
            )
        )
        self._inside = True
        exchange = self._exchange()
        with self._news:
            there = self._news.wait_for(
                lambda: self._closing or all(peer.formed == epoch for peer in peers) or self._wanted() != names,
                self._meeting.form_s,
            )
            if not there or any(peer.formed != epoch for peer in peers):
                raise ExchangeError("not every member came")
            self._group, self._formed_at = Group(epoch, names, exchange), time.monotonic()
            self._note(f"epoch {epoch} formed with {', '.join(names)}")
            self._news.notify_all()
