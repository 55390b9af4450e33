"""What a GitHub webhook says, dug out of its payload once, here.

Payload shapes: https://docs.github.com/en/webhooks/webhook-events-and-payloads. Keys that GitHub may leave out
are read as absent; a payload without what an event of ours must have is :class:`NotForUs`.
"""

from __future__ import annotations

import re
from collections.abc import Mapping
from dataclasses import dataclass
from datetime import datetime
from typing import Any

from bot.feedback import ReviewThread, thread_of
from bot.model import Actor, Repo, TargetKind


class NotForUs(Exception):
    """The payload lacks the repository, installation or sender: nothing that a handler could act on."""


@dataclass(frozen=True, kw_only=True)
class Comment:
    """A comment-like text and where it stands."""

    id: int
    body: str
    author: Actor
    kind: str = "issue"  # "issue": of an issue or pull request; "review": inline in a diff
    via_app: int | None = None  # the App that wrote it, if one did
    written_at: datetime | None = None  # by GitHub's clock
    thread: ReviewThread | None = None  # the place in the diff that an inline one stands at


@dataclass(frozen=True, kw_only=True)
class SubmittedReview:
    """A pull request review as its event tells it: by the time it is read, GitHub may say something else."""

    id: int
    author: Actor | None  # None: the account is gone
    state: str  # "approved", "changes_requested", "commented" or "dismissed"
    body: str
    commit_id: str  # the head that the reviewer looked at, in full


@dataclass(frozen=True, kw_only=True)
class Edit:
    """The text of a comment, or of a pull request, was changed; by whom the event's actor tells."""

    author_id: int  # whose text it is; 0: the account is gone
    before: str
    at: datetime | None  # by GitHub's clock


@dataclass(frozen=True, kw_only=True)
class Check:
    """A check run of ours in which somebody pressed something."""

    job_id: str  # its external id
    app_id: int  # the App that made it
    name: str = ""
    button: str | None = None  # the identifier of the one that was pressed; None: "Re-run"


@dataclass(frozen=True, kw_only=True)
class Suite:
    """All check runs of ours on one commit."""

    head_sha: str
    app_id: int  # the App whose check runs they are
    branch: str = ""  # the one that was pushed, of the repository or of a fork; "" when GitHub does not say


@dataclass(frozen=True, kw_only=True)
class CommitStatus:
    """What a service reports about a commit in the way that is older than check runs."""

    sha: str
    state: str  # "pending", "success", "failure" or "error"
    branches: tuple[str, ...] = ()  # that the commit is the tip of, ten at most


@dataclass(frozen=True, kw_only=True)
class InstallationChange:
    """What an ``installation`` or ``installation_repositories`` event tells of the installation."""

    account: str
    account_type: str  # "User" or "Organization"
    suspended: bool
    permissions: Mapping[str, str]
    added: tuple[Repo, ...] = ()  # of an installation that is new: all its repositories
    removed: tuple[Repo, ...] = ()


@dataclass(frozen=True, kw_only=True)
class Event:
    """One delivery in our words."""

    delivery_id: str
    name: str  # "issues"
    action: str  # "labeled"
    repo: Repo  # without id and name in events about an installation: those are about an account
    actor: Actor  # who caused the event: not the issue's author
    number: int  # 0 for checks of any kind, whose jobs know, and for what is about no issue
    target: TargetKind
    title: str
    body: str
    open: bool
    merged: bool = False
    head_sha: str | None = None  # of the pull request, where the event tells
    rebased_at: datetime | None = None  # when it got another base branch, by GitHub's clock; None: it did not
    label: str | None = None
    comment: Comment | None = None
    edit: Edit | None = None
    opened_by: Actor | None = None  # when it is new: its author, who sent it
    labels: tuple[str, ...] = ()  # that it has, when it is new
    check: Check | None = None
    review: SubmittedReview | None = None
    suite: Suite | None = None
    status: CommitStatus | None = None
    queued_sha: str | None = None  # a merge queue's commit, which needs our check runs too
    installation: InstallationChange | None = None
    former: str = ""  # of a repository that moved: its owner/name before

    @property
    def kind(self) -> str:
        """``name.action``."""
        return f"{self.name}.{self.action}"


