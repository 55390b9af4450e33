"""The gateway's forward proxy: the only way from an attempt's container to anything else, and only to what is allowed.

CONNECT opens a tunnel (https), a request with an absolute URI is sent on (plain HTTP). Each is authenticated with the
attempt's token, held against the rules on its desk (``bot/network.py``), and connected to an address that was resolved
and checked here, once: the name is not resolved again, so it cannot mean another address by then. Every refusal is on
the desk afterwards, for the job's comment.
"""

from __future__ import annotations

import asyncio
import base64
import binascii
import errno
import ipaddress
import os
import re
import socket
from collections.abc import AsyncIterator, Callable, Iterator, Mapping, Sequence
from concurrent.futures import ThreadPoolExecutor
from contextlib import asynccontextmanager, contextmanager, suppress
from typing import Any
from urllib.request import proxy_bypass_environment  # type: ignore[attr-defined]  # typeshed lacks it
from weakref import WeakKeyDictionary

import aiohttp
import structlog
from aiohttp import web
from aiohttp.abc import AbstractResolver, ResolveResult
from multidict import CIMultiDict
from yarl import URL

from bot.config import Settings
from bot.network import (
    HTTP_PORT,
    MALFORMED,
    NOT_PUBLIC,
    OVER_LIMIT,
    Address,
    Destination,
    Network,
    Rule,
    RuleError,
    address_refusal,
    blocked_entry,
    matching,
    parse_destination,
    parsed,
    shown,
)
from runners.gateway.desk import Desk

MAX_HEAD = 16 * 1024  # bytes of a CONNECT's or an upstream proxy's head
MAX_AT_ONCE = 128  # connections of one attempt; of the gateway's limit, half stays for everything else
MAX_ADDRESSES = 8  # of one name; the rest are not tried
CHUNK = 64 * 1024
HEAD_SECONDS = 15.0
RESOLVE_SECONDS = 10.0
#: With an upstream proxy a name need not be known here; asked all the same, and not waited for long.
UPSTREAM_RESOLVE_SECONDS = 2.0
CONNECT_SECONDS = 15.0  # for one address
IDLE_SECONDS = 300.0  # without a byte in either direction
TOTAL_SECONDS = 4 * 3600.0  # for one connection
CLOSE_SECONDS = 10.0  # for what is still buffered when a connection ends

# RFC 9110, 7.6.1, and what is the proxy's own
_HOP_BY_HOP = frozenset(
    {
        *("connection", "keep-alive", "proxy-connection", "te", "trailer", "transfer-encoding", "upgrade"),
        *("proxy-authenticate", "proxy-authorization", "proxy-authentication-info"),
    }
)
_TOKEN = r"[!#$%&'*+.^_`|~0-9A-Za-z-]+"  # noqa: S105 - RFC 9110, 5.6.2
_FIELD = re.compile(rf"({_TOKEN}):[ \t]*([\x20-\x7e\x80-\xff\t]*?)[ \t]*")
_CONNECT = re.compile(r"CONNECT ([\x21-\x7e]{1,2000}) HTTP/1\.[01]")
_ABSOLUTE = re.compile(r"(?i:http)://([^/?#]*)((?:[/?][^#]*)?)")

log = structlog.get_logger(__name__)


class _Refused(Exception):
    """The answer to a connection that is not made. ``where`` is recorded for the user, when given."""

    def __init__(self, status: int, reason: str, text: str, where: str = "") -> None:
        super().__init__(text)
        self.status = status
        self.reason = reason
        self.text = text
        self.where = where


class _OverLimit(ConnectionAbortedError):
    """The attempt has moved more bytes than it may."""


class _Account:
    """What one attempt has open and has moved, since this process knows it."""

    def __init__(self) -> None:
        self.open = 0
        self.bytes = 0


