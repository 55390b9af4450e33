"""The shim: the first program in an attempt's container, between the agent CLI and the worker's gateway.

It relays a loopback port to the gateway's Unix socket, then asks for turns, runs the agent for each, sends its
output, commits and pushes what it made, and reports. The protocol is in docs/architecture.md.

One file, standard library only, Python 3.9 or newer: it is copied into images whose Python we do not choose.
Run as ``python3 shim.py``. Environment: ``CONDUCTOR_SOCKET``, ``CONDUCTOR_TOKEN``, ``CONDUCTOR_WORKSPACE``, ``HOME``;
``CONDUCTOR_MIRROR`` (empty: clone through the gateway), ``CONDUCTOR_LISTEN_PORT`` (0: any free port, the default)
and ``CONDUCTOR_PATIENCE`` (how many seconds to go on without a gateway, 3600).
Exit codes: 0 told to stop by the gateway, 143 by SIGTERM, 1 the gateway is gone or refuses us, 2 wrong set-up.
"""

from __future__ import annotations

import asyncio
import base64
import contextlib
import ctypes
import fcntl
import json
import os
import shutil
import signal
import stat
import subprocess
import sys
import tarfile
import tempfile
import time
from collections.abc import Awaitable, Iterable, Iterator, Mapping, Sequence
from json.encoder import encode_basestring
from pathlib import Path, PurePosixPath
from typing import IO, Any, NamedTuple, TypeVar

MAX_LINE = 1 << 20  # bytes of one output line; the rest is cut
MAX_POST = 512 * 1024  # bytes of one post of events (one longer event may exceed it)
MAX_POST_LINES = 4000
MAX_EVENT_LINES = 500
SMALL_POST = MAX_POST // 2
POST_INTERVAL = 0.02  # seconds between two small posts: bounds what a chatty agent costs the host
MAX_SPOOL = 256 << 20  # unacknowledged bytes on disk before the agent's output is no longer read
MAX_HELD = 4 << 20  # the same in memory, for when the disk is full
MAX_SESSION = 100 << 20  # bytes of a thread's session files
MAX_SESSION_FILES = 20_000
FOREIGN = "pull-request"  # beside the work tree: the branch's own versions of what was restored
MAX_FOREIGN = 16 << 20  # bytes of them
MAX_FOREIGN_FILES = 300
MAX_ERROR = 4000  # characters of a reported error
HEARTBEAT = 10.0  # seconds
STOP_GRACE = 5.0  # seconds for the agent when we are ended ourselves: our own time is short then
LONG_POLL = 40.0  # seconds; the gateway answers within 25
GIT_SECONDS = 600.0
CLONE_SECONDS = 1800.0
#: Where the image tells programs which certificate authorities to trust: TLS goes end to end through the proxy.
TRUST = (
    "SSL_CERT_FILE", "SSL_CERT_DIR", "PIP_CERT", "REQUESTS_CA_BUNDLE", "CURL_CA_BUNDLE", "GIT_SSL_CAINFO",
    "NODE_EXTRA_CA_CERTS", "npm_config_cafile",
)  # fmt: skip
RELAY_WAIT = 60.0  # seconds a relayed connection waits for a restarting gateway
EXCLUDED = ".conductor"  # our own folder below HOME: never part of a session

T = TypeVar("T")


class GatewayDown(Exception):
    """One exchange with the gateway failed; another may work."""


class GatewayGone(Exception):
    """The gateway stayed silent longer than our patience, or does not know our token."""


class Stopped(Exception):
    """SIGTERM arrived, or the gateway is gone: end the work in hand."""


class GitFailed(Exception):
    """A git command failed; the text is git's own."""


class SessionRefused(Exception):
    """A session archive holds something that has no place in it, or is too large."""


# --- session files ------------------------------------------------------------------------------------


def check_session(archive: Path) -> None:
    """Raise SessionRefused unless ``archive`` is an uncompressed tar of plain files and folders within limits.

    The host checks with it what a container sent, the shim what it is about to unpack.
    """
    with _open_session(archive) as tar:
        for _ in _members(tar):
            pass


def unpack_session(archive: Path, home: Path) -> None:
    """Unpack a session below ``home``: plain files only, never through a link. Raises SessionRefused."""
    check_session(archive)
    with _open_session(archive) as tar:
        for member in _members(tar):
            target = home / member.name
            _plain_folders(home, target if member.isdir() else target.parent)
            if member.isdir():
                continue
            source = tar.extractfile(member)
            if source is None:
                raise SessionRefused(f"{member.name} cannot be read")
            if target.is_symlink() or target.is_file():
                target.unlink()  # never write through what is there
            flags = os.O_WRONLY | os.O_CREAT | os.O_EXCL | os.O_NOFOLLOW | os.O_CLOEXEC
            with (
                source,
                os.fdopen(os.open(target, flags, 0o700 if member.mode & 0o100 else 0o600), "wb") as out,
            ):
                shutil.copyfileobj(source, out)


def pack_session(home: Path, paths: Sequence[str], archive: Path) -> int:
    """Write the plain files below ``paths`` (relative to ``home``) to a tar; returns how many.

    Links, sockets, pipes and devices are left out. Raises SessionRefused above the limits.
    """
    total = count = 0
    with tarfile.open(archive, "w", format=tarfile.PAX_FORMAT) as tar:
        for path in paths:
            for found in _plain_files(home, _relative(path)):
                try:
                    descriptor = os.open(found, os.O_RDONLY | os.O_NOFOLLOW | os.O_NONBLOCK | os.O_CLOEXEC)
                except OSError:
                    continue  # unreadable or just gone: nothing that a resumed agent could miss
                with os.fdopen(descriptor, "rb") as file:
                    status = os.fstat(file.fileno())
                    if not stat.S_ISREG(status.st_mode):
                        continue
                    total += status.st_size
                    count += 1
                    if total > MAX_SESSION or count > MAX_SESSION_FILES:
                        raise SessionRefused(
                            f"the session files are more than {MAX_SESSION >> 20} MB or {MAX_SESSION_FILES} files"
                        )
                    member = tarfile.TarInfo(str(found.relative_to(home)))
                    member.size = status.st_size
                    member.mode = status.st_mode & 0o700
                    member.mtime = int(status.st_mtime)
                    tar.addfile(member, file)
    return count


def _open_session(archive: Path) -> tarfile.TarFile:
    if archive.stat().st_size > 2 * MAX_SESSION:
        raise SessionRefused(f"the session archive is larger than {2 * MAX_SESSION >> 20} MB")
    try:
        return tarfile.open(archive, "r:")  # with the colon nothing is ever decompressed
    except (tarfile.TarError, ValueError, OSError, EOFError) as error:
        raise SessionRefused(f"the session is not an uncompressed tar: {error}") from error


def _members(tar: tarfile.TarFile) -> Iterator[tarfile.TarInfo]:
    total = count = 0
    try:
        for member in tar:
            count += 1
            _relative(member.name)
            if not member.isdir():
                if not member.isreg() or member.issparse():
                    raise SessionRefused(f"{member.name!r} is not a plain file")
                total += member.size
            if total > MAX_SESSION or count > MAX_SESSION_FILES:
                raise SessionRefused(
                    f"the session holds more than {MAX_SESSION >> 20} MB or {MAX_SESSION_FILES} files"
                )
            yield member
    except (tarfile.TarError, ValueError, OSError, EOFError, OverflowError) as error:
        raise SessionRefused(f"the session archive is broken: {error}") from error


