"""Real PostgreSQL and Redis beside an attempt, on the real engine."""

from __future__ import annotations

import asyncio
import os
from collections.abc import AsyncIterator
from pathlib import Path
from typing import Any

import pytest

from bot.config import fixed_settings
from bot.errors import ConfigurationError
from bot.model import FailureKind, Phase
from bot.ports import Exit, Handle, HealthCheck, Limits, ServiceSpec
from runners.docker import DockerRunner
from runners.local import LocalRunner
from runners.services import SERVICE_LABEL, ServiceFailed
from tests import containers
from tests.containers import MIB
from tests.service_images import servers_image

pytestmark = [pytest.mark.docker, pytest.mark.timeout(600)]  # the first run builds the image

REDIS_READY = HealthCheck(command=["redis-cli", "ping"], interval=0.2)


class Host:
    """A worker host that runs attempts with services."""

    def __init__(self, folder: Path) -> None:
        self.client = containers.engine()
        self.image = servers_image(self.client)
        self.folder = folder
        self.settings = fixed_settings(host_name=f"services-{folder.name}-{os.getpid()}")
        self.runner = DockerRunner(self.settings)

    def redis(self, **changes: Any) -> ServiceSpec:
        values: dict[str, Any] = {
            "name": "cache",
            "image": self.image,
            "command": ["redis-server", "--save", ""],
            "health": REDIS_READY,
            "memory": 128 * MIB,
        }
        return ServiceSpec(**(values | changes))

    def postgres(self, **changes: Any) -> ServiceSpec:
        values: dict[str, Any] = {
            "name": "db",
            "image": self.image,
            "command": ["postgres.sh"],
            "env": {"POSTGRES_PASSWORD": "only for tests"},
            "health": HealthCheck(command=["pg_isready", "-h", "127.0.0.1"], interval=0.2),
            "memory": 512 * MIB,
        }
        return ServiceSpec(**(values | changes))

    async def start(self, script: str, *services: ServiceSpec, **changes: Any) -> Handle:
        """``script`` begins when the services are there, as an agent does."""
        ready = self.folder / "mirror" / "ready"
        ready.unlink(missing_ok=True)
        wait = "while ! test -e /mirror/ready; do sleep 0.05; done"
        argv = ["bash", "-c", f"exec > /workspace/said 2>&1; {wait}; {script}"]
        handle = await self.runner.start(self.spec(argv, *services, **changes))
        ready.touch()
        return handle

    def spec(self, argv: list[str], *services: ServiceSpec, **changes: Any) -> Any:
        limits = Limits(memory=256 * MIB, cpus=1.0, pids=64, tmp=32 * MIB, file=64 * MIB)
        return containers.spec(self.image, argv, self.folder, services=services, limits=limits, **changes)

    def said(self, handle: Handle) -> str:
        return containers.file_in(self.client, handle.ref, "/workspace/said") or ""

    def services(self, handle: Handle) -> dict[str, str]:
        """Their states by name."""
        labels = [SERVICE_LABEL, f"agent-conductor.attempt={handle.attempt_id}"]
        found = self.client.api.containers(all=True, filters={"label": labels})
        return {one["Labels"][SERVICE_LABEL]: one["State"] for one in found}

    async def close(self) -> None:
        await self.runner.close()
        containers.sweep(self.client, self.settings.host_name)
        self.client.close()


@pytest.fixture
async def host(tmp_path: Path) -> AsyncIterator[Host]:
    made = Host(tmp_path)
    try:
        yield made
    finally:
        await made.close()


async def test_the_agent_finds_both_ready_on_its_localhost(host: Host) -> None:
    script = (
        "redis-cli -h 127.0.0.1 set k v; redis-cli -h localhost get k; export PGPASSWORD='only for tests'; "
        "psql -h localhost -U postgres -Atc "
        "'create table t (n int); insert into t values (41), (1); select sum(n) from t'"
    )
    handle = await host.start(script, host.postgres(), host.redis())
    assert host.services(handle) == {"cache": "running", "db": "running"}
    assert await host.runner.wait(handle) == Exit(code=0)
    assert host.said(handle).split() == ["OK", "v", "CREATE", "TABLE", "INSERT", "0", "2", "42"]
    await host.runner.remove(handle)
    assert containers.traces(host.client, handle.attempt_id) == []


