"""The Docker runner: an attempt is a locked container of the Docker engine, version 20.10 or newer."""

from __future__ import annotations

import asyncio
import builtins
import contextlib
import socket
import time
from collections.abc import Callable, Mapping
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from datetime import datetime
from pathlib import Path
from typing import Any, TypeVar
from weakref import WeakValueDictionary

import requests
import urllib3
from docker import APIClient
from docker.constants import DEFAULT_UNIX_SOCKET
from docker.errors import APIError, DockerException, ImageNotFound, NotFound
from docker.utils import kwargs_from_env, version_gte, version_lt

from bot.config import Settings
from bot.errors import InfrastructureError
from bot.ports import ContainerSpec, Exit, Handle
from runners import container_lock, services
from runners.container_endings import Endings

LABEL = "agent-conductor"
ATTEMPT_LABEL = "agent-conductor.attempt"
HOST_LABEL = "agent-conductor.host"

OLDEST_API = "1.41"  # Engine 20.10
SECCOMP_BY_NAME_API = "1.42"  # Engine 23: "seccomp=builtin" is understood
CALL_TIMEOUT = 120  # seconds of silence after which a call has failed
MEET_TIMEOUT = 15  # the same for the first calls, which are light
THREADS = 8  # more do not start containers faster: the engine is busy then
LOOK_AGAIN = 60.0  # seconds after which a waiter looks even when no event came
OUTAGE = 300.0  # seconds without the engine that a waiter bears: it may just be restarted
#: Of SIGTERM and SIGKILL, and what the engine says of a container that was gone when it came back, after a reboot.
#: The container may have ended so by itself, too.
OUTSIDE_CODES = (128 + 15, 128 + 9, 255)
EVENTS_BEFORE = 20.0  # seconds: an engine kills 15 seconds after it began to stop its containers
EVENTS_AFTER = 2.0
DISK_TRIES = 20
KILL_TIMEOUT = 30.0  # seconds that a container may take to die of SIGKILL

_T = TypeVar("_T")
_START_HINT = (
    "Is the Docker engine running? Start it (`sudo systemctl start docker`), check that this user may use it "
    "(`docker version`), and check DOCKER_HOST if it is set."
)


@dataclass(frozen=True)
class _Engine:
    """A connected engine and what we must know of it."""

    client: APIClient
    cpus: int
    security: list[str]  # security options that it needs to be told


