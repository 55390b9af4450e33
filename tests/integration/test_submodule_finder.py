"""Submodules as the host finds them: whose they may be, at which commit, how deep; with real git and a sandbox."""

from __future__ import annotations

import itertools
from collections.abc import AsyncIterator
from pathlib import Path

import pytest
from checkout_host import REPO, Lab, lab
from git_host import agent_git

from bot.sandbox.faults import Fault
from bot.submodules import MAX_DEPTH, MAX_SUBMODULES

LIB = "acme/lib"


def gitmodules(**places: str) -> str:
    return "".join(f'[submodule "{path}"]\n\tpath = {path}\n\turl = {url}\n' for path, url in places.items())


@pytest.fixture
async def place(tmp_path: Path) -> AsyncIterator[Lab]:
    async with lab(tmp_path) as found:
        await found.sandbox.create_repo(LIB, files={"lib.txt": "x\n"}, collaborators={"octocat": "write"})
        yield found


async def link(place: Lab, text: str, paths: dict[str, str], repo: str = REPO) -> None:
    octocat = place.sandbox.as_user("octocat")
    await octocat.push_commit(repo, "main", {".gitmodules": text})
    await octocat.push_submodules(repo, "main", paths)


async def test_a_public_one_beside_it(place: Lab) -> None:
    await link(place, gitmodules(lib="../lib.git"), {"lib": LIB})
    found = await place.find()
    (terms,) = found.submodules
    assert (terms.path, terms.parent, terms.name, terms.repository) == ("lib", "", "lib", LIB)
    assert terms.commit == (await place.sandbox.branches(LIB))["main"]
    assert terms.repo_id == place.repo(LIB).id
    assert not terms.anonymous
    assert found.missing == []
    assert place.mirrors.path(place.repo(LIB)).exists()
    assert place.mirrors.borrowers() == {"j1-1"}
    narrow = [one.repository_ids for one in place.sandbox.world.tokens.values() if one.repository_ids]
    assert {len(ids) for ids in narrow} == {1}  # never a token for both


async def test_the_attempt_fetches_it_from_its_gateway(place: Lab) -> None:
    await link(place, gitmodules(lib="../lib.git"), {"lib": LIB})
    terms = (await place.find()).submodules[0]
    attempt = await place.attempt(place.terms(submodules=(terms,)))
    async with place.gateway(attempt) as url:
        other = url.replace("repository.git", f"{LIB}.git")
        target = place.folder / "target"
        await agent_git(place.folder, "init", "-q", str(target))
        await agent_git(target, "fetch", "-q", "--depth=1", other, terms.commit)
        assert await agent_git(target, "show", "FETCH_HEAD:lib.txt") == "x"
        await agent_git(target, "checkout", "-q", "FETCH_HEAD")
        said = await agent_git(target, "push", "-q", other, "HEAD:refs/heads/work", ok=False)
        assert "404" in said or "not found" in said


async def test_the_commit_is_the_trees_not_the_branchs(place: Lab) -> None:
    await link(place, gitmodules(lib="../lib.git"), {"lib": LIB})
    first = (await place.sandbox.branches(LIB))["main"]
    await place.sandbox.as_user("octocat").push_commit(LIB, "main", {"lib.txt": "newer\n"})
    assert (await place.find()).submodules[0].commit == first


async def test_a_commit_that_no_branch_leads_to(place: Lab) -> None:
    octocat = place.sandbox.as_user("octocat")
    await octocat.push_commit(LIB, "gone", {"lib.txt": "on a branch that goes\n"})
    lost = (await place.sandbox.branches(LIB))["gone"]
    repository = place.sandbox.world.repository("acme", "lib")
    assert repository is not None
    repository.default_branch = "gone"
    await link(place, gitmodules(lib="../lib.git"), {"lib": LIB})
    repository.default_branch = "main"
    await octocat.delete_branch(LIB, "gone")
    found = await place.find()
    assert [one.commit for one in found.submodules] == [lost]
    attempt = await place.attempt(place.terms(submodules=tuple(found.submodules)))
    async with place.gateway(attempt) as url:
        await agent_git(place.folder, "init", "-q", "target")
        other = url.replace("repository.git", f"{LIB}.git")
        await agent_git(place.folder / "target", "fetch", "-q", "--depth=1", other, lost)


