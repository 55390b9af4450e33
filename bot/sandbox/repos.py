"""REST: repositories, people and their rights, branches, history, statuses, dispatches, and the rate limit."""

from __future__ import annotations

from typing import Any

from bot.sandbox.api import Answer, Call, Handler
from bot.sandbox.git import EMPTY_TREE
from bot.sandbox.mergeability import rules_for
from bot.sandbox.merging import settle
from bot.sandbox.moving import full
from bot.sandbox.orgs import rights
from bot.sandbox.permissions import role_as_permission
from bot.sandbox.present import Json, iso, node_id
from bot.sandbox.refusals import Refusal, not_found
from bot.sandbox.state import Activity, Status, User

_HEADS = "refs/heads/"
MAX_COMPARED = 250
"""Commits that a comparison shows on one page."""


async def get_rate_limit(call: Call) -> Answer:
    """GET /rate_limit."""
    core = call.github.rate_limit.resource(call.actor.rate_key, call.github.now())
    search = {**core, "limit": 30, "used": 0, "remaining": 30}
    return Answer(data={"resources": {"core": dict(core), "search": search}, "rate": dict(core)})


async def get_user(call: Call) -> Answer:
    """GET /users/{username}."""
    user = call.github.world.user(call.args["username"])
    # github.com shows nobody an account that it suspended; GHES shows it with "suspended_at"
    if user is None or user.suspended_at is not None:
        raise not_found()
    return Answer(data=_full_user(call, user))


async def get_current_user(call: Call) -> Answer:
    """GET /user."""
    return Answer(data=_full_user(call, call.github.world.users[call.login]))


def _full_user(call: Call, user: User) -> Json:
    since = iso(call.github.world.app.created_at)
    return {
        **call.github.present.user(user.login),
        "name": user.login,
        "created_at": since,
        "updated_at": since,
    }


async def get(call: Call) -> Answer:
    """GET /repos/{owner}/{repo}."""
    repository = call.repository
    shown = full(call, repository)
    if call.actor.kind == "user":
        shown["permissions"] = rights(call.github.world.role(repository, call.login))
    return Answer(data=shown)


async def list_languages(call: Call) -> Answer:
    """GET /repos/{owner}/{repo}/languages, by file names."""
    names = {
        ".py": "Python",
        ".js": "JavaScript",
        ".ts": "TypeScript",
        ".go": "Go",
        ".rs": "Rust",
        ".sh": "Shell",
    }
    sizes: dict[str, int] = {}
    head = await call.git.resolve(call.repository.default_branch)
    for entry in await call.git.entries(head, recursive=True) if head else []:
        language = names.get("." + entry.path.rpartition(".")[2])
        if language and entry.type == "blob":
            sizes[language] = sizes.get(language, 0) + (entry.size or 0)
    return Answer(data=sizes)


# ---- collaborators


async def get_permission(call: Call) -> Answer:
    """GET /repos/{owner}/{repo}/collaborators/{username}/permission.

    Everybody has read permission on a public repository, as with GitHub.
    """
    user = call.github.world.user(call.args["username"])
    if user is None or user.suspended_at is not None:
        raise not_found()
    # an App's bot is no collaborator; what it may do lies in its token
    role = "none" if user.type == "Bot" else call.github.world.role(call.repository, user.login)
    shown = _collaborator(call, user.login, role)
    return Answer(data={"permission": role_as_permission(role), "role_name": role, "user": shown})


async def list_collaborators(call: Call) -> Answer:
    """GET /repos/{owner}/{repo}/collaborators."""
    world = call.github.world
    roles = {
        one.login: world.role(call.repository, one.login, public=False)
        for one in world.users.values()
        if one.type == "User"
    }
    people = [(login, role) for login, role in roles.items() if role != "none"]
    return call.page(people, lambda pair: _collaborator(call, *pair))


async def check_collaborator(call: Call) -> Answer:
    """GET /repos/{owner}/{repo}/collaborators/{username}."""
    user = call.github.world.user(call.args["username"])
    if user is None or call.github.world.role(call.repository, user.login, public=False) == "none":
        raise not_found()
    return Answer(204)


