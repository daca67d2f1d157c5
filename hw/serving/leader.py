"""The leader's side of serving together: devices join with the shared key, die, freeze and come back.

The group is formed anew in the background each time, and the leader alone decides it.
"""

import contextlib
import logging
import socket
import threading
import time

from hw.comm.group import process_group
from hw.comm.rendezvous import RelayStore
from hw.serving import messages
from hw.serving.backoff import FAILURES, Backoff
from hw.serving.channel import HANDSHAKE_S, Channel, ChannelError, challenge, listen
from hw.serving.device import ServedModel
from hw.serving.membership import LiveGroup, Meeting
from prism.errors import ExchangeError

log = logging.getLogger(__name__)

STRANGERS = 16  # connections that may be under challenge at once


class _Peer:
    def __init__(self, name: str, channel: Channel) -> None:
        self.name, self.channel = name, channel
        self.formed = -1  # the epoch of the group that it is in


class Leader:
    """Takes followers in, and forms groups with them. Used as a context manager.

    using: the lock that is held while messages of the group are under way. refusals: callers that were turned away.
    """

    def __init__(self, meeting: Meeting, key: bytes, served: ServedModel) -> None:
        self._meeting, self._key, self._served = meeting, key, served
        self.using = threading.Lock()
        self._news = threading.Condition()
        self._peers: dict[str, _Peer] = {}
        self._group: LiveGroup | None = None
        self._formed_at = 0.0
        self._stack = contextlib.ExitStack()
        self._inside = False  # a group that the stack will leave
        self._store: RelayStore | None = None
        self._epoch = 0
        self._backoff = Backoff()
        self._invited: tuple[str, ...] = ()
        self._strangers = threading.BoundedSemaphore(STRANGERS)
        self._closing = False
        self._listener = listen(meeting.address, meeting.port)
        self.port = int(self._listener.getsockname()[1])
        self._threads = [
            threading.Thread(target=body, daemon=True) for body in (self._accept, self._keep_alive, self._manage)
        ]
        self.refusals = 0

    def __enter__(self) -> "Leader":
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

    # -- for the runtime ----------------------------------------------------------------------------------

    def group(self) -> LiveGroup | None:
        """Return the group that can be used now."""
        return self._group

    def broken(self, epoch: int, why: str) -> None:
        """Report that the group of an epoch can't be used any more, so that another is formed."""
        with self._news:
            if self._group is not None and self._group.epoch == epoch:
                log.info("epoch %d broke: %s", epoch, why)
                self._break()

    def wait(self, seconds: float, devices: int = 2) -> bool:
        """Wait until a group of so many devices is there. Returns whether it is."""
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
                time.sleep(0.05)  # out of descriptors, say: those who are served go on being served
                continue
            if self._strangers.acquire(blocking=False):
                threading.Thread(target=self._admit, args=(sock,), daemon=True).start()
            else:
                sock.close()

    def _admit(self, sock: socket.socket) -> None:
        """Challenge a caller, then listen to it as long as it is a follower."""
        sock.settimeout(HANDSHAKE_S)  # of a send; reading waits by itself
        peer = None
        try:
            try:
                channel = challenge(sock, self._key)
                hello = channel.receive(HANDSHAKE_S)
                peer = self._welcome(channel, hello) if isinstance(hello, messages.Hello) else None
            finally:
                self._strangers.release()
            if peer is not None:
                self._listen(peer)
        except ChannelError as error:
            if peer is None:
                self.refusals += 1
                log.debug("a caller was turned away: %s", error)
            else:
                self._lost(peer, str(error))
        finally:
            sock.close()

    def _welcome(self, channel: Channel, hello: messages.Hello) -> _Peer | None:
        refused = self._refusal(hello)
        if refused is not None:
            self.refusals += 1
            log.info("%s was refused: %s", hello.name, refused.why)
            channel.send(refused)
            return None
        channel.send(messages.Welcome())
        peer = _Peer(hello.name, channel)
        with self._news:
            before = self._peers.pop(hello.name, None)
            if before is not None:  # it came back before its death was noticed
                before.channel.close()
            self._peers[hello.name] = peer
            log.info("%s joined", hello.name)
            if self._group is not None and hello.name in self._group.names:
                self._break()
            self._news.notify_all()
        return peer

    def _refusal(self, hello: messages.Hello) -> messages.Refused | None:
        served = self._served
        if (hello.model, hello.fingerprint) != (served.name, served.fingerprint):
            return messages.Refused(
                f"{hello.name} holds {hello.model} with weights {hello.fingerprint}, the leader {served.name} with "
                f"{served.fingerprint}; copy the leader's model there"
            )
        left = self._backoff.left_s(hello.name)
        if left > 0:
            return messages.Refused(f"{hello.name} broke {FAILURES} groups in a row; wait {left:.1f} s", left)
        return None

    def _listen(self, peer: _Peer) -> None:
        while True:
            message = peer.channel.receive(self._meeting.silence_s)
            with self._news:
                if isinstance(message, messages.Put) and self._store is not None and message.epoch == self._epoch:
                    self._store.put(message.key, message.value)
                    self._relay(message, peer)
                elif isinstance(message, messages.Formed):
                    peer.formed = message.epoch
                    self._news.notify_all()
                elif isinstance(message, messages.Broken) and message.epoch == self._epoch:
                    log.info("epoch %d broke on %s: %s", message.epoch, peer.name, message.why)
                    self._break()

    def _relay(self, message: messages.Put, source: _Peer) -> None:
        for peer in self._peers.values():
            if peer is not source:
                with contextlib.suppress(ChannelError):  # its own thread will notice
                    peer.channel.send(message)

    def _lost(self, peer: _Peer, why: str) -> None:
        with self._news:
            if self._peers.get(peer.name) is peer:
                del self._peers[peer.name]
                log.info("%s was lost: %s", peer.name, why)
                if self._group is not None and peer.name in self._group.names:
                    self._break()
                if self._store is not None:
                    self._store.give_up()
                self._news.notify_all()

    def _break(self) -> None:
        """Give the group up. Caller holds the lock."""
        group, self._group = self._group, None
        if group is not None:
            self._backoff.ended(group.names, time.monotonic() - self._formed_at)
        self._news.notify_all()

    # -- forming groups -----------------------------------------------------------------------------------

    def _keep_alive(self) -> None:
        while not self._closing:
            for peer in list(self._peers.values()):
                with contextlib.suppress(ChannelError):  # its own thread will notice
                    peer.channel.send(messages.Ping())
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
                    log.info("epoch %d could not be formed: %s", self._epoch, why)
                    gone = [name for name in self._invited if name not in self._peers]
                    self._backoff.ended(gone, 0.0)  # a follower that stays may be slow, and is tried again
                time.sleep(self._meeting.ping_s)

    def _wanted(self) -> tuple[str, ...]:
        return tuple(self._peers)[: self._meeting.devices - 1]

    def _outdated(self) -> bool:
        """Whether a group is broken and not yet left, or isn't the one of the followers that are there."""
        if self._group is None:
            return self._inside or bool(self._wanted())
        return self._group.names != self._wanted()

    def _leave(self) -> None:
        """Destroy what is left of a group, so that a thread that still waits in it fails at once."""
        with self.using:
            self._stack.close()
            self._inside = False

    def _why_not_formed(self) -> str:
        """Form the group of the followers that are there, if any. Returns why that failed, or nothing."""
        if not self._wanted():
            return ""
        try:
            self._form()
        except Exception as error:  # whatever it was, the next try may succeed
            self._leave()
            return str(error)
        return ""

    def _invite(self) -> tuple[list[_Peer], RelayStore]:
        """Begin an epoch with the followers that are there, and tell each its rank."""
        with self._news:
            self._invited = self._wanted()
            peers = [self._peers[name] for name in self._invited]
            self._epoch += 1
            epoch = self._epoch

            def tell(key: str, value: bytes) -> None:
                for peer in peers:
                    peer.channel.send(messages.Put(epoch, key, value))

            store = self._store = RelayStore(tell, self._meeting.form_s)
            for rank, peer in enumerate(peers, 1):
                peer.channel.send(messages.Form(epoch, rank, 1 + len(peers)))
        return peers, store

    def _form(self) -> None:
        peers, store = self._invite()
        epoch, names = self._epoch, self._invited
        control = self._stack.enter_context(
            process_group(
                store,
                0,
                1 + len(peers),
                interface=self._meeting.interface,
                timeout_s=self._meeting.timeout_s,
                epoch=epoch,
            )
        )
        self._inside = True
        exchange = self._served.exchange(control)
        with self._news:
            there = self._news.wait_for(
                lambda: self._closing or all(peer.formed == epoch for peer in peers) or self._wanted() != names,
                self._meeting.form_s,
            )
            if not there or any(peer.formed != epoch for peer in peers):
                raise ExchangeError("not every device came")
            self._group, self._formed_at = LiveGroup(epoch, names, exchange), time.monotonic()
            log.info("epoch %d formed with %s", epoch, ", ".join(names))
            self._news.notify_all()
