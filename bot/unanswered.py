"""Finds what people asked for and no delivery told of: labels, commands and reviews of a time that the log forgot.

GitHub keeps deliveries for three days only. What happened before that while the bot was away is found in the
repositories themselves, and put into the shape of the webhook that was missed, so that the same handlers serve it.
"""

from __future__ import annotations

import dataclasses
from collections.abc import AsyncGenerator, Callable, Mapping
from contextlib import aclosing
from dataclasses import dataclass
from datetime import UTC, datetime, timedelta
from typing import Any

import structlog

from bot.continuation import asked_on
from bot.facts import FactFinder
from bot.github import GitHub, GitHubClient, path
from bot.github_errors import Forbidden, GitHubError, NotFound
from bot.inbox import Inbox
from bot.model import Actor, Job, Repo, Trigger
from bot.store import Store

log = structlog.get_logger(__name__)

#: What is looked at in one search. Who reaches a limit reads of it in the log.
REPOSITORIES = 500
ITEMS = 1000  # of one list
PULLS = 100  # of one repository, whose reviews and inline comments are read
#: Clocks differ, and a job is made a moment after it was asked for.
SLACK = timedelta(minutes=1)

_WRITERS = frozenset({"write", "maintain", "admin"})
_NO_WRITERS = frozenset({"none", "read", "triage"})
_AWAY = "I was away when you asked for this"

Json = dict[str, Any]
Kind = tuple[str, str]


@dataclass(frozen=True, kw_only=True)
class Window:
    """The time that is searched."""

    since: datetime
    until: datetime
    #: Until then we may have been there without a memory of it: our comments on GitHub say whether something was
    #: served. Later ones say nothing: a job may have ended, and been told of, while nobody heard what people asked.
    there_until: datetime

    def holds(self, moment: datetime) -> bool:
        """Whether something of that moment is meant."""
        return self.since <= moment < self.until


@dataclass(frozen=True, kw_only=True)
class Found:
    """Something that nobody served yet."""

    id: str  # made from GitHub's own, so that it is the same whenever it is found
    event: str
    payload: Json
    at: datetime
    number: int
    repo: Repo
    trigger: Trigger
    key: tuple[str, Any]  # what of the payload tells it from others of its kind
    doubt: str = ""  # why its text may not be what it was when it was asked for


class Unanswered:
    """Searches the repositories of all installations."""

    def __init__(
        self,
        *,
        github: GitHub,
        facts: FactFinder,
        store: Store,
        inbox: Inbox,
        wanted: Mapping[str, frozenset[str]],
        is_label: Callable[[str], bool],
        is_command: Callable[[str], bool],
    ) -> None:
        """``wanted``: actions of events that somebody handles; ``is_label``, ``is_command``: what is meant for us."""
        self.github = github
        self.facts = facts
        self.store = store
        self.inbox = inbox
        self.is_label = is_label
        self.is_command = is_command
        self._wanted = wanted

    async def search(self, window: Window) -> AsyncGenerator[list[Found], None]:
        """What nobody served, oldest first, a repository at a time.

        A repository that cannot be read is left out. Raises GitHubUnavailable when GitHub does not answer.
        """
        looked_at = 0
        async with aclosing(self._repositories(window)) as repositories:
            async for repository, installation_id, its_window in repositories:
                looked_at += 1
                if looked_at > REPOSITORIES:
                    log.warning("not all repositories were searched", limit=REPOSITORIES)
                    return
                try:
                    look = _Look(self, repository, installation_id, its_window)
                    yield await look.unserved()
                except GitHubError as error:
                    log.warning("not searched", repo=repository.get("full_name"), error=str(error))
                except (KeyError, TypeError, ValueError):  # what GitHub says has another shape than we know
                    log.exception("not searched", repo=repository.get("full_name"))

    async def _repositories(self, window: Window) -> AsyncGenerator[tuple[Json, int, Window], None]:
        installations = [one async for one in self.github.app_client.getiter("/app/installations")]
        for installation in installations:
            # before that nobody can have meant us
            since = max(window.since, _moment(installation["created_at"]))
            if installation.get("suspended_at") or since >= window.until:
                continue
            number = int(installation["id"])
            its_window = dataclasses.replace(window, since=since)
            client = self.github.reader(number)
            try:
                async with aclosing(
                    client.getiter("/installation/repositories", iterable_key="repositories")
                ) as repositories:
                    async for repository in repositories:
                        if not repository.get("archived") and not repository.get("disabled"):
                            yield repository, number, its_window
            except (NotFound, Forbidden) as error:
                log.warning("not searched", installation=number, error=str(error))

    def wants(self, event: str, action: str) -> bool:
        """Whether somebody handles that."""
        return action in self._wanted.get(event, ())