class DockerRunner:
    """Runs attempts as containers without network, rights or secrets (``runners/container_lock.py``).

    An attempt ``A`` is the container ``conductor-A`` and the volumes ``conductor-A-work`` and
    ``conductor-A-home``, all labelled. The engine is ``engine`` (a URL such as
    ``unix:///run/docker.sock``) or the one that ``DOCKER_HOST`` names. Disk use is limited for one file and
    for /tmp, not for a whole volume: the engine's local volumes know no quota.

    ``Exit.code`` above 128 also sets ``Exit.signal``: the engine's init reports a death by signal only so.
    ``Exit.oom`` means that the kernel ended at least one process of the container for its memory.
    ``Exit.host`` means that the engine or the machine was restarted, or that somebody used `docker kill`.
    ``Exit.stopped`` is known to the object whose ``stop`` it was, not to one of a restarted worker.
    """

    def __init__(self, settings: Settings, *, engine: str | None = None) -> None:
        self._host = settings.host_name
        self._where: dict[str, Any] = {"base_url": engine} if engine else dict(kwargs_from_env())
        self._socket = _socket_of(self._where.get("base_url"))
        self._executor = ThreadPoolExecutor(max_workers=THREADS, thread_name_prefix="docker")
        self._pulls = ThreadPoolExecutor(max_workers=2, thread_name_prefix="docker-pull")
        self._engine: _Engine | None = None
        self._connecting = asyncio.Lock()
        self._labels = {LABEL: "1", HOST_LABEL: self._host}
        self._endings = Endings(self._follower, self._labels, ATTEMPT_LABEL)
        self._stopped: set[str] = set()
        self._starting: WeakValueDictionary[str, asyncio.Lock] = WeakValueDictionary()

    async def check(self) -> None:
        """Raise InfrastructureError when the engine is silent, too old, or cannot lock containers."""
        await self._call("answer", lambda engine: engine.client.ping())

    async def start(self, spec: ContainerSpec) -> Handle:
        """Start the attempt's locked container with fresh volumes, or find it again.

        ``argv`` replaces the image's entrypoint; a program that does not exist ends with code 127. When
        cancelled it may leave a container behind, which :meth:`list` finds. Raises ConfigurationError when
        a folder must not be mounted, ServiceFailed (and nothing is left) for a service that does not get ready.
        """
        async with self._starting.setdefault(spec.attempt_id, asyncio.Lock()):
            if spec.services:
                # in a thread of their own: pulls take minutes, and nothing else must wait for them
                await self._call(
                    "provide the services' images",
                    lambda engine: services.provide_images(engine.client, spec),
                    self._pulls,
                )
            handle = await self._call("start the container", lambda engine: self._start(engine, spec))
            if spec.services and handle.running:
                await self._start_services(handle, spec)
            return handle

    async def _start_services(self, handle: Handle, spec: ContainerSpec) -> None:
        async def call(what: str, function: Callable[[APIClient], _T]) -> _T:
            return await self._call(what, lambda engine: function(engine.client))

        def name(number: int) -> str:
            return f"{_name(spec.attempt_id)}-service-{number}"

        labels = {**self._labels, ATTEMPT_LABEL: spec.attempt_id}
        try:
            await self._call(
                "start the services",
                lambda engine: services.start(
                    engine.client, spec, handle.ref, name, labels, engine.security, engine.cpus
                ),
            )
            await services.await_ready(call, spec, name)
        except services.ServiceFailed:
            state = await self._state(handle)
            if state is not None and _ended(state):
                return  # there is no network namespace any more, and nobody who could miss them
            await self.remove(handle)
            raise

    async def wait(self, handle: Handle) -> Exit:
        """Return when the container has ended. A restart of the engine meanwhile is waited out."""
        loop = asyncio.get_running_loop()
        dark_since: float | None = None
        with self._endings.watch(handle.attempt_id) as woken:
            while True:
                woken.clear()
                pause = LOOK_AGAIN
                try:
                    state = await self._state(handle)
                except InfrastructureError:
                    dark_since = dark_since or loop.time()
                    if loop.time() - dark_since > OUTAGE:
                        raise
                    pause = 1.0
                else:
                    dark_since = None
                    if state is None:
                        raise InfrastructureError(
                            f"The container of attempt {handle.attempt_id} is gone.",
                            "Somebody removed it before it had ended; the job can be tried again.",
                        )
                    if _ended(state):
                        return await self._exit(handle, state)
                await _set_within(woken, pause)

    async def stop(self, handle: Handle, grace: float) -> None:
        """SIGTERM to its first process, SIGKILL to all after ``grace`` seconds; returns when it is dead.

        The services are killed then: they hold nothing that is kept.
        """
        try:
            await self._stop(handle, grace)
        finally:
            await self._call("stop the services", lambda engine: self._kill_services(engine, handle))

    async def _stop(self, handle: Handle, grace: float) -> None:
        with self._endings.watch(handle.attempt_id) as woken:
            fresh = handle.attempt_id not in self._stopped
            self._stopped.add(handle.attempt_id)
            if not await self._call("stop the container", lambda engine: _signal(engine, handle, "SIGTERM")):
                if fresh:
                    self._stopped.discard(handle.attempt_id)  # it had ended by itself
                return
            if await self._dead_within(handle, woken, grace):
                return
            await self._call("kill the container", lambda engine: _signal(engine, handle, "SIGKILL"))
            if not await self._dead_within(handle, woken, KILL_TIMEOUT):
                raise InfrastructureError(
                    f"The container of attempt {handle.attempt_id} did not die of SIGKILL "
                    f"in {KILL_TIMEOUT:.0f} seconds.",
                    "Look at the engine's log (`journalctl -u docker`) and at the disk; restart the engine.",
                )

    async def pause(self, handle: Handle) -> None:
        """Freeze all its processes with the kernel's freezer."""
        await self._call("pause the container", lambda engine: self._set_paused(engine, handle, True))

    async def unpause(self, handle: Handle) -> None:
        """Let them go on."""
        await self._call("unpause the container", lambda engine: self._set_paused(engine, handle, False))

    async def list(self) -> list[Handle]:
        """Every attempt of this host that has a container, or volumes of one that was half removed."""
        return await self._call("list the containers", lambda engine: _list(engine.client, self._labels))

    async def remove(self, handle: Handle) -> None:
        """Kill and remove the container, then its volumes."""
        await self._call("remove the container", lambda engine: self._remove(engine, handle.attempt_id))
        self._stopped.discard(handle.attempt_id)

    async def workspace_bytes(self) -> Mapping[str, int]:
        """Bytes of each attempt's volumes, and of what its services wrote; by one question to the engine.

        The engine reads every folder for it: seconds for millions of files.
        """
        for _ in range(DISK_TRIES):
            found = await self._call("weigh the volumes", lambda engine: _weigh(engine.client, self._labels))
            if found is not None:
                return found
            await asyncio.sleep(0.5)
        raise InfrastructureError(
            "The Docker engine does not tell the use of its disk: it is always asked by others.",
            "Look for what runs `docker system df` all the time.",
        )

    async def close(self) -> None:
        """Release connections and threads; containers go on."""
        await self._endings.close()
        await asyncio.to_thread(self._executor.shutdown)
        # a pull may take minutes more; its thread ends with it
        self._pulls.shutdown(wait=False, cancel_futures=True)
        if self._engine is not None:
            self._engine.client.close()
            self._engine = None

    # --- the engine ---------------------------------------------------------------------------------

    async def _call(
        self, what: str, function: Callable[[_Engine], _T], executor: ThreadPoolExecutor | None = None
    ) -> _T:
        """``function`` in a thread of ours; its failures as InfrastructureError that begins with ``what``."""
        loop = asyncio.get_running_loop()
        async with self._connecting:
            if self._engine is None:
                self._engine = await loop.run_in_executor(self._executor, self._meet)
        engine = self._engine

        def run() -> _T:
            try:
                self._knock()
                return function(engine)
            except (
                DockerException,
                requests.RequestException,
                urllib3.exceptions.HTTPError,
                OSError,
            ) as error:
                raise _explained(what, error) from error

        return await loop.run_in_executor(executor or self._executor, run)

    def _knock(self) -> None:
        """Raise OSError when nobody listens: the SDK would leave its own failed socket open."""
        if self._socket is not None:
            with socket.socket(socket.AF_UNIX) as door:
                door.settimeout(MEET_TIMEOUT)
                door.connect(str(self._socket))

    def _connect(self, version: str) -> APIClient:
        client = APIClient(**self._where, version=version, timeout=MEET_TIMEOUT, max_pool_size=THREADS)
        client.timeout = CALL_TIMEOUT
        return client

    def _follower(self) -> APIClient:
        """The client of the thread that follows the engine's events."""
        if self._engine is None:
            raise DockerException("the engine was not met yet")  # the thread tries again at once
        self._knock()
        return self._connect(self._engine.client.api_version)

    def _meet(self) -> _Engine:
        try:
            self._knock()
            # made with a version, so that the SDK does not ask for it: its constructor could not be closed
            with contextlib.closing(self._connect(OLDEST_API)) as stranger:
                version = stranger.version(api_version=False)
                _check_age(version)
            client = self._connect(version["ApiVersion"])
            try:
                return _checked_engine(client)
            except BaseException:
                client.close()
                raise
        except (DockerException, requests.RequestException, OSError) as error:
            raise InfrastructureError(f"The Docker engine cannot be used: {error}.", _START_HINT) from error

    # --- the attempt's container --------------------------------------------------------------------

    def _start(self, engine: _Engine, spec: ContainerSpec) -> Handle:
        client, name = engine.client, _name(spec.attempt_id)
        found = _inspect(client, name)
        if found is None:
            for volume in _volumes(spec.attempt_id).values():
                _remove_volume(client, volume)  # of a container that is gone: the work must be fresh
            try:
                self._create(engine, spec)
            except APIError as error:
                if error.status_code != 409:
                    self._remove(engine, spec.attempt_id)
                    raise
            found = _inspect(client, name)
            if found is None:
                raise InfrastructureError(
                    f"The container {name} went away while it was started.", "Start the attempt again."
                )
        labels = found["Config"]["Labels"] or {}
        if labels.get(HOST_LABEL) != self._host or labels.get(ATTEMPT_LABEL) != spec.attempt_id:
            raise InfrastructureError(
                f"A container called {name} exists already, and it is not one of host {self._host!r}.",
                "Give every worker that shares an engine a CONDUCTOR_HOST_NAME of its own, "
                f"or remove it: `docker rm -f {name}`.",
            )
        if found["State"]["Status"] == "created":
            try:
                client.start(name)
            except APIError:
                self._remove(engine, spec.attempt_id)
                raise
            found = _inspect(client, name) or found
        return Handle(attempt_id=spec.attempt_id, ref=found["Id"], running=bool(found["State"]["Running"]))

    def _create(self, engine: _Engine, spec: ContainerSpec) -> None:
        client = engine.client
        labels = {**spec.labels, **self._labels, ATTEMPT_LABEL: spec.attempt_id}
        mounted = container_lock.mounts(spec, _volumes(spec.attempt_id), labels, self._socket)
        client.create_container(
            spec.image,
            # with an entrypoint of ours and no command, neither of the image's is used
            entrypoint=list(spec.argv),
            name=_name(spec.attempt_id),
            hostname=container_lock.HOSTNAME,
            user=container_lock.USER,
            working_dir=container_lock.WORKSPACE,
            environment=container_lock.environment(spec),
            labels=labels,
            healthcheck={"test": ["NONE"]},  # the image's would run beside the agent
            use_config_proxy=False,  # or ~/.docker/config.json would add variables, maybe with a password
            host_config=container_lock.host_config(
                spec, client.api_version, mounted, engine.cpus, engine.security
            ),
        )

    def _services(self, engine: _Engine, attempt_id: str) -> builtins.list[str]:
        return services.containers(engine.client, {**self._labels, ATTEMPT_LABEL: attempt_id})

    def _kill_services(self, engine: _Engine, handle: Handle) -> None:
        for service in self._services(engine, handle.attempt_id):
            services.kill(engine.client, service)

    def _set_paused(self, engine: _Engine, handle: Handle, paused: bool) -> None:
        agent = _name(handle.attempt_id)
        beside = self._services(engine, handle.attempt_id)
        # the agent never finds a service frozen
        for container in (agent, *beside) if paused else (*beside, agent):
            _set_paused(engine.client, container, paused)

    def _remove(self, engine: _Engine, attempt_id: str) -> None:
        for container in (_name(attempt_id), *self._services(engine, attempt_id)):
            _remove(engine.client, container)
        for volume in _volumes(attempt_id).values():
            _remove_volume(engine.client, volume)

    async def _state(self, handle: Handle) -> Mapping[str, Any] | None:
        found = await self._call(
            "look at the container", lambda engine: _inspect(engine.client, _name(handle.attempt_id))
        )
        return None if found is None else found["State"]

    async def _dead_within(self, handle: Handle, woken: asyncio.Event, seconds: float) -> bool:
        loop = asyncio.get_running_loop()
        until = loop.time() + seconds
        while True:
            woken.clear()
            state = await self._state(handle)
            if state is None or _ended(state):
                return True
            left = until - loop.time()
            if left <= 0:
                return False
            await _set_within(woken, left)

    async def _exit(self, handle: Handle, state: Mapping[str, Any]) -> Exit:
        stopped = handle.attempt_id in self._stopped
        if state["Status"] == "created":  # a worker died between create and start: it never ran
            return Exit(code=None, stopped=stopped)
        code = int(state["ExitCode"])
        oom = bool(state["OOMKilled"])
        host = False
        if code in OUTSIDE_CODES and not stopped and not oom:
            host = await self._call(
                "look at its events", lambda engine: _ended_outside(engine, handle, state)
            )
        return Exit(
            code=code,
            signal=code - 128 if 128 < code <= 128 + 64 else None,
            oom=oom,
            stopped=stopped,
            host=host,
        )


