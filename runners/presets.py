"""The presets of an image: which hosts its package managers are configured for. Asked of the image itself, once."""

from __future__ import annotations

import asyncio
import contextlib
import json
import os
import time
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import Any, Protocol
from urllib.parse import urlsplit

import docker
import requests
import structlog
import urllib3
from docker.errors import APIError, DockerException, NotFound

from bot.errors import InfrastructureError
from bot.network import HTTP_PORT, TLS_PORT, RuleError, parse_rule
from bot.ports import ContainerSpec, Limits
from runners import container_lock

Presets = Mapping[str, Sequence[str]]

LABEL = "agent-conductor.probe"
SECONDS = 120
MAX_OUTPUT = 64 * 1024
MAX_RULES = 50  # of one preset
#: No home: what an agent or a set-up step has written there must not decide where containers may connect.
NO_HOME = "/nonexistent"

_MIB = 2**20
_LIMITS = Limits(memory=512 * _MIB, cpus=4.0, pids=128, tmp=64 * _MIB, file=16 * _MIB)
_TROUBLE = (DockerException, requests.RequestException, urllib3.exceptions.HTTPError, OSError)

log = structlog.get_logger(__name__)


class PresetSource(Protocol):
    """Who knows the presets of what an attempt is started from."""

    async def of(self, image: str) -> Presets:
        """Preset -> rules (``bot/network.py``). Raises InfrastructureError."""


class ImagePresets:
    """The presets of images of the Docker engine. ``connect`` makes a client of it."""

    def __init__(self, connect: Callable[[], docker.DockerClient] = docker.from_env) -> None:
        self._connect = connect
        self._looking: dict[str, asyncio.Task[tuple[Presets, bool]]] = {}

    async def of(self, image: str) -> Presets:
        """The presets of ``image``, looked up once for each of its names; a look that was not whole is repeated."""
        task = self._looking.get(image)
        if task is None or (task.done() and not _whole(task)):
            task = asyncio.create_task(self._look(image), name=f"presets of {image}")
            self._looking[image] = task
        return (await asyncio.shield(task))[0]

    async def _look(self, image: str) -> tuple[Presets, bool]:
        try:
            said = await asyncio.to_thread(self._ask, image)
        except _TROUBLE as error:
            raise InfrastructureError(
                f"The package managers of the image {image} could not be asked for their registries: {error}.",
                "Look at the engine's log (`journalctl -u docker`), then try the job again.",
            ) from error
        return _presets(said, image)

    def _ask(self, image: str) -> str:
        """What the probe prints in a container that is locked like an attempt's and has no door at all."""
        client = self._connect()
        try:
            api = client.api
            identity = str(client.images.get(image).id).rpartition(":")[2]
            name = f"conductor-probe-{identity[:12]}-{os.getpid()}"
            with contextlib.suppress(NotFound):  # one that a killed worker left behind
                api.remove_container(name, force=True, v=True)
            _remove_old(api)
            config = _host_config(image, api.api_version, int(client.info()["NCPU"]))
            container = api.create_container(
                image,
                entrypoint=["python3", "-I", "-c", PROBE.read_text()],
                name=name,
                user=container_lock.USER,
                working_dir="/",
                environment={"HOME": NO_HOME, "LANG": "C.UTF-8"},
                labels={LABEL: "1"},
                healthcheck={"test": ["NONE"]},
                use_config_proxy=False,
                host_config=config,
            )
            try:
                api.start(container)
                ended = api.wait(container, timeout=SECONDS)
                said: bytes = api.logs(container, stdout=True, stderr=False)
                if ended["StatusCode"] != 0:
                    trouble = api.logs(container, stdout=False, stderr=True)[-500:].decode(errors="replace")
                    raise DockerException(f"it ended with {ended['StatusCode']}: {trouble.strip()}")
                return said[:MAX_OUTPUT].decode("utf-8", "replace")
            finally:
                with contextlib.suppress(APIError):
                    api.remove_container(container, force=True, v=True)
        finally:
            client.close()


def _remove_old(api: docker.APIClient) -> None:
    """Remove the probes that workers left behind which were killed while they asked."""
    oldest = time.time() - 2 * SECONDS
    for found in api.containers(all=True, filters={"label": LABEL}):
        if found["Created"] < oldest:
            with contextlib.suppress(APIError):  # somebody else removes it
                api.remove_container(found["Id"], force=True, v=True)


PROBE = Path(__file__).with_name("presets_probe.py")


def _whole(task: asyncio.Task[tuple[Presets, bool]]) -> bool:
    return not task.cancelled() and task.exception() is None and task.result()[1]


def _host_config(image: str, api_version: str, cpus: int) -> dict[str, Any]:
    spec = ContainerSpec(
        attempt_id="probe", image=image, argv=(), env={}, socket_dir=Path(), mirror=None, limits=_LIMITS
    )
    config = container_lock.host_config(spec, api_version, [], cpus, [])
    config["LogConfig"] = {"Type": "json-file", "Config": {"max-size": "1m", "max-file": "1"}}
    return config


def _presets(said: str, image: str) -> tuple[Presets, bool]:
    """What the probe said, as rules, and whether that is all. Raises InfrastructureError when it cannot be read."""
    try:
        values = json.loads(said)
        found = {str(name): [str(url) for url in urls] for name, urls in values["presets"].items()}
        silent = [str(program) for program in values["silent"]]
    except (ValueError, AttributeError, TypeError, KeyError) as error:
        raise InfrastructureError(
            f"What the package managers of {image} are configured for cannot be read.",
            "Is python3 in it the one of its distribution?",
        ) from error
    presets = {}
    for name, urls in found.items():
        rules = dict.fromkeys(rule for url in urls if (rule := rule_of(url)) is not None)
        if rules:
            presets[name] = tuple(rules)[:MAX_RULES]
    log.info("presets.found", image=image, presets={name: list(rules) for name, rules in presets.items()})
    if silent:
        log.warning("presets.silent", image=image, programs=silent)
    return presets, not silent


def rule_of(url: str) -> str | None:
    """The rule that allows ``url`` (or a bare host); None when it leads nowhere, as a blocking 0.0.0.0 does."""
    try:
        parts = urlsplit(url if "://" in url else f"https://{url}")
        port, host = parts.port, parts.hostname or ""
        host = f"[{host}]" if ":" in host else host
        rule = parse_rule(f"{host}:{port}" if port and port not in (TLS_PORT, HTTP_PORT) else f"{host}")
    except (RuleError, ValueError):
        return None
    return None if rule.host in ("0.0.0.0", "::", "*") else str(rule)  # noqa: S104 - not bound, refused
