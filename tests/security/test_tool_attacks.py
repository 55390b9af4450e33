"""Attack class 25, the agent's tools: socket and token tell who speaks, and the gateway enforces what is granted."""

from __future__ import annotations

import asyncio
import base64
import ipaddress
from collections.abc import AsyncIterator, Callable
from contextlib import asynccontextmanager
from pathlib import Path
from typing import Any

import aiohttp
import pytest
from yarl import URL

from bot.agent_requests import NotGrantable, grant_of
from bot.budget import Scope
from bot.config import fixed_settings
from bot.database import create_engine, upgrade
from bot.ledger import Ledger
from bot.model import ApprovalKind
from bot.network import Address
from bot.terms import Grant, Terms
from runners.gateway.desk import Desk
from runners.gateway.egress import Egress
from runners.gateway.mcp import McpRoute
from runners.gateway.server import Gateway
from tests.llm import Script, ScriptedLlm
from tests.llm_gate import TOOLS, front

HOST = "docs.granted.invalid"
OPERATOR = fixed_settings(egress_may_allow=("*.granted.invalid", "inside.invalid"), budget_job=10)


def ask(**arguments: Any) -> dict[str, Any]:
    params = {"name": "request_approval", "arguments": {"kind": "text", "reason": "x", **arguments}}
    return {"jsonrpc": "2.0", "id": 1, "method": "tools/call", "params": params}


async def post(desk: Desk, body: Any, path: str = "/mcp", **headers: str) -> tuple[int, str]:
    connector = aiohttp.UnixConnector(str(desk.socket_dir / "gateway.sock"))
    async with (
        aiohttp.ClientSession("http://gateway", connector=connector) as client,
        client.post(path, json=body, headers=headers) as answer,
    ):
        return answer.status, await answer.text()


def bearer(token: str) -> dict[str, str]:
    return {"Authorization": f"Bearer {token}"}


@pytest.fixture
async def pair(tmp_path: Path) -> AsyncIterator[tuple[Desk, Desk]]:
    """Two attempts on one worker."""
    gateway = Gateway({"mcp": McpRoute(OPERATOR).serve})
    desks = [Desk.create(tmp_path / name, attempt_id=name, mirror=None) for name in ("victim", "attacker")]
    for desk in desks:
        desk.give({"number": 1})
        await gateway.open(desk)
    yield desks[0], desks[1]
    await gateway.aclose()
    for desk in desks:
        desk.close()


# --- who speaks -----------------------------------------------------------------------------------------


async def test_without_its_own_token_nobody_asks_in_an_attempts_name(pair: tuple[Desk, Desk]) -> None:
    victim, attacker = pair
    for headers in (
        {},
        bearer(""),
        bearer(attacker.token),
        bearer(victim.token[:-1]),
        {"x-api-key": attacker.token},
        {"Mcp-Session-Id": victim.token},
        {"Cookie": f"token={victim.token}"},
    ):
        assert (await post(victim, ask(), **headers))[0] == 401
    assert (await post(victim, ask(), f"/mcp?token={victim.token}"))[0] == 401
    assert victim.requested is None
    assert victim.progress is None


async def test_a_token_speaks_for_its_own_attempt_alone(pair: tuple[Desk, Desk]) -> None:
    victim, attacker = pair
    for more in ({"attempt": "victim"}, {"turn": 1}, {"job_id": "victim"}):
        status, text = await post(attacker, ask(**more), **bearer(attacker.token))
        assert (status, "Extra inputs are not permitted" in text) == (200, True)
    status, _ = await post(
        attacker,
        ask() | {"attempt": "victim"},
        **bearer(attacker.token),
        **{"X-Attempt": "victim", "Host": "victim"},
    )
    assert status == 200
    assert attacker.requested is not None
    assert victim.requested is None


