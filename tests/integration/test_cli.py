"""`conductor` as a person meets it: help that teaches, and one clear line when something is wrong."""

from __future__ import annotations

import asyncio
import os
import signal
import subprocess
import sys
from pathlib import Path

import pytest
from cryptography.hazmat.primitives import serialization
from cryptography.hazmat.primitives.asymmetric import rsa

from tests.llm import Script, ScriptedLlm

ROOT = Path(__file__).parents[2]


@pytest.fixture(scope="module")
def key(tmp_path_factory: pytest.TempPathFactory) -> Path:
    path = tmp_path_factory.mktemp("key") / "app.pem"
    private = rsa.generate_private_key(public_exponent=65537, key_size=2048)
    path.write_bytes(
        private.private_bytes(
            serialization.Encoding.PEM,
            serialization.PrivateFormat.TraditionalOpenSSL,
            serialization.NoEncryption(),
        )
    )
    return path


def conductor(
    *arguments: str, folder: Path, timeout: float = 60, **variables: str
) -> subprocess.CompletedProcess[str]:
    environment = {name: value for name, value in os.environ.items() if not name.startswith("CONDUCTOR_")}
    environment |= {f"CONDUCTOR_{name}": value for name, value in variables.items()}
    environment["PYTHONPATH"] = str(ROOT)
    return subprocess.run(
        [sys.executable, "-m", "bot", *arguments],
        capture_output=True,
        text=True,
        cwd=folder,
        env=environment,
        timeout=timeout,
        check=False,
    )


COMMANDS = ["serve", "worker", "up", "sandbox", "demo", "migrate", "jobs", "costs", "approvals"]


def test_help_names_every_command(tmp_path: Path) -> None:
    done = conductor("--help", folder=tmp_path)
    assert done.returncode == 0
    assert all(f"\n  {command}" in done.stdout for command in COMMANDS)


@pytest.mark.parametrize("command", COMMANDS)
def test_each_command_explains_itself(command: str, tmp_path: Path) -> None:
    done = conductor(command, "--help", folder=tmp_path)
    assert done.returncode == 0
    assert len(done.stdout) > 150


def needed(key: Path, tmp_path: Path, **changes: str) -> dict[str, str]:
    return {
        "GITHUB_API_URL": "http://127.0.0.1:9",
        "GITHUB_APP_ID": "1",
        "GITHUB_PRIVATE_KEY": str(key),
        "WEBHOOK_SECRET": "s3cret-s3cret",
        "DATA_DIR": str(tmp_path / "data"),
        "LISTEN": "127.0.0.1:0",
        "MODE": "dev",
    } | changes


@pytest.mark.parametrize(
    ("command", "changes", "code", "says"),
    [
        ("serve", {"WEBHOOK_SECRET": ""}, 2, ["Not configured: CONDUCTOR_WEBHOOK_SECRET"]),
        ("serve", {"WEBHOKO_SECRET": "x"}, 2, ["CONDUCTOR_WEBHOKO_SECRET", "conductor.example.toml"]),
        ("serve", {"GITHUB_PRIVATE_KEY": "/nowhere/app.pem"}, 2, ["/nowhere/app.pem", ".pem file"]),
        (
            "serve",
            {"REDIS_URL": "redis://127.0.0.1:9/0"},
            1,
            ["Redis does not answer", "CONDUCTOR_REDIS_URL"],
        ),
        ("serve", {"REDIS_URL": "http://127.0.0.1:9"}, 2, ["not a Redis URL"]),
        (
            "serve",
            {
                "DATABASE_URL": "postgresql+asyncpg://u:hidden-password@127.0.0.1:9/x",
                "REDIS_URL": "redis://127.0.0.1:9",
            },
            1,
            ["database cannot be used", "CONDUCTOR_DATABASE_URL"],
        ),
        (
            "serve",
            {"DATABASE_URL": "nonsense", "REDIS_URL": "redis://127.0.0.1:9"},
            2,
            ["not a database URL"],
        ),
        ("up", {"RUNNER": "local"}, 2, ["ALLOW_LOCAL_RUNNER"]),
        ("up", {"RUNNER": "podman"}, 2, ["podman", "docker or local"]),
        (
            "up",
            {"LISTEN": "192.0.2.1:80", "RUNNER": "local", "ALLOW_LOCAL_RUNNER": "1"},
            1,
            ["Cannot listen"],
        ),
        (
            "migrate",
            {"DATABASE_URL": "sqlite+aiosqlite:////proc/nowhere/x.db"},
            1,
            ["database cannot be used"],
        ),
    ],
)
def test_what_is_wrong_is_said_with_the_next_step(
    command: str, changes: dict[str, str], code: int, says: list[str], key: Path, tmp_path: Path
) -> None:
    done = conductor(command, folder=tmp_path, **needed(key, tmp_path, **changes))
    assert done.returncode == code, done.stderr[-2000:]
    assert all(part in done.stderr for part in says), done.stderr[-2000:]
    assert "Traceback" not in done.stderr
    assert "hidden-password" not in done.stderr


