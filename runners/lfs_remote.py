"""GitHub's Git LFS server, as this host speaks to it: ask for many objects at once, fetch, bring and confirm them.

https://github.com/git-lfs/git-lfs/blob/main/docs/api/batch.md. Objects lie on other hosts than the repository; where,
and with which headers, is GitHub's answer: the App's token goes to GitHub alone.
"""

from __future__ import annotations

import asyncio
import base64
import json
from collections.abc import AsyncIterator, Mapping, Sequence
from contextlib import asynccontextmanager, suppress
from http import HTTPStatus
from pathlib import Path
from typing import Any, Literal
from urllib.parse import urlsplit

import aiohttp
from pydantic import ValidationError

from bot.errors import ConductorError
from bot.lfs import MEDIA_TYPE, Action, AnsweredObject, BatchAnswer, Pointer

#: Objects in one request, as the client does it.
BATCH = 100
#: Seconds: for an answer without content, for an object as a whole, and without a byte of it.
CALL_TIMEOUT, TRANSFER_TIMEOUT, SILENCE_TIMEOUT = 60.0, 1800.0, 60.0
RETRY_DELAYS = (1.0, 4.0)  # seconds
_MAX_ANSWER = 4 << 20
_CHUNK = 1 << 18


class LfsError(ConductorError):
    """GitHub's LFS server does not give or take something. ``status`` is its answer's, None when there was none."""

    def __init__(self, message: str, hint: str = "", *, status: int | None = None) -> None:
        super().__init__(message, hint)
        self.status = status

    @property
    def passing(self) -> bool:
        """Whether it may work later."""
        return self.status is None or self.status == HTTPStatus.TOO_MANY_REQUESTS or self.status >= 500


class LfsRemote:
    """One GitHub, at ``github_url``. Close it at the end."""

    def __init__(self, github_url: str, *, retry_delays: Sequence[float] = RETRY_DELAYS) -> None:
        self._github_url = github_url
        self._delays = (*retry_delays, None)
        self._session: aiohttp.ClientSession | None = None

    async def close(self) -> None:
        """Close the connections."""
        if self._session is not None:
            await self._session.close()
            self._session = None

    async def batch(
        self,
        operation: Literal["download", "upload"],
        repository: str,
        objects: Sequence[Pointer],
        *,
        token: str,
    ) -> dict[str, AnsweredObject]:
        """What GitHub says about ``objects`` of ``repository`` (``owner/name``), by their ids. Raises LfsError."""
        found: dict[str, AnsweredObject] = {}
        headers = {"Accept": MEDIA_TYPE, "Content-Type": MEDIA_TYPE, **_authorization(token)}
        for start in range(0, len(objects), BATCH):
            wanted = [{"oid": one.oid, "size": one.size} for one in objects[start : start + BATCH]]
            body = {"operation": operation, "transfers": ["basic"], "objects": wanted, "hash_algo": "sha256"}
            url = f"{self._github_url}/{repository}.git/info/lfs/objects/batch"
            answer = await self._call("POST", url, headers, json.dumps(body).encode(), "list its LFS objects")
            try:
                message = BatchAnswer.model_validate_json(answer)
            except ValidationError as error:
                raise LfsError("GitHub's answer about LFS objects is none of the batch API.") from error
            if message.transfer != "basic":
                raise LfsError("GitHub wants a way of moving LFS objects that nobody asked for.")
            found |= {one.oid: one for one in message.objects}
        return found

    @asynccontextmanager
    async def download(self, action: Action) -> AsyncIterator[AsyncIterator[bytes]]:
        """The content of an object, which nobody has checked yet. Raises LfsError, also from the iterator."""
        doing = "give an LFS object"
        try:
            async with self._request("GET", self._checked(action), _headers(action)) as answer:
                if answer.status != HTTPStatus.OK:
                    raise _refused(answer.status, await _read(answer), doing)

                async def chunks() -> AsyncIterator[bytes]:
                    try:
                        async for chunk in answer.content.iter_chunked(_CHUNK):
                            yield chunk
                    except (aiohttp.ClientError, TimeoutError, OSError) as error:
                        raise _silent(error, doing) from error

                yield chunks()
        except (aiohttp.ClientError, TimeoutError) as error:
            raise _silent(error, doing) from error

    async def upload(self, answered: AnsweredObject, source: Path) -> None:
        """Bring an object that GitHub asked for, and confirm it where it wants that. Raises LfsError."""
        action = answered.action("upload")
        if action is None:
            return
        doing = "take an LFS object"
        headers = {"Content-Type": "application/octet-stream", **_headers(action)}
        await self._call("PUT", self._checked(action), headers, source, doing)
        if verify := answered.action("verify"):
            body = json.dumps({"oid": answered.oid, "size": source.stat().st_size}).encode()
            headers = {"Accept": MEDIA_TYPE, "Content-Type": MEDIA_TYPE, **_headers(verify)}
            await self._call("POST", self._checked(verify), headers, body, "confirm an LFS object")

    async def _call(
        self, method: str, url: str, headers: Mapping[str, str], body: bytes | Path, doing: str
    ) -> bytes:
        """One request, repeated after a while when that may help; all of them may be repeated."""
        for delay in self._delays:
            try:
                return await self._try(method, url, headers, body, doing)
            except LfsError as error:
                if delay is None or not error.passing:
                    raise
                await asyncio.sleep(delay)
        raise AssertionError("the last delay is None")

    async def _try(
        self, method: str, url: str, headers: Mapping[str, str], body: bytes | Path, doing: str
    ) -> bytes:
        try:
            if isinstance(body, bytes):
                async with (
                    asyncio.timeout(CALL_TIMEOUT),
                    self._request(method, url, headers, data=body) as answer,
                ):
                    return await _accepted(answer, doing)
            with body.open("rb") as file:
                # a length and no chunks: storage behind signed URLs takes nothing else
                sized = {**headers, "Content-Length": str(body.stat().st_size)}
                async with self._request(method, url, sized, data=file) as answer:
                    return await _accepted(answer, doing)
        except (aiohttp.ClientError, TimeoutError, OSError) as error:
            raise _silent(error, doing) from error

    def _request(
        self, method: str, url: str, headers: Mapping[str, str], **options: Any
    ) -> Any:  # aiohttp's context manager
        if self._session is None:
            self._session = aiohttp.ClientSession(
                cookie_jar=aiohttp.DummyCookieJar(),
                timeout=aiohttp.ClientTimeout(total=TRANSFER_TIMEOUT, connect=30, sock_read=SILENCE_TIMEOUT),
                trust_env=True,  # an operator's HTTPS_PROXY
                auto_decompress=False,  # what is hashed is what is there
            )
        # a redirect would carry the headers to somebody whom GitHub did not name
        return self._session.request(method, url, headers=headers, allow_redirects=False, **options)

    def _checked(self, action: Action) -> str:
        parts = urlsplit(action.href)
        plain = parts.scheme == "http" and urlsplit(self._github_url).scheme == "http"
        if not parts.hostname or (parts.scheme != "https" and not plain):
            raise LfsError("GitHub names an address for an LFS object that is not https://.")
        return action.href


