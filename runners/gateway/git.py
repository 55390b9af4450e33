"""The gateway's ``/git/…``: an attempt fetches from its mirror and pushes into its quarantine.

Both are real repositories served as ``repository.git`` by ``git http-backend``; which of the two, and that there are no
others, is decided here by the service that is asked for. What may be pushed is decided by the quarantine's own
configuration (``runners/quarantine.py``), what is done with it by the checks before publishing. The repositories of its
submodules, which its terms name, are served as ``<owner>/<name>.git`` for fetching only.
"""

from __future__ import annotations

import asyncio
from collections import Counter
from pathlib import Path
from typing import Protocol

from aiohttp import web

from bot.changes import size_text
from bot.githttp import git_service, serve_git
from bot.terms import SubmoduleTerms, Terms
from runners import quarantine
from runners.gateway.lfs import LfsRepository, LfsRoute
from runners.git import WARY
from runners.lfs_store import staged
from runners.mirrors import beside

REPOSITORY = "repository.git/"
LFS = "info/lfs/"
NOTHING = "Only fetch and push of repository.git are served here."

#: Seconds for one request: a whole clone through the gateway, a whole push.
TIMEOUT = 600.0
#: Requests of one attempt that may run git at once; each costs this host a process and a core.
MAX_AT_ONCE = 4
#: Bytes of a fetch's negotiation: every "have" line has 50.
MAX_FETCH_BODY = 16 * 2**20
#: A push's commands and framing, besides its pack; the pack's own limit is git's, which says more in its answer.
PUSH_MARGIN = 2**20

# The repositories are configured by us already; said again here for whatever version of them lies on the disk.
_CONFIG = {
    "core.hooksPath": "/dev/null",
    "core.fsmonitor": "false",
    "core.attributesFile": "/dev/null",
    "gc.auto": "0",
    "maintenance.auto": "false",
    "receive.autogc": "false",
}
_ENV = {"GIT_NO_REPLACE_OBJECTS": "1", "GIT_NO_LAZY_FETCH": "1"}


class Repositories(Protocol):
    """What this route needs of an attempt's desk."""

    @property
    def mirror(self) -> Path | None:
        """The bare mirror; None when the attempt has no repository to read."""

    @property
    def quarantine(self) -> Path:
        """The bare repository that takes its pushes."""

    @property
    def terms(self) -> Terms:
        """Which other repositories it may fetch, and whether it may move LFS objects."""


class GitRoute:
    """Serves the git requests of all attempts of this host."""

    def __init__(self, *, max_push_bytes: int, timeout: float = TIMEOUT, lfs: LfsRoute | None = None) -> None:
        """Take pushes of up to ``max_push_bytes``; end a request after ``timeout`` seconds.

        ``lfs`` serves the LFS objects of attempts whose terms let them have some.
        """
        self._max_push_bytes = max_push_bytes
        self._lfs = lfs
        self._timeout = timeout
        self._running: Counter[Path] = Counter()

    async def serve(self, request: web.Request, desk: Repositories, tail: str) -> web.StreamResponse:
        """Answer one request of the attempt at ``desk``; ``tail`` is what follows ``/git/`` in its path.

        404 for any repository and service but the two, 507 when the quarantine is full, 503 when the attempt
        has too many requests running, 413 and 504 for a request over its limits.
        """
        name, slash, rest = tail.partition(".git/")
        own = tail.startswith(REPOSITORY)
        if slash and rest.startswith(LFS):
            return await self._serve_lfs(request, desk, "" if own else name, rest.removeprefix(LFS))
        service = git_service(request, rest) if slash else None
        # git reads the last of two "service" parameters, others the first: there must be one
        if service is None or (request.method == "GET" and request.query_string != f"service={service}"):
            return _refusal(404, NOTHING)
        pushing = service == "git-receive-pack"
        if own:
            repository = desk.quarantine if pushing else desk.mirror
        elif pushing or (other := _submodule(desk, name)) is None or desk.mirror is None:
            return _refusal(404, NOTHING)
        else:
            repository = beside(desk.mirror, other.repo_id)
        if repository is None or not repository.exists():
            return _refusal(404, "This attempt has no such repository.")
        if self._running[desk.quarantine] >= MAX_AT_ONCE:
            return _refusal(503, "Too many git requests at once; wait for the others to end.")
        self._running[desk.quarantine] += 1
        try:
            room = self._max_push_bytes * quarantine.ROOM_FACTOR
            if pushing and await asyncio.to_thread(quarantine.size, repository) > room:
                return _refusal(507, f"This attempt has pushed more than {size_text(room)} in all.")
            return await serve_git(
                request,
                project_root=repository.parent,
                path_info=f"/{repository.name}/{rest}",
                env=_ENV | WARY if pushing else _ENV,
                config=_CONFIG,
                max_body=self._max_push_bytes + PUSH_MARGIN if pushing else MAX_FETCH_BODY,
                timeout=self._timeout,
            )
        finally:
            self._running[desk.quarantine] -= 1
            self._running += Counter()  # drops what is at zero

    async def _serve_lfs(
        self, request: web.Request, desk: Repositories, name: str, tail: str
    ) -> web.StreamResponse:
        """Answer for the attempt's own repository (no ``name``) or for that of a submodule, which is read only."""
        terms = desk.terms
        if self._lfs is None or not terms.lfs:
            return _refusal(404, "Git LFS is not on for this repository (`checkout: {lfs: true}`).")
        if name:
            other = _submodule(desk, name)
            if other is None:
                return _refusal(404, NOTHING)
            repository = LfsRepository(
                full_name=other.repository,
                repo_id=other.repo_id,
                installation_id=terms.installation_id,
                anonymous=other.anonymous,
            )
        else:
            repository = LfsRepository(
                full_name=terms.repository,
                repo_id=terms.repo_id,
                installation_id=terms.installation_id,
                staged=staged(desk.quarantine),
            )
        return await self._lfs.serve(request, repository, tail, attempt=str(desk.quarantine))


def _submodule(desk: Repositories, name: str) -> SubmoduleTerms | None:
    return next((one for one in desk.terms.submodules if one.repository == name), None)


def _refusal(status: int, text: str) -> web.Response:
    # git shows an answer's text to the user when it is plain text (remote-curl.c, show_http_message)
    return web.Response(status=status, text=text + "\n")