class Egress:
    """Lets the attempts of this host out, within the terms on their desks."""

    def __init__(
        self,
        *,
        private: Sequence[Network] = (),
        upstream: URL | None = None,
        bypass: Callable[[str], bool] | None = None,
        max_bytes: int = 10 << 30,
        look_up: Callable[[str], Sequence[Address]] | None = None,
        idle: float = IDLE_SECONDS,
        total: float = TOTAL_SECONDS,
        head: float = HEAD_SECONDS,
    ) -> None:
        """Set what the operator decides.

        ``private``: networks that the server's own rules may lead into. ``upstream``: the operator's proxy, used for
        every host but those that ``bypass`` names. ``max_bytes``: of one attempt, both directions together.
        ``look_up``: a name's addresses, by default the system's; called in a thread, raises OSError. ``idle``,
        ``total``, ``head``: time limits in seconds.
        """
        self._private = tuple(private)
        self._upstream = upstream
        self._bypass = bypass
        self._max_bytes = max_bytes
        self._look_up = look_up or _look_up
        self._idle = idle
        self._total = total
        self._head = head
        self._accounts: WeakKeyDictionary[Desk, _Account] = WeakKeyDictionary()
        # getaddrinfo cannot be broken off: one that hangs must not hold up what else uses the loop's own threads
        self._resolving = ThreadPoolExecutor(max_workers=8, thread_name_prefix="egress-dns")

    @classmethod
    def from_settings(cls, settings: Settings, environ: Mapping[str, str] = os.environ) -> Egress:
        """As the operator wants it. Where EGRESS_UPSTREAM is empty, HTTPS_PROXY and NO_PROXY of ``environ`` hold."""
        upstream = settings.egress_upstream
        direct: dict[str, str] = {}
        if not upstream:
            upstream = environ.get("https_proxy") or environ.get("HTTPS_PROXY") or ""
            direct = {"no": environ.get("no_proxy") or environ.get("NO_PROXY") or ""}
        return cls(
            private=settings.egress_private,
            upstream=URL(upstream) if upstream not in ("", "none") else None,
            bypass=lambda host: bool(proxy_bypass_environment(host, direct)) if direct else False,
            max_bytes=settings.egress_max_bytes,
        )

    def close(self) -> None:
        """Release the threads that resolve names; open connections belong to the gateway."""
        self._resolving.shutdown(wait=False, cancel_futures=True)

    # --- CONNECT ---

    async def tunnel(self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter, desk: Desk) -> None:
        """Serve a connection that begins with a CONNECT, to its end. It is never used for a second request."""
        try:
            try:
                async with asyncio.timeout(self._head):
                    head = await reader.readuntil(b"\r\n\r\n")
                target, fields = _connect_head(head)
                _authenticate(_all(fields, "proxy-authorization"), desk)
                wanted = _connect_destination(target, fields)
                async with self._connected(desk, wanted) as (far_reader, far_writer, account):
                    writer.write(b"HTTP/1.1 200 Connection established\r\n\r\n")
                    try:
                        await self._relay((reader, writer), (far_reader, far_writer), account)
                    except _OverLimit:
                        _record(desk, _over_limit(wanted, "bytes moved").where)
            except _Refused as refused:
                _record(desk, refused.where)
                writer.write(_answer(refused))
            except asyncio.LimitOverrunError:
                writer.write(
                    _answer(_Refused(431, "Request Header Fields Too Large", "The head is too large."))
                )
            except (TimeoutError, ConnectionError, asyncio.IncompleteReadError):
                pass  # it said nothing we could answer, or is cut in the midst of what it says
        finally:
            await _close(writer)

    async def _relay(
        self,
        near: tuple[asyncio.StreamReader, asyncio.StreamWriter],
        far: tuple[asyncio.StreamReader, asyncio.StreamWriter],
        account: _Account,
    ) -> None:
        """Carry bytes both ways until both sides have ended, a limit is reached or one breaks off."""
        loop = asyncio.get_running_loop()
        until = loop.time() + self._total
        async with asyncio.timeout_at(min(until, loop.time() + self._idle)) as limit:

            async def carry(source: asyncio.StreamReader, sink: asyncio.StreamWriter) -> None:
                while data := await source.read(CHUNK):
                    self._count(account, len(data))
                    sink.write(data)
                    await sink.drain()  # the one that sends waits for the one that reads
                    limit.reschedule(min(until, loop.time() + self._idle))
                if sink.can_write_eof():
                    sink.write_eof()  # half-closed: the other direction may go on

            ways = [
                asyncio.ensure_future(carry(near[0], far[1])),
                asyncio.ensure_future(carry(far[0], near[1])),
            ]
            try:
                await asyncio.gather(*ways)
            except BaseException:
                for writer in (near[1], far[1]):  # a reader must not take what was cut for the whole
                    writer.transport.abort()
                raise
            finally:
                for way in ways:
                    way.cancel()
                await asyncio.gather(*ways, return_exceptions=True)

    # --- plain HTTP ---

    async def forward(self, request: web.Request, desk: Desk) -> web.StreamResponse:
        """Answer a request with an absolute URI: send it on, and its answer back."""
        try:
            _authenticate(request.headers.getall("Proxy-Authorization", []), desk)
            wanted, target = _absolute_destination(request)
            return await self._forward(request, desk, wanted, target)
        except _Refused as refused:
            _record(desk, refused.where)
            answer = web.Response(status=refused.status, reason=refused.reason, text=refused.text + "\n")
            if refused.status == 407:
                answer.headers["Proxy-Authenticate"] = 'Basic realm="attempt"'
            answer.force_close()  # the rest of the connection is nobody's request
            return answer

    async def _forward(
        self, request: web.Request, desk: Desk, wanted: Destination, target: str
    ) -> web.StreamResponse:
        rule = self._rule(desk, wanted, tunnel=False)
        with self._counted(desk, wanted) as account:
            upstream = self._upstream_for(wanted)
            resolver = _Checked(await self._addresses(desk, wanted, rule), any_host=upstream is not None)
            connector = aiohttp.TCPConnector(
                resolver=resolver,
                use_dns_cache=False,
                force_close=True,
                socket_factory=None if upstream else resolver.socket,
            )
            limits = aiohttp.ClientTimeout(
                total=self._total, sock_connect=CONNECT_SECONDS, sock_read=self._idle
            )
            async with aiohttp.ClientSession(
                connector=connector,
                cookie_jar=aiohttp.DummyCookieJar(),
                timeout=limits,
                auto_decompress=False,
                trust_env=False,
                skip_auto_headers=("User-Agent", "Accept", "Accept-Encoding", "Content-Type"),
            ) as client:
                headers = _end_to_end(request.headers)
                headers["Host"] = str(wanted) if wanted.port != HTTP_PORT else str(wanted).rpartition(":")[0]
                body = None
                if request.can_read_body:
                    if headers.popall("Content-Encoding", None):  # the server has decoded it
                        headers.popall("Content-Length", None)
                    body = self._body(request, account)
                response: web.StreamResponse | None = None
                try:
                    async with client.request(
                        request.method,
                        URL(target, encoded=True),
                        headers=headers,
                        data=body,
                        allow_redirects=False,
                        proxy=upstream,
                    ) as answer:
                        response = web.StreamResponse(status=answer.status, reason=answer.reason)
                        response.headers.extend(_end_to_end(answer.headers))
                        await response.prepare(request)
                        async for chunk in answer.content.iter_chunked(CHUNK):
                            self._count(account, len(chunk))
                            async with asyncio.timeout(self._idle):
                                await response.write(chunk)
                        await response.write_eof()
                except (aiohttp.ClientError, OSError, ValueError) as error:
                    spent = account.bytes > self._max_bytes
                    failed = _over_limit(wanted, "bytes moved") if spent else _failed(wanted, error)
                    if response is None:
                        raise failed from error
                    _record(desk, failed.where)
                    if request.transport is not None:
                        request.transport.abort()  # it must not be taken for the whole answer
                return response

    async def _body(self, request: web.Request, account: _Account) -> AsyncIterator[bytes]:
        while True:
            async with asyncio.timeout(self._idle):
                chunk = await request.content.readany()
            if not chunk:
                return
            self._count(account, len(chunk))
            yield chunk

    # --- who may go where ---

    def _rule(self, desk: Desk, wanted: Destination, *, tunnel: bool) -> Rule:
        rule = matching(parsed(desk.terms.allow), wanted, tunnel=tunnel)
        if rule is None:
            raise _Refused(
                403,
                "Forbidden by the network rules of this job",
                f"This container may not connect to {wanted}: the network rules of this job do not allow it. "
                "Whoever asked for this job is told so. Trying again does not help.",
                blocked_entry(wanted, tunnel=tunnel),
            )
        return rule

    @contextmanager
    def _counted(self, desk: Desk, wanted: Destination) -> Iterator[_Account]:
        account = self._accounts.setdefault(desk, _Account())
        if account.open >= MAX_AT_ONCE:
            raise _over_limit(wanted, "connections at once", 429)
        if account.bytes >= self._max_bytes:
            raise _over_limit(wanted, "bytes moved")
        account.open += 1
        try:
            yield account
        finally:
            account.open -= 1

    def _count(self, account: _Account, size: int) -> None:
        account.bytes += size
        if account.bytes > self._max_bytes:
            raise _OverLimit

    @asynccontextmanager
    async def _connected(
        self, desk: Desk, wanted: Destination
    ) -> AsyncIterator[tuple[asyncio.StreamReader, asyncio.StreamWriter, _Account]]:
        """A connection to ``wanted``, closed at the end. Raises _Refused."""
        rule = self._rule(desk, wanted, tunnel=True)
        with self._counted(desk, wanted) as account:
            addresses = await self._addresses(desk, wanted, rule)
            upstream = self._upstream_for(wanted)
            try:
                if upstream is not None:
                    reader, writer = await _through(upstream, wanted)
                else:
                    reader, writer = await _open(addresses, wanted.port)
            except OSError as error:
                raise _failed(wanted, error) from error
            try:
                yield reader, writer, account
            finally:
                await _close(writer)

    def _upstream_for(self, wanted: Destination) -> URL | None:
        return None if self._bypass is not None and self._bypass(wanted.host) else self._upstream

    async def _addresses(self, desk: Desk, wanted: Destination, rule: Rule) -> list[Address]:
        """The addresses of ``wanted``, every one of them checked. Raises _Refused.

        With an upstream proxy it is that one that resolves: what is unknown here is left to it.
        """
        address = wanted.address
        if address is not None:
            found = [address]
        else:
            behind = self._upstream_for(wanted) is not None
            try:
                found = await self._resolve(wanted, UPSTREAM_RESOLVE_SECONDS if behind else RESOLVE_SECONDS)
            except OSError as error:  # also TimeoutError
                if behind:
                    return []
                raise _failed(wanted, error) from error
        private = self._private if rule.private else ()
        for candidate in found:
            refusal = address_refusal(candidate, private)
            if refusal is None and not any(
                candidate in network for network in private if network.version == candidate.version
            ):
                refusal = "it is this host itself" if _is_ours(candidate) else None
            if refusal is not None:
                log.warning(
                    "egress.address",
                    attempt=desk.attempt_id,
                    where=str(wanted),
                    address=str(candidate),
                    why=refusal,
                )
                raise _Refused(
                    403,
                    "Forbidden, not a public address",
                    f"This container may not connect to {wanted}: its address is not one that may be reached "
                    "from here. Whoever asked for this job is told so.",
                    f"{wanted} ({NOT_PUBLIC})",
                )
        return found[:MAX_ADDRESSES]

    async def _resolve(self, wanted: Destination, seconds: float) -> list[Address]:
        loop = asyncio.get_running_loop()
        async with asyncio.timeout(seconds):
            found = await loop.run_in_executor(self._resolving, self._look_up, wanted.host)
        if not found:
            raise OSError(errno.EADDRNOTAVAIL, "the name has no address")
        return list(found)