def test_a_missing_engine_is_said(key: Path, tmp_path: Path) -> None:
    os.environ["DOCKER_HOST"] = "tcp://127.0.0.1:9"
    try:
        done = conductor("up", folder=tmp_path, **needed(key, tmp_path))
    finally:
        del os.environ["DOCKER_HOST"]
    assert done.returncode == 1
    assert "Is the Docker engine running?" in done.stderr
    assert "Traceback" not in done.stderr


def test_up_serves_without_github_and_ends_on_a_signal(key: Path, tmp_path: Path) -> None:
    """GitHub may be away when we start: nothing of ours depends on it until somebody asks for something."""
    environment = dict(os.environ) | {
        f"CONDUCTOR_{name}": value
        for name, value in needed(key, tmp_path, RUNNER="local", ALLOW_LOCAL_RUNNER="true").items()
    }
    environment["PYTHONPATH"] = str(ROOT)
    process = subprocess.Popen(
        [sys.executable, "-m", "bot", "up"], stderr=subprocess.PIPE, text=True, cwd=tmp_path, env=environment
    )
    try:
        assert process.stderr is not None
        lines = []
        while "working" not in (line := process.stderr.readline()):
            assert line, f"ended: {''.join(lines)}"
            lines.append(line)
        process.send_signal(signal.SIGTERM)
        _, rest = process.communicate(timeout=60)
        assert process.returncode == 0, rest
        assert "Traceback" not in rest
    finally:
        process.kill()
        process.wait()


def test_jobs_of_a_new_installation(tmp_path: Path) -> None:
    done = conductor("jobs", folder=tmp_path, DATA_DIR=str(tmp_path))
    assert (done.returncode, done.stdout) == (0, "There are no jobs yet.\n")


@pytest.mark.docker
@pytest.mark.timeout(180)
def test_the_demo_in_containers_leaves_nothing_behind(tmp_path: Path) -> None:
    before = _leftovers()
    done = conductor("demo", folder=tmp_path, timeout=110)
    assert done.returncode == 0, done.stdout + done.stderr
    assert "everything is stopped and removed" in done.stdout
    assert _leftovers() == before


@pytest.mark.docker
def test_the_demo_ended_in_the_middle_leaves_nothing_behind(tmp_path: Path) -> None:
    before = _leftovers()
    process = subprocess.Popen(
        [sys.executable, "-m", "bot", "demo"],
        stdout=subprocess.PIPE,
        stderr=subprocess.STDOUT,
        text=True,
        cwd=tmp_path,
        env=dict(os.environ) | {"PYTHONPATH": str(ROOT)},
    )
    try:
        assert process.stdout is not None
        for line in process.stdout:
            if "an agent starts" in line:
                break
        process.send_signal(signal.SIGTERM)
        process.communicate(timeout=60)
        assert process.returncode == 130
    finally:
        process.kill()
        process.wait()
    assert _leftovers() == before


@pytest.mark.cli
@pytest.mark.timeout(300)
async def test_the_demo_with_a_real_agent(tmp_path: Path) -> None:
    """`make demo AGENT=claude`, with a scripted model where the provider would be."""
    path = "/workspace/repo/hello/farewell.py"
    code = 'def farewell(name):\n    return f"Goodbye, {name}!"\n'
    script = Script.of(
        [
            {"calls": [{"name": "Write", "input": {"file_path": path, "content": code}}]},
            {"text": '<result>{"status": "done", "title": "Say goodbye", "summary": "Added it."}</result>'},
        ],
        follow="conversation",
    )
    async with ScriptedLlm(script) as llm:
        process = await asyncio.create_subprocess_exec(
            *(sys.executable, "-m", "bot", "demo", "--agent", "claude"),
            stdout=subprocess.PIPE,
            stderr=subprocess.STDOUT,
            cwd=tmp_path,
            env=dict(os.environ)
            | {
                "PYTHONPATH": str(ROOT),
                "ANTHROPIC_API_KEY": "sk-ant-demo-key",
                "ANTHROPIC_BASE_URL": llm.url,
            },
        )
        out, _ = await process.communicate()
        text = out.decode()
        assert process.returncode == 0, text
        assert "pull request #2 was opened: “Say goodbye”" in text
        assert "+def farewell(name):" in text
        # the provider got the key, the container never had it
        assert {request.headers.get("x-api-key") for request in llm.requests} == {"sk-ant-demo-key"}


def test_the_demo_asks_for_a_key(tmp_path: Path) -> None:
    done = conductor("demo", "--agent", "claude", folder=tmp_path)
    assert done.returncode == 2
    assert "ANTHROPIC_API_KEY" in done.stderr


def _leftovers() -> tuple[set[str], set[str]]:
    """Folders of demos, and containers that were made by one."""
    import docker
    from docker.errors import DockerException

    folders = {str(path) for place in ("/dev/shm", "/tmp") for path in Path(place).glob("conductor-demo-*")}
    try:
        client = docker.from_env()
    except DockerException:
        return folders, set()
    try:
        found = client.containers.list(all=True, filters={"label": "agent-conductor.host"})
        return folders, {one.name for one in found if one.labels["agent-conductor.host"].startswith("demo-")}
    finally:
        client.close()
