"""The gateway's git route with ordinary git clients: fetch from the mirror, push into the quarantine, no more."""

from __future__ import annotations

import asyncio
import os
from collections.abc import AsyncIterator
from dataclasses import dataclass
from pathlib import Path
from urllib.parse import urlsplit

import aiohttp
import pytest
from git_host import (
    REPO,
    TOKEN,
    Attempt,
    agent_git,
    clone_for_agent,
    commit,
    git_gateway,
    git_host,
    run_git,
)

from runners import quarantine
from runners.gateway.git import MAX_AT_ONCE, GitRoute
from runners.mirrors import Mirrors

LIMIT = 200_000


@dataclass
class Place:
    """An attempt behind the gateway's git route."""

    attempt: Attempt
    url: str
    clone: Path
    base: str

    def pushed(self) -> dict[str, str]:
        """The refs of the quarantine."""
        lines = run_git(self.attempt.quarantine, "for-each-ref", "--format=%(refname) %(objectname)")
        return dict(line.split() for line in lines.splitlines())


@pytest.fixture
async def place(tmp_path: Path) -> AsyncIterator[Place]:
    async with git_host(tmp_path / "host") as host:
        mirror = await Mirrors(tmp_path / "mirrors").fetch(REPO, url=host.repo_url, token=TOKEN, head="main")
        path = await quarantine.create(tmp_path / "a" / "quarantine.git", mirror, max_input_bytes=LIMIT)
        attempt = Attempt(mirror, path)
        async with git_gateway(GitRoute(max_push_bytes=LIMIT), attempt) as url:
            clone = clone_for_agent(mirror, tmp_path / "repo")
            yield Place(attempt, url, clone, host.branch("main"))


async def test_work_and_checkpoint_are_pushed(place: Place):
    sha = commit(place.clone, {"a.txt": "x"})
    await agent_git(place.clone, "push", "-q", place.url, "HEAD:refs/heads/checkpoint")
    await agent_git(place.clone, "push", "-q", place.url, "+HEAD:refs/heads/work")
    assert place.pushed() == {"refs/heads/checkpoint": sha, "refs/heads/work": sha}


async def test_a_rewritten_history_replaces_what_was_there(place: Place):
    commit(place.clone, {"a.txt": "x"})
    await agent_git(place.clone, "push", "-q", place.url, "+HEAD:refs/heads/work")
    run_git(place.clone, "reset", "-q", "--hard", place.base)
    sha = commit(place.clone, {"b.txt": "x"})
    await agent_git(place.clone, "push", "-q", place.url, "+HEAD:refs/heads/work")
    assert place.pushed() == {"refs/heads/work": sha}


async def test_a_container_without_the_mount_clones_through_it(place: Place, tmp_path: Path):
    target = tmp_path / "through"
    await agent_git(tmp_path, "clone", "-q", place.url, str(target))
    assert (target / "README.md").read_text() == "hello\n"
    sha = commit(target, {"a.txt": "x"})
    await agent_git(target, "push", "-q", "origin", "HEAD:refs/heads/work")
    assert place.pushed() == {"refs/heads/work": sha}


async def test_the_base_can_be_fetched_by_its_id(place: Place, tmp_path: Path):
    # the branch has moved since the job began
    mirror = place.attempt.mirror
    assert mirror is not None
    newer = run_git(mirror, "commit-tree", f"{place.base}^{{tree}}", "-m", "x")
    run_git(mirror, "update-ref", "refs/heads/main", newer)
    run_git(tmp_path, "init", "-q", "later")
    await agent_git(tmp_path / "later", "fetch", "-q", "--depth=1", place.url, place.base)
    assert run_git(tmp_path / "later", "rev-parse", "FETCH_HEAD") == place.base


async def test_a_push_that_is_too_large_is_refused_and_told(place: Place):
    commit(place.clone, {"big.bin": os.urandom(LIMIT + 1000)})
    said = await agent_git(place.clone, "push", "-q", place.url, "HEAD:refs/heads/work", ok=False)
    assert "pack exceeds maximum allowed size" in said
    assert place.pushed() == {}
    assert quarantine.size(place.attempt.quarantine) < LIMIT  # nothing of it stays


async def test_a_push_that_is_far_too_large_is_cut_off(place: Place):
    commit(place.clone, {"huge.bin": os.urandom(LIMIT * 20)})
    said = await agent_git(place.clone, "push", "-q", place.url, "HEAD:refs/heads/work", ok=False)
    assert said
    assert place.pushed() == {}
    assert quarantine.size(place.attempt.quarantine) < LIMIT


