"""Claude Code and Codex beside the egress proxy: they reach the gateway directly, and want nothing else."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator, Iterator
from contextlib import asynccontextmanager
from pathlib import Path

import pytest

from bot.network import proxy_environment
from runners.agents.registry import agent
from tests.cli_world import DONE, world
from tests.integration.test_agent_clis import PACKAGES, installed, runs, turn
from tests.llm import Script, ScriptedLlm

pytestmark = [pytest.mark.cli, pytest.mark.timeout(400)]


@pytest.fixture(scope="module")
def clis(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Path]:
    """A folder with both CLIs under their own names."""
    folder = tmp_path_factory.mktemp("bin")
    for name in PACKAGES:
        (folder / name).symlink_to(installed(name))
    return folder


@asynccontextmanager
async def refusing() -> AsyncIterator[tuple[int, list[str]]]:
    """A proxy that refuses everything; its port and the first lines of what it was asked."""
    asked: list[str] = []

    async def serve(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        try:
            asked.append((await reader.readuntil(b"\r\n")).decode().strip())
            writer.write(b"HTTP/1.1 403 Forbidden\r\nContent-Length: 0\r\nConnection: close\r\n\r\n")
            await writer.drain()
        except (ConnectionError, asyncio.IncompleteReadError):
            pass
        finally:
            writer.close()

    async with await asyncio.start_server(serve, "127.0.0.1", 0) as server:
        yield server.sockets[0].getsockname()[1], asked


@pytest.mark.parametrize("name", ["claude", "codex"])
async def test_an_agent_works_and_keeps_off_the_proxy(name: str, tmp_path: Path, clis: Path) -> None:
    script = Script.of([runs(name, "echo proxy=$HTTPS_PROXY"), {"text": f"Done.\n{DONE}"}])
    async with (
        refusing() as (port, asked),
        ScriptedLlm(script) as llm,
        world(tmp_path, clis, llm.url) as made,
    ):
        outcome = await made.run(agent(name), turn(name), **proxy_environment("t0ken", str(port)))
        verdict = outcome.judge(changed=False)
        assert verdict.ok, (verdict, outcome)
        # the commands that it runs are told of the proxy as well
        assert f"proxy=http://agent:t0ken@127.0.0.1:{port}" in "".join(
            request.text for request in llm.requests
        )
        assert asked == []  # or every comment would tell of connections that nobody asked for
