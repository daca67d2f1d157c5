"""An authenticated channel between two devices: a challenge with a shared key, then small messages, each with its proof.

gloo knows no authentication, so no address of it is told to anybody who has not passed here. Frames are a length of two
bytes and msgpack; before the key is shown a frame is at most HELLO_BYTES, so garbage costs next to nothing. Every later
frame carries an HMAC over its number, direction and content under a key of this connection: none can be forged, replayed
or dropped unseen. Nothing is encrypted here; docs/serving.md says how WireGuard does that for all traffic at once.
"""

import contextlib
import hashlib
import hmac
import os
import secrets
import select
import socket
import threading
import time
from pathlib import Path
from typing import Annotated, Any

import msgspec

from prism.errors import ConfigError, ExchangeError

PROTOCOL = 1
NONCE = 32
PROOF = 32
HELLO_BYTES = 256
FRAME_BYTES = 32_768
HANDSHAKE_S = 2.0
LEAST_KEY = 16

Bytes32 = Annotated[bytes, msgspec.Meta(min_length=NONCE, max_length=NONCE)]


class ChannelError(ExchangeError):
    """The other side went away, stayed silent, or isn't who it should be."""


class Challenge(msgspec.Struct, frozen=True, tag="challenge", forbid_unknown_fields=True):
    protocol: int
    nonce: Bytes32


class Answer(msgspec.Struct, frozen=True, tag="answer", forbid_unknown_fields=True):
    nonce: Bytes32
    proof: Bytes32


class Accepted(msgspec.Struct, frozen=True, tag="accepted", forbid_unknown_fields=True):
    proof: Bytes32


class Form(msgspec.Struct, frozen=True, tag="form", forbid_unknown_fields=True):
    """Terminal: leave whatever group you are in, and be this rank of a new one."""

    epoch: int
    rank: int
    world_size: int


class Put(msgspec.Struct, frozen=True, tag="put", forbid_unknown_fields=True):
    """A key of an epoch's rendezvous: gloo's addresses."""

    epoch: int
    key: str
    value: bytes


class Formed(msgspec.Struct, frozen=True, tag="formed", forbid_unknown_fields=True):
    epoch: int


class Broken(msgspec.Struct, frozen=True, tag="broken", forbid_unknown_fields=True):
    epoch: int
    why: str


class Hello(msgspec.Struct, frozen=True, tag="hello", forbid_unknown_fields=True):
    """Worker: who it is, and the hash of the weights it holds."""

    name: Annotated[str, msgspec.Meta(min_length=1, max_length=64)]
    model: str
    fingerprint: str


class Refused(msgspec.Struct, frozen=True, tag="refused", forbid_unknown_fields=True):
    """Terminal: why not, and after how many seconds to ask again; 0 is never."""

    why: str
    retry_s: float = 0.0


class Welcome(msgspec.Struct, frozen=True, tag="welcome", forbid_unknown_fields=True):
    pass


class Ping(msgspec.Struct, frozen=True, tag="ping", forbid_unknown_fields=True):
    pass


Message = Challenge | Answer | Accepted | Form | Put | Formed | Broken | Hello | Refused | Welcome | Ping


def load_key(path: Path) -> bytes:
    """The shared key: what the file holds, without surrounding white space. Raises ConfigError."""
    try:
        key = path.read_bytes().strip()
        mode = path.stat().st_mode & 0o077
    except OSError as error:
        raise ConfigError(
            f"key file {path} can't be read ({error.strerror}); make one with: head -c 32 /dev/urandom | base64 > {path}"
        ) from None
    if len(key) < LEAST_KEY:
        raise ConfigError(
            f"key file {path} holds {len(key)} bytes, at least {LEAST_KEY} are needed; "
            f"make one with: head -c 32 /dev/urandom | base64 > {path}"
        )
    if mode:
        raise ConfigError(f"key file {path} can be read by others; run chmod 600 {path}")
    return key


class Channel:
    """One connection after its challenge. `send` may be called from any thread, `receive` from one."""

    def __init__(self, sock: socket.socket, session: bytes, own: bytes, other: bytes) -> None:
        self._sock, self._session = sock, session
        self._own, self._other = own, other
        self._sent = self._received = 0
        self._lock = threading.Lock()

    def send(self, message: Message) -> None:
        """Raises ChannelError where the other side is gone or takes nothing."""
        body = msgspec.msgpack.encode(message)
        with self._lock:
            proof = _proof(self._session, self._own, self._sent.to_bytes(8, "big"), body)
            self._sent += 1
            _write(self._sock, proof + body)

    def receive(self, timeout_s: float) -> Message:
        """Raises ChannelError after `timeout_s` of silence, for a gone peer and for a frame that isn't its."""
        frame = _read(self._sock, FRAME_BYTES, timeout_s)
        proof, body = frame[:PROOF], frame[PROOF:]
        expected = _proof(self._session, self._other, self._received.to_bytes(8, "big"), body)
        if not hmac.compare_digest(proof, expected):
            raise ChannelError("a message's proof is wrong: somebody meddles with the connection")
        self._received += 1
        return _decode(body, Message)

    def close(self) -> None:
        _close(self._sock)


