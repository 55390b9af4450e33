"""Attack classes 10, 14, 27 and 31 on the whole program: what a job's containers are, hold, leave and can push.

Steps of a person stand for an agent that does whatever it was talked into.
"""

from __future__ import annotations

import asyncio
import base64
import contextlib
import os
import shlex
import threading
import uuid
from collections.abc import AsyncIterator, Iterator
from pathlib import Path
from typing import Any

import aiohttp
import docker
import pytest

from bot.images import OWNER_LABEL
from bot.model import JobState
from tests import containers
from tests.scenarios.world import CANARIES, REPO, World, world

pytestmark = [pytest.mark.docker, pytest.mark.timeout(600)]  # the first run builds the image


class Watch:
    """Looks at every container of one worker host at the moment when it is started."""

    def __init__(self, client: docker.DockerClient, host: str) -> None:
        self._client = client
        filters = {"event": "start", "type": "container", "label": f"agent-conductor.host={host}"}
        self._events = client.events(decode=True, filters=filters)
        self.found: list[dict[str, Any]] = []
        self._thread = threading.Thread(target=self._look, daemon=True)
        self._thread.start()

    def _look(self) -> None:
        for event in self._events:
            with contextlib.suppress(docker.errors.NotFound):
                self.found.append(self._client.api.inspect_container(event["id"]))

    def close(self) -> None:
        self._events.close()
        self._thread.join(10)


@pytest.fixture
def client() -> Iterator[docker.DockerClient]:
    found = containers.engine()
    yield found
    found.close()


@contextlib.asynccontextmanager
async def watched(
    client: docker.DockerClient, folder: Path, **values: Any
) -> AsyncIterator[tuple[World, Watch]]:
    async with world(folder, runner="docker", **values) as box:
        watch = Watch(client, box.settings.host_name)
        try:
            yield box, watch
        finally:
            await asyncio.to_thread(watch.close)
            await box.stop_worker()  # a failed test leaves its container to the next worker
            await asyncio.to_thread(containers.sweep, client, box.settings.host_name)


async def start(box: World, steps: str) -> int:
    maria = box.github.as_user("maria")
    number = int((await maria.open_issue(REPO, "Work", f"```sh\n{steps}\n```"))["number"])
    await maria.add_label(REPO, number, "agent")
    return number


def policy(found: dict[str, Any]) -> dict[str, Any]:
    """Everything in which two containers of the same host may not differ."""
    host = {name: value for name, value in found["HostConfig"].items() if name != "Mounts"}
    mounts = sorted(
        (one["Type"], one["Target"], one.get("ReadOnly")) for one in found["HostConfig"]["Mounts"]
    )
    config = {name: found["Config"][name] for name in ("User", "Hostname", "Tty", "OpenStdin", "Entrypoint")}
    return {**host, "Mounts": mounts, **config}


def assert_locked(found: dict[str, Any]) -> None:
    host = found["HostConfig"]
    assert host["NetworkMode"] == "none"
    assert host["CapDrop"] == ["ALL"]
    assert not host["CapAdd"]
    assert not host["Privileged"]
    assert not host["Devices"]
    assert not host["PidMode"]
    assert not host["UsernsMode"]
    assert host["IpcMode"] == "private"
    assert host["ReadonlyRootfs"] is True
    assert "no-new-privileges:true" in host["SecurityOpt"]
    assert not [option for option in host["SecurityOpt"] if "unconfined" in option]
    assert not host["Binds"]
    assert not host["VolumesFrom"]
    assert found["Config"]["User"] == "1000:1000"
    allowed = {"/workspace": "volume", "/home/agent": "volume", "/run/conductor": "bind", "/mirror": "bind"}
    for mount in found["Mounts"]:
        assert allowed[mount["Destination"]] == mount["Type"]
        assert mount["RW"] is (mount["Type"] == "volume")
        assert not mount["Source"].endswith(".sock")
    assert "docker.sock" not in str(found)


