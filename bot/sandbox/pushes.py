"""What follows when branches move, by a push or by the API."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from bot.sandbox.git import EMPTY_TREE, NO_COMMIT, GitError
from bot.sandbox.github import GitHub
from bot.sandbox.issues import announce, close, note
from bot.sandbox.refusals import Refusal
from bot.sandbox.state import Activity, Issue, Pull, Repository
from bot.sandbox.suites import suite_for
from bot.sandbox.threads import follow_lines

_BRANCH = "refs/heads/"
_PULLS = "refs/pull/"
_MAX_COMMITS = 2048
"""Commits that a push webhook carries at most."""


async def move_ref(
    github: GitHub, repository: Repository, login: str, name: str, new: str | None, *, old: str | None = None
) -> None:
    """Point a ref at ``new`` (None: delete it), provided that it is at ``old``, and tell the App.

    Raises:
        Refusal: 409 when the ref has moved meanwhile.
    """
    git = github.git(repository)
    async with git.lock:
        before = await git.refs()
        try:
            if new is None:
                await git.delete_ref(name)
            else:
                await git.update_ref(name, new, old)
        except GitError as error:
            raise Refusal(409, f"Reference cannot be updated: {error}") from None
        after = await git.refs()
        await refs_moved(github, repository, login, before, after)


async def refs_moved(
    github: GitHub, repository: Repository, login: str, before: Mapping[str, str], after: Mapping[str, str]
) -> None:
    """Compare two states of the refs and raise what GitHub would: push, create, delete, pull_request, check_suite."""
    for name in sorted(before.keys() | after.keys()):
        old, new = before.get(name), after.get(name)
        if old != new and not name.startswith(_PULLS):
            repository.pushed_at = github.now()
            await _write_down(github, repository, login, name, old, new)
            await _tell_push(github, repository, login, name, old, new)
            if name.startswith(_BRANCH):
                await _branch_moved(github, repository, login, name.removeprefix(_BRANCH), old, new)


async def _write_down(
    github: GitHub, repository: Repository, login: str, name: str, old: str | None, new: str | None
) -> None:
    """Note who moved a ref, for ``GET .../activity``."""
    git = github.git(repository)
    kind = "push"
    if new is None:
        kind = "branch_deletion"
    elif old is None:
        kind = "branch_creation"
    elif any(pull.merge_commit_sha == new for _, pull in repository.pulls()):
        kind = "pr_merge"
    elif not await git.is_ancestor(old, new):
        kind = "force_push"
    repository.activities.append(
        Activity(github.world.next_id(), login, name, old or NO_COMMIT, new or NO_COMMIT, kind, github.now())
    )


async def _tell_push(
    github: GitHub, repository: Repository, login: str, name: str, old: str | None, new: str | None
) -> None:
    git, present = github.git(repository), github.present
    forced = old is not None and new is not None and not await git.is_ancestor(old, new)
    commits = []
    if new is not None:
        known = [old] if old is not None else [repository.default_branch] if name.startswith(_BRANCH) else []
        # a new default branch has nothing to be compared with
        exclude = [
            f"^{one}" for one in known if one is not None and await git.resolve(one) not in (None, new)
        ]
        if exclude or old is None:
            log = await git.log("--reverse", f"--max-count={_MAX_COMMITS}", new, *exclude)
            for commit in log:
                changes = await git.changes(commit.parents[0] if commit.parents else EMPTY_TREE, commit.sha)
                commits.append(present.push_commit(repository, commit, changes))
    payload: dict[str, Any] = {
        "ref": name,
        "before": old or NO_COMMIT,
        "after": new or NO_COMMIT,
        "created": old is None,
        "deleted": new is None,
        "forced": forced,
        "base_ref": None,
        "compare": f"{present.page_url(repository)}/compare/{(old or NO_COMMIT)[:12]}...{(new or NO_COMMIT)[:12]}",
        "commits": commits,
        "head_commit": None,
        "pusher": {"name": login, "email": github.world.users[login].email},
    }
    if new is not None:
        tip = await git.commit(new)
        payload["head_commit"] = present.push_commit(repository, tip, [])
    github.emit("push", repository, login, payload)
    if (old is None) != (new is None) and name.startswith((_BRANCH, "refs/tags/")):
        kind = "branch" if name.startswith(_BRANCH) else "tag"
        short = {"ref": name.split("/", 2)[2], "ref_type": kind, "pusher_type": "user"}
        if old is None:
            more = {"master_branch": repository.default_branch, "description": repository.description}
            github.emit("create", repository, login, short | more)
        else:
            github.emit("delete", repository, login, short)


async def _branch_moved(
    github: GitHub, repository: Repository, login: str, branch: str, old: str | None, new: str | None
) -> None:
    parent = github.world.repositories.get(repository.fork_of or 0)
    for issue, pull in parent.pulls() if parent is not None else ():
        if issue.state == "open" and (pull.head_repository_id, pull.head_ref) == (repository.id, branch):
            assert parent is not None
            if new is not None:
                await github.git(parent).fetch(github.git(repository), new)
            await _head_moved(github, parent, login, issue, pull, old, new)
    for issue, pull in repository.pulls():
        if issue.state != "open":
            continue
        if pull.head_ref == branch and pull.head_repository_id is None:
            await _head_moved(github, repository, login, issue, pull, old, new)
        elif pull.base_ref == branch and new is not None:
            await _base_moved(github, repository, login, issue, pull, new)
    if new is not None:
        suite = suite_for(github, repository, new, branch)
        payload = {"action": "requested", "check_suite": github.present.check_suite(repository, suite)}
        github.emit("check_suite", repository, login, payload)


async def _head_moved(
    github: GitHub,
    repository: Repository,
    login: str,
    issue: Issue,
    pull: Pull,
    old: str | None,
    new: str | None,
) -> None:
    if new is None:
        note(github, issue, "head_ref_deleted", login)
        await close(github, repository, issue, login)
        return
    await follow_lines(github.git(repository), pull, old or pull.head_sha, new)
    pull.head_sha = new
    await github.git(repository).update_ref(f"{_PULLS}{issue.number}/head", new)
    pull.base_sha = await github.git(repository).resolve(pull.base_ref) or pull.base_sha
    issue.updated_at = github.now()
    await announce(github, repository, issue, login, "synchronize", before=old or NO_COMMIT, after=new)


async def _base_moved(
    github: GitHub, repository: Repository, login: str, issue: Issue, pull: Pull, tip: str
) -> None:
    """A pull request whose head has reached its base branch by a push is merged."""
    git = github.git(repository)
    if pull.head_sha != pull.base_sha and await git.is_ancestor(pull.head_sha, tip):
        await mark_merged(github, repository, issue, pull, login, tip)


async def mark_merged(
    github: GitHub, repository: Repository, issue: Issue, pull: Pull, login: str, commit: str
) -> None:
    """Write down that a pull request was merged, and tell the App."""
    pull.merged_at, pull.merged_by, pull.merge_commit_sha = github.now(), login, commit
    note(github, issue, "merged", login, commit_id=commit, commit_url=_commit_url(github, repository, commit))
    await close(github, repository, issue, login)


def _commit_url(github: GitHub, repository: Repository, sha: str) -> str:
    return f"{github.present.repository_url(repository)}/commits/{sha}"
