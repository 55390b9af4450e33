"""A repository's set-up steps: real containers, gateway, mirror and images."""

from __future__ import annotations

import asyncio
import contextlib
import json
import os
import uuid
from collections.abc import AsyncIterator
from dataclasses import replace
from ipaddress import ip_network
from pathlib import Path

import docker
import pytest
from aiohttp import web

from bot.budget import Limit, Scope, limits, used_up
from bot.config import Settings, fixed_settings
from bot.errors import ConfigurationError
from bot.images import OWNER_LABEL, SETUP_LABEL, ImageNeeds
from bot.model import FailureKind, Phase
from bot.network import proxy_environment, rules_for
from bot.ports import Limits
from bot.repo_config import NetworkConfig
from bot.terms import Terms
from runners.agents.registry import agent as agent_named
from runners.docker import DockerRunner
from runners.gateway.desk import Desk
from runners.gateway.egress import Egress
from runners.gateway.git import GitRoute
from runners.gateway.server import Gateway
from runners.provision import AgentImages, create_images
from runners.setup import SetupFailed, SetupRoom
from tests import containers
from tests.containers import MIB
from tests.shim_host import git

pytestmark = [pytest.mark.docker, pytest.mark.timeout(900)]  # the first run builds the image

SHELL = agent_named("shell")
REPOSITORY = 4711


class Workplace:
    """A worker host with a repository's mirror. What set-up steps reach: a server of this process."""

    def __init__(self, folder: Path, settings: Settings) -> None:
        self.settings = settings
        self.client = containers.engine()
        self.runner = DockerRunner(settings)
        self.gateway = Gateway(
            {"git": GitRoute(max_push_bytes=MIB).serve}, egress=Egress(private=[ip_network("127.0.0.0/8")])
        )
        self.images = AgentImages(settings, self.runner, self.gateway)
        source, self.mirror = folder / "source", folder / "mirror.git"
        source.mkdir()
        git("init", "-q", "-b", "main", cwd=source)
        (source / "lock.txt").write_text("left-pad 1.0\n")
        git("add", "-A", cwd=source)
        git("commit", "-q", "-m", "first", cwd=source)
        git("clone", "-q", "--mirror", str(source), str(self.mirror), cwd=folder)
        self.revision = git("rev-parse", "HEAD", cwd=source)
        self.word = uuid.uuid4().hex
        self.folder = folder

    def needs(self, *steps: str, allow: tuple[str, ...] = (), repository: int = REPOSITORY) -> ImageNeeds:
        # the word makes the steps new on this engine
        return ImageNeeds(
            setup=(f": {self.word}", *steps),
            repository=repository,
            mirror=self.mirror,
            revision=self.revision,
            terms=Terms(allow=allow),
        )

    async def attempt(self, image: str, script: str) -> str:
        """What an attempt with ``image`` finds, as its container is started for one."""
        spec = containers.spec(
            image, ["bash", "-c", f"exec > /workspace/said 2>&1; {script}"], self.folder, mirror=None
        )
        handle = await self.runner.start(spec)
        await self.runner.wait(handle)
        said = containers.file_in(self.client, handle.ref, "/workspace/said") or ""
        await self.runner.remove(handle)
        return said

    async def close(self) -> None:
        await self.images.close()
        await self.gateway.aclose()
        await self.runner.close()
        containers.sweep(self.client, self.settings.host_name)
        for image in self.client.api.images(filters={"label": f"{OWNER_LABEL}={REPOSITORY}"}):
            with contextlib.suppress(docker.errors.ImageNotFound):
                self.client.api.remove_image(image["Id"], force=True)
        self.client.close()


def settings_in(folder: Path, **values: object) -> Settings:
    bundle = os.environ.get("SSL_CERT_FILE")
    return fixed_settings(
        host_name=f"setup-{folder.name}-{os.getpid()}",
        data_dir=folder / "data",
        image_ca_bundle=bundle or None,
        memory="512m",
        **values,
    )


@pytest.fixture
async def place(tmp_path: Path) -> AsyncIterator[Workplace]:
    made = Workplace(tmp_path, settings_in(tmp_path))
    try:
        yield made
    finally:
        await made.close()


async def test_what_the_steps_leave_in_the_home_folder_is_there_for_every_attempt(place: Workplace) -> None:
    lines: list[str] = []
    needs = place.needs(
        "id -u; pwd; cat lock.txt",
        "mkdir -p ~/.cache/x && cp lock.txt ~/.cache/x/ && ln -s .cache/x/lock.txt ~/link && chmod 750 ~/.cache/x",
        "printf '#!/bin/sh\\necho tool\\n' > ~/tool && chmod 4755 ~/tool && ln ~/tool ~/twin",
    )
    image = await place.images.ensure(SHELL, needs, log=lines.append)
    assert "1000" in lines
    assert "left-pad 1.0" in lines
    assert [line for line in lines if line.startswith("Set-up step 2 of 4: id -u")]
    said = await place.attempt(
        image, "cd; cat link; ./tool; ./twin; stat -c '%a %u:%g %n' .cache/x tool; ls -A; ls -A /workspace"
    )
    found = said.splitlines()
    assert found[:3] == ["left-pad 1.0", "tool", "tool"]
    assert found[3:5] == ["750 1000:1000 .cache/x", "755 1000:1000 tool"]
    # neither the shim's own folder nor the checkout
    assert sorted(found[5:]) == sorted(
        [".bash_logout", ".bashrc", ".cache", ".profile", "link", "said", "tool", "twin"]
    )
    assert not list((place.settings.data_dir / "attempts").iterdir())
    assert await place.runner.list() == []
    assert place.images.running == frozenset()


