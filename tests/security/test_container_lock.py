"""Attacks on the lock of an attempt's container: from inside it, and by what it is asked to mount.

Attack classes 10, 13 and 14.
"""

from __future__ import annotations

import asyncio
import contextlib
import os
import socket
from collections.abc import AsyncIterator, Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import docker
import pytest

from bot.config import fixed_settings
from bot.errors import ConfigurationError
from bot.ports import ContainerSpec, Exit, Handle, Limits
from runners import container_lock
from runners.docker import DockerRunner
from tests import containers
from tests.containers import MIB


@dataclass
class Cell:
    """A locked container and the means to try things in it."""

    client: docker.DockerClient
    runner: DockerRunner
    image: str
    folder: Path

    def spec(self, argv: list[str], **changes: Any) -> ContainerSpec:
        return containers.spec(changes.pop("image", self.image), argv, self.folder, **changes)

    async def hold(self, **changes: Any) -> tuple[Handle, dict[str, Any]]:
        """A container that runs on, and what the engine says about it."""
        handle = await self.runner.start(self.spec(["sleep", "600"], **changes))
        return handle, await asyncio.to_thread(self.client.api.inspect_container, handle.ref)

    async def tried(self, script: str, **changes: Any) -> tuple[Exit, list[str]]:
        """How ``script`` ended, and the lines that it said to either stream."""
        argv = ["bash", "-c", f"exec > /workspace/said 2>&1; {script}"]
        handle = await self.runner.start(self.spec(argv, **changes))
        ended = await self.runner.wait(handle)
        said = await asyncio.to_thread(containers.file_in, self.client, handle.ref, "/workspace/said")
        assert said is not None
        return ended, said.splitlines()


@pytest.fixture
async def cell(tmp_path: Path) -> AsyncIterator[Cell]:
    client = containers.engine()
    settings = fixed_settings(host_name=f"lock-{tmp_path.name}-{os.getpid()}")
    runner = DockerRunner(settings)
    try:
        yield Cell(client, runner, containers.built(client), tmp_path)
    finally:
        await runner.close()
        containers.sweep(client, settings.host_name)
        client.close()


# --- what the engine was told -------------------------------------------------------------------------


@pytest.mark.docker
async def test_the_engine_was_told_of_every_lock(cell: Cell) -> None:
    limits = Limits(memory=192 * MIB, cpus=0.5, pids=48, tmp=16 * MIB, file=4 * MIB)
    handle, found = await cell.hold(limits=limits, labels={"agent-conductor.host": "x", "own": "kept"})
    host, config = found["HostConfig"], found["Config"]

    assert found["Name"] == f"/conductor-{handle.attempt_id}"
    assert config["User"] == "1000:1000"
    assert config["Hostname"] == "agent"
    assert config["Labels"]["agent-conductor"] == "1"
    assert config["Labels"]["agent-conductor.attempt"] == handle.attempt_id
    assert config["Labels"]["agent-conductor.host"].startswith("lock-")  # a label of the spec does not win
    assert config["Labels"]["own"] == "kept"
    assert not config["Tty"]
    assert not config["OpenStdin"]
    assert config.get("Healthcheck", {}).get("Test") == ["NONE"]

    assert host["NetworkMode"] == "none"
    assert list(found["NetworkSettings"]["Networks"]) == ["none"]
    assert not found["NetworkSettings"]["Ports"]
    assert not host["PortBindings"]
    assert not host["PublishAllPorts"]
    assert not host["ExtraHosts"]
    assert not host["Links"]

    assert not host["Privileged"]
    assert host["CapAdd"] is None
    assert host["CapDrop"] == ["ALL"]
    assert "no-new-privileges:true" in host["SecurityOpt"]
    assert not [option for option in host["SecurityOpt"] if "unconfined" in option]
    assert host["ReadonlyRootfs"]
    assert host["Init"]
    assert host["IpcMode"] == "private"
    assert host["CgroupnsMode"] == "private"
    assert host["PidMode"] == host["UTSMode"] == host["UsernsMode"] == host["CgroupParent"] == ""
    assert not host["Devices"]
    assert not host["DeviceRequests"]
    assert not host["DeviceCgroupRules"]
    assert not host["GroupAdd"]
    assert not host.get("Sysctls")
    assert host["MaskedPaths"]
    assert host["ReadonlyPaths"]

    assert host["Memory"] == host["MemorySwap"] == limits.memory
    assert host["NanoCpus"] == 500_000_000
    assert host["PidsLimit"] == limits.pids
    assert host["OomKillDisable"] in (False, None)
    assert host["OomScoreAdj"] == 0
    assert host["ShmSize"] == 64 * MIB
    assert list(host["Tmpfs"]) == ["/tmp"]
    assert {"nosuid", "nodev", f"size={limits.tmp}"} <= set(host["Tmpfs"]["/tmp"].split(","))
    ulimits = {each["Name"]: (each["Soft"], each["Hard"]) for each in host["Ulimits"]}
    assert ulimits["fsize"] == (limits.file, limits.file)
    assert ulimits["core"] == (0, 0)
    assert ulimits["nofile"][1] <= 65536
    assert host["LogConfig"]["Type"] == "none"
    assert host["RestartPolicy"]["Name"] == "no"
    assert not host["AutoRemove"]
    assert not host["Binds"]
    assert not host["VolumesFrom"]

    name = f"conductor-{handle.attempt_id}"
    assert sorted(
        (mount["Type"], mount["Destination"], mount.get("Name") or mount["Source"], mount["RW"])
        for mount in found["Mounts"]
    ) == [
        ("bind", "/mirror", str(cell.folder / "mirror"), False),
        ("bind", "/run/conductor", str(cell.folder / "run"), False),
        ("volume", "/home/agent", f"{name}-home", True),
        ("volume", "/workspace", f"{name}-work", True),
    ]