def _relative(path: str) -> PurePosixPath:
    pure = PurePosixPath(path)
    if (
        pure.is_absolute()
        or ".." in pure.parts
        or not pure.parts
        or "\0" in path
        or pure.parts[0] == EXCLUDED
    ):
        raise SessionRefused(f"{path!r} is not a path below the home folder")
    return pure


def _plain_folders(home: Path, folder: Path) -> None:
    current = home
    for part in folder.relative_to(home).parts:
        current = current / part
        with contextlib.suppress(FileExistsError):
            current.mkdir(0o700)
        if not stat.S_ISDIR(current.lstat().st_mode):
            raise SessionRefused(f"{current} is in the way and not a folder")


def _plain_files(home: Path, path: PurePosixPath) -> Iterator[Path]:
    current = home
    for part in path.parts:
        current = current / part
        if current.is_symlink():
            return
    if current.is_file():
        yield current
    for folder, names, files in os.walk(current, followlinks=False):
        names.sort()
        for name in sorted(files):
            yield Path(folder) / name


# --- the agent's output --------------------------------------------------------------------------------


class LineSplitter:
    """Cuts a stream of bytes into lines of text; a line above MAX_LINE loses its end and says so."""

    def __init__(self) -> None:
        self._partial: list[bytes] = []
        self._kept = 0
        self._dropped = 0

    def feed(self, data: bytes) -> list[str]:
        """The lines completed by ``data``, without their ends."""
        whole, end, rest = data.rpartition(b"\n")
        lines: list[str] = []
        if end and self._kept:
            first, end, whole = whole.partition(b"\n")
            self._add(first)
            lines.append(self._take())
        if end and len(whole) > MAX_LINE:
            for piece in whole.split(b"\n"):
                self._add(piece)
                lines.append(self._take())
        elif end:
            text = whole.decode("utf-8", "replace")  # at once: no character holds the byte of a line's end
            lines += [line.rstrip("\r") for line in text.split("\n")] if "\r" in text else text.split("\n")
        self._add(rest)
        return lines

    def finish(self) -> list[str]:
        """The last line, where it has no end."""
        return [self._take()] if self._kept else []

    def _add(self, piece: bytes) -> None:
        room = MAX_LINE - self._kept
        if piece[:room]:
            self._partial.append(piece[:room])
        self._kept += min(len(piece), room)
        self._dropped += max(0, len(piece) - room)

    def _take(self) -> str:
        text = b"".join(self._partial).decode("utf-8", "replace").rstrip("\r")
        if self._dropped:
            text += f" …[line cut, {self._dropped} bytes left out]"
        self._partial, self._kept, self._dropped = [], 0, 0
        return text


_SEQ = '{"seq":'  # what each event in the spool begins with; the number of its last line follows


class Spool:
    """Lines that the gateway has not acknowledged yet, in a file; in memory while the disk is full.

    Lines that came together are one event: a line of JSON, ready to be posted.
    """

    def __init__(self, path: Path) -> None:
        flags = os.O_RDWR | os.O_CREAT | os.O_TRUNC | os.O_NOFOLLOW | os.O_CLOEXEC
        self._file = os.open(path, flags, 0o600)
        self._start = 0  # offset of the first unacknowledged byte
        self._end = 0
        self._held: list[bytes] = []  # newer than everything in the file
        self._held_size = 0
        self._shrunk = asyncio.Event()
        self.empty = asyncio.Event()
        self.empty.set()
        self.seq = 0  # of the newest line
        self.acked = 0  # of the newest that is forgotten
        self.grown = asyncio.Event()
        self.plenty = asyncio.Event()  # there is enough for a post that is not small

    def close(self) -> None:
        """Close the file."""
        os.close(self._file)

    def put(self, stream: str, lines: Sequence[str]) -> None:
        """Append lines."""
        if not lines:
            return
        about = f'"time":{time.time():.3f},"stream":"{stream}","lines":['
        block = []
        for start in range(0, len(lines), MAX_EVENT_LINES):
            some = lines[start : start + MAX_EVENT_LINES]
            self.seq += len(some)
            block.append(f"{_SEQ}{self.seq},{about}{','.join(map(encode_basestring, some))}]}}\n")
        data = "".join(block).encode("utf-8", "replace")
        if self._held or not self._write(data):
            self._held.append(data)
            self._held_size += len(data)
        self.empty.clear()
        self.grown.set()
        if self.size >= SMALL_POST:
            self.plenty.set()

    def _write(self, data: bytes) -> bool:
        view = memoryview(data)
        written = 0
        try:
            while written < len(data):
                written += os.pwrite(self._file, view[written:], self._end + written)
        except OSError:
            return False  # full or over quota: what was half written is not counted
        self._end += len(data)
        return True

    async def room(self) -> None:
        """Wait until less than the limits is unacknowledged: the agent's pipe fills and it waits too."""
        while self._end - self._start > MAX_SPOOL or self._held_size > MAX_HELD:
            self._shrunk.clear()
            await self._shrunk.wait()

    @property
    def size(self) -> int:
        """Unacknowledged bytes."""
        return self._end - self._start + self._held_size

    def block(self) -> tuple[bytes, int]:
        """The oldest unacknowledged events, at most one post's worth, and the number of their last line."""
        if self._start == self._end:
            data = b"".join(self._held)
            cut = data.rfind(b"\n", 0, MAX_POST) + 1 or data.find(b"\n") + 1
        else:
            size = MAX_POST
            while True:
                data = os.pread(self._file, min(size, self._end - self._start), self._start)
                cut = data.rfind(b"\n") + 1
                if cut or not data:
                    break
                size *= 2
        last = self.acked
        while cut:
            begin = data.rfind(b"\n", 0, cut - 1) + 1
            last = int(data[begin + len(_SEQ) : data.index(b",", begin)])
            if last - self.acked <= MAX_POST_LINES or not begin:
                break
            cut = begin
        return data[:cut], last

    def forget(self, size: int, last: int) -> None:
        """The oldest ``size`` bytes, up to line number ``last``, are on the host."""
        self.acked = last
        if self._start < self._end:
            self._start += size
            if self._start == self._end:
                self._start = self._end = 0
                os.ftruncate(self._file, 0)
        else:
            rest = b"".join(self._held)[size:]
            self._held, self._held_size = ([rest] if rest else []), len(rest)
        self._shrunk.set()
        if self.size < SMALL_POST:
            self.plenty.clear()
        if not self.size:
            self.empty.set()


# --- processes -----------------------------------------------------------------------------------------


class Child(NamedTuple):
    """A process of ours. ``exited`` gets the wait status."""

    pid: int
    exited: asyncio.Future[int]


