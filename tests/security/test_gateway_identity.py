"""Attack class 25: who speaks is decided by the socket and the token alone."""

from __future__ import annotations

import base64
import stat
from collections.abc import AsyncIterator
from pathlib import Path

import aiohttp
import pytest
from aiohttp import web

from runners.gateway.desk import Desk
from runners.gateway.server import Gateway

Pair = tuple[Desk, Desk]
PATHS = [
    ("GET", "/turns/next?after=0"),
    ("POST", "/turns/1/outcome"),
    ("POST", "/events"),
    ("POST", "/heartbeat"),
    ("GET", "/session"),
    ("PUT", "/session"),
    ("GET", "/git/repository.git/info/refs?service=git-receive-pack"),
    ("POST", "/llm/anthropic/v1/messages"),
    ("POST", "/mcp"),
    ("GET", "/unknown"),
]


async def reached(request: web.Request, desk: Desk, tail: str) -> web.StreamResponse:
    return web.json_response({"attempt": desk.attempt_id})


@pytest.fixture
async def pair(tmp_path: Path) -> AsyncIterator[Pair]:
    gateway = Gateway({"git": reached, "llm": reached, "mcp": reached}, long_poll=0.01)
    desks = [Desk.create(tmp_path / name, attempt_id=name, mirror=None) for name in ("victim", "attacker")]
    for desk in desks:
        desk.give({"number": 1, "prompt": "a secret plan"})
        await gateway.open(desk)
    yield desks[0], desks[1]
    await gateway.aclose()
    for desk in desks:
        desk.close()


async def send(desk: Desk, method: str, path: str, headers: dict[str, str]) -> tuple[int, str]:
    """One request on the desk's socket."""
    connector = aiohttp.UnixConnector(str(desk.socket_dir / "gateway.sock"))
    async with (
        aiohttp.ClientSession("http://gateway", connector=connector) as client,
        client.request(method, path, headers=headers) as answer,
    ):
        return answer.status, await answer.text()


def basic(user: str, password: str) -> str:
    return "Basic " + base64.b64encode(f"{user}:{password}".encode()).decode()


@pytest.mark.parametrize(("method", "path"), PATHS)
async def test_without_the_token_every_path_is_closed(pair: Pair, method: str, path: str) -> None:
    victim, attacker = pair
    wrong: list[dict[str, str]] = [
        {},
        {"Authorization": "Bearer "},
        {"Authorization": victim.token},
        {"Authorization": f"Digest {victim.token}"},
        {"Authorization": "Basic !!!"},
        {"Authorization": "Basic " + base64.b64encode(b"\xff\xfe").decode()},
        {"Authorization": basic(victim.token, "")},
        {"Authorization": f"Bearer {victim.token[:-1]}"},
        {"Authorization": f"Bearer {victim.token}x"},
        {"x-api-key": ""},
        {"Cookie": f"token={victim.token}"},
        # another attempt's token is as good as none, whatever it says about who it is
        {"Authorization": f"Bearer {attacker.token}"},
        {"x-api-key": attacker.token, "X-Attempt": "victim"},
        {"Authorization": basic("victim", attacker.token)},
    ]
    for headers in wrong:
        status, text = await send(victim, method, path, headers)
        assert status == 401, headers
        assert "secret" not in text
        assert victim.token not in text
    assert (await send(victim, method, f"{path}{'&' if '?' in path else '?'}key={victim.token}", {}))[
        0
    ] == 401
    assert victim.outcome_now(1) is None


async def test_the_token_is_taken_in_the_ways_of_every_client(pair: Pair) -> None:
    victim, _ = pair
    for headers in (
        {"Authorization": f"Bearer {victim.token}"},
        {"authorization": f"bearer {victim.token}"},
        {"x-api-key": victim.token},
        {"X-Goog-Api-Key": victim.token},
        {"Authorization": basic("any", victim.token)},
        {"Authorization": f"Bearer {victim.token}", "x-api-key": victim.token},
    ):
        assert await send(victim, "POST", "/llm/x", headers) == (200, '{"attempt": "victim"}')


async def test_a_refusal_challenges_git(pair: Pair) -> None:
    victim, _ = pair
    connector = aiohttp.UnixConnector(str(victim.socket_dir / "gateway.sock"))
    async with (
        aiohttp.ClientSession("http://gateway", connector=connector) as client,
        client.get("/git/x") as answer,
    ):
        assert answer.status == 401
        assert answer.headers["WWW-Authenticate"].startswith("Basic ")


async def test_a_wrong_token_is_not_a_sign_of_life(pair: Pair) -> None:
    victim, attacker = pair
    before = victim.last_heard
    await send(victim, "POST", "/heartbeat", {"x-api-key": attacker.token})
    assert victim.last_heard == before


async def test_the_containers_user_reaches_the_socket_and_nothing_else(pair: Pair) -> None:
    victim, _ = pair
    folder = victim.socket_dir.stat()
    assert stat.S_IMODE(folder.st_mode) == 0o711  # no listing, no new files
    assert stat.S_IMODE((victim.socket_dir / "gateway.sock").stat().st_mode) == 0o666
    assert [path.name for path in victim.socket_dir.iterdir()] == ["gateway.sock"]
    assert stat.S_IMODE(victim.directory.stat().st_mode) == 0o700  # the token beside it is the host's
