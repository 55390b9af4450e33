"""Git LFS through the gateway, with the real git-lfs and a GitHub that serves the batch API."""

from __future__ import annotations

import asyncio
import hashlib
import io
import os
from collections.abc import AsyncIterator
from pathlib import Path

import aiohttp
import pytest
from checkout_host import ATTRIBUTES, MAX_NEW, MAX_OBJECT, REPO, Lab, lab, lfs_git, needs_git_lfs

from bot.sandbox.faults import Fault
from bot.terms import Terms
from runners.lfs_store import staged

KEPT = b"the kept content\n" * 100


@pytest.fixture
async def place(tmp_path: Path) -> AsyncIterator[Lab]:
    async with lab(tmp_path, {".gitattributes": ATTRIBUTES}) as found:
        await found.push({"kept.bin": found.sandbox.add_large_file(REPO, KEPT)})
        yield found


def oid_of(content: bytes) -> str:
    return hashlib.sha256(content).hexdigest()


async def ask(url: str, operation: str, *contents: bytes, size: int | None = None) -> tuple[int, dict]:  # type: ignore[type-arg]
    objects = [{"oid": oid_of(one), "size": len(one) if size is None else size} for one in contents]
    body = {"operation": operation, "transfers": ["basic"], "objects": objects}
    async with (
        aiohttp.ClientSession() as client,
        client.post(f"{url}/info/lfs/objects/batch", json=body) as answer,
    ):
        return answer.status, await answer.json(content_type=None)


async def get(url: str) -> tuple[int, bytes]:
    async with aiohttp.ClientSession() as client, client.get(url) as answer:
        return answer.status, await answer.read()


async def put(url: str, content: bytes) -> tuple[int, str]:
    async with aiohttp.ClientSession() as client, client.put(url, data=content) as answer:
        return answer.status, await answer.text()


# --- with the client --------------------------------------------------------------------------------------


@needs_git_lfs
async def test_a_checkout_has_the_contents_and_a_push_leaves_them_here(place: Lab) -> None:
    attempt = await place.attempt()
    async with place.gateway(attempt) as url:
        clone = place.folder / "clone"
        await lfs_git(place.folder, "clone", "-q", url, str(clone), url=url)
        assert (clone / "kept.bin").read_bytes() == KEPT
        (clone / "new.bin").write_bytes(b"something new")
        await lfs_git(clone, "add", "-A", url=url)
        await lfs_git(clone, "commit", "-q", "-m", "x", url=url)
        await lfs_git(clone, "lfs", "push", "origin", "HEAD", url=url)
    found = staged(attempt.quarantine).find(oid_of(b"something new"))
    assert found is not None
    assert found.read_bytes() == b"something new"
    assert staged(attempt.quarantine).find(oid_of(KEPT)) is None  # what was there is not brought again
    pointer = await lfs_git(clone, "show", "HEAD:new.bin")
    assert place.sandbox.large_file(REPO, f"{pointer}\n") is None  # GitHub has not seen it


@needs_git_lfs
async def test_what_this_attempt_brought_it_can_fetch_again(place: Lab) -> None:
    attempt = await place.attempt()
    async with place.gateway(attempt) as url:
        one, other = place.folder / "one", place.folder / "other"
        await lfs_git(place.folder, "clone", "-q", url, str(one), url=url)
        (one / "new.bin").write_bytes(b"something new")
        await lfs_git(one, "add", "-A", url=url)
        await lfs_git(one, "commit", "-q", "-m", "x", url=url)
        await lfs_git(one, "lfs", "push", "origin", "HEAD", url=url)
        await lfs_git(place.folder, "clone", "-q", str(one), str(other), url=url)
        assert (other / "new.bin").read_bytes() == b"something new"


@needs_git_lfs
async def test_what_github_does_not_have_stays_a_pointer(place: Lab) -> None:
    lost = "version https://git-lfs.github.com/spec/v1\noid sha256:" + "a" * 64 + "\nsize 12\n"
    await place.push({"lost.bin": lost})
    async with place.gateway(await place.attempt()) as url:
        clone = place.folder / "clone"
        await lfs_git(place.folder, "clone", "-q", url, str(clone), url=url)
        assert (clone / "lost.bin").read_text() == lost
        assert (clone / "kept.bin").read_bytes() == KEPT
        listed = await lfs_git(clone, "lfs", "ls-files", url=url)
        assert "- lost.bin" in listed


@needs_git_lfs
async def test_many_files(place: Lab) -> None:
    contents = {f"{number}.bin": f"content {number}".encode() for number in range(150)}
    await place.push({name: place.sandbox.add_large_file(REPO, one) for name, one in contents.items()})
    async with place.gateway(await place.attempt()) as url:
        clone = place.folder / "clone"
        await lfs_git(place.folder, "clone", "-q", url, str(clone), url=url)
        assert {name: (clone / name).read_bytes() for name in contents} == contents


@needs_git_lfs
async def test_too_large_to_be_brought_is_said(place: Lab) -> None:
    async with place.gateway(await place.attempt()) as url:
        clone = place.folder / "clone"
        await lfs_git(place.folder, "clone", "-q", url, str(clone), url=url)
        (clone / "new.bin").write_bytes(os.urandom(MAX_OBJECT + 1))
        await lfs_git(clone, "add", "-A", url=url)
        await lfs_git(clone, "commit", "-q", "-m", "x", url=url)
        said = await lfs_git(clone, "lfs", "push", "origin", "HEAD", url=url, ok=False)
        assert "at most 97.7 KiB are moved here" in said