def parse_event(delivery_id: str, name: str, payload: Mapping[str, Any]) -> Event:
    """Translate a payload.

    Raises NotForUs when it is about no issue, pull request or check run of an installation, nor about one itself.
    """
    try:
        if name in _ABOUT_THE_APP:
            return _parse_change(delivery_id, name, payload)
        repository, installation = payload["repository"], payload["installation"]
        check, suite = payload.get("check_run"), payload.get("check_suite")
        group = payload.get("merge_group")
        status = _status(payload) if name == "status" else None
        subject = payload.get("issue") or ({"number": 0} if check or suite or status else None)
        if subject is None:
            subject = {"number": _queued(group)} if group else payload["pull_request"]
        is_pull = "issue" not in payload or bool(subject.get("pull_request"))
        comment = payload.get("comment")
        return Event(
            delivery_id=delivery_id,
            name=name,
            action=str(payload.get("action") or ""),
            repo=Repo(
                owner=str(repository["owner"]["login"]),
                name=str(repository["name"]),
                id=int(repository["id"]),
                installation_id=int(installation["id"]),
            ),
            actor=_actor(payload["sender"]),
            number=int(subject["number"]),
            target=TargetKind.pull_request if is_pull else TargetKind.issue,
            title=str(subject.get("title") or ""),
            body=str(subject.get("body") or ""),
            open=subject.get("state", "open") == "open",
            merged=bool(subject.get("merged")),
            head_sha=_head_of(payload.get("pull_request")),
            rebased_at=_rebased_at(payload),
            label=str(payload["label"]["name"]) if payload.get("label") else None,
            comment=_comment(name, comment) if comment else None,
            edit=_edit(name, payload),
            opened_by=_opened_by(payload, subject),
            labels=tuple(str(one["name"]) for one in subject.get("labels") or ()),
            check=_check(check, payload) if check else None,
            review=_review(payload["review"]) if payload.get("review") else None,
            suite=_suite(suite) if suite else None,
            status=status,
            queued_sha=str(group["head_sha"]) if group else None,
        )
    except (KeyError, TypeError, ValueError, AttributeError) as error:
        raise NotForUs(f"{name}: {type(error).__name__}: {error}") from error


#: Sent to every App without a subscription; they tell of no repository or of several.
#: https://docs.github.com/en/webhooks/webhook-events-and-payloads#installation
_ABOUT_THE_APP = frozenset({"installation", "installation_repositories", "repository"})


def _parse_change(delivery_id: str, name: str, payload: Mapping[str, Any]) -> Event:
    installation = payload["installation"]
    number = int(installation["id"])
    if name == "repository":
        repository = payload["repository"]
        repo = Repo(
            owner=str(repository["owner"]["login"]),
            name=str(repository["name"]),
            id=int(repository["id"]),
            installation_id=number,
        )
        change, former = None, _former(repo, payload.get("changes") or {})
    else:
        account = installation["account"]
        repo, former = Repo(owner=str(account["login"]), name="", id=0, installation_id=number), ""
        added = payload.get("repositories_added") or payload.get("repositories") or ()
        change = InstallationChange(
            account=repo.owner,
            account_type=str(account.get("type") or installation.get("target_type") or ""),
            suspended=bool(installation.get("suspended_at")),
            permissions={str(key): str(value) for key, value in installation["permissions"].items()},
            added=tuple(_short_repo(one, number) for one in added),
            removed=tuple(_short_repo(one, number) for one in payload.get("repositories_removed") or ()),
        )
    return Event(
        delivery_id=delivery_id,
        name=name,
        action=str(payload.get("action") or ""),
        repo=repo,
        actor=_actor(payload["sender"]),
        number=0,
        target=TargetKind.issue,
        title="",
        body="",
        open=True,
        installation=change,
        former=former,
    )


def _former(repo: Repo, changes: Mapping[str, Any]) -> str:
    """What a repository was called before: events tell the part that changed."""
    name = ((changes.get("repository") or {}).get("name") or {}).get("from") or repo.name
    owners = (changes.get("owner") or {}).get("from") or {}
    owner = next((one["login"] for one in owners.values() if isinstance(one, Mapping)), repo.owner)
    return f"{owner}/{name}"


def _short_repo(repository: Mapping[str, Any], installation_id: int) -> Repo:
    owner, _, name = str(repository["full_name"]).partition("/")
    return Repo(owner=owner, name=name, id=int(repository["id"]), installation_id=installation_id)


