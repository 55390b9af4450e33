"""A pull request's complete JSON: what is remembered, and what only git can tell."""

from __future__ import annotations

from bot.sandbox.github import GitHub
from bot.sandbox.mergeability import merge_state
from bot.sandbox.present import Json
from bot.sandbox.state import Issue, Repository


async def pull_json(github: GitHub, repository: Repository, issue: Issue, *, mergeable: bool = False) -> Json:
    """The full pull request, as ``GET .../pulls/{n}`` and webhooks show it.

    Args:
        github: the sandbox.
        repository: its repository.
        issue: its conversation side.
        mergeable: try the merge; without it the answer says "unknown", as GitHub's does right after a change.
    """
    pull = issue.pull
    assert pull is not None
    git = github.git(repository)
    base = await git.merge_base(pull.base_sha, pull.head_sha) or pull.base_sha
    changes = await git.changes(base, pull.head_sha)
    state = await merge_state(github, repository, issue, pull) if mergeable else "unknown"
    can_merge = None if state == "unknown" else state != "dirty"
    return {
        **github.present.pull(repository, issue, pull),
        "mergeable": can_merge,
        "mergeable_state": state,
        "rebaseable": False if can_merge is not None else None,
        "commits": await git.count(f"{base}..{pull.head_sha}"),
        "additions": sum(one.additions for one in changes),
        "deletions": sum(one.deletions for one in changes),
        "changed_files": len(changes),
    }
