"""The services of one attempt on the Docker engine: containers in the network namespace of the agent's.

They are locked like the agent's, as far as common images bear it: those start as root, give their data folder to a user
of their own, and become that user. So they keep the five capabilities that this takes, and a root file system that they
may write and that is thrown away. They see nothing of the host, of the attempt's folders, or of its token.
"""

from __future__ import annotations

import asyncio
import time
from collections.abc import Callable, Iterator, Mapping
from contextlib import suppress
from typing import Any, Protocol, TypeVar

import requests
from docker import APIClient
from docker.errors import APIError, ImageNotFound
from docker.types import HostConfig, LogConfig, Ulimit

from bot.errors import InfrastructureError, JobFailed
from bot.images import BUILD_LABEL
from bot.model import FailureKind, Phase
from bot.ports import ContainerSpec, HealthCheck, ServiceSpec
from runners.container_lock import OPEN_FILES, SHM_BYTES

SERVICE_LABEL = "agent-conductor.service"

#: What an entrypoint needs that makes its folders and then becomes another user.
CAPABILITIES = ("CHOWN", "DAC_OVERRIDE", "FOWNER", "SETGID", "SETUID")
READY_SECONDS = 600.0  # for all services of an attempt
PULL_SECONDS = 600.0
TAIL_LINES = 40
_POLL = 0.05  # seconds between looks at a check that runs

_T = TypeVar("_T")


class Call(Protocol):
    """Runs one short piece of work on the engine in a thread; its failures begin with ``what``."""

    async def __call__(self, what: str, function: Callable[[APIClient], _T]) -> _T:
        """What ``function`` answers. Raises InfrastructureError."""


class ServiceFailed(JobFailed):
    """A service cannot be started or does not become ready; ``tail`` holds its last words."""

    def __init__(self, message: str, hint: str, tail: str = "") -> None:
        said = f"{message}\n\n{tail}" if tail else message
        super().__init__(Phase.start, FailureKind.configuration, said, hint)
        self.tail = tail


def provide_images(client: APIClient, spec: ContainerSpec) -> None:
    """Pull what this engine does not have. Raises ServiceFailed."""
    for service in spec.services:
        labels = _image(client, service)["Config"].get("Labels") or {}
        if BUILD_LABEL in labels:
            raise ServiceFailed(
                f"The image `{service.image}` of the service `{service.name}` is one of this server's own.",
                "Name another image.",
            )


def start(
    client: APIClient,
    spec: ContainerSpec,
    agent: str,
    name: Callable[[int], str],
    labels: Mapping[str, str],
    security: list[str],
    host_cpus: int,
) -> None:
    """Start the services beside the container ``agent``, or find them again; :func:`await_ready` comes next.

    ``name`` gives the container's name of the first, second … service. Raises ServiceFailed.
    """
    for number, service in enumerate(spec.services, 1):
        config = _host_config(client, spec, service, agent, security, host_cpus)
        with suppress(_AlreadyThere):
            _create(client, service, name(number), {**labels, SERVICE_LABEL: service.name}, config)
        # again changes nothing (the engine answers 304)
        try:
            client.start(name(number))
        except APIError as error:
            raise ServiceFailed(
                f"The service `{service.name}` could not be started: {error.explanation}.",
                "Look at `services` in the repository's configuration.",
            ) from error


async def await_ready(call: Call, spec: ContainerSpec, name: Callable[[int], str]) -> None:
    """Return when every service of ``spec`` is ready. Raises ServiceFailed."""
    try:
        async with asyncio.timeout(READY_SECONDS):
            for number, service in enumerate(spec.services, 1):
                await _await_ready(call, service, name(number))
    except TimeoutError as error:
        raise ServiceFailed(
            f"The services were not ready after {READY_SECONDS:g} seconds.", "Look at their `health`."
        ) from error


def containers(client: APIClient, labels: Mapping[str, str]) -> list[str]:
    """The ids of the services among the containers with ``labels``."""
    wanted = [SERVICE_LABEL, *(f"{key}={value}" for key, value in labels.items())]
    return [str(found["Id"]) for found in client.containers(all=True, filters={"label": wanted})]


def kill(client: APIClient, container: str) -> None:
    """End it at once: nothing that it holds is kept."""
    try:
        client.kill(container)
    except APIError as error:
        if error.status_code not in (404, 409):  # gone, or not running
            raise


class _AlreadyThere(Exception):
    """A container of that name exists."""


def _create(
    client: APIClient, service: ServiceSpec, name: str, labels: Mapping[str, str], config: dict[str, Any]
) -> None:
    try:
        client.create_container(
            service.image,
            command=list(service.command) or None,
            name=name,
            environment=dict(service.env),
            labels=dict(labels),
            healthcheck={"test": ["NONE"]},  # we check while it starts; afterwards it would only cost
            use_config_proxy=False,
            host_config=config,
        )
    except APIError as error:
        if error.status_code == 409:
            raise _AlreadyThere from error
        raise


