"""The first process of a local attempt: what the engine's init is for a container. Standard library only.

``runners.local`` starts it in a session of its own and sends ``{"argv", "env", "cwd", "status", "fsize"}`` as
JSON on standard input. The end of the input is the permission to start: when the worker dies before, no
attempt begins that nobody knows of. It adopts everything that the program leaves behind, ends it when
the program has ended, and writes how that went to the file ``status``.
"""

from __future__ import annotations

import ctypes
import json
import os
import resource
import signal
import subprocess
import sys
import types
from pathlib import Path

PR_SET_CHILD_SUBREAPER = 36  # prctl(2)


def main() -> None:
    """Run the program that standard input describes, to its end."""
    text = sys.stdin.buffer.read()
    if not text:
        return  # the worker died before it could say what to do
    order = json.loads(text)
    if ctypes.CDLL(None, use_errno=True).prctl(PR_SET_CHILD_SUBREAPER, 1, 0, 0, 0) != 0:
        raise OSError(ctypes.get_errno(), "prctl(PR_SET_CHILD_SUBREAPER) failed")
    resource.setrlimit(resource.RLIMIT_CORE, (0, 0))
    _, hard = resource.getrlimit(resource.RLIMIT_FSIZE)
    size = order["fsize"] if hard == resource.RLIM_INFINITY else min(order["fsize"], hard)
    resource.setrlimit(resource.RLIMIT_FSIZE, (size, size))
    status = _run(order["argv"], order["env"], order["cwd"])
    _end_orphans()
    _write(Path(order["status"]), status)


def _run(argv: list[str], env: dict[str, str], cwd: str) -> dict[str, int | None]:
    child: subprocess.Popen[bytes] | None = None
    early: list[int] = []

    def forward(number: int, _: types.FrameType | None) -> None:
        if child is None:
            early.append(number)
        else:
            child.send_signal(number)

    # a handler, not "ignore": the program begins with the default action
    signal.signal(signal.SIGTERM, forward)
    signal.pthread_sigmask(signal.SIG_UNBLOCK, {signal.SIGTERM})  # blocked since before we were started
    try:
        child = subprocess.Popen(argv, env=env, cwd=cwd, stdin=subprocess.DEVNULL)
    except PermissionError:
        return {"code": 126, "signal": None}  # as shells and a container's init tell it
    except OSError:
        return {"code": 127, "signal": None}
    for number in early:
        child.send_signal(number)
    code = child.wait()
    return {"code": code, "signal": None} if code >= 0 else {"code": 128 - code, "signal": -code}


def _end_orphans() -> None:
    """Kill every descendant; each that loses its parent becomes our child, so none is missed."""
    while True:
        for pid in _children():
            os.kill(pid, signal.SIGKILL)
        try:
            os.waitpid(-1, 0)
        except ChildProcessError:
            return


def _children() -> list[int]:
    me = str(os.getpid())
    found = []
    for entry in Path("/proc").iterdir():
        if entry.name.isdecimal():
            try:
                fields = (entry / "stat").read_bytes().rpartition(b")")[2].split()
            except OSError:
                continue  # it has just ended
            if fields[1].decode() == me:
                found.append(int(entry.name))
    return found


def _write(path: Path, status: dict[str, int | None]) -> None:
    part = path.with_name(path.name + ".part")
    part.write_text(json.dumps(status))
    part.rename(path)


if __name__ == "__main__":
    main()
