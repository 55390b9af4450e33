"""Git over HTTP with the real git command, the git database API, and file contents."""

from __future__ import annotations

import asyncio
import base64
import gzip

import pytest

from bot.sandbox.faults import Fault

REPO = "/repos/acme/hello"
CONTENT = base64.b64encode(b"hi\n").decode()


def url_for(github, credential: str, repo: str = "acme/hello") -> str:
    return github.git_url(repo).replace("//", f"//x-access-token:{credential}@")


# ---- who may


async def test_fetch_and_push_with_an_installation_token(git, github, mint, events):
    token = await mint(permissions={"contents": "write"}, repositories=["hello"])
    sha = await git.commit(new__file_dot_txt="hello\n")
    await git("push", "--quiet", url_for(github, token), "HEAD:refs/heads/agent/1")
    assert (await github.branches("acme/hello"))["agent/1"] == sha
    assert await github.file("acme/hello", "agent/1", "new/file.txt") == "hello"
    assert await events() == ["push", "check_suite.requested"]
    payload = github.deliveries[1].payload
    assert (payload["ref"], payload["after"], payload["created"]) == ("refs/heads/agent/1", sha, True)
    assert payload["sender"]["login"] == "agent-conductor[bot]"
    assert [one["added"] for one in payload["commits"]] == [["new/file.txt"]]


async def test_a_bearer_header_is_as_good(git, github, mint):
    header = f"http.extraHeader=Authorization: Bearer {await mint()}"
    await git("-c", header, "fetch", "--quiet", github.git_url("acme/hello"), "main")


async def test_reading_does_not_allow_writing(git, github, mint):
    token = await mint(permissions={"contents": "read"})
    await git("fetch", "--quiet", url_for(github, token), "main")
    await git.commit(x="1")
    said = await git("push", url_for(github, token), "HEAD:x", fails=True)
    assert "Permission to acme/hello.git denied to agent-conductor[bot]" in said
    assert "403" in said
    assert list(await github.branches("acme/hello")) == ["main"]


async def test_no_contents_permission_no_fetch(git, github, mint):
    token = await mint(permissions={"issues": "write"})
    assert "403" in await git("fetch", url_for(github, token), "main", fails=True)


async def test_what_a_token_cannot_see_is_not_there(git, github, mint):
    await github.create_repo("acme/other", private=True)
    token = await mint(repositories=["hello"])
    said = await git("fetch", url_for(github, token, "acme/other"), "main", fails=True)
    assert "not found" in said
    assert "not found" in await git("fetch", url_for(github, token, "acme/nothing"), "main", fails=True)


async def test_an_expired_token(git, github, mint, clock):
    token = await mint()
    clock.forward(hours=1)
    assert "Authentication failed" in await git("fetch", url_for(github, token), "main", fails=True)


async def test_no_token(session, git, github):
    async with session.get("/acme/hello.git/info/refs?service=git-upload-pack") as answer:
        assert answer.status == 401
        assert answer.headers["WWW-Authenticate"] == 'Basic realm="GitHub"'


async def test_the_jwt_is_no_git_credential(git, github, sign):
    assert "not found" in await git("fetch", url_for(github, sign()), "main", fails=True)


async def test_people_push_by_their_role(git, github):
    await git.commit(x="1")
    assert "403" in await git("push", url_for(github, "rita-token"), "HEAD:x", fails=True)
    await git("push", "--quiet", url_for(github, "maria-token"), "HEAD:x")


@pytest.mark.parametrize(
    "path", ["HEAD", "objects/info/packs", "config", "info/refs", "info/refs?service=git-upload-archive"]
)
async def test_only_the_smart_protocol(session, path):
    headers = {"Authorization": "token octocat-token"}
    async with session.get(f"/acme/hello.git/{path}", headers=headers) as answer:
        assert answer.status == 404


# ---- what GitHub refuses in a push


