"""The sandbox on the network: REST at the root, git, pages for people, and the controls below ``/_sandbox``."""

from __future__ import annotations

import asyncio
import re
from collections.abc import Awaitable, Callable
from dataclasses import asdict, fields
from typing import Any

import orjson
from aiohttp import web

from bot.githttp import git_service, serve_git
from bot.sandbox import (
    actions,
    apps,
    checks,
    contents,
    deliveries,
    gitdata,
    issues,
    moving,
    orgs,
    pulls,
    reactions,
    repos,
    reviews,
)
from bot.sandbox.api import Api, Handler, Request
from bot.sandbox.auth import Actor, authenticate, can_see
from bot.sandbox.faults import Fault
from bot.sandbox.github import GitHub
from bot.sandbox.lfs import LfsServer
from bot.sandbox.pages import Pages
from bot.sandbox.permissions import ROLES, covers
from bot.sandbox.pushes import refs_moved
from bot.sandbox.refusals import Refusal
from bot.sandbox.signatures import write_signers
from bot.sandbox.state import Repository

MAX_BODY = 100 * 2**20
"""Bytes of a REST request; blobs may be that large."""

HANDLERS: dict[str, Handler] = {
    **apps.OPERATIONS,
    **deliveries.OPERATIONS,
    **repos.OPERATIONS,
    **contents.OPERATIONS,
    **gitdata.OPERATIONS,
    **issues.OPERATIONS,
    **reactions.OPERATIONS,
    **pulls.OPERATIONS,
    **reviews.OPERATIONS,
    **checks.OPERATIONS,
    **actions.OPERATIONS,
    **orgs.OPERATIONS,
    **moving.OPERATIONS,
}
"""Every REST operation of the sandbox."""

Next = Callable[[web.Request], Awaitable[web.StreamResponse]]


