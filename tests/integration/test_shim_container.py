"""The shim where it is meant to run: in a locked container without a network, as the Docker runner starts it."""

from __future__ import annotations

import asyncio
import os
from pathlib import Path

import pytest

from bot.config import fixed_settings
from bot.ports import ContainerSpec, Exit, Handle, Limits
from runners.docker import DockerRunner
from runners.images import ImageBuilder
from tests import containers
from tests.containers import MIB
from tests.shim_host import HEARTBEAT, PATIENT, Host, running

pytestmark = [pytest.mark.docker, pytest.mark.timeout(900)]  # the first run builds the image

SHIM = Path(__file__).parents[2] / "runners" / "shim.py"


class ContainerHost(Host):
    """The same worker, whose attempts are containers."""

    def __init__(self, folder: Path, image: str) -> None:
        super().__init__(folder)
        self.image = image
        self.settings = fixed_settings(host_name=f"shim-{folder.name}-{os.getpid()}")
        self.runner = DockerRunner(self.settings)
        self.handle: Handle | None = None

    async def launch(self) -> None:
        self.handle = await self.runner.start(
            ContainerSpec(
                attempt_id=containers.new_attempt(),
                image=self.image,
                argv=["python3", "/opt/conductor/shim.py"],
                env={"CONDUCTOR_TOKEN": self.desk.token},
                socket_dir=self.desk.socket_dir,
                mirror=self.mirror,
                limits=Limits(memory=256 * MIB, cpus=1.0, pids=64, tmp=32 * MIB, file=64 * MIB),
            )
        )

    async def stop(self) -> None:
        if self.handle is not None:
            await self.runner.remove(self.handle)
        await self.runner.close()
        client = containers.engine()
        containers.sweep(client, self.settings.host_name)
        client.close()
        await self.gateway.aclose()
        self.desk.close()

    async def exit(self) -> Exit:
        assert self.handle is not None
        return await asyncio.wait_for(self.runner.wait(self.handle), PATIENT)


@pytest.fixture
async def host(tmp_path: Path) -> ContainerHost:
    bundle = os.environ.get("SSL_CERT_FILE")
    trusted = Path(bundle).read_bytes() if bundle else b""
    builder = ImageBuilder(base=containers.BASE_IMAGE, shim=SHIM.read_bytes(), ca_bundle=trusted)
    image = await builder.ensure(await builder.spec("shell", ""))
    await builder.close()
    return ContainerHost(tmp_path, image)


async def test_two_turns_without_a_network(host: ContainerHost) -> None:
    async with running(host):
        outcome = await host.play(
            "id -u; ls /sys/class/net; cat > got.txt; setsid sleep 1000 & " + HEARTBEAT,
            command={"stdin": "by stdin\n", "env": {"URL": "{gateway}", "KEY": host.desk.token}},
        )
        assert (outcome.exit_code, outcome.error, outcome.push_error) == (0, None, None)
        assert await host.lines() == ["1000", "lo", "204"]
        assert host.changes() == ["got.txt"]
        # nothing of the first turn lives in the second: init, the shim, and the agent that looks
        await host.play("cat got.txt; cat /proc/[0-9]*/comm", number=2)
        text, *processes = await host.lines(number=2)
        assert text == "by stdin"
        assert "sleep" not in processes
        assert "python3" in processes
        host.desk.finish()
        assert await host.exit() == Exit(code=0)


async def test_the_runners_stop_hands_in_the_work(host: ContainerHost) -> None:
    async with running(host):
        host.desk.give(host.turn("echo half > half.txt; echo ready; exec sleep 1000"))
        await host.said("ready")
        assert host.handle is not None
        await host.runner.stop(host.handle, 40)
        outcome = host.desk.outcome_now(1)
        assert outcome is not None
        assert outcome.stopped
        assert host.changes() == ["half.txt"]
        ended = await host.exit()
        assert (ended.code, ended.stopped) == (143, True)


async def test_a_restarted_worker_loses_no_line_of_a_container(host: ContainerHost) -> None:
    async with running(host):
        host.desk.give(
            host.turn(
                "seq 1 500; echo first; until [ -e /mirror/go ]; do sleep 0.02; done; seq 501 5000; echo x > x.txt"
            )
        )
        await host.said("first")
        await host.gateway.aclose()
        (host.mirror / "go").touch()
        await host.restart()
        outcome = await asyncio.wait_for(host.desk.outcome(1), PATIENT)
        assert (outcome.error, outcome.push_error) == (None, None)
        numbers = [line for line in await host.lines() if line != "first"]
        assert numbers == [str(number) for number in range(1, 5001)]
        assert host.changes() == ["x.txt"]
