"""The comments on a pull request's diff, and our replies to its threads: each is written once.

https://docs.github.com/en/rest/pulls/comments
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

from bot.github import GitHubClient, path
from bot.github_errors import OutcomeUnknown
from bot.model import Repo

MAX_COMMENTS = 2_000  # of a pull request's comments on its diff, the newest ones


async def comments_on_diff(client: GitHubClient, repo: Repo, number: int) -> list[Mapping[str, Any]]:
    """The newest comments on the diff of a pull request, of all its threads. Raises what the client raises."""
    url = path(
        "/repos/{owner}/{repo}/pulls/{number}/comments",
        {"sort": "created", "direction": "desc"},
        owner=repo.owner,
        repo=repo.name,
        number=number,
    )
    found: list[Mapping[str, Any]] = []
    async for one in client.getiter(url):
        found.append(one)
        if len(found) == MAX_COMMENTS:
            break
    return found


def is_there(comments: Sequence[Mapping[str, Any]], mark: str, me: int) -> bool:
    """Whether the account ``me`` wrote the comment that has the hidden line ``mark``."""
    return any(
        (one.get("user") or {}).get("id") == me and mark in (one.get("body") or "") for one in comments
    )


async def reply(
    client: GitHubClient, repo: Repo, number: int, thread: int, body: str, *, mark: str, me: int
) -> None:
    """Write ``body``, which has the hidden line ``mark``, into a thread (its first comment's id).

    The caller has looked whether it is there. Where GitHub does not tell what became of it, it is looked for, and sent
    once more. Raises NotFound when the thread is gone, and what else the client raises.
    """
    url = path(
        "/repos/{owner}/{repo}/pulls/{number}/comments/{id}/replies",
        None,
        owner=repo.owner,
        repo=repo.name,
        number=number,
        id=thread,
    )
    for again in (False, True):
        try:
            await client.post(url, data={"body": body})
        except OutcomeUnknown:
            if is_there(await comments_on_diff(client, repo, number), mark, me):
                return
            if again:
                raise
        else:
            return
