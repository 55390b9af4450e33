"""Attacks through submodules and Git LFS: what a repository, a pull request or an agent may write there.

The numbers of the attack classes are those of the table in docs/security.md.
"""

from __future__ import annotations

import base64
import dataclasses
import hashlib
import os
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from pathlib import Path

import aiohttp
import pytest
from aiohttp import web
from checkout_host import ATTRIBUTES, MAX_NEW, MAX_OBJECT, REPO, Lab, lab, lfs_git, needs_git_lfs
from git_host import listening

from bot.lfs import Action
from bot.model import TargetKind
from bot.sandbox.faults import Fault
from bot.sandbox.git import GitRepository
from bot.submodule_finder import Found, SubmoduleFinder
from bot.terms import SubmoduleTerms
from runners.lfs_remote import LfsError, LfsRemote
from runners.lfs_store import staged

LIB = "acme/lib"
KEPT = b"the kept content\n"


@pytest.fixture
async def place(tmp_path: Path) -> AsyncIterator[Lab]:
    async with lab(tmp_path, {".gitattributes": ATTRIBUTES}) as found:
        await found.sandbox.create_repo(LIB, files={"lib.txt": "x\n"}, collaborators={"octocat": "write"})
        yield found


def declare(url: str, *, name: str = "lib", path: str = "lib", more: str = "") -> str:
    quoted = url.replace("\\", "\\\\").replace('"', '\\"')
    return f'[submodule "{name}"]\n\tpath = "{path}"\n\turl = "{quoted}"\n{more}'


async def link(place: Lab, text: str, path: str = "lib") -> None:
    octocat = place.sandbox.as_user("octocat")
    await octocat.push_commit(REPO, "main", {".gitmodules": text})
    await octocat.push_submodules(REPO, "main", {path: LIB})


@asynccontextmanager
async def trap() -> AsyncIterator[tuple[str, list[web.Request]]]:
    """A server of somebody else's, and who called it."""
    calls: list[web.Request] = []

    async def note(request: web.Request) -> web.Response:
        calls.append(request)
        return web.json_response({"objects": []}, status=200 if request.method == "GET" else 403)

    app = web.Application()
    app.router.add_route("*", "/{path:.*}", note)
    async with listening(app) as url:
        yield url, calls


# --- class 16: what a .gitmodules may say -------------------------------------------------------------------


@pytest.mark.parametrize(
    "url",
    [
        "ext::sh -c touch% {canary}",
        "ext::touch",
        "file://{folder}/secret.git",
        "{folder}/secret.git",
        "--upload-pack=touch {canary}",
        "-u./payload",
        "-oProxyCommand=touch@github.com/acme/lib",
        "ssh://-oProxyCommand=touch/acme/lib",
        "http://169.254.169.254/acme/lib",
        "https://elsewhere.example/acme/lib.git",
        "{hub}@elsewhere.example/acme/lib.git",
        "http://elsewhere.example#{hub}/acme/lib",
        "{hub}/acme/lib.git?service=git-receive-pack",
        "{hub}/acme/../../admin",
        "{hub}/acme/lib/../../../etc",
        "{hub}/acme",
        "{hub}//lib",
        "../../../../etc/passwd",
        "../..",
        "./",
        "{hub}/acme/%2e%2e",
        "{hub}/acme/lib\n.git",
        "",
    ],
)
async def test_a_url_that_leads_elsewhere(place: Lab, url: str) -> None:
    canary = place.folder / "canary"
    text = url.format(canary=canary, folder=place.folder, hub=place.sandbox.url)
    await link(place, declare(text.replace("\n", "\\n")).replace("\\\\n", "\\n"))
    found = await place.find()
    assert found.submodules == []
    assert len(found.missing) == 1
    assert not canary.exists()
    assert [path.name for path in (place.folder / "mirrors").glob("*/*.git")] == [f"{place.repo().id}.git"]


@pytest.mark.parametrize(
    ("name", "path"),
    [
        ("../../hooks", "lib"),
        ("..", "lib"),
        ("a/../../b", "lib"),
        ("/etc", "lib"),
        ("-u", "lib"),
        ("a\tb", "lib"),
        ("lib", "../lib"),
        ("lib", "/etc"),
        ("lib", ".git/hooks"),
        ("lib", "a/.GIT/x"),
        ("lib", "-lib"),
        ("lib", "a\\b/../c"),
    ],
)
async def test_a_name_or_path_that_leads_elsewhere(place: Lab, name: str, path: str) -> None:
    text = declare("../lib.git", name=name, path=path.replace("\\", "\\\\"))
    await link(place, text)
    found = await place.find()
    assert found.submodules == []
    assert len(found.missing) == 1


