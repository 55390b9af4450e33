"""What there is to know about a pull request before its reviews are counted. Read from GitHub, anew each time."""

from __future__ import annotations

import asyncio
import re
from collections.abc import Collection, Iterable, Mapping
from dataclasses import dataclass, replace
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
#: https://docs.github.com/en/pull-requests/committing-changes-to-your-project/creating-and-editing-commits/creating-a-commit-with-multiple-authors
_CO_AUTHOR = re.compile(r"^[ \t]*co-authored-by:[^<\n]*<([^<>\s]+)>[ \t\r]*$", re.IGNORECASE | re.MULTILINE)
_GROUP = re.compile(r"/pr-(\d{1,9})-([0-9a-f]{40}|[0-9a-f]{64})$")


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


@dataclass(frozen=True, kw_only=True)
class Head:
    """Where a pull request stands now, and whose it is."""

    number: int
    sha: str
    ref: str
    author_id: int
    open: bool
    from_fork: bool
    auto_merge: bool = False  # GitHub's is switched on


@dataclass(frozen=True, kw_only=True)
class _Pushed:
    """Who pushed to a branch, as GitHub has seen it."""

    by: frozenset[int] = frozenset()
    known: bool = False  # that is all of them
    #: There is more that GitHub does not tell; whoever pushed can have brought that about. So no commit is believed.
    doubt: bool = False


@dataclass(frozen=True, kw_only=True)
class CoAuthors:
    """Accounts that a commit's message names as authors besides its own."""

    ids: frozenset[int] = frozenset()
    logins: frozenset[str] = frozenset()  # in lower case; of those whose ids the message does not have


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

    async def stands(self, repo: Repo, number: int) -> Head:
        """Where a pull request stands now, and whose it is."""
        return _stands(await self._get(repo, "/pulls/{number}", number=number), repo)

    async def pulls_with(self, repo: Repo, sha: str) -> list[Head]:
        """The open pull requests that a commit is a part of.

        https://docs.github.com/en/rest/commits/commits#list-pull-requests-associated-with-a-commit
        """
        url = self._path(repo, "/commits/{sha}/pulls", sha=sha)
        found = [_stands(one, repo) async for one in self._client(repo).getiter(url)]
        return [one for one in found if one.open]

    async def open_pulls(self, repo: Repo, limit: int) -> list[int]:
        """The open pull requests, those that changed last first, ``limit`` of them at most (100).

        https://docs.github.com/en/rest/pulls/pulls#list-pull-requests
        """
        url = path(
            "/repos/{owner}/{repo}/pulls",
            {"state": "open", "sort": "updated", "direction": "desc", "per_page": limit},
            owner=repo.owner,
            repo=repo.name,
        )
        found = await self._client(repo).getitem(url)
        return [int(one["number"]) for one in found[:limit]]

    async def queued_with(self, repo: Repo, number: int, sha: str) -> list[int]:
        """The pull requests in a merge queue's commit: ``number``, and those that stand before it in the queue.

        Each of the queue's branches is named after its last pull request and the commit below that one's, which is
        the queue's, too, when others stand before it.
        https://docs.github.com/en/repositories/configuring-branches-and-merges-in-your-repository/configuring-pull-request-merges/managing-a-merge-queue
        """
        url = self._path(repo, "/git/matching-refs/heads/gh-readonly-queue/")
        groups: dict[str, list[tuple[int, str]]] = {}
        for one in await self._client(repo).getitem(url):
            if name := _GROUP.search(str(one["ref"])):
                groups.setdefault(str(one["object"]["sha"]), []).append((int(name[1]), name[2]))
        found, below, seen = {number: None}, [sha], {sha}
        while below:
            for pull, base in groups.get(below.pop(), ()):
                found[pull] = None
                if base not in seen:
                    seen.add(base)
                    below.append(base)
        return list(found)

    async def reviewed(
        self, repo: Repo, number: int, rules: Iterable[People], *, ours: Collection[str] = ()
    ) -> Reviewed:
        """Everything about a pull request. ``ours``: commits that the bot is known to have made."""
        rules = tuple(rules)
        found = await self._get(repo, "/pulls/{number}", number=number)
        # the head is read first: whatever is read later is compared with it, and a push in between shows
        reviews, (pull, named) = await asyncio.gather(
            self.reviews(repo, number), self._facts(repo, number, found, frozenset(ours))
        )
        also = {one.author.id for one in reviews if one.author and one.author.login.lower() in named}
        pull = replace(pull, hands=pull.hands | also)
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
    ) -> tuple[PullFacts, frozenset[str]]:
        """The facts, and the logins of co-authors whose ids nobody knows."""
        identity = await self._github.identity()
        me, noreply = identity.user_id, identity.email.rpartition("@")[2]
        head = str(found["head"]["sha"])
        pushed = _Pushed()
        if not _from_fork(found, repo):
            pushed = await self._pushed(repo, str(found["head"]["ref"]), head)
        hands = {int(found["user"]["id"])} if found.get("user") else set()
        hands |= pushed.by
        unattributed, listed = [], 0
        logins: set[str] = set()
        # at most 250 are listed: https://docs.github.com/en/rest/pulls/pulls#list-commits-on-a-pull-request
        url = self._path(repo, "/pulls/{number}/commits", number=number)
        async for commit in self._client(repo).getiter(url):
            listed += 1
            who = [commit.get("author"), commit.get("committer")]
            hands |= {int(one["id"]) for one in who if one}
            # a commit of the bot's names for whom it was made, and that is known better elsewhere
            if str(commit["sha"]) not in ours and (not who[0] or int(who[0]["id"]) != me):
                more = co_authors(str(commit["commit"]["message"]), noreply)
                hands |= more.ids
                logins |= more.logins
            # who wrote a commit stands in it, and anybody can write anything there; who pushed it GitHub has seen
            forged = pushed.doubt or any(not one or int(one["id"]) == me for one in who)
            if forged and not pushed.known and str(commit["sha"]) not in ours:
                unattributed.append(str(commit["sha"]))
        if listed < int(found.get("commits") or 0):
            unattributed.append(head)
        facts = PullFacts(
            number=number,
            head_sha=head,
            open=found.get("state") == "open",
            hands=frozenset(hands) - {me},
            unattributed=tuple(unattributed),
        )
        return facts, frozenset(logins)

    async def _pushed(self, repo: Repo, branch: str, head: str) -> _Pushed:
        """Who ever pushed to ``branch``, whose head is ``head``.

        https://docs.github.com/en/rest/repos/repos#list-repository-activities
        """
        url = path(
            "/repos/{owner}/{repo}/activity",
            {"ref": f"refs/heads/{branch}"},
            owner=repo.owner,
            repo=repo.name,
        )
        pushers: set[int] = set()
        heads: set[str] = set()
        gone = False
        try:
            async for one in self._client(repo).getiter(url):
                if one.get("actor"):
                    pushers.add(int(one["actor"]["id"]))
                else:
                    gone = True  # the account is
                heads.add(str(one["after"]))
                if len(heads) > MAX_PUSHES:
                    break
        except GitHubError as error:  # an older GitHub Enterprise Server, or it may not be read
            log.info("who pushed is unknown", repo=repo.full_name, branch=branch, error=str(error))
            return _Pushed()
        known = not gone and head in heads and len(heads) <= MAX_PUSHES
        return _Pushed(by=frozenset(pushers), known=known, doubt=not known)

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


