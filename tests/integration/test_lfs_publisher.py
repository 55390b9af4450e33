"""The large files of a change on their way to GitHub: checked, brought and confirmed before the commit is pushed."""

from __future__ import annotations

from collections.abc import AsyncIterator
from dataclasses import dataclass
from pathlib import Path

import pytest
from checkout_host import ATTRIBUTES, REPO, SECRET, Lab, lab
from git_host import Attempt, agent_git, clone_for_agent, commit

from bot.audit import Wanted
from bot.audit_chain import Entry
from bot.errors import GitHubUnavailable, JobFailed
from bot.lfs import Pointer, parse_pointer
from bot.model import FailureKind, Job, Phase
from bot.sandbox.faults import Fault
from runners import quarantine
from runners.lfs_store import staged

LOST = Pointer("a" * 64, 12).text()


@dataclass
class Place:
    """An agent's clone, and what became of it in the quarantine."""

    lab: Lab
    attempt: Attempt
    clone: Path
    base: str

    async def hand_in(self, files: dict[str, str | bytes]) -> str:
        """Push a commit with ``files`` into the quarantine; its id."""
        sha = commit(self.clone, files)
        await agent_git(self.clone, "push", "-q", str(self.attempt.quarantine), "+HEAD:refs/heads/work")
        return sha

    async def bring(self, content: bytes) -> str:
        """Stage an object as the agent's git-lfs does; the pointer file."""

        async def chunks() -> AsyncIterator[bytes]:
            yield content

        pointer = parse_pointer(self.lab.sandbox.add_large_file("acme/scratch", content).encode())
        assert pointer is not None
        await staged(self.attempt.quarantine).take(pointer.oid, pointer.size, chunks(), limit=2**20 * 4)
        return pointer.text()

    async def check(self, head: str, job: Job | None = None) -> None:
        await self.lab.publisher.check(
            job or self.lab.job(), self.attempt.quarantine, base_sha=self.base, head=head
        )

    async def publish(self, head: str) -> None:
        tree = await quarantine.tree_of(self.attempt.quarantine, head)
        await self.lab.publisher.publish(
            self.lab.job(), self.attempt.quarantine, base_sha=self.base, tree=tree
        )

    def there(self, pointer: str) -> bytes | None:
        return self.lab.sandbox.large_file(REPO, pointer)


@pytest.fixture
async def place(tmp_path: Path) -> AsyncIterator[Place]:
    async with lab(tmp_path, {".gitattributes": ATTRIBUTES}) as found:
        await found.sandbox.create_repo("acme/scratch")  # only counts
        attempt = await found.attempt()
        assert attempt.mirror is not None
        clone = clone_for_agent(attempt.mirror, tmp_path / "clone")
        base = (await found.sandbox.branches(REPO))["main"]
        yield Place(found, attempt, clone, base)


async def test_new_objects_are_brought_and_confirmed(place: Place) -> None:
    one, two = await place.bring(b"one"), await place.bring(b"two" * 100_000)
    unused = await place.bring(b"unused")
    head = await place.hand_in({"one.bin": one, "folder/two.bin": two})
    await place.check(head)
    assert place.there(one) is None
    await place.publish(head)
    assert place.there(one) == b"one"
    assert place.there(two) == b"two" * 100_000
    assert place.there(unused) is None  # no pointer names it
    await place.publish(head)  # as after a crash


async def test_the_token_for_it_is_revoked(place: Place) -> None:
    pointer = await place.bring(b"one")
    await place.publish(await place.hand_in({"one.bin": pointer}))
    writing = [
        one for one in place.lab.sandbox.world.tokens.values() if one.permissions.get("contents") == "write"
    ]
    assert writing == []
    trail = [one async for one in place.lab.audit.entries(Wanted()) if isinstance(one, Entry)]
    assert [one.kind for one in trail] == ["lfs.upload", "token.revoked"]
    (oid,) = trail[0].details["objects"]
    assert f"sha256:{oid}" in pointer


async def test_what_github_has_needs_nobody_to_bring_it(place: Place) -> None:
    known = place.lab.sandbox.add_large_file(REPO, b"known")
    head = await place.hand_in({"copy.bin": known})
    await place.check(head)
    await place.publish(head)


