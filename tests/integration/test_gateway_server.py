"""The gateway over real sockets: the protocol's edges, limits, and what is left when it stops."""

from __future__ import annotations

import asyncio
import io
import json
import socket
import stat
import tarfile
import zlib
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from pathlib import Path
from typing import Any

import aiohttp
import pytest
from aiohttp import web

from bot.errors import InfrastructureError
from runners.gateway.desk import Desk
from runners.gateway.server import MAX_CONNECTIONS, SOCKET, Gateway

TURN: dict[str, Any] = {"number": 1, "command": {"argv": ["x"]}, "timeout": 5}
BASE = "http://gateway"


async def echo(request: web.Request, desk: Desk, tail: str) -> web.StreamResponse:
    return web.json_response(
        {
            "tail": tail,
            "query": request.query_string,
            "attempt": desk.attempt_id,
            "size": len(await request.read()),
        }
    )


async def broken(request: web.Request, desk: Desk, tail: str) -> web.StreamResponse:
    raise RuntimeError("a secret of the host")


def make(folder: Path, attempt_id: str = "j1-1") -> Desk:
    desk = Desk.create(folder, attempt_id=attempt_id, mirror=None)
    desk.give(TURN)
    return desk


@asynccontextmanager
async def served(desk: Desk, **options: Any) -> AsyncIterator[aiohttp.ClientSession]:
    gateway = Gateway({"git": echo, "broken": broken}, **options)
    path = await gateway.open(desk)
    connector = aiohttp.UnixConnector(str(path), limit=0)
    headers = {"Authorization": f"Bearer {desk.token}"}
    try:
        async with aiohttp.ClientSession(BASE, connector=connector, headers=headers) as client:
            yield client
    finally:
        await gateway.aclose()
        desk.close()


async def ask(client: aiohttp.ClientSession, method: str, path: str, **options: Any) -> tuple[int, Any]:
    async with client.request(method, path, **options) as answer:
        text = await answer.text()
        return answer.status, json.loads(text) if text else None


def session(**members: bytes) -> bytes:
    out = io.BytesIO()
    with tarfile.open(fileobj=out, mode="w") as tar:
        for name, data in members.items():
            member = tarfile.TarInfo(name)
            member.size = len(data)
            tar.addfile(member, io.BytesIO(data))
    return out.getvalue()


async def test_a_turn_is_fetched_reported_and_finished(tmp_path: Path) -> None:
    desk = make(tmp_path / "desk")
    async with served(desk, long_poll=0.01) as client:
        assert await ask(client, "GET", "/turns/next?after=0") == (200, TURN)
        assert await ask(client, "GET", "/turns/next?after=1") == (204, None)
        events = {"turn": 1, "events": [{"seq": 1, "time": 1, "stream": "stderr", "lines": ["x"]}]}
        assert await ask(client, "POST", "/events", json=events) == (200, {"acked": 1})
        assert await ask(client, "POST", "/turns/1/outcome", json={"exit_code": 0}) == (200, {})
        before = desk.last_heard
        assert await ask(client, "POST", "/heartbeat") == (204, None)
        assert desk.last_heard > before
        desk.finish()
        assert (await ask(client, "GET", "/turns/next?after=1"))[0] == 410
        assert (await ask(client, "GET", "/turns/next?after=0"))[0] == 410
    outcome = desk.outcome_now(1)
    assert outcome is not None
    assert outcome.exit_code == 0


async def test_a_long_poll_is_answered_when_the_turn_comes(tmp_path: Path) -> None:
    desk = make(tmp_path / "desk")
    async with served(desk) as client:
        before = desk.last_heard
        waiting = asyncio.create_task(ask(client, "GET", "/turns/next?after=1"))
        while desk.last_heard == before:
            await asyncio.sleep(0)
        desk.give(TURN | {"number": 2})
        assert await asyncio.wait_for(waiting, 20) == (200, TURN | {"number": 2})


async def test_a_route_gets_the_request_the_desk_and_the_rest_of_the_path(tmp_path: Path) -> None:
    desk = make(tmp_path / "desk")
    async with served(desk) as client:
        assert await ask(client, "POST", "/git/repository.git/a%20b?x=1&y=%2F", data=b"12345") == (
            200,
            {"tail": "repository.git/a%20b", "query": "x=1&y=/", "attempt": "j1-1", "size": 5},
        )


