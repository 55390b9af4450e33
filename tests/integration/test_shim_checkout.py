"""The real shim checks out LFS files and submodules through a real gateway; a sandbox GitHub is behind it."""

from __future__ import annotations

from collections.abc import AsyncIterator, Mapping
from contextlib import asynccontextmanager
from datetime import UTC, datetime
from pathlib import Path
from typing import Any

from checkout_host import ATTRIBUTES, MAX_OBJECT, REPO, Lab, lab, needs_git_lfs
from shim_host import MAX_PUSH, Host, running

from bot.lfs import parse_pointer
from bot.sandbox.faults import Fault
from bot.sandbox.git import GitRepository, Identity
from bot.terms import Terms
from runners import quarantine
from runners.gateway.desk import Desk
from runners.gateway.server import Gateway
from runners.lfs_store import staged

LIB = "acme/lib"
KEPT = b"the kept content\n"


class CheckoutHost(Host):
    """An attempt at the lab's repository, with these terms."""

    def __init__(self, place: Lab, mirror: Path, base: str, terms: Terms) -> None:
        folder = place.folder / "host"
        folder.mkdir()
        super().__init__(folder)
        self.desk.close()
        self.mirror, self.base = mirror, base
        self.desk = Desk.create(folder / "attempt", attempt_id="j1-1", mirror=mirror, terms=terms)
        self.gateway = Gateway({"git": place.route().serve})

    async def start(self) -> None:
        """As a worker does it."""
        await quarantine.create(self.desk.quarantine, self.mirror, max_input_bytes=MAX_PUSH)
        await self.gateway.open(self.desk)
        await self.launch()

    def wanted(self) -> dict[str, Any]:
        """What the turn says about the checkout."""
        submodules = [one.model_dump() for one in self.desk.terms.submodules]
        return {"lfs": self.desk.terms.lfs, "submodules": submodules}

    async def remarks(self, number: int = 1) -> str:
        """What the shim itself said."""
        return "\n".join(await self.lines("conductor", number))


@asynccontextmanager
async def attempt(
    tmp_path: Path,
    *,
    files: Mapping[str, str | bytes] | None = None,
    large: Mapping[str, bytes] | None = None,
    gitmodules: str = "",
    links: Mapping[str, str] | None = None,
    **terms: Any,
) -> AsyncIterator[tuple[Lab, CheckoutHost]]:
    """A shim that has not got its turn yet."""
    async with lab(tmp_path, {".gitattributes": ATTRIBUTES, **(files or {})}) as place:
        await place.sandbox.create_repo(LIB, files={"lib.txt": "x\n", ".gitattributes": ATTRIBUTES})
        place.sandbox.set_role(LIB, "octocat", "write")
        octocat = place.sandbox.as_user("octocat")
        if large:
            pointers = {name: place.sandbox.add_large_file(REPO, one) for name, one in large.items()}
            await octocat.push_commit(REPO, "main", pointers)
            inner = {name: place.sandbox.add_large_file(LIB, one) for name, one in large.items()}
            await octocat.push_commit(LIB, "main", inner)
        found = ()
        if links:
            await octocat.push_commit(REPO, "main", {".gitmodules": gitmodules})
            await octocat.push_submodules(REPO, "main", links)
            found = tuple((await place.find()).submodules)
        mirror = await place.mirror()
        base = (await place.sandbox.branches(REPO))["main"]
        host = CheckoutHost(place, mirror, base, place.terms(submodules=found, **terms))
        async with running(host):
            yield place, host


LIBS = '[submodule "libs/a"]\n\tpath = libs/a\n\turl = ../lib.git\n'


async def test_submodules_are_repositories_of_their_own(tmp_path: Path) -> None:
    async with attempt(tmp_path, gitmodules=LIBS, links={"libs/a": LIB}, lfs=False) as (_, host):
        outcome = await host.play(
            "cat libs/a/lib.txt; git status --porcelain; git submodule status; git -C libs/a fetch -q && echo fetched",
            checkout=host.wanted(),
        )
        assert (outcome.error, outcome.push_error, outcome.head) == (None, None, host.base)
        content, status, fetched = await host.lines()
        commit = host.desk.terms.submodules[0].commit
        assert (content, fetched) == ("x", "fetched")
        assert status.strip().startswith(f"{commit} libs/a")
        assert await host.remarks() == ""


async def test_what_is_changed_inside_one_is_told_and_left(tmp_path: Path) -> None:
    async with attempt(tmp_path, gitmodules=LIBS, links={"libs/a": LIB}, lfs=False) as (_, host):
        outcome = await host.play("echo more >> libs/a/lib.txt; echo mine > mine.txt", checkout=host.wanted())
        assert outcome.push_error is None
        assert host.changes() == ["mine.txt"]
        assert "changed inside the submodule 'libs/a' is not part of the result" in await host.remarks()


async def test_a_later_turn_finds_what_is_there(tmp_path: Path) -> None:
    async with attempt(tmp_path, gitmodules=LIBS, links={"libs/a": LIB}, lfs=False) as (_, host):
        await host.play("touch libs/a/kept", checkout=host.wanted())
        await host.play("ls libs/a", checkout=host.wanted(), number=2)
        assert "kept" in await host.lines(number=2)


