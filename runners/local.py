"""The local runner: an attempt is a process of this machine, isolated from nothing. For development only."""

from __future__ import annotations

import asyncio
import builtins
import contextlib
import dataclasses
import json
import os
import select
import shutil
import signal
import stat
import sys
import threading
import time
from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from bot.config import Settings
from bot.errors import ConfigurationError, InfrastructureError
from bot.ports import ContainerSpec, Exit, Handle
from runners.container_lock import SOCKET_NAME, checked_attempt_id

FOLDERS = ("workspace", "home", "tmp")
STATE = "process.json"  # which process it is; there before the attempt's program begins
STATUS = "exit.json"  # how it ended
STOPPED = "stopped"  # there when stop() ended it
OUTPUT = "output.log"  # what it said to the terminal that it has not
KILL_TIMEOUT = 10.0  # seconds that processes may take to die of SIGKILL
_INIT = Path(__file__).with_name("local_init.py")


@dataclass(frozen=True)
class _Process:
    """One line of /proc: proc_pid_stat(5)."""

    pid: int
    state: str
    parent: int
    session: int
    started: int  # clock ticks after boot: with the pid, a name that is never given twice


class LocalRunner:
    """Runs attempts as processes of the worker's own user. **It isolates nothing**: for development and demos.

    An attempt may read and change whatever the worker may, reach every network, and use all memory and
    processes: ``Limits.memory``, ``cpus``, ``pids`` and ``tmp`` are not enforced, only ``file``. So it must be
    allowed by ``allow_local_runner``, else ConfigurationError.

    Everything of an attempt lies in ``<data_dir>/attempts/<id>``; the folders which a container has at fixed
    places are told by ``HOME``, ``TMPDIR``, ``CONDUCTOR_WORKSPACE``, ``CONDUCTOR_SOCKET`` and ``CONDUCTOR_MIRROR``;
    ``CONDUCTOR_LISTEN_PORT`` is 0: take any free one. The image is not used.

    ``wait`` needs no thread and no poll: it waits for a pidfd, so also for a process that an earlier worker
    started. Processes that left the session are found by their parents and by their environment. ``Exit.code``
    is None when the attempt's own first process was killed from outside; ``Exit.oom`` is never known.
    """

    def __init__(self, settings: Settings) -> None:
        if not settings.allow_local_runner:
            raise ConfigurationError(
                "The local runner isolates nothing: an agent could read and change whatever this user may.",
                "Use CONDUCTOR_RUNNER=docker, or agree with CONDUCTOR_ALLOW_LOCAL_RUNNER=true.",
            )
        self._attempts = settings.data_dir.absolute() / "attempts"
        self._folders = threading.Lock()  # one makes or deletes an attempt's folders at a time

    async def check(self) -> None:
        """Raise InfrastructureError when this is no Linux with pidfds, or the data folder is not writable."""
        try:
            os.close(os.pidfd_open(os.getpid()))
            _boot()
        except (AttributeError, OSError) as error:
            raise InfrastructureError(
                f"The local runner cannot watch processes here: {error}.",
                "It needs Linux 5.4 or newer; use CONDUCTOR_RUNNER=docker elsewhere.",
            ) from error
        try:
            self._attempts.mkdir(parents=True, exist_ok=True)
        except OSError as error:
            raise _disk("make", error) from error
        if not os.access(self._attempts, os.W_OK | os.X_OK):
            raise InfrastructureError(
                f"{str(self._attempts)!r} is not writable.", "Check CONDUCTOR_DATA_DIR and its owner."
            )

    async def start(self, spec: ContainerSpec) -> Handle:
        """Start the attempt's process with fresh folders, or find it again. ConfigurationError for services."""
        checked_attempt_id(spec.attempt_id)
        if spec.services:
            raise ConfigurationError(
                "The local runner cannot run the repository's services.",
                "Use CONDUCTOR_RUNNER=docker, or leave `services` out of the repository's configuration.",
            )
        try:
            return await asyncio.to_thread(self._start, spec)
        except OSError as error:
            raise _disk("start an attempt in", error) from error

    async def wait(self, handle: Handle) -> Exit:
        """Return when the process has ended and nothing of it is left."""
        with self._open(handle) as pidfd:
            if pidfd is not None:
                await _readable(pidfd)
                _reap(pidfd)
        folder = self._folder(handle)
        if not (folder / STATE).exists():
            raise InfrastructureError(
                f"The process of attempt {handle.attempt_id} is gone.",
                "Somebody removed it before it had ended; the job can be tried again.",
            )
        # its init has ended them already, unless that was killed itself
        await self._kill_all(handle)
        status = _read_json(folder / STATUS)
        state = _read_json(folder / STATE) or {}
        return Exit(
            code=status.get("code") if status else None,
            signal=status.get("signal") if status else None,
            stopped=(folder / STOPPED).exists(),
            host=status is None and state.get("boot", _boot()) != _boot(),
        )

    async def stop(self, handle: Handle, grace: float) -> None:
        """SIGTERM to the attempt's program, SIGKILL to everything of it after ``grace`` seconds."""
        with self._open(handle) as pidfd:
            if pidfd is None or _is_over(pidfd):
                await self._kill_all(handle)
                return
            (self._folder(handle) / STOPPED).touch()
            _send(pidfd, signal.SIGTERM)  # its init hands it to the program
            await self.unpause(handle)  # or a frozen one could not obey
            if not await _readable(pidfd, grace):
                await self._end(handle, pidfd)
            _reap(pidfd)
        await self._kill_all(handle)

    async def pause(self, handle: Handle) -> None:
        """Freeze its processes with SIGSTOP."""
        await self._until_none(handle, signal.SIGSTOP, "freeze", settled="Tt", init=True)

    async def unpause(self, handle: Handle) -> None:
        """Let them go on with SIGCONT."""
        await asyncio.to_thread(self._signal_all, handle, signal.SIGCONT, init=True)

    async def list(self) -> builtins.list[Handle]:
        """Every attempt that has a folder of ours, its process running or not."""
        handles: builtins.list[Handle] = []
        if self._attempts.is_dir():
            handles = [self._handle(state.parent.name) for state in sorted(self._attempts.glob(f"*/{STATE}"))]
        return handles

    async def remove(self, handle: Handle) -> None:
        """Kill what runs and delete its folders, following no link."""
        with self._open(handle) as pidfd:
            if pidfd is not None:
                _send(pidfd, signal.SIGKILL)  # first, or it could begin the program only now
                await _readable(pidfd, KILL_TIMEOUT)
                _reap(pidfd)
            await self._kill_all(handle)
        try:
            await asyncio.to_thread(self._delete, self._folder(handle))
        except OSError as error:
            raise _disk("delete", error) from error

    async def workspace_bytes(self) -> Mapping[str, int]:
        """Bytes of each attempt's folders, as the disk counts them."""

        def look() -> dict[str, int]:
            return {
                handle.parent.name: sum(_size(handle.parent / name) for name in FOLDERS)
                for handle in self._attempts.glob(f"*/{STATE}")
            }

        return await asyncio.to_thread(look)

    async def close(self) -> None:
        """Nothing is held open; processes go on."""

    # --- one attempt's process -----------------------------------------------------------------------

    def _folder(self, handle: Handle) -> Path:
        return self._attempts / checked_attempt_id(handle.attempt_id)

    def _start(self, spec: ContainerSpec) -> Handle:
        folder = self._attempts / spec.attempt_id
        with self._folders:
            if not (folder / STATE).exists():
                _delete(folder)  # of a start that was cut short: the work must be fresh
                for name in FOLDERS:
                    (folder / name).mkdir(mode=0o700, parents=True)
                self._spawn(folder, spec)
        return self._handle(spec.attempt_id)

    def _delete(self, folder: Path) -> None:
        with self._folders:
            _delete(folder)

    def _spawn(self, folder: Path, spec: ContainerSpec) -> None:
        order = {
            "argv": list(spec.argv),
            "env": _environment(folder, spec),
            "cwd": str(folder / "workspace"),
            "status": str(folder / STATUS),
            "fsize": spec.limits.file,
        }
        read, write = os.pipe()
        with os.fdopen(write, "wb") as orders:
            try:
                # not subprocess: it must outlive this worker, and its Popen object would complain of that
                pid = os.posix_spawn(
                    sys.executable,
                    [sys.executable, "-I", "-S", str(_INIT)],
                    {},
                    setsid=True,
                    setsigmask=[signal.SIGTERM],  # kept for it until it can hand it on
                    setsigdef=[signal.SIGTERM, signal.SIGINT, signal.SIGHUP, signal.SIGPIPE],
                    file_actions=[
                        (os.POSIX_SPAWN_DUP2, read, 0),
                        (
                            os.POSIX_SPAWN_OPEN,
                            1,
                            str(folder / OUTPUT),
                            os.O_WRONLY | os.O_CREAT | os.O_APPEND,
                            0o600,
                        ),
                        (os.POSIX_SPAWN_DUP2, 1, 2),
                    ],
                )
            finally:
                os.close(read)
            process = _process(pid)
            if process is None:
                raise InfrastructureError(
                    "The local runner's first process ended at once.", f"Run {sys.executable} -I -S by hand."
                )
            part = folder / f"{STATE}.part"
            part.write_text(json.dumps({"pid": pid, "started": process.started, "boot": _boot()}))
            part.rename(folder / STATE)
            orders.write(json.dumps(order).encode())  # from here on it may begin

    def _handle(self, attempt_id: str) -> Handle:
        state = _read_json(self._attempts / attempt_id / STATE) or {}
        handle = Handle(attempt_id=attempt_id, ref=str(state.get("pid", "")), running=False)
        with self._open(handle) as pidfd:
            running = pidfd is not None and not _is_over(pidfd)
            if pidfd is not None and not running:
                _reap(pidfd)
        return dataclasses.replace(handle, running=running)

    def _known(self, handle: Handle) -> tuple[int, int] | None:
        """Pid and start of the attempt's init, when it was started since this machine was."""
        state = _read_json(self._folder(handle) / STATE)
        if state is None or state.get("boot") != _boot():
            return None
        return int(state["pid"]), int(state["started"])

    @contextlib.contextmanager
    def _open(self, handle: Handle) -> Iterator[int | None]:
        """A pidfd of the attempt's init, or None when there is no such process any more."""
        known = self._known(handle)
        pidfd: int | None = None
        if known is not None:
            pidfd = _open_process(*known)
        try:
            yield pidfd
        finally:
            if pidfd is not None:
                os.close(pidfd)

    def _members(self, handle: Handle, init: bool) -> builtins.list[_Process]:
        """Every living process of the attempt, however it tried to leave; ``init``: its init too."""
        known = self._known(handle)
        if known is None:
            return []
        pid, started = known
        processes = {process.pid: process for process in _processes()}
        first = processes.get(pid)
        reused = first is not None and first.started != started
        cookie = f"CONDUCTOR_WORKSPACE={self._folder(handle) / 'workspace'}".encode()
        found = {
            process.pid
            for process in processes.values()
            if (process.session == pid and not reused) or cookie in _environ(process.pid)
        }
        size = -1
        while size != len(found):
            size = len(found)
            found |= {process.pid for process in processes.values() if process.parent in found}
        found -= {os.getpid()} if init else {os.getpid(), pid}
        return [processes[one] for one in found if processes[one].state not in "ZX"]

    def _signal_all(
        self, handle: Handle, number: signal.Signals, settled: str = "", init: bool = False
    ) -> int:
        """Signal every process of the attempt that is in none of the states ``settled``; how many."""
        count = 0
        for process in self._members(handle, init):
            if process.state not in settled:
                count += 1
                pidfd = _open_process(process.pid, process.started)
                if pidfd is not None:
                    try:
                        _send(pidfd, number)
                    finally:
                        os.close(pidfd)
        return count

    async def _until_none(
        self, handle: Handle, number: signal.Signals, what: str, settled: str = "", init: bool = False
    ) -> None:
        """Signal again and again until no process is left to signal: more may be born meanwhile."""
        until = time.monotonic() + KILL_TIMEOUT
        while left := await asyncio.to_thread(self._signal_all, handle, number, settled, init):
            if time.monotonic() > until:
                raise _stuck(handle, f"{left} processes", what)
            await asyncio.sleep(0.01)

    async def _end(self, handle: Handle, pidfd: int) -> None:
        """Kill everything of the attempt until its init has seen the program die and told how."""
        until = time.monotonic() + KILL_TIMEOUT
        while not _is_over(pidfd):
            await self._kill_all(handle)
            if time.monotonic() > until + KILL_TIMEOUT:
                raise _stuck(handle, "The first process", "die")
            if time.monotonic() > until:
                _send(pidfd, signal.SIGKILL)  # something keeps our own init from its work
            await _readable(pidfd, 0.05)

    async def _kill_all(self, handle: Handle) -> None:
        await self._until_none(handle, signal.SIGKILL, "die")