async def test_commands_and_settings_in_the_file_are_not_obeyed(place: Lab) -> None:
    canary = place.folder / "canary"
    more = (
        f"\tupdate = !touch {canary}\n\tbranch = --upload-pack=touch\n\tfetchRecurseSubmodules = true\n"
        f"[include]\n\tpath = {place.folder}/included\n"
        f"[core]\n\tsshCommand = touch {canary}\n\tfsmonitor = touch {canary}\n"
        f'[url "{place.folder}/"]\n\tinsteadOf = {place.sandbox.url}/\n'
        f'[http]\n\tproxy = http://127.0.0.1:1/\n[credential]\n\thelper = "!touch {canary}"\n'
    )
    (place.folder / "included").write_text(declare("../evil", name="evil", path="evil"))
    await link(place, declare("../lib.git", more=more))
    found = await place.find()
    assert [one.path for one in found.submodules] == ["lib"]
    assert found.missing == []
    assert not canary.exists()


async def test_a_gitmodules_that_is_a_link_or_no_file_is_not_read(place: Lab) -> None:
    await link(place, declare("../lib.git"))
    bare = place.folder / "github" / "git" / f"{REPO}.git"
    oid = await _run(bare, "hash-object", "-w", "--stdin", stdin=b"/etc/passwd")
    listed = (await _run(bare, "ls-tree", "main")).splitlines()
    others = [line for line in listed if not line.endswith("\t.gitmodules")]
    assert len(others) < len(listed)
    tree = await _run(
        bare, "mktree", "--missing", stdin="\n".join([*others, f"120000 blob {oid}\t.gitmodules\n"]).encode()
    )
    sha = await _run(bare, "commit-tree", tree, "-p", "main", "-m", "x", env=_WHO)
    await _run(bare, "update-ref", "refs/heads/main", sha)
    found = await place.find()
    assert (found.submodules, found.missing) == ([], [])


async def test_a_gitmodules_of_megabytes_or_nonsense_is_told(place: Lab) -> None:
    await place.push({".gitmodules": declare("../lib.git") + "# " + "x" * 300_000})
    assert (await place.find()).missing == ["`.gitmodules` is larger than 256 KiB"]
    await place.push({".gitmodules": "[submodule \x00"})
    assert "cannot be read" in (await place.find()).missing[0]


# --- class 9: a pull request's own configuration ----------------------------------------------------------


async def test_a_pull_requests_gitmodules_is_not_read(place: Lab) -> None:
    await place.sandbox.create_repo("acme/other", files={"o": "x"}, collaborators={"octocat": "write"})
    await link(place, declare("../lib.git"))
    octocat = place.sandbox.as_user("octocat")
    await octocat.push_commit(
        REPO, "feature", {".gitmodules": declare("../other.git") + declare("../other", name="b", path="b")}
    )
    await octocat.push_submodules(REPO, "feature", {"lib": "acme/other", "b": "acme/other"})
    mirror = await place.mirror()
    base = await place.mirrors.resolve(mirror, "refs/heads/main")
    head = await place.mirrors.resolve(mirror, "refs/heads/feature")
    found = await _find(place, base, head)
    assert found.submodules == []  # acme/lib has no such commit, and acme/other was not declared there
    assert len(found.missing) == 1
    assert not place.mirrors.path(place.repo("acme/other")).exists()


async def _find(place: Lab, declared_at: str, tree: str) -> Found:
    finder = SubmoduleFinder(
        github_url=place.sandbox.url, github=place.github, facts=place.facts, mirrors=place.mirrors
    )
    job = place.job(target=TargetKind.pull_request)
    return await finder.find(job, await place.mirror(), attempt="j1-1", declared_at=declared_at, tree=tree)


# --- class 11: whose repositories an attempt may read -----------------------------------------------------


