"""Git's smart HTTP protocol over ``git http-backend``, as something an aiohttp handler can return.

The caller authenticates, decides which repository and service the request may reach, and names the environment for
the repository's hooks. See https://git-scm.com/docs/git-http-backend and https://git-scm.com/docs/http-protocol.
"""

from __future__ import annotations

import asyncio
import contextlib
import os
import signal
from collections.abc import Awaitable, Callable, Mapping
from pathlib import Path
from typing import TypeVar

import structlog
from aiohttp import web

from bot import child_process

log = structlog.get_logger(__name__)

_CHUNK = 1 << 16
_MAX_STDERR = 1 << 16
_LOOK_FOR_DISCONNECT = 1.0
T = TypeVar("T")


class _BodyTooLarge(Exception):
    """The request's body is over the caller's limit."""


def git_environment(config: Mapping[str, str] | None = None) -> dict[str, str]:
    """An environment in which git reads no configuration of this machine and never asks anybody anything.

    Args:
        config: configuration for this one process, such as ``{"receive.fsckObjects": "true"}``.
    """
    # the repositories are ours, although another user may own the files (a mounted volume)
    settings = {"safe.directory": "*", **(config or {})}
    environment = {
        "PATH": os.environ.get("PATH", os.defpath),
        "HOME": os.devnull,
        "LC_ALL": "C.UTF-8",
        "GIT_CONFIG_NOSYSTEM": "1",
        "GIT_CONFIG_GLOBAL": os.devnull,
        "GIT_TERMINAL_PROMPT": "0",
        "GIT_ASKPASS": "true",
        "GIT_CONFIG_COUNT": str(len(settings)),
    }
    for number, (key, value) in enumerate(settings.items()):
        environment[f"GIT_CONFIG_KEY_{number}"] = key
        environment[f"GIT_CONFIG_VALUE_{number}"] = value
    return environment


def git_service(request: web.Request, tail: str) -> str | None:
    """Which service a request is for: ``git-upload-pack`` (fetch), ``git-receive-pack`` (push), or None.

    Args:
        request: the request.
        tail: what follows the repository in its path, such as ``info/refs``.
    """
    services = ("git-upload-pack", "git-receive-pack")
    if request.method == "GET" and tail == "info/refs":
        service = request.query.get("service", "")
        return service if service in services else None
    return tail if request.method == "POST" and tail in services else None


async def serve_git(
    request: web.Request,
    *,
    project_root: Path,
    path_info: str,
    env: Mapping[str, str] | None = None,
    config: Mapping[str, str] | None = None,
    max_body: int | None = None,
    timeout: float = 600,
    before_end: Callable[[], Awaitable[None]] | None = None,
) -> web.StreamResponse:
    """Answer one request of a git client, streaming both ways.

    The child and everything that it started are killed when the client goes away, when the time is up and when the
    body is too large.

    Args:
        request: the request; aiohttp has already undone a ``Content-Encoding: gzip``.
        project_root: folder that holds the bare repositories.
        path_info: path below it, beginning with a slash: ``/acme/hello.git/info/refs``.
        env: more environment for git and the repository's hooks. ``REMOTE_USER`` here allows pushes.
        config: git configuration for this request.
        max_body: bytes that the (unpacked) body may have; None for no limit.
        timeout: seconds that the whole exchange may take.
        before_end: awaited when git has said everything and before the client learns that it has; not called
            when the exchange fails.

    Returns:
        The answer, already sent; or 413, 500 or 504 when git gave none.
    """
    process = await child_process.start(
        "git",
        "http-backend",
        env=git_environment({"http.getanyfile": "false", **(config or {})})
        | _cgi(request, project_root, path_info)
        | dict(env or {}),
        stdin=asyncio.subprocess.PIPE,
        stdout=asyncio.subprocess.PIPE,
        stderr=asyncio.subprocess.PIPE,
    )
    assert process.stderr is not None
    complaints = asyncio.create_task(_drain(process.stderr))
    feeder = asyncio.create_task(_feed(request, process, max_body))
    response = web.StreamResponse()
    try:
        async with asyncio.timeout(timeout):
            await _relay(request, response, process, feeder)
            await process.wait()
            if before_end is not None:
                await before_end()
            await response.write_eof()
            return response
    except _BodyTooLarge:
        return _cut(request, response) or web.Response(
            status=413, text=f"The push is over {max_body} bytes.\n"
        )
    except TimeoutError:
        text = f"git took longer than {timeout:g} seconds.\n"
        return _cut(request, response) or web.Response(status=504, text=text)
    except asyncio.IncompleteReadError:
        return web.Response(status=500, text="git http-backend gave no answer.\n")
    except ConnectionError:
        log.info("git_client_gone", path=path_info)
        return _cut(request, response) or web.Response(status=499)
    finally:
        # the whole group, in any case: a hook may have left something behind
        child_process.kill_group(process)
        feeder.cancel()
        await asyncio.gather(feeder, process.wait(), return_exceptions=True)
        stderr = await complaints
        if process.returncode not in (0, -signal.SIGKILL):
            log.warning("git_failed", path=path_info, code=process.returncode, stderr=stderr)