def _head_of(pull: Mapping[str, Any] | None) -> str | None:
    sha = (pull or {}).get("head", {}).get("sha")
    return str(sha) if sha else None


def _rebased_at(payload: Mapping[str, Any]) -> datetime | None:
    """See https://docs.github.com/en/webhooks/webhook-events-and-payloads?actionType=edited#pull_request ."""
    if payload.get("action") != "edited" or not (payload.get("changes") or {}).get("base"):
        return None
    return _moment((payload.get("pull_request") or {}).get("updated_at"))


def _edit(name: str, payload: Mapping[str, Any]) -> Edit | None:
    """See https://docs.github.com/en/webhooks/webhook-events-and-payloads?actionType=edited#issue_comment ."""
    key = {"issue_comment": "comment", "pull_request": "pull_request"}.get(name)
    body = (payload.get("changes") or {}).get("body")
    if payload.get("action") != "edited" or key is None or body is None:
        return None
    text = payload[key]
    author = text.get("user") or {}
    return Edit(
        author_id=int(author.get("id") or 0),
        before=str(body.get("from") or ""),
        at=_moment(text.get("updated_at")),
    )


def _moment(text: object) -> datetime | None:
    return datetime.fromisoformat(text) if isinstance(text, str) else None


def _actor(user: Mapping[str, Any]) -> Actor:
    return Actor(login=str(user["login"]), id=int(user["id"]), type=str(user.get("type") or "User"))


def _opened_by(payload: Mapping[str, Any], subject: Mapping[str, Any]) -> Actor | None:
    """Who wrote what is new with their own hands: no App in their name, and nobody who moved it here.

    An issue that was transferred is opened once more, with ``changes`` that tell where it was.
    """
    author = subject.get("user")
    if payload.get("action") != "opened" or not author or payload.get("changes"):
        return None
    if subject.get("performed_via_github_app") or author["id"] != payload["sender"]["id"]:
        return None
    return _actor(author)


def _check(run: Mapping[str, Any], payload: Mapping[str, Any]) -> Check:
    pressed = payload.get("requested_action")
    return Check(
        job_id=str(run.get("external_id") or ""),
        app_id=int(run["app"]["id"]),
        name=str(run.get("name") or ""),
        button=str(pressed["identifier"]) if pressed else None,
    )


def _suite(suite: Mapping[str, Any]) -> Suite:
    return Suite(
        head_sha=str(suite["head_sha"]),
        app_id=int(suite["app"]["id"]),
        branch=str(suite.get("head_branch") or ""),
    )


def _status(payload: Mapping[str, Any]) -> CommitStatus:
    """https://docs.github.com/en/webhooks/webhook-events-and-payloads#status, which has no action."""
    return CommitStatus(
        sha=str(payload["sha"]),
        state=str(payload["state"]),
        branches=tuple(str(one["name"]) for one in payload.get("branches") or ()),
    )


def _queued(group: Mapping[str, Any]) -> int:
    """The pull request of a merge queue's branch: ``refs/heads/gh-readonly-queue/main/pr-12-<base SHA>``.

    https://docs.github.com/en/webhooks/webhook-events-and-payloads#merge_group
    """
    found = re.search(r"/pr-(\d{1,9})-[0-9a-f]{40,64}$", str(group["head_ref"]))
    if found is None:
        raise ValueError("a merge group that names no pull request")
    return int(found[1])


def _review(review: Mapping[str, Any]) -> SubmittedReview:
    author = review.get("user")
    return SubmittedReview(
        id=int(review["id"]),
        author=_actor(author) if author else None,
        state=str(review.get("state") or "").lower(),  # REST writes it in upper case, webhooks in lower
        body=str(review.get("body") or ""),
        commit_id=str(review.get("commit_id") or ""),
    )


def _comment(event: str, comment: Mapping[str, Any]) -> Comment:
    app = comment.get("performed_via_github_app")
    inline = event == "pull_request_review_comment"
    return Comment(
        id=int(comment["id"]),
        body=str(comment.get("body") or ""),
        author=_actor(comment["user"]),
        kind="review" if inline else "issue",
        via_app=int(app["id"]) if app else None,
        written_at=_moment(comment.get("created_at")),
        thread=thread_of(comment) if inline else None,
    )