class Processes:
    """Starts processes, reaps them and everything they leave behind, and ends what should be gone.

    The shim makes itself the reaper of its descendants (prctl(2), PR_SET_CHILD_SUBREAPER), so that a program which the
    agent put into the background stays findable as our descendant and cannot outlive its turn.
    """

    def __init__(self) -> None:
        self._children: dict[int, Child] = {}
        self._groups: set[int] = set()

    def watch(self) -> None:
        """Become the reaper. Needs the running loop of the main thread."""
        subreaper = 36  # PR_SET_CHILD_SUBREAPER, linux/prctl.h
        with contextlib.suppress(OSError, AttributeError):
            ctypes.CDLL(None, use_errno=True).prctl(subreaper, 1, 0, 0, 0)
        asyncio.get_running_loop().add_signal_handler(signal.SIGCHLD, self._reap)

    def start(
        self,
        argv: Sequence[str],
        *,
        cwd: Path,
        env: Mapping[str, str],
        stdin: IO[bytes] | int,
        stdout: IO[bytes] | int,
        stderr: IO[bytes] | int,
    ) -> Child:
        """Start ``argv`` in a session and process group of its own. Raises OSError or ValueError."""
        process = subprocess.Popen(
            list(argv),
            cwd=cwd,
            env=dict(env),
            stdin=stdin,
            stdout=stdout,
            stderr=stderr,
            start_new_session=True,
        )
        child = Child(process.pid, asyncio.get_running_loop().create_future())
        process.returncode = 0  # it is reaped here, Popen must not try
        self._children[child.pid] = child
        self._groups.add(child.pid)
        return child

    def _reap(self) -> None:
        while True:
            try:
                pid, status = os.waitpid(-1, os.WNOHANG)
            except ChildProcessError:
                return
            if not pid:
                return
            child = self._children.pop(pid, None)
            if child is not None and not child.exited.done():
                child.exited.set_result(status)

    async def terminate(self, child: Child, grace: float) -> None:
        """SIGTERM to its group, then SIGKILL to everything below us after ``grace`` seconds."""
        with contextlib.suppress(ProcessLookupError):
            os.killpg(child.pid, signal.SIGTERM)
        await asyncio.wait({child.exited}, timeout=grace)
        await self.sweep()

    async def sweep(self) -> None:
        """Kill every descendant. Only called while none of them is wanted."""
        for _ in range(250):  # five seconds: what then still forks faster is left to the container's end
            for group in self._groups:
                with contextlib.suppress(ProcessLookupError, PermissionError):
                    os.killpg(group, signal.SIGKILL)
            alive = _descendants(os.getpid())
            for pid in alive:
                with contextlib.suppress(ProcessLookupError, PermissionError):
                    os.kill(pid, signal.SIGKILL)
            self._reap()
            if not alive and not self._children:
                break
            await asyncio.sleep(0.02)
        self._groups.clear()

    async def finish(self, child: Child, seconds: float) -> int:
        """Its wait status; after ``seconds`` or on cancellation its group is killed."""
        try:
            return await asyncio.wait_for(asyncio.shield(child.exited), seconds)
        finally:
            if not child.exited.done():
                with contextlib.suppress(ProcessLookupError):
                    os.killpg(child.pid, signal.SIGKILL)
            self._groups.discard(child.pid)


def _descendants(root: int) -> list[int]:
    children: dict[int, list[int]] = {}
    for entry in Path("/proc").iterdir():
        if entry.name.isdigit():
            with contextlib.suppress(OSError, IndexError, ValueError):
                # proc_pid_stat(5): the name in parentheses may hold anything, so read after the last one
                fields = (entry / "stat").read_text("utf-8", "replace").rpartition(")")[2].split()
                if fields[0] not in "ZX":
                    children.setdefault(int(fields[1]), []).append(int(entry.name))
                else:
                    children.setdefault(int(fields[1]), [])
    found: list[int] = []
    todo = [root]
    while todo:
        below = children.get(todo.pop(), [])
        found += below
        todo += below
    return found


# --- the gateway ---------------------------------------------------------------------------------------


class GatewayClient:
    """Speaks HTTP/1.1 to the gateway over its Unix socket."""

    def __init__(self, socket_path: str, token: str, patience: int) -> None:
        self._token = token
        self._patience = patience
        self._idle: list[tuple[asyncio.StreamReader, asyncio.StreamWriter]] = []
        self._folder: int | None = None
        self._path = socket_path
        if len(os.fsencode(socket_path)) > 107:  # sun_path, unix(7)
            path = Path(socket_path)
            self._folder = os.open(path.parent, os.O_PATH | os.O_DIRECTORY | os.O_CLOEXEC)
            self._path = f"/proc/self/fd/{self._folder}/{path.name}"

    def close(self) -> None:
        """Close idle connections."""
        for _, writer in self._idle:
            writer.close()
        self._idle.clear()
        if self._folder is not None:
            os.close(self._folder)

    async def connect(self) -> tuple[asyncio.StreamReader, asyncio.StreamWriter]:
        """A new connection. Raises OSError."""
        return await asyncio.open_unix_connection(self._path)

    async def call(
        self,
        method: str,
        target: str,
        body: bytes | Path = b"",
        *,
        sink: Path | None = None,
        timeout: float = 30.0,
    ) -> tuple[int, bytes]:
        """One request, repeated every second while the gateway is away or in trouble. Raises GatewayGone.

        All our requests may be repeated. The tries are counted, not the time: a container that was frozen
        for a day has not been waiting for a day.
        """
        reason = ""
        for _ in range(max(1, self._patience)):
            try:
                status, answer = await asyncio.wait_for(self._request(method, target, body, sink), timeout)
            except (GatewayDown, OSError, asyncio.TimeoutError) as error:  # noqa: UP041 - two classes before 3.11
                reason = str(error) or type(error).__name__
            else:
                if status == 401:
                    raise GatewayGone("the gateway does not accept this attempt's token")
                if status < 500 and status != 429:
                    return status, answer
                reason = f"status {status}"
            await asyncio.sleep(1)
        raise GatewayGone(f"the gateway has not answered for {self._patience} tries: {reason}")

    async def _request(
        self, method: str, target: str, body: bytes | Path, sink: Path | None
    ) -> tuple[int, bytes]:
        while self._idle:
            with contextlib.suppress(
                GatewayDown, OSError
            ):  # closed by the other side meanwhile: take a fresh one
                return await self._exchange(self._idle.pop(), method, target, body, sink)
        return await self._exchange(await self.connect(), method, target, body, sink)

    async def _exchange(
        self,
        connection: tuple[asyncio.StreamReader, asyncio.StreamWriter],
        method: str,
        target: str,
        body: bytes | Path,
        sink: Path | None,
    ) -> tuple[int, bytes]:
        reader, writer = connection
        reusable = False
        try:
            size = _size(body)
            writer.write(
                f"{method} {target} HTTP/1.1\r\nHost: gateway\r\nAuthorization: Bearer {self._token}\r\n"
                f"Content-Type: application/json\r\nContent-Length: {size}\r\n\r\n".encode()
            )
            with contextlib.suppress(ConnectionError):  # refused before it was read: the answer says why
                for chunk in _chunks(body):
                    writer.write(chunk)
                    await writer.drain()
            status, length, keep = _read_head(await reader.readuntil(b"\r\n\r\n"))
            if sink is not None and status == 200:
                answer = b""
                with sink.open("wb") as file:
                    while length:
                        chunk = await reader.read(min(length, 65536))
                        if not chunk:
                            raise GatewayDown("the answer was cut off")
                        file.write(chunk)
                        length -= len(chunk)
            else:
                answer = await reader.readexactly(length)
            reusable = keep
        except (asyncio.IncompleteReadError, asyncio.LimitOverrunError, ValueError) as error:
            raise GatewayDown(f"the connection was closed: {error}") from error
        finally:
            if reusable:
                self._idle.append(connection)
            else:
                writer.close()
        return status, answer


def _size(body: bytes | Path) -> int:
    return body.stat().st_size if isinstance(body, Path) else len(body)


def _chunks(body: bytes | Path) -> Iterator[bytes]:
    if isinstance(body, bytes):
        yield body
        return
    with body.open("rb") as file:
        while True:
            chunk = file.read(65536)
            if not chunk:
                return
            yield chunk


