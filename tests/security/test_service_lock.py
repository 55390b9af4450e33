"""Attacks from inside a service, which starts as root: attack classes 10 (secrets), 13 (egress), 14 (engine), 19."""

from __future__ import annotations

import asyncio
import os
import shlex
import socket
from collections.abc import AsyncIterator
from pathlib import Path
from typing import Any

import pytest

from bot.config import fixed_settings
from bot.images import BUILD_LABEL, OWNER_LABEL
from bot.ports import ContainerSpec, Handle, HealthCheck, Limits, ServiceSpec
from runners.docker import DockerRunner
from runners.gateway.desk import Desk
from runners.gateway.server import Gateway
from runners.provision import SHIM
from runners.services import CAPABILITIES, SERVICE_LABEL, ServiceFailed
from tests import containers
from tests.containers import MIB
from tests.service_images import servers_image

pytestmark = [pytest.mark.docker, pytest.mark.timeout(600)]  # the first run builds the image

#: The bits of capabilities(7) that a service keeps: chown, dac_override, fowner, setgid, setuid.
KEPT = 1 << 0 | 1 << 1 | 1 << 3 | 1 << 6 | 1 << 7

#: Says the status with which the relay's port answers somebody without a token.
ASK = """
import urllib.error, urllib.request
request = urllib.request.Request("http://127.0.0.1:8080/heartbeat", method="POST")
try:
    print(urllib.request.urlopen(request, timeout=9).status)
except urllib.error.HTTPError as error:
    print(error.code)
except OSError as error:
    print(error)
"""


class Cell:
    """An attempt with a real shim, gateway and token, and a service in which things are tried."""

    def __init__(self, folder: Path) -> None:
        self.client = containers.engine()
        self.image = servers_image(self.client)
        self.settings = fixed_settings(host_name=f"service-lock-{folder.name}-{os.getpid()}")
        self.runner = DockerRunner(self.settings)
        self.gateway = Gateway({})
        self.attempt_id = containers.new_attempt()
        self.desk = Desk.create(folder / "desk", attempt_id=self.attempt_id, mirror=None)
        self.limits = Limits(memory=256 * MIB, cpus=0.5, pids=48, tmp=32 * MIB, file=8 * MIB)

    def spec(self, script: str = "exec sleep 600", **changes: Any) -> ContainerSpec:
        service: dict[str, Any] = {
            "name": "probe",
            "image": self.image,
            "command": ["bash", "-c", script],
            "env": {"OWN": "kept"},
            "memory": 96 * MIB,
        }
        return ContainerSpec(
            attempt_id=self.attempt_id,
            image=self.image,
            argv=["python3", "-c", SHIM.read_text()],
            env={"CONDUCTOR_TOKEN": self.desk.token},
            socket_dir=self.desk.socket_dir,
            mirror=None,
            limits=self.limits,
            services=[ServiceSpec(**(service | changes))],
        )

    async def start(self, script: str = "exec sleep 600", **changes: Any) -> Handle:
        await self.gateway.open(self.desk)
        return await self.runner.start(self.spec(script, **changes))

    def service(self) -> dict[str, Any]:
        """What the engine says about it."""
        labels = [SERVICE_LABEL, f"agent-conductor.attempt={self.attempt_id}"]
        (found,) = self.client.api.containers(all=True, filters={"label": labels})
        inspected: dict[str, Any] = self.client.api.inspect_container(found["Id"])
        return inspected

    async def tried(self, script: str) -> str:
        """What ``script`` says when root runs it in the service."""

        def run() -> str:
            code, output = self.client.containers.get(self.service()["Id"]).exec_run(["bash", "-c", script])
            del code
            return str(output.decode())

        return await asyncio.to_thread(run)

    async def close(self) -> None:
        self.desk.finish()
        await self.runner.close()
        await asyncio.to_thread(containers.sweep, self.client, self.settings.host_name)
        await self.gateway.aclose()
        self.desk.close()
        self.client.close()


@pytest.fixture
async def cell(tmp_path: Path) -> AsyncIterator[Cell]:
    made = Cell(tmp_path)
    try:
        yield made
    finally:
        await made.close()


async def test_the_engine_was_told_of_every_lock(cell: Cell) -> None:
    handle = await cell.start()
    found = cell.service()
    host, config = found["HostConfig"], found["Config"]
    assert host["NetworkMode"] == f"container:{handle.ref}"
    assert not host["PortBindings"]
    assert not host["PublishAllPorts"]
    assert not host["Privileged"]
    assert host["CapDrop"] == ["ALL"]
    assert host["CapAdd"] == list(CAPABILITIES)
    assert "no-new-privileges:true" in host["SecurityOpt"]
    assert not [option for option in host["SecurityOpt"] if "unconfined" in option]
    assert host["Init"]
    assert host["IpcMode"] == "private"
    assert host["CgroupnsMode"] == "private"
    assert host["PidMode"] == host["UTSMode"] == host["UsernsMode"] == host["CgroupParent"] == ""
    assert not host["Devices"]
    assert not host["DeviceRequests"]
    assert not host["GroupAdd"]
    assert not host.get("Sysctls")
    assert not host["Binds"]
    assert not host["VolumesFrom"]
    assert host["MaskedPaths"]
    assert host["ReadonlyPaths"]
    assert host["Memory"] == host["MemorySwap"] == 96 * MIB
    assert host["NanoCpus"] == 500_000_000
    assert host["PidsLimit"] == cell.limits.pids
    assert host["RestartPolicy"]["Name"] == "no"
    ulimits = {each["Name"]: (each["Soft"], each["Hard"]) for each in host["Ulimits"]}
    assert ulimits["fsize"] == (cell.limits.file, cell.limits.file)
    assert ulimits["core"] == (0, 0)
    # the folder that its image declares for data, and nothing of the host or of the attempt
    assert sorted(host["Tmpfs"]) == ["/tmp", "/var/lib/postgresql/data"]
    assert found["Mounts"] == []
    assert config["Healthcheck"]["Test"] == ["NONE"]
    assert config["Labels"]["agent-conductor.host"] == cell.settings.host_name
    assert host["LogConfig"]["Config"] == {"max-file": "1", "max-size": "1m"}


