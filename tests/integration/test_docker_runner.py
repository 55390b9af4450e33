"""The Docker runner on a real engine, and at an engine that is away, old, odd or being restarted."""

from __future__ import annotations

import asyncio
import contextlib
import json
import os
import socket
import threading
from collections.abc import AsyncIterator
from pathlib import Path
from typing import Any

import pytest
from aiohttp import web
from docker.utils import kwargs_from_env

from bot.config import fixed_settings
from bot.errors import InfrastructureError
from bot.ports import Exit, Handle, Limits
from runners.docker import DockerRunner
from tests import containers
from tests.containers import MIB


class Host:
    """A worker host with an engine."""

    def __init__(self, folder: Path) -> None:
        self.client = containers.engine()
        self.image = containers.built(self.client)
        self.folder = folder
        self.settings = fixed_settings(host_name=f"docker-{folder.name}-{os.getpid()}")
        self.runner = DockerRunner(self.settings)

    def spec(self, script: str, **changes: Any) -> Any:
        image = changes.pop("image", self.image)
        return containers.spec(image, ["sh", "-c", script], self.folder, **changes)

    async def close(self) -> None:
        await self.runner.close()
        containers.sweep(self.client, self.settings.host_name)
        self.client.close()


@pytest.fixture
async def host(tmp_path: Path) -> AsyncIterator[Host]:
    made = Host(tmp_path)
    try:
        yield made
    finally:
        await made.close()


UNTIL_GO = "while ! test -e /mirror/go; do sleep 0.05; done; exit 5"


# --- on the real engine -------------------------------------------------------------------------------


@pytest.mark.docker
async def test_thirty_idle_attempts_cost_one_thread(host: Host) -> None:
    await host.runner.check()
    limits = Limits(memory=32 * MIB, cpus=0.2, pids=16, tmp=MIB, file=MIB)
    specs = [host.spec("exec sleep 600", limits=limits) for _ in range(30)]
    handles = await asyncio.gather(*(host.runner.start(spec) for spec in specs))
    threads = {thread.ident for thread in threading.enumerate()}
    waiters = [asyncio.create_task(host.runner.wait(handle)) for handle in handles]
    await host.runner.stop(handles[0], 0)
    assert await waiters[0] == Exit(code=143, signal=15, stopped=True) or (await waiters[0]).signal == 9
    new = [thread.name for thread in threading.enumerate() if thread.ident not in threads]
    assert [name for name in new if not name.startswith("docker_")] == ["docker-events"]
    pool = [thread for thread in threading.enumerate() if thread.name.startswith("docker_")]
    assert len(pool) <= 8
    assert not any(waiter.done() for waiter in waiters[1:])
    await asyncio.gather(*(host.runner.stop(handle, 0) for handle in handles))
    assert all(ended.stopped for ended in await asyncio.gather(*waiters))


@pytest.mark.docker
async def test_the_volumes_belong_to_the_images_user(host: Host) -> None:
    script = "stat -c '%u:%g %a' /workspace /home/agent > /workspace/owners; ls -A /home/agent >> /workspace/owners"
    handle = await host.runner.start(host.spec(script))
    assert await host.runner.wait(handle) == Exit(code=0)
    said = containers.file_in(host.client, handle.ref, "/workspace/owners") or ""
    owners = said.splitlines()
    assert [line.split()[0] for line in owners[:2]] == ["1000:1000", "1000:1000"]
    assert ".profile" in owners  # what the image has there is in the volume


@pytest.mark.docker
async def test_more_cpus_than_the_host_has_mean_all_of_them(host: Host) -> None:
    limits = Limits(memory=64 * MIB, cpus=10_000, pids=16, tmp=MIB, file=MIB)
    handle = await host.runner.start(host.spec("true", limits=limits))
    assert await host.runner.wait(handle) == Exit(code=0)
    cpus = host.client.info()["NCPU"]
    assert host.client.api.inspect_container(handle.ref)["HostConfig"]["NanoCpus"] == cpus * 10**9


@pytest.mark.docker
async def test_a_missing_image_is_named_with_the_next_step(host: Host) -> None:
    spec = host.spec("true", image="agent-conductor-test:never-built")
    with pytest.raises(InfrastructureError, match=r"never-built.*Build the agent images first"):
        await host.runner.start(spec)
    assert containers.traces(host.client, spec.attempt_id) == []