def _environment(folder: Path, spec: ContainerSpec) -> dict[str, str]:
    variables = {"PATH": os.environ.get("PATH", os.defpath), "LANG": "C.UTF-8"} | dict(spec.env)
    variables |= {
        "HOME": str(folder / "home"),
        "TMPDIR": str(folder / "tmp"),
        "CONDUCTOR_WORKSPACE": str(folder / "workspace"),
        "CONDUCTOR_SOCKET": str(spec.socket_dir.absolute() / SOCKET_NAME),
        "CONDUCTOR_LISTEN_PORT": "0",
    }
    if spec.mirror is not None:
        variables["CONDUCTOR_MIRROR"] = str(spec.mirror.absolute())
    return variables


# --- processes ----------------------------------------------------------------------------------------


def _boot() -> str:
    return Path("/proc/sys/kernel/random/boot_id").read_text().strip()


def _process(pid: int) -> _Process | None:
    try:
        text = Path(f"/proc/{pid}/stat").read_bytes()
    except OSError:
        return None
    fields = text.rpartition(b")")[2].split()  # the name before may hold anything
    return _Process(
        pid=pid,
        state=fields[0].decode(),
        parent=int(fields[1]),
        session=int(fields[3]),
        started=int(fields[19]),
    )


def _processes() -> Iterator[_Process]:
    for entry in Path("/proc").iterdir():
        if entry.name.isdecimal() and (process := _process(int(entry.name))) is not None:
            yield process


