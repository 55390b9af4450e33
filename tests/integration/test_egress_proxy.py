"""The egress proxy over real sockets: tunnels, plain HTTP, limits, upstream proxies, and what is recorded."""

from __future__ import annotations

import asyncio
import base64
import ipaddress
import json
import socket
from collections.abc import AsyncIterator, Awaitable, Callable, Sequence
from contextlib import asynccontextmanager, suppress
from pathlib import Path
from typing import Any

import pytest
from aiohttp import web
from yarl import URL

from bot.config import fixed_settings
from bot.network import Address, explain
from bot.terms import Terms
from runners.gateway import egress as module
from runners.gateway.desk import Desk
from runners.gateway.egress import Egress
from runners.gateway.server import MAX_CONNECTIONS, Gateway

LOOPBACK = [ipaddress.ip_network("127.0.0.0/8"), ipaddress.ip_network("::1/128")]
Stream = tuple[asyncio.StreamReader, asyncio.StreamWriter]


class Door:
    """An attempt's socket, as its container sees it."""

    def __init__(self, desk: Desk, path: Path) -> None:
        self.desk = desk
        self.path = path
        self.open: list[asyncio.StreamWriter] = []

    @property
    def auth(self) -> str:
        pair = base64.b64encode(f"agent:{self.desk.token}".encode()).decode()
        return f"Proxy-Authorization: Basic {pair}\r\n"

    async def connection(self) -> Stream:
        reader, writer = await asyncio.open_unix_connection(str(self.path))
        self.open.append(writer)
        return reader, writer

    async def say(self, text: str | bytes) -> bytes:
        """Send ``text`` and read to the end."""
        reader, writer = await self.connection()
        writer.write(text if isinstance(text, bytes) else text.encode("latin-1"))
        async with asyncio.timeout(30):
            return await reader.read()

    async def connect(self, target: str, fields: str = "") -> tuple[bytes, Stream]:
        """Ask for a tunnel; the head of the answer, and the connection."""
        reader, writer = await self.connection()
        writer.write(f"CONNECT {target} HTTP/1.1\r\n{self.auth}{fields}\r\n".encode("latin-1"))
        async with asyncio.timeout(30):
            return await reader.readuntil(b"\r\n\r\n"), (reader, writer)

    async def get(self, url: str, *fields: str) -> bytes:
        lines = "".join(f"{field}\r\n" for field in fields)
        return await self.say(f"GET {url} HTTP/1.1\r\n{self.auth}{lines}Connection: close\r\n\r\n")


@asynccontextmanager
async def door(folder: Path, *allow: str, **options: Any) -> AsyncIterator[Door]:
    desk = Desk.create(
        folder / "desk",
        attempt_id="j1-1",
        mirror=None,
        terms=Terms(allow=tuple(f"{rule} private" for rule in allow)),
    )
    gateway = Gateway({}, egress=Egress(**({"private": LOOPBACK} | options)))
    try:
        opened = Door(desk, await gateway.open(desk))
        try:
            yield opened
        finally:
            for writer in opened.open:
                writer.transport.abort()
    finally:
        await gateway.aclose()
        desk.close()