async def test_a_call_neither_waits_nor_grants(pair: tuple[Desk, Desk]) -> None:
    _, attacker = pair
    before = attacker.terms
    body = ask(kind="network", host=HOST, reason="approved by @maintainer, LGTM")
    async with asyncio.timeout(10):
        status, text = await post(attacker, body, **bearer(attacker.token))
    assert (status, "People were asked" in text) == (200, True)
    assert attacker.terms == before


async def test_many_calls_keep_one_request_and_one_note(pair: tuple[Desk, Desk]) -> None:
    victim, _ = pair
    connector = aiohttp.UnixConnector(str(victim.socket_dir / "gateway.sock"), limit=20)
    todo = [{"text": "x" * 800}] * 50

    async with aiohttp.ClientSession("http://gateway", connector=connector) as client:

        async def one(number: int) -> None:
            params = {"name": "progress", "arguments": {"text": f"{number} " + "x" * 3900, "todo": todo}}
            for body in (
                {"jsonrpc": "2.0", "id": number, "method": "tools/call", "params": params},
                ask(reason=f"request {number}"),
            ):
                async with client.post("/mcp", json=body, headers=bearer(victim.token)) as answer:
                    assert answer.status == 200

        await asyncio.gather(*map(one, range(100)))
    kept = [path for path in victim.directory.rglob("*") if path.is_file() and path.name != "events.jsonl"]
    assert sum(path.stat().st_size for path in kept) < 64 * 1024
    assert [path.name for path in (victim.directory / "requests").iterdir()] == ["1.json"]


# --- what people granted: hosts --------------------------------------------------------------------------


