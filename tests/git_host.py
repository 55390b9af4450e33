"""Real git around the worker host: a hosting server with tokens and hooks, and an agent's clone."""

from __future__ import annotations

import asyncio
import base64
import contextlib
import os
import subprocess
from collections.abc import AsyncIterator, Sequence
from dataclasses import dataclass, field
from pathlib import Path

from aiohttp import web

from bot.githttp import serve_git
from bot.model import Repo
from bot.terms import Terms
from runners.gateway.git import GitRoute

TOKEN = "ghs_canary0123456789abcdefghijklmnop"
REPO = Repo(owner="octo", name="hello", id=42, installation_id=7)

# an agent's git is an ordinary one; only this machine's own configuration is kept out
_ENV = {
    "PATH": os.environ.get("PATH", os.defpath),
    "HOME": "/nonexistent",
    "LC_ALL": "C",
    "GIT_CONFIG_NOSYSTEM": "1",
    "GIT_TERMINAL_PROMPT": "0",
    **{f"GIT_{who}_NAME": "Mallory" for who in ("AUTHOR", "COMMITTER")},
    **{f"GIT_{who}_EMAIL": "mallory@example.org" for who in ("AUTHOR", "COMMITTER")},
}


def run_git(folder: Path, *argv: str, stdin: bytes | None = None, ok: bool = True) -> str:
    """An ordinary git in ``folder``, as an agent or a developer would run it."""
    done = subprocess.run(
        ["git", *argv], cwd=folder, env=_ENV, input=stdin, capture_output=True, check=False, timeout=60
    )
    if ok:
        assert done.returncode == 0, done.stderr.decode()
        return done.stdout.decode("utf-8", "surrogateescape").strip("\n")
    assert done.returncode != 0, done.stdout.decode()
    return done.stderr.decode("utf-8", "replace")


async def agent_git(folder: Path, *argv: str, ok: bool = True) -> str:
    """The same, for commands that speak to a server of this process."""
    return await asyncio.to_thread(run_git, folder, *argv, ok=ok)


def write(folder: Path, files: dict[str, str | bytes]) -> None:
    """Write ``files`` (path -> content) below ``folder``."""
    for name, content in files.items():
        (folder / name).parent.mkdir(parents=True, exist_ok=True)
        (folder / name).write_bytes(content.encode() if isinstance(content, str) else content)


def commit(folder: Path, files: dict[str, str | bytes] | None = None, message: str = "work") -> str:
    """Commit ``files`` and whatever else changed in the clone; the commit's id."""
    write(folder, files or {})
    run_git(folder, "add", "-A")
    run_git(folder, "commit", "-q", "--allow-empty", "-m", message)
    return run_git(folder, "rev-parse", "HEAD")


def commit_tree(folder: Path, entries: Sequence[tuple[str, str, bytes | str]], parent: str | None) -> str:
    """A commit whose root has ``entries`` (mode, name, blob content or object id), however odd; its id."""
    lines = b""
    for mode, name, content in entries:
        kind = {"040000": "tree", "160000": "commit"}.get(mode, "blob")
        oid = (
            run_git(folder, "hash-object", "-w", "--stdin", stdin=content)
            if isinstance(content, bytes)
            else content
        )
        lines += f"{mode} {kind} {oid}\t".encode() + os.fsencode(name) + b"\0"
    tree = run_git(folder, "mktree", "-z", "--missing", stdin=lines)
    return run_git(folder, "commit-tree", tree, *(["-p", parent] if parent else []), "-m", "odd")