async def test_workflow_files_need_their_own_permission(git, github, mint):
    await git.commit(_dot_github__workflows__ci_dot_yml="on: push\n")
    await git.commit(other="1")
    said = await git("push", url_for(github, await mint()), "HEAD:x", fails=True)
    words = "refusing to allow a GitHub App to create or update workflow `.github/workflows/ci.yml`"
    assert f"{words} without `workflows` permission" in said
    assert "x" not in await github.branches("acme/hello")
    # people may, and what is there already does not count
    await git("push", "--quiet", url_for(github, "maria-token"), "HEAD:x")
    await git.commit(more="1")
    await git("push", "--quiet", url_for(github, await mint()), "HEAD:y")


async def test_a_protected_branch(git, github, mint, bot):
    github.protect_branch("acme/hello", "main")
    await git.commit(x="1")
    said = await git("push", url_for(github, await mint()), "HEAD:main", fails=True)
    assert "GH006: Protected branch update failed for refs/heads/main." in said
    await git("push", "--quiet", url_for(github, await mint()), "HEAD:free")
    assert (await bot.get(f"{REPO}/branches/main"))["protected"] is True
    sha = (await github.branches("acme/hello"))["free"]
    await bot.patch(f"{REPO}/git/refs/heads/main", {"sha": sha}, status=422)
    await bot.put(f"{REPO}/contents/x", {"message": "m", "content": CONTENT}, status=422)


async def test_forced_and_deleted(git, github, pull, events):
    await git("push", "--quiet", "--force", "origin", "main:feature")
    await git("push", "--quiet", "origin", ":feature")
    await events()
    pushes = [one.payload for one in github.deliveries if one.event == "push"]
    assert [(one["forced"], one["deleted"]) for one in pushes[:2]] == [(False, True), (True, False)]
    assert list(await github.branches("acme/hello")) == ["main"]


async def test_two_pushes_to_one_branch_at_once(tmp_path, github, git):
    await git.commit(x="1")
    await git("branch", "other")
    await git.commit(x="2")
    answers = await asyncio.gather(
        git("push", "--porcelain", "origin", "HEAD:race"),
        git("push", "--porcelain", "origin", "other:race2"),
    )
    assert all("Done" in one for one in answers)
    assert {"race", "race2"} <= set(await github.branches("acme/hello"))


async def test_a_partial_clone(tmp_path, git, github):
    await git(
        "clone", "--quiet", "--filter=blob:none", "--no-checkout", url_for(github, "rita-token"), "thin"
    )


async def test_a_large_push_is_streamed(git, github):
    (git.folder / "large.bin").write_bytes(b"".join(n.to_bytes(4) for n in range(300_000)))
    sha = await git.commit()
    await git("-c", "http.postBuffer=1000", "push", "--quiet", "origin", "HEAD:large")
    assert (await github.branches("acme/hello"))["large"] == sha


async def test_a_compressed_request(session, github):
    """Git compresses a long list of what it has; aiohttp has undone that before git sees it."""
    tip = (await github.branches("acme/hello"))["main"]
    line = f"want {tip} ofs-delta\n".encode()
    body = b"%04x%s00000009done\n" % (len(line) + 4, line)
    headers = {
        "Authorization": "token octocat-token",
        "Content-Type": "application/x-git-upload-pack-request",
        "Content-Encoding": "gzip",
    }
    url = "/acme/hello.git/git-upload-pack"
    async with session.post(url, data=gzip.compress(body), headers=headers) as answer:
        assert answer.status == 200
        assert b"PACK" in await answer.read()


async def test_a_dropped_fetch(git, github):
    github.faults.add(Fault(path=r"hello\.git", drop="before"))
    await git("fetch", "origin", fails=True)
    await git("fetch", "origin")


# ---- refs, commits, trees and blobs by the API