def _collaborator(call: Call, login: str, role: str) -> Json:
    return {**call.github.present.user(login), "permissions": rights(role), "role_name": role}


# ---- branches and history


async def list_branches(call: Call) -> Answer:
    """GET /repos/{owner}/{repo}/branches."""
    refs = await call.git.refs(_HEADS)
    only = call.query.get("protected")
    found = [
        (name, sha)
        for name, sha in ((ref.removeprefix(_HEADS), sha) for ref, sha in refs.items())
        if only is None or (only == "true") == (name in call.repository.protected_branches)
    ]
    return call.page(found, lambda pair: _short_branch(call, *pair))


async def get_branch(call: Call) -> Answer:
    """GET /repos/{owner}/{repo}/branches/{branch}."""
    name = call.args["branch"]
    sha = (await call.git.refs(_HEADS)).get(_HEADS + name)
    if sha is None:
        raise Refusal(404, "Branch not found")
    present, repository = call.github.present, call.repository
    url = f"{present.repository_url(repository)}/branches/{name}"
    protected = name in repository.protected_branches
    data = {
        "name": name,
        "commit": present.commit(repository, await call.git.commit(sha)),
        "protected": protected,
        "protection": {"enabled": protected},
        "protection_url": f"{url}/protection",
        "_links": {"self": url, "html": f"{present.page_url(repository)}/tree/{name}"},
    }
    return Answer(data=data)


def _short_branch(call: Call, name: str, sha: str) -> Json:
    url = f"{call.github.present.repository_url(call.repository)}/commits/{sha}"
    protected = name in call.repository.protected_branches
    return {"name": name, "commit": {"sha": sha, "url": url}, "protected": protected}


async def list_commits(call: Call) -> Answer:
    """GET /repos/{owner}/{repo}/commits."""
    start = await call.git.resolve(call.query.get("sha", call.repository.default_branch))
    if start is None:
        if not await call.git.refs():
            raise Refusal(409, "Git Repository is empty.")
        raise not_found()
    path = ["--", call.query["path"]] if call.query.get("path") else []
    limits = [f"--{key}={call.query[key]}" for key in ("since", "until") if call.query.get(key)]
    commits = await call.git.log(*limits, start, *path)
    return call.page(commits, lambda one: call.github.present.commit(call.repository, one))


async def get_commit(call: Call) -> Answer:
    """GET /repos/{owner}/{repo}/commits/{ref}, as JSON, as a diff, or only the SHA."""
    sha = await _commit_or_refuse(call, call.args["ref"])
    commit = await call.git.commit(sha)
    parent = commit.parents[0] if commit.parents else EMPTY_TREE
    if ".sha" in call.accept:
        return Answer(text=sha, content_type="application/vnd.github.sha; charset=utf-8")
    if ".diff" in call.accept:
        text = await call.git.diff(parent, sha)
        return Answer(text=text, content_type="application/vnd.github.diff; charset=utf-8")
    changes = await call.git.changes(parent, sha)
    present = call.github.present
    added, removed = sum(one.additions for one in changes), sum(one.deletions for one in changes)
    data = {
        **present.commit(call.repository, commit),
        "stats": {"additions": added, "deletions": removed, "total": added + removed},
        "files": [present.file_change(call.repository, one, sha) for one in changes],
    }
    return Answer(data=data)