# --- what an attacker inside can do -------------------------------------------------------------------


@pytest.mark.docker
async def test_the_process_has_no_rights_and_cannot_get_any(cell: Cell) -> None:
    _, lines = await cell.tried("cat /proc/self/status; id -u; id -g; id -G")
    status = dict(line.split(":\t", 1) for line in lines if ":\t" in line)
    for kind in ("CapInh", "CapPrm", "CapEff", "CapBnd", "CapAmb"):
        assert int(status[kind], 16) == 0, kind
    assert (status["NoNewPrivs"], status["Seccomp"]) == ("1", "2")
    assert lines[-3:] == ["1000", "1000", "1000"]


@pytest.mark.docker
async def test_a_set_uid_program_gains_nothing(cell: Cell) -> None:
    unlocked = await asyncio.to_thread(
        cell.client.containers.run,
        cell.image,
        ["/usr/local/bin/rootid"],
        user="1000",
        network_mode="none",
        remove=True,
    )
    assert b"euid=0(root)" in unlocked  # so the attack would work, were it not for the lock
    _, lines = await cell.tried("/usr/local/bin/rootid; su -c id < /dev/null; echo $?")
    assert "euid=0" not in "".join(lines)
    assert lines[-1] != "0"


@pytest.mark.docker
async def test_there_is_no_network_but_its_own_loopback(cell: Cell) -> None:
    _, lines = await cell.tried(
        "ls /sys/class/net; tail -n +2 /proc/net/route; "
        "grep -vw lo /proc/net/ipv6_route; grep -vw lo /proc/net/if_inet6"
    )
    assert lines == ["lo"]  # and no route that leaves it


@contextlib.contextmanager
def _listening() -> Iterator[socket.socket]:
    with socket.create_server(("0.0.0.0", 0)) as server:
        server.setblocking(False)
        yield server