def _ended_outside(engine: _Engine, handle: Handle, state: Mapping[str, Any]) -> bool:
    """Whether the engine ended the container and not the container itself.

    An engine that is restarted ends its containers, as `docker kill` does, and says "kill" and "stop" then. One that
    is shut down in order takes even the news of their end with it: it remembers events only while it runs.
    """
    finished = datetime.fromisoformat(state["FinishedAt"][:19] + "+00:00").timestamp()
    events = engine.client.events(
        since=int(finished - EVENTS_BEFORE),
        # the engine answers when that time has come
        until=int(finished + EVENTS_AFTER),
        filters={"container": _name(handle.attempt_id), "event": ["kill", "stop", "die"]},
        decode=True,
    )
    seen = {event.get("Action") for event in events}
    return "die" not in seen or bool(seen & {"kill", "stop"})


def _name(attempt_id: str) -> str:
    return f"conductor-{container_lock.checked_attempt_id(attempt_id)}"


def _volumes(attempt_id: str) -> dict[str, str]:
    return {
        container_lock.WORKSPACE: f"{_name(attempt_id)}-work",
        container_lock.HOME: f"{_name(attempt_id)}-home",
    }


def _inspect(client: APIClient, name: str) -> dict[str, Any] | None:
    try:
        found: dict[str, Any] = client.inspect_container(name)
    except NotFound:
        return None
    return found