def _cgi(request: web.Request, project_root: Path, path_info: str) -> dict[str, str]:
    # CONTENT_LENGTH stays out, as aiohttp may have unpacked the body; git then reads to the end of its input
    return {
        "GIT_PROJECT_ROOT": str(project_root),
        "GIT_HTTP_EXPORT_ALL": "1",
        "PATH_INFO": path_info,
        "REQUEST_METHOD": request.method,
        "QUERY_STRING": request.rel_url.raw_query_string,
        "CONTENT_TYPE": request.headers.get("Content-Type", ""),
        "HTTP_CONTENT_ENCODING": "",
        "GIT_PROTOCOL": request.headers.get("Git-Protocol", ""),
        "REMOTE_ADDR": request.remote or "",
    }


async def _feed(request: web.Request, process: asyncio.subprocess.Process, max_body: int | None) -> None:
    assert process.stdin is not None
    received = 0
    try:
        async for chunk in request.content.iter_chunked(_CHUNK):
            received += len(chunk)
            if max_body is not None and received > max_body:
                raise _BodyTooLarge
            process.stdin.write(chunk)
            # git may refuse early and stop reading; what it says then is in its answer
            with contextlib.suppress(BrokenPipeError, ConnectionResetError):
                await process.stdin.drain()
    except _BodyTooLarge:
        raise
    except Exception as error:
        raise ConnectionResetError("the client went away") from error
    finally:
        process.stdin.close()


async def _drain(stream: asyncio.StreamReader) -> str:
    kept = b""
    while chunk := await stream.read(_CHUNK):
        kept = (kept + chunk)[-_MAX_STDERR:]
    return kept.decode(errors="replace").strip()


async def _relay(
    request: web.Request,
    response: web.StreamResponse,
    process: asyncio.subprocess.Process,
    feeder: asyncio.Task[None],
) -> None:
    assert process.stdout is not None
    head = await _watched(process.stdout.readuntil(b"\r\n\r\n"), request, feeder)
    headers = dict(line.split(": ", 1) for line in head.decode("latin-1").split("\r\n") if line)
    status, _, reason = headers.pop("Status", "200 OK").partition(" ")
    # git writes its head before it has read the body: begin to answer when there is something to say
    chunk = await _watched(process.stdout.read(_CHUNK), request, feeder)
    response.set_status(int(status), reason or None)
    response.headers.update(headers)
    await response.prepare(request)
    while chunk:
        await response.write(chunk)
        chunk = await _watched(process.stdout.read(_CHUNK), request, feeder)


async def _watched(reading: Awaitable[T], request: web.Request, feeder: asyncio.Task[None]) -> T:
    """Read from git, but give up when the body fails or the client is gone."""
    task = asyncio.ensure_future(reading)
    try:
        while not task.done():
            pending = {task} if feeder.done() else {task, feeder}
            await asyncio.wait(pending, timeout=_LOOK_FOR_DISCONNECT, return_when=asyncio.FIRST_COMPLETED)
            if feeder.done():
                feeder.result()
            if request.transport is None or request.transport.is_closing():
                raise ConnectionResetError("the client went away")
        return task.result()
    finally:
        task.cancel()


def _cut(request: web.Request, response: web.StreamResponse) -> web.StreamResponse | None:
    """When part of the answer is out already, drop the connection so that the client sees a failure."""
    if not response.prepared:
        return None
    if request.transport is not None:
        request.transport.abort()
    return response
