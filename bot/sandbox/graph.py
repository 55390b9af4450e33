"""The sandbox's objects as GitHub's GraphQL schema shows them, and the mutations, for one caller.

An object is a dict: field to value, or to a function that is called when somebody asks. ``bot.sandbox.graphql_api``
runs the queries. What is refused, and how, follows GitHub's answers.
"""

from __future__ import annotations

from base64 import b64decode, b64encode
from collections.abc import Awaitable, Callable, Sequence
from dataclasses import dataclass
from datetime import UTC, datetime
from typing import Any, TypeVar

from bot.sandbox.auth import Actor, can_see
from bot.sandbox.github import GitHub
from bot.sandbox.issues import announce, note
from bot.sandbox.mergeability import merge_state, missing, review_decision, rules_for
from bot.sandbox.merging import dequeue, drop_auto_merge, enqueue, settle
from bot.sandbox.permissions import ROLES, covers
from bot.sandbox.present import account_id, iso, node_id, read_node_id
from bot.sandbox.pulls import set_draft
from bot.sandbox.reactions import give
from bot.sandbox.refusals import Refusal
from bot.sandbox.state import (
    AutoMerge,
    Issue,
    MergeQueueEntry,
    Pull,
    Reaction,
    Repository,
    Review,
    ReviewComment,
    User,
)
from bot.sandbox.threads import Thread, set_resolved, threads_of

MAX_PAGE = 100
"""https://docs.github.com/en/graphql/overview/rate-limits-and-query-limits-for-the-graphql-api"""

READ = {"pull_requests": "read"}
# Not documented, but so: https://github.com/orgs/community/discussions/44650
WRITE = {"pull_requests": "write", "contents": "write"}

# https://docs.github.com/en/graphql/reference/enums#reactioncontent, and what REST calls them
_CONTENTS = {
    "THUMBS_UP": "+1",
    "THUMBS_DOWN": "-1",
    "LAUGH": "laugh",
    "HOORAY": "hooray",
    "CONFUSED": "confused",
    "HEART": "heart",
    "ROCKET": "rocket",
    "EYES": "eyes",
}

Node = dict[str, Any]
T = TypeVar("T")


class GraphRefusal(Exception):
    """An entry of an answer's ``errors``; ``kind`` is what GitHub calls its type."""

    def __init__(self, kind: str, message: str):
        super().__init__(message)
        self.kind = kind


@dataclass(frozen=True)
class _Found:
    """A pull request and where it is."""

    repository: Repository
    issue: Issue
    pull: Pull