async def compare(call: Call) -> Answer:
    """GET /repos/{owner}/{repo}/compare/{basehead}: what ``head`` has since it left ``base``."""
    base_name, dots, head_name = call.args["basehead"].partition("...")
    if not dots:
        raise not_found()
    base = await _commit_or_refuse(call, base_name.rpartition(":")[2])
    head = await _commit_or_refuse(call, head_name.rpartition(":")[2])
    fork = await call.git.merge_base(base, head)
    if fork is None:
        raise Refusal(404, f"No common ancestor between {base_name} and {head_name}.")
    if ".diff" in call.accept:
        text = await call.git.diff(fork, head)
        return Answer(text=text, content_type="application/vnd.github.diff; charset=utf-8")
    git, present, repository = call.git, call.github.present, call.repository
    ahead, behind = await git.count(f"{base}..{head}"), await git.count(f"{head}..{base}")
    status = {(True, True): "diverged", (True, False): "ahead", (False, True): "behind"}
    commits = await git.log("--reverse", f"{base}..{head}")
    page = f"{present.page_url(repository)}/compare/{call.args['basehead']}"
    data: dict[str, Any] = {
        "url": f"{present.repository_url(repository)}/compare/{call.args['basehead']}",
        "html_url": page,
        "permalink_url": page,
        "diff_url": f"{page}.diff",
        "patch_url": f"{page}.patch",
        "base_commit": present.commit(repository, await git.commit(base)),
        "merge_base_commit": present.commit(repository, await git.commit(fork)),
        "status": status.get((ahead > 0, behind > 0), "identical"),
        "ahead_by": ahead,
        "behind_by": behind,
        "total_commits": ahead,
        "commits": [present.commit(repository, one) for one in commits[:MAX_COMPARED]],
        "files": [present.file_change(repository, one, head) for one in await git.changes(fork, head)],
    }
    return Answer(data=data)


async def list_pulls_of_commit(call: Call) -> Answer:
    """GET /repos/{owner}/{repo}/commits/{commit_sha}/pulls."""
    sha = await _commit_or_refuse(call, call.args["commit_sha"])
    found = []
    for issue, pull in call.repository.pulls():
        contained = await call.git.is_ancestor(sha, pull.head_sha)
        if pull.merge_commit_sha == sha or (contained and not await call.git.is_ancestor(sha, pull.base_sha)):
            found.append((issue, pull))
    return call.page(found, lambda pair: call.github.present.pull(call.repository, *pair))


async def _commit_or_refuse(call: Call, revision: str) -> str:
    sha = await call.git.resolve(revision)
    if sha is None:
        raise Refusal(422, f"No commit found for SHA: {revision}")
    return sha


# ---- statuses and dispatches


async def create_status(call: Call) -> Answer:
    """POST /repos/{owner}/{repo}/statuses/{sha}."""
    github, repository, body = call.github, call.repository, call.body
    sha = await _commit_or_refuse(call, call.args["sha"])
    status = Status(
        id=github.world.next_id(),
        sha=sha,
        login=call.login,
        state=body["state"],
        context=body.get("context", "default"),
        created_at=github.now(),
        description=body.get("description"),
        target_url=body.get("target_url"),
    )
    repository.statuses.append(status)
    # ten at most: https://docs.github.com/en/webhooks/webhook-events-and-payloads#status
    tips = [ref.removeprefix(_HEADS) for ref, tip in (await call.git.refs(_HEADS)).items() if tip == sha][:10]
    payload = {
        "id": status.id,
        "sha": sha,
        "name": repository.full_name,
        "context": status.context,
        "description": status.description,
        "state": status.state,
        "target_url": status.target_url,
        "commit": github.present.commit(repository, await call.git.commit(sha)),
        "branches": [_short_branch(call, name, sha) for name in tips],
        "created_at": iso(status.created_at),
        "updated_at": iso(status.created_at),
    }
    github.emit("status", repository, call.login, payload)
    await settle(github, repository)
    return Answer(201, github.present.status(repository, status))


async def list_statuses(call: Call) -> Answer:
    """GET /repos/{owner}/{repo}/commits/{ref}/statuses: newest first."""
    sha = await _commit_or_refuse(call, call.args["ref"])
    found = [one for one in reversed(call.repository.statuses) if one.sha == sha]
    return call.page(found, lambda one: call.github.present.status(call.repository, one))


