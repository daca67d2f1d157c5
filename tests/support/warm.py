"""Start Prism's own commands and ranks from a process that has already imported torch.

A test that runs `prism-hw run` starts three Python processes, and each imports torch, torchvision and timm: 14 s of
processor time to compute for 50 ms. `Popen` replaces `subprocess.Popen` for the whole test session (tests/conftest.py).
A command of the form `python -m hw...` or `python -c "... sim.cli.main ..."` is forked from a template process that
holds the imports; everything else starts as always. What the fork does afterwards is the command itself, with a process
id, environment, working directory, files and exit status of its own. Its child ranks are forked the same way. Its
parent is the process that started it: the intermediate parent exits, and the kernel hands orphans to the nearest
subreaper.

A test whose subject is the start itself (imports, signals, orphans) carries the marker `cold`.
"""

import array
import atexit
import ctypes
import gc
import importlib
import json
import os
import random
import signal
import socket
import subprocess
import sys
import tempfile
import threading
import traceback
from pathlib import Path
from typing import Any

IMPORTS = (
    "timm.models.vision_transformer",
    "hw.cli.main",
    "hw.run.session",
    "hw.run.launch",
    "hw.serving.app",
    "hw.serving.follower",
    "sim.cli.main",
)
PR_SET_CHILD_SUBREAPER = 36
REPLACES = "PRISM_TEST_REPLACES"  # an environment variable: code that replaces something in a command and its ranks
ROOM = " " * 4000  # on the command line, for that of a fork
ColdPopen = subprocess.Popen


def command_of(args: Any) -> tuple[str, str, list[str]] | None:
    """Split a command that a warm process can run into its kind ("-m" or "-c"), its text, and its arguments."""
    if isinstance(args, (str, bytes, os.PathLike)) or len(args) < 3 or args[0] != sys.executable:
        return None
    kind, text = args[1], str(args[2])
    ours = text.startswith(("hw.", "support.")) if kind == "-m" else kind == "-c" and "sim.cli.main" in text
    return (kind, text, list(map(str, args[3:]))) if ours else None


class Popen(ColdPopen):  # type: ignore[type-arg]
    """`subprocess.Popen` that forks what it can from a warm process."""

    cold = False  # the test that runs wants every process started anew

    def _execute_child(self, *arguments: Any) -> None:
        args, executable, _, _, pass_fds, cwd, env, _, _, shell = arguments[:10]
        pipes, rest = arguments[10:16], arguments[16:]
        command = None if Popen.cold or shell or executable or pass_fds else command_of(args)
        if command is None:
            super()._execute_child(*arguments)
            return
        files = [own if own != -1 else default for default, own in enumerate((pipes[0], pipes[3], pipes[5]))]
        new_session = rest[5]
        request = {
            "command": command,
            "env": {os.fsdecode(k): os.fsdecode(v) for k, v in (os.environ if env is None else env).items()},
            "cwd": os.fspath(cwd) if cwd else os.getcwd(),
            "session": bool(new_session),
        }
        self.pid = template.fork(request, files)
        self._child_created = True
        self._close_pipe_fds(*pipes)


class Template:
    """The process that holds the imports, started when it is first needed."""

    def __init__(self, connection: socket.socket | None = None) -> None:
        self._socket = connection
        self._lock = threading.Lock()

    def fork(self, request: dict[str, Any], files: list[int]) -> int:
        with self._lock:
            if self._socket is None:
                self._socket = self._start()
            raw = json.dumps(request).encode()
            rights = array.array("i", files)
            head = len(raw).to_bytes(8, "big")
            self._socket.sendmsg([head], [(socket.SOL_SOCKET, socket.SCM_RIGHTS, rights)])
            self._socket.sendall(raw)
            answer = self._socket.recv(8)
            if not answer:
                raise RuntimeError("the warm process ended")
            return int.from_bytes(answer, "big")

    def _start(self) -> socket.socket:
        _adopt_orphans()
        ours, theirs = socket.socketpair()
        here = Path(__file__).parents[1]
        paths = [str(here.parent), str(here), os.environ.get("PYTHONPATH", "")]
        environment = {
            **os.environ,
            "TORCH_CPP_LOG_LEVEL": "FATAL",
            "HF_HUB_OFFLINE": "1",
            "PYTHONPATH": os.pathsep.join(paths),
        }
        command = [sys.executable, "-m", "support.warm", str(theirs.fileno()), ROOM]
        self._process = ColdPopen(command, stdin=subprocess.DEVNULL, env=environment, pass_fds=[theirs.fileno()])
        theirs.close()
        return ours


