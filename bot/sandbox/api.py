"""The REST API without the network: a request goes in, an answer comes out.

The order of the checks is GitHub's own, as far as it can be told from outside: who are you, can you see the
repository, may you do this, is the request well formed, and only then the work. Every answer is completed and held
against the official description, every request too.
"""

from __future__ import annotations

import hashlib
import re
import uuid
from collections.abc import Awaitable, Callable, Iterable, Mapping
from dataclasses import dataclass, field, replace
from typing import Any, TypeVar
from urllib.parse import parse_qsl, urlencode

import orjson
import structlog

from bot.sandbox.auth import Actor, authenticate, can_see
from bot.sandbox.description import JSON, Operation, Problem
from bot.sandbox.git import GitRepository
from bot.sandbox.github import GitHub
from bot.sandbox.permissions import (
    APP_ONLY,
    INSTALLATION_ONLY,
    ROLES,
    USER_ONLY,
    accepted_header,
    installation_may,
    role_needed,
)
from bot.sandbox.refusals import Refusal, not_found
from bot.sandbox.state import Issue, Pull, Repository

API_VERSION = "2022-11-28"
"""The version whose description the sandbox follows."""

# their errors are sentences, those of all others are objects
_REVIEWS = frozenset({"pulls/create-review", "pulls/submit-review"})

log = structlog.get_logger(__name__)

T = TypeVar("T")


@dataclass(frozen=True)
class Request:
    """An HTTP request; header names are in small letters."""

    method: str
    path: str
    query: str = ""
    headers: Mapping[str, str] = field(default_factory=dict)
    body: bytes = b""

    @property
    def line(self) -> str:
        """Method and URL."""
        return f"{self.method} {self.url}"

    @property
    def url(self) -> str:
        """Path and query."""
        return f"{self.path}?{self.query}" if self.query else self.path


@dataclass
class Answer:
    """What a handler answers: JSON in ``data`` (not yet complete), or another media type in ``text``."""

    status: int = 200
    data: Any = None
    headers: dict[str, str] = field(default_factory=dict)
    text: str | None = None
    content_type: str = f"{JSON}; charset=utf-8"


@dataclass(frozen=True)
class Response:
    """An HTTP answer."""

    status: int
    headers: dict[str, str]
    body: bytes