async def test_another_attempts_service_is_not_on_this_ones_localhost(host: Host) -> None:
    one = await host.start("exec sleep 600", host.redis())
    other = await host.start(
        "redis-cli -h 127.0.0.1 ping", host.redis(name="mine", command=["sleep", "60"], health=None)
    )
    await host.runner.wait(other)
    assert "Connection refused" in host.said(other)
    assert host.services(one) == {"cache": "running"}


async def test_start_waits_until_a_slow_service_is_ready(host: Host) -> None:
    slow = host.redis(command=["sh", "-c", "sleep 2; exec redis-server --save ''"])
    handle = await host.start("redis-cli ping", slow)
    assert await host.runner.wait(handle) == Exit(code=0)
    assert host.said(handle) == "PONG\n"


async def test_a_service_that_ends_is_told_with_its_last_words(host: Host) -> None:
    with pytest.raises(ServiceFailed) as failure:
        await host.start("exec sleep 600", host.redis(), host.postgres(env={}))
    error = failure.value
    assert (error.phase, error.kind) == (Phase.start, FailureKind.configuration)
    assert "The service `db`" in error.message
    assert "ended with exit code 1" in error.message
    assert error.tail == "Error: POSTGRES_PASSWORD is not set"
    assert error.tail in error.message
    assert await host.runner.list() == []


async def test_a_service_that_never_gets_ready_is_told(host: Host) -> None:
    never = HealthCheck(command=["sh", "-c", "exit 3"], interval=0.2, retries=3)
    with pytest.raises(ServiceFailed, match=r"`cache`.*did not become ready in time") as failure:
        await host.start("exec sleep 600", host.redis(health=never))
    assert "Ready to accept connections" in failure.value.tail
    assert await host.runner.list() == []


@pytest.mark.parametrize("command", [["sleep", "60"], ["no-such-program"]], ids=["hangs", "does not exist"])
async def test_a_check_that_cannot_answer_is_a_failed_one(host: Host, command: list[str]) -> None:
    check = HealthCheck(command=command, interval=0.2, timeout=0.5, retries=2)
    with pytest.raises(ServiceFailed, match="did not become ready in time"):
        await host.start("exec sleep 600", host.redis(health=check))


async def test_a_service_that_wants_too_much_memory_is_told(host: Host) -> None:
    greedy = host.redis(
        command=["sh", "-c", "head -c 300000000 /dev/zero | tail -c 300000000"], health=REDIS_READY
    )
    with pytest.raises(ServiceFailed, match="used up its memory"):
        await host.start("exec sleep 600", greedy)


async def test_a_program_that_does_not_exist_is_told(host: Host) -> None:
    with pytest.raises(ServiceFailed, match="`cache`"):
        await host.start("exec sleep 600", host.redis(command=["no-such-program"]))
    assert await host.runner.list() == []


async def test_an_image_that_cannot_be_had_is_told(host: Host) -> None:
    # nothing listens on that port of this machine, so the pull fails wherever the test runs
    with pytest.raises(
        ServiceFailed, match=r"`127\.0\.0\.1:9/absent/db:1` of the service `cache` could not be pulled"
    ):
        await host.start("exec sleep 600", host.redis(image="127.0.0.1:9/absent/db:1"))
    assert await host.runner.list() == []


async def test_the_images_own_check_counts_where_there_is_no_other(host: Host) -> None:
    dockerfile = f"FROM {host.image}\nHEALTHCHECK CMD redis-cli ping\n"
    image = containers.built(host.client, dockerfile)
    service = host.redis(image=image, health=None, command=["sh", "-c", "sleep 1; exec redis-server"])
    handle = await host.start("redis-cli ping", service)
    await host.runner.wait(handle)
    assert host.said(handle) == "PONG\n"


async def test_stop_ends_the_services_with_the_attempt(host: Host) -> None:
    handle = await host.start("exec sleep 600", host.redis())
    await host.runner.stop(handle, 0)
    assert host.services(handle) == {"cache": "exited"}
    assert (await host.runner.wait(handle)).stopped
    await host.runner.stop(handle, 0)


async def test_pause_freezes_the_services_too(host: Host) -> None:
    handle = await host.start(
        "exec sleep 600", host.redis(), host.redis(name="b", command=["sleep", "600"], health=None)
    )
    await host.runner.pause(handle)
    assert set(host.services(handle).values()) == {"paused"}
    await host.runner.pause(handle)
    await host.runner.unpause(handle)
    assert set(host.services(handle).values()) == {"running"}
    await host.runner.pause(handle)
    await host.runner.remove(handle)
    assert containers.traces(host.client, handle.attempt_id) == []


