"""The gateway's server: one Unix socket per attempt, behind it that attempt's desk and the routes of the others.

Who speaks is decided by the socket and the token alone, never by an argument (the protocol: docs/architecture.md).
"""

from __future__ import annotations

import asyncio
import base64
import binascii
import errno
import os
import socket
import stat
from collections.abc import Awaitable, Callable, Iterator, Mapping
from contextlib import suppress
from pathlib import Path
from typing import cast
from urllib.parse import unquote

import structlog
from aiohttp import web
from aiohttp.typedefs import Handler

from bot.errors import InfrastructureError
from runners import shim
from runners.gateway import bodies
from runners.gateway.desk import BadMessage, Desk
from runners.gateway.egress import CHUNK, Egress

#: Serves everything below one prefix; the third argument is the rest of the path, as it was sent, without a leading
#: slash. The request is authenticated already. ``request.content`` is the body, decompressed where it came with a
#: Content-Encoding; what it may be as a whole is the route's own affair (``request.read()`` is limited to MAX_READ).
GatewayRoute = Callable[[web.Request, Desk, str], Awaitable[web.StreamResponse]]

LONG_POLL = 25.0  # seconds; the shim waits for 40
MAX_EVENTS_BODY = (
    16 << 20
)  # 500 lines are at most 512 KiB, but one line of 1 MiB may be six times that as JSON
MAX_OUTCOME_BODY = 64 * 1024
MAX_SESSION_BODY = 2 * shim.MAX_SESSION  # the archive of many small files is larger than they are
MAX_READ = 64 << 20
MAX_CONNECTIONS = 256  # of one attempt: its container must not use up the worker's descriptors
FIRST_SECONDS = 60.0  # for a connection's first bytes
SESSION_SECONDS = 300.0
CLOSE_SECONDS = 5.0
SOCKET = "gateway.sock"

log = structlog.get_logger(__name__)


class Gateway:
    """Serves the attempts of this host.

    ``routes`` maps a first path segment (``git``, ``llm``) to who serves it; ``egress`` takes what wants out, and by
    default lets nothing through that is not on the attempt's terms.
    """

    def __init__(
        self,
        routes: Mapping[str, GatewayRoute],
        *,
        egress: Egress | None = None,
        long_poll: float = LONG_POLL,
    ) -> None:
        self._routes = dict(routes)
        self._egress = egress or Egress()
        self._long_poll = long_poll
        self._doors: dict[str, _Door] = {}

    async def open(self, desk: Desk) -> Path:
        """Serve ``desk`` on its socket and return the socket's path; again changes nothing.

        Raises InfrastructureError when the socket cannot be made or another process serves it.
        """
        door = self._doors.get(desk.attempt_id)
        if door is None:
            door = self._doors[desk.attempt_id] = _Door(desk, self._routes, self._egress, self._long_poll)
            try:
                await door.open()
            except BaseException:
                del self._doors[desk.attempt_id]
                raise
        return desk.socket_dir / SOCKET

    async def close(self, attempt_id: str) -> None:
        """Stop serving an attempt: open calls get a few seconds to end. The desk stays open."""
        door = self._doors.pop(attempt_id, None)
        if door is not None:
            await door.close()

    async def aclose(self) -> None:
        """Stop serving all."""
        await asyncio.gather(*(self.close(attempt_id) for attempt_id in list(self._doors)))
        self._egress.close()