class Server:
    """The aiohttp application.

    Args:
        github: what it serves.
        api: its REST API.
        on_change: called after a push.
    """

    def __init__(self, github: GitHub, api: Api, on_change: Callable[[], None] = lambda: None):
        self._github = github
        self._api = api
        self._on_change = on_change
        self._pages = Pages(github, api)
        self.lfs = LfsServer(github)

    def application(self) -> web.Application:
        """All routes; what no route takes is a REST call."""
        application = web.Application(middlewares=[self._faults], client_max_size=MAX_BODY)
        application.router.add_get("/_sandbox/problems", self._list_problems)
        application.router.add_get("/_sandbox/faults", self._list_faults)
        application.router.add_post("/_sandbox/faults", self._add_fault)
        application.router.add_delete("/_sandbox/faults", self._clear_faults)
        application.router.add_get(r"/_logs/{job:\d+}", self._log)
        application.router.add_route("*", "/{owner}/{repo}.git/{tail:.+}", self._git)
        application.router.add_route("*", r"/_lfs/{repository:\d+}/{oid}/{action}", self.lfs.store)
        roots = {one.path.split("/")[1] for one in self._github.description.operations.values()}
        for root in sorted(roots | {"repositories"}):
            # before the pages, which take any other first word for an account
            application.router.add_route("*", f"/{root}", self._rest)
            application.router.add_route("*", f"/{root}/{{path:.*}}", self._rest)
        self._pages.add_routes(application.router)
        application.router.add_route("*", "/{path:.*}", self._rest)
        return application

    # ---- faults

    @web.middleware
    async def _faults(self, request: web.Request, handler: Next) -> web.StreamResponse:
        if request.path.startswith("/_sandbox/"):
            return await handler(request)
        fault = self._github.faults.take(request.method, request.path)
        if fault is None:
            return await handler(request)
        if fault.delay:
            await asyncio.sleep(fault.delay)
        if fault.drop == "before":
            return _cut(request)
        if fault.drop == "after":
            await handler(request)
            return _cut(request)
        if fault.status is None:
            return await handler(request)
        body = {"message": fault.message, "documentation_url": "https://docs.github.com/rest"}
        headers = {"X-GitHub-Request-Id": "FAULT", **fault.headers}
        return web.Response(
            status=fault.status, body=orjson.dumps(body), content_type="application/json", headers=headers
        )

    async def _list_faults(self, _: web.Request) -> web.Response:
        return web.json_response([asdict(one) for one in self._github.faults.waiting])

    async def _add_fault(self, request: web.Request) -> web.Response:
        known = {one.name for one in fields(Fault)}
        try:
            wanted: dict[str, Any] = orjson.loads(await request.read())
            if unknown := wanted.keys() - known:
                raise ValueError(f"unknown: {', '.join(sorted(unknown))}; known: {', '.join(sorted(known))}")
            fault = Fault(**wanted)
        except (ValueError, TypeError, AttributeError, re.error) as error:
            return web.json_response({"message": f"That is no fault: {error}"}, status=422)
        self._github.faults.add(fault)
        return web.json_response(asdict(fault), status=201)

    async def _clear_faults(self, _: web.Request) -> web.Response:
        self._github.faults.clear()
        return web.Response(status=204)

    async def _list_problems(self, _: web.Request) -> web.Response:
        shown = [
            {"side": one.side, "where": one.where, "kind": one.problem.where, "message": one.problem.message}
            for one in self._github.problems
        ]
        return web.json_response(shown)

    async def _log(self, request: web.Request) -> web.Response:
        return await actions.serve_log(self._github, request)

    # ---- REST

    async def _rest(self, request: web.Request) -> web.Response:
        response = await self._api.handle(
            Request(
                method=request.method,
                path=request.rel_url.raw_path,
                query=request.rel_url.raw_query_string,
                headers={name.lower(): value for name, value in request.headers.items()},
                body=await request.read(),
            )
        )
        return web.Response(status=response.status, body=response.body, headers=response.headers)

    # ---- git

    def _may(self, actor: Actor, repository: Repository, *, pushing: bool) -> bool:
        level = "write" if pushing else "read"
        if actor.token is not None:
            return covers(actor.token.permissions, {"contents": level})
        return ROLES[self._github.world.role(repository, actor.login)] >= ROLES[level]

    async def _git(self, request: web.Request) -> web.StreamResponse:
        tail = request.match_info["tail"]
        service = git_service(request, tail)
        large_files = request.method == "POST" and tail == "info/lfs/objects/batch"
        if service is None and not large_files:
            return web.Response(status=404, text="Not Found\n")
        pushing = service == "git-receive-pack"
        try:
            actor = self._caller(request, pushing=pushing)
        except Refusal as refusal:
            if refusal.status == 403:
                return web.Response(status=403, text="Your account is suspended. Please visit support.\n")
            return web.Response(
                status=401,
                text="remote: Invalid username or token. Password authentication is not supported.\n",
                headers={"WWW-Authenticate": 'Basic realm="GitHub"'},
            )
        repository = self._github.world.repository(request.match_info["owner"], request.match_info["repo"])
        if repository is None and request.method == "GET":
            self._redirect_git(request, actor, tail)
        if repository is None or actor.kind == "app" or not can_see(self._github, actor, repository):
            return web.Response(status=404, text="Repository not found.\n")
        if not self._may(actor, repository, pushing=pushing):
            text = f"Permission to {repository.full_name}.git denied to {actor.login}.\n"
            return web.Response(status=403, text=text)
        if large_files:
            may_write = self._may(actor, repository, pushing=True)
            return await self.lfs.batch(request, repository, may_write=may_write)
        if pushing and tail == service:
            return await self._push(request, actor, repository)
        return await self._serve(request, actor, repository)

    def _caller(self, request: web.Request, *, pushing: bool) -> Actor:
        """Who asks. Everybody may fetch from public repositories, and then is nobody.

        Where the App is installed, the sandbox wants a token all the same: a missing one must be noticed.

        Raises:
            Refusal: 401.
        """
        repository = self._github.world.repository(request.match_info["owner"], request.match_info["repo"])
        if repository and not repository.private and not pushing and "Authorization" not in request.headers:
            installed = self._github.world.installation_for(repository) is not None
            if not installed:
                return Actor("user", "")
        return authenticate(self._github, request.headers.get("Authorization", ""))

    def _redirect_git(self, request: web.Request, actor: Actor, tail: str) -> None:
        """Send a git client to where a repository is now; it goes on from there by itself."""
        world, where = self._github.world, request.match_info
        repository = world.repositories.get(world.moved.get(f"{where['owner']}/{where['repo']}".lower(), 0))
        if repository is not None and can_see(self._github, actor, repository):
            url = f"{self._github.base_url}/{repository.full_name}.git/{tail}"
            raise web.HTTPMovedPermanently(f"{url}?{request.query_string}")

    async def _push(self, request: web.Request, actor: Actor, repository: Repository) -> web.StreamResponse:
        git = self._github.git(repository)
        async with git.lock:
            before = await git.refs()
            settled = False

            async def settle() -> None:
                nonlocal settled
                settled = True
                await refs_moved(self._github, repository, actor.login, before, await git.refs())
                self._on_change()

            try:
                # who has pushed finds the pull request's new head at once
                return await self._serve(request, actor, repository, before_end=settle)
            finally:
                # also when the pusher went away: what has moved has moved
                if not settled:
                    await settle()

    async def _serve(
        self,
        request: web.Request,
        actor: Actor,
        repository: Repository,
        before_end: Callable[[], Awaitable[None]] | None = None,
    ) -> web.StreamResponse:
        workflows = actor.token is None or actor.token.permissions.get("workflows") == "write"
        protected = (f"refs/heads/{name}" for name in sorted(repository.protected_branches))
        signers = write_signers(self._github, repository)
        return await serve_git(
            request,
            project_root=self._github.git_root,
            path_info=f"/{repository.full_name}.git/{request.match_info['tail']}",
            env={
                "REMOTE_USER": actor.login,
                "SANDBOX_PROTECTED": " ".join(protected),
                "SANDBOX_WORKFLOWS": "write" if workflows else "",
                "SANDBOX_SIGNED": " ".join(sorted(repository.signed_branches)),
                "SANDBOX_SIGNERS": str(signers),
            },
            before_end=before_end,
        )


def _cut(request: web.Request) -> web.Response:
    if request.transport is not None:
        request.transport.abort()
    return web.Response()