template = Template()


def serve(connection: socket.socket) -> None:
    """Fork a process for each request until the other end closes."""
    while True:
        head, ancillary, _, _ = connection.recvmsg(8, socket.CMSG_SPACE(3 * 4))
        if not head:
            return
        files = array.array("i", ancillary[0][2]).tolist()
        raw = b""
        while len(raw) < int.from_bytes(head, "big"):
            raw += connection.recv(1 << 20)
        request = json.loads(raw)
        reading, writing = os.pipe()
        if (between := os.fork()) == 0:
            os.close(reading)
            os.write(writing, _fork(request, files, os.getpid()).to_bytes(8, "big"))
            os._exit(0)
        os.close(writing)
        pid = os.read(reading, 8)
        os.close(reading)
        os.waitpid(between, 0)
        for file in files:
            os.close(file)
        connection.sendall(pid)


def _fork(request: dict[str, Any], files: list[int], between: int) -> int:
    """Fork a process that runs a request and ends; the parent, whose id `between` is, returns the child's id.

    The child begins when its parent has exited, so that it belongs to the process that asked.
    """
    for stream in (sys.stdout, sys.stderr):
        stream.flush()
    if (pid := os.fork()) > 0:
        return pid
    status = 1
    try:
        status = _run(request, files, between)
    except BaseException:
        traceback.print_exc()
    finally:
        for stream in (sys.stdout, sys.stderr):
            try:
                stream.flush()
            except OSError:
                status = status or 120
        os._exit(status)


def _run(request: dict[str, Any], files: list[int], between: int) -> int:
    while os.getppid() == between:
        os.sched_yield()
    kind, text, arguments = request["command"]
    _show_as([sys.executable, kind, text, *arguments])
    helper = _own_template() if text == "hw.cli.main" else None
    spare = [os.dup(file) if file < 3 else file for file in files]  # none is overwritten before it is used
    for target, file in enumerate(spare):
        os.dup2(file, target)
    _close_all_but(helper.fileno() if helper else 2)
    if request["session"]:
        os.setsid()
    signal.signal(signal.SIGINT, signal.default_int_handler)
    os.environ.clear()
    os.environ.update(request["env"])
    os.chdir(request["cwd"])
    random.seed()
    tempfile.tempdir = None
    global template
    template, subprocess.Popen = Template(helper), Popen  # type: ignore[misc]
    Popen.cold = helper is None
    exec(os.environ.get(REPLACES, ""), {})
    try:
        if kind == "-m":
            module = sys.modules["__main__"] = importlib.import_module(text)
            sys.argv = [str(module.__file__), *arguments]
            code: Any = module.main()
        else:
            sys.argv = ["-c", *arguments]
            exec(compile(text, "<string>", "exec"), {"__name__": "__main__"})
            code = 0
    except SystemExit as end:
        code = end.code
    except KeyboardInterrupt:
        traceback.print_exc()
        code = 130
    if isinstance(code, str):
        print(code, file=sys.stderr)
    threading._shutdown()  # type: ignore[attr-defined]
    atexit._run_exitfuncs()
    return code if isinstance(code, int) else int(code is not None)


def _own_template() -> socket.socket:
    """Fork a template for the ranks of this process, before it computes: a pool of threads doesn't survive a fork."""
    ours, theirs = socket.socketpair()
    if os.fork() == 0:
        _close_all_but(theirs.fileno())
        serve(theirs)
        os._exit(0)
    theirs.close()
    _adopt_orphans()
    return ours


def _show_as(command: list[str]) -> None:
    """Put a command line in the place of the template's, where the kernel and `ps` read it."""
    start, end = map(int, Path("/proc/self/stat").read_text().rpartition(")")[2].split()[45:47])
    shown = "\0".join(command).encode()[: end - start - 1]
    ctypes.memmove(start, shown.ljust(end - start, b"\0"), end - start)


def _adopt_orphans() -> None:
    ctypes.CDLL(None).prctl(PR_SET_CHILD_SUBREAPER, 1)


def _close_all_but(kept: int) -> None:
    os.closerange(3, kept)
    os.closerange(max(kept + 1, 3), 1024)


def main() -> None:
    for name in IMPORTS:
        importlib.import_module(name)
    sys.modules["hw.probe.pace"].CALLS = 1  # a trace has all its stretches, each of one call
    gc.collect()
    gc.freeze()
    serve(socket.socket(fileno=int(sys.argv[1])))


if __name__ == "__main__":
    sys.modules["support.warm"] = sys.modules["__main__"]  # one `template` for both names
    main()
