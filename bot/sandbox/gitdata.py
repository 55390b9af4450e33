"""REST: git's own objects and refs.

https://docs.github.com/en/rest/git
"""

from __future__ import annotations

import base64
import binascii
from datetime import datetime

from bot.sandbox.api import Answer, Call, Handler
from bot.sandbox.branchrules import check_branch
from bot.sandbox.git import NO_COMMIT, Identity, TreeEntry
from bot.sandbox.present import Json
from bot.sandbox.pushes import move_ref
from bot.sandbox.refusals import Refusal, not_found
from bot.sandbox.signatures import verification

# ---- refs


async def get_ref(call: Call) -> Answer:
    """GET /repos/{owner}/{repo}/git/ref/{ref}: exactly this one."""
    name = "refs/" + call.args["ref"]
    sha = (await call.git.refs(name)).get(name)
    if sha is None:
        raise not_found()
    return Answer(data=await _ref(call, name, sha))


async def list_refs(call: Call) -> Answer:
    """GET /repos/{owner}/{repo}/git/matching-refs/{ref}: all that begin so."""
    prefix = "refs/" + call.args["ref"]
    refs = {name: sha for name, sha in (await call.git.refs()).items() if name.startswith(prefix)}
    shown = [await _ref(call, name, sha) for name, sha in refs.items()]
    return call.page(shown, lambda one: one)


async def create_ref(call: Call) -> Answer:
    """POST /repos/{owner}/{repo}/git/refs."""
    name, sha = call.body["ref"], call.body["sha"]
    if not name.startswith("refs/") or name.count("/") < 2:
        raise Refusal(422, "Reference name must start with 'refs/' and have at least two slashes.")
    if not await call.git.valid_ref(name):
        raise Refusal(422, f"{name} is not a valid ref name.")
    refs = await call.git.refs()
    if not refs:
        raise Refusal(409, "Git Repository is empty.")
    if name in refs:
        raise Refusal(422, "Reference already exists")
    await _must_exist(call, sha)
    await check_branch(call, name, sha)
    await move_ref(call.github, call.repository, call.login, name, sha, old=NO_COMMIT)
    return Answer(201, await _ref(call, name, sha))


async def update_ref(call: Call) -> Answer:
    """PATCH /repos/{owner}/{repo}/git/refs/{ref}."""
    name, sha = "refs/" + call.args["ref"], call.body["sha"]
    old = (await call.git.refs(name)).get(name)
    if old is None:
        raise Refusal(422, "Reference does not exist")
    await _must_exist(call, sha)
    if not call.body.get("force") and not await call.git.is_ancestor(old, sha):
        raise Refusal(422, "Update is not a fast forward")
    await check_branch(call, name, sha)
    await move_ref(call.github, call.repository, call.login, name, sha, old=old)
    return Answer(data=await _ref(call, name, sha))


async def delete_ref(call: Call) -> Answer:
    """DELETE /repos/{owner}/{repo}/git/refs/{ref}."""
    name = "refs/" + call.args["ref"]
    if name not in await call.git.refs(name):
        raise Refusal(422, "Reference does not exist")
    if name == f"refs/heads/{call.repository.default_branch}":
        raise Refusal(422, "Cannot delete the default branch")
    await check_branch(call, name, None)
    await move_ref(call.github, call.repository, call.login, name, None)
    return Answer(204)


async def _ref(call: Call, name: str, sha: str) -> Json:
    url = f"{call.github.present.repository_url(call.repository)}/git"
    kind = await call.git.object_type(sha) or "commit"
    target = {"sha": sha, "type": kind, "url": f"{url}/{kind}s/{sha}"}
    return {"ref": name, "node_id": f"REF_{sha}", "url": f"{url}/{name}", "object": target}


async def _must_exist(call: Call, sha: str) -> None:
    if await call.git.object_type(sha) is None:
        raise Refusal(422, "Object does not exist")


# ---- objects


async def get_commit(call: Call) -> Answer:
    """GET /repos/{owner}/{repo}/git/commits/{commit_sha}."""
    sha = call.args["commit_sha"]
    if await call.git.object_type(sha) != "commit":
        raise not_found()
    shown = call.github.present.git_commit(call.repository, await call.git.commit(sha))
    shown["verification"] = await verification(call.github, call.repository, call.git, sha)
    return Answer(data=shown)