class _Door:
    """One attempt's socket."""

    def __init__(
        self, desk: Desk, routes: Mapping[str, GatewayRoute], egress: Egress, long_poll: float
    ) -> None:
        self._desk = desk
        self._routes = routes
        self._egress = egress
        self._first: set[_First] = set()
        self._tunnels: set[asyncio.Task[None]] = set()
        self._long_poll = long_poll
        self._closing = asyncio.Event()
        self._session = asyncio.Lock()
        self._server: asyncio.AbstractServer | None = None
        app = web.Application(client_max_size=MAX_READ, middlewares=[self._sort])
        app.router.add_route("*", "/{path:.*}", self._serve)
        self._runner = web.AppRunner(
            app, access_log=None, handle_signals=False, shutdown_timeout=CLOSE_SECONDS
        )

    async def open(self) -> None:
        listener = _listen(self._desk.socket_dir)
        try:
            await self._runner.setup()
            self._server = await asyncio.get_running_loop().create_unix_server(
                self._connection, sock=listener
            )
        except BaseException:
            listener.close()
            await self._runner.cleanup()
            raise

    async def close(self) -> None:
        self._closing.set()  # ends the long polls
        if self._server is not None:
            self._server.close()
        for waiting in list(self._first):
            waiting.hang_up()
        for tunnel in self._tunnels:
            tunnel.cancel()
        await asyncio.gather(*self._tunnels, return_exceptions=True)
        await self._runner.cleanup()
        with suppress(FileNotFoundError):
            (self._desk.socket_dir / SOCKET).unlink()

    def _connection(self) -> asyncio.Protocol:
        server = self._runner.server
        known = len(self._first) + len(self._tunnels) + len(server.connections if server else ())
        if server is None or self._closing.is_set() or known >= MAX_CONNECTIONS:
            return _Hangup()
        return _First(self._first, self._tunnel, server)

    def _tunnel(self, transport: asyncio.Transport, begun: bytes) -> None:
        """Hand a connection that begins with a CONNECT to the egress proxy."""
        loop = asyncio.get_running_loop()
        reader = asyncio.StreamReader(limit=CHUNK, loop=loop)
        protocol = asyncio.StreamReaderProtocol(reader, loop=loop)
        transport.set_protocol(protocol)
        protocol.connection_made(transport)
        reader.feed_data(begun)
        writer = asyncio.StreamWriter(transport, protocol, reader, loop)
        task = loop.create_task(self._egress.tunnel(reader, writer, self._desk))
        self._tunnels.add(task)
        task.add_done_callback(self._tunnel_ended)

    def _tunnel_ended(self, task: asyncio.Task[None]) -> None:
        self._tunnels.discard(task)
        if not task.cancelled() and (error := task.exception()) is not None:
            log.error("egress.failed", attempt=self._desk.attempt_id, exc_info=error)

    # --- requests ---

    @web.middleware
    async def _sort(self, request: web.Request, handler: Handler) -> web.StreamResponse:
        """An absolute URI wants out, whatever its host is. A CONNECT is only taken as a connection's first request."""
        if request.raw_path.startswith("/"):
            return await handler(request)
        return await self._egress.forward(request, self._desk)

    async def _serve(self, request: web.Request) -> web.StreamResponse:
        desk = self._desk
        if not any(desk.accepts(token) for token in _tokens(request)):
            log.warning("gateway.refused", attempt=desk.attempt_id, method=request.method)
            return _error(401, "The token is missing or is not this attempt's.", challenge=True)
        desk.heard()
        path = request.rel_url.raw_path
        if any(
            part in (".", "..") or "/" in part or "\\" in part or "\0" in part for part in _segments(path)
        ):
            return _error(400, "The path is not a plain one.")
        first, _, tail = path.lstrip("/").partition("/")
        try:
            route = self._routes.get(first)
            if route is not None:
                return await route(request, desk, tail)
            return await self._own(request, first, tail)
        except web.HTTPRequestEntityTooLarge as error:
            return _error(413, error.text or "The body is too large.")
        except web.HTTPException:
            raise
        except BadMessage as error:
            return _error(400, str(error))
        except TimeoutError:
            return _error(408, "The request's body did not arrive in time.")
        except (ConnectionError, asyncio.CancelledError):
            raise  # the other side left, or we are closing
        except Exception:
            # the edge to a hostile peer: it learns nothing about us, and we go on
            log.exception("gateway.failed", attempt=desk.attempt_id, method=request.method, part=first)
            return _error(500, "The gateway failed. Try again.")

    async def _own(self, request: web.Request, first: str, tail: str) -> web.StreamResponse:
        match (request.method, first, tail):
            case ("GET", "turns", "next"):
                return await self._next_turn(request)
            case ("POST", "turns", rest) if rest.endswith("/outcome"):
                number = rest.removesuffix("/outcome")
                if not (number.isascii() and number.isdigit() and len(number) < 7):
                    return _error(404, "There is no such turn.")
                self._desk.take_outcome(int(number), await bodies.whole(request, MAX_OUTCOME_BODY))
                return web.json_response({})
            case ("POST", "events", ""):
                acked = self._desk.take_events(await bodies.whole(request, MAX_EVENTS_BODY))
                return web.json_response({"acked": acked})
            case ("POST", "heartbeat", ""):
                return web.Response(status=204)
            case ("GET", "session", ""):
                if not self._desk.session_tar.is_file():
                    return web.Response(status=204)
                return web.FileResponse(self._desk.session_tar)
            case ("GET", "work", ""):
                if not self._desk.work.is_file():
                    return web.Response(status=204)
                return web.FileResponse(self._desk.work)
            case ("PUT", "session", ""):
                return await self._take_session(request)
            case (_, "events" | "heartbeat" | "session" | "work", "") | (_, "turns", "next"):
                return _error(405, f"{request.method} is not for this path.")
            case _:
                return _error(404, "There is nothing here. The gateway's paths are in docs/architecture.md.")

    async def _next_turn(self, request: web.Request) -> web.StreamResponse:
        after = request.query.get("after", "")
        if not (after.isascii() and after.isdigit() and len(after) < 7):
            return _error(400, "after is the number of the last turn that was done, or 0.")
        waiting = asyncio.ensure_future(self._desk.next_turn(int(after), self._long_poll))
        closing = asyncio.ensure_future(self._closing.wait())
        try:
            await asyncio.wait({waiting, closing}, return_when=asyncio.FIRST_COMPLETED)
            turn = waiting.result() if waiting.done() else None
        finally:
            waiting.cancel()
            closing.cancel()
        if self._desk.finished:
            return _error(410, "There are no more turns.")
        return web.Response(status=204) if turn is None else web.json_response(turn)

    async def _take_session(self, request: web.Request) -> web.StreamResponse:
        async with self._session:  # one at a time: they lie on the host's disk
            received = self._desk.directory / "session.received"
            try:
                size = 0
                async with asyncio.timeout(SESSION_SECONDS):
                    with received.open("wb") as file:
                        async for chunk in request.content.iter_chunked(1 << 18):
                            size += len(chunk)
                            if size > MAX_SESSION_BODY:
                                raise bodies.too_large(MAX_SESSION_BODY, size)
                            file.write(chunk)
                await asyncio.to_thread(self._desk.take_session, received)
            finally:
                received.unlink(missing_ok=True)
        return web.Response(status=204)


