"""The gateway's ``/git/repository.git/…``: an attempt fetches from its mirror and pushes into its quarantine.

Both are real repositories served by ``git http-backend``; which of the two, and that there are no others, is
decided here by the service that is asked for. What may be pushed is decided by the quarantine's own
configuration (``runners/quarantine.py``), what is done with it by the checks before publishing.
"""

from __future__ import annotations

import asyncio
from collections import Counter
from pathlib import Path
from typing import Protocol

from aiohttp import web

from bot.changes import size_text
from bot.githttp import git_service, serve_git
from runners import quarantine
from runners.git import WARY

REPOSITORY = "repository.git/"

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


class GitRoute:
    """Serves the git requests of all attempts of this host."""

    def __init__(self, *, max_push_bytes: int, timeout: float = TIMEOUT) -> None:
        """Take pushes of up to ``max_push_bytes``; end a request after ``timeout`` seconds."""
        self._max_push_bytes = max_push_bytes
        self._timeout = timeout
        self._running: Counter[Path] = Counter()

    async def serve(self, request: web.Request, desk: Repositories, tail: str) -> web.StreamResponse:
        """Answer one request of the attempt at ``desk``; ``tail`` is what follows ``/git/`` in its path.

        404 for any repository and service but the two, 507 when the quarantine is full, 503 when the attempt
        has too many requests running, 413 and 504 for a request over its limits.
        """
        service = git_service(request, tail.removeprefix(REPOSITORY)) if tail.startswith(REPOSITORY) else None
        # git reads the last of two "service" parameters, others the first: there must be one
        if service is None or (request.method == "GET" and request.query_string != f"service={service}"):
            return _refusal(404, "Only fetch and push of repository.git are served here.")
        pushing = service == "git-receive-pack"
        repository = desk.quarantine if pushing else desk.mirror
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
                path_info=f"/{repository.name}/{tail.removeprefix(REPOSITORY)}",
                env=_ENV | WARY if pushing else _ENV,
                config=_CONFIG,
                max_body=self._max_push_bytes + PUSH_MARGIN if pushing else MAX_FETCH_BODY,
                timeout=self._timeout,
            )
        finally:
            self._running[desk.quarantine] -= 1
            self._running += Counter()  # drops what is at zero


def _refusal(status: int, text: str) -> web.Response:
    # git shows an answer's text to the user when it is plain text (remote-curl.c, show_http_message)
    return web.Response(status=status, text=text + "\n")