async def create_commit(call: Call) -> Answer:
    """POST /repos/{owner}/{repo}/git/commits."""
    body, own = call.body, call.github.identity(call.login)
    if await call.git.object_type(body["tree"]) != "tree":
        raise Refusal(422, "Tree SHA does not exist")
    for parent in body.get("parents", []):
        if await call.git.object_type(parent) != "commit":
            raise Refusal(422, "Parent SHA does not exist or is not a commit object")
    ours = call.actor.kind == "installation" and not {"author", "committer", "signature"} & body.keys()
    author = _identity(body.get("author"), own)
    committer = _identity(body.get("committer"), author)
    sha = await call.git.write_commit(
        body["tree"], list(body.get("parents", [])), body["message"], author, committer
    )
    if ours:
        call.repository.signed_by_us.add(sha)
    shown = call.github.present.git_commit(call.repository, await call.git.commit(sha))
    shown["verification"] = await verification(call.github, call.repository, call.git, sha)
    return Answer(201, shown)


async def get_tree(call: Call) -> Answer:
    """GET /repos/{owner}/{repo}/git/trees/{tree_sha}: a tree's SHA, or anything that names a commit."""
    name = call.args["tree_sha"]
    sha = name if await call.git.object_type(name) == "tree" else await call.git.resolve(name)
    if sha is None:
        raise not_found()
    return Answer(data=await _tree(call, sha, recursive="recursive" in call.query))


async def create_tree(call: Call) -> Answer:
    """POST /repos/{owner}/{repo}/git/trees."""
    base = call.body.get("base_tree")
    if base is not None and await call.git.object_type(base) not in ("tree", "commit"):
        raise Refusal(422, "base_tree does not exist")
    changes: dict[str, tuple[str, str] | None] = {}
    for entry in call.body["tree"]:
        if entry.get("type") == "tree":
            raise Refusal(501, "The sandbox takes files in a new tree, not whole trees.")
        if "content" in entry:
            sha = await call.git.write_blob(entry["content"].encode())
        else:
            sha = entry.get("sha")
            if sha is not None and await call.git.object_type(sha) is None:
                raise Refusal(422, "tree.sha does not exist")
        changes[entry["path"]] = None if sha is None else (entry.get("mode", "100644"), sha)
    return Answer(201, await _tree(call, await call.git.write_tree(base, changes), recursive=False))


async def _tree(call: Call, sha: str, *, recursive: bool) -> Json:
    url = f"{call.github.present.repository_url(call.repository)}/git"
    entries = await call.git.entries(sha, recursive=recursive)
    tree = await call.git.text("rev-parse", "--verify", f"{sha}^{{tree}}")
    shown = [_entry(url, one) for one in entries]
    return {"sha": tree, "url": f"{url}/trees/{tree}", "tree": shown, "truncated": False}


def _entry(url: str, entry: TreeEntry) -> Json:
    shown: Json = {"path": entry.path, "mode": entry.mode, "type": entry.type, "sha": entry.sha}
    if entry.size is not None:
        shown["size"] = entry.size
    if entry.type != "commit":
        shown["url"] = f"{url}/{entry.type}s/{entry.sha}"
    return shown


async def get_blob(call: Call) -> Answer:
    """GET /repos/{owner}/{repo}/git/blobs/{file_sha}."""
    sha = call.args["file_sha"]
    if await call.git.object_type(sha) != "blob":
        raise not_found()
    content = await call.git.blob(sha)
    if "raw" in call.accept:
        text = content.decode(errors="replace")
        return Answer(text=text, content_type="application/vnd.github.raw; charset=utf-8")
    data = {
        **_blob_link(call, sha),
        "node_id": f"B_{sha}",
        "size": len(content),
        "content": base64.encodebytes(content).decode(),
        "encoding": "base64",
    }
    return Answer(data=data)


async def create_blob(call: Call) -> Answer:
    """POST /repos/{owner}/{repo}/git/blobs."""
    content = call.body["content"].encode()
    if call.body.get("encoding", "utf-8") == "base64":
        try:
            content = base64.b64decode(b"".join(content.split()), validate=True)
        except binascii.Error:
            raise Refusal(422, "content is not valid Base64") from None
    return Answer(201, _blob_link(call, await call.git.write_blob(content)))


def _blob_link(call: Call, sha: str) -> Json:
    url = call.github.present.repository_url(call.repository)
    return {"sha": sha, "url": f"{url}/git/blobs/{sha}"}


def _identity(given: Json | None, own: Identity) -> Identity:
    if not given:
        return own
    date = datetime.fromisoformat(given["date"]) if "date" in given else own.date
    return Identity(given.get("name", own.name), given.get("email", own.email), date)


OPERATIONS: dict[str, Handler] = {
    "git/get-ref": get_ref,
    "git/list-matching-refs": list_refs,
    "git/create-ref": create_ref,
    "git/update-ref": update_ref,
    "git/delete-ref": delete_ref,
    "git/get-commit": get_commit,
    "git/create-commit": create_commit,
    "git/get-tree": get_tree,
    "git/create-tree": create_tree,
    "git/get-blob": get_blob,
    "git/create-blob": create_blob,
}