async def test_root_has_five_capabilities_and_cannot_get_more(cell: Cell) -> None:
    await cell.start()
    status = await cell.tried("cat /proc/1/status; echo; cat /proc/self/status")
    lines = dict(line.split(":\t", 1) for line in status.splitlines() if ":\t" in line)
    for name in ("CapPrm", "CapEff", "CapBnd"):
        assert int(lines[name], 16) == KEPT
    assert int(lines["CapAmb"], 16) == 0
    assert lines["NoNewPrivs"] == "1"
    assert lines["Seccomp"] == "2"
    tries = [
        "mount -t tmpfs none /mnt",
        "mknod /tmp/disk b 8 0",
        "ip link add x type dummy",
        "ip addr add 10.1.2.3/24 dev lo",
        "unshare --mount true",
        "unshare --user true",
        "nsenter --target 1 --net true",
        "chroot / true",
        "python3 -c 'import socket; socket.socket(socket.AF_INET, socket.SOCK_RAW, 1)'",
        "python3 -c 'import socket; socket.socket(socket.AF_PACKET, socket.SOCK_RAW)'",
        "echo b > /proc/sysrq-trigger",
        "echo 1 > /proc/sys/kernel/panic",
        "dmesg",
    ]
    for attack in tries:
        assert (
            await cell.tried(f"({attack}) >/dev/null 2>&1 && echo worked || echo failed")
        ) == "failed\n", attack


async def test_there_is_no_way_out(cell: Cell) -> None:
    """Neither the network, nor a name, nor this host's own ports, nor the metadata service."""
    await cell.start()
    assert (await cell.tried("ls /sys/class/net")).split() == ["lo"]
    with socket.create_server(("0.0.0.0", 0)) as listener:
        port = listener.getsockname()[1]
        connect = "timeout 5 bash -c ': <> /dev/tcp/{0}/{1}' 2>/dev/null && echo reached || echo closed"
        addresses = ["1.1.1.1/53", "169.254.169.254/80", "172.17.0.1/22", f"127.0.0.1/{port}"]
        own = socket.gethostbyname(socket.gethostname())
        addresses += [f"{own}/{port}", f"172.17.0.1/{port}"]
        for target in addresses:
            host, _, number = target.partition("/")
            assert (await cell.tried(connect.format(host, number))) == "closed\n", target
    assert "none" in await cell.tried("getent hosts example.com || echo none")


async def test_it_sees_nothing_of_the_attempt(cell: Cell) -> None:
    """Class 10: not its token, processes, files or socket; on the relay's port it is nobody."""
    await cell.start()
    token = cell.desk.token
    seen = await cell.tried("cat /proc/[0-9]*/environ /proc/[0-9]*/cmdline 2>/dev/null | tr '\\0' '\\n'; env")
    assert token not in seen
    assert "CONDUCTOR" not in seen
    assert "OWN=kept" in seen
    assert "shim" not in await cell.tried("cat /proc/[0-9]*/comm")
    assert (
        await cell.tried(
            "ls -A /run/conductor /mirror /workspace /home/agent 2>/dev/null | grep -v '^\\.\\|^/\\|^$' || echo none"
        )
        == "none\n"
    )
    assert (
        await cell.tried(
            "find / -xdev -type s 2>/dev/null; test -e /var/run/docker.sock && echo engine || echo none"
        )
        == "none\n"
    )

    asked = f"python3 -c {shlex.quote(ASK)}"

    async def refused() -> bool:  # as soon as the shim listens
        return await cell.tried(asked) == "401\n"

    await containers.until(refused, "the gateway answers 401 to the service")
    config = str(cell.service())
    assert token not in config


async def test_it_cannot_take_all_processes_or_memory(cell: Cell) -> None:
    await cell.start()
    forked = await cell.tried("for i in $(seq 200); do sleep 60 & done 2>&1; true")
    assert "Resource temporarily unavailable" in forked or "fork" in forked
    processes = cell.client.api.top(cell.service()["Id"])["Processes"]
    assert len(processes) <= cell.limits.pids


async def test_an_image_of_this_server_is_no_service(cell: Cell) -> None:
    """Class 19: the images that attempts run in hold what other repositories' set-up steps left."""
    dockerfile = f"FROM {cell.image}\nLABEL {BUILD_LABEL}=1 {OWNER_LABEL}=99 test-service-lock=1\n"
    image = containers.built(cell.client, dockerfile)
    try:
        with pytest.raises(ServiceFailed, match="one of this server's own"):
            await cell.start(image=image)
        assert await cell.runner.list() == []
    finally:
        cell.client.images.remove(image, force=True)


async def test_a_check_runs_in_the_service_and_not_on_the_host(cell: Cell, tmp_path: Path) -> None:
    check = HealthCheck(
        command=["bash", "-c", f"touch {tmp_path}/escaped; id -u > /srv/who"], interval=0.2, retries=3
    )
    await cell.start(health=check)
    assert await cell.tried("cat /srv/who") == "0\n"
    assert not (tmp_path / "escaped").exists()