@pytest.mark.docker
async def test_a_start_that_the_engine_refuses_leaves_nothing(host: Host) -> None:
    spec = host.spec("true", limits=Limits(memory=1024, cpus=1, pids=16, tmp=MIB, file=MIB))
    with pytest.raises(InfrastructureError, match=r"could not start the container: .*memory"):
        await host.runner.start(spec)
    assert containers.traces(host.client, spec.attempt_id) == []


@pytest.mark.docker
async def test_a_container_that_was_made_but_not_started_is_started(host: Host) -> None:
    spec = host.spec("exit 5")
    handle = await host.runner.start(spec)
    assert await host.runner.wait(handle) == Exit(code=5)
    # as a worker leaves it that dies between the two calls
    made = host.client.api.inspect_container(handle.ref)
    host.client.api.remove_container(handle.ref)
    config = made["Config"] | {"HostConfig": made["HostConfig"]}
    created = host.client.api.create_container_from_config(config, name=made["Name"].lstrip("/"))
    assert await host.runner.list() == [Handle(attempt_id=spec.attempt_id, ref=created["Id"], running=False)]
    assert await host.runner.wait(Handle(attempt_id=spec.attempt_id, ref=created["Id"])) == Exit(code=None)
    again = await host.runner.start(spec)
    assert again.ref == created["Id"]
    assert await host.runner.wait(again) == Exit(code=5)


@pytest.mark.docker
async def test_volumes_of_a_half_removed_attempt_are_found_and_not_used_again(host: Host) -> None:
    spec = host.spec("test ! -e /workspace/old && touch /workspace/old")
    handle = await host.runner.start(spec)
    assert await host.runner.wait(handle) == Exit(code=0)
    host.client.api.remove_container(handle.ref)
    (left,) = await host.runner.list()
    assert (left.attempt_id, left.running) == (spec.attempt_id, False)
    again = await host.runner.start(spec)
    assert await host.runner.wait(again) == Exit(code=0)
    host.client.api.remove_container(again.ref)
    await host.runner.remove(left)
    assert containers.traces(host.client, spec.attempt_id) == []


@pytest.mark.docker
async def test_a_name_that_another_host_uses_is_an_error(host: Host) -> None:
    other = DockerRunner(fixed_settings(host_name=f"{host.settings.host_name}-other"))
    spec = host.spec("exec sleep 600")
    handle = await other.start(spec)
    try:
        with pytest.raises(InfrastructureError, match=r"exists already.*CONDUCTOR_HOST_NAME"):
            await host.runner.start(spec)
        assert host.client.api.inspect_container(handle.ref)["State"]["Running"]
    finally:
        await other.remove(handle)
        await other.close()


@pytest.mark.docker
async def test_a_container_that_somebody_kills_did_not_end_by_itself(host: Host) -> None:
    handles = [await host.runner.start(host.spec("exec sleep 600")) for _ in range(2)]
    waiters = [asyncio.create_task(host.runner.wait(handle)) for handle in handles]
    await asyncio.to_thread(host.client.api.kill, handles[0].ref)
    await asyncio.to_thread(host.client.api.stop, handles[1].ref)
    assert [end.host for end in await asyncio.gather(*waiters)] == [True, True]


@pytest.mark.docker
@pytest.mark.parametrize("script", ["exit 137", "exit 143", "exit 255", "kill -KILL $$", "kill -TERM 1"])
async def test_an_attempt_that_ends_as_if_killed_did_so_itself(host: Host, script: str) -> None:
    handle = await host.runner.start(host.spec(script))
    ended = await host.runner.wait(handle)
    assert (ended.host, ended.stopped) == (False, False)
    heir = DockerRunner(host.settings)
    assert await heir.wait(handle) == ended
    await heir.close()


