"""Real builds on the real engine; their layers are cached there, so only the first run is slow."""

import asyncio
import hashlib
import os
import uuid
from collections.abc import AsyncIterator, Iterator
from pathlib import Path

import certifi
import docker
import pytest

from bot.capabilities import Capability, known_capabilities
from bot.errors import InfrastructureError
from bot.images import CAPABILITIES_LABEL, HASH_LABEL, SHIM_LABEL, image_hash, image_tag
from runners.images import TAIL_LINES, ImageBuilder, ImageBuildFailed

pytestmark = [pytest.mark.docker, pytest.mark.timeout(900)]

BASE = "debian:bookworm-slim"
SHIM = b"print('placeholder')\n"
#: The paths that the CA bundle has or could have in an image, and what would point at it.


def table_of(package: str) -> dict[str, Capability]:
    """A capability called ``absent`` that needs ``package``."""
    return known_capabilities({"absent": Capability(packages=(package,))})


def builder_of(**options: object) -> ImageBuilder:
    # a machine behind a TLS inspecting proxy says so in this variable
    bundle = os.environ.get("SSL_CERT_FILE")
    values: dict[str, object] = {
        "base": BASE,
        "shim": SHIM,
        "ca_bundle": Path(bundle).read_bytes() if bundle else b"",
    }
    return ImageBuilder(**(values | options))  # type: ignore[arg-type]


@pytest.fixture
async def builder() -> AsyncIterator[ImageBuilder]:
    builder = builder_of()
    yield builder
    await builder.close()


def run(docker_client: docker.DockerClient, image: str, script: str) -> str:
    """What ``script`` prints in a container as locked as an attempt's."""
    output: bytes = docker_client.containers.run(
        image,
        ["bash", "-euc", script],
        remove=True,
        network_mode="none",
        read_only=True,
        cap_drop=["ALL"],
        security_opt=["no-new-privileges"],
        tmpfs={"/tmp": "", "/home/agent": "uid=1000,gid=1000"},
        init=True,
        stderr=True,
    )
    return output.decode()


@pytest.fixture
async def shell_image(builder: ImageBuilder) -> str:
    return await builder.ensure(await builder.spec("shell", ""))


async def test_the_user_is_real_and_unprivileged(
    docker_client: docker.DockerClient, shell_image: str
) -> None:
    told = run(
        docker_client, shell_image, "id -u; id -g; id -un; getent passwd agent; pwd; echo $HOME"
    ).splitlines()
    assert told == [
        "1000",
        "1000",
        "agent",
        "agent:x:1000:1000::/home/agent:/bin/bash",
        "/workspace",
        "/home/agent",
    ]
    owners = run(
        docker_client, shell_image, "stat -c '%U %a %n' /workspace /run/conductor /opt/conductor/shim.py"
    )
    assert owners.splitlines() == [
        "agent 755 /workspace",
        "root 755 /run/conductor",
        "root 644 /opt/conductor/shim.py",
    ]


async def test_the_base_set_works(docker_client: docker.DockerClient, shell_image: str) -> None:
    told = run(
        docker_client,
        shell_image,
        "git --version; python3 -c 'import asyncio, json, ssl; print(1)'; ps -o comm= -p 1",
    )
    assert told.startswith("git version 2.")
    assert told.splitlines()[1:] == ["1", "docker-init"]
    run(docker_client, shell_image, "curl --version; test -s /etc/ssl/certs/ca-certificates.crt")


async def test_the_image_starts_the_shim_that_was_given(
    docker_client: docker.DockerClient, shell_image: str
) -> None:
    assert docker_client.containers.run(shell_image, remove=True, network_mode="none") == b"placeholder\n"
    assert docker_client.images.get(shell_image).labels[SHIM_LABEL] == hashlib.sha256(SHIM).hexdigest()


async def test_nothing_can_become_another_user(docker_client: docker.DockerClient, shell_image: str) -> None:
    found = (
        "find / -xdev -perm /6000 -print 2>/dev/null || true; test -u /usr/bin/su && echo su || echo plain"
    )
    assert run(docker_client, shell_image, found) == "plain\n"


async def test_the_shell_image_has_no_agent(docker_client: docker.DockerClient, shell_image: str) -> None:
    script = "ls /opt/agents; command -v claude codex node npm pip || echo none"
    assert run(docker_client, shell_image, script) == "none\n"