async def test_another_worker_process_finds_and_removes_them(host: Host) -> None:
    spec = host.spec(["sleep", "600"], host.redis())
    handle = await host.runner.start(spec)
    ids = {one["Id"] for one in host.client.api.containers(filters={"label": SERVICE_LABEL})}
    heir = DockerRunner(host.settings)
    assert await heir.list() == [handle], "services are no attempts of their own"
    # a worker that was killed while it started them starts again
    assert await heir.start(spec) == handle
    assert {one["Id"] for one in host.client.api.containers(filters={"label": SERVICE_LABEL})} >= ids
    await heir.remove(handle)
    await heir.close()
    assert containers.traces(host.client, handle.attempt_id) == []


async def test_a_start_that_was_cut_short_is_finished(host: Host) -> None:
    spec = host.spec(["sleep", "600"], host.redis(), host.postgres())
    handle = await host.runner.start(spec)
    host.client.api.remove_container(f"conductor-{spec.attempt_id}-service-2", force=True)
    heir = DockerRunner(host.settings)
    assert await heir.start(spec) == handle
    await heir.close()
    assert host.services(handle) == {"cache": "running", "db": "running"}


async def test_services_without_their_attempt_are_found_and_removed(host: Host) -> None:
    handle = await host.start("exec sleep 600", host.redis())
    host.client.api.remove_container(handle.ref, force=True)
    for volume in ("work", "home"):
        host.client.api.remove_volume(f"conductor-{handle.attempt_id}-{volume}")
    (left,) = await host.runner.list()
    assert (left.attempt_id, left.running) == (handle.attempt_id, False)
    await host.runner.remove(left)
    assert containers.traces(host.client, handle.attempt_id) == []


async def test_an_ended_attempts_services_are_not_started_again(host: Host) -> None:
    spec = host.spec(["sh", "-c", "while ! test -e /mirror/end; do sleep 0.05; done"], host.redis())
    handle = await host.runner.start(spec)
    (host.folder / "mirror" / "end").touch()
    await host.runner.wait(handle)
    await host.runner.stop(handle, 0)
    again = await host.runner.start(spec)
    assert not again.running
    assert host.services(handle) == {"cache": "exited"}


async def test_an_attempt_that_ends_before_its_services_are_there_has_ended(host: Host) -> None:
    slow = host.redis(command=["sh", "-c", "sleep 1; exec redis-server --save ''"])
    spec = host.spec(["sh", "-c", "exit 3"], slow)
    handle = await host.runner.start(spec)
    assert await host.runner.wait(handle) == Exit(code=3)
    await host.runner.remove(handle)
    assert containers.traces(host.client, handle.attempt_id) == []


async def test_what_they_write_counts_for_the_attempts_workspace(host: Host) -> None:
    writes = host.redis(
        command=["sh", "-c", "head -c 7000000 /dev/zero > /srv/big; exec redis-server --save ''"]
    )
    handle = await host.start("head -c 5000000 /dev/zero > big; exec sleep 600", writes)

    async def weighed() -> bool:
        return (await host.runner.workspace_bytes()).get(handle.attempt_id, 0) >= 12_000_000

    await containers.until(weighed, "both files are counted")


async def test_many_attempts_start_their_services_at_once(host: Host) -> None:
    """More than the runner has threads: waiting for a service must hold up nothing else."""
    slow = host.redis(command=["sh", "-c", "sleep 3; exec redis-server --save ''"], memory=32 * MIB)
    specs = [host.spec(["sleep", "600"], slow) for _ in range(10)]
    handles = await asyncio.gather(*(host.runner.start(spec) for spec in specs))
    assert [host.services(handle) for handle in handles] == [{"cache": "running"}] * 10


async def test_the_local_runner_refuses_services(host: Host, tmp_path: Path) -> None:
    runner = LocalRunner(fixed_settings(data_dir=tmp_path / "data", allow_local_runner=True))
    with pytest.raises(
        ConfigurationError, match=r"cannot run the repository's services.*CONDUCTOR_RUNNER=docker"
    ):
        await runner.start(host.spec(["true"], host.redis()))
    assert await runner.list() == []