@pytest.mark.docker
async def test_services_of_the_host_cannot_be_reached(cell: Cell) -> None:
    bridge = cell.client.networks.get("bridge").attrs["IPAM"]["Config"][0].get("Gateway", "172.17.0.1")
    with _listening() as server:
        port = server.getsockname()[1]
        with socket.create_connection(("127.0.0.1", port), timeout=5), server.accept()[0]:
            pass  # it does answer, to the host
        tries = "; ".join(
            f"timeout 5 bash -c ': < /dev/tcp/{address}/{port}' && echo REACHED {address}"
            for address in ("127.0.0.1", bridge, "169.254.169.254", "host.docker.internal", "::1")
        )
        _, lines = await cell.tried(
            f"{tries}; timeout 5 bash -c 'echo x > /dev/udp/{bridge}/{port}' && echo REACHED udp; "
            "timeout 10 getent hosts example.com && echo REACHED dns; echo end"
        )
        assert [line for line in lines if "REACHED" in line] == []
        assert lines[-1] == "end"
        with pytest.raises(BlockingIOError):
            server.accept()


@pytest.mark.docker
async def test_raw_and_packet_sockets_are_refused(cell: Cell) -> None:
    script = (
        "use Socket; for ([AF_INET, SOCK_RAW, 1], [AF_INET, SOCK_RAW, 255], [17, SOCK_RAW, 768])"
        " { print socket(my $s, $$_[0], $$_[1], $$_[2]) ? qq(MADE\\n) : qq($!\\n) }"
        " print socket(my $s, AF_INET, SOCK_STREAM, 0) ? qq(stream\\n) : qq($!\\n);"
    )
    _, lines = await cell.tried(f"perl -e '{script}'")
    assert lines == ["Operation not permitted"] * 3 + ["stream"]


@pytest.mark.docker
async def test_nothing_of_the_root_can_be_written(cell: Cell) -> None:
    places = (
        "/ /etc /usr/bin /var/tmp /run /run/conductor /mirror /home /opt /root /lib /proc/sys/kernel /sys"
    )
    _, lines = await cell.tried(
        f"for each in {places}; do echo x 2>/dev/null > $each/mine && echo WROTE $each; done; "
        "echo x 2>/dev/null > /etc/passwd && echo WROTE passwd; "
        "echo x 2>/dev/null > /proc/sys/kernel/core_pattern && echo WROTE core_pattern; "
        "echo 1 2>/dev/null > /proc/sysrq-trigger && echo WROTE sysrq; "
        "mount -o remount,rw / && echo WROTE remount; mount -t tmpfs none /mnt && echo WROTE mount; "
        "for each in /tmp /dev/shm /workspace /home/agent; do echo x > $each/mine && echo may $each; done"
    )
    assert [line for line in lines if "WROTE" in line] == []
    assert [line for line in lines if line.startswith("may")] == [
        "may /tmp",
        "may /dev/shm",
        "may /workspace",
        "may /home/agent",
    ]
    assert list((cell.folder / "mirror").iterdir()) == []


@pytest.mark.docker
async def test_no_new_namespaces_devices_or_kernel_memory(cell: Cell) -> None:
    _, lines = await cell.tried(
        "unshare --user --map-root-user true && echo GOT userns; unshare --mount true && echo GOT mountns; "
        "unshare --net true && echo GOT netns; mknod /tmp/disk b 8 0 && echo GOT device; "
        "head -c 1 /proc/kcore | grep -q . && echo GOT kcore; head -c 1 /dev/mem && echo GOT mem; "
        "chroot / true && echo GOT chroot; "
        "nsenter --target 1 --net true && echo GOT nsenter; "
        "find /dev -type b | grep . && echo GOT block; echo end"
    )
    assert [line for line in lines if "GOT" in line] == []
    assert lines[-1] == "end"


@pytest.mark.docker
async def test_the_only_socket_in_sight_is_the_gateways(cell: Cell) -> None:
    run = cell.folder / "run"
    run.mkdir()
    with socket.socket(socket.AF_UNIX) as gateway:
        gateway.bind(str(run / "gateway.sock"))
        gateway.listen()
        _, lines = await cell.tried("find / -type s 2> /dev/null; ls -a /run/conductor")
    assert lines == ["/run/conductor/gateway.sock", ".", "..", "gateway.sock"]


@pytest.mark.docker
async def test_it_sees_no_process_but_its_own(cell: Cell) -> None:
    _, lines = await cell.tried(
        "for each in /proc/[0-9]*; do tr '\\0' ' ' < $each/cmdline | cut -c1-40; echo; done"
    )
    programs = {line.split()[0].rpartition("/")[2] for line in lines if line.strip()}
    assert programs <= {"docker-init", "bash", "tr", "cut", "tini"}