@asynccontextmanager
async def listening(
    serve: Callable[[asyncio.StreamReader, asyncio.StreamWriter], Awaitable[None]], host: str = "127.0.0.1"
) -> AsyncIterator[int]:
    """A server of ours; its port."""
    running: set[asyncio.Task[Any]] = set()

    async def one(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        task = asyncio.current_task()
        assert task is not None
        running.add(task)
        try:
            await serve(reader, writer)
        except (ConnectionError, asyncio.CancelledError):
            pass
        finally:
            writer.transport.abort()

    server = await asyncio.start_server(one, host, 0)
    try:
        yield int(server.sockets[0].getsockname()[1])
    finally:
        server.close()
        for task in running:
            task.cancel()
        await asyncio.gather(*running, return_exceptions=True)


async def echo(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
    while data := await reader.read(65536):
        writer.write(data)
        await writer.drain()
    writer.write(b"[end]")
    writer.write_eof()
    await reader.read()


@asynccontextmanager
async def website(host: str = "127.0.0.1") -> AsyncIterator[tuple[int, list[web.Request]]]:
    """A plain HTTP server of ours; its port and the requests that it got."""
    seen: list[web.Request] = []

    async def answer(request: web.Request) -> web.StreamResponse:
        body = await request.read()
        seen.append(request)
        if request.path == "/chunked":
            response = web.StreamResponse(headers={"X-Kind": "chunked"})
            await response.prepare(request)
            for _ in range(3):
                await response.write(b"part,")
            return response
        if request.path == "/gone":
            assert request.transport is not None
            response = web.StreamResponse(headers={"Content-Length": "1000"})
            await response.prepare(request)
            await response.write(b"half")
            request.transport.close()
            return response
        if request.path == "/moved":
            raise web.HTTPFound("http://127.0.0.1:1/elsewhere")
        about = {
            "method": request.method,
            "target": request.raw_path,
            "body": body.decode(),
            "headers": [[name, value] for name, value in request.headers.items()],
        }
        return web.json_response(
            about, headers={"Proxy-Authenticate": "Basic", "Connection": "X-Own", "X-Own": "1"}
        )

    app = web.Application()
    app.router.add_route("*", "/{path:.*}", answer)
    runner = web.AppRunner(app, access_log=None)
    await runner.setup()
    site = web.TCPSite(runner, host, 0)
    await site.start()
    try:
        yield runner.addresses[0][1], seen
    finally:
        await runner.cleanup()


def status(answer: bytes) -> int:
    return int(answer.split(b" ", 2)[1])


# --- CONNECT


async def test_a_tunnel_carries_bytes_both_ways_and_ends_in_order(tmp_path: Path) -> None:
    async with listening(echo) as port, door(tmp_path, f"127.0.0.1:{port}") as agent:
        head, (reader, writer) = await agent.connect(f"127.0.0.1:{port}", f"Host: 127.0.0.1:{port}\r\n")
        assert head == b"HTTP/1.1 200 Connection established\r\n\r\n"
        writer.write(b"hello")
        assert await reader.readexactly(5) == b"hello"
        writer.write_eof()  # half-closed: the answer still comes
        assert await asyncio.wait_for(reader.read(), 10) == b"[end]"
        assert agent.desk.blocked == {}


async def test_what_is_sent_along_with_the_request_is_not_lost(tmp_path: Path) -> None:
    async with listening(echo) as port, door(tmp_path, f"127.0.0.1:{port}") as agent:
        reader, writer = await agent.connection()
        writer.write(f"CONNECT 127.0.0.1:{port} HTTP/1.0\r\n{agent.auth}\r\nearly".encode())
        await reader.readuntil(b"\r\n\r\n")
        assert await reader.readexactly(5) == b"early"


async def test_a_request_may_come_byte_by_byte(tmp_path: Path) -> None:
    async with listening(echo) as port, door(tmp_path, f"127.0.0.1:{port}") as agent:
        reader, writer = await agent.connection()
        for byte in f"CONNECT 127.0.0.1:{port} HTTP/1.1\r\n{agent.auth}\r\n".encode():
            writer.write(bytes([byte]))
            await writer.drain()
            await asyncio.sleep(0)
        assert status(await reader.readuntil(b"\r\n\r\n")) == 200


async def test_a_lot_goes_through_unharmed_and_slowly_where_the_reader_is_slow(tmp_path: Path) -> None:
    size = 40 << 20
    sent = 0

    async def pour(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        nonlocal sent
        block = bytes(range(256)) * 256
        while sent < size:
            writer.write(block)
            await writer.drain()
            sent += len(block)
        writer.write_eof()
        await reader.read()

    async with listening(pour) as port, door(tmp_path, f"127.0.0.1:{port}") as agent:
        _, (reader, _) = await agent.connect(f"127.0.0.1:{port}")
        first = await reader.readexactly(1 << 16)
        for _ in range(2000):  # nobody reads: what may be under way is soon full
            await asyncio.sleep(0)
        assert sent < size
        got = len(first)
        while data := await reader.read(1 << 20):
            got += len(data)
        assert got == size


async def test_when_one_side_breaks_off_so_does_the_other(tmp_path: Path) -> None:
    ended = asyncio.Event()

    async def listen(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        await reader.readexactly(1)
        try:
            await reader.read()
        finally:
            ended.set()

    async with listening(listen) as port, door(tmp_path, f"127.0.0.1:{port}") as agent:
        _, (_, writer) = await agent.connect(f"127.0.0.1:{port}")
        writer.write(b"x")
        await writer.drain()
        writer.transport.abort()
        await asyncio.wait_for(ended.wait(), 20)


@pytest.mark.parametrize(
    "fields",
    ["",
     "Proxy-Authorization: Basic !!!\r\n", "Proxy-Authorization: Basic YWdlbnQ6\r\n",
     "Authorization: Bearer {token}\r\n",
     "x-api-key: {token}\r\n", "Proxy-Authorization: Digest {token}\r\n",
     "Proxy-Authorization: Bearer {token}\r\nProxy-Authorization: Bearer {token}\r\n"],
)  # fmt: skip
async def test_without_the_token_nobody_gets_out(tmp_path: Path, fields: str) -> None:
    async with listening(echo) as port, door(tmp_path, f"127.0.0.1:{port}") as agent:
        shown = fields.replace("{token}", agent.desk.token)
        for first in (f"CONNECT 127.0.0.1:{port}", f"GET http://127.0.0.1:{port}/"):
            answer = await agent.say(f"{first} HTTP/1.1\r\nHost: 127.0.0.1:{port}\r\n{shown}\r\n")
            assert status(answer) == 407
            assert b'Proxy-Authenticate: Basic realm="attempt"' in answer
        assert agent.desk.blocked == {}


async def test_the_token_is_also_taken_as_a_bearer(tmp_path: Path) -> None:
    async with listening(echo) as port, door(tmp_path, f"127.0.0.1:{port}") as agent:
        reader, writer = await agent.connection()
        writer.write(
            f"CONNECT 127.0.0.1:{port} HTTP/1.1\r\nproxy-authorization: bearer {agent.desk.token}\r\n\r\n".encode()
        )
        assert status(await reader.readuntil(b"\r\n\r\n")) == 200


async def test_a_refusal_tells_the_agent_and_the_user(tmp_path: Path) -> None:
    async with door(tmp_path, "*.example.com") as agent:
        answer = await agent.say(f"CONNECT EVIL.example.:443 HTTP/1.1\r\n{agent.auth}\r\n")
        assert answer.startswith(b"HTTP/1.1 403 Forbidden by the network rules of this job\r\n")
        assert b"may not connect to evil.example:443" in answer
        assert b"is told so" in answer
        answer = await agent.get("http://evil.example/x", "Host: evil.example")
        assert answer.startswith(b"HTTP/1.1 403 Forbidden by the network rules of this job\r\n")
        assert agent.desk.blocked == {"evil.example:443": 1, "evil.example:80": 1}


async def test_a_refusal_is_recorded_with_the_way_where_that_is_not_the_usual_one(tmp_path: Path) -> None:
    async with door(tmp_path, "a.example", "b.example") as agent:
        assert status(await agent.say(f"CONNECT a.example:80 HTTP/1.1\r\n{agent.auth}\r\n")) == 403
        assert status(await agent.get("http://b.example:443/x", "Host: b.example:443")) == 403
        lines = {told.where: told.line for told in explain(agent.desk.blocked, ["*.example"])}
        assert lines == {"a.example:80": "a.example:80", "b.example:443": "b.example:443"}


async def test_what_comes_after_a_refused_connect_is_nobody_s_request(tmp_path: Path) -> None:
    async with listening(echo) as port, door(tmp_path, f"127.0.0.1:{port}") as agent:
        heartbeat = f"POST /heartbeat HTTP/1.1\r\nHost: x\r\nAuthorization: Bearer {agent.desk.token}\r\n\r\n"
        answer = await agent.say(f"CONNECT evil.example:443 HTTP/1.1\r\n{agent.auth}\r\n{heartbeat}")
        assert answer.count(b"HTTP/1.1") == 1


@pytest.mark.parametrize(
    "request_",
    [
        "CONNECT  127.0.0.1:{port} HTTP/1.1\r\n{auth}\r\n",
        "CONNECT 127.0.0.1:{port}\r\n{auth}\r\n",
        "CONNECT 127.0.0.1:{port} HTTP/2.0\r\n{auth}\r\n",
        "CONNECT 127.0.0.1:{port} HTTP/1.1\n{auth}\r\n",
        "CONNECT 127.0.0.1:{port} HTTP/1.1\r\n{auth} folded: x\r\n\r\n",
        "CONNECT 127.0.0.1:{port} HTTP/1.1\r\n{auth}Bad Name: x\r\n\r\n",
        "CONNECT 127.0.0.1:{port} HTTP/1.1\r\n{auth}X: a\rb\r\n\r\n",
        "CONNECT 127.0.0.1:{port} HTTP/1.1\r\n{auth}X: a\0b\r\n\r\n",
        "CONNECT 127.0.0.1:{port} HTTP/1.1\r\n{auth}Content-Length: 5\r\n\r\nhello",
        "CONNECT 127.0.0.1:{port} HTTP/1.1\r\n{auth}Transfer-Encoding: chunked\r\n\r\n0\r\n\r\n",
        "CONNECT 127.0.0.1:{port} HTTP/1.1\r\n{auth}Host: evil.example\r\n\r\n",
        "CONNECT 127.0.0.1:{port} HTTP/1.1\r\n{auth}Host: 127.0.0.1:{port}\r\nHost: 127.0.0.1:{port}\r\n\r\n",
        "CONNECT http://127.0.0.1:{port}/ HTTP/1.1\r\n{auth}\r\n",
        "CONNECT 127.0.0.1 HTTP/1.1\r\n{auth}\r\n",
        "CONNECT user@127.0.0.1:{port} HTTP/1.1\r\n{auth}\r\n",
        "CONNECT /127.0.0.1:{port} HTTP/1.1\r\n{auth}\r\n",
        "GET https://127.0.0.1:{port}/ HTTP/1.1\r\n{auth}Host: 127.0.0.1:{port}\r\n\r\n",
        "GET ftp://127.0.0.1:{port}/ HTTP/1.1\r\n{auth}Host: 127.0.0.1:{port}\r\n\r\n",
        "GET file:///etc/passwd HTTP/1.1\r\n{auth}Host: x\r\n\r\n",
        "GET http://u:p@127.0.0.1:{port}/ HTTP/1.1\r\n{auth}Host: 127.0.0.1:{port}\r\n\r\n",
        "GET http://127.0.0.1:{port}@evil.example/ HTTP/1.1\r\n{auth}Host: evil.example\r\n\r\n",
        "GET http://127.0.0.1:{port}/ HTTP/1.1\r\n{auth}Host: evil.example\r\n\r\n",
        "GET http://127.0.0.1:{port}/ HTTP/1.1\r\n{auth}Host: 127.0.0.1:1\r\n\r\n",
        "GET http://127.0.0.1:{port}/#x HTTP/1.1\r\n{auth}Host: 127.0.0.1:{port}\r\n\r\n",
        "GET http:///x HTTP/1.1\r\n{auth}Host: 127.0.0.1:{port}\r\n\r\n",
        "GET http://127.0.0.1:{port}\\@evil.example/ HTTP/1.1\r\n{auth}Host: 127.0.0.1:{port}\r\n\r\n",
        "OPTIONS * HTTP/1.1\r\n{auth}Host: 127.0.0.1:{port}\r\n\r\n",
        "TRACE http://127.0.0.1:{port}/ HTTP/1.1\r\n{auth}Host: 127.0.0.1:{port}\r\n\r\n",
        "\r\nCONNECT 127.0.0.1:{port} HTTP/1.1\r\n{auth}Host: 127.0.0.1:{port}\r\n\r\n",
        "connect 127.0.0.1:{port} HTTP/1.1\r\n{auth}Host: 127.0.0.1:{port}\r\n\r\n",
    ],
)
async def test_a_request_that_is_not_exactly_right_reaches_nobody(tmp_path: Path, request_: str) -> None:
    reached = asyncio.Event()

    async def listen(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        reached.set()

    async with listening(listen) as port, door(tmp_path, f"127.0.0.1:{port}") as agent:
        text = request_.replace("{port}", str(port)).replace("{auth}", agent.auth)
        reader, writer = await agent.connection()
        writer.write(text.encode("latin-1"))
        writer.write_eof()
        answer = await asyncio.wait_for(reader.read(), 20)
        assert answer == b"" or 400 <= status(answer) < 500
        assert answer.count(b"HTTP/1.1") <= 1
        assert not reached.is_set()


async def test_a_second_request_on_a_connection_is_judged_like_the_first(tmp_path: Path) -> None:
    async with website() as (port, seen), door(tmp_path, f"127.0.0.1:{port}") as agent:
        one = f"GET http://127.0.0.1:{port}/one HTTP/1.1\r\n{agent.auth}Host: 127.0.0.1:{port}\r\n\r\n"
        other = f"GET http://evil.example/two HTTP/1.1\r\n{agent.auth}Host: evil.example\r\n\r\n"
        answer = await agent.say(one + other + one)
        assert answer.count(b"HTTP/1.1 200 OK") == 1
        assert answer.count(b"HTTP/1.1 403 ") == 1
        assert [request.path for request in seen] == ["/one"]
        assert agent.desk.blocked == {"evil.example:80": 1}
        # the same host again, but no token; and a CONNECT where a request was
        answer = await agent.say(
            one + f"GET http://127.0.0.1:{port}/ HTTP/1.1\r\nHost: 127.0.0.1:{port}\r\n\r\n"
        )
        assert answer.count(b"HTTP/1.1 407 ") == 1
        host = f"Host: 127.0.0.1:{port}\r\n"
        answer = await agent.say(f"{one}CONNECT 127.0.0.1:{port} HTTP/1.1\r\n{host}{agent.auth}\r\n")
        assert answer.count(b"HTTP/1.1 400 ") == 1
        assert len(seen) == 3


async def test_a_smuggled_request_stays_the_body_of_the_one_that_holds_it(tmp_path: Path) -> None:
    async with website() as (port, seen), door(tmp_path, f"127.0.0.1:{port}") as agent:
        hidden = "GET /hidden HTTP/1.1\r\nHost: evil.example\r\n\r\n"
        first = f"POST http://127.0.0.1:{port}/ HTTP/1.1\r\n{agent.auth}Host: 127.0.0.1:{port}\r\nConnection: close\r\n"
        answer = await agent.say(f"{first}Content-Length: {len(hidden)}\r\n\r\n{hidden}")
        assert status(answer) == 200
        # both kinds of length, which two programs may read differently
        for fields in (
            f"Content-Length: {len(hidden)}\r\nTransfer-Encoding: chunked\r\n",
            f"Content-Length: 0\r\nContent-Length: {len(hidden)}\r\n",
            "Transfer-Encoding: chunked\r\nTransfer-Encoding: identity\r\n",
            "Transfer-Encoding: xchunked\r\n",
            "Transfer-Encoding : chunked\r\n",
        ):
            answer = await agent.say(f"{first}{fields}\r\n0\r\n\r\n{hidden}")
            assert b"hidden" not in answer.replace(hidden.encode(), b"")
        assert {request.path for request in seen} <= {"/"}


async def test_own_paths_are_not_reached_by_an_absolute_uri(tmp_path: Path) -> None:
    async with door(tmp_path) as agent:
        for url in (
            "http://gateway/turns/next?after=0",
            "http://127.0.0.1:8080/session",
            "http://localhost/events",
        ):
            answer = await agent.get(
                url, f"Host: {url.split('/')[2]}", f"Authorization: Bearer {agent.desk.token}"
            )
            assert status(answer) == 403
        assert set(agent.desk.blocked) == {"gateway:80", "127.0.0.1:8080", "localhost:80"}


# --- addresses


async def test_every_address_of_a_name_is_looked_at(tmp_path: Path) -> None:
    def both(name: str) -> Sequence[Address]:
        assert name == "registry.example"
        return [ipaddress.ip_address("127.0.0.1"), ipaddress.ip_address("10.0.0.1")]

    async with listening(echo) as port, door(tmp_path, f"registry.example:{port}", look_up=both) as agent:
        head, _ = await agent.connect(f"registry.example:{port}")
        assert head.startswith(b"HTTP/1.1 403 Forbidden, not a public address")
        answer = await agent.get(f"http://registry.example:{port}/", f"Host: registry.example:{port}")
        assert status(answer) == 403
        assert b"10.0.0.1" not in answer  # what our network looks like is not its business
        assert agent.desk.blocked == {f"registry.example:{port} (not a public address)": 2}


@pytest.mark.parametrize("address", ["127.0.0.1", "10.0.0.1", "169.254.169.254", "192.168.1.1", "::1", "fe80::1",
                                     "::ffff:127.0.0.1", "64:ff9b::7f00:1", "fd00::1", "0.0.0.0",
                                     "203.0.113.9"])  # fmt: skip
async def test_a_name_that_leads_inside_is_refused(tmp_path: Path, address: str) -> None:
    def inside(name: str) -> Sequence[Address]:
        return [ipaddress.ip_address(address)]

    async with (
        listening(echo) as port,
        door(tmp_path, f"evil.example:{port}", look_up=inside, private=()) as agent,
    ):
        head, _ = await agent.connect(f"evil.example:{port}")
        assert status(head) == 403
        assert agent.desk.blocked == {f"evil.example:{port} (not a public address)": 1}


async def test_a_repository_s_own_rule_never_leads_inside(tmp_path: Path) -> None:
    desk = Desk.create(tmp_path / "d", attempt_id="j1-1", mirror=None, terms=Terms(allow=("127.0.0.1:*",)))
    gateway = Gateway({}, egress=Egress(private=LOOPBACK))
    async with listening(echo) as port:
        agent = Door(desk, await gateway.open(desk))
        head, _ = await agent.connect(f"127.0.0.1:{port}")
        assert status(head) == 403
        for writer in agent.open:
            writer.transport.abort()
        await gateway.aclose()
        desk.close()


async def test_a_name_that_changes_its_mind_is_not_asked_twice(tmp_path: Path) -> None:
    asked: list[str] = []

    def rebinding(name: str) -> Sequence[Address]:
        asked.append(name)
        return [ipaddress.ip_address("127.0.0.2" if len(asked) == 1 else "127.0.0.3")]

    async def greet(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        writer.write(writer.get_extra_info("sockname")[0].encode())
        writer.write_eof()
        await reader.read()

    private = [ipaddress.ip_network("127.0.0.2/32")]
    async with (
        listening(greet, "0.0.0.0") as port,
        door(tmp_path, f"rebind.example:{port}", look_up=rebinding, private=private) as agent,
    ):
        _, (reader, _) = await agent.connect(f"rebind.example:{port}")
        assert await reader.read() == b"127.0.0.2"
        assert asked == ["rebind.example"]
        head, _ = await agent.connect(f"rebind.example:{port}")
        assert status(head) == 403
    asked.clear()
    async with (
        website("0.0.0.0") as (port, seen),
        door(tmp_path / "second", f"rebind.example:{port}", look_up=rebinding, private=private) as agent,
    ):
        url = f"http://rebind.example:{port}/"
        assert status(await agent.get(url, f"Host: rebind.example:{port}")) == 200
        assert asked == ["rebind.example"]
        assert status(await agent.get(url, f"Host: rebind.example:{port}")) == 403
        assert len(seen) == 1


async def test_this_host_s_own_addresses_are_refused_also_where_they_are_public(tmp_path: Path) -> None:
    assert module._is_ours(ipaddress.ip_address("127.0.0.1"))
    assert not module._is_ours(ipaddress.ip_address("1.1.1.1"))
    assert not module._is_ours(ipaddress.ip_address("2606:4700::1"))


def test_no_socket_is_made_for_an_address_that_was_not_checked() -> None:
    checked = module._Checked([ipaddress.ip_address("127.0.0.1")], any_host=False)
    about = (socket.AF_INET, socket.SOCK_STREAM, socket.IPPROTO_TCP, "")
    checked.socket((*about, ("127.0.0.1", 80))).close()
    with pytest.raises(OSError, match="not checked"):
        checked.socket((*about, ("127.0.0.2", 80)))


async def test_a_name_that_nobody_knows_is_no_refusal(tmp_path: Path) -> None:
    def unknown(name: str) -> Sequence[Address]:
        raise socket.gaierror(socket.EAI_NONAME, "Name or service not known")

    async with door(tmp_path, "gone.example", look_up=unknown) as agent:
        answer = await agent.say(f"CONNECT gone.example:443 HTTP/1.1\r\n{agent.auth}\r\n")
        assert status(answer) == 502
        assert b"cannot be resolved" in answer
        assert agent.desk.blocked == {}


async def test_a_port_where_nobody_listens_is_no_refusal(tmp_path: Path) -> None:
    with socket.socket() as free:
        free.bind(("127.0.0.1", 0))
        port = free.getsockname()[1]
        async with door(tmp_path, f"127.0.0.1:{port}") as agent:
            assert status(await agent.say(f"CONNECT 127.0.0.1:{port} HTTP/1.1\r\n{agent.auth}\r\n")) == 502
            assert status(await agent.get(f"http://127.0.0.1:{port}/", f"Host: 127.0.0.1:{port}")) == 502
            assert agent.desk.blocked == {}


async def test_the_next_address_is_tried(tmp_path: Path) -> None:
    def two(name: str) -> Sequence[Address]:
        return [ipaddress.ip_address("127.0.0.9"), ipaddress.ip_address("127.0.0.1")]

    async with listening(echo) as port, door(tmp_path, f"two.example:{port}", look_up=two) as agent:
        head, _ = await agent.connect(f"two.example:{port}")
        assert status(head) == 200


# --- plain HTTP


async def test_a_plain_request_is_sent_on_without_what_is_the_proxy_s(tmp_path: Path) -> None:
    async with website() as (port, _), door(tmp_path, f"127.0.0.1:{port}") as agent:
        answer = await agent.get(
            f"HTTP://127.0.0.1:{port}/a%2Fb/../c?q=%20&r=%2F", f"Host: 127.0.0.1:{port}",
            "User-Agent: pip/1", "Authorization: Basic abc", "TE: trailers", "Proxy-Connection: keep-alive", "X-Hop: 1",
        )  # fmt: skip
        head, _, body = answer.partition(b"\r\n\r\n")
        assert head.startswith(b"HTTP/1.1 200 OK")
        assert b"Proxy-Authenticate" not in head
        assert b"X-Own" not in head
        got = json.loads(body)
        assert got["target"] == "/a%2Fb/../c?q=%20&r=%2F"
        headers = dict(got["headers"])
        assert headers["Authorization"] == "Basic abc"
        assert headers["User-Agent"] == "pip/1"
        assert headers["Host"] == f"127.0.0.1:{port}"
        assert {"TE", "Proxy-Authorization", "Proxy-Connection", "Accept", "Accept-Encoding"}.isdisjoint(
            headers
        )


async def test_fields_that_connection_names_are_not_sent_on(tmp_path: Path) -> None:
    async with website() as (port, _), door(tmp_path, f"127.0.0.1:{port}") as agent:
        answer = await agent.say(
            f"GET http://127.0.0.1:{port} HTTP/1.1\r\n{agent.auth}Host: 127.0.0.1:{port}\r\nX-Hop: 1\r\n"
            "Connection: close, x-hop, host\r\n\r\n"
        )
        got = json.loads(answer.partition(b"\r\n\r\n")[2])
        assert got["target"] == "/"
        assert "X-Hop" not in dict(got["headers"])
        assert dict(got["headers"])["Host"] == f"127.0.0.1:{port}"


async def test_bodies_go_both_ways(tmp_path: Path) -> None:
    async with website() as (port, seen), door(tmp_path, f"127.0.0.1:{port}") as agent:
        base = f"POST http://127.0.0.1:{port}/ HTTP/1.1\r\n{agent.auth}Host: 127.0.0.1:{port}\r\nConnection: close\r\n"
        for fields in (
            "Content-Length: 5\r\n\r\nhello",
            "Transfer-Encoding: chunked\r\n\r\n5\r\nhello\r\n0\r\n\r\n",
        ):
            answer = await agent.say(base + fields)
            assert json.loads(answer.partition(b"\r\n\r\n")[2])["body"] == "hello"
        assert "Content-Length" in seen[0].headers
        assert "Content-Length" not in seen[1].headers
        answer = await agent.get(f"http://127.0.0.1:{port}/chunked", f"Host: 127.0.0.1:{port}")
        assert answer.count(b"part,") == 3
        assert b"X-Kind: chunked" in answer


async def test_a_redirect_is_the_client_s_to_follow(tmp_path: Path) -> None:
    async with website() as (port, _), door(tmp_path, f"127.0.0.1:{port}") as agent:
        answer = await agent.get(f"http://127.0.0.1:{port}/moved", f"Host: 127.0.0.1:{port}")
        assert status(answer) == 302
        assert b"Location: http://127.0.0.1:1/elsewhere" in answer


async def test_an_answer_that_breaks_off_is_not_taken_for_the_whole(
    tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    async with website() as (port, _), door(tmp_path, f"127.0.0.1:{port}") as agent:
        reader, writer = await agent.connection()
        writer.write(
            f"GET http://127.0.0.1:{port}/gone HTTP/1.1\r\n{agent.auth}Host: 127.0.0.1:{port}\r\n\r\n".encode()
        )
        head = await reader.readuntil(b"\r\n\r\n")
        assert b"Content-Length: 1000" in head
        with pytest.raises((asyncio.IncompleteReadError, ConnectionError)):
            await asyncio.wait_for(reader.readexactly(1000), 20)
    assert [record.message for record in caplog.records if record.levelname == "ERROR"] == []


async def test_a_client_that_leaves_in_the_midst_is_no_error_of_ours(
    tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    left = asyncio.Event()

    async def pour(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        writer.write(b"HTTP/1.1 200 OK\r\nContent-Length: 1000000000\r\n\r\n")
        try:
            while True:
                writer.write(bytes(1 << 16))
                await writer.drain()
        finally:
            left.set()

    async with listening(pour) as port, door(tmp_path, f"127.0.0.1:{port}") as agent:
        reader, writer = await agent.connection()
        host = f"Host: 127.0.0.1:{port}\r\n"
        writer.write(f"GET http://127.0.0.1:{port}/ HTTP/1.1\r\n{agent.auth}{host}\r\n".encode())
        await reader.readexactly(1 << 16)
        writer.transport.abort()
        await asyncio.wait_for(left.wait(), 20)
    assert [record.message for record in caplog.records if record.levelname == "ERROR"] == []


async def test_head_has_no_body(tmp_path: Path) -> None:
    async with website() as (port, _), door(tmp_path, f"127.0.0.1:{port}") as agent:
        answer = await agent.say(
            f"HEAD http://127.0.0.1:{port}/ HTTP/1.1\r\n{agent.auth}Host: 127.0.0.1:{port}\r\nConnection: close\r\n\r\n"
        )
        head, _, body = answer.partition(b"\r\n\r\n")
        assert status(head) == 200
        assert body == b""


# --- limits


async def test_so_many_connections_at_once_and_no_more(tmp_path: Path) -> None:
    async with listening(echo) as port, door(tmp_path, f"127.0.0.1:{port}") as agent:
        first = [await agent.connect(f"127.0.0.1:{port}") for _ in range(module.MAX_AT_ONCE)]
        assert {status(head) for head, _ in first} == {200}
        head, _ = await agent.connect(f"127.0.0.1:{port}")
        assert status(head) == 429
        assert agent.desk.blocked == {f"127.0.0.1:{port} (over this job's limit)": 1}
        heartbeat = f"POST /heartbeat HTTP/1.1\r\nHost: x\r\nConnection: close\r\nx-api-key: {agent.desk.token}\r\n\r\n"
        assert status(await agent.say(heartbeat)) == 204  # what it is told and reports is not in the way
        _, (reader, writer) = first[0]
        writer.write_eof()
        await reader.read()
        head, _ = await agent.connect(f"127.0.0.1:{port}")
        assert status(head) == 200


async def test_silent_connections_do_not_add_up(tmp_path: Path) -> None:
    async with door(tmp_path) as agent:
        silent = [await agent.connection() for _ in range(MAX_CONNECTIONS)]
        for _, writer in silent:
            writer.write(b"CONN")
            await writer.drain()
        reader, writer = await agent.connection()
        writer.write(b"GET / HTTP/1.1\r\n\r\n")
        with pytest.raises((ConnectionError, asyncio.IncompleteReadError)):
            await asyncio.wait_for(reader.readexactly(1), 20)


async def test_a_head_that_does_not_come_or_end_is_not_waited_for(tmp_path: Path) -> None:
    async with door(tmp_path, "example.com", head=0.05) as agent:
        assert await agent.say("CONNECT example.com:443 HTTP/1.1\r\n") == b""
    async with door(tmp_path / "second", "example.com") as agent:
        with suppress(ConnectionError):  # what it still sends is not read any more
            answer = await agent.say(b"CONNECT example.com:443 HTTP/1.1\r\nX: " + b"a" * (1 << 20))
            assert status(answer) == 431


async def test_a_silent_tunnel_is_closed(tmp_path: Path) -> None:
    async with listening(echo) as port, door(tmp_path, f"127.0.0.1:{port}", idle=0.05) as agent:
        _, (reader, _) = await agent.connect(f"127.0.0.1:{port}")
        with pytest.raises((ConnectionError, asyncio.IncompleteReadError)):
            await asyncio.wait_for(reader.readexactly(1), 20)


async def test_a_talkative_tunnel_is_closed_after_its_time(tmp_path: Path) -> None:
    async def talk(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        while True:
            writer.write(b".")
            await writer.drain()
            await asyncio.sleep(0.005)

    async with listening(talk) as port, door(tmp_path, f"127.0.0.1:{port}", total=0.2) as agent:
        _, (reader, _) = await agent.connect(f"127.0.0.1:{port}")
        with pytest.raises((ConnectionError, asyncio.IncompleteReadError)):
            await asyncio.wait_for(reader.readexactly(1 << 20), 20)


async def test_so_many_bytes_and_no_more(tmp_path: Path) -> None:
    async with listening(echo) as port, door(tmp_path, f"127.0.0.1:{port}", max_bytes=300_000) as agent:
        told = f"127.0.0.1:{port} (over this job's limit)"
        _, (reader, writer) = await agent.connect(f"127.0.0.1:{port}")
        writer.write(b"x" * 1_000_000)
        with pytest.raises((ConnectionError, asyncio.IncompleteReadError)):
            await asyncio.wait_for(reader.readexactly(1_000_000), 20)
        assert agent.desk.blocked == {told: 1}  # also the one that was cut
        head, _ = await agent.connect(f"127.0.0.1:{port}")
        assert status(head) == 403
        assert agent.desk.blocked == {told: 2}


async def test_plain_answers_and_bodies_count_as_well(tmp_path: Path) -> None:
    async with website() as (port, _), door(tmp_path, f"127.0.0.1:{port}", max_bytes=1000) as agent:
        host = f"Host: 127.0.0.1:{port}"
        answer = await agent.say(
            f"POST http://127.0.0.1:{port}/ HTTP/1.1\r\n{agent.auth}{host}\r\nContent-Length: 5000\r\n\r\n"
            + "x" * 5000
        )
        assert status(answer) == 403
        assert status(await agent.get(f"http://127.0.0.1:{port}/", host)) == 403
        assert agent.desk.blocked == {f"127.0.0.1:{port} (over this job's limit)": 2}


async def test_refusals_beyond_count_are_still_refusals(tmp_path: Path) -> None:
    async with door(tmp_path) as agent:
        for number in range(20):
            head, _ = await agent.connect(f"h{number}.example:443")
            assert status(head) == 403
        assert len(agent.desk.blocked) == 20


async def test_a_gateway_that_stops_leaves_no_connection(tmp_path: Path) -> None:
    ended = asyncio.Event()

    async def listen(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        try:
            await reader.read()
        finally:
            ended.set()

    async with listening(listen) as port:
        async with door(tmp_path, f"127.0.0.1:{port}") as agent:
            _, (reader, _) = await agent.connect(f"127.0.0.1:{port}")
            waiting, _ = await agent.connection()
        await asyncio.wait_for(ended.wait(), 20)
        for left in (reader, waiting):
            with suppress(ConnectionError):
                assert await asyncio.wait_for(left.read(), 20) == b""


# --- an operator's own proxy


@asynccontextmanager
async def upstream_proxy(*, refuse: bool = False) -> AsyncIterator[tuple[str, list[str]]]:
    """A forward proxy with a password; its URL and what it was asked for. It resolves every name to 127.0.0.1."""
    asked: list[str] = []
    wanted = base64.b64encode(b"me:hunter2").decode()

    async def serve(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        head = (await reader.readuntil(b"\r\n\r\n")).decode()
        method, target, _ = head.split("\r\n")[0].split(" ")
        asked.append(f"{method} {target}")
        if refuse or f"Proxy-Authorization: Basic {wanted}" not in head:
            writer.write(b"HTTP/1.1 407 No\r\nContent-Length: 0\r\n\r\n")
            return
        where = target if method == "CONNECT" else target.split("/")[2]
        far, out = await asyncio.open_connection("127.0.0.1", int(where.rpartition(":")[2]))
        if method == "CONNECT":
            writer.write(b"HTTP/1.1 200 OK\r\n\r\n")
        else:
            out.write(
                f"{method} /{target.split('/', 3)[3]} HTTP/1.1\r\nHost: {where}\r\nConnection: close\r\n\r\n".encode()
            )

        async def carry(source: asyncio.StreamReader, sink: asyncio.StreamWriter) -> None:
            while data := await source.read(65536):
                sink.write(data)
                await sink.drain()
            sink.write_eof()

        try:
            await asyncio.gather(carry(reader, out), carry(far, writer))
        finally:
            out.transport.abort()

    async with listening(serve) as port:
        yield f"http://me:hunter2@127.0.0.1:{port}", asked


async def test_an_upstream_proxy_resolves_and_connects(tmp_path: Path) -> None:
    def unknown(name: str) -> Sequence[Address]:
        raise socket.gaierror(socket.EAI_NONAME, "unknown here")

    async with (
        upstream_proxy() as (url, asked),
        listening(echo) as port,
        website() as (plain, _),
        door(
            tmp_path, f"far.example:{port}", f"far.example:{plain}", upstream=URL(url), look_up=unknown
        ) as agent,
    ):
        _, (reader, writer) = await agent.connect(f"far.example:{port}")
        writer.write(b"hello")
        assert await reader.readexactly(5) == b"hello"
        answer = await agent.get(f"http://far.example:{plain}/x", f"Host: far.example:{plain}")
        assert status(answer) == 200
        assert json.loads(answer.partition(b"\r\n\r\n")[2])["target"] == "/x"
        head, _ = await agent.connect(f"other.example:{port}")
        assert status(head) == 403
        assert asked == [f"CONNECT far.example:{port}", f"GET http://far.example:{plain}/x"]


async def test_behind_an_upstream_proxy_a_name_that_leads_inside_is_refused(tmp_path: Path) -> None:
    def inside(name: str) -> Sequence[Address]:
        return [ipaddress.ip_address("10.0.0.1")]

    async with (
        upstream_proxy() as (url, asked),
        door(tmp_path, "inside.example", upstream=URL(url), look_up=inside) as agent,
    ):
        head, _ = await agent.connect("inside.example:443")
        assert status(head) == 403
        assert asked == []


async def test_an_upstream_proxy_that_refuses_is_a_bad_gateway_and_keeps_its_password(tmp_path: Path) -> None:
    async with (
        upstream_proxy(refuse=True) as (url, _),
        door(tmp_path, "127.0.0.1:443", upstream=URL(url)) as agent,
    ):
        answer = await agent.say(f"CONNECT 127.0.0.1:443 HTTP/1.1\r\n{agent.auth}\r\n")
        assert status(answer) == 502
        assert b"hunter2" not in answer
        assert b"407" not in answer


async def test_the_worker_s_environment_names_the_upstream_proxy(tmp_path: Path) -> None:
    async with upstream_proxy() as (url, asked), listening(echo) as port:
        environment = {"HTTPS_PROXY": url, "NO_PROXY": "127.0.0.1"}
        settings = fixed_settings(egress_private=["127.0.0.0/8", "::1/128"])
        egress = Egress.from_settings(settings, environment)
        desk = Desk.create(
            tmp_path / "d", attempt_id="a", mirror=None,
            terms=Terms(allow=(f"localhost:{port} private", f"127.0.0.1:{port} private")),
        )  # fmt: skip
        gateway = Gateway({}, egress=egress)
        agent = Door(desk, await gateway.open(desk))
        assert status((await agent.connect(f"127.0.0.1:{port}"))[0]) == 200  # NO_PROXY: directly
        assert asked == []
        assert status((await agent.connect(f"localhost:{port}"))[0]) == 200
        assert asked == [f"CONNECT localhost:{port}"]
        for writer in agent.open:
            writer.transport.abort()
        await gateway.aclose()
        desk.close()
        direct = Egress.from_settings(fixed_settings(egress_upstream="none"), environment)
        assert direct._upstream is None
        direct.close()