class _Checked(AbstractResolver):
    """Knows the addresses that were checked and no others, for aiohttp's client."""

    def __init__(self, addresses: Sequence[Address], *, any_host: bool) -> None:
        self._addresses = addresses
        self._any_host = any_host  # the operator's own proxy is resolved as usual

    async def resolve(
        self, host: str, port: int = 0, family: socket.AddressFamily = socket.AF_UNSPEC
    ) -> list[ResolveResult]:
        if self._any_host:
            return await aiohttp.ThreadedResolver().resolve(host, port, family)
        return [
            ResolveResult(
                hostname=host,
                host=str(address),
                port=port,
                family=socket.AF_INET if address.version == 4 else socket.AF_INET6,
                proto=socket.IPPROTO_TCP,
                flags=socket.AI_NUMERICHOST,
            )
            for address in self._addresses
        ]

    def socket(self, about: Any) -> socket.socket:
        """A socket for an address, if that is one of ours. Raises OSError."""
        family, kind, protocol, _, where = about
        if ipaddress.ip_address(where[0]) not in self._addresses:
            raise OSError(errno.EACCES, "an address that was not checked")
        return socket.socket(family, kind, protocol)

    async def close(self) -> None:
        """Nothing to release."""


def _authenticate(values: Sequence[str], desk: Desk) -> None:
    """Raise _Refused unless the one Proxy-Authorization shows the attempt's token."""
    token = ""
    scheme, _, value = (values[0] if len(values) == 1 else "").partition(" ")
    if scheme.lower() == "bearer":
        token = value.strip()
    elif scheme.lower() == "basic":
        with suppress(binascii.Error, ValueError):
            token = base64.b64decode(value.strip(), validate=True).decode().partition(":")[2]
    if not desk.accepts(token):
        log.warning("egress.unauthenticated", attempt=desk.attempt_id)
        raise _Refused(
            407,
            "Proxy Authentication Required",
            "The token is missing or is not this attempt's: use the proxy as HTTPS_PROXY names it.",
        )
    desk.heard()