def challenge(sock: socket.socket, key: bytes) -> Channel:
    """The terminal's side. Raises ChannelError for whoever doesn't know the key within HANDSHAKE_S."""
    limit = time.monotonic() + HANDSHAKE_S
    own = secrets.token_bytes(NONCE)
    _write(sock, msgspec.msgpack.encode(Challenge(PROTOCOL, own)))
    answer = _decode(_read(sock, HELLO_BYTES, limit - time.monotonic()), Answer)
    if not hmac.compare_digest(answer.proof, _proof(key, b"join", own, answer.nonce)):
        raise ChannelError("the key is another one")
    _write(sock, msgspec.msgpack.encode(Accepted(_proof(key, b"serve", answer.nonce, own))))
    return Channel(sock, _proof(key, b"session", own, answer.nonce), b"terminal", b"worker")


def answer(sock: socket.socket, key: bytes) -> Channel:
    """The worker's side: it shows that it knows the key, and sees that the terminal does."""
    limit = time.monotonic() + HANDSHAKE_S
    asked = _decode(_read(sock, HELLO_BYTES, limit - time.monotonic()), Challenge)
    if asked.protocol != PROTOCOL:
        raise ChannelError(
            f"the terminal speaks protocol {asked.protocol}, this is {PROTOCOL}; install the same version on both"
        )
    own = secrets.token_bytes(NONCE)
    _write(sock, msgspec.msgpack.encode(Answer(own, _proof(key, b"join", asked.nonce, own))))
    accepted = _decode(_read(sock, HELLO_BYTES, limit - time.monotonic()), Accepted)
    if not hmac.compare_digest(accepted.proof, _proof(key, b"serve", own, asked.nonce)):
        raise ChannelError("the terminal doesn't know the key")
    return Channel(sock, _proof(key, b"session", asked.nonce, own), b"worker", b"terminal")


def listen(address: str, port: int) -> socket.socket:
    """A listening socket on one address. Raises ConfigError for "every address" and for one that can't be bound."""
    if address in ("", "0.0.0.0", "::", "*"):
        raise ConfigError(
            f"address {address!r} is every interface; name one, such as the WireGuard interface's, or 127.0.0.1"
        )
    try:
        return socket.create_server((address, port), backlog=64)
    except OSError as error:
        raise ConfigError(
            f"{address}:{port} can't be listened on ({os.strerror(error.errno or 0)}); free it or choose another"
        ) from None


def _proof(key: bytes, *parts: bytes) -> bytes:
    digest = hmac.new(key, digestmod=hashlib.sha256)
    for part in parts:
        digest.update(len(part).to_bytes(4, "big") + part)
    return digest.digest()


def _decode(body: bytes, type_: Any) -> Any:
    try:
        return msgspec.msgpack.decode(body, type=type_)
    except msgspec.DecodeError as error:
        raise ChannelError(f"a message can't be read ({error}); install the same version on both") from None


def _write(sock: socket.socket, body: bytes) -> None:
    try:
        sock.sendall(len(body).to_bytes(2, "big") + body)
    except OSError as error:
        raise ChannelError(f"the other side is gone ({error})") from None


def _read(sock: socket.socket, most: int, timeout_s: float) -> bytes:
    deadline = time.monotonic() + timeout_s
    size = int.from_bytes(_exactly(sock, 2, deadline), "big")
    if not 0 < size <= most:
        raise ChannelError(f"a message of {size} bytes is announced, the limit is {most}")
    return _exactly(sock, size, deadline)


def _exactly(sock: socket.socket, size: int, deadline: float) -> bytes:
    """`size` bytes by the deadline, however slowly they trickle in."""
    got = bytearray()
    while len(got) < size:
        left = deadline - time.monotonic()
        try:
            if left <= 0:
                raise TimeoutError("too slow")
            _wait_readable(sock, left)
            more = sock.recv(size - len(got))
        except OSError as error:
            raise ChannelError(f"nothing more was heard ({error})") from None
        if not more:
            raise ChannelError("the other side hung up")
        got += more
    return bytes(got)


def _wait_readable(sock: socket.socket, seconds: float) -> None:
    """Not by the socket's own timeout: that one would count for a send in another thread too."""
    if not select.select([sock], [], [], seconds)[0]:
        raise TimeoutError(f"silent for {seconds:.3g} s")


def _close(sock: socket.socket) -> None:
    with contextlib.suppress(OSError):
        sock.shutdown(socket.SHUT_RDWR)
    sock.close()