@dataclass
class Call:
    """One authenticated, permitted call of one operation."""

    github: GitHub
    request: Request
    operation: str
    actor: Actor
    args: dict[str, str]
    query: dict[str, str]
    body: Any
    found_repository: Repository | None

    @property
    def repository(self) -> Repository:
        """The repository that the path names."""
        assert self.found_repository is not None, f"{self.operation} names no repository"
        return self.found_repository

    @property
    def git(self) -> GitRepository:
        """The repository's git data."""
        return self.github.git(self.repository)

    @property
    def login(self) -> str:
        """The account that acts."""
        return self.actor.login

    @property
    def accept(self) -> str:
        """The media types that the caller takes."""
        return self.request.headers.get("accept", "")

    def issue(self, argument: str = "issue_number") -> Issue:
        """The issue or pull request that the path names.

        Raises:
            Refusal: 404.
        """
        issue = self.repository.issues.get(int(self.args[argument]))
        if issue is None:
            raise not_found()
        return issue

    def pull(self) -> tuple[Issue, Pull]:
        """The pull request that the path names.

        Raises:
            Refusal: 404.
        """
        issue = self.issue("pull_number")
        if issue.pull is None:
            raise not_found()
        return issue, issue.pull

    def page(self, items: Iterable[T], present: Callable[[T], Any], *, inside: str | None = None) -> Answer:
        """One page of a list.

        Args:
            items: all of it.
            present: writes one item's JSON.
            inside: key of the list in an object with ``total_count``; None for a bare list.
        """
        everything = list(items)
        size = min(100, max(1, _number(self.query.get("per_page"), 30)))
        page = max(1, _number(self.query.get("page"), 1))
        last = max(1, -(-len(everything) // size))
        chosen = [present(item) for item in everything[(page - 1) * size : page * size]]
        pages = {"prev": page - 1, "next": page + 1, "last": last, "first": 1}
        names = (["prev"] if page > 1 else []) + (["next", "last"] if page < last else [])
        names += ["first"] if page > 1 else []
        links = []
        for name in names:
            query = urlencode({**self.query, "page": str(min(pages[name], last))})
            links.append(f'<{self.github.base_url}{self.request.path}?{query}>; rel="{name}"')
        data = chosen if inside is None else {"total_count": len(everything), inside: chosen}
        return Answer(data=data, headers={"Link": ", ".join(links)} if links else {})


Handler = Callable[[Call], Awaitable[Answer]]
GraphQL = Callable[[Actor, bytes], Awaitable[tuple[int, Any]]]
"""Answers a GraphQL request with a status and JSON."""


class Api:
    """All operations.

    Args:
        github: what they work on.
        handlers: operation id to handler.
        graphql: answers ``POST /graphql``.
        on_change: called after every call that may have changed something.
    """

    def __init__(
        self,
        github: GitHub,
        handlers: Mapping[str, Handler],
        graphql: GraphQL,
        on_change: Callable[[], None] = lambda: None,
    ):
        self._github = github
        self._handlers = handlers
        self._graphql = graphql
        self._on_change = on_change

    async def handle(self, request: Request) -> Response:
        """Answer one request; never raises. A mistake of the sandbox is a 500 and a recorded problem."""
        if (request.method, request.path) == ("POST", "/graphql"):
            return await self._answer_graphql(request)
        actor: Actor | None = None
        operation: Operation | None = None
        request = self._by_name(request)
        try:
            operation, args, problems = self._route(request)
            actor = authenticate(self._github, request.headers.get("authorization", ""))
            self._within_limit(actor, operation)
            answer = await self._perform(request, operation, args, actor, problems)
        except Refusal as refusal:
            answer = Answer(refusal.status, refusal.body(), refusal.headers)
        except Exception as error:
            log.exception("sandbox_crashed", request=request.line)
            self._github.record("sandbox", request.line, [Problem("crash", repr(error))])
            answer = Answer(500, Refusal(500, "The sandbox itself is broken here; see its log.").body())
        if request.method not in ("GET", "HEAD"):
            self._on_change()
        return self._finish(request, operation, actor, answer)

    async def _answer_graphql(self, request: Request) -> Response:
        """GraphQL has its own rate limit, and answers in its own way."""
        github, key = self._github, ""
        try:
            actor = authenticate(github, request.headers.get("authorization", ""))
            if actor.kind == "app":
                raise Refusal(401, "A JSON web token could not be decoded")
            self._not_suspended(actor)
            key = f"graphql {actor.rate_key}"
            if github.rate_limit.exhausted(key, github.now()):
                # https://docs.github.com/en/graphql/overview/rate-limits-and-query-limits-for-the-graphql-api
                error = {"type": "RATE_LIMITED", "message": f"API rate limit exceeded for {actor.rate_key}."}
                status, data = 200, {"errors": [error]}
            else:
                status, data = await self._graphql(actor, request.body)
                github.rate_limit.count(key, github.now())
        except Refusal as refusal:
            status, data = refusal.status, refusal.body()
        self._on_change()
        headers = {"Content-Type": f"{JSON}; charset=utf-8", "X-GitHub-Media-Type": "github.v4; format=json"}
        headers["X-GitHub-Request-Id"] = uuid.uuid4().hex.upper()
        if key:
            headers |= github.rate_limit.headers(key, github.now())
        return Response(status, headers, orjson.dumps(data))

    def _by_name(self, request: Request) -> Request:
        """``/repositories/{id}``, where moved repositories redirect to, is as good as ``/repos/{owner}/{repo}``."""
        found = re.match(r"/repositories/(\d+)(?=/|$)", request.path)
        repository = self._github.world.repositories.get(int(found[1])) if found else None
        if found is None or repository is None:
            return request
        return replace(request, path=f"/repos/{repository.full_name}{request.path[found.end() :]}")

    def _moved(self, request: Request, actor: Actor, owner: str, name: str) -> Refusal | None:
        """Where a repository that was renamed or transferred is now.

        https://docs.github.com/en/rest/using-the-rest-api/best-practices-for-using-the-rest-api#follow-redirects
        """
        repository = self._github.world.repositories.get(
            self._github.world.moved.get(f"{owner}/{name}".lower(), 0)
        )
        if repository is None or not can_see(self._github, actor, repository):
            return None
        rest = request.path.split("/", 4)[4:]
        query = f"?{request.query}" if request.query else ""
        url = "/".join([f"{self._github.base_url}/repositories/{repository.id}", *rest]) + query
        # 307 lets a client repeat its method and body
        status = 301 if request.method in ("GET", "HEAD") else 307
        return Refusal(status, "Moved Permanently", headers={"Location": url}, more={"url": url})

    def _route(self, request: Request) -> tuple[Operation, dict[str, str], list[Problem]]:
        if not request.headers.get("user-agent"):
            raise Refusal(
                403,
                "Request forbidden by administrative rules. Please make sure your request has a User-Agent header",
            )
        kind = request.headers.get("content-type", JSON)
        _, problems = self._github.description.check_request(request.method, request.url, request.body, kind)
        self._github.record("client", request.line, problems)
        version = request.headers.get("x-github-api-version", API_VERSION)
        if version != API_VERSION:
            raise Refusal(400, f"The sandbox speaks API version {API_VERSION} only, not {version}.")
        found = self._github.description.find(request.method, request.path)
        if found is None or found[0].id not in self._handlers:
            raise Refusal(
                501,
                f"The sandbox does not implement {request.method} {request.path}. GitHub itself may: see "
                "bot/sandbox/permissions.py for the operations that exist here.",
            )
        return *found, problems

    def _within_limit(self, actor: Actor, operation: Operation) -> None:
        limit = self._github.rate_limit
        if operation.id != "rate-limit/get" and limit.exhausted(actor.rate_key, self._github.now()):
            raise Refusal(limit.refusal, f"API rate limit exceeded for {actor.rate_key}.")

    async def _perform(
        self,
        request: Request,
        operation: Operation,
        args: dict[str, str],
        actor: Actor,
        problems: list[Problem],
    ) -> Answer:
        self._not_suspended(actor)
        self._right_kind(actor, operation.id)
        call = Call(
            github=self._github,
            request=request,
            operation=operation.id,
            actor=actor,
            args=args,
            query=dict(parse_qsl(request.query)),
            body=None,
            found_repository=self._visible(request, actor, args, operation.id),
        )
        if actor.kind == "installation":
            self._token_may(actor, operation.id)
        elif actor.kind == "user" and call.found_repository is not None:
            self._person_may(call)
        call.body = _decoded(request, operation, problems)
        return await self._handlers[operation.id](call)

    def _not_suspended(self, actor: Actor) -> None:
        if actor.token is not None and actor.token.app is None:
            installation = self._github.world.installations[actor.token.installation_id]
            if installation.suspended_at is not None:
                raise Refusal(403, "This installation has been suspended")

    def _right_kind(self, actor: Actor, operation: str) -> None:
        if operation in APP_ONLY and actor.kind != "app":
            raise Refusal(401, "A JSON web token could not be decoded")
        if operation in INSTALLATION_ONLY and actor.kind != "installation":
            raise Refusal(403, "You must authenticate with an installation access token in order to do this.")
        if operation in USER_ONLY and actor.kind != "user":
            raise Refusal(403, "Resource not accessible by integration")
        if operation not in APP_ONLY and actor.kind == "app" and operation != "rate-limit/get":
            raise Refusal(
                401, "This endpoint takes an installation access token, not the App's JSON web token."
            )

    def _visible(
        self, request: Request, actor: Actor, args: Mapping[str, str], operation: str
    ) -> Repository | None:
        if "repo" not in args:
            return None
        repository = self._github.world.repository(args["owner"], args["repo"])
        if repository is None and (moved := self._moved(request, actor, args["owner"], args["repo"])):
            raise moved
        foreign = repository is not None and self._github.world.installation_for(repository) is None
        if operation == "repos/get" and repository and foreign and not repository.private:
            return repository  # everybody sees it, and installations are somebody
        if repository is None or not can_see(self._github, actor, repository):
            raise not_found()
        return repository

    def _token_may(self, actor: Actor, operation: str) -> None:
        assert actor.token is not None
        if operation not in INSTALLATION_ONLY and not installation_may(operation, actor.token.permissions):
            headers = {"X-Accepted-GitHub-Permissions": accepted_header(operation)}
            raise Refusal(403, "Resource not accessible by integration", headers=headers)

    def _person_may(self, call: Call) -> None:
        if call.operation in ("checks/create", "checks/update", "checks/create-suite"):
            raise Refusal(403, "You must authenticate via a GitHub App.")
        role = call.github.world.role(call.repository, call.login)
        if ROLES[role] < ROLES[role_needed(call.operation, author=_is_author(call))]:
            raise Refusal(403, "Must have admin rights to Repository.")

    def _finish(
        self, request: Request, operation: Operation | None, actor: Actor | None, answer: Answer
    ) -> Response:
        github = self._github
        if answer.text is not None:
            body = answer.text.encode()
        elif answer.data is None:
            body = b""
        else:
            if operation is not None:
                answer.data = github.completer.complete_response(operation.id, answer.status, answer.data)
            body = orjson.dumps(answer.data)
        headers = dict(answer.headers)
        if body:
            headers["Content-Type"] = answer.content_type
        if operation is not None:
            _, problems = github.description.check_response(
                request.method, request.path, answer.status, body, headers.get("Content-Type")
            )
            github.record("sandbox", f"{request.line} -> {answer.status}", problems)
        status = answer.status
        if request.method == "GET" and status == 200:
            headers["ETag"] = _etag(request, body)
            headers["Cache-Control"] = "private, max-age=60, s-maxage=60"
            headers["Vary"] = "Accept, Authorization, Cookie, X-GitHub-OTP"
            if request.headers.get("if-none-match") == headers["ETag"]:
                # https://docs.github.com/en/rest/using-the-rest-api/best-practices-for-using-the-rest-api
                status, body = 304, b""
                headers.pop("Content-Type", None)
        if actor is not None:
            free = status == 304 or (operation is not None and operation.id == "rate-limit/get")
            if not free and not (status == github.rate_limit.refusal and _is_limit(answer)):
                github.rate_limit.count(actor.rate_key, github.now())
            headers |= github.rate_limit.headers(actor.rate_key, github.now())
        headers["X-GitHub-Request-Id"] = uuid.uuid4().hex.upper()
        headers["X-GitHub-Media-Type"] = "github.v3; format=json"
        headers["X-GitHub-Api-Version-Selected"] = API_VERSION
        return Response(status, headers, body)


def _is_author(call: Call) -> bool:
    """Whether the caller wrote what the call is about to change."""
    if "issue_number" in call.args or "pull_number" in call.args:
        issue = call.repository.issues.get(
            int(call.args.get("issue_number", call.args.get("pull_number", "0")))
        )
        return issue is not None and issue.login == call.login
    if "comment_id" in call.args:
        number = int(call.args["comment_id"])
        for issue in call.repository.issues.values():
            review_comments = issue.pull.comments if issue.pull else {}
            comment = issue.comments.get(number) or review_comments.get(number)
            if comment is not None:
                return comment.login == call.login
    return False


def _decoded(request: Request, operation: Operation, problems: list[Problem]) -> Any:
    """The body, or GitHub's refusal of it."""
    body: Any = None
    if request.body and operation.request is not None:
        try:
            body = orjson.loads(request.body)
        except ValueError:
            raise Refusal(400, "Problems parsing JSON") from None
        if not isinstance(body, dict):
            raise Refusal(400, "Body should be a JSON object")
    for problem in problems:
        if problem.where == "rule":
            sentence = problem.message[0].upper() + problem.message[1:]
            if operation.id in _REVIEWS:
                raise Refusal(422, "Unprocessable Entity", [sentence])
            error = {"resource": operation.id, "field": "body", "code": "custom", "message": sentence}
            raise Refusal(422, "Validation Failed", [error])
        # GitHub overlooks keys that it does not know; the problem is recorded all the same
        if problem.where == "body" and "Unevaluated properties" not in problem.message:
            raise Refusal(422, f"Invalid request.\n\n{problem.message}")
    return {} if body is None else body


def _etag(request: Request, body: bytes) -> str:
    parts = (
        body,
        request.headers.get("accept", "").encode(),
        request.headers.get("authorization", "").encode(),
    )
    return f'W/"{hashlib.sha256(b"|".join(parts)).hexdigest()}"'


def _is_limit(answer: Answer) -> bool:
    return isinstance(answer.data, dict) and "rate limit exceeded" in answer.data.get("message", "")


def _number(text: str | None, default: int) -> int:
    return int(text) if text is not None and text.isdecimal() else default