def _connect_head(head: bytes) -> tuple[str, list[tuple[str, str]]]:
    """The target and the fields of a CONNECT. Raises _Refused when it is not exactly what RFC 9112 wants."""
    first, *lines = head.decode("latin-1").removesuffix("\r\n\r\n").split("\r\n")
    request = _CONNECT.fullmatch(first)
    fields = [_FIELD.fullmatch(line) for line in lines]
    if request is None or not all(fields):
        raise _Refused(400, "Bad Request", "This is no well-formed CONNECT request.")
    return request[1], [(field[1].lower(), field[2]) for field in fields if field]


def _all(fields: Sequence[tuple[str, str]], name: str) -> list[str]:
    return [value for field, value in fields if field == name]


def _connect_destination(target: str, fields: Sequence[tuple[str, str]]) -> Destination:
    if _all(fields, "transfer-encoding") or any(value != "0" for value in _all(fields, "content-length")):
        raise _malformed(target, "A CONNECT has no body.")
    try:
        wanted = parse_destination(target)
    except RuleError as error:
        raise _malformed(target, f"The target of CONNECT is host:port: {error}.") from error
    _same_host(_all(fields, "host"), wanted, wanted.port, target)
    return wanted


def _absolute_destination(request: web.Request) -> tuple[Destination, str]:
    """Where a request with an absolute URI goes, and the URI as it is sent on. Raises _Refused."""
    raw = request.raw_path
    parts = _ABSOLUTE.fullmatch(raw) if re.fullmatch(r"[\x21-\x7e]+", raw) else None
    if parts is None:
        raise _malformed(raw, "Only http:// URIs are sent on; use CONNECT for https.")
    if request.method in ("CONNECT", "TRACE"):
        raise _malformed(raw, f"{request.method} is not for this.")
    try:
        wanted = parse_destination(parts[1], HTTP_PORT)
    except RuleError as error:
        raise _malformed(parts[1], f"The URI's host cannot be used: {error}.") from error
    _same_host(request.headers.getall("Host", []), wanted, HTTP_PORT, parts[1])
    path = parts[2] if parts[2].startswith("/") else f"/{parts[2]}"
    return wanted, f"http://{wanted}{path}"


