"""Drive both devices, and inject faults into them and their link."""

import json
import math
import os
import random
import signal
import subprocess
import sys
import threading
import time
from pathlib import Path
from typing import Any

from experiments.faults.server import PORT, TIMEOUT_S
from experiments.lib.places import PRISM_HW
from hw.testbed.namespaces import INTERFACE, NamespaceTestbed

RATE = 200e6
STANDS_S = 0.5  # a group that breaks again within it was none
GROUP_NEWS = ("formed with", "broke", "lost", "joined")
KINDS = ("kill", "freeze", "link", "slow", "port")


class Driver:
    """Run the leader's process, and follow what it prints."""

    def __init__(self, command: list[str], log: Path) -> None:
        self.process = subprocess.Popen(command, stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True)
        self._log = open(log, "a")  # noqa: SIM115 (as long as the process)
        self.events: list[dict[str, Any]] = []
        threading.Thread(target=self._read, daemon=True).start()

    def _read(self) -> None:
        for line in self.process.stdout or ():
            self.events.append(json.loads(line))
            self._log.write(line)
            self._log.flush()

    def standing(self, seconds: float) -> float | None:
        """Return when the group formed that has now stood for STANDS_S; None if none does within `seconds`."""
        limit = time.monotonic() + seconds
        while time.monotonic() < limit and self.process.poll() is None:
            news = self._news()
            if news and "formed with" in news[-1]["what"] and time.monotonic() - news[-1]["at"] >= STANDS_S:
                return float(news[-1]["at"])
            time.sleep(0.01)
        return None

    def broke_after(self, moment: float) -> bool:
        return any(event["at"] > moment and "formed with" not in event["what"] for event in self._news())

    def _news(self) -> list[dict[str, Any]]:
        """Select the events that concern the group."""
        return [e for e in list(self.events) if "at" in e and any(word in e["what"] for word in GROUP_NEWS)]


class Peer:
    """Run prism-hw join inside the other namespace; `called` is when it last began to call the leader."""

    def __init__(self, netns: str, folder: Path) -> None:
        self._command = [
            "nsenter",
            f"--net={netns}",
            "taskset",
            "-c",
            str(max(os.sched_getaffinity(0))),
            PRISM_HW,
            "join",
            f"10.66.0.1:{PORT}",
            "--key-file",
            str(folder / "key"),
            "--name",
            "other",
            "--timeout",
            f"{TIMEOUT_S}s",
        ]
        self.start()

    def start(self) -> None:
        self.process = subprocess.Popen(self._command, stderr=subprocess.PIPE, text=True)
        self.called = math.inf
        threading.Thread(target=self._read, args=(self.process,), daemon=True).start()

    def _read(self, process: "subprocess.Popen[str]") -> None:
        for line in process.stderr or ():
            if " calls " in line:
                self.called = time.monotonic()
            elif "joined" not in line and "was lost" not in line:
                sys.stderr.write(f"the other device: {line}")


def inject(kind: str, seconds: float, bed: NamespaceTestbed, peer: Peer) -> float:
    """Inject one fault from beginning to end; return when the other device is back."""
    if kind == "kill":
        peer.process.kill()
        peer.process.wait()
        peer.start()
        while peer.called == math.inf and peer.process.poll() is None:
            time.sleep(0.01)
        return peer.called
    if kind == "freeze":
        peer.process.send_signal(signal.SIGSTOP)
        time.sleep(seconds)
        peer.process.send_signal(signal.SIGCONT)
    elif kind == "link":
        bed.stations[1].run("ip", "link", "set", INTERFACE, "down")
        time.sleep(seconds)
        bed.stations[1].run("ip", "link", "set", INTERFACE, "up")
    elif kind == "slow":
        bed.set_rate(1e6)
        time.sleep(seconds)
        bed.set_rate(RATE)
    else:
        block(bed, seconds)
    return time.monotonic()


def block(bed: NamespaceTestbed, seconds: float) -> None:
    """Lose packets for the join port by redirecting them to a device that is down; not every kernel can drop."""
    run = bed.stations[0].run
    run("ip", "link", "add", "hole", "type", "ifb")
    run("tc", "qdisc", "add", "dev", INTERFACE, "ingress")
    match = ("protocol", "ip", "u32", "match", "ip", "dport", str(PORT), "0xffff")
    redirect = ("action", "mirred", "egress", "redirect", "dev", "hole")
    run("tc", "filter", "add", "dev", INTERFACE, "parent", "ffff:", *match, *redirect)
    time.sleep(seconds)
    run("tc", "qdisc", "del", "dev", INTERFACE, "ingress")
    run("ip", "link", "del", "hole")


def length(kind: str, rng: random.Random) -> float:
    """Draw how long a fault lasts; a link is down for 0.05 to 30 s, short times being more frequent."""
    if kind == "link":
        return math.exp(rng.uniform(math.log(0.05), math.log(30.0))) if rng.random() < 0.3 else rng.uniform(0.05, 2.5)
    return rng.uniform(0.1, 3.0)