def _environ(pid: int) -> builtins.list[bytes]:
    try:
        return Path(f"/proc/{pid}/environ").read_bytes().split(b"\0")
    except OSError:
        return []  # ended, or another user's


def _open_process(pid: int, started: int) -> int | None:
    """A pidfd of exactly that process, or None: a pid alone may have been given to another since."""
    try:
        pidfd = os.pidfd_open(pid)
    except ProcessLookupError:
        return None
    process = _process(pid)
    if process is None or process.started != started:
        os.close(pidfd)
        return None
    return pidfd


def _send(pidfd: int, number: signal.Signals) -> None:
    with contextlib.suppress(ProcessLookupError):
        signal.pidfd_send_signal(pidfd, number)


def _is_over(pidfd: int) -> bool:
    poll = select.poll()
    poll.register(pidfd, select.POLLIN)
    return bool(poll.poll(0))


async def _readable(pidfd: int, seconds: float | None = None) -> bool:
    """Whether the process ended within ``seconds`` (None: wait for ever)."""
    loop = asyncio.get_running_loop()
    over = asyncio.Event()
    loop.add_reader(pidfd, over.set)
    try:
        async with asyncio.timeout(seconds):
            await over.wait()
    except TimeoutError:
        return False
    finally:
        loop.remove_reader(pidfd)
    return True