async def test_many_pushes_that_fill_the_quarantine_are_refused(place: Place):
    for number in range(quarantine.ROOM_FACTOR + 1):
        commit(place.clone, {f"{number}.bin": os.urandom(LIMIT - 20_000)})
        await agent_git(place.clone, "push", "-q", place.url, "HEAD:refs/heads/work")
    full = place.pushed()
    commit(place.clone, {"one.txt": "x"})
    said = await agent_git(place.clone, "push", "-q", place.url, "HEAD:refs/heads/work", ok=False)
    assert "507" in said
    assert place.pushed() == full


async def test_the_time_limit_ends_a_push(place: Place, tmp_path: Path):
    async with git_gateway(GitRoute(max_push_bytes=LIMIT, timeout=0.3), place.attempt) as url:
        address = urlsplit(url)
        reading, writing = await asyncio.open_connection(address.hostname, address.port)
        # half of a packet's length: git waits for the rest, which never comes
        writing.write(
            b"POST /git/repository.git/git-receive-pack HTTP/1.1\r\nHost: x\r\nContent-Length: 1000\r\n"
            b"Content-Type: application/x-git-receive-pack-request\r\n\r\n00"
        )
        answer = await reading.readuntil(b"\r\n")
        assert answer.startswith(b"HTTP/1.1 504 ")
        writing.close()
        await writing.wait_closed()
    assert place.pushed() == {}


async def test_too_many_requests_at_once_are_refused(place: Place):
    slow = f"{place.url}/git-receive-pack"
    headers = {"Content-Type": "application/x-git-receive-pack-request"}
    begun = [asyncio.Event() for _ in range(MAX_AT_ONCE)]
    end = asyncio.Event()

    async def body(event: asyncio.Event) -> AsyncIterator[bytes]:
        yield b"00"
        event.set()
        await end.wait()

    async with aiohttp.ClientSession() as client:
        held = [asyncio.create_task(client.post(slow, data=body(event), headers=headers)) for event in begun]
        await asyncio.gather(*(event.wait() for event in begun))
        statuses = set()
        while 503 not in statuses:  # the server may not have seen all of them yet
            async with client.get(f"{place.url}/info/refs?service=git-upload-pack") as answer:
                statuses.add(answer.status)
        end.set()
        for response in await asyncio.gather(*held, return_exceptions=True):
            if isinstance(response, aiohttp.ClientResponse):
                response.close()
    sha = commit(place.clone, {"a.txt": "x"})
    await agent_git(place.clone, "push", "-q", place.url, "HEAD:refs/heads/work")
    assert place.pushed() == {"refs/heads/work": sha}


@pytest.mark.parametrize(
    ("method", "path"),
    [
        ("GET", "repository.git/info/refs"),
        ("GET", "repository.git/info/refs?service=git-upload-archive"),
        ("GET", "repository.git/HEAD"),
        ("GET", "repository.git/config"),
        ("GET", "repository.git/objects/info/alternates"),
        ("GET", "repository.git/objects/info/packs"),
        ("PUT", "repository.git/objects/info/alternates"),
        ("PROPFIND", "repository.git/"),
        ("POST", "repository.git/git-upload-archive"),
        ("POST", "repository.git/info/refs?service=git-upload-pack"),
        ("GET", "repository.git/git-upload-pack"),
        ("GET", "other.git/info/refs?service=git-upload-pack"),
        ("GET", "quarantine.git/info/refs?service=git-upload-pack"),
        ("GET", "repository.git/../quarantine.git/info/refs?service=git-upload-pack"),
        ("GET", "repository.git/%2e%2e/42.git/info/refs?service=git-upload-pack"),
        ("GET", "repository.git/info/refs?service=git-receive-pack&service=git-upload-pack"),
        ("GET", "repository.git/info/refs?service=git-upload-pack&service=git-receive-pack"),
        ("GET", "repository.git/info/refs?service=git-upload-pack&x=y"),
        ("GET", "info/refs?service=git-upload-pack"),
        ("GET", ""),
    ],
)
async def test_everything_else_is_not_there(place: Place, method: str, path: str):
    root = place.url.removesuffix("repository.git")
    async with aiohttp.ClientSession() as client, client.request(method, root + path) as answer:
        assert answer.status == 404
        assert "Only fetch and push" in await answer.text()


async def test_an_attempt_without_repositories(place: Place, tmp_path: Path):
    empty = Attempt(None, tmp_path / "none.git")
    async with git_gateway(GitRoute(max_push_bytes=1), empty) as url, aiohttp.ClientSession() as client:
        for service in ("git-upload-pack", "git-receive-pack"):
            async with client.get(f"{url}/info/refs?service={service}") as answer:
                assert answer.status == 404
                assert await answer.text() == "This attempt has no such repository.\n"


async def test_the_quarantine_shows_nothing_of_the_mirror_but_object_ids(place: Place):
    url = f"{place.url}/info/refs?service=git-receive-pack"
    async with aiohttp.ClientSession() as client, client.get(url) as answer:
        text = await answer.text()
    assert f"{place.base} .have" in text
    assert "refs/heads" not in text
