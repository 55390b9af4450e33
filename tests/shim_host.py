"""What the tests of the shim share: a worker's half of an attempt, on real git and a real gateway, and the shim."""

from __future__ import annotations

import asyncio
import os
import subprocess
import sys
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from pathlib import Path
from typing import Any

import runners.shim
from runners import quarantine
from runners.gateway.desk import Desk, Event, Outcome
from runners.gateway.git import GitRoute
from runners.gateway.server import Gateway

MAX_PUSH = 1 << 20
PATIENT = 60.0  # seconds after which a test that waits for something has failed
#: A call of the agent through the relay: connects, makes the file $CONNECTED, asks, prints the answer's status.
HEARTBEAT = """python3 -c '
import http.client, os, pathlib, urllib.parse
call = http.client.HTTPConnection(urllib.parse.urlsplit(os.environ["URL"]).netloc)
call.connect()
pathlib.Path(os.environ.get("CONNECTED", "/dev/null")).touch()
call.request("POST", "/heartbeat", headers={"x-api-key": os.environ["KEY"]})
print(call.getresponse().status)'"""


def git(*arguments: str, cwd: Path, stdin: str = "") -> str:
    env = {
        "PATH": os.environ["PATH"],
        "HOME": "/nonexistent",
        "GIT_CONFIG_NOSYSTEM": "1",
        "GIT_CONFIG_GLOBAL": "/dev/null",
    }
    author = ["-c", "user.name=Ann", "-c", "user.email=ann@example.com"]
    done = subprocess.run(
        ["git", *author, *arguments],
        cwd=cwd,
        env=env,
        input=stdin,
        capture_output=True,
        text=True,
        timeout=60,
    )
    assert done.returncode == 0, done.stderr
    return done.stdout.strip()


class Host:
    """A worker's half: the repository, the desk, the gateway; and the attempt's half: the shim's process."""

    def __init__(self, folder: Path) -> None:
        self.folder = folder
        self.source = folder / "source"
        self.source.mkdir()
        git("init", "-q", "-b", "main", cwd=self.source)
        self.base = self.commit({"README.md": "hello\n", "CLAUDE.md": "the base's\n"})
        self.mirror = folder / "mirror.git"
        self.shim_env: dict[str, str] = {}
        self.desk = Desk.create(folder / "desk", attempt_id="j1-1", mirror=self.mirror)
        self.gateway = Gateway({"git": GitRoute(max_push_bytes=MAX_PUSH).serve})
        self.shim: asyncio.subprocess.Process | None = None

    def commit(
        self, files: dict[str, str | None], *, branch: str = "main", links: dict[str, str] | None = None
    ) -> str:
        for name, text in files.items():
            target = self.source / name
            if text is None:
                target.unlink()
            else:
                target.parent.mkdir(parents=True, exist_ok=True)
                target.write_text(text)
        for name, target_name in (links or {}).items():
            (self.source / name).symlink_to(target_name)
        git("add", "-A", cwd=self.source)
        git("commit", "-q", "-m", "change", cwd=self.source)
        return git("rev-parse", "HEAD", cwd=self.source)

    async def start(self) -> None:
        git("clone", "-q", "--mirror", str(self.source), str(self.mirror), cwd=self.folder)
        git("config", "uploadpack.allowAnySHA1InWant", "true", cwd=self.mirror)
        await quarantine.create(self.desk.quarantine, self.mirror, max_input_bytes=MAX_PUSH)
        await self.gateway.open(self.desk)
        await self.launch()

    async def launch(self) -> None:
        """Start the shim as a process of this machine."""
        for name in ("home", "workspace"):
            (self.folder / name).mkdir()
        env = {
            "PATH": os.environ["PATH"],
            "HOME": str(self.folder / "home"),
            "CONDUCTOR_SOCKET": str(self.desk.socket_dir / "gateway.sock"),
            "CONDUCTOR_MIRROR": str(self.mirror),
            "CONDUCTOR_WORKSPACE": str(self.folder / "workspace"),
            "CONDUCTOR_TOKEN": self.desk.token,
            **self.shim_env,
        }
        self.shim = await asyncio.create_subprocess_exec(
            sys.executable, "-I", str(Path(runners.shim.__file__)), env=env, start_new_session=True
        )

    async def stop(self) -> None:
        assert self.shim is not None
        if self.shim.returncode is None:
            self.shim.kill()
        await self.shim.wait()
        await self.gateway.aclose()
        self.desk.close()

    async def restart(self) -> None:
        """What a worker that was killed and started again does."""
        await self.gateway.aclose()
        self.desk.close()
        self.desk = Desk.open(self.folder / "desk")
        await self.gateway.open(self.desk)

    def turn(self, script: str, **changes: Any) -> dict[str, Any]:
        command: dict[str, Any] = {"argv": ["/bin/sh", "-c", script], "stdin": "", "env": {}, "files": {}}
        command.update(changes.pop("command", {}))
        turn: dict[str, Any] = {
            "number": changes.pop("number", 1),
            "command": command,
            "timeout": 60,
            "checkout": {"base_sha": self.base, "branch": "work", "restore": [], "restore_from": None},
            "session_paths": [],
            "commit": {"name": "agent[bot]", "email": "bot@example.com", "message": "Do what was asked"},
        }
        turn["checkout"].update(changes.pop("checkout", {}))
        turn.update(changes)
        return turn

    async def play(self, script: str, **changes: Any) -> Outcome:
        turn = self.turn(script, **changes)
        self.desk.give(turn)
        return await asyncio.wait_for(self.desk.outcome(turn["number"]), PATIENT)

    async def told(self, number: int = 1) -> list[Event]:
        """Every event of turn ``number``, when it has ended."""
        return [event async for event in self.desk.events(turn=number) if event.turn == number]

    async def lines(self, stream: str = "stdout", number: int = 1) -> list[str]:
        return [event.line for event in await self.told(number) if event.stream == stream]

    async def said(self, line: str) -> None:
        """Return as soon as the agent has printed ``line``."""
        async with asyncio.timeout(PATIENT):
            async for event in self.desk.events():
                if event.line == line:
                    return
        raise AssertionError(f"the agent never said {line!r}")

    def pushed(self, name: str, branch: str = "work") -> str:
        return git("show", f"{branch}:{name}", cwd=self.desk.quarantine)

    def changes(self, branch: str = "work") -> list[str]:
        return git("diff", "--name-only", self.base, branch, cwd=self.desk.quarantine).splitlines()

    async def ended(self) -> int:
        assert self.shim is not None
        return await asyncio.wait_for(self.shim.wait(), PATIENT)


@asynccontextmanager
async def running(host: Host) -> AsyncIterator[Host]:
    try:
        await host.start()
        yield host
    finally:
        await host.stop()