def _list(client: APIClient, labels: Mapping[str, str]) -> list[Handle]:
    ours = {"label": [f"{name}={value}" for name, value in labels.items()]}
    handles = {}
    beside = set()
    for found in client.containers(all=True, filters=ours):
        attempt_id = found["Labels"][ATTEMPT_LABEL]
        if services.SERVICE_LABEL in found["Labels"]:
            beside.add(attempt_id)
            continue
        running = found["State"] in ("running", "paused")
        handles[attempt_id] = Handle(attempt_id=attempt_id, ref=found["Id"], running=running)
    for volume in client.volumes(filters=ours)["Volumes"] or []:
        beside.add(volume["Labels"][ATTEMPT_LABEL])
    for attempt_id in sorted(beside):
        handles.setdefault(attempt_id, Handle(attempt_id=attempt_id, ref=_name(attempt_id), running=False))
    return list(handles.values())


def _weigh(client: APIClient, labels: Mapping[str, str]) -> dict[str, int] | None:
    """None while the engine answers the same question to somebody else: it takes one at a time."""
    # docker-py's df() knows no "type", and would have the images weighed as well; older engines do so anyway
    # (https://docs.docker.com/reference/api/engine/version/v1.43/#tag/System/operation/SystemDataUsage)
    answer = client.get(
        f"{client.base_url}/v{client.api_version}/system/df", params={"type": ["volume", "container"]}
    )
    if answer.status_code >= 500 and "already running" in answer.text:
        return None
    answer.raise_for_status()
    found = answer.json()
    sizes = [(volume, (volume.get("UsageData") or {}).get("Size", 0)) for volume in found["Volumes"] or []]
    sizes += [(container, container.get("SizeRw") or 0) for container in found["Containers"] or []]
    weights: dict[str, int] = {}
    for thing, size in sizes:
        known = thing.get("Labels") or {}
        if labels.items() <= known.items():
            weights[known[ATTEMPT_LABEL]] = weights.get(known[ATTEMPT_LABEL], 0) + max(0, int(size))
    return weights