async def test_14_every_container_of_a_job_is_locked_also_that_of_its_set_up(
    client: docker.DockerClient, tmp_path: Path
) -> None:
    word = uuid.uuid4().hex  # steps that were never done on this engine
    rules = f"""\
image: {{setup: ["echo {word} > ~/word; sleep 2"]}}
services: {{probe: {{image: "{containers.BASE_IMAGE}", command: [sleep, "600"], memory: 64m}}}}
"""
    async with watched(client, tmp_path, service_images=(containers.BASE_IMAGE,)) as (box, watch):
        octocat = box.github.as_user("octocat")
        await octocat.push_commit(REPO, "main", {".github/conductor.yml": rules})
        number = await start(box, "cat ~/word > word.txt; sleep 2")
        job = await box.ended(number)
        assert job.state is JobState.succeeded, job.message
        assert await box.github.file(REPO, job.branch or "", "word.txt") == word
    services = [one for one in watch.found if one["Config"]["Image"] == containers.BASE_IMAGE]
    agents = [one for one in watch.found if one not in services]
    purposes = [one["Config"]["Labels"].get("agent-conductor.purpose", "attempt") for one in agents]
    assert purposes == ["setup", "attempt"]
    first, second = map(policy, agents)
    assert first == second
    for found in agents:
        assert_locked(found)
    (service,) = services
    host = service["HostConfig"]
    assert host["NetworkMode"] == f"container:{agents[1]['Id']}"  # which has none
    assert host["CapDrop"] == ["ALL"]
    assert not host["Privileged"]
    assert not host["PidMode"]
    assert "no-new-privileges:true" in host["SecurityOpt"]
    assert not service["Mounts"]
    for found in watch.found:
        assert "docker.sock" not in str(found)
        for secret in CANARIES.values():
            assert secret not in str(found)
    for image in client.images.list(filters={"label": OWNER_LABEL}):
        if word in str(image.history()):
            client.images.remove(image.id, force=True)


async def test_27_a_job_is_stopped_while_its_services_start_and_nothing_stays(
    client: docker.DockerClient, tmp_path: Path
) -> None:
    health = "{command: ['false'], interval: 0.5, retries: 600}"  # never ready
    rules = f"services: {{probe: {{image: '{containers.BASE_IMAGE}', command: [sleep, '600'], health: {health}}}}}"
    async with watched(client, tmp_path, service_images=(containers.BASE_IMAGE,)) as (box, watch):
        octocat = box.github.as_user("octocat")
        await octocat.push_commit(REPO, "main", {".github/conductor.yml": rules})
        number = await start(box, "echo 1 > one.txt")
        async with asyncio.timeout(120):
            while len(watch.found) < 2:  # the job's own and its service's
                await asyncio.sleep(0.05)
        await octocat.comment(REPO, number, "/agent cancel")
        job = await box.ended(number, within=60)
        assert (job.state, job.cancel_requested_by) == (JobState.cancelled, "octocat")
        async with asyncio.timeout(60):
            while await asyncio.to_thread(containers.traces, client, f"{job.id}-1"):
                await asyncio.sleep(0.1)


HOLD = "touch /workspace/here; until [ -e /workspace/go ]; do sleep 0.1; done"


async def held(box: World, client: docker.DockerClient, number: int) -> tuple[str, str]:
    """The id of the issue's job and its container's name, when its steps wait in `HOLD`."""
    job = await box.job(number)
    name = f"conductor-{job.id}-1"

    async def here() -> bool:
        now = await box.job(number)
        assert not now.state.final, now.message
        try:
            return await asyncio.to_thread(containers.file_in, client, name, "/workspace/here") is not None
        except docker.errors.NotFound:
            return False

    await containers.until(here, "the steps wait", 400)
    return job.id, name


def let_go(client: docker.DockerClient, name: str) -> None:
    assert client.containers.get(name).exec_run(["touch", "/workspace/go"]).exit_code == 0