@pytest.mark.docker
async def test_a_fork_bomb_stops_at_the_limit(cell: Cell) -> None:
    bomb = (
        "my $n = 0; for (1 .. 300) { my $p = fork; last unless defined $p; "
        "if (!$p) { sleep 60; exit } $n++ } print qq($n\\n)"
    )
    limits = Limits(memory=256 * MIB, cpus=1, pids=40, tmp=MIB, file=MIB)
    ended, lines = await cell.tried(f"perl -e '{bomb}'", limits=limits)
    assert 30 < int(lines[0]) < 40
    assert ended == Exit(code=0)


@pytest.mark.docker
async def test_a_memory_hog_is_ended_and_reported(cell: Cell) -> None:
    handle = await cell.runner.start(
        cell.spec(["tail", "/dev/zero"], limits=Limits(memory=48 * MIB, cpus=1, pids=16, tmp=MIB, file=MIB))
    )
    assert await cell.runner.wait(handle) == Exit(code=137, signal=9, oom=True)


@pytest.mark.docker
async def test_memory_in_files_counts_too(cell: Cell) -> None:
    ended, lines = await cell.tried(
        "head -c 40000000 /dev/zero > /tmp/big; stat -c %s /tmp/big; for i in 1 2 3 4 5 6 7 8 9 10; do "
        "head -c 9000000 /dev/zero > /dev/shm/$i || break; done; du -m /dev/shm | cut -f1",
        limits=Limits(memory=256 * MIB, cpus=1, pids=32, tmp=8 * MIB, file=512 * MIB),
    )
    assert any("No space left" in line for line in lines)
    assert str(8 * MIB) in lines
    assert int(lines[-1]) <= 64
    assert ended.code == 0


@pytest.mark.docker
async def test_a_huge_file_is_stopped(cell: Cell) -> None:
    _, lines = await cell.tried("head -c 100000000 /dev/zero > huge; echo $?; stat -c %s huge")
    assert lines[-2:] == ["153", str(8 * MIB)]  # 128 + SIGXFSZ


@pytest.mark.docker
async def test_a_build_may_run_what_it_wrote(cell: Cell) -> None:
    ended, _ = await cell.tried("cp /bin/true /tmp/tool && /tmp/tool && cp /bin/true tool && ./tool")
    assert ended == Exit(code=0)


@pytest.mark.docker
async def test_an_image_cannot_weaken_the_lock(cell: Cell) -> None:
    image = containers.built(
        cell.client,
        containers.DOCKERFILE + 'USER root\nENTRYPOINT ["sleep", "1000"]\nCMD ["1000"]\nVOLUME /etc/cron.d\n'
        "HEALTHCHECK --interval=1s CMD touch /workspace/health\nENV HOME=/root CONDUCTOR_SOCKET=/x\n",
    )
    ended, lines = await cell.tried("id -u; echo $HOME $CONDUCTOR_SOCKET; touch /etc/cron.d/x", image=image)
    assert lines[:2] == ["1000", "/home/agent /run/conductor/gateway.sock"]
    assert ended.code == 1  # the touch
    handle, found = await cell.hold(image=image)
    anonymous = [mount["Name"] for mount in found["Mounts"] if mount["Destination"] == "/etc/cron.d"]
    await cell.runner.remove(handle)
    left = cell.client.api.volumes()["Volumes"] or []
    assert anonymous
    assert not [volume for volume in left if volume["Name"] in anonymous]


