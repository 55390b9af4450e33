"""Web pages for people: repositories, issues and pull requests to look at and to act on.

Plain server-rendered HTML with forms and no script. Whoever opens a page chooses in a box as whom to act; the
sandbox is a stage for made-up people on one machine, so there is no password.
"""

from __future__ import annotations

from collections.abc import Awaitable, Callable, Mapping
from typing import Any

import jinja2
from aiohttp import web

from bot.sandbox.api import Api
from bot.sandbox.git import EMPTY_TREE, FileChange
from bot.sandbox.github import GitHub
from bot.sandbox.human import Human, HumanError
from bot.sandbox.markup import rendered
from bot.sandbox.present import REACTIONS
from bot.sandbox.state import Issue, Repository

_COOKIE = "sandbox_user"
_EMOJI = dict(zip(REACTIONS, ("👍", "👎", "😄", "🎉", "😕", "❤️", "🚀", "👀"), strict=True))
_HEADERS = {
    "Content-Security-Policy": "default-src 'none'; style-src 'unsafe-inline'; img-src 'self' data:; "
    "form-action 'self'; base-uri 'none'; frame-ancestors 'none'",
    "X-Content-Type-Options": "nosniff",
    "Referrer-Policy": "same-origin",
}

Form = Mapping[str, str]