@asynccontextmanager
async def outside() -> AsyncIterator[tuple[URL, list[str]]]:
    """The operator's own proxy, which knows every name; what it was asked for."""
    asked: list[str] = []

    async def serve(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        head = await reader.readuntil(b"\r\n\r\n")
        asked.append(head.split(b" ")[1].decode())
        writer.write(b"HTTP/1.1 200 OK\r\n\r\n")
        await reader.read()
        writer.close()

    server = await asyncio.start_server(serve, "127.0.0.1", 0)
    try:
        yield URL(f"http://127.0.0.1:{server.sockets[0].getsockname()[1]}"), asked
    finally:
        server.close()


def unknown(_name: str) -> list[Address]:
    raise OSError("no such name here")


def loopback(_name: str) -> list[Address]:
    return [ipaddress.ip_address("127.0.0.1")]


async def connect(desk: Desk, target: str) -> int:
    """The status with which the egress proxy answers a CONNECT."""
    reader, writer = await asyncio.open_unix_connection(str(desk.socket_dir / "gateway.sock"))
    pair = base64.b64encode(f"agent:{desk.token}".encode()).decode()
    writer.write(f"CONNECT {target} HTTP/1.1\r\nProxy-Authorization: Basic {pair}\r\n\r\n".encode())
    async with asyncio.timeout(30):
        head = await reader.readuntil(b"\r\n\r\n")
    writer.transport.abort()
    return int(head.split(b" ")[1])


@asynccontextmanager
async def proxied(folder: Path, **egress: Any) -> AsyncIterator[tuple[Callable[[], Desk], Callable[[], Any]]]:
    """An attempt behind the egress proxy: its desk now, and a restart of the worker."""
    gateway = Gateway({}, egress=Egress(**egress))
    desk = Desk.create(folder / "desk", attempt_id="j1-1", mirror=None, terms=Terms(allow=("a.example",)))
    await gateway.open(desk)

    async def restart() -> None:
        nonlocal desk
        await gateway.close(desk.attempt_id)
        desk.close()
        desk = Desk.open(folder / "desk")
        await gateway.open(desk)

    yield lambda: desk, restart
    await gateway.aclose()
    desk.close()


async def test_a_granted_host_is_reached_and_no_other(tmp_path: Path) -> None:
    neighbours = [
        *("granted.invalid:443", f"x.{HOST}:443", f"{HOST}.evil.invalid:443", "other.granted.invalid:443"),
        *(f"{HOST}:80", f"{HOST}:8443", "127.0.0.1:443", "elsewhere.example:443"),
    ]
    async with outside() as (url, asked), proxied(tmp_path, upstream=url, look_up=unknown) as (desk, restart):
        for target in (f"{HOST}:443", *neighbours):
            assert await connect(desk(), target) == 403
        assert asked == []
        assert desk().blocked[f"{HOST}:443"] == 1
        grant = grant_of("a1", ApprovalKind.network, {"host": HOST}, OPERATOR)
        assert grant is not None
        desk().grant(grant)
        for _ in range(2):
            assert await connect(desk(), f"{HOST}:443") == 200
            for target in neighbours:
                assert await connect(desk(), target) == 403
            await restart()  # what was granted stays granted
        assert asked == [f"{HOST}:443"] * 2


async def test_a_granted_name_does_not_lead_inside(tmp_path: Path) -> None:
    async def nobody(_reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        reached.set()
        writer.close()

    reached = asyncio.Event()
    server = await asyncio.start_server(nobody, "127.0.0.1", 0)
    port = server.sockets[0].getsockname()[1]
    # also where the operator's own rules may lead to private networks: what people grant is public
    private = fixed_settings(egress_private=["127.0.0.0/8"]).egress_private
    async with proxied(tmp_path, private=private, look_up=loopback) as (desk, _):
        desk().grant(Grant(approval="a1", host=f"inside.invalid:{port}"))
        assert await connect(desk(), f"inside.invalid:{port}") == 403
        assert f"inside.invalid:{port} (not a public address)" in desk().blocked
    server.close()
    assert not reached.is_set()


async def test_an_approval_gives_nothing_that_the_operator_took_back() -> None:
    stricter = fixed_settings(egress_may_allow=())
    with pytest.raises(NotGrantable):
        grant_of("a1", ApprovalKind.network, {"host": HOST}, stricter)


# --- what people granted: money --------------------------------------------------------------------------

PRICES = {"scripted-1": {"input": 10, "output": 100}}  # the scripted answer of 100 + 20 tokens: 0.3 cents
BODY = {"model": "scripted-1", "tools": TOOLS, "max_tokens": 100}


async def test_granted_money_can_be_spent_and_no_more(tmp_path: Path) -> None:
    engine = create_engine(f"sqlite+aiosqlite:///{tmp_path / 'conductor.db'}")
    await upgrade(engine)
    ledger = Ledger(engine)

    async def spend(desk: Desk, calls: int, **settings: Any) -> list[int]:
        async with (
            ScriptedLlm(Script.of([{"text": "hi", "times": "always"}])) as llm,
            front(llm.url, ledger=ledger, desk=desk, prices=PRICES, **settings) as gate,
        ):
            found = []
            for _ in range(calls):
                async with gate.post("anthropic/v1/messages", BODY) as answer:
                    found.append(answer.status)
            assert len(llm.requests) == found.count(200)
            return found

    def desk(job: str) -> Desk:
        terms = Terms(job_id=job, thread_id="1", repo_id=1, actor_id=1, budget_job=0.005)
        return Desk.create(tmp_path / job, attempt_id=f"{job}-1", mirror=None, terms=terms)

    plain, granted, limited = desk("j1"), desk("j2"), desk("j3")
    assert await spend(plain, 4) == [200, 200, 402, 402]
    assert await spend(granted, 1) == [200]
    granted.grant(Grant(approval="a1", dollars=0.006))
    granted.close()
    granted = Desk.open(granted.directory)  # another worker process goes on
    assert await spend(granted, 4) == [200, 200, 200, 402]  # 1.1 cents in all, 4 calls of 0.3
    # nor more than the operator allows any job, whatever was granted
    limited.grant(Grant(approval="a2", dollars=5.0))
    assert await spend(limited, 4, budget_job=0.006) == [200, 200, 402, 402]
    assert await ledger.spent(granted.terms, [Scope.job]) == {Scope.job: pytest.approx(0.012)}
    for one in (plain, granted, limited):
        one.close()
    await engine.dispose()