class Graph:
    """What one caller sees and may do.

    Args:
        github: the sandbox.
        actor: the caller.
    """

    def __init__(self, github: GitHub, actor: Actor):
        self._github = github
        self._actor = actor

    def query(self) -> Node:
        """The root of queries."""
        return {
            "id": "query",
            "viewer": lambda: self._account(self._actor.login),
            "rateLimit": self._rate_limit,
            "repository": self._repository_named,
            "node": self._node,
        }

    def mutation(self) -> Node:
        """The root of mutations."""
        return {
            "addReaction": lambda input: self._add_reaction(input),  # noqa: A006
            "markPullRequestReadyForReview": lambda input: self._draft(input, draft=False),  # noqa: A006
            "convertPullRequestToDraft": lambda input: self._draft(input, draft=True),  # noqa: A006
            "resolveReviewThread": lambda input: self._resolve(input, resolved=True),  # noqa: A006
            "unresolveReviewThread": lambda input: self._resolve(input, resolved=False),  # noqa: A006
            "enablePullRequestAutoMerge": lambda input: self._enable_auto_merge(input),  # noqa: A006
            "disablePullRequestAutoMerge": lambda input: self._disable_auto_merge(input),  # noqa: A006
            "enqueuePullRequest": lambda input: self._enqueue(input),  # noqa: A006
            "dequeuePullRequest": lambda input: self._dequeue(input),  # noqa: A006
        }

    # ---- looking things up

    def _repository_named(self, owner: str, name: str, **_: Any) -> Node:
        repository = self._github.world.repository(owner, name)
        if repository is None or not can_see(self._github, self._actor, repository):
            text = f"Could not resolve to a Repository with the name '{owner}/{name}'."
            raise GraphRefusal("NOT_FOUND", text)
        return self.repository(repository)

    def _pull_numbered(self, repository: Repository, number: int) -> Node:
        issue = repository.issues.get(number)
        if issue is None or issue.pull is None:
            text = f"Could not resolve to a PullRequest with the number of {number}."
            raise GraphRefusal("NOT_FOUND", text)
        self._may(repository, READ, "read")
        return self.pull(_Found(repository, issue, issue.pull))

    def _node(self, id: str) -> Node:  # noqa: A002 - GitHub's word
        kind, number = read_node_id(id) or ("", 0)
        account = next((one for one in self._github.world.users.values() if account_id(one) == id), None)
        if account is not None:
            return self._account(account.login)
        if kind == "R" and number in self._github.world.repositories:
            repository = self._github.world.repositories[number]
            if can_see(self._github, self._actor, repository):
                return self.repository(repository)
        for found in self._pulls():
            node = self._inside(found, kind, number)
            if node is not None:
                self._may(found.repository, READ, "read")
                return node
        raise _no_node(id)

    def _inside(self, found: _Found, kind: str, number: int) -> Node | None:
        pull = found.pull
        match kind:
            case "PR" if pull.id == number:
                return self.pull(found)
            case "PRR" if number in pull.reviews:
                return self._review(found, pull.reviews[number])
            case "PRRC" if number in pull.comments:
                return self._comment(found, pull.comments[number])
            case "PRRT":
                for thread in threads_of(pull):
                    if thread.first.id == number:
                        return self._thread(found, thread)
            case "MQE" if pull.queued is not None and pull.queued.id == number:
                return self._entry(found, pull.queued)
        return None

    def _pulls(self) -> list[_Found]:
        """Every pull request that the caller can see."""
        return [
            _Found(repository, issue, pull)
            for repository in self._github.world.repositories.values()
            if can_see(self._github, self._actor, repository)
            for issue, pull in repository.pulls()
        ]

    def _pull_by_id(self, text: str) -> _Found:
        kind, number = read_node_id(text) or ("", 0)
        for found in self._pulls():
            if kind == "PR" and found.pull.id == number:
                return found
        raise _no_node(text)

    def _may(self, repository: Repository, needed: dict[str, str], role: str, doing: str = "") -> None:
        """Raise FORBIDDEN unless the caller's token or role allows it."""
        token = self._actor.token
        if token is not None:
            if not covers(token.permissions, needed):
                raise GraphRefusal("FORBIDDEN", "Resource not accessible by integration")
        elif ROLES[self._github.world.role(repository, self._actor.login)] < ROLES[role]:
            text = f"{self._actor.login} does not have the correct permissions to execute `{doing}`"
            raise GraphRefusal("FORBIDDEN", text)

    # ---- objects

    def _account(self, login: str) -> Node:
        user = self._github.world.users[login]
        return {
            "__typename": user.type,
            "id": account_id(user),
            "databaseId": user.id,
            "login": _login(user),
            "name": login,
            "url": f"{self._github.base_url}/{login}",
        }

    def _rate_limit(self, dryRun: bool = False) -> Node:  # noqa: ARG002, N803 - GitHub's word
        key = f"graphql {self._actor.rate_key}"
        numbers = self._github.rate_limit.resource(key, self._github.now())
        return {
            "cost": 1,
            "nodeCount": 0,
            "limit": numbers["limit"],
            "remaining": numbers["remaining"],
            "used": numbers["used"],
            "resetAt": iso(datetime.fromtimestamp(numbers["reset"], UTC)),
        }

    def repository(self, repository: Repository) -> Node:
        """A repository."""
        page = self._github.present.page_url(repository)
        has_queue = any(one.merge_queue for one in repository.branch_rules.values())
        return {
            "__typename": "Repository",
            "id": node_id("R", repository.id),
            "databaseId": repository.id,
            "name": repository.name,
            "nameWithOwner": repository.full_name,
            "isPrivate": repository.private,
            "autoMergeAllowed": repository.allow_auto_merge,
            "url": page,
            "pullRequest": lambda number: self._pull_numbered(repository, number),
            "mergeQueue": lambda **_: self._merge_queue(repository) if has_queue else None,
        }

    def pull(self, found: _Found) -> Node:
        """A pull request."""
        repository, issue, pull = found.repository, found.issue, found.pull
        github = self._github

        async def state() -> str:
            return await merge_state(github, repository, issue, pull)

        async def mergeable() -> str:
            names = {"dirty": "CONFLICTING", "unknown": "UNKNOWN"}
            return names.get(await state(), "MERGEABLE")

        async def merge_state_status() -> str:
            return (await state()).upper()

        has_queue = rules_for(repository, pull.base_ref).merge_queue
        return {
            "__typename": "PullRequest",
            "id": node_id("PR", pull.id),
            "databaseId": pull.id,
            "fullDatabaseId": str(pull.id),
            "number": issue.number,
            "title": issue.title,
            "body": issue.body or "",
            "url": github.present.page_url(repository, issue),
            "createdAt": iso(issue.created_at),
            "updatedAt": iso(issue.updated_at),
            "author": lambda: self._account(issue.login),
            "state": "MERGED" if pull.merged_at else issue.state.upper(),
            "isDraft": pull.draft,
            "merged": pull.merged_at is not None,
            "baseRefName": pull.base_ref,
            "baseRefOid": pull.base_sha,
            "headRefName": pull.head_ref,
            "headRefOid": pull.head_sha,
            "mergeable": mergeable,
            "mergeStateStatus": merge_state_status,
            "reviewDecision": lambda: review_decision(github, repository, pull),
            "autoMergeRequest": lambda: self._auto_merge(found),
            "isMergeQueueEnabled": has_queue,
            "isInMergeQueue": pull.queued is not None,
            "mergeQueueEntry": lambda: self._entry(found, pull.queued) if pull.queued else None,
            "repository": lambda: self.repository(repository),
            "reviews": lambda **page: self._reviews(found, **page),
            "reviewThreads": lambda **page: _connection(
                "reviewThreads", threads_of(pull), lambda one: self._thread(found, one), **page
            ),
        }

    def _reviews(
        self, found: _Found, *, author: str | None = None, states: Sequence[str] | None = None, **page: Any
    ) -> Node:
        seen = [
            one
            for one in found.pull.reviews.values()
            if (one.state != "PENDING" or one.login == self._actor.login)
            and author in (None, _login(self._github.world.users[one.login]))
            and (not states or one.state in states)
        ]
        return _connection("reviews", seen, lambda one: self._review(found, one), **page)

    def _review(self, found: _Found, review: Review) -> Node:
        page = self._github.present.page_url(found.repository, found.issue)
        return {
            "__typename": "PullRequestReview",
            "id": node_id("PRR", review.id),
            "databaseId": review.id,
            "fullDatabaseId": str(review.id),
            "author": lambda: self._account(review.login),
            "body": review.body,
            "state": review.state,
            "submittedAt": iso(review.submitted_at),
            "url": f"{page}#pullrequestreview-{review.id}",
            "pullRequest": lambda: self.pull(found),
        }

    def _thread(self, found: _Found, thread: Thread) -> Node:
        first, resolved = thread.first, thread.resolved_by
        writer = self._actor.kind == "installation" or found.issue.login == self._actor.login
        role = self._github.world.role(found.repository, self._actor.login)
        may = writer or ROLES[role] >= ROLES["write"]
        return {
            "__typename": "PullRequestReviewThread",
            "id": self._github.present.thread_id(first),
            "isResolved": resolved is not None,
            "isOutdated": first.outdated,
            "isCollapsed": resolved is not None or first.outdated,
            "resolvedBy": lambda: self._account(resolved) if resolved else None,
            "path": first.path,
            "line": first.line,
            "startLine": first.start_line,
            "originalLine": first.original_line,
            "originalStartLine": first.original_start_line,
            "diffSide": first.side,
            "startDiffSide": first.start_side,
            "subjectType": first.subject_type.upper(),
            "viewerCanReply": True,
            "viewerCanResolve": may and resolved is None,
            "viewerCanUnresolve": may and resolved is not None,
            "pullRequest": lambda: self.pull(found),
            "repository": lambda: self.repository(found.repository),
            "comments": lambda **page: _connection(
                "comments", thread.comments, lambda one: self._comment(found, one), **page
            ),
        }

    def _comment(self, found: _Found, comment: ReviewComment) -> Node:
        page = self._github.present.page_url(found.repository, found.issue)
        parent = found.pull.comments.get(comment.in_reply_to_id or 0)
        return {
            "__typename": "PullRequestReviewComment",
            "id": node_id("PRRC", comment.id),
            "databaseId": comment.id,
            "fullDatabaseId": str(comment.id),
            "author": lambda: self._account(comment.login),
            "body": comment.body,
            "path": comment.path,
            "line": comment.line,
            "originalLine": comment.original_line,
            "outdated": comment.outdated,
            "createdAt": iso(comment.created_at),
            "updatedAt": iso(comment.updated_at),
            "url": f"{page}#discussion_r{comment.id}",
            "replyTo": lambda: self._comment(found, parent) if parent else None,
            "pullRequest": lambda: self.pull(found),
            "pullRequestReview": lambda: self._review(found, found.pull.reviews[comment.review_id]),
        }

    def _auto_merge(self, found: _Found) -> Node | None:
        wish = found.pull.auto_merge
        if wish is None:
            return None
        return {
            "__typename": "AutoMergeRequest",
            "enabledAt": iso(wish.enabled_at),
            "enabledBy": lambda: self._account(wish.login),
            "mergeMethod": wish.method.upper(),
            "commitHeadline": wish.title,
            "commitBody": wish.message,
            "pullRequest": lambda: self.pull(found),
        }

    def _merge_queue(self, repository: Repository) -> Node:
        return {
            "__typename": "MergeQueue",
            "id": node_id("MQ", repository.id),
            "repository": lambda: self.repository(repository),
            "url": f"{self._github.present.page_url(repository)}/queue",
        }

    def _entry(self, found: _Found, entry: MergeQueueEntry) -> Node:
        waiting = sorted(
            one.queued.id
            for _, one in found.repository.pulls()
            if one.queued is not None and one.base_ref == found.pull.base_ref
        )
        return {
            "__typename": "MergeQueueEntry",
            "id": node_id("MQE", entry.id),
            "enqueuedAt": iso(entry.enqueued_at),
            "enqueuer": lambda: self._account(entry.login),
            "jump": entry.jump,
            "solo": False,
            "position": waiting.index(entry.id) + 1 if entry.id in waiting else 1,
            "state": "AWAITING_CHECKS",
            "pullRequest": lambda: self.pull(found),
            "mergeQueue": lambda: self._merge_queue(found.repository),
        }

    # ---- mutations

    async def _draft(self, wanted: Node, *, draft: bool) -> Node:
        found = self._pull_by_id(wanted["pullRequestId"])
        doing = "ConvertPullRequestToDraft" if draft else "MarkPullRequestReadyForReview"
        own = found.issue.login == self._actor.login
        self._may(found.repository, WRITE, "read" if own else "write", doing)
        if found.issue.state != "open":
            raise GraphRefusal("UNPROCESSABLE", "Pull request is closed.")
        if found.pull.draft == draft:
            text = "already a draft" if draft else 'not in the "draft" state'
            raise GraphRefusal("UNPROCESSABLE", f"Pull request is {text}.")
        await set_draft(self._github, found.repository, found.issue, self._actor.login, draft=draft)
        return _payload(wanted, pullRequest=self.pull(found))

    def _add_reaction(self, wanted: Node) -> Node:
        """To what a review says: REST has reactions to everything else.

        The permission is what REST asks for with comments on a diff; GitHub documents none for this.
        """
        kind, number = read_node_id(wanted["subjectId"]) or ("", 0)
        for found in self._pulls():
            if kind == "PRR" and number in found.pull.reviews:
                self._may(found.repository, {"pull_requests": "write"}, "read", "AddReaction")
                reactions = found.pull.reviews[number].reactions
                content = _CONTENTS[wanted["content"]]
                reaction, _ = give(self._github, reactions, self._actor.login, content)
                return _payload(wanted, reaction=self._reaction(reaction))
        raise _no_node(wanted["subjectId"])

    def _reaction(self, reaction: Reaction) -> Node:
        return {
            "__typename": "Reaction",
            "id": node_id("REA", reaction.id),
            "databaseId": reaction.id,
            "content": next(name for name, content in _CONTENTS.items() if content == reaction.content),
            "createdAt": iso(reaction.created_at),
            "user": lambda: self._account(reaction.login),
        }

    async def _resolve(self, wanted: Node, *, resolved: bool) -> Node:
        kind, number = read_node_id(wanted["threadId"]) or ("", 0)
        for found in self._pulls():
            for thread in threads_of(found.pull):
                if kind == "PRRT" and thread.first.id == number:
                    doing = "ResolveReviewThread" if resolved else "UnresolveReviewThread"
                    own = found.issue.login == self._actor.login
                    self._may(found.repository, WRITE, "read" if own else "write", doing)
                    after = set_resolved(
                        self._github,
                        found.repository,
                        found.issue,
                        thread,
                        self._actor.login,
                        resolved=resolved,
                    )
                    return _payload(wanted, thread=self._thread(found, after))
        raise _no_node(wanted["threadId"])

    async def _enable_auto_merge(self, wanted: Node) -> Node:
        found = self._pull_by_id(wanted["pullRequestId"])
        repository, issue, pull = found.repository, found.issue, found.pull
        self._may(repository, WRITE, "write", "EnablePullRequestAutoMerge")
        if not repository.allow_auto_merge:
            raise GraphRefusal("UNPROCESSABLE", "Pull request Auto merge is not allowed for this repository")
        self._same_head(wanted, pull)
        state = await merge_state(self._github, repository, issue, pull)
        if state in ("clean", "unstable", "dirty"):
            raise GraphRefusal("UNPROCESSABLE", f"Pull request Pull request is in {state} status")
        if state == "unknown":
            raise GraphRefusal("UNPROCESSABLE", "Pull request Pull request is closed")
        pull.auto_merge = AutoMerge(
            login=self._actor.login,
            method=str(wanted.get("mergeMethod") or "MERGE").lower(),
            enabled_at=self._github.now(),
            title=wanted.get("commitHeadline"),
            message=wanted.get("commitBody"),
        )
        note(self._github, issue, "auto_merge_enabled", self._actor.login)
        await announce(self._github, repository, issue, self._actor.login, "auto_merge_enabled")
        await settle(self._github, repository)
        return _payload(wanted, actor=self._account(self._actor.login), pullRequest=self.pull(found))

    async def _disable_auto_merge(self, wanted: Node) -> Node:
        found = self._pull_by_id(wanted["pullRequestId"])
        self._may(found.repository, WRITE, "write", "DisablePullRequestAutoMerge")
        if found.pull.auto_merge is None:
            text = "Can't disable auto-merge for this pull request."
            raise GraphRefusal("UNPROCESSABLE", text)
        await drop_auto_merge(
            self._github, found.repository, found.issue, self._actor.login, "Auto-merge was disabled"
        )
        return _payload(wanted, actor=self._account(self._actor.login), pullRequest=self.pull(found))

    async def _enqueue(self, wanted: Node) -> Node:
        found = self._pull_by_id(wanted["pullRequestId"])
        repository, issue, pull = found.repository, found.issue, found.pull
        self._may(repository, WRITE, "write", "EnqueuePullRequest")
        if not rules_for(repository, pull.base_ref).merge_queue:
            raise GraphRefusal("UNPROCESSABLE", "The merge queue is not enabled for this branch.")
        self._same_head(wanted, pull)
        if issue.state != "open" or pull.draft or pull.queued is not None:
            reason = "is already in the queue" if pull.queued else "is not mergeable"
            raise GraphRefusal("UNPROCESSABLE", f"Pull request {reason}.")
        if sentences := missing(self._github, repository, pull):
            raise GraphRefusal("UNPROCESSABLE", " ".join(sentences))
        try:
            jump = bool(wanted.get("jump"))
            entry = await enqueue(self._github, repository, issue, self._actor.login, jump=jump)
        except Refusal as refusal:
            raise GraphRefusal("UNPROCESSABLE", refusal.message) from refusal
        answer = _payload(wanted, mergeQueueEntry=self._entry(found, entry))
        await settle(self._github, repository)
        return answer

    async def _dequeue(self, wanted: Node) -> Node:
        found = self._pull_by_id(wanted["id"])
        self._may(found.repository, WRITE, "write", "DequeuePullRequest")
        if found.pull.queued is None:
            raise GraphRefusal("UNPROCESSABLE", "Pull request is not in the merge queue.")
        entry = self._entry(found, found.pull.queued)
        await dequeue(self._github, found.repository, found.issue, self._actor.login, "MANUAL")
        return _payload(wanted, mergeQueueEntry=entry)

    def _same_head(self, wanted: Node, pull: Pull) -> None:
        if wanted.get("expectedHeadOid") not in (None, pull.head_sha):
            raise GraphRefusal("UNPROCESSABLE", "Head sha didn't match expected head oid.")