@pytest.mark.docker
async def test_the_disk_of_every_attempt_is_told(host: Host) -> None:
    big = "head -c 3000000 /dev/zero > /workspace/a; head -c 4000000 /dev/zero > ~/b; exec sleep 600"
    one, other = [await host.runner.start(host.spec(script)) for script in (big, "exec sleep 600")]

    async def weighed() -> bool:
        found = await host.runner.workspace_bytes()
        return found[one.attempt_id] >= 7_000_000 and found[other.attempt_id] < 1_000_000

    await containers.until(weighed, "the files are counted")
    stranger = DockerRunner(fixed_settings(host_name=f"{host.settings.host_name}-other"))
    assert await stranger.workspace_bytes() == {}
    await stranger.close()
    # the engine answers one such question at a time
    answers = await asyncio.gather(*(host.runner.workspace_bytes() for _ in range(4)))
    assert all(set(answer) == {one.attempt_id, other.attempt_id} for answer in answers)


@pytest.mark.docker
async def test_closing_ends_all_threads_and_repeats(host: Host) -> None:
    handle = await host.runner.start(host.spec("exit 0"))
    await host.runner.wait(handle)
    await host.runner.close()
    await host.runner.close()
    assert not [thread.name for thread in threading.enumerate() if thread.name.startswith("docker")]
    heir = DockerRunner(host.settings)
    await heir.remove(handle)
    await heir.close()


# --- an engine that goes away and comes back -----------------------------------------------------------