def _read_head(head: bytes) -> tuple[int, int, bool]:
    first, *rest = head.decode("latin-1").split("\r\n")
    status = int(first.split(" ", 2)[1])
    headers = {}
    for line in rest:
        name, _, value = line.partition(":")
        headers[name.strip().lower()] = value.strip()
    length = 0 if status == 204 else int(headers["content-length"]) if "content-length" in headers else -1
    if length < 0:
        raise GatewayDown("the answer has no Content-Length")
    return status, length, headers.get("connection", "").lower() != "close"


class Relay:
    """A loopback port whose connections are carried to the gateway's socket."""

    def __init__(self, gateway: GatewayClient) -> None:
        self._gateway = gateway
        self._server: asyncio.base_events.Server | None = None
        self._running: set[asyncio.Task[None]] = set()

    async def open(self, port: int) -> int:
        """Listen on 127.0.0.1; returns the port. Raises OSError."""
        self._server = await asyncio.start_server(self._serve, "127.0.0.1", port)
        return int(self._server.sockets[0].getsockname()[1])

    async def close(self) -> None:
        """Stop listening and cut what is open."""
        if self._server is not None:
            self._server.close()
        for task in list(self._running):
            task.cancel()
        await asyncio.gather(*self._running, return_exceptions=True)

    async def _serve(self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        task = asyncio.current_task()
        if task is None:
            raise RuntimeError("a connection is always served in a task")
        self._running.add(task)
        inner: asyncio.StreamWriter | None = None
        # cancelled only by close(), at the very end: swallowing it keeps asyncio from printing a traceback
        with contextlib.suppress(OSError, asyncio.CancelledError):
            try:
                inner_reader, inner = await self._connect()
                await asyncio.gather(_pipe(reader, inner), _pipe(inner_reader, writer))
            finally:
                for side in (inner, writer):
                    if side is not None:
                        side.close()
        self._running.discard(task)

    async def _connect(self) -> tuple[asyncio.StreamReader, asyncio.StreamWriter]:
        # A worker that is restarted is back within seconds; an agent's call rather waits than fails.
        tries = int(RELAY_WAIT * 5)
        for _ in range(tries):
            with contextlib.suppress(OSError):
                return await self._gateway.connect()
            await asyncio.sleep(0.2)
        raise ConnectionRefusedError("no gateway")


def _wide_pipe() -> tuple[int, int]:
    """A pipe that takes what a program writes at its end, without waiting for us, and saves switches under load.

    Node drops what a full pipe did not take when it exits: https://nodejs.org/api/process.html#a-note-on-process-io
    """
    reading, writing = os.pipe()
    with contextlib.suppress(OSError):  # the kernel's limit for one user is reached
        fcntl.fcntl(writing, 1031, 1 << 20)  # F_SETPIPE_SZ, fcntl(2); Python 3.9 has no name for it
    return reading, writing


async def _pipe(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
    while True:
        data = await reader.read(65536)
        if not data:
            break
        writer.write(data)
        await writer.drain()
    if writer.can_write_eof():
        writer.write_eof()  # half-close: the other direction may go on


# --- the work tree -------------------------------------------------------------------------------------


class Workspace:
    """The agent's clone, and every git command that the shim runs in it."""

    def __init__(self, processes: Processes, folder: Path, state: Path, mirror: str, token: str) -> None:
        self.repo = folder / "repo"
        self.base: str | None = None  # set when the tree is checked out
        self._processes = processes
        self._folder = folder
        self._state = state
        self._mirror = mirror
        self._token = token
        self._gateway = ""
        self._url = ""
        self._settings: list[tuple[str, str]] = []
        self._saved_tree = ""
        self._lfs = False
        self._submodules: list[str] = []  # those that are checked out

    def configure(self, gateway: str) -> None:
        """Tell git where the gateway is and how to log in there, without argv or files of the clone."""
        self._gateway = gateway
        self._url = f"{gateway}/git/repository.git"
        login = base64.b64encode(f"attempt:{self._token}".encode()).decode()
        self._settings = [
            (f"http.{gateway}/.extraHeader", f"Authorization: Basic {login}"),
            ("core.hooksPath", "/dev/null"),
            ("core.fsmonitor", "false"),
            ("commit.gpgSign", "false"),
            ("gc.auto", "0"),
            ("maintenance.auto", "false"),
            ("push.recurseSubmodules", "no"),
            ("submodule.recurse", "false"),
            ("advice.detachedHead", "false"),
        ]
        # safe.directory is read only from system, global and command scope, and the command scope is not handed
        # on to the upload-pack that serves a local clone (git-config(1)); the mirror belongs to the host's user
        (self._state / "gitconfig").write_text("[safe]\n\tdirectory = *\n", "utf-8")

    async def git(
        self,
        *arguments: str,
        stdin: bytes = b"",
        index: Path | None = None,
        author: Mapping[str, str] | None = None,
        seconds: float = GIT_SECONDS,
        cwd: Path | None = None,
        url: str = "",
    ) -> str:
        """Run git; its standard output. Raises GitFailed unless it exits with 0 in time.

        ``url`` is whose LFS objects it may move, by default this repository's own.
        """
        settings = [*self._settings, *(lfs_settings(url or self._url) if self._lfs else ())]
        env = {
            "PATH": os.environ.get("PATH", os.defpath),
            "HOME": str(self._state),
            "LANG": "C.UTF-8",
            "GIT_CONFIG_GLOBAL": str(self._state / "gitconfig"),
            "GIT_TERMINAL_PROMPT": "0",
            # where the agent removed .git, no repository further up may be taken for it
            "GIT_CEILING_DIRECTORIES": str(self._folder.resolve()),
            "GIT_CONFIG_COUNT": str(len(settings)),
            # where git-lfs is installed but not on, pointer files stay what they are
            "GIT_LFS_SKIP_SMUDGE": "0" if self._lfs else "1",
            **(author or {}),
        }
        for number, (key, value) in enumerate(settings):
            env[f"GIT_CONFIG_KEY_{number}"] = key
            env[f"GIT_CONFIG_VALUE_{number}"] = value
        if index is not None:
            env["GIT_INDEX_FILE"] = str(index)
        # files instead of pipes: no size can make git and us wait for each other
        with contextlib.ExitStack() as stack:
            files = [stack.enter_context(tempfile.TemporaryFile(dir=self._state)) for _ in range(3)]
            files[0].write(stdin)
            files[0].seek(0)
            try:
                child = self._processes.start(
                    ["git", *arguments],
                    cwd=cwd or self.repo,
                    env=env,
                    stdin=files[0],
                    stdout=files[1],
                    stderr=files[2],
                )
                status = await self._processes.finish(child, seconds)
            except (asyncio.TimeoutError, TimeoutError) as error:  # noqa: UP041 - two classes before 3.11
                raise GitFailed(f"git {arguments[0]} did not end within {seconds:.0f} s") from error
            except OSError as error:
                raise GitFailed(f"git cannot be started in {cwd or self.repo}: {error}") from error
            for file in files[1:]:
                file.seek(0)
            if not os.WIFEXITED(status) or os.WEXITSTATUS(status):
                text = files[2].read(1 << 20).decode("utf-8", "replace").strip()
                raise GitFailed(f"git {arguments[0]}: {text[-MAX_ERROR:] or 'failed without a word'}")
            return files[1].read().decode("utf-8", "surrogateescape")

    async def check_out(self, checkout: Mapping[str, Any], work: Path | None = None) -> str:
        """Clone and check out, once per container; with the bundle ``work``, the commit in it. Raises GitFailed.

        Returns why the work in progress could not be taken up, else "".
        """
        trouble = ""
        if self.base is not None:
            return trouble
        base = str(checkout["base_sha"])
        self._lfs = bool(checkout.get("lfs")) and shutil.which("git-lfs") is not None
        if self.repo.exists():
            shutil.rmtree(self.repo)  # a try that failed half way
        self._folder.mkdir(parents=True, exist_ok=True)
        source = ["--shared", "--", self._mirror] if self._mirror else ["--", self._url]
        await self.git(
            "clone", "--quiet", "--no-checkout", "--template=", *source, str(self.repo), cwd=self._folder,
            seconds=CLONE_SECONDS,
        )  # fmt: skip
        await self.git("remote", "set-url", "origin", self._url)
        trusted = checkout.get("restore_from")
        for sha in filter(None, (base, trusted)):
            try:
                await self.git("cat-file", "-e", f"{sha}^{{commit}}")
            except GitFailed:
                await self.git("fetch", "--quiet", "--no-tags", self._url, str(sha), seconds=CLONE_SECONDS)
        await self.git("checkout", "--quiet", "-B", str(checkout["branch"]), base, seconds=CLONE_SECONDS)
        if work is not None:
            try:
                await self.git("fetch", "--quiet", "--no-tags", str(work), "+refs/heads/*:refs/conductor/*")
                await self.git("reset", "--quiet", "--hard", str(checkout["work"]))
            except GitFailed as error:
                trouble = str(error)
        if trusted and checkout.get("restore"):
            await self._restore([str(path) for path in checkout["restore"]], str(trusted))
        self.base = base
        return trouble

    async def complete(self, checkout: Mapping[str, Any]) -> list[str]:
        """Add what belongs to the tree besides: LFS objects and submodules, once. Returns what went wrong."""
        remarks = []
        if checkout.get("lfs") and not self._lfs:
            remarks.append("git-lfs is not installed here, so the files of Git LFS are pointers.")
        if self._lfs:
            # the agent's own git finds the same server
            for key, value in lfs_settings(self._url):
                await self.git("config", "--local", key, value)
            remarks += await self._missing_objects(self.repo, self._url)
        for submodule in checkout.get("submodules", ()):
            path = str(submodule["path"])
            try:
                remarks += await self._check_out_submodule(submodule)
                self._submodules.append(path)
            except (GitFailed, OSError) as error:
                remarks.append(f"The submodule {path!r} could not be checked out: {error}")
        return remarks

    async def _check_out_submodule(self, submodule: Mapping[str, str]) -> list[str]:
        """One submodule at its commit, as a repository of its own in its folder. Raises GitFailed or OSError.

        Not by ``git submodule``: that reads ``.gitmodules``, and the host has done so already.
        """
        folder = self.repo / submodule["path"]
        if folder.resolve() != self.repo.resolve() / submodule["path"]:
            raise OSError("a symbolic link is in its way")
        if submodule["parent"] and submodule["parent"] not in self._submodules:
            raise OSError(f"{submodule['parent']!r}, which it is in, is not there")
        if folder.exists():
            shutil.rmtree(folder)
        folder.mkdir(parents=True)
        try:
            return await self._fetch_submodule(submodule, folder)
        except GitFailed:
            shutil.rmtree(folder)
            folder.mkdir()  # for git an empty folder is a submodule that was not fetched
            raise

    async def _fetch_submodule(self, submodule: Mapping[str, str], folder: Path) -> list[str]:
        parent = self.repo / submodule["parent"]
        url = f"{self._gateway}/git/{submodule['repository']}.git"
        await self.git("init", "--quiet", "--template=", cwd=folder)
        await self.git("remote", "add", "origin", url, cwd=folder)
        await self.git(
            "fetch", "--quiet", "--depth=1", "--no-tags", "origin", submodule["commit"], cwd=folder,
            seconds=CLONE_SECONDS,
        )  # fmt: skip
        if self._lfs:
            for key, value in lfs_settings(url):
                await self.git("config", "--local", key, value, cwd=folder)
        await self.git(
            "checkout", "--quiet", "--detach", submodule["commit"], cwd=folder, seconds=CLONE_SECONDS, url=url
        )
        name = submodule["name"]
        await self.git("config", "--local", f"submodule.{name}.url", url, cwd=parent)
        await self.git("config", "--local", f"submodule.{name}.active", "true", cwd=parent)
        return await self._missing_objects(folder, url) if self._lfs else []

    async def _missing_objects(self, folder: Path, url: str) -> list[str]:
        """A remark when some files are still pointers."""
        listed = await self.git("lfs", "ls-files", cwd=folder, url=url)
        # "<id> * <name>" is there, "<id> - <name>" is not
        missing = [line.split(" ", 2)[2] for line in listed.splitlines() if line.split(" ", 2)[1:2] == ["-"]]
        if not missing:
            return []
        shown = ", ".join(repr(name) for name in missing[:5]) + (", …" if len(missing) > 5 else "")
        return [f"{len(missing)} files of Git LFS are only pointers; GitHub did not give them: {shown}"]

    def login(self) -> dict[str, str]:
        """What the agent's own git needs to reach the gateway; nothing where it has nothing to fetch there."""
        if not self._lfs and not self._submodules:
            return {}
        key, value = self._settings[0]
        return {"GIT_CONFIG_COUNT": "1", "GIT_CONFIG_KEY_0": key, "GIT_CONFIG_VALUE_0": value}

    async def left_in_submodules(self) -> list[str]:
        """The submodules in which the agent changed something: that stays here, whoever reads this must know."""
        changed = []
        for path in self._submodules:
            folder = self.repo / path
            with contextlib.suppress(GitFailed):
                status = ("status", "--porcelain", "--ignore-submodules=all")
                if (folder / ".git").exists() and await self.git(*status, cwd=folder):
                    changed.append(path)
        return changed

    async def _restore(self, paths: list[str], trusted: str) -> None:
        """Put ``paths`` as they are in ``trusted`` into the tree, and keep the branch's own in the index.

        Where both are the same nothing happens. Else the index entries get the skip-worktree bit and additions are
        excluded, so git, ours as well as the agent's, sees no change there and no commit can carry the other version
        (git-update-index(1)). What the branch has there can be read in the folder FOREIGN beside the work tree.
        """
        index = self._state / "restore.index"
        specs = [f":(top,glob){path}" for path in paths]
        parents = {str(parent) for path in paths for parent in PurePosixPath(path).parents if parent.parts}
        await self.git("read-tree", trusted, index=index)
        theirs = _entries(await self.git("ls-files", "-s", "-z", "--", *specs, index=index))
        ours = _entries(await self.git("ls-files", "-s", "-z", "--", *specs))
        if parents:  # the branch may have put a link or a file where a folder belongs
            listed = await self.git(
                "ls-files", "-s", "-z", "--", *(f":(top,literal){name}" for name in sorted(parents))
            )
            found = _entries(listed)
            ours = {name: found[name] for name in found if name in parents} | ours
        own = [name for name, entry in ours.items() if theirs.get(name) != entry]
        wanted = [name for name, entry in theirs.items() if ours.get(name) != entry]
        await self._show_foreign({name: ours[name] for name in own})
        for name in own:
            target = self.repo / name
            if target.is_dir() and not target.is_symlink():
                shutil.rmtree(target)
            else:
                with contextlib.suppress(FileNotFoundError, NotADirectoryError):
                    target.unlink()
            with contextlib.suppress(OSError):
                for parent in target.parents:
                    if parent == self.repo:
                        break
                    parent.rmdir()  # raises where something is left
        await self.git("update-index", "-z", "--skip-worktree", "--stdin", stdin=_join(own))
        await self.git("checkout-index", "--force", "-z", "--stdin", index=index, stdin=_join(wanted))
        added = sorted(set(wanted) - set(own))
        exclude = self.repo / ".git" / "info" / "exclude"
        exclude.parent.mkdir(exist_ok=True)
        exclude.write_text("".join(f"/{_escape(name)}\n" for name in added), "utf-8", "surrogateescape")
        index.unlink()

    async def _show_foreign(self, entries: Mapping[str, tuple[str, str]]) -> None:
        """Write what the branch brings along as data: every name ends with .txt, so that nothing takes it for its own.

        Links and submodules become a line of text. What is too large is only named in INDEX.txt.
        """
        folder = self._folder / FOREIGN
        shutil.rmtree(folder, ignore_errors=True)
        if not entries:
            return
        folder.mkdir()
        index = [
            "These files of the pull request are not used, because they could give instructions or run code.\n"
        ]
        room = MAX_FOREIGN
        for number, (name, (mode, oid)) in enumerate(entries.items()):
            why = "left out: too large or too many"
            if mode == "160000":
                why = f"a submodule at {oid}"
            elif number < MAX_FOREIGN_FILES:
                size = int(await self.git("cat-file", "-s", oid))
                if size <= room:
                    room -= size
                    text = await self.git("cat-file", "blob", oid)
                    link = mode == "120000"
                    why = f"a symbolic link to {text!r}" if link else f"{name}.txt"
                    target = folder / f"{name}.txt"
                    try:
                        target.parent.mkdir(parents=True, exist_ok=True)
                        target.write_text(text, "utf-8", "surrogateescape")
                    except OSError as error:  # a name that is too long with .txt, or a folder of that name
                        why = f"left out: {error.strerror}"
            index.append(f"{name!r}: {why}\n")
        (folder / "INDEX.txt").write_text("".join(index), "utf-8", "backslashreplace")

    async def commit(self, commit: Mapping[str, str]) -> tuple[str, str]:
        """Commit what the agent left; returns the head and what git could not add. Raises GitFailed.

        Only called when no process of the agent lives, so a lock that is there belongs to nobody.
        """
        store = self.repo / ".git"
        for lock in (*store.glob("*.lock"), *(store / "refs").rglob("*.lock")):
            with contextlib.suppress(OSError):
                lock.unlink()
        trouble = ""
        try:
            await self.git("add", "--all", "--ignore-errors")
        except GitFailed as error:  # a file that nobody can read: the others were added
            trouble = str(error)
        unchanged = False
        with contextlib.suppress(GitFailed):
            await self.git("diff", "--cached", "--quiet", "--no-ext-diff", "HEAD")
            unchanged = not (self.repo / ".git" / "MERGE_HEAD").exists()
        if not unchanged:
            await self.git(
                "commit", "--quiet", "--no-verify", "--no-gpg-sign", "--allow-empty-message", "-F", "-",
                stdin=str(commit["message"]).encode(), author=author_of(commit),
            )  # fmt: skip
        return (await self.git("rev-parse", "--verify", "HEAD^{commit}")).strip(), trouble

    async def checkpoint(self, commit: Mapping[str, str]) -> str | None:
        """Push the tree as it is now to ``refs/heads/checkpoint``; None when it has not changed since.

        Works on a copy of the index, so the agent's own git commands notice nothing. Raises GitFailed.
        """
        index = self._state / "checkpoint.index"
        try:
            index.with_suffix(".index.lock").unlink(missing_ok=True)  # of one that was cut off
            shutil.copyfile(self.repo / ".git" / "index", index)
        except OSError as error:
            raise GitFailed(f"the work tree is no git repository any more: {error}") from error
        with contextlib.suppress(GitFailed):
            await self.git("add", "--all", "--ignore-errors", index=index)
        tree = (await self.git("write-tree", index=index)).strip()
        if tree == self._saved_tree:
            return None
        sha = await self.git(
            "commit-tree",
            tree,
            "-p",
            "HEAD",
            stdin=b"Checkpoint of unfinished work\n",
            author=author_of(commit),
        )
        await self.push(sha.strip(), "checkpoint")
        self._saved_tree = tree
        return sha.strip()

    async def push(self, sha: str, branch: str) -> None:
        """Push one commit to the quarantine. The agent may have rewritten history, so it replaces what is there."""
        if self._lfs and branch == "work":
            await self.git("lfs", "push", "origin", sha, seconds=CLONE_SECONDS)
        await self.git(
            "push", "--quiet", "--no-verify", "--no-follow-tags", self._url, f"+{sha}:refs/heads/{branch}",
            seconds=CLONE_SECONDS,
        )  # fmt: skip


def lfs_settings(url: str) -> list[tuple[str, str]]:
    """The settings by which git-lfs moves the objects of the repository at ``url``, there and nowhere else.

    They win over the repository's ``.lfsconfig`` (git-lfs-config(5)).
    """
    server = f"{url}/info/lfs"
    return [
        ("lfs.url", server),
        ("lfs.pushurl", server),
        (f"lfs.{server}.locksverify", "false"),
        (f"lfs.{server}.access", "none"),
        ("remote.origin.lfsurl", server),
        ("remote.origin.lfspushurl", server),
        ("lfs.basictransfersonly", "true"),
        ("lfs.concurrenttransfers", "4"),
        ("lfs.activitytimeout", "600"),
        ("lfs.transfer.maxretries", "2"),  # the host has tried again already
        ("lfs.transfer.maxretrydelay", "2"),
        ("lfs.skipdownloaderrors", "true"),
        ("lfs.allowincompletepush", "true"),
        ("filter.lfs.clean", "git-lfs clean -- %f"),
        ("filter.lfs.smudge", "git-lfs smudge -- %f"),
        ("filter.lfs.process", "git-lfs filter-process"),
        ("filter.lfs.required", "true"),
    ]


def author_of(commit: Mapping[str, str]) -> dict[str, str]:
    """The variables by which git takes author and committer (git(1))."""
    return {
        f"GIT_{who}_{what}": str(commit[what.lower()])
        for who in ("AUTHOR", "COMMITTER")
        for what in ("NAME", "EMAIL")
    }


def _split(listing: str) -> list[str]:
    return [name for name in listing.split("\0") if name]


def _entries(listing: str) -> dict[str, tuple[str, str]]:
    """``git ls-files -s -z``: path to mode and object id."""
    found = {}
    for line in _split(listing):
        entry, _, name = line.partition("\t")
        mode, oid, _ = entry.split(" ")
        found[name] = (mode, oid)
    return found


def _join(names: Iterable[str]) -> bytes:
    return "".join(f"{name}\0" for name in names).encode("utf-8", "surrogateescape")


def _escape(name: str) -> str:
    """A path as a pattern of gitignore(5) that matches only itself."""
    if "\n" in name:
        raise GitFailed(f"the path {name!r} cannot be excluded")
    escaped = "".join(f"\\{char}" if char in "\\*?[" else char for char in name)
    return escaped[:-1] + "\\ " if escaped.endswith(" ") else escaped


# --- the loop ------------------------------------------------------------------------------------------


class Shim:
    """One container's life: set up, turn after turn, end."""

    def __init__(self, environ: Mapping[str, str]) -> None:
        self.home = Path(environ["HOME"])
        self.state = self.home / EXCLUDED
        self.state.mkdir(mode=0o700, parents=True, exist_ok=True)
        token = environ["CONDUCTOR_TOKEN"]
        self.port = int(environ.get("CONDUCTOR_LISTEN_PORT") or 0)
        self.url = ""
        self.gateway = GatewayClient(
            environ["CONDUCTOR_SOCKET"], token, int(environ.get("CONDUCTOR_PATIENCE") or 3600)
        )
        self.processes = Processes()
        self.workspace = Workspace(
            self.processes,
            Path(environ["CONDUCTOR_WORKSPACE"]),
            self.state,
            environ.get("CONDUCTOR_MIRROR", ""),
            token,
        )
        self.spool = Spool(self.state / "spool.jsonl")
        self.stop = asyncio.Event()
        self.gone = ""  # why the gateway is given up
        self.turn_number = 0
        self.session_fetched = False
        self._refused = False
        self._environ = environ

    async def run(self) -> int:
        """Serve turns until told to stop; the exit code."""
        loop = asyncio.get_running_loop()
        for number in (signal.SIGTERM, signal.SIGINT):
            loop.add_signal_handler(number, self.stop.set)
        self.processes.watch()
        relay = Relay(self.gateway)
        try:
            self.url = f"http://127.0.0.1:{await relay.open(self.port)}"
        except OSError as error:
            print(f"shim: cannot listen on 127.0.0.1:{self.port}: {error}", file=sys.stderr)  # noqa: T201
            return 2
        self.workspace.configure(self.url)
        background = [asyncio.ensure_future(self._guard(part())) for part in (self._heartbeat, self._send)]
        try:
            return await self._turns()
        except Stopped:
            if self.gone:
                print(f"shim: {self.gone}", file=sys.stderr)  # noqa: T201
                return 1
            return 143
        finally:
            for task in background:
                task.cancel()
            await asyncio.gather(*background, return_exceptions=True)
            await self.processes.sweep()
            await relay.close()
            self.gateway.close()
            self.spool.close()

    async def _turns(self) -> int:
        done = 0
        while True:
            status, body = await self._unless_stopped(
                self._guard(self.gateway.call("GET", f"/turns/next?after={done}", timeout=LONG_POLL))
            )
            if status == 200:
                turn = json.loads(body)
                await self._take(turn)
                done = int(turn["number"])
            elif status == 410:
                return 0
            elif status != 204:
                self._give_up(f"the gateway answers {status} when asked for a turn")
            if self.stop.is_set():
                raise Stopped
            await asyncio.sleep(0.02)

    async def _guard(self, work: Awaitable[T]) -> T:
        """Where the gateway is given up, everything stops."""
        try:
            return await work
        except GatewayGone as error:
            self._give_up(str(error))
            raise Stopped from error

    def _give_up(self, reason: str) -> None:
        self.gone = self.gone or reason
        self.stop.set()

    async def _unless_stopped(self, work: Awaitable[T]) -> T:
        """``work``'s result, or Stopped as soon as we are to stop."""
        task = asyncio.ensure_future(work)
        stopping = asyncio.ensure_future(self.stop.wait())
        try:
            await asyncio.wait({task, stopping}, return_when=asyncio.FIRST_COMPLETED)
            if task.done():
                return task.result()
            raise Stopped
        finally:
            for each in (task, stopping):
                each.cancel()
            await asyncio.gather(task, stopping, return_exceptions=True)

    async def _heartbeat(self) -> None:
        while True:
            await self.gateway.call("POST", "/heartbeat")
            await asyncio.sleep(HEARTBEAT)

    async def _send(self) -> None:
        """Post what is in the spool, oldest first, and forget what the host has on its disk."""
        while True:
            block, last = self.spool.block()
            if not block:
                self.spool.grown.clear()
                await self.spool.grown.wait()
                continue
            body = b'{"turn":%d,"events":[' % self.turn_number + block[:-1].replace(b"\n", b",") + b"]}"
            status, answer = await self.gateway.call("POST", "/events", body)
            if status != 200:
                # the host will not take these lines however often they are sent; the turn must not hang on them
                count = last - self.spool.acked
                self.spool.forget(len(block), last)
                if not self._refused:  # once: a remark may be refused too
                    self._refused = True
                    self.remark(f"The host refused {count} lines of output with status {status}.")
            elif int(json.loads(answer)["acked"]) >= last:
                self.spool.forget(len(block), last)
            else:
                raise GatewayGone("the gateway acknowledges fewer lines than were sent")
            with contextlib.suppress(asyncio.TimeoutError):  # not the built-in one before Python 3.11
                await asyncio.wait_for(self.spool.plenty.wait(), POST_INTERVAL)

    async def _unless_gone(self, work: Awaitable[T]) -> T:
        """After SIGTERM the last reports are still made; without a gateway there is nobody to make them to."""
        task = asyncio.ensure_future(work)
        while not task.done():
            await asyncio.wait({task}, timeout=0.5)
            if self.gone and not task.done():
                task.cancel()
                await asyncio.gather(task, return_exceptions=True)
                raise Stopped
        return task.result()

    def remark(self, text: str) -> None:
        """A line of our own among the agent's output."""
        self.spool.put("conductor", [text])

    # --- one turn ---

    async def _take(self, turn: Mapping[str, Any]) -> None:
        started = time.monotonic()
        self.turn_number = int(turn["number"])
        outcome: dict[str, Any] = {
            "exit_code": None,
            "signal": None,
            "timed_out": False,
            "stopped": False,
            "head": None,
            "error": None,
            "push_error": None,
        }
        try:
            await self._unless_stopped(self._prepare(turn))
            outcome.update(await self._run_agent(turn))
        except Stopped:
            outcome["stopped"] = True
        except (GitFailed, SessionRefused, OSError, ValueError, KeyError) as error:
            outcome["error"] = f"The workspace could not be prepared: {_say(error)}"
        await self.processes.sweep()
        # the steps that prepare an image hand in no work
        if self.workspace.base is not None and turn.get("hand_in", True):
            await self._hand_in(turn, outcome)
        await self._save_session(turn.get("session_paths", []))
        outcome["duration"] = round(time.monotonic() - started, 3)
        await self._unless_gone(self.spool.empty.wait())
        status, _ = await self._unless_gone(
            self._guard(
                self.gateway.call("POST", f"/turns/{self.turn_number}/outcome", json.dumps(outcome).encode())
            )
        )
        if status != 200:
            self._give_up(f"the gateway answers {status} to the turn's outcome")

    async def _prepare(self, turn: Mapping[str, Any]) -> None:
        if not self.session_fetched:
            archive = self.state / "session.tar"
            status, _ = await self._guard(self.gateway.call("GET", "/session", sink=archive, timeout=300))
            if status == 200:
                await asyncio.get_running_loop().run_in_executor(None, unpack_session, archive, self.home)
                archive.unlink()
            elif status != 204:
                raise SessionRefused(f"the gateway answers {status} when asked for the session")
            self.session_fetched = True
        if self.workspace.base is None:
            await self._check_out(turn["checkout"])
            for remark in await self.workspace.complete(turn["checkout"]):
                self.remark(remark)
        for path, text in turn["command"].get("files", {}).items():
            self._write_file(path, text)

    async def _check_out(self, checkout: Mapping[str, Any]) -> None:
        """Check out the base, and go on from the work in progress where there is some."""
        if not checkout.get("work"):
            await self.workspace.check_out(checkout)
            return
        bundle = self.state / "work.bundle"
        status, _ = await self._guard(self.gateway.call("GET", "/work", sink=bundle, timeout=300))
        trouble = await self.workspace.check_out(checkout, bundle if status == 200 else None)
        with contextlib.suppress(FileNotFoundError):
            bundle.unlink()
        if status != 200:
            trouble = f"the gateway answers {status} when asked for it"
        if trouble:
            self.remark(f"The work in progress could not be taken up, so this starts afresh: {trouble}")

    def _write_file(self, path: str, text: str) -> None:
        target = self.home / _relative(path)
        target.parent.mkdir(parents=True, exist_ok=True)
        if not target.parent.resolve().is_relative_to(self.home.resolve()):
            raise SessionRefused(f"{path!r} leads out of the home folder")
        with contextlib.suppress(FileNotFoundError):
            target.unlink()
        flags = os.O_WRONLY | os.O_CREAT | os.O_EXCL | os.O_NOFOLLOW | os.O_CLOEXEC
        with os.fdopen(os.open(target, flags, 0o600), "w", encoding="utf-8") as file:
            file.write(self._filled(text))

    def _filled(self, text: str) -> str:
        return text.replace("{gateway}", self.url).replace("{gateway-port}", self.url.rpartition(":")[2])

    def _agent_environment(self, turn: Mapping[str, Any]) -> dict[str, str]:
        # the workspace is how the local runner finds again what an agent left behind
        kept = ("PATH", "USER", "LOGNAME", "TZ", "TMPDIR", "CONDUCTOR_WORKSPACE", *TRUST)
        env = {name: self._environ[name] for name in kept if name in self._environ}
        env.update(HOME=str(self.home), LANG="C.UTF-8", TERM="dumb", GIT_TERMINAL_PROMPT="0")
        env["GIT_CEILING_DIRECTORIES"] = str(self.workspace.repo.parent.resolve())
        env.update(author_of(turn["commit"]))
        env.update(self.workspace.login())
        env.update({name: self._filled(value) for name, value in turn["command"].get("env", {}).items()})
        return env

    async def _run_agent(self, turn: Mapping[str, Any]) -> dict[str, Any]:
        """Run the agent to its end, our end or its time's end. Raises Stopped after it was ended by SIGTERM."""
        command = turn["command"]
        argv = [self._filled(argument) for argument in command["argv"]]
        pipes = {stream: _wide_pipe() for stream in ("stdout", "stderr")}
        try:
            # a file and not a pipe: nobody has to write while the agent reads, or notice that it does not
            with tempfile.TemporaryFile(dir=self.state) as stdin:
                stdin.write(command.get("stdin", "").encode("utf-8", "replace"))
                stdin.seek(0)
                child = self.processes.start(
                    argv,
                    cwd=self.workspace.repo,
                    env=self._agent_environment(turn),
                    stdin=stdin,
                    stdout=pipes["stdout"][1],
                    stderr=pipes["stderr"][1],
                )
        except (OSError, ValueError) as error:
            for reading, _ in pipes.values():
                os.close(reading)
            return {"error": f"The agent could not be started: {_say(error)}"}
        finally:
            for _, writing in pipes.values():
                os.close(writing)
        readers = [
            asyncio.ensure_future(self._read(reading, stream)) for stream, (reading, _) in pipes.items()
        ]
        checkpoints = asyncio.ensure_future(self._checkpoints(turn))
        stopping = asyncio.ensure_future(self.stop.wait())
        either: set[asyncio.Future[Any]] = {child.exited, stopping}
        await asyncio.wait(either, timeout=float(turn["timeout"]), return_when=asyncio.FIRST_COMPLETED)
        ended = child.exited.done()
        for task in (stopping, checkpoints):  # a checkpoint's git must not be swept away half way
            task.cancel()
        await asyncio.gather(stopping, checkpoints, return_exceptions=True)
        if ended:
            await self.processes.sweep()
        else:
            grace = float(turn.get("grace", 10))
            await self.processes.terminate(child, min(grace, STOP_GRACE) if self.stop.is_set() else grace)
        # with every writer dead the pipes end; the limit is for a process that not even SIGKILL ends
        _, late = await asyncio.wait(readers, timeout=30)
        for reader in late:
            reader.cancel()
        await asyncio.gather(*readers, return_exceptions=True)
        outcome: dict[str, Any] = {"timed_out": not ended and not self.stop.is_set()}
        if child.exited.done():
            status = child.exited.result()
            outcome["exit_code"] = os.WEXITSTATUS(status) if os.WIFEXITED(status) else None
            outcome["signal"] = os.WTERMSIG(status) if os.WIFSIGNALED(status) else None
        outcome["stopped"] = not ended and self.stop.is_set()
        return outcome

    async def _read(self, descriptor: int, stream: str) -> None:
        """Spool one output of the agent, line by line."""
        reader = asyncio.StreamReader(limit=1 << 20)
        file = os.fdopen(descriptor, "rb", 0)
        transport, _ = await asyncio.get_running_loop().connect_read_pipe(
            lambda: asyncio.StreamReaderProtocol(reader), file
        )
        splitter = LineSplitter()
        try:
            while True:
                data = await reader.read(1 << 18)
                self.spool.put(stream, splitter.feed(data) if data else splitter.finish())
                if not data:
                    return
                await self.spool.room()
        finally:
            transport.close()

    async def _checkpoints(self, turn: Mapping[str, Any]) -> None:
        while True:
            await asyncio.sleep(float(turn.get("checkpoint_every", 300)))
            try:
                await self.workspace.checkpoint(turn["commit"])
            except GitFailed as error:
                self.remark(f"A checkpoint failed: {error}")

    async def _hand_in(self, turn: Mapping[str, Any], outcome: dict[str, Any]) -> None:
        """Commit and push; what goes wrong becomes ``push_error``."""
        try:
            outcome["head"], trouble = await self.workspace.commit(turn["commit"])
            if trouble:
                self.remark(f"Some files could not be committed. {trouble}")
            for path in await self.workspace.left_in_submodules():
                self.remark(f"What was changed inside the submodule {path!r} is not part of the result.")
            for tries_left in (2, 1, 0):
                await self._unless_gone(self._guard(self.gateway.call("POST", "/heartbeat")))
                try:
                    await self.workspace.push(outcome["head"], "work")
                    break
                except GitFailed as error:
                    # a try of ours that was cut off with its gateway may be at the same ref just now
                    refused = "rejected]" in str(error) and "cannot lock ref" not in str(error)
                    if refused or not tries_left:
                        raise
                await asyncio.sleep(1)
        except GitFailed as error:
            outcome["push_error"] = str(error)[-MAX_ERROR:]

    async def _save_session(self, paths: Sequence[str]) -> None:
        if not paths:
            return
        archive = self.state / "session.tar"
        try:
            loop = asyncio.get_running_loop()
            count = await loop.run_in_executor(None, pack_session, self.home, paths, archive)
            if count:
                status, _ = await self._unless_gone(
                    self._guard(self.gateway.call("PUT", "/session", archive, timeout=300))
                )
                if status != 204:
                    self.remark(f"The session was not saved: the host answered {status}.")
        except (SessionRefused, OSError) as error:
            self.remark(f"The session was not saved: {error}.")
        finally:
            with contextlib.suppress(FileNotFoundError):
                archive.unlink()


def _say(error: BaseException) -> str:
    if isinstance(error, KeyError):
        return f"the turn has no {error}"
    return str(error)[-MAX_ERROR:] or type(error).__name__


async def _main() -> int:
    try:
        shim = Shim(os.environ)
    except (KeyError, ValueError, OSError) as error:
        what = f"{error} is not set" if isinstance(error, KeyError) else str(error)
        print(f"shim: cannot start: {what}", file=sys.stderr)  # noqa: T201
        return 2
    return await shim.run()


if __name__ == "__main__":
    sys.exit(asyncio.run(_main()))
