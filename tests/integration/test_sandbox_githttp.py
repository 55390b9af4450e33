"""Git's smart HTTP handler on its own: limits, a closed environment, and no child left behind."""

from __future__ import annotations

import asyncio
import os
import subprocess
from pathlib import Path

import aiohttp
import pytest
from aiohttp import web

from bot.githttp import git_environment, git_service, serve_git

PUSH = "git-receive-pack"


def git(folder: Path, *arguments: str) -> str:
    env = git_environment({"user.name": "A", "user.email": "a@example.com"})
    done = subprocess.run(
        ["git", *arguments], cwd=folder, env=env, capture_output=True, text=True, check=True
    )
    return done.stdout.strip()


@pytest.fixture
def bare(tmp_path) -> Path:
    """A bare repository with one commit, that takes pushes."""
    path = tmp_path / "root" / "r.git"
    path.mkdir(parents=True)
    git(path, "init", "--quiet", "--bare", "--initial-branch=main")
    git(path, "config", "http.receivepack", "true")
    tree = git(path, "hash-object", "-t", "tree", "-w", os.devnull)
    git(path, "update-ref", "refs/heads/main", git(path, "commit-tree", tree, "-m", "first"))
    return path


@pytest.fixture
async def serve(bare):
    """Serve the repository with some options; gives its URL."""
    runners: list[web.AppRunner] = []

    async def serve(**options) -> str:
        async def handler(request: web.Request) -> web.StreamResponse:
            tail = request.match_info["tail"]
            if git_service(request, tail) is None:
                return web.Response(status=404)
            return await serve_git(request, project_root=bare.parent, path_info=f"/r.git/{tail}", **options)

        application = web.Application(client_max_size=2**30)
        application.router.add_route("*", "/r.git/{tail:.+}", handler)
        runner = web.AppRunner(application, shutdown_timeout=1)
        runners.append(runner)
        await runner.setup()
        await web.TCPSite(runner, "127.0.0.1", 0).start()
        return f"http://127.0.0.1:{runner.addresses[0][1]}/r.git"

    yield serve
    for runner in runners:
        await runner.cleanup()


async def run(folder: Path, *arguments: str) -> tuple[int, str]:
    process = await asyncio.create_subprocess_exec(
        "git",
        *arguments,
        cwd=folder,
        env=git_environment({"user.name": "A", "user.email": "a@example.com"}),
        stdout=asyncio.subprocess.PIPE,
        stderr=asyncio.subprocess.STDOUT,
    )
    output, _ = await asyncio.wait_for(process.communicate(), 60)
    return process.returncode or 0, output.decode()


def hook(bare: Path, name: str, script: str) -> None:
    path = bare / "hooks" / name
    path.parent.mkdir(exist_ok=True)
    path.write_text(f"#!/bin/sh\n{script}\n")
    path.chmod(0o755)


@pytest.fixture
async def work(tmp_path, bare) -> Path:
    folder = tmp_path / "work"
    await run(tmp_path, "clone", "--quiet", str(bare), str(folder))
    return folder


async def test_clone_and_push(tmp_path, serve, bare):
    url = await serve()
    assert (await run(tmp_path, "clone", "--quiet", url, "copy"))[0] == 0
    (tmp_path / "copy" / "a").write_text("1")
    await run(tmp_path / "copy", "add", ".")
    await run(tmp_path / "copy", "commit", "--quiet", "--message", "second")
    code, said = await run(tmp_path / "copy", "push", "origin", "HEAD:next")
    assert code == 0, said
    assert git(bare, "log", "--format=%s", "next") == "second\nfirst"


async def test_a_push_over_the_limit(serve, bare, work):
    (work / "large").write_bytes(os.urandom(200_000))
    await run(work, "add", ".")
    await run(work, "commit", "--quiet", "--message", "large")
    url = await serve(max_body=100_000)
    code, said = await run(work, "push", url, "HEAD:next")
    assert code != 0
    assert "413" in said
    assert git(bare, "for-each-ref", "--format=%(refname)") == "refs/heads/main"
    url = await serve(max_body=300_000)
    assert (await run(work, "push", url, "HEAD:next"))[0] == 0