def _host_config(
    client: APIClient,
    spec: ContainerSpec,
    service: ServiceSpec,
    agent: str,
    security: list[str],
    host_cpus: int,
) -> dict[str, Any]:
    data = _image(client, service)["Config"].get("Volumes") or {}
    return HostConfig(
        client.api_version,
        network_mode=f"container:{agent}",
        init=True,
        privileged=False,
        cap_drop=["ALL"],
        cap_add=list(CAPABILITIES),
        security_opt=["no-new-privileges:true", *security],
        ipc_mode="private",
        cgroupns="private",
        mem_limit=service.memory,
        memswap_limit=service.memory,
        nano_cpus=int(min(spec.limits.cpus, host_cpus) * 1e9),
        pids_limit=spec.limits.pids,
        ulimits=[
            Ulimit(name="fsize", soft=spec.limits.file, hard=spec.limits.file),
            Ulimit(name="nofile", soft=OPEN_FILES, hard=OPEN_FILES),
            Ulimit(name="core", soft=0, hard=0),
        ],
        # its data is in memory, so the service's own limit bounds it, and it is gone with it
        tmpfs=dict.fromkeys(sorted({*data, "/tmp"}), "rw,exec,nosuid,nodev,mode=1777"),  # noqa: S108
        shm_size=SHM_BYTES,
        log_config=LogConfig(type=LogConfig.types.JSON, config={"max-size": "1m", "max-file": "1"}),
        restart_policy={"Name": "no"},
        auto_remove=False,
        publish_all_ports=False,
    )


def _image(client: APIClient, service: ServiceSpec) -> dict[str, Any]:
    inspect: Callable[[str], dict[str, Any]] = client.inspect_image
    try:
        return inspect(service.image)
    except ImageNotFound:
        _pull(client, service)
        return inspect(service.image)


def _pull(client: APIClient, service: ServiceSpec) -> None:
    until = time.monotonic() + PULL_SECONDS
    reason = ""
    try:
        for event in client.pull(service.image, stream=True, decode=True):
            if "error" in event:
                reason = str(event["error"])
            elif time.monotonic() > until:
                reason = f"not done after {PULL_SECONDS:g} s"
                break
    except APIError as error:
        reason = str(error.explanation)
    except requests.RequestException as error:
        raise InfrastructureError(
            f"The image {service.image} could not be pulled: {error}.", "Is the engine well? (`docker info`)"
        ) from error
    if reason:
        raise ServiceFailed(
            f"The image `{service.image}` of the service `{service.name}` could not be pulled: {reason}.",
            "Check its name; the operator can pull it by hand on the worker host.",
        )


async def _await_ready(call: Call, service: ServiceSpec, name: str) -> None:
    health = service.health or await call("look at the image", lambda client: _own_check(client, service))
    for _ in range(health.retries if health else 1):
        state = await call("look at the service", lambda client: _state(client, name))
        if not state["Running"]:
            raise await call(
                "read its log", lambda client: _failed(client, service, name, _end_of(client, name))
            )
        if health is None or await _passes(call, name, health):
            return
        await asyncio.sleep(health.interval)
    late = "did not become ready in time"
    raise await call("read its log", lambda client: _failed(client, service, name, late))


def _end_of(client: APIClient, name: str) -> str:
    state = _state(client, name)
    return "used up its memory" if state["OOMKilled"] else f"ended with exit code {state['ExitCode']}"


def _state(client: APIClient, name: str) -> dict[str, Any]:
    found: dict[str, Any] = client.inspect_container(name)["State"]
    return found


def _own_check(client: APIClient, service: ServiceSpec) -> HealthCheck | None:
    """The image's own HEALTHCHECK: https://docs.docker.com/reference/dockerfile/#healthcheck."""
    test = (_image(client, service)["Config"].get("Healthcheck") or {}).get("Test") or ["NONE"]
    match test:
        case ["CMD", *command]:
            return HealthCheck(command=command)
        case ["CMD-SHELL", script]:
            return HealthCheck(command=["/bin/sh", "-c", script])
        case _:
            return None


async def _passes(call: Call, name: str, health: HealthCheck) -> bool:
    loop = asyncio.get_running_loop()
    until = loop.time() + health.timeout
    check = await call("check the service", lambda client: _begin(client, name, health))
    while check and loop.time() < until:
        state = await call("check the service", lambda client: client.exec_inspect(check))
        if not state["Running"] and state["ExitCode"] is not None:
            return bool(state["ExitCode"] == 0)
        await asyncio.sleep(_POLL)
    return False


def _begin(client: APIClient, name: str, health: HealthCheck) -> str:
    """Start one check; its id, or "" when the service ended or has no such program: the next look tells."""
    try:
        made: str = client.exec_create(name, list(health.command), stdout=False, stderr=False)["Id"]
        client.exec_start(made, detach=True)
    except APIError:
        return ""
    return made


def _failed(client: APIClient, service: ServiceSpec, name: str, why: str) -> ServiceFailed:
    tail = ""
    with suppress(APIError):
        tail = "\n".join(_last_lines(client.logs(name, tail=TAIL_LINES)))
    return ServiceFailed(
        f"The service `{service.name}` (`{service.image}`) {why}.",
        "Look at its `env`, `command` and `health` in the repository's configuration, then ask again.",
        tail,
    )


def _last_lines(output: bytes) -> Iterator[str]:
    for line in output.decode("utf-8", "replace").splitlines()[-TAIL_LINES:]:
        yield line[:2000]
