"""What the tests on a real engine share: the engine, a small image, and looking at what the host is left with."""

from __future__ import annotations

import asyncio
import hashlib
import io
import os
import tarfile
import time
import uuid
from collections.abc import Awaitable, Callable, Sequence
from pathlib import Path
from typing import Any

import docker
import pytest
from docker.errors import APIError, DockerException, ImageNotFound, NotFound

from bot.ports import ContainerSpec, Limits

BASE_IMAGE = "debian:bookworm-slim"
#: As our real images: a user with a passwd entry who owns the two folders. `rootid` shows whether set-uid works.
DOCKERFILE = f"""
FROM {BASE_IMAGE}
RUN useradd --uid 1000 --create-home agent && mkdir /workspace && chown agent:agent /workspace \
 && cp /usr/bin/id /usr/local/bin/rootid && chmod 4755 /usr/local/bin/rootid
"""
MIB = 2**20


def engine() -> docker.DockerClient:
    """A client of the engine, or the running test is skipped with the reason. Close it."""
    try:
        client = docker.from_env()
    except DockerException as error:
        pytest.skip(f"no Docker engine: {error}")
    try:
        client.images.get(BASE_IMAGE)
    except ImageNotFound:
        client.close()
        pytest.skip(f"the Docker engine has no image {BASE_IMAGE}")
    return client


def built(client: docker.DockerClient, dockerfile: str = DOCKERFILE) -> str:
    """The tag of the image that ``dockerfile`` describes; built when this engine has none."""
    base = client.images.get(BASE_IMAGE).id
    tag = f"agent-conductor-test:{hashlib.sha256((base + dockerfile).encode()).hexdigest()[:16]}"
    try:
        client.images.get(tag)
    except ImageNotFound:
        client.images.build(fileobj=io.BytesIO(dockerfile.encode()), tag=tag, rm=True, network_mode="none")
    return tag


def new_attempt() -> str:
    """An id that no other test uses."""
    return f"t{uuid.uuid4().hex[:12]}-1"


def new_marker() -> str:
    """A number of seconds for `sleep` by which its process can be found on the whole host."""
    return f"1000.{uuid.uuid4().int % 10**12:012}"


def spec(image: str, argv: Sequence[str], folder: Path, **changes: Any) -> ContainerSpec:
    """An attempt with ordinary limits; ``folder`` holds its run folder and its mirror."""
    for name in ("run", "mirror"):
        (folder / name).mkdir(exist_ok=True)
    values: dict[str, Any] = {
        "attempt_id": new_attempt(),
        "image": image,
        "argv": argv,
        "env": {},
        "socket_dir": folder / "run",
        "mirror": folder / "mirror",
        "limits": Limits(memory=256 * MIB, cpus=1.0, pids=64, tmp=32 * MIB, file=8 * MIB),
    }
    return ContainerSpec(**(values | changes))


def processes_with(marker: str) -> list[int]:
    """The pids of this host's processes that have ``marker`` as an argument, in containers too."""
    found = []
    for entry in Path("/proc").iterdir():
        if entry.name.isdecimal():
            try:
                argv = (entry / "cmdline").read_bytes().split(b"\0")
            except OSError:
                continue
            if marker.encode() in argv:
                found.append(int(entry.name))
    return found


def processes_of(folder: Path) -> list[int]:
    """The pids of this host's processes whose workspace lies in ``folder``, by their environment."""
    found = []
    for entry in Path("/proc").iterdir():
        if entry.name.isdecimal():
            try:
                variables = (entry / "environ").read_bytes()
            except OSError:
                continue
            if b"CONDUCTOR_WORKSPACE=" + os.fsencode(folder) + b"/" in variables:
                found.append(int(entry.name))
    return found


def file_in(client: docker.DockerClient, container: str, path: str) -> str | None:
    """The text of a file in a container that runs, is paused or has ended; None when there is none."""
    try:
        chunks, _ = client.api.get_archive(container, path)
        data = b"".join(chunks)
    except NotFound:
        return None
    with tarfile.open(fileobj=io.BytesIO(data)) as archive:
        member = archive.extractfile(archive.getmembers()[0])
        assert member is not None
        return member.read().decode()


def traces(client: docker.DockerClient, attempt_id: str) -> list[str]:
    """What the engine still has of an attempt: containers and volumes, by name."""
    name = f"conductor-{attempt_id}"
    found = [f"container {name}"] if client.api.containers(all=True, filters={"name": name}) else []
    volumes = client.api.volumes(filters={"name": name})["Volumes"] or []
    return found + [f"volume {volume['Name']}" for volume in volumes]


def sweep(client: docker.DockerClient, host: str) -> None:
    """Remove whatever a failed test left behind under the label of ``host``."""
    ours = {"label": f"agent-conductor.host={host}"}
    for container in client.api.containers(all=True, filters=ours):
        client.api.remove_container(container["Id"], force=True, v=True)
    for volume in client.api.volumes(filters=ours)["Volumes"] or []:
        try:
            client.api.remove_volume(volume["Name"])
        except APIError as error:  # pragma: no cover - somebody else's cleaning was faster
            if error.status_code != 404:
                raise


async def until(condition: Callable[[], Awaitable[bool]], what: str, seconds: float = 30) -> None:
    """Look until ``condition`` holds; the test fails when it does not."""
    deadline = time.monotonic() + seconds
    while not await condition():
        assert time.monotonic() < deadline, f"never happened: {what}"
        await asyncio.sleep(0.02)