async def test_a_private_repository_of_another_account_is_refused(place: Lab) -> None:
    place.sandbox.add_user("rivals")
    await place.sandbox.create_repo("rivals/secret", files={"s": "x"}, private=True)
    await link(place, declare("../../rivals/secret.git"))
    found = await place.find()
    assert found.submodules == []
    assert found.missing == ["`lib`: there is no rivals/secret, or the App is not installed on it"]


async def test_another_installation_of_this_app_is_refused(place: Lab) -> None:
    place.sandbox.add_user("rivals")
    await place.sandbox.create_repo("rivals/secret", files={"s": "x"}, private=True)
    world = place.sandbox.world
    ours = world.installations[place.sandbox.installation_id]
    theirs = dataclasses.replace(ours, id=world.next_id(), account="rivals")
    world.installations[theirs.id] = theirs
    own = world.repository(*REPO.split("/"))
    assert own is not None
    own.private = True
    await link(place, declare("../../rivals/secret.git"))
    found = await place.find()
    assert found.submodules == []
    assert "no rivals/secret" in found.missing[0]


async def test_who_may_not_read_a_repository_does_not_read_it_through_an_agent(place: Lab) -> None:
    """A writer of one repository declares another, private one of the same account as its submodule."""
    await place.sandbox.create_repo("acme/secret", files={"s": "x"}, private=True)
    own = place.sandbox.world.repository(*REPO.split("/"))
    assert own is not None
    own.private = True
    await link(place, declare("../secret.git"))
    found = await place.find(place.job("maria"))
    assert found.missing == ["`lib`: @maria, who asked for this, may not read acme/secret"]
    assert not place.mirrors.path(place.repo("acme/secret")).exists()


async def test_the_gateway_serves_no_repository_that_is_not_on_the_terms(place: Lab) -> None:
    await place.sandbox.create_repo("acme/other", files={"o": "x"}, collaborators={"octocat": "write"})
    for name in (LIB, "acme/other"):
        await link(place, declare(f"../{name.split('/')[1]}"))
        await place.find()
    terms = SubmoduleTerms(
        path="lib", name="lib", repository=LIB, repo_id=place.repo(LIB).id, commit="a" * 40
    )
    attempt = await place.attempt(place.terms(submodules=(terms,)))
    number = place.repo("acme/other").id
    async with place.gateway(attempt) as url, aiohttp.ClientSession() as client:
        root = url.removesuffix("repository.git")
        refs = "info/refs?service=git-upload-pack"
        for path, status in (
            (f"{LIB}.git/{refs}", 200),
            (f"{LIB}.git/info/refs?service=git-receive-pack", 404),
            (f"{LIB}.git/config", 404),
            (f"acme/other.git/{refs}", 404),
            (f"{number}.git/{refs}", 404),
            (f"{LIB}.git/../{number}.git/{refs}", 404),
            (f"acme/LIB.git/{refs}", 404),
            (f"acme/lib.git.git/{refs}", 404),
            (f"x/{LIB}.git/{refs}", 404),
            (f"acme/other.git/info/lfs/objects/{'a' * 64}", 404),
        ):
            async with client.get(root + path) as answer:
                assert answer.status == status, path
        body = {"operation": "upload", "objects": [{"oid": "a" * 64, "size": 1}]}
        async with client.post(f"{root}{LIB}.git/info/lfs/objects/batch", json=body) as answer:
            assert answer.status == 403  # read only
        async with client.put(f"{root}{LIB}.git/info/lfs/objects/{'a' * 64}", data=b"x") as answer:
            assert answer.status == 403


async def test_objects_of_another_repository_are_not_given(place: Lab) -> None:
    """GitHub decides by repository, and so does what this host keeps."""
    other = place.sandbox.add_large_file(LIB, KEPT)
    oid = hashlib.sha256(KEPT).hexdigest()
    assert oid in other
    terms = SubmoduleTerms(
        path="lib", name="lib", repository=LIB, repo_id=place.repo(LIB).id, commit="a" * 40
    )
    both = await place.attempt(place.terms(submodules=(terms,)), name="both")
    async with place.gateway(both) as url, aiohttp.ClientSession() as client:
        lib = f"{url.removesuffix('repository.git')}{LIB}.git/info/lfs/objects"
        async with client.get(f"{lib}/{oid}?size={len(KEPT)}") as answer:
            assert await answer.read() == KEPT  # now it is in the cache
        async with client.get(f"{url}/info/lfs/objects/{oid}?size={len(KEPT)}") as answer:
            assert answer.status == 404


