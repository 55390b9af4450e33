"""REST: files of a repository, read and written one at a time.

https://docs.github.com/en/rest/repos/contents
"""

from __future__ import annotations

import base64
import binascii
from datetime import datetime
from typing import Any

from bot.sandbox.api import Answer, Call, Handler
from bot.sandbox.branchrules import check_branch
from bot.sandbox.git import Identity, TreeEntry
from bot.sandbox.present import Json
from bot.sandbox.pushes import move_ref
from bot.sandbox.refusals import Refusal, not_found

MAX_INLINE = 1 << 20
"""Bytes up to which GitHub puts a file's content into the JSON."""


async def get_content(call: Call) -> Answer:
    """GET /repos/{owner}/{repo}/contents/{path}: a file, a link, or the list of a folder."""
    path = call.args["path"].strip("/")
    commit = await _commit(call)
    if not path:
        return _folder(call, await call.git.entries(commit))
    found = await call.git.entries(commit, path=path)
    if not found:
        raise not_found()
    if found[0].type == "tree":
        return _folder(call, await call.git.entries(commit, path=f"{path}/"))
    return await _file(call, found[0])


async def get_readme(call: Call) -> Answer:
    """GET /repos/{owner}/{repo}/readme."""
    for entry in await call.git.entries(await _commit(call)):
        if entry.path.lower().partition(".")[0] == "readme" and entry.type == "blob":
            return await _file(call, entry)
    raise not_found()


async def write_file(call: Call) -> Answer:
    """PUT /repos/{owner}/{repo}/contents/{path}: 201 for a new file, 200 for a changed one."""
    path = call.args["path"].strip("/")
    old = await _known(call, path)
    try:
        content = base64.b64decode("".join(call.body["content"].split()), validate=True)
    except binascii.Error:
        raise Refusal(422, "content is not valid Base64") from None
    commit = await _commit_change(call, path, content)
    entry = (await call.git.entries(commit, path=path))[0]
    shown = await call.git.commit(commit)
    data = {
        "content": _link(call, entry, "file"),
        "commit": call.github.present.git_commit(call.repository, shown),
    }
    return Answer(201 if old is None else 200, data)


async def delete_file(call: Call) -> Answer:
    """DELETE /repos/{owner}/{repo}/contents/{path}."""
    path = call.args["path"].strip("/")
    if await _known(call, path) is None:
        raise not_found()
    commit = await call.git.commit(await _commit_change(call, path, None))
    return Answer(data={"content": None, "commit": call.github.present.git_commit(call.repository, commit)})


OPERATIONS: dict[str, Handler] = {
    "repos/get-content": get_content,
    "repos/get-readme": get_readme,
    "repos/create-or-update-file-contents": write_file,
    "repos/delete-file": delete_file,
}


async def _commit(call: Call) -> str:
    name = call.query.get("ref", call.repository.default_branch)
    commit = await call.git.resolve(name)
    if commit is None:
        raise Refusal(404, f"No commit found for the ref {name}")
    return commit


def _branch(call: Call) -> str:
    return str(call.body.get("branch", call.repository.default_branch)).removeprefix("refs/heads/")


async def _known(call: Call, path: str) -> TreeEntry | None:
    """The file that is about to change; its SHA must be the one that the caller has seen."""
    tip = await call.git.resolve(f"refs/heads/{_branch(call)}")
    if tip is None:
        if await call.git.refs():
            raise Refusal(404, f"Branch {_branch(call)} not found")
        return None
    entry = next(iter(await call.git.entries(tip, path=path)), None)
    given = call.body.get("sha")
    if entry is not None and given is None:
        raise Refusal(422, 'Invalid request.\n\n"sha" wasn\'t supplied.')
    if entry is not None and given != entry.sha:
        raise Refusal(409, f"{path} does not match {given}")
    return entry


async def _commit_change(call: Call, path: str, content: bytes | None) -> str:
    github, git = call.github, call.git
    ref = f"refs/heads/{_branch(call)}"
    tip = await git.resolve(ref)
    changes = {path: None if content is None else ("100644", await git.write_blob(content))}
    tree = await git.write_tree(tip, changes)
    author, committer = (_identity(call, call.body.get(role)) for role in ("author", "committer"))
    parents = [tip] if tip else []
    commit = await git.write_commit(tree, parents, call.body["message"], author, committer)
    await check_branch(call, ref, commit)
    await move_ref(github, call.repository, call.login, ref, commit, old=tip)
    return commit


def _identity(call: Call, given: dict[str, Any] | None) -> Identity:
    own = call.github.identity(call.login)
    if not given:
        return own
    date = datetime.fromisoformat(given["date"]) if "date" in given else own.date
    return Identity(given["name"], given["email"], date)


def _folder(call: Call, entries: list[TreeEntry]) -> Answer:
    kinds = {"tree": "dir", "commit": "submodule"}
    return Answer(data=[_link(call, one, kinds.get(one.type, "file")) for one in entries])


async def _file(call: Call, entry: TreeEntry) -> Answer:
    content = await call.git.blob(entry.sha)
    if "raw" in call.accept:
        text = content.decode(errors="replace")
        return Answer(text=text, content_type="application/vnd.github.raw; charset=utf-8")
    small = len(content) <= MAX_INLINE
    data = _link(call, entry, "file")
    data["encoding"] = "base64" if small else "none"
    data["content"] = base64.encodebytes(content).decode() if small else ""
    return Answer(data=data)


def _link(call: Call, entry: TreeEntry, kind: str) -> Json:
    present, repository = call.github.present, call.repository
    ref = call.query.get("ref", repository.default_branch)
    url = f"{present.repository_url(repository)}/contents/{entry.path}?ref={ref}"
    blob = f"{present.repository_url(repository)}/git/blobs/{entry.sha}"
    page = f"{present.page_url(repository)}/blob/{ref}/{entry.path}"
    return {
        "type": kind,
        "name": entry.path.rpartition("/")[2],
        "path": entry.path,
        "sha": entry.sha,
        "size": entry.size or 0,
        "url": url,
        "git_url": blob,
        "html_url": page,
        "download_url": f"{present.page_url(repository)}/raw/{ref}/{entry.path}" if kind == "file" else None,
        "_links": {"self": url, "git": blob, "html": page},
    }