async def test_10_the_only_secret_inside_is_the_attempts_token_and_it_opens_nothing_else(
    client: docker.DockerClient, tmp_path: Path
) -> None:
    async with watched(client, tmp_path, egress_allow=("registry.example:443",)) as (box, _):
        number = await start(box, f"env > /workspace/env; git config --list > /workspace/git; {HOLD}")
        job_id, name = await held(box, client, number)
        environment = containers.file_in(client, name, "/workspace/env") or ""
        variables = dict(line.partition("=")[::2] for line in environment.splitlines() if "=" in line)
        proxy = variables["https_proxy"]
        token = proxy.partition("//agent:")[2].partition("@")[0]
        assert len(token) > 20
        # nothing else in there looks like a credential, and nothing of the server's stands there
        redacted = box.redactor.text(environment.replace(token, ""))
        assert redacted == environment.replace(token, "")
        assert token not in (containers.file_in(client, name, "/workspace/git") or "")

        # on GitHub it is nothing, for REST and for git
        basic = base64.b64encode(f"x-access-token:{token}".encode()).decode()
        for url, authorization in (
            ("/installation/repositories", f"Bearer {token}"),
            ("/user", f"token {token}"),
            (f"/{REPO}.git/info/refs?service=git-receive-pack", f"Basic {basic}"),
        ):
            headers = {"Authorization": authorization, "User-Agent": "x"}
            async with (
                aiohttp.ClientSession() as session,
                session.get(f"{box.github.url}{url}", headers=headers) as answer,
            ):
                assert answer.status == 401, url
        # on the server's own address there is nothing to open
        server = str(box.github.webhook_url).removesuffix("/webhook")
        async with (
            aiohttp.ClientSession(headers={"Authorization": f"Bearer {token}"}) as session,
            session.post(f"{server}/webhook", data=b"{}") as answer,
        ):
            assert answer.status == 401
        # at another attempt's door it is a stranger's
        other = await start(box, HOLD)
        other_id, other_name = await held(box, client, other)
        attempts = box.settings.data_dir.absolute() / "attempts"
        sockets = {one: next((attempts / f"{one}-1").rglob("gateway.sock")) for one in (job_id, other_id)}

        async def knocks(socket: Path) -> int:
            folder = os.open(socket.parent, os.O_PATH)  # its whole path is too long for an address
            try:
                connector = aiohttp.UnixConnector(f"/proc/self/fd/{folder}/{socket.name}")
                headers = {"Authorization": f"Bearer {token}"}
                async with (
                    aiohttp.ClientSession(connector=connector) as session,
                    session.get("http://gateway/session", headers=headers) as answer,
                ):
                    return answer.status
            finally:
                os.close(folder)

        assert await knocks(sockets[other_id]) == 401
        assert await knocks(sockets[job_id]) != 401
        let_go(client, name)
        let_go(client, other_name)
        await box.ended(number)
        await box.ended(other)
        # and it ends with its attempt
        await containers.until(lambda: _gone(attempts), "the attempts' folders are removed")
        with pytest.raises(FileNotFoundError):
            await knocks(sockets[job_id])


async def _gone(folder: Path) -> bool:
    return not list(folder.iterdir())


async def test_27_what_an_agent_leaves_running_ends_and_nothing_of_its_files_stays(
    client: docker.DockerClient, tmp_path: Path
) -> None:
    markers = [containers.new_marker() for _ in range(3)]
    daemons = (
        f"setsid sleep {markers[0]} </dev/null >/dev/null 2>&1 &\n"
        f"(trap '' HUP TERM INT; exec nohup sleep {markers[1]}) >/dev/null 2>&1 &\n"
        f"python3 -c {shlex.quote(DAEMON)} {markers[2]}\n"
    )
    # what a later program would trip over, if anybody used this home or this tree again
    traps = (
        "mkdir -p ~/bin ~/.config/git; echo 'touch /workspace/owned' | tee -a ~/.bashrc ~/.profile ~/bin/git\n"
        "chmod +x ~/bin/git; git config --global core.hooksPath ~/bin\n"
        "mkdir -p .git/hooks; echo x > .git/hooks/pre-push\n"
    )
    async with watched(client, tmp_path) as (box, _):
        number = await start(box, f"{daemons}{traps}echo 1 > one.txt; {HOLD}")
        job_id, name = await held(box, client, number)
        assert [len(containers.processes_with(marker)) for marker in markers] == [1, 1, 1]
        let_go(client, name)
        job = await box.ended(number)
        assert job.state is JobState.succeeded, job.message
        assert [len(containers.processes_with(marker)) for marker in markers] == [0, 0, 0]
        attempts = box.settings.data_dir.absolute() / "attempts"
        await containers.until(lambda: _gone(attempts), "the attempt's folder is removed")
        assert containers.traces(client, f"{job_id}-1") == []
        # the next job on the same issue finds a clean house
        maria = box.github.as_user("maria")
        look = (
            "(ls -A ~ ~/bin 2>/dev/null || true) > home.txt; git config --list > config.txt\n"
            "ls .git/hooks > hooks.txt 2>&1 || true"
        )
        await maria.comment(REPO, number, f"/agent run --agent shell look\n```sh\n{look}\n```")
        job = await box.ended(int(box.github.pulls(REPO)[0]["number"]), nth=1)  # it goes on in there
        assert job.state is JobState.succeeded, job.message
        for file, trace in (("home.txt", "bin"), ("config.txt", "hookspath"), ("hooks.txt", "pre-push\n")):
            assert trace not in (await box.github.file(REPO, job.branch or "", file) or "")