# --- classes 15 and 18: objects that are not what they say ------------------------------------------------


@pytest.mark.parametrize(
    "oid",
    [
        "..%2f..%2f..%2f..%2fetc%2fpasswd",
        "../../../../etc/passwd",
        "a" * 63,
        "A" * 64,
        "a" * 63 + "/",
        "a" * 64 + ".tmp",
        "%00" * 64,
        "٠" * 64,
    ],
)
async def test_an_oid_is_no_path(place: Lab, oid: str) -> None:
    attempt = await place.attempt()
    async with place.gateway(attempt) as url, aiohttp.ClientSession() as client:
        for method in ("GET", "PUT"):
            async with client.request(method, f"{url}/info/lfs/objects/{oid}?size=1", data=b"x") as answer:
                assert answer.status in (400, 404)
        body = {"operation": "upload", "objects": [{"oid": oid, "size": 1}]}
        async with client.post(f"{url}/info/lfs/objects/batch", json=body) as answer:
            assert answer.status == 422
    assert not staged(attempt.quarantine).folder.exists()


async def test_content_that_is_not_its_names_is_refused(place: Lab) -> None:
    attempt = await place.attempt()
    oid = hashlib.sha256(b"what it says").hexdigest()
    async with (
        place.gateway(attempt) as url,
        aiohttp.ClientSession() as client,
        client.put(f"{url}/info/lfs/objects/{oid}", data=b"what it is !") as answer,
    ):
        assert answer.status == 422
        assert "another content" in await answer.text()
    assert staged(attempt.quarantine).find(oid) is None
    assert staged(attempt.quarantine).size() <= 4096


async def test_github_giving_something_else_is_refused(place: Lab) -> None:
    place.sandbox.add_large_file(REPO, KEPT)
    oid = hashlib.sha256(KEPT).hexdigest()
    stored = place.folder / "github" / "git" / f"{REPO}.git" / "lfs" / "objects" / oid
    stored.write_bytes(b"x" * len(KEPT))
    attempt = await place.attempt()
    async with (
        place.gateway(attempt) as url,
        aiohttp.ClientSession() as client,
        client.get(f"{url}/info/lfs/objects/{oid}?size={len(KEPT)}") as answer,
    ):
        assert answer.status == 422
        assert b"x" * len(KEPT) not in await answer.read()
    assert not [path for path in (place.folder / "cache").rglob("*") if path.is_file()]


async def test_too_much_is_refused(place: Lab) -> None:
    attempt = await place.attempt()
    async with place.gateway(attempt) as url, aiohttp.ClientSession() as client:
        objects = f"{url}/info/lfs/objects"

        async def endless() -> AsyncIterator[bytes]:
            while True:
                yield b"x" * 65536

        async with client.put(f"{objects}/{'a' * 64}", data=endless()) as answer:
            assert answer.status == 411  # who does not say how much it is
        large = os.urandom(MAX_OBJECT + 1)
        async with client.put(f"{objects}/{hashlib.sha256(large).hexdigest()}", data=large) as answer:
            assert answer.status == 507
        taken = 0
        for _ in range(10):
            content = os.urandom(MAX_OBJECT)
            async with client.put(f"{objects}/{hashlib.sha256(content).hexdigest()}", data=content) as answer:
                taken += MAX_OBJECT if answer.status == 200 else 0
        assert MAX_OBJECT <= taken <= MAX_NEW
        body = {"operation": "download", "objects": [{"oid": "b" * 64, "size": MAX_OBJECT + 1}]}
        async with client.post(f"{objects}/batch", json=body) as answer:
            (told,) = (await answer.json(content_type=None))["objects"]
            assert told["error"]["code"] == 422
        async with client.get(f"{objects}/{'b' * 64}?size={MAX_OBJECT + 1}") as answer:
            assert answer.status == 404


# --- where the client and the host go ---------------------------------------------------------------------


