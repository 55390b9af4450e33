"""The sandbox's Git LFS server: the batch API, and a store that knows nothing of GitHub's tokens.

https://github.com/git-lfs/git-lfs/blob/main/docs/api/batch.md. As on GitHub, objects lie behind addresses of their own:
what opens those is in the batch API's answer, and whoever shows the App's token there is refused.
"""

from __future__ import annotations

import hashlib
import hmac
import os
import secrets
import tempfile
from contextlib import suppress
from pathlib import Path
from typing import Any

import orjson
from aiohttp import web
from pydantic import ValidationError

from bot.lfs import MEDIA_TYPE, BatchRequest, Pointer, valid_oid
from bot.sandbox.github import GitHub
from bot.sandbox.state import Repository

MAX_OBJECT = 2 * 2**30
"""Bytes of one object: GitHub's limit for free accounts."""

_CHUNK = 1 << 18


class LfsServer:
    """Serves the objects of all repositories.

    Args:
        github: whose repositories they are.
    """

    def __init__(self, github: GitHub):
        self._github = github
        self._key = secrets.token_bytes(32)

    def path(self, repository: Repository, oid: str) -> Path:
        """Where an object lies when it is there."""
        return self._github.git(repository).path / "lfs" / "objects" / oid

    def add(self, repository: Repository, content: bytes) -> Pointer:
        """Put an object into a repository's store."""
        pointer = Pointer(hashlib.sha256(content).hexdigest(), len(content))
        path = self.path(repository, pointer.oid)
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_bytes(content)
        return pointer

    async def batch(self, request: web.Request, repository: Repository, *, may_write: bool) -> web.Response:
        """Answer what a client who may read asks.

        Args:
            request: the request, authenticated already.
            repository: whose objects.
            may_write: whether the caller may bring objects.
        """
        try:
            asked = BatchRequest.model_validate_json(await request.read())
        except ValidationError as error:
            return _error(422, error.errors()[0]["msg"])
        if asked.operation == "upload" and not may_write:
            return _error(403, "You must have push access to upload LFS objects.")
        objects = [self._answer(repository, asked.operation, one.pointer) for one in asked.objects]
        return _json({"transfer": "basic", "objects": objects, "hash_algo": "sha256"})

    def _answer(self, repository: Repository, operation: str, pointer: Pointer) -> dict[str, Any]:
        answer: dict[str, Any] = {"oid": pointer.oid, "size": pointer.size}
        there = self.path(repository, pointer.oid).exists()
        store = f"{self._github.base_url}/_lfs/{repository.id}/{pointer.oid}"

        def action(name: str) -> dict[str, Any]:
            proof = self._proof(name, repository, pointer.oid)
            return {"href": f"{store}/{name}", "header": {"X-Proof": proof}, "expires_in": 3600}

        if operation == "download" and not there:
            answer["error"] = {
                "code": 404,
                "message": "Object does not exist on the server or you lack access",
            }
        elif operation == "download":
            answer["actions"] = {"download": action("download")}
        elif not there:
            answer["actions"] = {"upload": action("upload"), "verify": action("verify")}
        return answer

    def _proof(self, action: str, repository: Repository, oid: str) -> str:
        return hmac.new(self._key, f"{action} {repository.id} {oid}".encode(), "sha256").hexdigest()

    async def store(self, request: web.Request) -> web.StreamResponse:
        """Give, take or confirm an object; the proof in the headers says who may."""
        repository = self._github.world.repositories.get(int(request.match_info["repository"]))
        oid, name = request.match_info["oid"], request.match_info["action"]
        if repository is None or not valid_oid(oid):
            return _error(404, "Not found")
        proof = self._proof(name, repository, oid)
        if (
            not hmac.compare_digest(proof, request.headers.get("X-Proof", ""))
            or "Authorization" in request.headers
        ):
            return _error(403, "The address is not signed, or a token was sent to where none belongs.")
        path = self.path(repository, oid)
        match (request.method, name):
            case ("GET", "download"):
                return web.FileResponse(path) if path.exists() else _error(404, "Not found")
            case ("PUT", "upload"):
                return await self._take(request, path, oid)
            case ("POST", "verify"):
                body = orjson.loads(await request.read())
                fits = path.exists() and path.stat().st_size == body.get("size") and body.get("oid") == oid
                return _json({}) if fits else _error(404, "The object was not uploaded")
        return _error(405, "Not for this address")

    async def _take(self, request: web.Request, path: Path, oid: str) -> web.Response:
        if request.content_length is None:
            return _error(411, "Content-Length is missing")  # as stores behind signed addresses say
        path.parent.mkdir(parents=True, exist_ok=True)
        digest = hashlib.sha256()
        handle, incoming = tempfile.mkstemp(dir=path.parent)
        try:
            with os.fdopen(handle, "wb") as file:
                async for chunk in request.content.iter_chunked(_CHUNK):
                    digest.update(chunk)
                    file.write(chunk)
                    if file.tell() > MAX_OBJECT:
                        return _error(413, "The object is too large")
            if digest.hexdigest() != oid:
                return _error(400, "The content is not what the address says")
            Path(incoming).rename(path)
        finally:
            with suppress(FileNotFoundError):
                Path(incoming).unlink()
        return web.Response(status=200)


def _json(body: dict[str, Any]) -> web.Response:
    return web.Response(body=orjson.dumps(body), content_type=MEDIA_TYPE)


def _error(status: int, message: str) -> web.Response:
    return web.Response(status=status, body=orjson.dumps({"message": message}), content_type=MEDIA_TYPE)
