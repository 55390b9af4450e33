"""The services that a repository wants beside its agent, within what the server allows."""

from __future__ import annotations

import re
from collections.abc import Sequence

from bot.config import Settings
from bot.errors import ConfigurationError
from bot.limits import size
from bot.ports import HealthCheck, ServiceSpec
from bot.repo_config import ServiceConfig

# https://pkg.go.dev/github.com/distribution/reference
_PART = r"[a-z0-9]+(?:(?:\.|_{1,2}|-+)[a-z0-9]+)*"
_REFERENCE = re.compile(
    rf"(?P<host>(?:[A-Za-z0-9.-]+\.[A-Za-z0-9.-]+|localhost)(?::\d+)?/|[A-Za-z0-9.-]+:\d+/)?(?P<path>{_PART}(?:/{_PART})*)"
    r"(?P<tag>:[\w][\w.-]{0,127})?(?P<digest>@sha256:[0-9a-f]{64})?",
    re.ASCII,
)
_VARIABLE = re.compile(r"[A-Za-z_][A-Za-z0-9_]*")
_DEFAULT_HOSTS = ("docker.io/", "index.docker.io/")


def image_name(reference: str) -> str:
    """``reference`` in its one spelling: ``docker.io/library/redis`` is ``redis:latest``.

    Raises ConfigurationError for what is no name: also for an engine's image id, which could be any image.
    """
    match = _REFERENCE.fullmatch(reference)
    if not match or match["path"] == "sha256":
        raise ConfigurationError(
            f"{reference!r} is not the name of an image.", "Write for example `redis:7`."
        )
    host = match["host"] or ""
    path = match["path"]
    if host in _DEFAULT_HOSTS:
        host, path = "", path.removeprefix("library/")
    tag = match["tag"] or ("" if match["digest"] else ":latest")
    return f"{host}{path}{tag}{match['digest'] or ''}"


def allowed(reference: str, patterns: Sequence[str]) -> bool:
    """Whether one of the server's ``patterns`` allows it; a ``*`` stands for anything but a slash."""
    name = image_name(reference)
    return any(_pattern(pattern).fullmatch(name) for pattern in patterns)


def services_of(config: dict[str, ServiceConfig], settings: Settings) -> tuple[ServiceSpec, ...]:
    """What the runner is told of the repository's ``services``. Raises ConfigurationError."""
    services = tuple(_service(name, config[name], settings.service_images) for name in sorted(config))
    total = sum(service.memory for service in services)
    if total > size(settings.memory):
        raise ConfigurationError(
            f"The services want {total >> 20} MiB of memory together; this server allows {settings.memory}.",
            "Give some of them less with `services.NAME.memory`.",
        )
    return services


def _service(name: str, config: ServiceConfig, patterns: Sequence[str]) -> ServiceSpec:
    if not allowed(config.image, patterns):
        listed = ", ".join(f"`{pattern}`" for pattern in patterns) or "none"
        raise ConfigurationError(
            f"The service `{name}` wants the image `{config.image}`, which this server does not allow.",
            f"Allowed are: {listed}. The operator can add others with `service_images`.",
        )
    wrong = [key for key, value in config.env.items() if not _VARIABLE.fullmatch(key) or "\0" in value]
    if wrong:
        raise ConfigurationError(
            f"The service `{name}` cannot have the variable {wrong[0]!r}.",
            "Use letters, digits and underscores.",
        )
    health = config.health
    return ServiceSpec(
        name=name,
        image=image_name(config.image),
        command=config.command,
        env=config.env,
        health=HealthCheck(**health.model_dump()) if health else None,
        memory=size(config.memory),
    )


def _pattern(pattern: str) -> re.Pattern[str]:
    for host in _DEFAULT_HOSTS:
        if pattern.startswith(host):
            pattern = pattern.removeprefix(host).removeprefix("library/")
    last = pattern.rpartition("/")[2]
    if ":" not in last and "@" not in last:
        pattern += ":latest"
    return re.compile("[^/]*".join(re.escape(part) for part in pattern.split("*")))