class Wire:
    """A socket in front of the engine's that can be cut, as when the engine is restarted."""

    def __init__(self, engine: str, path: Path) -> None:
        self._engine = engine
        self._path = path
        self._server: asyncio.Server | None = None
        self._writers: set[asyncio.StreamWriter] = set()
        self._tasks: set[asyncio.Task[None]] = set()
        self.connections = 0

    async def connect(self) -> None:
        self._server = await asyncio.start_unix_server(self._serve, self._path)

    async def cut(self) -> None:
        assert self._server is not None
        self._server.close()
        for writer in self._writers:
            writer.transport.abort()
        if self._tasks:
            await asyncio.gather(*self._tasks, return_exceptions=True)
        self._path.unlink(missing_ok=True)
        self._server = None

    async def _serve(self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        self.connections += 1
        task = asyncio.current_task()
        assert task is not None
        self._tasks.add(task)
        engine_reader, engine_writer = await asyncio.open_unix_connection(self._engine)
        self._writers |= {writer, engine_writer}
        try:
            await asyncio.gather(_pump(reader, engine_writer), _pump(engine_reader, writer))
        finally:
            self._writers -= {writer, engine_writer}
            self._tasks.discard(task)


async def _pump(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
    with contextlib.suppress(OSError):
        while data := await reader.read(65536):
            writer.write(data)
            await writer.drain()
    writer.close()
    with contextlib.suppress(OSError):
        await writer.wait_closed()


@pytest.mark.docker
@pytest.mark.parametrize("ends", ["in the dark", "after"])
async def test_waiting_outlives_a_restart_of_the_engine(host: Host, tmp_path: Path, ends: str) -> None:
    url = kwargs_from_env().get("base_url") or "unix:///var/run/docker.sock"
    if not url.startswith(("unix://", "http+unix://")):
        pytest.skip(f"the engine at {url} is not behind a Unix socket")
    wire = Wire(url.partition("://")[2], tmp_path / "wire.sock")
    await wire.connect()
    runner = DockerRunner(host.settings, engine=f"unix://{tmp_path}/wire.sock")
    try:
        handle = await runner.start(host.spec(UNTIL_GO))
        waiter = asyncio.create_task(runner.wait(handle))
        # the first calls, and the one that follows the events
        await containers.until(lambda: _done(wire.connections >= 2), "the runner listens for events")
        await wire.cut()
        if ends == "in the dark":
            (tmp_path / "mirror" / "go").touch()
            assert await host.runner.wait(handle) == Exit(code=5)
        with pytest.raises(InfrastructureError, match="Is the Docker engine running"):
            await runner.list()
        assert not waiter.done()
        await wire.connect()
        (tmp_path / "mirror" / "go").touch()
        assert await waiter == Exit(code=5)
        await runner.remove(handle)
    finally:
        await runner.close()
        await wire.cut()


async def _done(value: bool) -> bool:
    return value


# --- engines that cannot be used ----------------------------------------------------------------------


@pytest.mark.parametrize("there", [False, True], ids=["no socket", "nobody listens"])
async def test_an_engine_that_does_not_run_is_told_with_the_next_step(tmp_path: Path, there: bool) -> None:
    path = tmp_path / "engine.sock"
    with socket.socket(socket.AF_UNIX) as unused:
        if there:
            unused.bind(str(path))
        runner = DockerRunner(fixed_settings(host_name="h"), engine=f"unix://{path}")
        for call in (runner.check(), runner.list(), runner.remove(Handle(attempt_id="a-1", ref=""))):
            with pytest.raises(InfrastructureError, match=r"cannot be used.*Is the Docker engine running\?"):
                await call
        await runner.close()


class OddEngine:
    """The edge of an engine with a version and security options of our choice; it refuses every container."""

    def __init__(self, api: str, options: list[str], os_type: str = "linux") -> None:
        self._api = api
        self._info = {"OSType": os_type, "SecurityOptions": options, "NCPU": 4}
        self.created: list[dict[str, Any]] = []

    async def answer(self, request: web.Request) -> web.Response:
        path = request.path.removeprefix(f"/v{self._api}")
        if path == "/version":
            return web.json_response({"Version": "odd", "ApiVersion": self._api})
        if path == "/info":
            return web.json_response(self._info)
        if path == "/_ping":
            return web.Response(text="OK")
        if path == "/containers/create":
            self.created.append(json.loads(await request.read()))
            return web.json_response({"message": "not by me"}, status=500)
        if path == "/containers/json":
            return web.json_response([])
        return web.json_response({"message": "No such thing"}, status=404)

    @contextlib.asynccontextmanager
    async def runner(self, folder: Path) -> AsyncIterator[DockerRunner]:
        app = web.Application()
        app.router.add_route("*", "/{path:.*}", self.answer)
        served = web.AppRunner(app)
        await served.setup()
        await web.UnixSite(served, str(folder / "odd.sock")).start()
        runner = DockerRunner(fixed_settings(host_name="h"), engine=f"unix://{folder}/odd.sock")
        try:
            yield runner
        finally:
            await runner.close()
            await served.cleanup()


DEFAULT = ["name=apparmor", "name=seccomp,profile=default"]


@pytest.mark.parametrize(
    ("engine", "message"),
    [
        (OddEngine("1.40", DEFAULT), r"too old: odd \(API 1\.40\).*Install Docker Engine 20\.10 or newer"),
        (OddEngine("1.41", DEFAULT, "windows"), r"windows containers.*Linux containers"),
        (OddEngine("1.41", ["name=apparmor"]), "default seccomp profile"),
        (OddEngine("1.41", ["name=seccomp,profile=unconfined"]), "default seccomp profile"),
        (OddEngine("1.51", ["name=apparmor"]), "default seccomp profile"),
    ],
    ids=["old", "windows", "no seccomp", "unconfined", "newer without seccomp"],
)
async def test_an_engine_that_cannot_lock_is_refused(tmp_path: Path, engine: OddEngine, message: str) -> None:
    async with engine.runner(tmp_path) as runner:
        with pytest.raises(InfrastructureError, match=message):
            await runner.check()
        with pytest.raises(InfrastructureError, match=message):
            await runner.start(containers.spec("image", ["true"], tmp_path))
    assert engine.created == []


@pytest.mark.parametrize(
    ("api", "options", "security"),
    [
        ("1.41", DEFAULT, ["no-new-privileges:true"]),
        ("1.51", ["name=seccomp,profile=builtin"], ["no-new-privileges:true"]),
        ("1.51", ["name=seccomp,profile=unconfined"], ["no-new-privileges:true", "seccomp=builtin"]),
        ("1.51", ["name=seccomp,profile=/own.json"], ["no-new-privileges:true", "seccomp=builtin"]),
    ],
)
async def test_the_default_seccomp_profile_is_asked_for_where_it_is_not_the_default(
    tmp_path: Path, api: str, options: list[str], security: list[str]
) -> None:
    engine = OddEngine(api, options)
    async with engine.runner(tmp_path) as runner:
        await runner.check()
        with pytest.raises(
            InfrastructureError, match=r"could not start the container: not by me\..*engine's log"
        ):
            await runner.start(containers.spec("image", ["true"], tmp_path))
    assert [made["HostConfig"]["SecurityOpt"] for made in engine.created] == [security]
    assert engine.created[0]["HostConfig"]["NetworkMode"] == "none"