async def test_a_pointer_to_nothing_is_refused(place: Place) -> None:
    head = await place.hand_in({"lost.bin": LOST})
    with pytest.raises(
        JobFailed, match=r"lost.bin is a Git LFS pointer whose content .* neither GitHub nor"
    ) as caught:
        await place.check(head)
    assert (caught.value.phase, caught.value.kind) == (Phase.publish, FailureKind.refused)


async def test_a_pointer_that_was_there_before_is_not_ours(place: Place) -> None:
    await place.lab.push({"lost.bin": LOST})
    place.base = (await place.lab.sandbox.branches(REPO))["main"]
    mirror = await place.lab.mirror()
    clone = clone_for_agent(mirror, place.lab.folder / "newer")
    sha = commit(clone, {"other.txt": "x"})
    await agent_git(clone, "push", "-q", str(place.attempt.quarantine), "+HEAD:refs/heads/work")
    await place.check(sha)


async def test_a_pointer_with_another_size_is_refused(place: Place) -> None:
    pointer = parse_pointer((await place.bring(b"four")).encode())
    assert pointer is not None
    head = await place.hand_in({"wrong.bin": Pointer(pointer.oid, 5).text()})
    with pytest.raises(JobFailed, match=r"wrong.bin says 5 bytes, and its content has 4 bytes"):
        await place.check(head)


async def test_a_secret_in_a_large_file_is_found(place: Place) -> None:
    head = await place.hand_in({"data.bin": await place.bring(b"\x00\xff key: " + SECRET.encode() + b"\n")})
    with pytest.raises(
        JobFailed, match=r"the large file `data.bin` contains what looks like a secret"
    ) as caught:
        await place.check(head)
    assert SECRET not in str(caught.value)


async def test_without_lfs_a_pointer_is_a_file_like_others(place: Place) -> None:
    head = await place.hand_in({"lost.bin": LOST})
    await place.check(head, place.lab.job(config={}))


async def test_github_takes_no_more(place: Place) -> None:
    head = await place.hand_in({"one.bin": await place.bring(b"one")})
    place.lab.sandbox.faults.add(
        Fault(path="info/lfs", status=422, message="over its data quota", times=None)
    )
    with pytest.raises(JobFailed, match="over its data quota"):
        await place.publish(head)


@pytest.mark.parametrize("path", ["info/lfs", "/upload", "/verify"])
async def test_github_in_trouble_is_for_later(place: Place, path: str) -> None:
    head = await place.hand_in({"one.bin": await place.bring(b"one")})
    place.lab.sandbox.faults.add(Fault(path=path, status=503, times=None))
    with pytest.raises(GitHubUnavailable):
        await place.publish(head)
    place.lab.sandbox.faults.clear()
    await place.publish(head)


@pytest.mark.parametrize("path", ["info/lfs", "/upload", "/verify"])
@pytest.mark.parametrize("drop", ["before", "after"])
async def test_a_lost_answer_is_asked_for_again(place: Place, path: str, drop: str) -> None:
    pointer = await place.bring(b"one")
    head = await place.hand_in({"one.bin": pointer})
    place.lab.sandbox.faults.add(Fault(path=path, drop=drop))
    await place.publish(head)
    assert place.there(pointer) == b"one"


async def test_the_next_attempt_publishes_what_an_earlier_one_made(place: Place) -> None:
    """Unfinished work that goes on: its pointers come as a bundle, its objects lie on this host."""
    pointer = await place.bring(b"made by an attempt that ended")
    head = await place.hand_in({"one.bin": pointer})
    await place.lab.publisher.keep(place.lab.job(), place.attempt.quarantine)
    await place.lab.publisher.keep(place.lab.job(), place.attempt.quarantine)
    assert not [path for path in staged(place.attempt.quarantine).folder.rglob("*") if path.is_file()]
    await place.check(head)
    await place.publish(head)
    assert place.there(pointer) == b"made by an attempt that ended"


async def test_what_an_earlier_attempt_made_is_searched_for_secrets_too(place: Place) -> None:
    head = await place.hand_in({"one.bin": await place.bring(SECRET.encode())})
    await place.lab.publisher.keep(place.lab.job(), place.attempt.quarantine)
    with pytest.raises(JobFailed, match="looks like a secret"):
        await place.check(head)