class Pages:
    """Routes and handlers of the pages.

    Args:
        github: what is shown.
        api: through which the forms act.
    """

    def __init__(self, github: GitHub, api: Api):
        self._github = github
        self._api = api
        self._templates = jinja2.Environment(
            loader=jinja2.PackageLoader("templates", "sandbox"),
            autoescape=True,
            undefined=jinja2.StrictUndefined,
            trim_blocks=True,
            lstrip_blocks=True,
        )
        self._templates.filters["markdown"] = lambda text: rendered(text or "")
        self._templates.globals["emoji"] = _EMOJI

    def add_routes(self, router: web.UrlDispatcher) -> None:
        """Add the pages' routes; those of REST must be there already."""
        router.add_get("/", self._index)
        router.add_get("/favicon.ico", self._no_icon)
        router.add_post("/", self._choose_user)
        router.add_get("/{owner}/{repo}", self._repository)
        router.add_post("/{owner}/{repo}", self._open_issue)
        for kind in ("issues", "pull"):
            path = f"/{{owner}}/{{repo}}/{kind}/{{number:[0-9]+}}"
            router.add_get(path, self._conversation)
            router.add_post(path, self._act)
        router.add_get("/{owner}/{repo}/runs/{run:[0-9]+}", self._run)
        router.add_get("/{owner}/{repo}/actions/runs/{run:[0-9]+}/job/{job:[0-9]+}", self._job)
        router.add_get("/{owner}/{repo}/commit/{commit}", self._commit)
        router.add_get("/{owner}/{repo}/compare/{basehead:.+}", self._compare)
        router.add_get("/{owner}/{repo}/tree/{where:.+}", self._tree)
        router.add_get("/{owner}/{repo}/{kind:blob|raw}/{where:.+}", self._raw)

    # ---- pages

    async def _no_icon(self, _request: web.Request) -> web.Response:
        """Browsers ask for it by themselves; that is no call of a client."""
        return web.Response(status=204)

    async def _index(self, request: web.Request) -> web.Response:
        return self._page(request, "index", repositories=list(self._github.world.repositories.values()))

    async def _repository(self, request: web.Request) -> web.Response:
        repository = self._found(request)
        newest_first = sorted(repository.issues.values(), key=lambda one: -one.number)
        refs = await self._github.git(repository).refs("refs/heads")
        return self._page(
            request,
            "repository",
            repository=repository,
            issues=[one for one in newest_first if one.pull is None],
            pulls=[one for one in newest_first if one.pull is not None],
            branches={name.removeprefix("refs/heads/"): sha for name, sha in refs.items()},
        )

    async def _conversation(self, request: web.Request) -> web.Response:
        repository = self._found(request)
        issue = self._issue(request, repository)
        kind = "pull" if issue.pull else "issues"
        if request.path.split("/")[3] != kind:
            raise web.HTTPFound(f"/{repository.full_name}/{kind}/{issue.number}")
        pull = issue.pull
        runs = [run for run in repository.check_runs.values() if pull and run.head_sha == pull.head_sha]
        return self._page(
            request,
            "conversation",
            repository=repository,
            issue=issue,
            entries=_entries(issue),
            runs=runs,
            changes=await self._changes(repository, issue),
            emoji_of=_counted,
        )

    async def _run(self, request: web.Request) -> web.Response:
        repository = self._found(request)
        run = repository.check_runs.get(int(request.match_info["run"]))
        if run is None:
            raise web.HTTPNotFound(text="There is no such check run.")
        issue = next((one for one, pull in repository.pulls() if pull.head_sha == run.head_sha), None)
        return self._page(request, "run", repository=repository, run=run, issue=issue)

    async def _job(self, request: web.Request) -> web.Response:
        """What a job's ``details_url`` shows: its log."""
        run = self._found(request).workflow_runs.get(int(request.match_info["run"]))
        log = run.jobs.get(int(request.match_info["job"])) if run else None
        if log is None:
            raise web.HTTPNotFound(text="There is no such job.")
        return web.Response(text=log, headers=_HEADERS)

    async def _commit(self, request: web.Request) -> web.Response:
        repository = self._found(request)
        git = self._github.git(repository)
        sha = await git.resolve(request.match_info["commit"])
        if sha is None:
            raise web.HTTPNotFound(text="There is no such commit.")
        commit = await git.commit(sha)
        changes = await git.changes(commit.parents[0] if commit.parents else EMPTY_TREE, sha)
        return self._page(
            request, "changes", repository=repository, title=sha[:10], commits=[commit], changes=changes
        )

    async def _compare(self, request: web.Request) -> web.Response:
        repository = self._found(request)
        git = self._github.git(repository)
        base, _, head = request.match_info["basehead"].partition("...")
        start, end = await git.resolve(base), await git.resolve(head)
        fork = await git.merge_base(start, end) if start and end else None
        if fork is None:
            raise web.HTTPNotFound(text="There is nothing to compare.")
        return self._page(
            request,
            "changes",
            repository=repository,
            title=f"{base}...{head}",
            commits=await git.log("--reverse", f"{start}..{end}"),
            changes=await git.changes(fork, str(end)),
        )

    async def _tree(self, request: web.Request) -> web.Response:
        repository = self._found(request)
        sha, _ = await self._revision(repository, request.match_info["where"])
        entries = await self._github.git(repository).entries(sha, recursive=True)
        return self._page(
            request,
            "tree",
            repository=repository,
            title=request.match_info["where"],
            sha=sha,
            files=[one for one in entries if one.type == "blob"],
        )

    async def _raw(self, request: web.Request) -> web.Response:
        repository = self._found(request)
        sha, path = await self._revision(repository, request.match_info["where"])
        git = self._github.git(repository)
        found = await git.entries(sha, path=path)
        if not found or found[0].type != "blob":
            raise web.HTTPNotFound(text="There is no such file.")
        content = await git.blob(found[0].sha)
        return web.Response(body=content, content_type="text/plain", charset="utf-8", headers=_HEADERS)

    async def _revision(self, repository: Repository, where: str) -> tuple[str, str]:
        """Split ``branch/with/slashes/and/a/path``: the shortest beginning that is a commit counts."""
        parts = where.split("/")
        for length in range(1, len(parts) + 1):
            sha = await self._github.git(repository).resolve("/".join(parts[:length]))
            if sha is not None:
                return sha, "/".join(parts[length:])
        raise web.HTTPNotFound(text="There is no such branch or commit.")

    async def _changes(self, repository: Repository, issue: Issue) -> list[FileChange]:
        if issue.pull is None:
            return []
        git = self._github.git(repository)
        base = await git.merge_base(issue.pull.base_sha, issue.pull.head_sha) or issue.pull.base_sha
        return await git.changes(base, issue.pull.head_sha)

    # ---- forms

    async def _choose_user(self, request: web.Request) -> web.Response:
        form = await self._form(request)
        back = form.get("back", "/")
        # a path of this site and nothing else
        answer = web.HTTPSeeOther(
            back if back.startswith("/") and not back.startswith(("//", "/\\")) else "/"
        )
        answer.set_cookie(_COOKIE, self._login(request, form), httponly=True, samesite="Strict")
        raise answer

    async def _open_issue(self, request: web.Request) -> web.Response:
        repository, form = self._found(request), await self._form(request)
        human = self._human(request, form)
        labels = form.get("labels", "").replace(",", " ").split()
        issue = await _tried(
            human.open_issue(repository.full_name, form.get("title", ""), form.get("body", ""), labels=labels)
        )
        raise web.HTTPSeeOther(f"/{repository.full_name}/issues/{issue['number']}")

    async def _act(self, request: web.Request) -> web.Response:
        repository, form = self._found(request), await self._form(request)
        issue = self._issue(request, repository)
        act = _ACTIONS.get(form.get("action", ""))
        if act is None:
            raise web.HTTPBadRequest(text=f"action is one of {', '.join(_ACTIONS)}.")
        await _tried(act(self._human(request, form), repository.full_name, issue.number, form))
        raise web.HTTPSeeOther(request.path)

    async def _form(self, request: web.Request) -> Form:
        origin = request.headers.get("Origin")
        if origin not in (None, f"{request.scheme}://{request.host}"):
            raise web.HTTPForbidden(text="This form was sent from another site.")
        return {name: value for name, value in (await request.post()).items() if isinstance(value, str)}

    # ---- inside

    def _login(self, request: web.Request, form: Form | None = None) -> str:
        wanted = (form or {}).get("user") or request.cookies.get(_COOKIE, "")
        people = self._people()
        return wanted if wanted in people else people[0]

    def _human(self, request: web.Request, form: Form) -> Human:
        return Human(self._github, self._api, self._login(request, form))

    def _people(self) -> list[str]:
        return [one.login for one in self._github.world.users.values() if one.type == "User"]

    def _found(self, request: web.Request) -> Repository:
        where = request.match_info
        repository = self._github.world.repository(where["owner"], where["repo"])
        if repository is None:
            raise web.HTTPNotFound(text="There is no such repository.")
        return repository

    def _issue(self, request: web.Request, repository: Repository) -> Issue:
        issue = repository.issues.get(int(request.match_info["number"]))
        if issue is None:
            raise web.HTTPNotFound(text="There is no such issue or pull request.")
        return issue

    def _page(self, request: web.Request, template: str, **values: Any) -> web.Response:
        text = self._templates.get_template(f"{template}.html.j2").render(
            world=self._github.world,
            people=self._people(),
            user=self._login(request),
            path=request.path,
            **values,
        )
        return web.Response(text=text, content_type="text/html", headers=_HEADERS)


