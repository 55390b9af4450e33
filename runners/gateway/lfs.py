"""The gateway's Git LFS server: ``/git/<repository>.git/info/lfs/…`` of one attempt.

Downloads come from GitHub through a cache of this host, checked by their SHA-256; the container never learns where they
lie or with which token they were fetched. Uploads stay beside the attempt's quarantine until its change is published.
https://github.com/git-lfs/git-lfs/blob/main/docs/api/batch.md and …/basic-transfers.md
"""

from __future__ import annotations

import asyncio
import re
from collections import Counter, OrderedDict
from collections.abc import AsyncIterator, Awaitable, Callable, Mapping, Sequence
from contextlib import asynccontextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any
from weakref import WeakValueDictionary

import structlog
from aiohttp import web
from pydantic import ValidationError

from bot.changes import size_text
from bot.errors import ConductorError
from bot.lfs import MEDIA_TYPE, Action, BatchRequest, Pointer, valid_oid
from runners.lfs_remote import LfsRemote
from runners.lfs_store import ObjectCache, ObjectFolder, ObjectRefused

log = structlog.get_logger(__name__)

#: Bytes of a question about objects.
MAX_BODY = 1 << 20
#: Seconds for one object on its way in or out.
TIMEOUT = 1800.0
#: Objects of one attempt that may move at once.
MAX_AT_ONCE = 8
#: Addresses that are remembered between the question and the download.
MAX_LINKS = 10_000
#: Besides a missing object, what GitHub may say about one of them without that we hide it.
_SAID = {403, 404, 410, 422}
_SIZE = re.compile(r"\d{1,18}")
_CHUNK = 1 << 18


@dataclass(frozen=True, kw_only=True)
class LfsRepository:
    """Whose objects are asked for."""

    full_name: str
    repo_id: int
    installation_id: int
    anonymous: bool = False  # asked without a token
    staged: ObjectFolder | None = None  # where new ones go; None: it is read only


#: A token that may read the contents of one repository: (installation id, repository id).
ReadToken = Callable[[int, int], Awaitable[str]]

_Key = tuple[int, int, str]  # installation, repository, object


