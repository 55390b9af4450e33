"""The real Claude Code and Codex in locked containers ask for a host by their tools, are granted it, and reach it."""

from __future__ import annotations

import asyncio
import json
import os
import uuid
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from dataclasses import asdict
from pathlib import Path
from typing import Any

import docker
import pytest
from yarl import URL

from bot.agent_requests import ToDo, grant_of
from bot.config import fixed_settings
from bot.listener import Listener
from bot.model import ApprovalKind
from bot.network import Address, proxy_environment
from bot.ports import Agent, ContainerSpec, Limits, Turn
from bot.results import judge
from runners.agents.registry import agent
from runners.docker import DockerRunner
from runners.gateway.desk import Desk
from runners.gateway.egress import Egress
from runners.gateway.git import GitRoute
from runners.gateway.llm import LlmProxy
from runners.gateway.mcp import McpRoute
from runners.gateway.server import Gateway
from runners.provision import AgentImages
from tests.cli_world import DONE, KEY, PRICES
from tests.containers import MIB, new_attempt, sweep
from tests.llm import Script, ScriptedLlm
from tests.shim_host import git

pytestmark = [pytest.mark.docker, pytest.mark.cli, pytest.mark.timeout(900)]  # with both images

HOST = "docs.granted.invalid"
MODELS = {"claude": "claude-sonnet-4-5", "codex": "gpt-5.5"}
LOOKS = (
    "python3 -c 'import urllib.request as web; "
    f'print(web.urlopen("http://{HOST}/manual", timeout=60).read().decode())\''
)


def call(name: str, tool: str, **arguments: Any) -> dict[str, Any]:
    """A turn of the model that calls a tool of ours."""
    if name == "claude":
        return {"calls": [{"name": f"mcp__bot__{tool}", "input": arguments}]}
    return {"calls": [{"name": tool, "namespace": "mcp__bot", "input": arguments}]}


def runs(name: str, command: str) -> dict[str, Any]:
    """A turn of the model that runs a shell command."""
    if name == "claude":
        return {"calls": [{"name": "Bash", "input": {"command": command, "description": "look"}}]}
    return {
        "calls": [{"name": "exec_command", "input": {"cmd": command, "login": False, "yield_time_ms": 30000}}]
    }