# --- by hand ----------------------------------------------------------------------------------------------


async def test_the_second_time_comes_from_this_host(place: Lab) -> None:
    async with place.gateway(await place.attempt()) as url:
        _, answer = await ask(url, "download", KEPT)
        href = answer["objects"][0]["actions"]["download"]["href"]
        assert href.startswith(url)  # never GitHub's own address
        assert await get(href) == (200, KEPT)
    place.sandbox.faults.add(Fault(path="_lfs|info/lfs", status=500, times=None))
    async with place.gateway(await place.attempt(name="another")) as url:
        _, answer = await ask(url, "download", KEPT)
        assert await get(answer["objects"][0]["actions"]["download"]["href"]) == (200, KEPT)


async def test_ten_at_once_are_fetched_once(place: Lab) -> None:
    async with place.gateway(await place.attempt()) as url:
        _, answer = await ask(url, "download", KEPT)
        # GitHub gives it once and then no more
        place.sandbox.faults.add(Fault(path="_lfs", times=1))
        place.sandbox.faults.add(Fault(path="_lfs", status=500, times=None))
        href = answer["objects"][0]["actions"]["download"]["href"]
        assert await asyncio.gather(*(get(href) for _ in range(5))) == [(200, KEPT)] * 5


async def test_a_restarted_worker_finds_the_object_again(place: Lab) -> None:
    attempt = await place.attempt()
    async with place.gateway(attempt) as url:
        _, answer = await ask(url, "download", KEPT)
        path = answer["objects"][0]["actions"]["download"]["href"].removeprefix(url)
    async with place.gateway(attempt) as url:
        assert await get(url + path) == (200, KEPT)


async def test_without_lfs_there_is_none(place: Lab) -> None:
    async with (
        place.gateway(await place.attempt(Terms())) as url,
        aiohttp.ClientSession() as client,
        client.post(f"{url}/info/lfs/objects/batch") as answer,
    ):
        assert answer.status == 404
        assert "Git LFS is not on" in await answer.text()


async def test_the_lock_api_is_not_there(place: Lab) -> None:
    async with place.gateway(await place.attempt()) as url, aiohttp.ClientSession() as client:
        for path in ("locks", "locks/verify", "objects", ""):
            async with client.post(f"{url}/info/lfs/{path}", json={}) as answer:
                assert answer.status == 404


async def test_a_question_of_nonsense(place: Lab) -> None:
    async with place.gateway(await place.attempt()) as url, aiohttp.ClientSession() as client:
        for body in (
            "",
            "[]",
            '{"operation": "delete", "objects": []}',
            '{"operation": "download", "objects": [{}]}',
        ):
            async with client.post(f"{url}/info/lfs/objects/batch", data=body) as answer:
                assert answer.status == 422
        async with client.post(
            f"{url}/info/lfs/objects/batch", data=io.BytesIO(b"x" * ((1 << 20) + 1))
        ) as answer:
            assert answer.status == 413


@pytest.mark.parametrize(
    "fault",
    [
        Fault(path="info/lfs", status=503, times=None),
        Fault(path="info/lfs", status=401, times=None),
        Fault(path="info/lfs", drop="before", times=None),
    ],
    ids=["trouble", "unknown", "silence"],
)
async def test_github_in_trouble_is_said(place: Lab, fault: Fault) -> None:
    place.sandbox.faults.add(fault)
    async with place.gateway(await place.attempt()) as url:
        status, answer = await ask(url, "download", KEPT)
        assert status == 502
        assert "GitHub does not list its LFS objects" in answer["message"]


async def test_one_fault_is_tried_again(place: Lab) -> None:
    place.sandbox.faults.add(Fault(path="info/lfs", status=503, times=2))
    async with place.gateway(await place.attempt()) as url:
        status, answer = await ask(url, "download", KEPT)
        assert status == 200
        assert "actions" in answer["objects"][0]


async def test_an_object_that_breaks_off_is_not_kept(place: Lab) -> None:
    attempt = await place.attempt()
    async with place.gateway(attempt) as url:
        _, answer = await ask(url, "download", KEPT)
        href = answer["objects"][0]["actions"]["download"]["href"]
        place.sandbox.faults.add(Fault(path="_lfs", status=500))
        status, _ = await get(href)
        assert status == 502
        assert await get(href) == (200, KEPT)  # asked anew


async def test_uploads_at_once_keep_to_the_limit(place: Lab) -> None:
    attempt = await place.attempt()
    contents = [os.urandom(MAX_OBJECT - 1000) for _ in range(5)]
    async with place.gateway(attempt) as url:
        base = f"{url}/info/lfs/objects"
        statuses = [
            status
            for status, _ in await asyncio.gather(*(put(f"{base}/{oid_of(one)}", one) for one in contents))
        ]
    assert set(statuses) == {200, 507}
    assert statuses.count(200) == 2
    assert staged(attempt.quarantine).size() <= MAX_NEW


async def test_the_same_again_changes_nothing(place: Lab) -> None:
    attempt = await place.attempt()
    async with place.gateway(attempt) as url:
        for _ in range(5):
            status, _ = await put(f"{url}/info/lfs/objects/{oid_of(b'x' * 1000)}", b"x" * 1000)
            assert status == 200
        _, answer = await ask(url, "upload", b"x" * 1000)
        assert "actions" not in answer["objects"][0]  # it is here already