def co_authors(message: str, noreply: str) -> CoAuthors:
    """Whom the `Co-authored-by:` lines of a message name. Whose any other address is GitHub alone knows.

    ``noreply``: the host of GitHub's own addresses, ``ID+LOGIN@…`` and, from before 2017, ``LOGIN@…``.
    https://docs.github.com/en/account-and-profile/reference/email-addresses-reference
    """
    ids, logins = set(), set()
    for address in _CO_AUTHOR.findall(message):
        local, _, host = address.lower().rpartition("@")
        account, plus, _ = local.partition("+")
        if host != noreply.lower():
            continue
        if plus and re.fullmatch(r"[0-9]{1,18}", account):
            ids.add(int(account))
        else:
            logins.add(local)
    return CoAuthors(ids=frozenset(ids), logins=frozenset(logins))


def _from_fork(found: Mapping[str, Any], repo: Repo) -> bool:
    head = found["head"].get("repo")
    return head is None or int(head["id"]) != repo.id  # a deleted fork leaves no repository behind


def _stands(found: Mapping[str, Any], repo: Repo) -> Head:
    return Head(
        number=int(found["number"]),
        sha=str(found["head"]["sha"]),
        ref=str(found["head"]["ref"]),
        author_id=int((found.get("user") or {}).get("id") or 0),
        open=found.get("state") == "open",
        from_fork=_from_fork(found, repo),
        auto_merge=bool(found.get("auto_merge")),
    )


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
