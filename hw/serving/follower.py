"""A device that serves under a leader: it joins, follows, and joins again after whatever went wrong."""

import logging
import queue
import socket
import threading
import time

from hw.comm.group import process_group
from hw.comm.rendezvous import RelayStore
from hw.serving import messages
from hw.serving.channel import Channel, ChannelError, respond
from hw.serving.device import ServedModel
from hw.serving.membership import Meeting
from prism.errors import ExchangeError

log = logging.getLogger(__name__)

CALL_S = 0.5  # for the leader to answer a call: a link that comes back is found soon
AGAIN_S = 0.2


class Follower:
    """Joins a leader, and takes part in its groups. meeting: address and port are the leader's."""

    def __init__(self, meeting: Meeting, key: bytes, name: str, served: ServedModel) -> None:
        self._meeting, self._key, self._served = meeting, key, served
        self._hello = messages.Hello(name=name, model=served.name, fingerprint=served.fingerprint)

    def run(self, stopped: threading.Event) -> None:
        """Serve until `stopped`. Raises ExchangeError where the leader refuses this device for good."""
        place = f"{self._meeting.address}:{self._meeting.port}"
        log.info("%s calls %s", self._hello.name, place)
        while not stopped.is_set():
            try:
                reply = self._join()
            except ChannelError as error:
                log.debug("not joined: %s", error)
                stopped.wait(AGAIN_S)
                continue
            if isinstance(reply, messages.Refused):
                if not reply.retry_s:
                    raise ExchangeError(f"the leader refused: {reply.why}")
                log.info("%s", reply.why)
                stopped.wait(reply.retry_s)
                continue
            log.info("joined %s", place)
            try:
                _Connection(reply, self._meeting, self._served).run(stopped)
            finally:
                reply.close()
            log.info("the leader was lost; calling it again")

    def _join(self) -> Channel | messages.Refused:
        try:
            sock = socket.create_connection((self._meeting.address, self._meeting.port), timeout=CALL_S)
        except OSError as error:
            raise ChannelError(f"no leader answers ({error})") from None
        try:
            channel = respond(sock, self._key)
            channel.send(self._hello)
            reply = channel.receive(self._meeting.silence_s)
        except ChannelError:
            sock.close()
            raise
        if isinstance(reply, messages.Welcome):
            return channel
        sock.close()
        if isinstance(reply, messages.Refused):
            return reply
        raise ChannelError("the leader answered with something else")


class _Connection:
    """One connection to the leader: its orders, and the groups that follow from them."""

    def __init__(self, channel: Channel, meeting: Meeting, served: ServedModel) -> None:
        self._channel, self._meeting, self._served = channel, meeting, served
        self._orders: queue.Queue[tuple[messages.Form, RelayStore] | None] = queue.Queue()
        self._store: RelayStore | None = None
        self._over = threading.Event()
        for body in (self._listen, self._keep_alive):
            threading.Thread(target=body, daemon=True).start()

    def run(self, stopped: threading.Event) -> None:
        """Be a rank of one group after the other, until the channel ends."""
        while not stopped.is_set():
            order = self._orders.get()
            while not self._orders.empty():  # only the newest counts
                order = self._orders.get()
            if order is None:
                return
            form, store = order
            try:
                self._serve(form, store)
            except Exception as error:  # whatever a group dies of, this device joins the next one
                log.debug("epoch %d broke: %s", form.epoch, error)
                self._tell(messages.Broken(form.epoch, str(error)[:200]))

    def _serve(self, form: messages.Form, store: RelayStore) -> None:
        with process_group(
            store,
            form.rank,
            form.world_size,
            interface=self._meeting.interface,
            timeout_s=self._meeting.timeout_s,
            epoch=form.epoch,
        ) as control:
            model = self._served.distributed(self._served.exchange(control), form.epoch, recorded=False)
            self._tell(messages.Formed(form.epoch))
            log.debug("epoch %d formed, as rank %d of %d", form.epoch, form.rank, form.world_size)
            while model.follow():
                pass

    def _listen(self) -> None:
        try:
            while True:
                message = self._channel.receive(self._meeting.silence_s)
                if isinstance(message, messages.Form):
                    if self._store is not None:
                        self._store.give_up()
                    self._store = self._store_of(message.epoch)
                    self._orders.put((message, self._store))
                elif isinstance(message, messages.Put) and self._store is not None:
                    self._store.put(message.key, message.value)
        except ChannelError:
            self._over.set()
            if self._store is not None:
                self._store.give_up()
            self._orders.put(None)

    def _store_of(self, epoch: int) -> RelayStore:
        return RelayStore(lambda key, value: self._tell(messages.Put(epoch, key, value)), self._meeting.form_s)

    def _keep_alive(self) -> None:
        while not self._over.is_set():
            self._tell(messages.Ping())
            time.sleep(self._meeting.ping_s)

    def _tell(self, message: messages.Message) -> None:
        try:
            self._channel.send(message)
        except ChannelError:
            self._channel.close()  # the listener ends with it