def _login(user: User) -> str:
    """GraphQL names bots without the ``[bot]`` that REST puts behind their names."""
    return user.login.removesuffix("[bot]") if user.type == "Bot" else user.login


def _payload(wanted: Node, **values: Any) -> Node:
    return {"clientMutationId": wanted.get("clientMutationId"), **values}


def _no_node(text: str) -> GraphRefusal:
    return GraphRefusal("NOT_FOUND", f"Could not resolve to a node with the global id of '{text}'.")


def _connection(
    name: str,
    items: Sequence[T],
    present: Callable[[T], Node | Awaitable[Node]],
    *,
    first: int | None = None,
    last: int | None = None,
    after: str | None = None,
    before: str | None = None,
    **_: Any,
) -> Node:
    """A page of a list. Cursors are opaque; ours hold the index.

    https://docs.github.com/en/graphql/guides/using-pagination-in-the-graphql-api
    """
    if first is None and last is None:
        text = f"You must provide a `first` or `last` value to properly paginate the `{name}` connection."
        raise GraphRefusal("MISSING_PAGINATION_BOUNDARIES", text)
    for word, size in (("first", first), ("last", last)):
        if size is not None and not 0 <= size <= MAX_PAGE:
            text = (
                f"Requesting {size} records on the `{name}` connection exceeds the `{word}` limit of "
                f"{MAX_PAGE} records."
            )
            raise GraphRefusal("EXCESSIVE_PAGINATION", text)
    start = _index(after) + 1 if after else 0
    end = _index(before) if before else len(items)
    if first is not None:
        end = min(end, start + first)
    elif last is not None:
        start = max(start, end - last)
    start, end = min(start, len(items)), min(max(end, start), len(items))
    return {
        "totalCount": len(items),
        "nodes": [present(one) for one in items[start:end]],
        "pageInfo": {
            "startCursor": _cursor(start) if end > start else None,
            "endCursor": _cursor(end - 1) if end > start else None,
            "hasPreviousPage": start > 0,
            "hasNextPage": end < len(items),
        },
    }


def _cursor(index: int) -> str:
    return b64encode(f"cursor:{index}".encode()).decode()


def _index(cursor: str) -> int:
    try:
        return int(b64decode(cursor, validate=True).decode().removeprefix("cursor:"))
    except ValueError:
        raise GraphRefusal(
            "INVALID_CURSOR_ARGUMENTS", f"`{cursor}` does not appear to be a valid cursor."
        ) from None