async def test_the_image_is_the_repositorys_own_and_is_made_once(place: Workplace) -> None:
    """Class 19: what one repository's steps leave behind reaches no other repository."""
    needs = place.needs("date +%N > ~/when")
    lines: list[list[str]] = [[], []]
    first, second = await asyncio.gather(
        *(place.images.ensure(SHELL, needs, log=heard.append) for heard in lines)
    )
    assert first == second
    assert any("Set-up step" in line for line in lines[0])
    assert lines[0] == lines[1]
    # later, in another process, and at a newer commit
    heir = AgentImages(place.settings, place.runner, place.gateway)
    silent: list[str] = []
    assert await heir.ensure(SHELL, replace(needs, revision="0" * 40), log=silent.append) == first
    assert silent == []
    await heir.close()
    labels = place.client.images.get(first).labels
    assert labels[OWNER_LABEL] == str(REPOSITORY)
    assert labels[SETUP_LABEL]
    other = await place.images.ensure(SHELL, replace(needs, repository=REPOSITORY + 1))
    try:
        assert other != first, "another repository never gets it"
    finally:
        place.client.images.remove(other, force=True)


async def test_two_processes_make_it_once(place: Workplace) -> None:
    """The second one waits for the lock of the first, which is another open file."""
    needs = place.needs("date +%N > ~/when")
    other = AgentImages(place.settings, place.runner, place.gateway)
    lines: list[list[str]] = [[], []]
    made = await asyncio.gather(
        place.images.ensure(SHELL, needs, log=lines[0].append),
        other.ensure(SHELL, needs, log=lines[1].append),
    )
    await other.close()
    assert made[0] == made[1]
    ran = [heard for heard in lines if any("Set-up step" in line for line in heard)]
    assert len(ran) == 1


async def test_nothing_secret_gets_into_the_image(place: Workplace) -> None:
    """Class 10. The container had a token: the image must not have it, nor any variable or layer of it."""
    needs = place.needs(
        "env > ~/variables; cat /proc/1/environ 2>/dev/null | tr '\\0' '\\n' >> ~/variables || true"
    )
    image = await place.images.ensure(SHELL, needs)
    found = place.client.images.get(image)
    config = json.dumps(found.attrs) + json.dumps(found.history())
    for word in ("CONDUCTOR_TOKEN", "CONDUCTOR_SOCKET", "PROXY", "proxy", "setup@localhost"):
        assert word not in config
    assert found.attrs["Config"]["Cmd"] == ["python3", "/opt/conductor/shim.py"]
    assert found.attrs["Config"]["User"] == "agent"
    assert found.attrs["Config"]["WorkingDir"] == "/workspace"


async def test_the_steps_go_only_where_the_terms_allow(place: Workplace) -> None:
    async def answer(_: web.Request) -> web.Response:
        return web.Response(text="from the registry\n")

    app = web.Application()
    app.router.add_get("/{path:.*}", answer)
    served = web.AppRunner(app)
    await served.setup()
    await web.TCPSite(served, "127.0.0.1", 0).start()
    port = served.addresses[0][1]
    try:
        url = f"http://127.0.0.1:{port}/x"
        # by default curl spares the loopback; here it stands for a registry
        fetch = f"curl -fsS --noproxy '' {url} > ~/got"
        rules = rules_for(fixed_settings(egress_allow=(f"127.0.0.1:{port}",)), NetworkConfig(), {}).allow
        image = await place.images.ensure(SHELL, place.needs(fetch, allow=rules))
        assert await place.attempt(image, "cat ~/got") == "from the registry\n"
        with pytest.raises(SetupFailed) as failure:
            await place.images.ensure(SHELL, place.needs(fetch, ": other"))
        assert "403" in failure.value.tail
        # and not around the proxy: there is nothing else
        with pytest.raises(SetupFailed):
            await place.images.ensure(SHELL, place.needs(f"curl -fsS --noproxy '*' {url}", allow=rules))
    finally:
        await served.cleanup()


async def test_a_failing_step_ends_the_job_with_the_end_of_its_output(place: Workplace) -> None:
    needs = place.needs(
        "echo before", "for i in $(seq 100); do echo line $i; done; ls /nowhere | cat", "echo never"
    )
    with pytest.raises(SetupFailed) as failure:
        await place.images.ensure(SHELL, needs)
    error = failure.value
    assert (error.phase, error.kind) == (Phase.image, FailureKind.agent)
    assert "(exit code 2)" in error.message
    tail = error.tail.splitlines()
    assert len(tail) == 40
    assert tail[-2] == "line 100"
    assert "/nowhere" in tail[-1]
    assert tail[-1] in error.message
    assert "image.setup" in error.hint
    assert await place.runner.list() == []
    labelled = place.client.images.list(filters={"label": f"{OWNER_LABEL}={REPOSITORY}"})
    assert labelled == []