async def test_a_commit_made_by_the_api(bot, github, events):
    tip = (await bot.get(f"{REPO}/git/ref/heads/main"))["object"]["sha"]
    blob = await bot.post(f"{REPO}/git/blobs", {"content": CONTENT, "encoding": "base64"})
    assert base64.b64decode((await bot.get(f"{REPO}/git/blobs/{blob['sha']}"))["content"]) == b"hi\n"
    entries = [
        {"path": "bin/run", "mode": "100755", "type": "blob", "sha": blob["sha"]},
        {"path": "text.txt", "mode": "100644", "type": "blob", "content": "text\n"},
        {"path": "README.md", "mode": "100644", "type": "blob", "sha": None},
    ]
    tree = await bot.post(f"{REPO}/git/trees", {"base_tree": tip, "tree": entries})
    listed = (await bot.get(f"{REPO}/git/trees/{tree['sha']}?recursive=1"))["tree"]
    modes = {one["path"]: one["mode"] for one in listed}
    assert (modes["bin/run"], modes["bin"], "README.md" in modes) == ("100755", "040000", False)
    commit = await bot.post(
        f"{REPO}/git/commits", {"message": "By the API", "tree": tree["sha"], "parents": [tip]}
    )
    bot_user = github.world.user("agent-conductor[bot]")
    assert commit["author"]["email"] == f"{bot_user.id}+agent-conductor[bot]@users.noreply.github.com"
    ref = await bot.post(f"{REPO}/git/refs", {"ref": "refs/heads/api", "sha": commit["sha"]})
    assert ref["object"]["sha"] == commit["sha"]
    assert await github.file("acme/hello", "api", "bin/run") == "hi"
    assert "push" in await events()


async def test_refs(bot, github, git):
    tip = (await github.branches("acme/hello"))["main"]
    new = await github.as_user("maria").push_commit("acme/hello", "next", {"x": "1"})
    path = f"{REPO}/git/refs"

    async def refused(method: str, url: str, body: dict | None = None) -> str:
        return (await bot(method, url, body, status=422))["message"]

    assert await refused("POST", path, {"ref": "refs/heads/next", "sha": tip}) == "Reference already exists"
    assert "must start with" in await refused("POST", path, {"ref": "next", "sha": tip})
    assert "not a valid ref" in await refused("POST", path, {"ref": "refs/heads/a..b", "sha": tip})
    assert await refused("POST", path, {"ref": "refs/heads/n", "sha": "0" * 40}) == "Object does not exist"
    assert await refused("PATCH", f"{path}/heads/next", {"sha": tip}) == "Update is not a fast forward"
    assert await refused("PATCH", f"{path}/heads/none", {"sha": tip}) == "Reference does not exist"
    assert await refused("DELETE", f"{path}/heads/none") == "Reference does not exist"
    await bot.patch(f"{path}/heads/next", {"sha": tip, "force": True})
    await bot.patch(f"{path}/heads/next", {"sha": new})
    await bot.get(f"{REPO}/git/ref/heads/nex", status=404)
    found = await bot.get(f"{REPO}/git/matching-refs/heads/nex")
    assert [one["ref"] for one in found] == ["refs/heads/next"]
    await bot.delete(f"{path}/heads/next")
    await bot.get(f"{REPO}/git/ref/heads/next", status=404)


async def test_branches_and_history(bot, github, pull):
    assert [one["name"] for one in await bot.get(f"{REPO}/branches")] == ["feature", "main"]
    branch = await bot.get(f"{REPO}/branches/feature")
    assert branch["commit"]["commit"]["message"] == "Add news"
    assert (await bot.get(f"{REPO}/branches/none", status=404))["message"] == "Branch not found"
    commits = await bot.get(f"{REPO}/commits?sha=feature&path=NEWS.md")
    assert [one["sha"] for one in commits] == [branch["commit"]["sha"]]
    commit = await bot.get(f"{REPO}/commits/feature")
    assert (commit["stats"]["additions"], commit["files"][0]["filename"]) == (2, "NEWS.md")
    assert await bot.get(f"{REPO}/commits/feature", Accept="application/vnd.github.sha") == commit["sha"]
    pulls = await bot.get(f"{REPO}/commits/{commit['sha']}/pulls")
    assert [one["number"] for one in pulls] == [pull]
    await bot.get(f"{REPO}/commits/nothing", status=422)


async def test_comparing(bot, github, pull):
    await github.as_user("maria").push_commit("acme/hello", "main", {"main.txt": "1\n"})
    answer = await bot.get(f"{REPO}/compare/main...feature")
    assert (answer["status"], answer["ahead_by"], answer["behind_by"]) == ("diverged", 1, 1)
    assert [one["filename"] for one in answer["files"]] == ["NEWS.md"]
    assert (await bot.get(f"{REPO}/compare/main...main"))["status"] == "identical"
    diff = await bot.get(f"{REPO}/compare/main...feature", Accept="application/vnd.github.diff")
    assert diff.startswith("diff --git")
    await bot.get(f"{REPO}/compare/main...nothing", status=422)


