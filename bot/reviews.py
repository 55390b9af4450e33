"""What there is to know about a pull request before its reviews are counted. Read from GitHub, anew each time."""

from __future__ import annotations

import asyncio
from collections.abc import Collection, Iterable, Mapping
from dataclasses import dataclass
from datetime import datetime
from typing import Any

import structlog

from bot.approvals import PullFacts, Review, ReviewState, latest
from bot.github import GitHub, GitHubClient, path
from bot.github_errors import GitHubError
from bot.model import Actor, Repo
from bot.people import PeopleFinder
from bot.repo_rules import People
from bot.standing import Standing

log = structlog.get_logger(__name__)

#: Pushes to one branch that are looked at; of a branch with more of them nobody can tell who made it.
MAX_PUSHES = 500


@dataclass(frozen=True, kw_only=True)
class Reviewed:
    """A pull request, all reviews of it, and what their authors are."""

    pull: PullFacts
    reviews: tuple[Review, ...]
    people: Mapping[int, Standing]
    node_id: str
    author_id: int
    head_ref: str
    base_ref: str
    draft: bool = False
    from_fork: bool = False
    auto_merge_by: int | None = None  # who switched GitHub's auto-merge on, if it is


class ReviewFinder:
    """Questions about pull requests and their reviews, as the App's installation.

    Methods raise GitHubError and GitHubUnavailable: what is not known for certain approves nothing.
    """

    def __init__(self, github: GitHub) -> None:
        self._github = github
        self._people = PeopleFinder(github)

    async def head(self, repo: Repo, number: int) -> tuple[str, bool]:
        """The head of a pull request now, and whether it is open."""
        found = await self._get(repo, "/pulls/{number}", number=number)
        return str(found["head"]["sha"]), found.get("state") == "open"

    async def reviewed(
        self, repo: Repo, number: int, rules: Iterable[People], *, ours: Collection[str] = ()
    ) -> Reviewed:
        """Everything about a pull request. ``ours``: commits that the bot is known to have made."""
        rules = tuple(rules)
        found = await self._get(repo, "/pulls/{number}", number=number)
        # the head is read first: whatever is read later is compared with it, and a push in between shows
        reviews, pull = await asyncio.gather(
            self.reviews(repo, number), self._facts(repo, number, found, frozenset(ours))
        )
        paths = None
        if any(rule.codeowners for rule in rules):
            paths = await self._paths(repo, number) or None  # nothing is changed yet: whoever owns anything
        base = str(found["base"]["ref"])
        authors = [review.author for review in latest(reviews) if review.author]
        standings = await asyncio.gather(
            *(self._people.standing(repo, author, rules, paths=paths, ref=base) for author in authors)
        )
        user, merging = found.get("user") or {}, found.get("auto_merge") or {}
        return Reviewed(
            pull=pull,
            reviews=tuple(reviews),
            people={author.id: one for author, one in zip(authors, standings, strict=True)},
            node_id=str(found["node_id"]),
            author_id=int(user.get("id") or 0),
            head_ref=str(found["head"]["ref"]),
            base_ref=base,
            draft=bool(found.get("draft")),
            from_fork=_from_fork(found, repo),
            auto_merge_by=(merging.get("enabled_by") or {}).get("id"),
        )

    async def reviews(self, repo: Repo, number: int) -> list[Review]:
        """All reviews, also those that decide nothing, oldest first.

        https://docs.github.com/en/rest/pulls/reviews#list-reviews-for-a-pull-request
        """
        url = self._path(repo, "/pulls/{number}/reviews", number=number)
        return [_review(one) async for one in self._client(repo).getiter(url)]

    async def code_owners(self, repo: Repo, number: int, *, also: Collection[str] = ()) -> tuple[str, ...]:
        """The code owners of what a pull request changes, and of ``also``: ``@login`` and ``@organisation/team``.

        Where nothing is changed yet, whoever owns anything, as for the question whose review counts.
        """
        found = await self._get(repo, "/pulls/{number}", number=number)
        owners = await self._people.codeowners(repo, str(found["base"]["ref"]))
        paths = [*await self._paths(repo, number), *also]
        return await asyncio.to_thread(owners.of_any, paths) if paths else owners.everybody()

    async def _facts(
        self, repo: Repo, number: int, found: Mapping[str, Any], ours: frozenset[str]
    ) -> PullFacts:
        me = (await self._github.identity()).user_id
        head = str(found["head"]["sha"])
        pushers = None
        if not _from_fork(found, repo):
            pushers = await self._pushers(repo, str(found["head"]["ref"]), head)
        hands = {int(found["user"]["id"])} if found.get("user") else set()
        hands |= pushers or set()
        unattributed, listed = [], 0
        # at most 250 are listed: https://docs.github.com/en/rest/pulls/pulls#list-commits-on-a-pull-request
        url = self._path(repo, "/pulls/{number}/commits", number=number)
        async for commit in self._client(repo).getiter(url):
            listed += 1
            who = [commit.get("author"), commit.get("committer")]
            hands |= {int(one["id"]) for one in who if one}
            # who wrote a commit stands in it, and anybody can write anything there; who pushed it GitHub has seen
            forged = any(not one or int(one["id"]) == me for one in who) and str(commit["sha"]) not in ours
            if forged and pushers is None:
                unattributed.append(str(commit["sha"]))
        if listed < int(found.get("commits") or 0):
            unattributed.append(head)
        return PullFacts(
            number=number,
            head_sha=head,
            open=found.get("state") == "open",
            hands=frozenset(hands) - {me},
            unattributed=tuple(unattributed),
        )

    async def _pushers(self, repo: Repo, branch: str, head: str) -> set[int] | None:
        """Who ever pushed to ``branch``; None when that cannot be told, or ``head`` is not among what they pushed.

        https://docs.github.com/en/rest/repos/repos#list-repository-activities
        """
        url = path(
            "/repos/{owner}/{repo}/activity",
            {"ref": f"refs/heads/{branch}"},
            owner=repo.owner,
            repo=repo.name,
        )
        pushers, heads = set(), set()
        try:
            async for one in self._client(repo).getiter(url):
                if one.get("actor"):
                    pushers.add(int(one["actor"]["id"]))
                else:
                    return None  # the account is gone
                heads.add(str(one["after"]))
                if len(heads) > MAX_PUSHES:
                    return None
        except GitHubError as error:  # an older GitHub Enterprise Server, or it may not be read
            log.info("who pushed is unknown", repo=repo.full_name, branch=branch, error=str(error))
            return None
        return pushers if head in heads else None

    async def _paths(self, repo: Repo, number: int) -> list[str]:
        url = self._path(repo, "/pulls/{number}/files", number=number)
        paths = []
        async for one in self._client(repo).getiter(url):
            paths += [str(one[name]) for name in ("filename", "previous_filename") if one.get(name)]
        return paths

    async def _get(self, repo: Repo, rest: str, **values: str | int) -> Any:
        return await self._client(repo).getitem(self._path(repo, rest, **values))

    def _client(self, repo: Repo) -> GitHubClient:
        return self._github.reader(repo.installation_id)

    def _path(self, repo: Repo, rest: str, **values: str | int) -> str:
        return path("/repos/{owner}/{repo}" + rest, None, owner=repo.owner, repo=repo.name, **values)


def _from_fork(found: Mapping[str, Any], repo: Repo) -> bool:
    head = found["head"].get("repo")
    return head is None or int(head["id"]) != repo.id  # a deleted fork leaves no repository behind


def _review(one: Mapping[str, Any]) -> Review:
    user, at = one.get("user"), one.get("submitted_at")
    return Review(
        id=int(one["id"]),
        author=Actor(login=str(user["login"]), id=int(user["id"]), type=str(user["type"])) if user else None,
        state=ReviewState(str(one["state"]).lower()),
        commit_id=str(one.get("commit_id") or ""),
        body=str(one.get("body") or ""),
        submitted_at=datetime.fromisoformat(at) if at else None,
    )
