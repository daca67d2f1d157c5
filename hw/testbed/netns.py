"""Network namespaces without names.

Each lives as long as a process or an open file refers to it. So the kernel removes it, with every interface inside,
when its owner ends, however that ends.
"""

import ctypes
import os
import subprocess
import threading
from collections.abc import Callable
from typing import TypeVar

from prism.errors import ConfigError

CLONE_NEWNET = 0x40000000
T = TypeVar("T")


class Namespace:
    """One network namespace, with its loopback up. Raises ConfigError without root."""

    def __init__(self) -> None:
        def make() -> int:
            _check(_libc().unshare(CLONE_NEWNET))
            return os.open("/proc/thread-self/ns/net", os.O_RDONLY | os.O_CLOEXEC)

        if os.geteuid() != 0:
            raise ConfigError("a testbed needs root for its network namespaces; use sudo, or --link shaper:RATE")
        self._file = _in_thread(make)
        self.run("ip", "link", "set", "lo", "up")

    @property
    def path(self) -> str:
        """The path by which other processes reach it while this one lives, as in nsenter --net=PATH COMMAND."""
        return f"/proc/{os.getpid()}/fd/{self._file}"

    def call(self, body: Callable[[], T]) -> T:
        """Run `body` in a thread of its own inside the namespace; processes that it starts are inside too."""

        def inside() -> T:
            _check(_libc().setns(self._file, CLONE_NEWNET))
            return body()

        return _in_thread(inside)

    def run(self, *command: str) -> str:
        """Run ip or tc inside. Returns its output; raises ConfigError with its message."""
        return self.call(lambda: _run(command))

    def close(self) -> None:
        """Let go of the namespace; the kernel removes it once no process is inside."""
        os.close(self._file)


def enter(path: str) -> None:
    """Move the calling thread, and the threads and processes that it starts from now on, into a namespace.

    Raises ConfigError where the kernel refuses.
    """
    file = os.open(path, os.O_RDONLY | os.O_CLOEXEC)
    try:
        _check(_libc().setns(file, CLONE_NEWNET))
    finally:
        os.close(file)


def _run(command: tuple[str, ...]) -> str:
    try:
        done = subprocess.run(command, capture_output=True, text=True)
    except FileNotFoundError:
        raise ConfigError(f"the command {command[0]} is missing; apt install iproute2") from None
    if done.returncode:
        raise ConfigError(
            f"{' '.join(command)} failed ({done.stderr.strip()}); see prism-hw doctor, or use --link shaper:RATE"
        )
    return done.stdout


def _libc() -> ctypes.CDLL:
    return ctypes.CDLL(None, use_errno=True)


def _check(result: int) -> None:
    if result:
        code = ctypes.get_errno()
        raise ConfigError(f"this kernel refuses a network namespace ({os.strerror(code)}); use --link shaper:RATE")


def _in_thread(body: Callable[[], T]) -> T:
    """Run in another thread: a namespace belongs to a thread, and the caller's must not change."""
    results: list[T] = []
    errors: list[BaseException] = []

    def target() -> None:
        try:
            results.append(body())
        except BaseException as error:
            errors.append(error)

    thread = threading.Thread(target=target)
    thread.start()
    thread.join()
    if errors:
        raise errors[0]
    return results[0]