async def _tried(action: Awaitable[Any]) -> Any:
    try:
        return await action
    except HumanError as error:
        # GraphQL answers with a list of errors, REST with an object
        body = error.body if isinstance(error.body, dict) else {"errors": error.body or []}
        message = body.get("message", "")
        details = "; ".join(str(one) for one in body.get("errors", []))
        text = f"GitHub refused: {message} {details}\nGo back and try something else."
        raise web.HTTPUnprocessableEntity(text=text) from error


def _entries(issue: Issue) -> list[tuple[str, Any]]:
    """The conversation in order: comments, reviews with their line comments, and what happened in between."""
    entries: list[tuple[Any, str, Any]] = [
        (one.created_at, "comment", one) for one in issue.comments.values()
    ]
    entries += [(one.created_at, "event", one) for one in issue.timeline]
    if issue.pull is not None:
        for review in issue.pull.reviews.values():
            comments = [one for one in issue.pull.comments.values() if one.review_id == review.id]
            if review.submitted_at is not None:
                entries.append((review.submitted_at, "review", (review, comments)))
    return [(kind, value) for _, kind, value in sorted(entries, key=lambda entry: entry[0])]


def _counted(reactions: list[Any]) -> dict[str, list[str]]:
    """Emoji to the logins that gave it."""
    counted: dict[str, list[str]] = {}
    for one in reactions:
        counted.setdefault(_EMOJI[one.content], []).append(one.login)
    return counted