class LfsRoute:
    """Serves the LFS requests of all attempts of this host."""

    def __init__(
        self,
        *,
        cache: ObjectCache,
        remote: LfsRemote,
        token: ReadToken,
        max_object_bytes: int,
        max_new_bytes: int,
        timeout: float = TIMEOUT,
    ) -> None:
        """Move objects of up to ``max_object_bytes``, and take new ones of ``max_new_bytes`` from one attempt."""
        self._cache = cache
        self._remote = remote
        self._token = token
        self._max_object = max_object_bytes
        self._max_new = max_new_bytes
        self._timeout = timeout
        self._links: OrderedDict[_Key, tuple[Pointer, Action]] = OrderedDict()
        self._moving: Counter[str] = Counter()
        self._coming: Counter[str] = Counter()  # bytes that an attempt has announced and not yet brought
        self._locks: WeakValueDictionary[_Key, asyncio.Lock] = WeakValueDictionary()

    async def serve(
        self, request: web.Request, repository: LfsRepository, tail: str, *, attempt: str
    ) -> web.StreamResponse:
        """Answer one request; ``tail`` is what follows ``info/lfs/``, ``attempt`` whose limits count.

        404 for everything but the batch API and objects (also for the lock API, which the client then leaves alone).
        """
        try:
            if tail == "objects/batch" and request.method == "POST":
                return await self._batch(request, repository)
            folder, _, oid = tail.rpartition("/")
            if folder == "objects" and valid_oid(oid) and request.method in ("GET", "PUT"):
                async with self._slot(attempt):
                    if request.method == "GET":
                        return await self._give(request, repository, oid)
                    return await self._take(request, repository, oid, attempt)
        except _Busy:
            return _error(429, "Too many LFS objects at once; wait for the others to end.")
        except ConductorError as error:  # GitHub, the object or the disk: in words that may be shown
            status = getattr(error, "status", None)
            log.warning("lfs_refused", attempt=attempt, repository=repository.full_name, error=str(error))
            return _error(
                status if status in _SAID else 422 if isinstance(error, ObjectRefused) else 502, str(error)
            )
        except TimeoutError:
            return _error(504, f"The object did not come within {self._timeout:g} seconds.")
        return _error(404, "Only the batch API and objects of Git LFS are served here.")

    # --- the question

    async def _batch(self, request: web.Request, repository: LfsRepository) -> web.Response:
        try:
            asked = BatchRequest.model_validate_json(await _body(request))
        except ValidationError as error:
            return _error(422, f"This is no request of the batch API: {error.errors()[0]['msg']}.")
        if asked.operation == "upload" and repository.staged is None:
            return _error(403, "This repository is read only here.")
        pointers = [one.pointer for one in asked.objects]
        answer = self._uploads if asked.operation == "upload" else self._downloads
        objects = await answer(request, repository, pointers)
        return web.json_response(
            {"transfer": "basic", "objects": objects, "hash_algo": "sha256"}, content_type=MEDIA_TYPE
        )

    async def _uploads(
        self, request: web.Request, repository: LfsRepository, pointers: Sequence[Pointer]
    ) -> list[dict[str, Any]]:
        answers = []
        for pointer in pointers:
            answer: dict[str, Any] = {"oid": pointer.oid, "size": pointer.size}
            if pointer.size > self._max_object:
                answer["error"] = self._too_large(pointer)
            elif self._here(repository, pointer.oid) is None:
                answer["actions"] = {"upload": _action(request, pointer)}
            answers.append(answer)
        return answers

    async def _downloads(
        self, request: web.Request, repository: LfsRepository, pointers: Sequence[Pointer]
    ) -> list[dict[str, Any]]:
        small = [one for one in pointers if one.size <= self._max_object]
        wanted = [one for one in small if self._here(repository, one.oid) is None]
        missing = await self._find(repository, wanted) if wanted else {}
        answers = []
        for pointer in pointers:
            answer: dict[str, Any] = {"oid": pointer.oid, "size": pointer.size}
            if pointer.size > self._max_object:
                answer["error"] = self._too_large(pointer)
            elif pointer.oid in missing:
                answer["error"] = missing[pointer.oid]
            else:
                answer["authenticated"] = True
                answer["actions"] = {"download": _action(request, pointer)}
            answers.append(answer)
        return answers

    def _too_large(self, pointer: Pointer) -> dict[str, Any]:
        most = size_text(self._max_object)
        return {
            "code": 422,
            "message": f"The object has {size_text(pointer.size)}; at most {most} are moved here.",
        }

    async def _find(
        self, repository: LfsRepository, pointers: Sequence[Pointer]
    ) -> Mapping[str, dict[str, Any]]:
        """Ask GitHub where the objects are and remember it; returns what it says about those that it has not."""
        token = ""
        if not repository.anonymous:
            token = await self._token(repository.installation_id, repository.repo_id)
        answered = await self._remote.batch("download", repository.full_name, pointers, token=token)
        missing = {}
        for pointer in pointers:
            found = answered.get(pointer.oid)
            action = found.action("download") if found else None
            if action is not None:
                self._links[_key(repository, pointer.oid)] = (pointer, action)
                continue
            error = found.error if found else None
            code = error.code if error and error.code in _SAID else 404
            missing[pointer.oid] = {"code": code, "message": "GitHub does not have this object."}
        while len(self._links) > MAX_LINKS:
            self._links.popitem(last=False)
        return missing

    def _here(self, repository: LfsRepository, oid: str) -> Path | None:
        """The object's file, when this attempt brought it or it was fetched before."""
        found = repository.staged.find(oid) if repository.staged else None
        return found or self._cache.folder(repository.installation_id, repository.repo_id).find(oid)

    # --- objects

    async def _give(self, request: web.Request, repository: LfsRepository, oid: str) -> web.StreamResponse:
        path = self._here(repository, oid)
        if path is None:
            lock = self._locks.setdefault(_key(repository, oid), asyncio.Lock())
            async with lock, asyncio.timeout(self._timeout):
                path = self._here(repository, oid) or await self._fetch(request, repository, oid)
        if path is None:
            return _error(404, "GitHub does not have this object.")
        return web.FileResponse(path, headers={"Content-Type": "application/octet-stream"})

    async def _fetch(self, request: web.Request, repository: LfsRepository, oid: str) -> Path | None:
        key = _key(repository, oid)
        if key not in self._links:
            # we were restarted, or it was long ago: the address that the client has says the size
            size = request.query.get("size", "")
            if not _SIZE.fullmatch(size) or int(size) > self._max_object:
                return None
            await self._find(repository, [Pointer(oid, int(size))])
        # addresses end after a while: each is used once
        link = self._links.pop(key, None)
        if link is None:
            return None
        pointer, action = link
        folder = self._cache.folder(repository.installation_id, repository.repo_id)
        async with self._remote.download(action) as chunks:
            path = await folder.take(oid, pointer.size, chunks, limit=self._max_object)
        await self._cache.grown(pointer.size)
        return path

    async def _take(
        self, request: web.Request, repository: LfsRepository, oid: str, attempt: str
    ) -> web.Response:
        if repository.staged is None:
            return _error(403, "This repository is read only here.")
        length = request.content_length
        if length is None:
            return _error(411, "The object's Content-Length is missing.")
        room = self._max_new - await asyncio.to_thread(repository.staged.size) - self._coming[attempt]
        if length > min(room, self._max_object):
            said = f"at most {size_text(self._max_object)} each and {size_text(self._max_new)} in all"
            return _error(507, f"This attempt brings too many large files: {said} are taken.")
        self._coming[attempt] += length
        try:
            async with asyncio.timeout(self._timeout):
                await repository.staged.take(oid, length, request.content.iter_chunked(_CHUNK), limit=length)
        finally:
            self._coming[attempt] -= length
            self._coming += Counter()
        return web.Response(status=200)

    @asynccontextmanager
    async def _slot(self, attempt: str) -> AsyncIterator[None]:
        if self._moving[attempt] >= MAX_AT_ONCE:
            raise _Busy
        self._moving[attempt] += 1
        try:
            yield
        finally:
            self._moving[attempt] -= 1
            self._moving += Counter()  # drops what is at zero


def _key(repository: LfsRepository, oid: str) -> _Key:
    return (repository.installation_id, repository.repo_id, oid)


class _Busy(Exception):
    """The attempt has as many objects on the way as it may."""


def _action(request: web.Request, pointer: Pointer) -> dict[str, Any]:
    """Our own address of an object, as this client reaches us, with what it logged in with."""
    base = request.rel_url.raw_path.removesuffix("/batch")
    action: dict[str, Any] = {"href": f"http://{request.host}{base}/{pointer.oid}?size={pointer.size}"}
    if (login := request.headers.get("Authorization")) is not None:
        action["header"] = {"Authorization": login}
    return action


async def _body(request: web.Request) -> bytes:
    body = bytearray()
    async for chunk in request.content.iter_any():
        body += chunk
        if len(body) > MAX_BODY:
            raise web.HTTPRequestEntityTooLarge(MAX_BODY, len(body), text="The question is too long.")
    return bytes(body)


def _error(status: int, message: str) -> web.Response:
    return web.json_response({"message": message}, status=status, content_type=MEDIA_TYPE)