def _same_host(hosts: Sequence[str], wanted: Destination, default_port: int, target: str) -> None:
    """Raise _Refused when the Host field names another host: somebody behind us might believe that one."""
    try:
        same = [parse_destination(host, default_port) for host in hosts] in ([], [wanted])
    except RuleError:
        same = False
    if not same:
        raise _malformed(target, "The Host field does not name the target.")


def _malformed(target: str, text: str) -> _Refused:
    return _Refused(400, "Bad Request", text, f"{shown(target)} ({MALFORMED})")


def _over_limit(wanted: Destination, what: str, status: int = 403) -> _Refused:
    return _Refused(
        status,
        "Over the limit of this job",
        f"This container is not connected to {wanted}: too many {what}.",
        f"{wanted} ({OVER_LIMIT})",
    )


def _failed(wanted: Destination, error: Exception) -> _Refused:
    """The answer when an allowed destination is not reached. It tells nothing of our own network."""
    if isinstance(error, TimeoutError):
        return _Refused(504, "Gateway Timeout", f"{wanted} did not answer in time.")
    if isinstance(error, socket.gaierror):
        return _Refused(502, "Bad Gateway", f"The name {wanted.host} cannot be resolved.")
    log.info("egress.failed", where=str(wanted), error=str(error) or type(error).__name__)
    return _Refused(502, "Bad Gateway", f"{wanted} cannot be reached.")