async def gone(pid: int) -> bool:
    """Whether a process ends soon. What is dead but not yet collected by init counts as ended."""
    status = Path(f"/proc/{pid}/status")
    for _ in range(1000):
        if not status.exists() or "State:\tZ" in status.read_text():
            return True
        await asyncio.sleep(0.01)
    return False


async def test_a_hook_that_hangs_is_killed_with_all_that_it_started(serve, bare, work, tmp_path):
    pid_file = tmp_path / "pid"
    hook(bare, "pre-receive", f"sleep 1000 & echo $! > {pid_file}; wait")
    url = await serve(timeout=1)
    code, said = await run(work, "push", url, "HEAD:next")
    assert code != 0, said
    assert await gone(int(pid_file.read_text()))
    assert git(bare, "for-each-ref", "--format=%(refname)") == "refs/heads/main"


async def test_the_machines_own_configuration_is_not_read(serve, bare, work, monkeypatch, tmp_path):
    poisoned = tmp_path / "gitconfig"
    poisoned.write_text("[receive]\n\tdenyCurrentBranch = nonsense\n[core]\n\tbroken")
    monkeypatch.setenv("GIT_CONFIG_GLOBAL", str(poisoned))
    monkeypatch.setenv("CANARY", "secret")
    seen = tmp_path / "seen"
    hook(bare, "pre-receive", f"env > {seen}")
    code, said = await run(work, "push", await serve(env={"EXTRA": "given"}), "HEAD:next")
    assert code == 0, said
    environment = seen.read_text()
    assert "EXTRA=given" in environment
    assert "CANARY" not in environment


async def test_configuration_for_one_request(serve, bare, work):
    url = await serve(config={"receive.denyNonFastForwards": "true", "http.receivepack": "false"})
    code, said = await run(work, "push", url, "HEAD:next")
    assert code != 0
    assert "403" in said


async def test_the_client_waits_for_what_follows_a_push(serve, bare, work):
    seen: list[str] = []
    pushed, allowed = asyncio.Event(), asyncio.Event()

    async def follow() -> None:
        seen.append(git(bare, "for-each-ref", "--format=%(refname:short)"))
        if "next" in seen[-1]:
            pushed.set()
            await allowed.wait()

    push = asyncio.create_task(run(work, "push", await serve(before_end=follow), "HEAD:next"))
    await pushed.wait()
    assert not push.done()
    allowed.set()
    assert (await push)[0] == 0
    # first the list of refs, then the push itself
    assert seen == ["main", "main\nnext"]


@pytest.mark.parametrize(
    ("method", "tail", "service"),
    [
        ("GET", "info/refs?service=git-upload-pack", "git-upload-pack"),
        ("GET", "info/refs?service=git-receive-pack", PUSH),
        ("POST", "git-upload-pack", "git-upload-pack"),
        ("POST", PUSH, PUSH),
        ("GET", PUSH, None),
        ("GET", "info/refs", None),
        ("GET", "info/refs?service=git-upload-archive", None),
        ("GET", "objects/info/packs", None),
        ("POST", "info/refs?service=git-upload-pack", None),
    ],
)
async def test_which_service(method, tail, service):
    from aiohttp.test_utils import make_mocked_request

    request = make_mocked_request(method, f"/r.git/{tail}")
    assert git_service(request, tail.partition("?")[0]) == service


async def test_a_repository_that_is_not_there(serve, bare):
    url = await serve()
    bare.rename(bare.with_name("moved.git"))
    async with (
        aiohttp.ClientSession() as session,
        session.get(f"{url}/info/refs?service=git-upload-pack") as answer,
    ):
        assert answer.status == 404