# ---- what the forms of a conversation can do

Act = Callable[[Human, str, int, Form], Awaitable[Any]]


async def _comment(human: Human, repo: str, number: int, form: Form) -> None:
    await human.comment(repo, number, form.get("body", ""))


async def _label(human: Human, repo: str, number: int, form: Form) -> None:
    await human.add_label(repo, number, form.get("label", "").strip())


async def _unlabel(human: Human, repo: str, number: int, form: Form) -> None:
    await human.remove_label(repo, number, form.get("label", ""))


async def _close(human: Human, repo: str, number: int, _: Form) -> None:
    await human.close(repo, number)


async def _reopen(human: Human, repo: str, number: int, _: Form) -> None:
    await human.reopen(repo, number)


async def _review(human: Human, repo: str, number: int, form: Form) -> None:
    await human.review(repo, number, form.get("event", "COMMENT"), form.get("body", ""))


async def _dismiss(human: Human, repo: str, number: int, form: Form) -> None:
    await human.dismiss_review(repo, number, int(form.get("review", "0")), form.get("message", ""))


async def _ready(human: Human, repo: str, number: int, _: Form) -> None:
    await human.ready(repo, number)


async def _to_draft(human: Human, repo: str, number: int, _: Form) -> None:
    await human.to_draft(repo, number)


async def _comment_on_line(human: Human, repo: str, number: int, form: Form) -> None:
    line = form.get("line", "")
    await human.comment_on_line(
        repo, number, form.get("file", ""), int(line) if line.isdecimal() else 0, form.get("body", "")
    )


async def _reply(human: Human, repo: str, number: int, form: Form) -> None:
    await human.reply(repo, number, int(form.get("comment", "0")), form.get("body", ""))


async def _resolve(human: Human, repo: str, number: int, form: Form) -> None:
    resolved = form.get("resolved", "yes") == "yes"
    await human.resolve(repo, number, int(form.get("comment", "0")), resolved=resolved)


async def _merge(human: Human, repo: str, number: int, _: Form) -> None:
    await human.merge(repo, number)


async def _click(human: Human, repo: str, _number: int, form: Form) -> None:
    await human.click_check_button(repo, int(form.get("run", "0")), form.get("identifier", ""))


async def _rerequest(human: Human, repo: str, _number: int, form: Form) -> None:
    await human.rerequest_check(repo, int(form.get("run", "0")))


async def _react(human: Human, repo: str, number: int, form: Form) -> None:
    comment = form.get("comment_id")
    await human.react(repo, number, form.get("content", ""), comment_id=int(comment) if comment else None)


_ACTIONS: dict[str, Act] = {
    "comment": _comment,
    "label": _label,
    "unlabel": _unlabel,
    "close": _close,
    "reopen": _reopen,
    "review": _review,
    "dismiss": _dismiss,
    "ready": _ready,
    "to_draft": _to_draft,
    "comment_on_line": _comment_on_line,
    "reply": _reply,
    "resolve": _resolve,
    "merge": _merge,
    "click": _click,
    "rerequest": _rerequest,
    "react": _react,
}