#: A daemon as it should be: of a session and a process group of its own, and nobody's child.
DAEMON = """
import os, sys
if os.fork() == 0:
    os.setsid()
    if os.fork() == 0:
        os.closerange(0, 64)
        os.execvp("sleep", ["sleep", sys.argv[1]])
    os._exit(0)
os.wait()
"""


async def test_31_the_request_not_to_push_is_enforced_by_having_nothing_to_push_with(
    client: docker.DockerClient, tmp_path: Path
) -> None:
    """The prompt says "do not try to push". An agent that does reaches its quarantine and nothing else."""
    async with watched(client, tmp_path) as (box, watch):
        main = (await box.github.branches(REPO))["main"]
        url = f"{box.github.url}/{REPO}.git"
        steps = "\n".join(
            [
                "echo evil > evil.txt; git add -A; git -c user.name=x -c user.email=x@x commit -qm evil",
                "git remote -v > /workspace/remotes",
                'try() { timeout 20 "${@:2}" > /dev/null 2>&1 && said=yes || said=no; echo "$said $1" >> tried.txt; }',
                "try origin git push origin HEAD:refs/heads/main",
                "try origin git push --force origin HEAD:refs/heads/agent-was-here",
                "try origin git push --tags origin HEAD:refs/tags/v9",
                f"try url git push {url} HEAD:refs/heads/main",
                f'try proxy git -c http.proxy="$https_proxy" push {url} HEAD:refs/heads/main',
                f"try rest curl -fsS {box.github.url}/repos/{REPO}",
                f"try rest-by-proxy curl -fsS --noproxy '' -x \"$https_proxy\" {box.github.url}/repos/{REPO}",
                HOLD,
            ]
        )
        number = await start(box, steps)
        _, name = await held(box, client, number)
        remotes = containers.file_in(client, name, "/workspace/remotes") or ""
        assert box.github.url not in remotes
        # while it works, nothing has happened out there, and no token that could do it exists
        assert (await box.github.branches(REPO)) == {"main": main}
        # (the servers' own tokens, for comments, are in their memory and for the whole installation)
        narrowed = [one for one in box.github.world.tokens.values() if one.repository_ids is not None]
        assert [one.permissions.get("contents") for one in narrowed] == ["read"] * len(narrowed)
        assert narrowed
        let_go(client, name)
        job = await box.ended(number)
        assert job.state is JobState.succeeded, job.message
        tried = (await box.github.file(REPO, job.branch or "", "tried.txt") or "").splitlines()
        assert len(tried) == 7
        assert [line for line in tried if line.startswith("yes") and line != "yes origin"] == []
        branches = await box.github.branches(REPO)
        assert branches["main"] == main
        assert set(branches) == {"main", job.branch}
        refs = await box.github._github.git(box.github.world.repository(*REPO.split("/"))).refs("refs/tags")
        assert refs == {}
        # what was published is one commit of ours, not the agent's
        log = await box.github.diff(REPO, "main", job.branch or "")
        assert "evil.txt" in log
        assert len(watch.found) == 1
