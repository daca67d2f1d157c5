"""An authenticated channel between two devices: a challenge with a shared key, then small messages with proofs.

gloo has no authentication, so its addresses are given only to devices that have passed the challenge. A frame is a
length of two bytes and msgpack. Before the key is proved a frame has at most HELLO_BYTES, so garbage costs next to
nothing. Every later frame carries an HMAC over its number, direction and content under a key of this connection: a
forged, replayed or missing frame is noticed. Nothing is encrypted here; docs/serving.md says how WireGuard encrypts
all traffic at once.
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
from typing import Any

import msgspec

from hw.serving.messages import NONCE, PROTOCOL, Accepted, Challenge, Message, Response
from prism.errors import ConfigError, ExchangeError

PROOF = 32
HELLO_BYTES = 256
FRAME_BYTES = 32_768
HANDSHAKE_S = 2.0
LEAST_KEY = 16
LEADER, FOLLOWER = b"terminal", b"worker"  # directions of frames, as they have been since protocol 1


class ChannelError(ExchangeError):
    """The other side went away, stayed silent, or isn't who it should be."""


def load_key(path: Path) -> bytes:
    """Read the shared key from its file, without surrounding white space. Raises ConfigError."""
    try:
        key = path.read_bytes().strip()
        mode = path.stat().st_mode & 0o077
    except OSError as error:
        raise ConfigError(
            f"key file {path} can't be read ({error.strerror}); "
            f"make one with: head -c 32 /dev/urandom | base64 > {path}"
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
        """Send one message. Raises ChannelError where the other side is gone or doesn't read."""
        body = msgspec.msgpack.encode(message)
        with self._lock:
            proof = _proof(self._session, self._own, self._sent.to_bytes(8, "big"), body)
            self._sent += 1
            _write(self._sock, proof + body)

    def receive(self, timeout_s: float) -> Message:
        """Receive one message.

        Raises ChannelError after `timeout_s` of silence, for a peer that is gone, and for a frame with a wrong proof.
        """
        frame = _read(self._sock, FRAME_BYTES, timeout_s)
        proof, body = frame[:PROOF], frame[PROOF:]
        expected = _proof(self._session, self._other, self._received.to_bytes(8, "big"), body)
        if not hmac.compare_digest(proof, expected):
            raise ChannelError("a message's proof is wrong: the connection was tampered with")
        self._received += 1
        return _decode(body, Message)

    def close(self) -> None:
        """End the connection; a thread that waits in `receive` gets a ChannelError."""
        _close(self._sock)


def challenge(sock: socket.socket, key: bytes) -> Channel:
    """Challenge a caller, on the leader. Raises ChannelError for one that doesn't prove the key within HANDSHAKE_S."""
    limit = time.monotonic() + HANDSHAKE_S
    own = secrets.token_bytes(NONCE)
    _write(sock, msgspec.msgpack.encode(Challenge(PROTOCOL, own)))
    response = _decode(_read(sock, HELLO_BYTES, limit - time.monotonic()), Response)
    if not hmac.compare_digest(response.proof, _proof(key, b"join", own, response.nonce)):
        raise ChannelError("the key is another one")
    _write(sock, msgspec.msgpack.encode(Accepted(_proof(key, b"serve", response.nonce, own))))
    return Channel(sock, _proof(key, b"session", own, response.nonce), LEADER, FOLLOWER)


def respond(sock: socket.socket, key: bytes) -> Channel:
    """Respond to the leader's challenge, on a follower. Raises ChannelError where the leader doesn't prove the key."""
    limit = time.monotonic() + HANDSHAKE_S
    asked = _decode(_read(sock, HELLO_BYTES, limit - time.monotonic()), Challenge)
    if asked.protocol != PROTOCOL:
        raise ChannelError(
            f"the leader speaks protocol {asked.protocol}, this is {PROTOCOL}; install the same version on both"
        )
    own = secrets.token_bytes(NONCE)
    _write(sock, msgspec.msgpack.encode(Response(own, _proof(key, b"join", asked.nonce, own))))
    accepted = _decode(_read(sock, HELLO_BYTES, limit - time.monotonic()), Accepted)
    if not hmac.compare_digest(accepted.proof, _proof(key, b"serve", own, asked.nonce)):
        raise ChannelError("the leader doesn't know the key")
    return Channel(sock, _proof(key, b"session", asked.nonce, own), FOLLOWER, LEADER)


def listen(address: str, port: int) -> socket.socket:
    """Open a listening socket on one address.

    Raises ConfigError for "every address", and for one that can't be bound.
    """
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
    """Read `size` bytes by the deadline, however slowly they trickle in."""
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
    """Wait without the socket's own timeout, which would count for a send in another thread too."""
    if not select.select([sock], [], [], seconds)[0]:
        raise TimeoutError(f"silent for {seconds:.3g} s")


def _close(sock: socket.socket) -> None:
    with contextlib.suppress(OSError):
        sock.shutdown(socket.SHUT_RDWR)
    sock.close()