@asynccontextmanager
async def outside() -> AsyncIterator[tuple[URL, list[str]]]:
    """The operator's own proxy, behind which lies everything; what it was asked for."""
    asked: list[str] = []

    async def serve(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        head = await reader.readuntil(b"\r\n\r\n")
        asked.append(head.split(b"\r\n")[0].decode())
        writer.write(b"HTTP/1.1 200 OK\r\nContent-Length: 10\r\nConnection: close\r\n\r\nthe manual")
        await writer.drain()
        writer.close()

    server = await asyncio.start_server(serve, "127.0.0.1", 0)
    try:
        yield URL(f"http://127.0.0.1:{server.sockets[0].getsockname()[1]}"), asked
    finally:
        server.close()


def unknown(_name: str) -> list[Address]:
    raise OSError("no such name here")


class Attempt:
    """A locked container with a real agent, and its desk."""

    def __init__(self, tool: Agent, desk: Desk, base: str) -> None:
        self.tool, self.desk, self.base = tool, desk, base
        self.listener = Listener(tool)

    async def turn(self, prompt: str) -> None:
        """Give a turn and wait for its end, which must be a good one."""
        number = self.desk.turns_given + 1
        session = self.listener.transcript.session_id
        turn = Turn(
            number=number,
            prompt=prompt,
            model=MODELS[self.tool.name],
            session_id=session or str(uuid.uuid4()),
            resume=session is not None,
            timeout=120,
        )
        command = asdict(self.tool.command(turn, gateway="{gateway}", token=self.desk.token))
        self.desk.give(
            {
                "number": number,
                "command": command | {"env": proxy_environment(self.desk.token) | command["env"]},
                "timeout": 120,
                "checkout": {"base_sha": self.base, "branch": "work", "restore": [], "restore_from": None},
                "session_paths": list(self.tool.session_paths),
                "commit": {"name": "a", "email": "a@example.com", "message": "m"},
            }
        )
        outcome = await asyncio.wait_for(self.desk.outcome(number), 180)
        await self.listener.listen(self.desk, number)
        verdict = judge(self.listener.transcript, exit_code=outcome.exit_code, changed=False)
        lines = [event.line async for event in self.desk.events(turn=number)]
        assert verdict.ok, (verdict, outcome, lines[-20:])


@asynccontextmanager
async def attempt(name: str, folder: Path, llm_url: str, upstream: URL) -> AsyncIterator[Attempt]:
    host = f"test-{uuid.uuid4().hex[:8]}"
    settings = fixed_settings(
        host_name=host,
        data_dir=folder / "data",
        image_ca_bundle=os.environ.get("SSL_CERT_FILE"),
        llm_anthropic_url=llm_url,
        llm_openai_url=f"{llm_url}/v1",
        llm_anthropic_key=KEY,
        llm_openai_key=KEY,
        prices=PRICES,
        egress_may_allow=("*.granted.invalid",),
    )
    source, mirror = folder / "source", folder / "mirror.git"
    source.mkdir()
    git("init", "-q", "-b", "main", cwd=source)
    git("commit", "-q", "--allow-empty", "-m", "nothing", cwd=source)
    git("clone", "-q", "--mirror", str(source), str(mirror), cwd=folder)
    attempt_id, tool = new_attempt(), agent(name)
    client, runner, images, proxy = (
        docker.from_env(),
        DockerRunner(settings),
        AgentImages(settings),
        LlmProxy(settings),
    )
    gateway = Gateway(
        {"git": GitRoute(max_push_bytes=MIB).serve, "llm": proxy.serve, "mcp": McpRoute(settings).serve},
        egress=Egress(upstream=upstream, look_up=unknown),
    )
    desk = Desk.create(folder / "desk", attempt_id=attempt_id, mirror=mirror)
    try:
        image = await images.ensure(tool)
        await gateway.open(desk)
        await runner.start(
            ContainerSpec(
                attempt_id=attempt_id,
                image=image,
                argv=images.shim_argv,
                env={"CONDUCTOR_TOKEN": desk.token},
                socket_dir=desk.socket_dir,
                mirror=mirror,
                limits=Limits(memory=2048 * MIB, cpus=2.0, pids=256, tmp=256 * MIB, file=512 * MIB),
            )
        )
        yield Attempt(tool, desk, git("rev-parse", "HEAD", cwd=source))
    finally:
        await runner.close()
        await images.close()
        await asyncio.to_thread(sweep, client, host)
        await gateway.aclose()
        await proxy.close()
        desk.close()
        client.close()


@pytest.mark.parametrize("name", list(MODELS))
async def test_a_host_is_asked_for_granted_and_reached(name: str, tmp_path: Path) -> None:
    script = Script.of(
        [
            call(name, "progress", text="Looking for the manual", todo=[{"text": "read the manual"}]),
            runs(name, LOOKS),
            call(name, "request_approval", kind="network", host=HOST, reason="The manual is there."),
            {"text": f"I asked.\n{DONE}"},
            call(name, "progress", text="Reading", todo=[{"text": "read the manual", "done": True}]),
            runs(name, LOOKS),
            {"text": f"I read it.\n{DONE}"},
        ]
    )
    async with (
        ScriptedLlm(script) as llm,
        outside() as (upstream, asked),
        attempt(name, tmp_path, llm.url, upstream) as made,
    ):
        desk = made.desk
        await made.turn("Read the manual. End with a result block.")
        assert desk.requested is not None, [request.text[-2000:] for request in llm.requests]
        assert (desk.requested.kind, desk.requested.host) == (ApprovalKind.network, HOST)
        assert desk.progress is not None
        assert desk.progress.todo == (ToDo(text="read the manual"),)
        assert desk.blocked == {f"{HOST}:80": 1}
        assert asked == []

        request = desk.requested
        assert request.kind is not None
        operator = fixed_settings(egress_may_allow=("*.granted.invalid",))
        grant = grant_of("a1", request.kind, request.details, operator)
        assert grant is not None
        desk.grant(grant)
        await made.turn("Approved: go on.")
        assert asked == [f"GET http://{HOST}/manual HTTP/1.1"]
        assert desk.requested is None
        assert desk.progress.todo == (ToDo(text="read the manual", done=True),)
        texts = [json.dumps(one.body) for one in llm.requests]
    assert "HTTP Error 403" in texts[2]
    assert "People were asked" in texts[3]
    assert "the manual" in texts[6].split("Approved: go on.")[1]