def _reap(pidfd: int) -> None:
    # it is no child of ours when an earlier worker started it; then init reaps it
    with contextlib.suppress(ChildProcessError):
        os.waitid(os.P_PIDFD, pidfd, os.WEXITED | os.WNOHANG)


def _stuck(handle: Handle, who: str, what: str) -> InfrastructureError:
    return InfrastructureError(
        f"{who} of attempt {handle.attempt_id} did not {what} in {KILL_TIMEOUT:.0f} seconds.",
        "Look with `ps`: such a process hangs in the kernel, or belongs to another user.",
    )


# --- files --------------------------------------------------------------------------------------------


def _read_json(path: Path) -> dict[str, Any] | None:
    try:
        value = json.loads(path.read_bytes())
    except (FileNotFoundError, NotADirectoryError, ValueError):
        return None
    return value if isinstance(value, dict) else None


def _delete(folder: Path) -> None:
    """Delete what is ours in ``folder``, and itself when nothing else is in it. The state goes last."""
    for name in FOLDERS:
        _delete_tree(folder / name)
    for name in (OUTPUT, STOPPED, STATUS, f"{STATUS}.part", f"{STATE}.part", STATE):
        (folder / name).unlink(missing_ok=True)
    with contextlib.suppress(OSError):  # somebody else's files are there
        folder.rmdir()


def _size(folder: Path) -> int:
    """Bytes on disk below ``folder``, following no link; a file with several names there counts once."""
    seen: dict[tuple[int, int], int] = {}
    for parent, _, files in os.walk(folder):
        for name in files:
            with contextlib.suppress(OSError):  # gone meanwhile
                found = os.lstat(os.path.join(parent, name))  # noqa: PTH118 - a Path for each is far slower
                seen[found.st_dev, found.st_ino] = found.st_blocks * 512  # stat(2)
    return sum(seen.values())


def _delete_tree(path: Path) -> None:
    if path.is_symlink() or path.is_file():
        path.unlink()
    elif path.exists():
        _allow_deletion(path)
        for parent, folders, _ in os.walk(path):
            for name in folders:
                _allow_deletion(Path(parent, name))
        shutil.rmtree(path)


def _allow_deletion(folder: Path) -> None:
    """Undo a read-only mode; package managers give it to their caches. Never through a link."""
    found = folder.lstat()
    if stat.S_ISDIR(found.st_mode) and found.st_mode & stat.S_IRWXU != stat.S_IRWXU:
        folder.chmod(stat.S_IRWXU)


def _disk(what: str, error: OSError) -> InfrastructureError:
    return InfrastructureError(
        f"The local runner could not {what} {error.filename or 'its folder'!r}: {error.strerror or error}.",
        "Check CONDUCTOR_DATA_DIR, its owner, and the free space.",
    )