@pytest.mark.slow
@pytest.mark.parametrize(
    ("agent", "version", "says"),
    [("claude", "2.1.329", "2.1.329 (Claude Code)"), ("codex", "0.169.0", "codex-cli 0.169.0")],
)
async def test_a_cli_runs_locked_in_its_exact_version(
    docker_client: docker.DockerClient, builder: ImageBuilder, agent: str, version: str, says: str
) -> None:
    spec = await builder.spec(agent, version)
    image = await builder.ensure(spec)
    assert run(docker_client, image, f"{agent} --version").strip() == says
    # the native binary itself, no launcher: nothing in the image could run one
    magic = f"od -An -c -N4 $(readlink -f $(command -v {agent}))"
    assert run(docker_client, image, magic).split() == ["177", "E", "L", "F"]
    assert (
        run(docker_client, image, "command -v node npm pip || echo none; ls /opt/agents")
        == f"none\n{agent}\n"
    )
    assert run(docker_client, image, "find / -xdev -perm /6000 2>/dev/null || true") == ""
    labels = docker_client.images.get(image).labels
    assert labels[HASH_LABEL] == image_hash(spec)
    assert labels["agent-conductor.agent-version"] == version


@pytest.mark.slow
async def test_capabilities_work_locked(docker_client: docker.DockerClient, builder: ImageBuilder) -> None:
    """From Debian, from wheels, and an operator's own; nothing of what made them stays."""
    own = Capability(
        run=("printf '#!/bin/sh\\necho \"$0 $@\"\\n' > /opt/tools/bin/own", "chmod 4755 /opt/tools/bin/own")
    )
    table = known_capabilities({"own-tool": own})
    spec = await builder.spec(
        "shell", "", ["NodeJS@22", "go", "docker", "JQ", "rg", "make", "Own Tool"], table
    )
    image = await builder.ensure(spec)
    script = (
        "node --version; npm --version; npx --version; go version; docker --version; jq --version; rg --version; "
        "make --version; own 'a b'; cd /tmp; export HOME=/tmp; "
        "printf 'package main\\nfunc main() { println(42) }\\n' > a.go; go build -o built a.go; ls built"
    )
    told = run(docker_client, image, script)
    for words in (
        "v22.",
        "go version go1.26",
        "Docker version",
        "jq-1",
        "ripgrep",
        "GNU Make",
        "/own a b\n",
        "built\n",
    ):
        assert words in told
    assert run(docker_client, image, "find / -xdev -perm /6000 2>/dev/null || true") == ""
    assert run(docker_client, image, "command -v pip dockerd-rootless.sh || echo none") == "none\n"
    assert run(docker_client, image, "find /opt/tools -perm /022 -not -type l | head -3; echo end") == "end\n"
    assert (
        docker_client.images.get(image).labels[CAPABILITIES_LABEL]
        == "docker-cli go1.26 jq make node22 own-tool ripgrep"
    )
    # another spelling in another order is the same image
    again = ["ripgrep", "node-22.x", "golang", "own_tool", "docker_cli", "make", "jq"]
    assert await builder.ensure(await builder.spec("shell", "", again, table)) == image


@pytest.mark.slow
async def test_what_inspects_tls_is_trusted_in_the_image(docker_client: docker.DockerClient) -> None:
    """The egress proxy tunnels TLS from end to end, so the container meets the company's certificates."""
    builder = builder_of(ca_bundle=Path(certifi.where()).read_bytes())
    image = await builder.ensure(await builder.spec("shell", ""))
    path = run(docker_client, image, "echo $SSL_CERT_FILE").strip()
    given = hashlib.sha256(Path(certifi.where()).read_bytes()).hexdigest()
    assert run(docker_client, image, f"sha256sum {path}").split()[0] == given
    assert run(docker_client, image, f"test -w {path} || echo no") == "no\n"
    await builder.close()


async def test_an_image_that_is_there_is_not_built_again(builder: ImageBuilder) -> None:
    spec = await builder.spec("shell", "")
    first = await builder.ensure(spec)
    lines: list[str] = []
    assert await builder.ensure(spec, lines.append) == first
    assert lines == []


@pytest.fixture
def fresh(docker_client: docker.DockerClient) -> Iterator[bytes]:
    """A shim that no image has: its image must be built, from cached layers. Its images go at the end."""
    shim = f"print('{uuid.uuid4()}')\n".encode()
    yield shim
    for image in docker_client.images.list(
        filters={"label": f"{SHIM_LABEL}={hashlib.sha256(shim).hexdigest()}"}
    ):
        docker_client.images.remove(image.id, force=True)