# ---- contents


async def test_contents(bot, github):
    folder = {one["name"]: one["type"] for one in await bot.get(f"{REPO}/contents/")}
    assert folder == {"README.md": "file", "hello": "dir", "pyproject.toml": "file", "tests": "dir"}
    assert "greeting.py" in [one["name"] for one in await bot.get(f"{REPO}/contents/hello")]
    file = await bot.get(f"{REPO}/contents/hello/greeting.py?ref=main")
    assert b"def greet" in base64.b64decode(file["content"])
    raw = await bot.get(f"{REPO}/contents/hello/greeting.py", Accept="application/vnd.github.raw+json")
    assert "def greet" in raw
    assert (await bot.get(f"{REPO}/readme"))["path"] == "README.md"
    await bot.get(f"{REPO}/contents/nothing", status=404)
    await bot.get(f"{REPO}/contents/README.md?ref=nothing", status=404)
    assert (await bot.get(f"{REPO}/languages")).keys() == {"Python"}


async def test_writing_a_file(bot, github, events):
    path = f"{REPO}/contents/docs/a.txt"
    made = await bot.put(path, {"message": "Add", "content": CONTENT}, status=201)
    changed = base64.b64encode(b"new\n").decode()
    refused = await bot.put(path, {"message": "Change", "content": changed}, status=422)
    assert "sha" in refused["message"]
    await bot.put(path, {"message": "Change", "content": changed, "sha": "0" * 40}, status=409)
    sha = made["content"]["sha"]
    made = await bot.put(path, {"message": "Change", "content": changed, "sha": sha, "branch": "main"})
    assert await github.file("acme/hello", "main", "docs/a.txt") == "new"
    gone = {"message": "Remove", "sha": made["content"]["sha"]}
    await bot.delete(path, gone, status=200)
    assert await github.file("acme/hello", "main", "docs/a.txt") is None
    assert (await events()).count("push") == 3
    await bot.put(path, {"message": "x", "content": "???"}, status=422)
    await bot.put(path, {"message": "x", "content": CONTENT, "branch": "none"}, status=404)


async def test_a_workflow_by_the_api(bot, caller, mint, person):
    body = {"message": "m", "content": CONTENT}
    await bot.put(f"{REPO}/contents/.github/workflows/x.yml", body, status=403)
    assert "workflows=write" in bot.headers["X-Accepted-GitHub-Permissions"]
    await person("maria").put(f"{REPO}/contents/.github/workflows/x.yml", body, status=201)


async def test_a_repository_without_commits(github, bot, person):
    await github.create_repo("acme/empty", files={})
    assert (await bot.get("/repos/acme/empty/commits", status=409))["message"] == "Git Repository is empty."
    assert await bot.get("/repos/acme/empty/branches") == []
    await bot.put("/repos/acme/empty/contents/a", {"message": "m", "content": CONTENT}, status=201)
    assert list(await github.branches("acme/empty")) == ["main"]


async def test_a_client_that_goes_away_leaves_no_git_behind(session, github, until):
    """The body stops half way: the child must go, and the repository must take the next push."""
    repository = github.world.repository("acme", "hello")
    lock = github._github.git(repository).lock

    async def body():
        yield b"0000"
        await asyncio.Event().wait()

    headers = {"Authorization": "token maria-token", "Content-Type": "application/x-git-receive-pack-request"}
    push = asyncio.create_task(
        session.post("/acme/hello.git/git-receive-pack", data=body(), headers=headers).__aenter__()
    )
    await until(lock.locked)
    push.cancel()
    with pytest.raises(asyncio.CancelledError):
        await push
    await until(lambda: not lock.locked())
    await github.as_user("maria").push_commit("acme/hello", "still-works", {"x": "1"})


async def test_a_push_that_is_no_push(session, github):
    headers = {"Authorization": "token maria-token", "Content-Type": "application/x-git-receive-pack-request"}
    async with session.post("/acme/hello.git/git-receive-pack", data=b"nonsense", headers=headers) as answer:
        await answer.read()
    assert list(await github.branches("acme/hello")) == ["main"]