async def test_nested_ones_to_a_depth(place: Lab) -> None:
    octocat = place.sandbox.as_user("octocat")
    names = [f"acme/n{number}" for number in range(MAX_DEPTH + 2)]
    for name in names:
        await place.sandbox.create_repo(name, collaborators={"octocat": "write"})
    for upper, lower in reversed(list(itertools.pairwise(names))):
        await octocat.push_commit(upper, "main", {".gitmodules": gitmodules(x=f"../{lower.split('/')[1]}")})
        await octocat.push_submodules(upper, "main", {"x": lower})
    await link(place, gitmodules(top="../n0"), {"top": "acme/n0"})
    found = await place.find()
    assert [(one.path, one.parent) for one in found.submodules] == [
        ("top", ""), ("top/x", "top"), ("top/x/x", "top/x"),
    ]  # fmt: skip
    assert found.missing == [f"`top/x/x/x`: it is nested more than {MAX_DEPTH} deep"]


async def test_one_that_contains_itself_ends(place: Lab) -> None:
    octocat = place.sandbox.as_user("octocat")
    for _ in range(MAX_DEPTH + 2):  # each commit names the one before
        await octocat.push_commit(LIB, "main", {".gitmodules": gitmodules(again="../lib")})
        await octocat.push_submodules(LIB, "main", {"again": LIB})
    await link(place, gitmodules(lib="../lib"), {"lib": LIB})
    found = await place.find()
    assert len(found.submodules) == MAX_DEPTH
    assert "nested" in found.missing[0]


async def test_not_more_than_so_many(place: Lab) -> None:
    paths = {f"s{number}": LIB for number in range(MAX_SUBMODULES + 2)}
    await link(place, gitmodules(**dict.fromkeys(paths, "../lib.git")), paths)
    found = await place.find()
    assert len(found.submodules) == MAX_SUBMODULES
    assert len(found.missing) == 2
    assert all("more than" in sentence for sentence in found.missing)


async def test_declared_but_not_in_the_tree(place: Lab) -> None:
    await place.push({".gitmodules": gitmodules(lib="../lib.git"), "lib": "a file\n"})
    found = await place.find()
    assert (found.submodules, found.missing) == ([], [])


async def test_a_repository_without_any(place: Lab) -> None:
    found = await place.find()
    assert (found.submodules, found.missing) == ([], [])


async def test_a_private_one_of_a_private_repository_for_who_may_read_it(place: Lab) -> None:
    await place.sandbox.create_repo(
        "acme/inner", files={"a": "x"}, private=True, collaborators={"octocat": "write", "maria": "read"}
    )
    await link(place, gitmodules(inner="../inner"), {"inner": "acme/inner"})
    own = place.sandbox.world.repository(*REPO.split("/"))
    assert own is not None
    assert (await place.find()).missing == ["`inner`: acme/inner is private, and this repository is public"]
    own.private = True
    for reader in ("octocat", "maria"):
        found = await place.find(place.job(reader))
        assert ([one.path for one in found.submodules], found.missing) == (["inner"], [])
    found = await place.find(place.job("sam"))
    assert found.submodules == []
    assert found.missing == ["`inner`: @sam, who asked for this, may not read acme/inner"]


async def test_a_public_one_where_the_app_is_not_installed(place: Lab) -> None:
    place.sandbox.add_user("others")
    await place.sandbox.create_repo("others/lib", files={"a.txt": "x\n"})
    await link(place, gitmodules(lib="../../others/lib.git"), {"lib": "others/lib"})
    found = await place.find()
    assert found.missing == []
    assert [(one.repository, one.anonymous) for one in found.submodules] == [("others/lib", True)]


async def test_github_in_trouble_leaves_one_out(place: Lab) -> None:
    await link(place, gitmodules(lib="../lib.git"), {"lib": LIB})
    place.sandbox.faults.add(Fault(path=f"{LIB}.git", status=500, times=None))
    found = await place.find()
    assert found.submodules == []
    assert "`lib`: acme/lib could not be fetched" in found.missing[0]