def _record(desk: Desk, where: str) -> None:
    if where:
        if where not in desk.blocked:
            log.warning("egress.refused", attempt=desk.attempt_id, where=where)
        desk.add_blocked(where)


def _answer(refused: _Refused) -> bytes:
    challenge = 'Proxy-Authenticate: Basic realm="attempt"\r\n' if refused.status == 407 else ""
    body = f"{refused.text}\n".encode()
    head = (
        f"HTTP/1.1 {refused.status} {refused.reason}\r\n{challenge}Content-Type: text/plain; charset=utf-8\r\n"
        f"Content-Length: {len(body)}\r\nConnection: close\r\n\r\n"
    )
    return head.encode() + body


def _end_to_end(headers: Mapping[str, str]) -> CIMultiDict[str]:
    """The fields that are not about one connection (RFC 9110, 7.6.1)."""
    found = CIMultiDict(headers)
    named = {name.strip().lower() for value in found.getall("Connection", []) for name in value.split(",")}
    for name in _HOP_BY_HOP | named - {"host", "content-length", "content-encoding"}:
        found.popall(name, None)
    return found


async def _open(addresses: Sequence[Address], port: int) -> tuple[asyncio.StreamReader, asyncio.StreamWriter]:
    """A connection to the first of ``addresses`` that takes it. Raises OSError, also TimeoutError."""
    last: OSError = OSError(errno.EADDRNOTAVAIL, "no address")
    for address in addresses:
        try:
            async with asyncio.timeout(CONNECT_SECONDS):
                return await asyncio.open_connection(str(address), port, limit=CHUNK)
        except OSError as error:
            last = error
    raise last


async def _through(upstream: URL, wanted: Destination) -> tuple[asyncio.StreamReader, asyncio.StreamWriter]:
    """A tunnel to ``wanted`` through the operator's proxy. Raises OSError, also TimeoutError."""
    async with asyncio.timeout(CONNECT_SECONDS):
        reader, writer = await asyncio.open_connection(upstream.host, upstream.port, limit=CHUNK)
        try:
            who = ""
            if upstream.user is not None:
                pair = f"{upstream.user}:{upstream.password or ''}".encode()
                who = f"Proxy-Authorization: Basic {base64.b64encode(pair).decode()}\r\n"
            writer.write(f"CONNECT {wanted} HTTP/1.1\r\nHost: {wanted}\r\n{who}\r\n".encode())
            head = await reader.readuntil(b"\r\n\r\n")
            status = re.match(rb"HTTP/1\.[01] (\d{3})\b", head)
            if status is None or not status[1].startswith(b"2"):
                raise ConnectionRefusedError(f"the upstream proxy answered {head[:80]!r}")
        except (asyncio.IncompleteReadError, asyncio.LimitOverrunError) as error:
            writer.transport.abort()
            raise ConnectionResetError("the upstream proxy answered nothing that we know") from error
        except BaseException:
            writer.transport.abort()
            raise
    return reader, writer


async def _close(writer: asyncio.StreamWriter) -> None:
    """Send what is buffered and close; cut, when the other side does not take it in time."""
    writer.close()
    try:
        async with asyncio.timeout(CLOSE_SECONDS):
            await writer.wait_closed()
    except (TimeoutError, OSError):
        writer.transport.abort()
    except asyncio.CancelledError:
        writer.transport.abort()
        raise


def _look_up(name: str) -> Sequence[Address]:
    """What the system says, without its search list. Raises OSError."""
    whole = f"{name}." if "." in name else name
    found = socket.getaddrinfo(whole, None, type=socket.SOCK_STREAM, flags=socket.AI_ADDRCONFIG)
    texts = (str(entry[4][0]).partition("%")[0] for entry in found)
    return [ipaddress.ip_address(text) for text in dict.fromkeys(texts)]


def _is_ours(address: Address) -> bool:
    """Whether this host itself has ``address``: only then can a socket be bound to it."""
    family = socket.AF_INET if address.version == 4 else socket.AF_INET6
    with socket.socket(family, socket.SOCK_DGRAM) as probe:
        try:
            probe.bind((str(address), 0))
        except OSError:
            return False
    return True