async def get_combined_status(call: Call) -> Answer:
    """GET /repos/{owner}/{repo}/commits/{ref}/status: the newest status of each context, and the worst of all."""
    sha = await _commit_or_refuse(call, call.args["ref"])
    present, repository = call.github.present, call.repository
    newest = {one.context: one for one in repository.statuses if one.sha == sha}
    states = {one.state for one in newest.values()}
    state = "failure" if states & {"failure", "error"} else "success" if states == {"success"} else "pending"
    url = f"{present.repository_url(repository)}/commits/{sha}"
    data = {
        "state": state,
        "sha": sha,
        "total_count": len(newest),
        "statuses": [present.status(repository, one) for one in newest.values()],
        "repository": present.repository(repository),
        "commit_url": url,
        "url": f"{url}/status",
    }
    return Answer(data=data)


async def list_activities(call: Call) -> Answer:
    """GET /repos/{owner}/{repo}/activity: who moved which branch, newest first."""
    query = call.query
    found = [
        one
        for one in reversed(call.repository.activities)
        if query.get("ref", "").removeprefix("refs/heads/") in ("", one.ref.removeprefix("refs/heads/"))
        and query.get("actor") in (None, one.login)
        and query.get("activity_type") in (None, one.kind)
    ]

    def present(one: Activity) -> Json:
        return {
            "id": one.id,
            "node_id": node_id("PSH", one.id),
            "before": one.before,
            "after": one.after,
            "ref": one.ref,
            "timestamp": iso(one.at),
            "activity_type": one.kind,
            "actor": call.github.present.user(one.login),
        }

    if query.get("direction") == "asc":
        found.reverse()
    # the real one pages by cursors; what matters is that there is a next page
    return call.page(found, present)


async def get_branch_rules(call: Call) -> Answer:
    """GET /repos/{owner}/{repo}/rules/branches/{branch}: also of a branch that does not exist."""
    rules = rules_for(call.repository, call.args["branch"])
    found: list[Json] = []
    if rules.required_reviews:
        found.append(
            {
                "type": "pull_request",
                "parameters": {
                    "required_approving_review_count": rules.required_reviews,
                    "dismiss_stale_reviews_on_push": False,
                    "require_code_owner_review": False,
                    "require_last_push_approval": False,
                    "required_review_thread_resolution": False,
                },
            }
        )
    if rules.required_checks:
        checks = [{"context": name} for name in rules.required_checks]
        found.append(
            {
                "type": "required_status_checks",
                "parameters": {
                    "required_status_checks": checks,
                    "strict_required_status_checks_policy": False,
                },
            }
        )
    if rules.merge_queue:
        found.append({"type": "merge_queue"})
    where = {
        "ruleset_source_type": "Repository",
        "ruleset_source": call.repository.full_name,
        "ruleset_id": call.repository.id,
    }
    return call.page(found, lambda one: {**one, **where})


async def dispatch(call: Call) -> Answer:
    """POST /repos/{owner}/{repo}/dispatches."""
    payload = {
        "action": call.body["event_type"],
        "branch": call.repository.default_branch,
        "client_payload": call.body.get("client_payload", {}),
    }
    call.github.emit("repository_dispatch", call.repository, call.login, payload)
    return Answer(204)


OPERATIONS: dict[str, Handler] = {
    "rate-limit/get": get_rate_limit,
    "users/get-by-username": get_user,
    "users/get-authenticated": get_current_user,
    "repos/get": get,
    "repos/list-languages": list_languages,
    "repos/get-collaborator-permission-level": get_permission,
    "repos/list-collaborators": list_collaborators,
    "repos/check-collaborator": check_collaborator,
    "repos/list-branches": list_branches,
    "repos/get-branch": get_branch,
    "repos/list-commits": list_commits,
    "repos/get-commit": get_commit,
    "repos/compare-commits-with-basehead": compare,
    "repos/list-pull-requests-associated-with-commit": list_pulls_of_commit,
    "repos/create-commit-status": create_status,
    "repos/list-commit-statuses-for-ref": list_statuses,
    "repos/get-combined-status-for-ref": get_combined_status,
    "repos/create-dispatch-event": dispatch,
    "repos/list-activities": list_activities,
    "repos/get-branch-rules": get_branch_rules,
}