def _ended(state: Mapping[str, Any]) -> bool:
    return state["Status"] in ("created", "exited", "dead")


def _signal(engine: _Engine, handle: Handle, signal: str) -> bool:
    """Whether there was something to send ``signal`` to. A frozen container goes on to receive it."""
    try:
        engine.client.kill(_name(handle.attempt_id), signal=signal)
    except APIError as error:
        if error.status_code not in (404, 409):
            raise
        return False
    _set_paused(engine.client, _name(handle.attempt_id), False)
    return True


def _set_paused(client: APIClient, name: str, paused: bool) -> None:

    def wanted() -> bool:
        found = _inspect(client, name)
        return found is None or not found["State"]["Running"] or found["State"]["Paused"] == paused

    if wanted():
        return
    try:
        (client.pause if paused else client.unpause)(name)
    except APIError:
        if not wanted():  # else it ended, or somebody else did the same, between look and call
            raise


def _remove(client: APIClient, name: str) -> None:
    try:
        client.remove_container(name, v=True, force=True)
    except NotFound:
        pass
    except APIError as error:
        if error.status_code != 409:
            raise
        _await_removal(client, name)


def _await_removal(client: APIClient, name: str) -> None:
    """Wait for a removal that somebody else began, as long as a call may take."""
    until = time.monotonic() + CALL_TIMEOUT
    while _inspect(client, name) is not None:
        if time.monotonic() > until:
            raise DockerException(f"{name} is being removed for {CALL_TIMEOUT} seconds")
        time.sleep(0.1)


