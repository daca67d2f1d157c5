"""A device that serves with a terminal: it joins, follows, and joins again after whatever went wrong."""

import queue
import socket
import threading
import time
from collections.abc import Callable

from torch import nn

from hw.comm import group as comm
from hw.serving.channel import Broken, Channel, ChannelError, Form, Formed, Hello, Ping, Put, Refused, Welcome, answer
from hw.serving.leader import Meeting
from hw.serving.rendezvous import RelayStore
from prism.errors import ExchangeError
from prism.nn.distribute import distribute
from prism.plan import LOCAL

CALL_S = 0.5  # for the terminal to answer a call: a link that comes back is found soon
AGAIN_S = 0.2


def follow(
    meeting: Meeting,
    key: bytes,
    name: str,
    label: str,
    model: nn.Module,
    fingerprint: str,
    exchange: Callable[[], comm.GlooExchange],
    say: Callable[[str], None],
    stopped: threading.Event,
) -> None:
    """Serve until `stopped`. meeting: address and port are the terminal's. Raises ExchangeError where the terminal
    refuses this device for good."""
    hello = Hello(name=name, model=label, fingerprint=fingerprint)
    say(f"{name} calls {meeting.address}:{meeting.port}")
    while not stopped.is_set():
        try:
            channel = _join(meeting, key, hello)
        except ChannelError:
            stopped.wait(AGAIN_S)
            continue
        if isinstance(channel, Refused):
            if not channel.retry_s:
                raise ExchangeError(f"the terminal refused: {channel.why}")
            say(channel.why)
            stopped.wait(channel.retry_s)
            continue
        say(f"joined {meeting.address}:{meeting.port}")
        member = _Membership(channel, meeting)
        try:
            member.run(model, exchange, stopped)
        finally:
            channel.close()
        say("the terminal was lost; calling it again")


def _join(meeting: Meeting, key: bytes, hello: Hello) -> Channel | Refused:
    try:
        sock = socket.create_connection((meeting.address, meeting.port), timeout=CALL_S)
    except OSError as error:
        raise ChannelError(f"no terminal answers ({error})") from None
    try:
        channel = answer(sock, key)
        channel.send(hello)
        reply = channel.receive(meeting.silence_s)
    except ChannelError:
        sock.close()
        raise
    if isinstance(reply, Welcome):
        return channel
    sock.close()
    if isinstance(reply, Refused):
        return reply
    raise ChannelError("the terminal answered with something else")


class _Membership:
    """One connection to the terminal: what it says, and the groups it forms."""

    def __init__(self, channel: Channel, meeting: Meeting) -> None:
        self._channel, self._meeting = channel, meeting
        self._orders: queue.Queue[tuple[Form, RelayStore] | None] = queue.Queue()
        self._store: RelayStore | None = None
        self._over = threading.Event()
        for body in (self._listen, self._beat):
            threading.Thread(target=body, daemon=True).start()

    def run(self, model: nn.Module, exchange: Callable[[], comm.GlooExchange], stopped: threading.Event) -> None:
        """Be a rank of one group after the other, until the channel ends."""
        while not stopped.is_set():
            order = self._orders.get()
            while not self._orders.empty():  # only the newest counts
                order = self._orders.get()
            if order is None:
                return
            form, store = order
            try:
                self._serve(form, store, model, exchange)
            except Exception as error:  # whatever a group dies of, this device joins the next one
                self._tell(Broken(form.epoch, str(error)[:200]))

    def _serve(
        self, form: Form, store: RelayStore, model: nn.Module, exchange: Callable[[], comm.GlooExchange]
    ) -> None:
        local = LOCAL  # each batch brings its own
        with comm.process_group(
            store,
            form.rank,
            form.world_size,
            interface=self._meeting.interface,
            timeout_s=self._meeting.timeout_s,
            epoch=form.epoch,
        ):
            worker = distribute(model, local, exchange(), epoch=form.epoch)
            self._tell(Formed(form.epoch))
            while worker.follow():
                pass

    def _listen(self) -> None:
        try:
            while True:
                message = self._channel.receive(self._meeting.silence_s)
                if isinstance(message, Form):
                    if self._store is not None:
                        self._store.give_up()
                    self._store = self._store_of(message.epoch)
                    self._orders.put((message, self._store))
                elif isinstance(message, Put) and self._store is not None:
                    self._store.put(message.key, message.value)
        except ChannelError:
            self._over.set()
            if self._store is not None:
                self._store.give_up()
            self._orders.put(None)

    def _store_of(self, epoch: int) -> RelayStore:
        return RelayStore(lambda key, value: self._tell(Put(epoch, key, value)), self._meeting.form_s)

    def _beat(self) -> None:
        while not self._over.is_set():
            self._tell(Ping())
            time.sleep(self._meeting.ping_s)

    def _tell(self, message: Formed | Put | Broken | Ping) -> None:
        try:
            self._channel.send(message)
        except ChannelError:
            self._channel.close()  # the listener ends with it