async def test_a_route_that_fails_tells_nothing_of_the_host(tmp_path: Path) -> None:
    desk = make(tmp_path / "desk")
    async with served(desk) as client:
        status, answer = await ask(client, "GET", "/broken/x")
        assert status == 500
        assert "secret" not in json.dumps(answer)
        assert await ask(client, "POST", "/heartbeat") == (204, None)


@pytest.mark.parametrize(
    ("method", "path", "status"),
    [
        ("GET", "/", 404),
        ("GET", "/nothing", 404),
        ("POST", "/llm/anthropic/v1/messages", 404),  # no such route here
        ("GET", "/turns/1/outcome", 404),
        ("POST", "/turns/x/outcome", 404),
        ("POST", "/turns/-1/outcome", 404),
        ("POST", "/turns/9999999/outcome", 404),
        ("POST", "/turns/2/outcome", 400),
        ("GET", "/events", 405),
        ("DELETE", "/session", 405),
        ("POST", "/turns/next", 405),
        ("GET", "/turns/next", 400),
        ("GET", "/turns/next?after=-1", 400),
        ("GET", "/turns/next?after=%D9%A1", 400),  # a digit, but not ours
        ("POST", "/events", 400),
    ],
)
async def test_what_the_protocol_does_not_know_is_answered_as_json(
    tmp_path: Path, method: str, path: str, status: int
) -> None:
    desk = make(tmp_path / "desk")
    async with served(desk, long_poll=0.01) as client:
        got, answer = await ask(client, method, path)
        assert got == status
        assert answer["error"]


@pytest.mark.parametrize(
    "path", ["/git/../session", "/git/%2e%2e/session", "/git/..%2fx", "/git/a%5cb", "/git/a%00b", "/git/./x"]
)
async def test_paths_that_lead_elsewhere_are_refused(tmp_path: Path, path: str) -> None:
    desk = make(tmp_path / "desk")
    async with served(desk):
        reader, writer = await asyncio.open_unix_connection(str(desk.socket_dir / SOCKET))
        request = f"GET {path} HTTP/1.1\r\nHost: x\r\nAuthorization: Bearer {desk.token}\r\nConnection: close\r\n\r\n"
        writer.write(request.encode())
        answer = await asyncio.wait_for(reader.read(), 20)
        writer.close()
        assert answer.startswith(b"HTTP/1.1 400 ")


async def test_bodies_above_their_limits_are_refused_and_change_nothing(tmp_path: Path) -> None:
    desk = make(tmp_path / "desk")

    async def endless(size: int) -> AsyncIterator[bytes]:
        for _ in range(size >> 16):
            yield b" " * 65536

    async with served(desk) as client:
        for path, size in (("/events", 20 << 20), ("/turns/1/outcome", 1 << 20)):
            assert (await ask(client, "POST", path, data=endless(size)))[0] == 413  # chunked
            assert (await ask(client, "POST", path, data=io.BytesIO(b" " * size)))[0] == 413  # announced
        assert await ask(client, "POST", "/heartbeat") == (204, None)
    assert desk.last_seq == 0
    assert desk.outcome_now(1) is None


async def test_a_compressed_bomb_is_measured_unpacked(tmp_path: Path) -> None:
    desk = make(tmp_path / "desk")
    async with served(desk) as client:
        bomb = zlib.compress(b" " * (64 << 20))
        status, _ = await ask(client, "POST", "/events", data=bomb, headers={"Content-Encoding": "deflate"})
        assert status == 413
        assert await ask(client, "POST", "/heartbeat") == (204, None)


async def test_a_session_goes_up_and_comes_down(tmp_path: Path) -> None:
    desk = make(tmp_path / "desk")
    archive = session(a=b"x" * 300_000)
    async with served(desk) as client:
        assert await ask(client, "GET", "/session") == (204, None)
        assert await ask(client, "PUT", "/session", data=archive) == (204, None)
        async with client.get("/session") as answer:
            assert await answer.read() == archive
        assert (await ask(client, "PUT", "/session", data=b"no tar at all" * 100))[0] == 400
        async with client.get("/session") as answer:
            assert await answer.read() == archive  # the refused one changed nothing
    assert stat.S_IMODE(desk.session_tar.stat().st_mode) == 0o600
    assert not (desk.directory / "session.received").exists()


