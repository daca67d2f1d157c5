"""Prism's commands for a shell script, forked from the template of support.warm.

Each command is a script that hands its arguments, environment and files over to a thread of the process of the tests.
It stays until the forked process ends, passes signals on to it, and exits with its status.
"""

import array
import contextlib
import json
import os
import select
import signal
import socket
import sys
import tempfile
import threading
from pathlib import Path

from support import warm

CLIENT = """\
#!{python} -SE
import array, json, os, signal, socket, sys
server = socket.socket(socket.AF_UNIX)
server.connect({address!r})
request = {{"command": ["-m", {module!r}, sys.argv[1:]], "env": dict(os.environ), "cwd": os.getcwd(), "session": False}}
raw = json.dumps(request).encode()
server.sendmsg([len(raw).to_bytes(8, "big")], [(socket.SOL_SOCKET, socket.SCM_RIGHTS, array.array("i", [0, 1, 2]))])
server.sendall(raw)
child = int.from_bytes(server.recv(8, socket.MSG_WAITALL), "big")
for number in (signal.SIGTERM, signal.SIGINT, signal.SIGHUP):
    signal.signal(number, lambda number, frame: os.kill(child, number))
status = server.recv(1)
os._exit(status[0] if status else 1)
"""


class Commands:
    """A folder of commands, as a context manager. Whoever ends a script ends its process."""

    def __init__(self, folder: Path, modules: dict[str, str]) -> None:
        folder.mkdir(parents=True, exist_ok=True)
        self._place = tempfile.TemporaryDirectory(prefix="forks")  # a socket's path has at most 107 bytes
        self._address = f"{self._place.name}/socket"
        self._listener = socket.socket(socket.AF_UNIX)
        self._listener.bind(self._address)
        self._listener.listen()
        for name, module in modules.items():
            script = folder / name
            script.write_text(CLIENT.format(python=sys.executable, address=self._address, module=module))
            script.chmod(0o755)

    def __enter__(self) -> "Commands":
        threading.Thread(target=self._accept, daemon=True).start()
        return self

    def __exit__(self, *error: object) -> None:
        self._listener.shutdown(socket.SHUT_RDWR)
        self._listener.close()
        self._place.cleanup()

    def _accept(self) -> None:
        with contextlib.suppress(OSError):  # it was closed
            while True:
                client, _ = self._listener.accept()
                threading.Thread(target=_attend, args=(client,), daemon=True).start()


def _attend(client: socket.socket) -> None:
    with client:
        head, ancillary, _, _ = client.recvmsg(8, socket.CMSG_SPACE(3 * 4))
        files = array.array("i", ancillary[0][2]).tolist()
        raw = client.recv(int.from_bytes(head, "big"), socket.MSG_WAITALL)
        pid = warm.template.fork(json.loads(raw), files)
        for file in files:
            os.close(file)
        with contextlib.suppress(OSError):  # the script was killed
            client.sendall(pid.to_bytes(8, "big"))
        ended = os.pidfd_open(pid)
        ready, _, _ = select.select([ended, client], [], [])
        if ended not in ready:
            os.kill(pid, signal.SIGKILL)
        code = os.waitstatus_to_exitcode(os.waitpid(pid, 0)[1])
        os.close(ended)
        with contextlib.suppress(OSError):
            client.sendall(bytes([code if code >= 0 else 128 - code]))
