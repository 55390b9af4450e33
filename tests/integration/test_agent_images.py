"""Images of agents that the operator installs, on the real engine."""

from __future__ import annotations

import docker
import pytest

from bot.config import fixed_settings
from bot.ports import Agent
from runners.agents.registry import agent
from runners.images import ImageBuilder, ImageBuildFailed

pytestmark = [pytest.mark.docker, pytest.mark.timeout(600)]


async def built(builder: ImageBuilder, tool: Agent) -> str:
    return await builder.ensure(await builder.spec(tool.name, tool.version, installation=tool.installation))


async def test_what_the_commands_leave_in_their_folder_is_in_the_image(
    docker_client: docker.DockerClient, builder: ImageBuilder
) -> None:
    steps = [
        'printf "#!/bin/sh\\necho hello from %s\\n" "$AGENT" > "$AGENT/bin/mycli"; chmod 4755 "$AGENT/bin/mycli"',
        "touch /left-behind; umask 077; echo data > $AGENT/data",
    ]
    config = {"argv": ["mycli"], "version": "1.0", "install": steps}
    tool = agent("mine", fixed_settings(custom_agents={"mine": config}))
    image = await built(builder, tool)
    listing = "ls /left-behind || true; find / -xdev -perm /6000 2>/dev/null || true"
    script = f"mycli; cat /opt/agents/mine/data; {listing}; id -un"
    output: bytes = docker_client.containers.run(
        image, ["bash", "-euc", script], remove=True, network_mode="none", read_only=True, cap_drop=["ALL"]
    )
    assert output.decode().splitlines() == ["hello from /opt/agents/mine", "data", "agent"]
    labels = docker_client.images.get(image).labels
    assert (labels["agent-conductor.agent"], labels["agent-conductor.agent-version"]) == ("mine", "1.0")


async def test_a_failing_command_ends_the_build_with_its_words(builder: ImageBuilder) -> None:
    config = {"argv": ["mycli"], "install": ["echo no such release >&2; false", "echo never"]}
    with pytest.raises(ImageBuildFailed) as failure:
        await built(builder, agent("mine", fixed_settings(custom_agents={"mine": config})))
    assert "no such release" in failure.value.tail
    assert "never" not in failure.value.tail.replace("echo never", "")


@pytest.mark.parametrize(("name", "program"), [("mine", "mycli"), ("q", "kiro-cli")], ids=["own", "q"])
async def test_a_program_that_nothing_installs_is_named_with_the_next_step(
    builder: ImageBuilder, name: str, program: str
) -> None:
    settings = fixed_settings(custom_agents={"mine": {"argv": ["mycli"]}}, kiro_api_key="x")
    with pytest.raises(ImageBuildFailed) as failure:
        await built(builder, agent(name, settings))
    assert f"There is no program {program} in this image." in failure.value.tail
    assert (
        "Put it into base_image, or let the agent's install commands put it into $AGENT/bin."
        in failure.value.tail
    )