async def test_two_attempts_do_not_mix(tmp_path: Path) -> None:
    one, two = make(tmp_path / "one", "j1-1"), make(tmp_path / "two", "j2-1")
    gateway = Gateway({"git": echo})
    try:
        for desk in (one, two):
            path = await gateway.open(desk)
            assert await gateway.open(desk) == path
            headers = {"x-api-key": desk.token}
            connector = aiohttp.UnixConnector(str(path))
            async with aiohttp.ClientSession(BASE, connector=connector, headers=headers) as client:
                assert (await ask(client, "GET", "/git/x"))[1]["attempt"] == desk.attempt_id
        await gateway.close("j1-1")
        await gateway.close("j1-1")
        assert not (one.socket_dir / SOCKET).exists()
        assert (two.socket_dir / SOCKET).exists()
    finally:
        await gateway.aclose()
        one.close()
        two.close()


async def test_closing_does_not_wait_for_long_polls(tmp_path: Path) -> None:
    desk = make(tmp_path / "desk")
    gateway = Gateway({}, long_poll=3600)
    path = await gateway.open(desk)
    connector = aiohttp.UnixConnector(str(path))
    headers = {"x-api-key": desk.token}
    async with aiohttp.ClientSession(BASE, connector=connector, headers=headers) as client:
        before = desk.last_heard
        waiting = asyncio.create_task(ask(client, "GET", "/turns/next?after=1"))
        while desk.last_heard == before:
            await asyncio.sleep(0)
        await asyncio.wait_for(gateway.aclose(), 60)
        assert await asyncio.wait_for(waiting, 60) == (204, None)
    desk.close()


async def test_the_socket_of_a_killed_worker_is_replaced_and_a_live_one_is_not(tmp_path: Path) -> None:
    desk = make(tmp_path / "desk")
    path = desk.socket_dir / SOCKET
    with socket.socket(socket.AF_UNIX, socket.SOCK_STREAM) as left:
        left.bind(str(path))  # bound and never closed properly
    async with served(desk) as client:
        assert await ask(client, "POST", "/heartbeat") == (204, None)
        assert stat.S_IMODE(path.stat().st_mode) == 0o666
        second = Gateway({})
        with pytest.raises(InfrastructureError, match="another process serves it"):
            await second.open(Desk.open(desk.directory))
        await second.aclose()
        assert await ask(client, "POST", "/heartbeat") == (204, None)


async def test_a_file_in_the_sockets_place_is_not_deleted(tmp_path: Path) -> None:
    desk = make(tmp_path / "desk")
    (desk.socket_dir / SOCKET).write_text("precious")
    gateway = Gateway({})
    with pytest.raises(InfrastructureError, match="not a socket"):
        await gateway.open(desk)
    assert (desk.socket_dir / SOCKET).read_text() == "precious"
    desk.close()


async def test_a_missing_folder_is_told_with_the_next_step(tmp_path: Path) -> None:
    desk = make(tmp_path / "desk")
    desk.socket_dir.rmdir()
    with pytest.raises(InfrastructureError, match="DATA_DIR"):
        await Gateway({}).open(desk)
    desk.close()


async def test_a_data_folder_longer_than_a_socket_address_works(tmp_path: Path) -> None:
    deep = tmp_path / ("d" * 100) / ("e" * 100)
    desk = make(deep)
    gateway = Gateway({})
    path = await gateway.open(desk)
    assert len(str(path)) > 200
    link = tmp_path / "short"
    link.symlink_to(desk.socket_dir)
    connector = aiohttp.UnixConnector(str(link / SOCKET))
    async with aiohttp.ClientSession(BASE, connector=connector, headers={"x-api-key": desk.token}) as client:
        assert await ask(client, "POST", "/heartbeat") == (204, None)
    await gateway.aclose()
    assert not path.exists()
    desk.close()


async def test_one_attempt_cannot_use_up_the_workers_descriptors(tmp_path: Path) -> None:
    desk = make(tmp_path / "desk")
    path = str(desk.socket_dir / SOCKET)
    async with served(desk) as client:
        streams = [await asyncio.open_unix_connection(path) for _ in range(MAX_CONNECTIONS + 20)]
        ended = [asyncio.create_task(reader.read()) for reader, _ in streams]
        done: set[asyncio.Task[bytes]] = set()
        async with asyncio.timeout(30):
            while len(done) < 20:
                done, _ = await asyncio.wait(ended, return_when=asyncio.FIRST_COMPLETED, timeout=1)
        assert {task.result() for task in done} == {b""}
        for _, writer in streams:
            writer.close()
            await writer.wait_closed()
        await asyncio.gather(*ended)
        assert await ask(client, "POST", "/heartbeat") == (204, None)