class _Look:
    """One look at one repository."""

    def __init__(self, search: Unanswered, repository: Json, installation_id: int, window: Window) -> None:
        self._search = search
        self._repository = repository
        self._window = window
        self._repo = Repo(
            owner=str(repository["owner"]["login"]),
            name=str(repository["name"]),
            id=int(repository["id"]),
            installation_id=installation_id,
        )
        self._client: GitHubClient = search.github.reader(installation_id)
        self._issues: dict[int, Json] = {}
        self._pulls: dict[int, Json] = {}
        self._writers: dict[str, str | None] = {}

    async def unserved(self) -> list[Found]:
        """What nobody served, oldest first. Raises what ``bot.github_errors`` lists."""
        found = []
        since = _iso(self._window.since)
        query: dict[str, str | int] = {"state": "all", "sort": "updated", "direction": "desc", "since": since}
        for issue in await self._list("/issues", query):
            self._issues[int(issue["number"])] = issue
        for number, issue in list(self._issues.items()):
            if issue.get("state") == "open":
                found += await self._labels(number, issue)
                found += await self._opened(number, issue)
        if self._search.wants("issue_comment", "created"):
            query = {"sort": "created", "direction": "asc", "since": since}
            for comment in await self._list("/issues/comments", query):
                found += await self._comment(comment)
        pulls = [number for number, issue in self._issues.items() if issue.get("pull_request")]
        for number in pulls[:PULLS]:
            found += await self._inline_comments(number)
            found += await self._reviews(number)
        if len(pulls) > PULLS:
            log.warning("not all pull requests were searched", repo=self._repo.full_name, limit=PULLS)
        return [one for one in sorted(found, key=lambda one: (one.at, one.id)) if not await self._served(one)]

    # --- what may have been missed

    async def _labels(self, number: int, issue: Json) -> list[Found]:
        event = "pull_request" if issue.get("pull_request") else "issues"
        ours = {
            str(label["name"]).lower(): label
            for label in issue.get("labels") or ()
            if self._search.is_label(str(label["name"]))
        }
        if not ours or not self._search.wants(event, "labeled"):
            return []
        last: dict[str, Json] = {}
        for entry in await self._list("/issues/{number}/timeline", {}, number=number):
            name = str((entry.get("label") or {}).get("name", "")).lower()
            if entry.get("event") == "labeled" and name in ours:
                last[name] = entry
        found = []
        for name, entry in last.items():
            if self._window.holds(_moment(entry["created_at"])) and entry.get("actor"):
                subject = {"issue": issue} if event == "issues" else await self._pull(number)
                found.append(
                    await self._found(
                        f"gap-label-{entry['id']}",
                        (event, "labeled"),
                        number,
                        entry["actor"],
                        entry["created_at"],
                        subject | {"label": ours[name]},
                        key=("label", name),
                    )
                )
        return found

    async def _opened(self, number: int, issue: Json) -> list[Found]:
        event = "pull_request" if issue.get("pull_request") else "issues"
        if not self._search.wants(event, "opened") or not self._is_asking(issue):
            return []
        subject = {"issue": issue} if event == "issues" else await self._pull(number)
        kind = "issue" if event == "issues" else "pull_request"
        return [
            await self._found(
                f"gap-opened-{issue['id']}",
                (event, "opened"),
                number,
                issue["user"],
                issue["created_at"],
                subject,
                key=(kind, int(subject[kind]["id"])),
            )
        ]

    async def _comment(self, comment: Json) -> list[Found]:
        if not self._is_asking(comment):
            return []
        number = int(str(comment["issue_url"]).rpartition("/")[2])
        issue = self._issues.get(number) or await self._get("/issues/{number}", number=number)
        return [
            await self._found(
                f"gap-comment-{comment['id']}",
                ("issue_comment", "created"),
                number,
                comment["user"],
                comment["created_at"],
                {"issue": issue, "comment": comment},
                key=("comment", int(comment["id"])),
                edited="comment" if comment["updated_at"] != comment["created_at"] else "",
            )
        ]

    async def _inline_comments(self, number: int) -> list[Found]:
        kind = ("pull_request_review_comment", "created")
        if not self._search.wants(*kind):
            return []
        query: dict[str, str | int] = {
            "sort": "created",
            "direction": "asc",
            "since": _iso(self._window.since),
        }
        return [
            await self._found(
                f"gap-inline-{comment['id']}",
                kind,
                number,
                comment["user"],
                comment["created_at"],
                await self._pull(number) | {"comment": comment},
                key=("comment", int(comment["id"])),
                edited="comment" if comment["updated_at"] != comment["created_at"] else "",
            )
            for comment in await self._list("/pulls/{number}/comments", query, number=number)
            if self._is_asking(comment)
        ]

    async def _reviews(self, number: int) -> list[Found]:
        kind = ("pull_request_review", "submitted")
        if not self._search.wants(*kind) or self._issues[number].get("state") != "open":
            return []
        return [
            await self._found(
                f"gap-review-{review['id']}",
                kind,
                number,
                review["user"],
                review["submitted_at"],
                # webhooks write the state in small letters, REST in capitals
                await self._pull(number) | {"review": review | {"state": str(review["state"]).lower()}},
                key=("review", int(review["id"])),
                # of reviews nothing tells whether they were edited, and others than their authors may do that
                edited="review" if self._search.is_command(str(review.get("body") or "")) else "",
            )
            for review in await self._list("/pulls/{number}/reviews", {}, number=number)
            if _is_person(review.get("user"))
            and review.get("submitted_at")
            and self._window.holds(_moment(review["submitted_at"]))
        ]

    def _is_asking(self, text: Json) -> bool:
        """Whether a comment, or what an issue or pull request was opened with, is a person's command."""
        return (
            _is_person(text.get("user"))
            and not text.get("performed_via_github_app")
            and self._window.holds(_moment(text["created_at"]))
            and self._search.is_command(str(text.get("body") or ""))
        )

    async def _found(
        self,
        delivery_id: str,
        kind: Kind,
        number: int,
        sender: Json,
        at: str,
        more: Json,
        *,
        key: tuple[str, Any],
        edited: str = "",
    ) -> Found:
        event, action = kind
        actor = Actor(
            login=str(sender["login"]), id=int(sender["id"]), type=str(sender.get("type") or "User")
        )
        comment = key[1] if key[0] == "comment" else None
        inline = more["comment"] if event == "pull_request_review_comment" else None
        trigger = Trigger(
            delivery_id=delivery_id,
            event=f"{event}.{action}",
            actor=actor,
            comment_id=comment,
            comment_kind="review" if inline else "issue",
            thread=int(inline.get("in_reply_to_id") or inline["id"]) if inline else None,
        )
        payload = {
            "action": action,
            **more,
            "repository": self._repository,
            "sender": sender,
            "installation": {"id": self._repo.installation_id},
        }
        return Found(
            id=delivery_id,
            event=event,
            payload=payload,
            at=_moment(at),
            number=number,
            repo=self._repo,
            trigger=trigger,
            key=key,
            doubt=await self._doubt(actor, more.get("issue") or more["pull_request"], edited=edited),
        )

    # --- what may be done with it

    async def _doubt(self, asker: Actor, subject: Json, *, edited: str) -> str:
        """Why the text that the job would go by may have been changed since it was asked for; "" when it was not.

        The webhook would have brought the text as it was. Now only what people with write access alone can have
        changed is as good as that.
        """
        if await self._permission(asker.login) in _NO_WRITERS:
            return ""  # the handlers refuse that, whatever it says
        if edited:
            return f"{_AWAY}, and the {edited} may have been edited since: write the command again, as a new comment."
        author = subject.get("user") or {}
        if author.get("id") == (await self._search.github.identity()).user_id:
            return ""
        if author and await self._permission(str(author["login"])) in _WRITERS:
            return ""
        return (
            f"{_AWAY}, and whoever wrote the description could have changed it since without write access: "
            "read it, then ask again (write the command again, or take the label off and set it again)."
        )

    async def _permission(self, login: str) -> str | None:
        if login not in self._writers:
            self._writers[login] = await self._search.facts.permission(self._repo, login)
        return self._writers[login]

    async def _served(self, found: Found) -> bool:
        for job in await asked_on(self._search.store, self._repo.id, found.number):
            if job.trigger.delivery_id == found.id or _is_its_job(job, found):
                return True
        subject = f"{self._repo.id}-{found.number}"
        for delivery in await self._search.inbox.about(subject, found.event):
            if delivery.id == found.id or _tells_of(delivery.payload(), found):
                return True
        return found.at < self._window.there_until and await self._was_answered(found)

    async def _was_answered(self, found: Found) -> bool:
        """Whether we wrote something there since, or changed what we had written: a job's comment is edited."""
        me = (await self._search.github.identity()).user_id
        changed = await self._list(
            "/issues/{number}/comments", {"since": _iso(found.at)}, number=found.number
        )
        return any((comment.get("user") or {}).get("id") == me for comment in changed)

    # --- reading

    async def _pull(self, number: int) -> Json:
        if number not in self._pulls:
            self._pulls[number] = await self._get("/pulls/{number}", number=number)
        return {"number": number, "pull_request": self._pulls[number]}

    async def _get(self, rest: str, **values: str | int) -> Json:
        found: Json = await self._client.getitem(self._url(rest, {}, **values))
        return found

    async def _list(self, rest: str, query: Mapping[str, str | int], **values: str | int) -> list[Json]:
        items: list[Json] = []
        async with aclosing(self._client.getiter(self._url(rest, query, **values))) as found:
            async for item in found:
                items.append(item)
                if len(items) == ITEMS:
                    log.warning("a list was not read to its end", repo=self._repo.full_name, list=rest)
                    break
        return items

    def _url(self, rest: str, query: Mapping[str, str | int], **values: str | int) -> str:
        template = "/repos/{owner}/{repo}" + rest
        return path(template, query or None, owner=self._repo.owner, repo=self._repo.name, **values)