def _authorization(token: str) -> dict[str, str]:
    if not token:
        return {}
    return {"Authorization": "Basic " + base64.b64encode(f"x-access-token:{token}".encode()).decode()}


def _headers(action: Action) -> dict[str, str]:
    """The action's headers, without those that frame the request."""
    framing = ("content-length", "transfer-encoding", "host", "connection")
    return {
        name: value
        for name, value in action.header.items()
        if name.lower() not in framing and not any(character in name + value for character in "\r\n\0")
    }


async def _read(answer: aiohttp.ClientResponse) -> bytes:
    return await answer.content.read(_MAX_ANSWER)


async def _accepted(answer: aiohttp.ClientResponse, doing: str) -> bytes:
    body = b""
    while chunk := await answer.content.read(_MAX_ANSWER - len(body) + 1):
        body += chunk
        if len(body) > _MAX_ANSWER:
            raise LfsError("GitHub's answer about LFS objects is too long.")
    if not 200 <= answer.status < 300:
        raise _refused(answer.status, body, doing)
    return body


def _refused(status: int, body: bytes, doing: str) -> LfsError:
    said = ""
    with suppress(ValueError, KeyError, TypeError):
        said = str(json.loads(body)["message"])[:300]
    words = f" It says: {' '.join(said.split())}" if said else ""
    hint = ""
    if status in (HTTPStatus.UNAUTHORIZED, HTTPStatus.FORBIDDEN):
        hint = "Check that the App is installed on the repository and that its LFS quota is not used up."
    elif status == HTTPStatus.INSUFFICIENT_STORAGE:
        hint = "The repository's owner has used up the storage or bandwidth of Git LFS."
    return LfsError(f"GitHub does not {doing} (status {status}).{words}", hint, status=status)


def _silent(error: BaseException, doing: str) -> LfsError:
    return LfsError(f"GitHub does not {doing}: {str(error)[:200] or type(error).__name__}.")
