"""Merging pull requests: what stands against it, doing it, and doing it by itself later.

https://docs.github.com/en/pull-requests/collaborating-with-pull-requests/incorporating-changes-from-a-pull-request
"""

from __future__ import annotations

import re

from bot.sandbox.github import GitHub
from bot.sandbox.issues import announce, close, note
from bot.sandbox.mergeability import can_merge, missing, missing_checks, rules_for
from bot.sandbox.pushes import mark_merged, move_ref
from bot.sandbox.refusals import Refusal
from bot.sandbox.state import Issue, MergeQueueEntry, Pull, Repository

_CLOSING_WORDS = re.compile(r"\b(?:close[sd]?|fix(?:e[sd])?|resolve[sd]?):? #(\d+)\b", re.IGNORECASE)


async def merge_pull(
    github: GitHub,
    repository: Repository,
    issue: Issue,
    login: str,
    *,
    method: str = "merge",
    title: str | None = None,
    message: str | None = None,
) -> str:
    """Merge, by a merge commit or squashed, and return the new commit.

    Raises:
        Refusal: 405, in GitHub's words.
    """
    pull, git = issue.pull, github.git(repository)
    assert pull is not None
    if issue.state != "open":
        raise Refusal(405, "Pull Request is not mergeable")
    if pull.draft:
        raise Refusal(405, "Pull Request is still a draft")
    if sentences := missing(github, repository, pull):
        raise Refusal(405, " ".join(sentences))
    if method == "rebase":
        raise Refusal(405, "Rebase merges are not allowed on this repository.")
    tip = await git.resolve(f"refs/heads/{pull.base_ref}")
    tree = await git.merge(tip, pull.head_sha) if tip else None
    if tip is None or tree is None:
        raise Refusal(405, "Pull Request is not mergeable")
    head, text = _words(repository, issue, pull, method)
    parents = [tip, pull.head_sha] if method == "merge" else [tip]
    identity = github.identity(login)
    commit = await git.write_commit(tree, parents, f"{title or head}\n\n{message or text}".strip(), identity)
    # before the branch moves, so that the move does not take this for a merge by push
    await mark_merged(github, repository, issue, pull, login, commit)
    await move_ref(github, repository, login, f"refs/heads/{pull.base_ref}", commit, old=tip)
    if pull.base_ref == repository.default_branch:
        await _close_fixed_issues(github, repository, issue, login)
    return commit


def _words(repository: Repository, issue: Issue, pull: Pull, method: str) -> tuple[str, str]:
    if method == "squash":
        return f"{issue.title} (#{issue.number})", issue.body or ""
    return f"Merge pull request #{issue.number} from {repository.owner}/{pull.head_ref}", issue.title


async def _close_fixed_issues(github: GitHub, repository: Repository, issue: Issue, login: str) -> None:
    """``Fixes #7`` in the body closes issue 7 once the pull request reaches the default branch."""
    for number in _CLOSING_WORDS.findall(issue.body or ""):
        fixed = repository.issues.get(int(number))
        if fixed is not None and fixed.pull is None and fixed.state == "open":
            await close(github, repository, fixed, login)


# ---- by itself: auto-merge and the merge queue


async def drop_auto_merge(
    github: GitHub, repository: Repository, issue: Issue, login: str, reason: str
) -> None:
    """Forget that a pull request was to be merged by itself, and tell the App."""
    assert issue.pull is not None
    issue.pull.auto_merge = None
    note(github, issue, "auto_merge_disabled", login)
    await announce(github, repository, issue, login, "auto_merge_disabled", reason=reason)


async def enqueue(
    github: GitHub, repository: Repository, issue: Issue, login: str, *, jump: bool
) -> MergeQueueEntry:
    """Put a pull request into the merge queue: its merge is tried on a branch of the queue's own.

    What is required must be there on its head already, and is asked for once more on that branch.

    Raises:
        Refusal: 405, as for a merge.
    """
    pull, git = issue.pull, github.git(repository)
    assert pull is not None
    if sentences := missing(github, repository, pull):
        raise Refusal(405, " ".join(sentences))
    tip = await git.resolve(f"refs/heads/{pull.base_ref}")
    tree = await git.merge(tip, pull.head_sha) if tip else None
    if tip is None or tree is None:
        raise Refusal(405, "Pull Request is not mergeable")
    title, message = _words(repository, issue, pull, "merge")
    identity = github.identity(login)
    sha = await git.write_commit(tree, [tip, pull.head_sha], f"{title}\n\n{message}", identity)
    branch = f"gh-readonly-queue/{pull.base_ref}/pr-{issue.number}-{tip}"
    pull.queued = MergeQueueEntry(github.world.next_id(), login, github.now(), branch, sha, jump)
    note(github, issue, "added_to_merge_queue", login)
    await announce(github, repository, issue, login, "enqueued")
    await move_ref(github, repository, login, f"refs/heads/{branch}", sha)
    group = {
        "head_sha": sha,
        "head_ref": f"refs/heads/{branch}",
        "base_sha": tip,
        "base_ref": f"refs/heads/{pull.base_ref}",
        "head_commit": github.present.simple_commit(await git.commit(sha)),
    }
    github.emit("merge_group", repository, login, {"action": "checks_requested", "merge_group": group})
    return pull.queued


async def dequeue(github: GitHub, repository: Repository, issue: Issue, login: str, reason: str) -> None:
    """Take a pull request out of the merge queue."""
    pull = issue.pull
    assert pull is not None
    assert pull.queued is not None
    branch, pull.queued = pull.queued.branch, None
    note(github, issue, "removed_from_merge_queue", login)
    await announce(github, repository, issue, login, "dequeued", reason=reason)
    await move_ref(github, repository, login, f"refs/heads/{branch}", None)


async def settle(github: GitHub, repository: Repository) -> None:
    """Merge what may be merged by now. Called when a check or a review came in."""
    for issue, pull in repository.pulls():
        if issue.state != "open":
            continue
        if pull.queued is not None:
            await _settle_queued(github, repository, issue, pull, pull.queued)
        elif pull.auto_merge is not None and not pull.draft and not missing(github, repository, pull):
            wish = pull.auto_merge
            if not await can_merge(github.git(repository), pull):
                continue
            if rules_for(repository, pull.base_ref).merge_queue:
                pull.auto_merge = None
                await enqueue(github, repository, issue, wish.login, jump=False)
                continue
            pull.auto_merge = None
            await merge_pull(
                github,
                repository,
                issue,
                wish.login,
                method=wish.method,
                title=wish.title,
                message=wish.message,
            )


async def _settle_queued(
    github: GitHub, repository: Repository, issue: Issue, pull: Pull, entry: MergeQueueEntry
) -> None:
    sentences = missing_checks(repository, pull.base_ref, entry.sha)
    if any(one.endswith("failing.") for one in sentences):
        await dequeue(github, repository, issue, entry.login, "CI_FAILURE")
        return
    if sentences:
        return
    git = github.git(repository)
    tip = await git.resolve(f"refs/heads/{pull.base_ref}")
    await dequeue(github, repository, issue, entry.login, "MERGE")
    await mark_merged(github, repository, issue, pull, entry.login, entry.sha)
    await move_ref(github, repository, entry.login, f"refs/heads/{pull.base_ref}", entry.sha, old=tip)
    if pull.base_ref == repository.default_branch:
        await _close_fixed_issues(github, repository, issue, entry.login)