async def test_steps_that_take_too_long_are_ended(tmp_path: Path) -> None:
    place = Workplace(tmp_path, settings_in(tmp_path, setup_timeout=2))
    try:
        with pytest.raises(SetupFailed, match="did not end within 2 seconds") as failure:
            await place.images.ensure(SHELL, place.needs("echo begun; sleep 600"))
        assert failure.value.kind is FailureKind.timeout
        assert failure.value.tail.endswith("begun")
        assert await place.runner.list() == []
    finally:
        await place.close()


async def test_steps_that_fill_the_disk_are_ended(place: Workplace) -> None:
    room = SetupRoom(
        place.runner,
        place.gateway,
        folder=place.settings.data_dir / "attempts",
        limits=Limits(memory=256 * MIB, cpus=1.0, pids=64, tmp=32 * MIB, file=64 * MIB),
        shim_argv=place.images.shim_argv,
        timeout=120,
        workspace=20 * MIB,
        environment=proxy_environment,
        weigh_interval=0.2,
    )
    image = await place.images.ensure(SHELL)
    needs = place.needs("for n in 1 2 3; do head -c 9000000 /dev/zero > ~/$n; done; sleep 600")
    with pytest.raises(SetupFailed, match="wrote more than 20 MiB") as failure:
        async with room.done(image, needs, lambda _: None):
            pytest.fail("the steps must not succeed")
    assert failure.value.kind is FailureKind.disk
    assert await place.runner.list() == []


async def test_steps_cannot_call_a_model(place: Workplace) -> None:
    """Nobody has asked for it, so nobody would pay: the budget of their desk is nothing, whatever the job's is."""
    asked: list[float | None] = []

    async def llm(_: web.Request, desk: Desk, __: str) -> web.StreamResponse:
        asked.append(desk.terms.budget_job)
        return web.Response()

    gateway = Gateway({"git": GitRoute(max_push_bytes=MIB).serve, "llm": llm})
    images = AgentImages(place.settings, place.runner, gateway)
    call = (
        'token=${HTTP_PROXY#http://agent:}; port=${HTTP_PROXY##*:}; curl -fsS --noproxy "*" '
        '-H "Authorization: Bearer ${token%@*}" "http://127.0.0.1:$port/llm/anthropic/v1/messages"'
    )
    needs = replace(place.needs(call), terms=Terms(budget_job=5.0))
    try:
        await images.ensure(SHELL, needs)
    finally:
        await images.close()
        await gateway.aclose()
    assert asked == [0.0]
    assert limits(place.settings, Terms(budget_job=0.0)) == [Limit(scope=Scope.job, dollars=0.0)]
    assert used_up(limits(place.settings, Terms(budget_job=0.0)), {}) is not None


async def test_steps_that_use_up_the_memory_are_told_so(place: Workplace) -> None:
    greedy = "head -c 600000000 /dev/zero | tail -c 600000000 | wc -c"
    with pytest.raises(SetupFailed, match="used up their memory") as failure:
        await place.images.ensure(SHELL, place.needs(greedy))
    assert failure.value.kind is FailureKind.oom


async def test_a_step_can_neither_change_the_system_nor_stay(place: Workplace) -> None:
    needs = place.needs(
        "! touch /usr/local/bin/mine; ! touch /opt/conductor/shim.py; test ! -S /var/run/docker.sock",
        "(setsid sleep 1000.31337 &) ; true",
    )
    image = await place.images.ensure(SHELL, needs)
    assert containers.processes_with("1000.31337") == []
    assert "mine" not in await place.attempt(image, "ls /usr/local/bin")


async def test_a_broken_off_set_up_leaves_nothing(place: Workplace) -> None:
    begun = asyncio.Event()
    waiter = asyncio.create_task(
        place.images.ensure(
            SHELL,
            place.needs("echo begun; sleep 600"),
            log=lambda line: begun.set() if line == "begun" else None,
        )
    )
    await begun.wait()
    assert len(place.images.running) == 1
    assert [handle.attempt_id for handle in await place.runner.list()] == list(place.images.running)
    await place.images.close()
    with pytest.raises(asyncio.CancelledError):
        await waiter
    assert place.images.running == frozenset()
    assert await place.runner.list() == []
    assert not list((place.settings.data_dir / "attempts").iterdir())


async def test_set_up_needs_a_worker(tmp_path: Path) -> None:
    settings = settings_in(tmp_path)
    needs = ImageNeeds(setup=("true",), repository=1, mirror=tmp_path, revision="a" * 40)
    images = create_images(settings)
    with pytest.raises(ConfigurationError, match="cannot be run here"):
        await images.ensure(SHELL, needs)
    await images.close()
    local = create_images(fixed_settings(runner="local", data_dir=tmp_path))
    with pytest.raises(ConfigurationError, match="no images, so it runs no set-up steps"):
        await local.ensure(SHELL, needs)
