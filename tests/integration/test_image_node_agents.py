"""The images of Gemini CLI, OpenCode and Qwen Code, built on the real engine."""

from __future__ import annotations

import docker
import pytest

from runners.agents.registry import agent
from runners.images import ImageBuilder

pytestmark = [pytest.mark.docker, pytest.mark.slow, pytest.mark.timeout(900)]


@pytest.mark.parametrize("name", ["gemini", "opencode", "qwen"])
async def test_the_exact_version_runs_locked(
    docker_client: docker.DockerClient, builder: ImageBuilder, name: str
) -> None:
    version = agent(name).version
    image = await builder.ensure(await builder.spec(name, version))
    script = (
        f"{name} --version; command -v node npm pip || echo no node; ls /opt/agents; "
        "find / -xdev -perm /6000 2>/dev/null || true"
    )
    output: bytes = docker_client.containers.run(
        image,
        ["bash", "-euc", script],
        remove=True,
        network_mode="none",
        read_only=True,
        cap_drop=["ALL"],
        security_opt=["no-new-privileges"],
        tmpfs={"/tmp": "exec", "/home/agent": "uid=1000,gid=1000"},
        init=True,
    )
    # a Node.js of the CLI's own is not what the repository's commands find
    assert output.decode().split("\n") == [version, "no node", name, ""]