@needs_git_lfs
@pytest.mark.parametrize(
    "text",
    [
        "[lfs]\n\turl = {trap}/evil\n\tpushurl = {trap}/evil\n",
        '[remote "origin"]\n\tlfsurl = {trap}/evil\n\tlfspushurl = {trap}/evil\n',
        '[lfs "{gateway}"]\n\taccess = basic\n[lfs]\n\turl = {trap}/evil\n',
        '[url "{trap}/"]\n\tinsteadOf = {gateway}\n[lfs]\n\turl = {trap}/evil\n',
    ],
)
async def test_the_repositorys_lfsconfig_leads_nowhere(place: Lab, text: str) -> None:
    async with trap() as (evil, calls), place.gateway(await place.attempt()) as url:
        await place.push(
            {
                ".lfsconfig": text.format(trap=evil, gateway=url),
                "kept.bin": place.sandbox.add_large_file(REPO, KEPT),
            }
        )
        await place.mirror()
        clone = place.folder / "clone"
        await lfs_git(place.folder, "clone", "-q", url, str(clone), url=url)
        assert (clone / "kept.bin").read_bytes() == KEPT
        (clone / "new.bin").write_bytes(b"new")
        await lfs_git(clone, "add", "-A", url=url)
        await lfs_git(clone, "commit", "-q", "-m", "x", url=url)
        await lfs_git(clone, "lfs", "push", "origin", "HEAD", url=url)
        assert calls == []


@needs_git_lfs
async def test_without_our_settings_the_lfsconfig_would_lead_there(place: Lab) -> None:
    """The test above can fail: the real client listens to the file."""
    async with trap() as (evil, calls), place.gateway(await place.attempt()) as url:
        await place.push(
            {
                ".lfsconfig": f"[lfs]\n\turl = {evil}/evil\n",
                "kept.bin": place.sandbox.add_large_file(REPO, KEPT),
            }
        )
        await place.mirror()
        clone = place.folder / "clone"
        await lfs_git(place.folder, "clone", "-q", url, str(clone))
        await lfs_git(clone, "lfs", "fetch", ok=False)
        assert calls


async def test_the_hosts_token_goes_to_github_alone(place: Lab) -> None:
    """GitHub may name any store; that one gets the headers that GitHub gave for it, and no redirect is followed."""
    async with trap() as (store, calls):
        remote = LfsRemote(place.sandbox.url, retry_delays=())
        async with remote.download(Action(href=f"{store}/object", header={"X-Proof": "1"})) as chunks:
            assert b"".join([chunk async for chunk in chunks]) == b'{"objects": []}'
        await remote.close()
        (call,) = calls
        assert "Authorization" not in call.headers
        assert call.headers["X-Proof"] == "1"

    async def elsewhere(_: web.Request) -> web.Response:
        raise web.HTTPFound(place.sandbox.url)

    app = web.Application()
    app.router.add_get("/object", elsewhere)
    async with listening(app) as store:
        remote = LfsRemote(place.sandbox.url, retry_delays=())
        with pytest.raises(LfsError, match="status 302"):
            async with remote.download(Action(href=f"{store}/object")):
                pass
        await remote.close()


@pytest.mark.parametrize("href", ["file:///etc/passwd", "http://10.0.0.1/x", "ftp://a/b", "//a/b", "/x", ""])
async def test_an_address_that_is_not_https_is_not_called(href: str) -> None:
    remote = LfsRemote("https://github.example", retry_delays=())
    with pytest.raises(LfsError, match="not https"):
        async with remote.download(Action(href=href)):
            pass
    await remote.close()


async def test_an_error_of_github_shows_the_container_no_token(place: Lab) -> None:
    place.sandbox.faults.add(Fault(path="info/lfs", status=403, message="no", times=None))
    async with place.gateway(await place.attempt()) as url, aiohttp.ClientSession() as client:
        body = {"operation": "download", "objects": [{"oid": "a" * 64, "size": 1}]}
        async with client.post(f"{url}/info/lfs/objects/batch", json=body) as answer:
            text = await answer.text() + str(answer.headers)
    for token in place.sandbox.world.tokens:
        assert token not in text
        assert base64.b64encode(f"x-access-token:{token}".encode()).decode() not in text


_WHO = {f"GIT_{who}_{what}": "a@example.org" for who in ("AUTHOR", "COMMITTER") for what in ("NAME", "EMAIL")}


async def _run(folder: Path, *argv: str, stdin: bytes = b"", env: dict[str, str] | None = None) -> str:
    return await GitRepository(folder).text(*argv, stdin=stdin, env=env)