async def test_one_that_cannot_be_fetched_is_an_empty_folder(tmp_path: Path) -> None:
    async with attempt(tmp_path, gitmodules=LIBS, links={"libs/a": LIB}, lfs=False) as (_, host):
        wanted = host.wanted()
        wanted["submodules"][0]["commit"] = "a" * 40
        below = dict(wanted["submodules"][0], path="libs/a/b", parent="libs/a")
        outcome = await host.play(
            "ls -A libs/a; echo mine > mine.txt",
            checkout=wanted | {"submodules": [wanted["submodules"][0], below]},
        )
        assert outcome.error is None
        assert outcome.push_error is None
        assert await host.lines() == []
        assert host.changes() == ["mine.txt"]
        told = await host.remarks()
        assert "The submodule 'libs/a' could not be checked out" in told
        assert (
            "The submodule 'libs/a/b' could not be checked out: 'libs/a', which it is in, is not there"
            in told
        )


async def test_a_link_in_the_way_leads_nowhere(tmp_path: Path) -> None:
    outside = tmp_path / "outside"
    (outside / "precious").mkdir(parents=True)
    (outside / "precious" / "file").write_text("x")
    async with attempt(tmp_path, gitmodules=LIBS, links={"libs/a": LIB}, lfs=False) as (place, host):
        # a pull request whose tree has a link where the folder would be
        bare = GitRepository(tmp_path / "github" / "git" / f"{REPO}.git")
        link = await bare.write_blob(str(outside).encode())
        tree = await bare.write_tree(host.base, {"link": ("120000", link)})
        who = Identity("a", "a@example.org", datetime.now(UTC))
        sha = await bare.write_commit(tree, [host.base], "a link", who)
        await bare.update_ref("refs/heads/linked", sha)
        await place.mirror()
        submodule = host.wanted()["submodules"][0] | {"path": "link/precious"}
        outcome = await host.play("ls", checkout={"base_sha": sha, "submodules": [submodule]})
        assert outcome.error is None
        assert (
            "'link/precious' could not be checked out: a symbolic link is in its way" in await host.remarks()
        )
        assert (outside / "precious" / "file").read_text() == "x"


@needs_git_lfs
async def test_large_files_here_and_in_submodules(tmp_path: Path) -> None:
    async with attempt(tmp_path, large={"kept.bin": KEPT}, gitmodules=LIBS, links={"libs/a": LIB}) as (
        place,
        host,
    ):
        outcome = await host.play(
            "cat kept.bin libs/a/kept.bin; echo new > new.bin; git status --porcelain", checkout=host.wanted()
        )
        assert (outcome.error, outcome.push_error) == (None, None)
        assert await host.lines() == ["the kept content", "the kept content", "?? new.bin"]
        assert await host.remarks() == ""
        pointer = parse_pointer(host.pushed("new.bin").encode())
        assert pointer is not None
        found = staged(host.desk.quarantine).find(pointer.oid)
        assert found is not None
        assert found.read_bytes() == b"new\n"
        assert place.sandbox.large_file(REPO, pointer.text()) is None


@needs_git_lfs
async def test_the_agents_own_git_fetches_other_large_files(tmp_path: Path) -> None:
    async with attempt(tmp_path, large={"kept.bin": b"old\n"}) as (place, host):
        newer = place.sandbox.add_large_file(REPO, b"newer\n")
        await place.push({"kept.bin": newer}, branch="other")
        await place.mirror()
        outcome = await host.play(
            "git fetch -q origin other && git checkout -q FETCH_HEAD -- kept.bin && cat kept.bin",
            checkout=host.wanted(),
        )
        assert outcome.error is None
        assert await host.lines() == ["newer"]


@needs_git_lfs
async def test_without_lfs_pointers_stay_pointers(tmp_path: Path) -> None:
    async with attempt(tmp_path, large={"kept.bin": KEPT}, lfs=False) as (_, host):
        outcome = await host.play("head -c 7 kept.bin; git status --porcelain", checkout=host.wanted())
        assert (outcome.error, outcome.push_error, outcome.head) == (None, None, host.base)
        assert await host.lines() == ["version"]


@needs_git_lfs
async def test_github_in_trouble_leaves_pointers_and_a_remark(tmp_path: Path) -> None:
    async with attempt(tmp_path, large={"kept.bin": KEPT}) as (place, host):
        place.sandbox.faults.add(Fault(path="_lfs", status=500, times=None))
        outcome = await host.play("head -c 7 kept.bin; echo mine > mine.txt", checkout=host.wanted())
        assert (outcome.error, outcome.push_error) == (None, None)
        assert await host.lines() == ["version"]
        assert host.changes() == ["mine.txt"]
        assert (
            "1 files of Git LFS are only pointers; GitHub did not give them: 'kept.bin'"
            in await host.remarks()
        )


@needs_git_lfs
async def test_too_large_is_told_as_the_reason(tmp_path: Path) -> None:
    async with attempt(tmp_path) as (_, host):
        outcome = await host.play(f"head -c {MAX_OBJECT + 1} /dev/urandom > big.bin", checkout=host.wanted())
        assert outcome.push_error is not None
        assert "at most 97.7 KiB are moved here" in outcome.push_error