def _is_its_job(job: Job, found: Found) -> bool:
    kind, value = found.key
    if kind == "comment":  # a review's number is of another row of numbers
        return job.trigger.comment_kind != "review_body" and job.trigger.comment_id == value
    if kind in ("issue", "pull_request"):
        return job.trigger.event.endswith(".opened")
    return kind == "label" and job.trigger.event.endswith(".labeled") and job.created_at >= found.at - SLACK


def _tells_of(payload: Mapping[str, Any], found: Found) -> bool:
    kind, value = found.key
    if payload.get("action") != found.payload["action"]:
        return False
    thing = payload.get(kind) or {}
    if kind == "label":
        # the same label may have been set before: only the thing's own time tells the two apart
        updated = (payload.get("issue") or payload.get("pull_request") or {}).get("updated_at")
        return str(thing.get("name", "")).lower() == value and (
            updated is None or _moment(updated) >= found.at - SLACK
        )
    return bool(thing.get("id") == value)


def _is_person(user: Any) -> bool:
    return isinstance(user, dict) and user.get("type", "User") == "User"


def _moment(text: str) -> datetime:
    return datetime.fromisoformat(text).astimezone(UTC)


def _iso(moment: datetime) -> str:
    return moment.astimezone(UTC).strftime("%Y-%m-%dT%H:%M:%SZ")