class _First(asyncio.Protocol):
    """Waits for a connection's first bytes: a CONNECT is a tunnel from then on, everything else is aiohttp's."""

    _CONNECT = b"CONNECT "

    def __init__(
        self,
        waiting: set[_First],
        tunnel: Callable[[asyncio.Transport, bytes], None],
        serve: Callable[[], asyncio.Protocol],
    ) -> None:
        self._waiting = waiting
        self._tunnel = tunnel
        self._serve = serve
        self._received = b""
        self._transport: asyncio.Transport | None = None
        self._timer: asyncio.TimerHandle | None = None

    def connection_made(self, transport: asyncio.BaseTransport) -> None:
        self._transport = cast(asyncio.Transport, transport)  # a stream's
        self._waiting.add(self)
        self._timer = asyncio.get_running_loop().call_later(FIRST_SECONDS, self.hang_up)

    def data_received(self, data: bytes) -> None:
        self._received += data
        transport = self._transport
        if transport is None or (
            len(self._received) < len(self._CONNECT) and self._CONNECT.startswith(self._received)
        ):
            return
        self._leave()
        if self._received.startswith(self._CONNECT):
            self._tunnel(transport, self._received)
        else:
            protocol = self._serve()
            transport.set_protocol(protocol)
            protocol.connection_made(transport)
            protocol.data_received(self._received)

    def connection_lost(self, _error: Exception | None) -> None:
        self._leave()

    def hang_up(self) -> None:
        """End the connection."""
        transport = self._transport
        self._leave()
        if transport is not None:
            transport.abort()

    def _leave(self) -> None:
        self._waiting.discard(self)
        self._transport = None
        if self._timer is not None:
            self._timer.cancel()


class _Hangup(asyncio.Protocol):
    """What an attempt with too many connections gets."""

    def connection_made(self, transport: asyncio.BaseTransport) -> None:
        transport.close()


def _tokens(request: web.Request) -> Iterator[str]:
    """Every token that the request shows, in the ways in which the agents' clients and git show one."""
    for name in ("x-api-key", "x-goog-api-key"):
        if value := request.headers.get(name):
            yield value
    scheme, _, value = request.headers.get("Authorization", "").partition(" ")
    if scheme.lower() == "bearer":
        yield value.strip()
    elif scheme.lower() == "basic":
        with suppress(binascii.Error, ValueError):
            yield base64.b64decode(value, validate=True).decode().partition(":")[2]


def _segments(path: str) -> list[str]:
    return [unquote(part) for part in path.split("/")]


def _error(status: int, message: str, *, challenge: bool = False) -> web.Response:
    # git asks for a password only where it is challenged (RFC 9110, 11.6.1)
    headers = {"WWW-Authenticate": 'Basic realm="attempt"'} if challenge else None
    return web.json_response({"error": message}, status=status, headers=headers)


def _listen(folder: Path) -> socket.socket:
    """A socket in ``folder`` that the container's user can reach. Raises InfrastructureError."""
    hint = "Check that DATA_DIR is on a local disk and writable, and that one worker uses it."
    try:
        descriptor = os.open(folder, os.O_PATH | os.O_DIRECTORY | os.O_CLOEXEC)
    except OSError as error:
        raise InfrastructureError(f"The attempt's folder {folder} is missing: {error}.", hint) from error
    listener = socket.socket(socket.AF_UNIX, socket.SOCK_STREAM)
    try:
        # Through the folder's descriptor, because a path in an address is at most 107 bytes long (unix(7)).
        address = f"/proc/self/fd/{descriptor}/{SOCKET}"
        with suppress(FileNotFoundError):
            if not stat.S_ISSOCK(os.lstat(address).st_mode):
                raise OSError(errno.EEXIST, f"{SOCKET} is not a socket")
            _refuse_second(address)
            Path(address).unlink()
        listener.bind(address)
        Path(address).chmod(0o666)
        listener.listen(128)
        listener.setblocking(False)
    except OSError as error:
        listener.close()
        raise InfrastructureError(f"The socket in {folder} cannot be made: {error}.", hint) from error
    finally:
        os.close(descriptor)
    return listener


def _refuse_second(address: str) -> None:
    """Raise OSError when somebody listens there: a socket left by a killed worker refuses the connection."""
    with socket.socket(socket.AF_UNIX, socket.SOCK_STREAM) as probe:
        probe.settimeout(1)
        try:
            probe.connect(address)
        except ConnectionRefusedError:
            return
    raise OSError(errno.EADDRINUSE, "another process serves it")
