"""Attack classes 19 and 33 on the whole program: a pull request, a branch and another repository change no rule."""

from __future__ import annotations

import contextlib
import uuid
from pathlib import Path

import docker
import pytest

from bot.images import OWNER_LABEL
from bot.model import Job, JobState
from tests import containers
from tests.scenarios.world import REPO, World, world

pytestmark = [pytest.mark.docker, pytest.mark.timeout(600)]

#: What the agent finds out about the house it is in.
LOOK = """
cat ~/lock > lock.seen || true
ls -A ~ > home.seen
mkdir -p guarded && echo x > guarded/x
curl -sS -m 20 https://evil.example/ > evil.seen 2>&1 || true
date +%N > when.seen
"""


async def done(box: World, number: int, nth: int = 0) -> tuple[Job, dict[str, str | None]]:
    job = await box.ended(number, nth=nth, within=400)
    assert job.state is JobState.succeeded, job.message
    names = ("lock.seen", "home.seen", "evil.seen", "guarded/x")
    return job, {name: await box.github.file(REPO, job.branch or "", name) for name in names}


async def test_19_33_a_pull_request_brings_no_settings_and_no_files_into_images(tmp_path: Path) -> None:
    word = uuid.uuid4().hex
    rules = f"""\
image: {{setup: ["echo {word} > ~/word; cp lock.txt ~/lock"]}}
protected: ["guarded/**"]
limits: {{timeout: 300}}
"""
    wanted = f"""\
agent: claude
image: {{setup: ["echo {word} > ~/word; cp lock.txt ~/lock; touch ~/owned"]}}
network: {{allow: ["evil.example:443"]}}
protected: []
services: {{db: {{image: "evil:latest"}}}}
limits: {{timeout: 3600}}
"""
    # the operator would let a repository add these
    limits = {"egress_may_allow": ("*.example:443", "evil.example:443"), "default_agent": "shell"}
    client = docker.from_env()
    try:
        async with world(tmp_path, runner="docker", **limits) as box:
            octocat, maria = box.github.as_user("octocat"), box.github.as_user("maria")
            await octocat.push_commit(REPO, "main", {".github/conductor.yml": rules, "lock.txt": "trusted\n"})
            evil = {".github/conductor.yml": wanted, "lock.txt": "poisoned\n"}
            await maria.push_commit(REPO, "feature", evil)
            pull = int((await maria.open_pull(REPO, "feature", "A feature"))["number"])
            # first of all: what it makes is what everybody would get
            await maria.comment(REPO, pull, f"/agent run look\n```sh\n{LOOK}\n```")
            job, seen = await done(box, pull)
            assert job.agent == "shell"
            assert job.timeout == 300
            assert seen["lock.seen"] == "trusted"
            assert "owned" not in (seen["home.seen"] or "")
            assert "403" in (seen["evil.seen"] or "")
            assert list(job.blocked) == ["evil.example:443"]
            assert seen["guarded/x"] is None
            assert job.held_back is not None

            # an issue that starts from that branch is under the same rules
            issue = int((await maria.open_issue(REPO, "Look", "look"))["number"])
            command = f"/agent run --base feature --agent shell look\n```sh\n{LOOK}\n```"
            await maria.comment(REPO, issue, command)
            job, seen = await done(box, issue)
            assert seen["lock.seen"] == "trusted"
            assert "owned" not in (seen["home.seen"] or "")
            assert list(job.blocked) == ["evil.example:443"]
            assert seen["guarded/x"] is None

            # and another repository never gets the image, also when it asks for the very same steps
            await box.github.create_repo(
                "acme/other",
                files={".github/conductor.yml": rules, "lock.txt": "of the other\n"},
                collaborators={"maria": "write"},
            )
            await _other(box)
            await box.stop_worker()
            containers.sweep(client, box.settings.host_name)
    finally:
        for image in client.images.list(filters={"label": OWNER_LABEL}):
            if word in str(image.history()):
                with contextlib.suppress(docker.errors.APIError):
                    client.images.remove(image.id, force=True)
        client.close()


async def _other(box: World) -> None:
    maria = box.github.as_user("maria")
    number = int((await maria.open_issue("acme/other", "Look", "look"))["number"])
    await maria.comment("acme/other", number, f"/agent run --agent shell look\n```sh\n{LOOK}\n```")
    await box.dealt_with()
    repo_id = box.github.world.repository("acme", "other").id
    (job,) = await box.store.jobs_on(repo_id, number)

    async def ended() -> bool:
        nonlocal job
        job = await box.store.job(job.id) or job
        return job.state.final

    await containers.until(ended, "the other repository's job has ended", 400)
    assert job.state is JobState.succeeded, job.message
    assert await box.github.file("acme/other", job.branch or "", "lock.seen") == "of the other"