@pytest.mark.docker
async def test_proxy_settings_of_the_worker_stay_outside(
    cell: Cell, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    (tmp_path / "config.json").write_text(
        '{"proxies": {"default": {"httpProxy": "http://u:canary@proxy:1"}}}'
    )
    monkeypatch.setenv("DOCKER_CONFIG", str(tmp_path))
    _, lines = await cell.tried("env")
    assert "canary" not in "".join(lines)


# --- what it must not be asked to mount ---------------------------------------------------------------

HOST_PARTS = [
    "/", "/proc", "/proc/self/root", "/proc/1", "/sys", "/sys/fs/cgroup", "/dev", "/dev/pts", "/etc", "/etc/ssl",
    "/run", "/var/run", "/var", "/var/lib", "/var/lib/docker", "/var/lib/docker/volumes", "/run/docker",
    "/run/containerd", "/root/.ssh", "/boot", "/workspace/..", "/tmp/../etc",
]  # fmt: skip


@pytest.mark.parametrize("path", HOST_PARTS)
def test_a_part_of_the_hosts_system_is_never_mounted(path: str) -> None:
    with pytest.raises(ConfigurationError, match="must never be visible in a container"):
        container_lock.checked_bind(Path(path))


@pytest.mark.parametrize("target", ["/", "/etc", "/var/run"])
def test_a_link_to_such_a_part_is_refused_too(tmp_path: Path, target: str) -> None:
    (tmp_path / "innocent").symlink_to(target)
    with pytest.raises(ConfigurationError, match="must never be visible in a container"):
        container_lock.checked_bind(tmp_path / "innocent")


@pytest.mark.parametrize("path", ["run", "./x", "../x", ""])
def test_a_relative_path_is_refused(path: str) -> None:
    with pytest.raises(ConfigurationError, match="Only an absolute path"):
        container_lock.checked_bind(Path(path))


def test_a_missing_folder_is_refused(tmp_path: Path) -> None:
    with pytest.raises(ConfigurationError, match="there is no such folder"):
        container_lock.checked_bind(tmp_path / "missing")
    (tmp_path / "file").touch()
    with pytest.raises(ConfigurationError, match="there is no such folder"):
        container_lock.checked_bind(tmp_path / "file")


def test_an_ordinary_folder_is_mounted_by_its_real_path(tmp_path: Path) -> None:
    (tmp_path / "real").mkdir()
    (tmp_path / "link").symlink_to("real")
    assert container_lock.checked_bind(tmp_path / "link") == (tmp_path / "real").resolve()


def _mounts(folder: Path, engine_socket: Path | None = None) -> list[Any]:
    return container_lock.mounts(containers.spec("image", ["true"], folder), {}, {}, engine_socket)


@pytest.mark.parametrize("what", ["socket", "docker.sock", "link", "engine", "folder of the engine"])
def test_a_run_folder_with_another_door_is_refused(tmp_path: Path, what: str) -> None:
    run = tmp_path / "run"
    run.mkdir()
    engine_socket = tmp_path / "engine.sock"
    with socket.socket(socket.AF_UNIX) as engine, socket.socket(socket.AF_UNIX) as other:
        engine.bind(str(engine_socket))
        if what == "socket":
            other.bind(str(run / "other.sock"))
        elif what == "docker.sock":
            (run / "docker.sock").touch()
        elif what == "link":
            (run / "gateway.sock").symlink_to(engine_socket)
        elif what == "engine":
            (run / "gateway.sock").hardlink_to(engine_socket)
        else:
            other.bind(str(run / "gateway.sock"))
            engine_socket = run / "engine.sock"
        with pytest.raises(ConfigurationError, match=r"must (not|never) be visible in a container"):
            _mounts(tmp_path, engine_socket)


def test_a_run_folder_with_the_gateways_socket_is_mounted(tmp_path: Path) -> None:
    (tmp_path / "run").mkdir()
    with socket.socket(socket.AF_UNIX) as gateway:
        gateway.bind(str(tmp_path / "run" / "gateway.sock"))
        found = _mounts(tmp_path)
    assert [(mount["Target"], mount["ReadOnly"]) for mount in found] == [
        ("/run/conductor", True),
        ("/mirror", True),
    ]


@pytest.mark.docker
async def test_the_runner_refuses_before_anything_exists(cell: Cell) -> None:
    spec = cell.spec(["true"], mirror=Path("/var/run"))
    with pytest.raises(ConfigurationError, match="must never be visible"):
        await cell.runner.start(spec)
    assert containers.traces(cell.client, spec.attempt_id) == []