@dataclass
class GitHost:
    """A hosting server on 127.0.0.1 whose repositories need the token, and what it saw."""

    root: Path
    url: str = ""
    token: str = TOKEN
    status: int | None = None  # answer this to everything instead
    body: str = ""
    requests: list[str] = field(default_factory=list)
    argv_with_token: list[str] = field(default_factory=list)
    hold: asyncio.Event | None = None  # answer nothing until it is set
    held: asyncio.Event = field(default_factory=asyncio.Event)

    @property
    def repository(self) -> Path:
        """The bare repository behind `repo_url`."""
        return self.root / "octo" / "hello.git"

    @property
    def seed(self) -> Path:
        """The clone that its first commit came from."""
        return self.root.parent / "seed"

    @property
    def repo_url(self) -> str:
        """Its address."""
        return f"{self.url}/octo/hello.git"

    def branch(self, name: str) -> str:
        """The commit of a branch there; empty when there is none."""
        return run_git(self.repository, "for-each-ref", "--format=%(objectname)", f"refs/heads/{name}")

    def hook(self, script: str) -> None:
        """Let the server run ``script`` on a push before it takes it."""
        file = self.repository / "hooks" / "pre-receive"
        file.parent.mkdir(exist_ok=True)
        file.write_text(f"#!/bin/sh\n{script}\n")
        file.chmod(0o755)

    async def handle(self, request: web.Request) -> web.StreamResponse:
        """Answer one request."""
        self.requests.append(f"{request.method} {request.path_qs}")
        for process in Path("/proc").glob("[0-9]*/cmdline"):
            with contextlib.suppress(OSError):
                argv = process.read_bytes().replace(b"\0", b" ").decode("utf-8", "replace")
                if self.token in argv or _basic(self.token) in argv:
                    self.argv_with_token.append(argv)
        if self.hold is not None:
            self.held.set()
            await self.hold.wait()
        if self.status is not None:
            return web.Response(status=self.status, text=self.body)
        if request.headers.get("Authorization") != f"Basic {_basic(self.token)}":
            return web.Response(status=401, headers={"WWW-Authenticate": 'Basic realm="git"'})
        if not request.path.startswith("/octo/hello.git/"):
            return web.Response(status=404)
        return await serve_git(
            request, project_root=self.root, path_info=request.path, env={"REMOTE_USER": "app"}
        )


def _basic(token: str) -> str:
    return base64.b64encode(f"x-access-token:{token}".encode()).decode()


@contextlib.asynccontextmanager
async def listening(app: web.Application) -> AsyncIterator[str]:
    """Serve ``app`` on a free port; its address."""
    runner = web.AppRunner(app, handler_cancellation=True, shutdown_timeout=1)
    await runner.setup()
    try:
        site = web.TCPSite(runner, "127.0.0.1", 0)
        await site.start()
        yield f"http://127.0.0.1:{runner.addresses[0][1]}"
    finally:
        await runner.cleanup()


@contextlib.asynccontextmanager
async def git_host(root: Path) -> AsyncIterator[GitHost]:
    """The server with ``octo/hello``: two files on ``main``."""
    seed = root / "seed"
    seed.mkdir(parents=True)
    run_git(seed, "init", "-q", "-b", "main")
    commit(seed, {"README.md": "hello\n", "src/app.py": "print('hi')\n"}, "first")
    host = GitHost(root / "repositories")
    host.repository.parent.mkdir(parents=True)
    run_git(root, "clone", "-q", "--bare", str(seed), str(host.repository))
    app = web.Application()
    app.router.add_route("*", "/{path:.*}", host.handle)
    async with listening(app) as host.url:
        yield host


@dataclass
class Attempt:
    """Duck-typed desk: where an attempt's repositories are."""

    mirror: Path | None
    quarantine: Path
    terms: Terms = field(default_factory=Terms)


@contextlib.asynccontextmanager
async def git_gateway(route: GitRoute, attempt: Attempt) -> AsyncIterator[str]:
    """The gateway's git route alone; the address of the attempt's repository."""

    async def handle(request: web.Request) -> web.StreamResponse:
        return await route.serve(request, attempt, request.match_info["tail"])

    app = web.Application()
    app.router.add_route("*", "/git/{tail:.*}", handle)
    async with listening(app) as url:
        yield f"{url}/git/repository.git"


def clone_for_agent(mirror: Path, folder: Path) -> Path:
    """What the shim does: a clone that borrows the mirror's objects, on the branch ``work``."""
    run_git(folder.parent, "clone", "-q", "--shared", "--no-checkout", str(mirror), str(folder))
    run_git(folder, "checkout", "-q", "-b", "work", "origin/main")
    return folder