async def test_those_who_want_the_same_image_share_one_build(shell_image: str, fresh: bytes) -> None:
    connections = 0

    def connect() -> docker.DockerClient:
        nonlocal connections
        connections += 1
        return docker.from_env()

    builder = builder_of(shim=fresh, connect=connect)
    spec = await builder.spec("shell", "")
    before = connections
    heard: list[list[str]] = [[] for _ in range(4)]
    ids = await asyncio.gather(*(builder.ensure(spec, lines.append) for lines in heard))
    await builder.close()
    assert len(set(ids)) == 1
    assert connections - before == 3, "one look, one build, one look"
    assert any(line.startswith("Step 1/") for line in heard[0])
    assert all(lines == heard[0] for lines in heard)


async def test_who_gives_up_waiting_does_not_end_the_build(
    docker_client: docker.DockerClient, shell_image: str, fresh: bytes
) -> None:
    builder = builder_of(shim=fresh)
    spec = await builder.spec("shell", "")
    started = asyncio.Event()
    first = asyncio.create_task(builder.ensure(spec, lambda _: started.set()))
    await started.wait()
    second = asyncio.create_task(builder.ensure(spec))
    await asyncio.sleep(0)
    first.cancel()
    with pytest.raises(asyncio.CancelledError):
        await first
    image = await second
    await builder.close()
    assert image_tag(spec) in docker_client.images.get(image).tags


async def test_a_failed_build_tells_the_end_of_its_output(
    docker_client: docker.DockerClient, builder: ImageBuilder
) -> None:
    spec = await builder.spec("shell", "", ["absent"], table_of("no-such-package|no-other"))
    lines: list[str] = []
    with pytest.raises(ImageBuildFailed) as failure:
        await builder.ensure(spec, lines.append)
    assert "has no package no-such-package or no-other." in failure.value.tail
    assert "image_capabilities" in failure.value.tail
    assert failure.value.tail.splitlines() == lines[-TAIL_LINES:]
    assert "returned a non-zero code: 1" in failure.value.message
    assert "CONDUCTOR_IMAGE_CA_BUNDLE" in failure.value.hint
    assert not docker_client.images.list(image_tag(spec))


@pytest.mark.slow
async def test_a_version_that_does_not_exist_fails(builder: ImageBuilder) -> None:
    with pytest.raises(ImageBuildFailed) as failure:
        await builder.ensure(await builder.spec("claude", "0.0.0-nonesuch"))
    assert "No matching version found for @anthropic-ai/claude-code@0.0.0-nonesuch" in failure.value.tail


async def no_container_runs(docker_client: docker.DockerClient, word: str) -> None:
    """Return when no container with ``word`` in its command is left; the test's time-out bounds it."""
    while any(
        word in str(c.attrs["Config"]["Cmd"]) for c in docker_client.containers.list(ignore_removed=True)
    ):
        await asyncio.sleep(0.1)


async def test_a_build_that_takes_too_long_is_broken_off(docker_client: docker.DockerClient) -> None:
    word = f"absent-{uuid.uuid4().hex}"
    builder = builder_of(timeout=1)
    spec = await builder.spec("shell", "", ["absent"], table_of(word))
    with pytest.raises(ImageBuildFailed, match="not done after 1 s"):
        await builder.ensure(spec)
    await no_container_runs(docker_client, word)
    await builder.close()


async def test_close_breaks_off_what_is_being_built(docker_client: docker.DockerClient) -> None:
    word = f"absent-{uuid.uuid4().hex}"
    builder = builder_of()
    spec = await builder.spec("shell", "", ["absent"], table_of(word))
    running = asyncio.Event()
    waiter = asyncio.create_task(builder.ensure(spec, lambda _: running.set()))
    await running.wait()
    await builder.close()
    with pytest.raises(asyncio.CancelledError):
        await waiter
    await no_container_runs(docker_client, word)


async def test_a_base_image_that_cannot_be_had_is_explained() -> None:
    # nothing listens on that port of this machine, so the pull fails wherever the test runs
    builder = builder_of(base="127.0.0.1:9/absent/base:1")
    with pytest.raises(InfrastructureError, match=r"no base image 127\.0\.0\.1:9/absent/base:1") as failure:
        await builder.spec("shell", "")
    assert "docker import" in failure.value.hint
    await builder.close()


async def test_an_engine_that_is_not_there_is_explained() -> None:
    builder = builder_of(connect=lambda: docker.DockerClient(base_url="tcp://127.0.0.1:9"))
    with pytest.raises(InfrastructureError, match="The Docker engine does not do its work") as failure:
        await builder.spec("shell", "")
    assert "docker info" in failure.value.hint
    await builder.close()