def _remove_volume(client: APIClient, volume: str) -> None:
    with contextlib.suppress(NotFound):
        client.remove_volume(volume)


async def _set_within(woken: asyncio.Event, seconds: float) -> None:
    with contextlib.suppress(TimeoutError):
        await asyncio.wait_for(woken.wait(), seconds)


def _socket_of(url: str | None) -> Path | None:
    """The engine's Unix socket on this machine; None when it is reached in another way."""
    scheme, _, path = (url or DEFAULT_UNIX_SOCKET).partition("://")
    return Path(path) if scheme in ("unix", "http+unix") else None


def _check_age(version: Mapping[str, Any]) -> None:
    if version_lt(version["ApiVersion"], OLDEST_API):
        raise InfrastructureError(
            f"The Docker engine is too old: {version.get('Version')} (API {version['ApiVersion']}).",
            "Install Docker Engine 20.10 or newer.",
        )


def _checked_engine(client: APIClient) -> _Engine:
    """The engine behind ``client`` and what we must know of it.

    Raises InfrastructureError when it cannot lock containers as we promise.
    """
    info = client.info()
    if info["OSType"] != "linux":
        raise InfrastructureError(
            f"The Docker engine runs {info['OSType']} containers.", "Switch it to Linux containers."
        )
    options = [str(option) for option in info.get("SecurityOptions") or []]
    seccomp = [option for option in options if option.startswith("name=seccomp")]
    if any(option.endswith(("profile=default", "profile=builtin")) for option in seccomp):
        return _Engine(client, cpus=int(info["NCPU"]), security=[])
    if seccomp and version_gte(client.api_version, SECCOMP_BY_NAME_API):
        return _Engine(client, cpus=int(info["NCPU"]), security=["seccomp=builtin"])
    raise InfrastructureError(
        "The Docker engine does not use its default seccomp profile, which our containers must have.",
        "Remove `seccomp-profile` from the engine's daemon.json, or use a kernel with seccomp; restart it.",
    )


def _explained(what: str, error: Exception) -> InfrastructureError:
    if isinstance(error, ImageNotFound) or (
        isinstance(error, NotFound) and "no such image" in str(error).lower()
    ):
        return InfrastructureError(
            f"The Docker engine could not {what}: {error.explanation}.",
            "Build the agent images first, or check the image's name.",
        )
    if isinstance(error, APIError):
        return InfrastructureError(
            f"The Docker engine could not {what}: {error.explanation or error}.",
            "Look at the engine's log (`journalctl -u docker`).",
        )
    if isinstance(error, requests.Timeout):
        return InfrastructureError(
            f"The Docker engine could not {what}: no answer in {CALL_TIMEOUT} seconds.",
            "Look at its load and its log (`journalctl -u docker`), and restart it if it hangs.",
        )
    return InfrastructureError(f"The Docker engine could not {what}: {error}.", _START_HINT)
