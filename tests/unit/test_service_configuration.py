"""Which services a repository may have."""

from __future__ import annotations

import pytest

from bot.config import Settings, fixed_settings
from bot.errors import ConfigurationError
from bot.ports import HealthCheck, ServiceSpec
from bot.repo_config import parse
from bot.services import allowed, image_name, services_of

ID = "sha256:" + "0123456789abcdef" * 4


@pytest.mark.parametrize(
    ("reference", "name"),
    [
        ("redis", "redis:latest"),
        ("redis:7", "redis:7"),
        ("docker.io/redis:7", "redis:7"),
        ("docker.io/library/redis:7", "redis:7"),
        ("index.docker.io/library/redis", "redis:latest"),
        ("bitnami/redis", "bitnami/redis:latest"),
        ("registry.example.com:5000/team/db:1.2", "registry.example.com:5000/team/db:1.2"),
        ("localhost/db", "localhost/db:latest"),
        (f"postgres@{ID}", f"postgres@{ID}"),
        (f"postgres:16@{ID}", f"postgres:16@{ID}"),
        # a name, by the tag that it gets: the engine must not take it for an image's id
        ("0123456789ab", "0123456789ab:latest"),
    ],
)
def test_a_name_has_one_spelling(reference: str, name: str) -> None:
    assert image_name(reference) == name
    assert image_name(name) == name


@pytest.mark.parametrize(
    "reference",
    [
        ID,
        "sha256:0123456789ab",
        "",
        "-x",
        "Redis",
        "redis:",
        "a b",
        "redis\n",
        "../x",
        "redis:7 --privileged",
        "a//b",
        "x@sha256:12",
    ],
)
def test_what_is_no_name_is_refused(reference: str) -> None:
    with pytest.raises(ConfigurationError, match="is not the name of an image"):
        image_name(reference)


@pytest.mark.parametrize(
    ("reference", "patterns", "verdict"),
    [
        ("redis:7", ["redis:7"], True),
        ("redis:7", ["redis:*"], True),
        ("redis:7-alpine", ["redis:7*"], True),
        ("redis:7", ["redis"], False),
        ("redis", ["redis"], True),
        ("docker.io/library/redis:7", ["redis:*"], True),
        ("redis:7", ["docker.io/library/redis:*"], True),
        (f"postgres@{ID}", ["postgres@*"], True),
        ("registry.example.com/team/db:1", ["registry.example.com/team/*:*"], True),
        ("registry.example.com/team/db:1", ["registry.example.com/team/*"], False),
        ("redis:7", [], False),
        ("evil/redis:7", ["redis:*"], False),
        ("evil/redis:7", ["*:*"], False),
        ("evil.example/redis:7", ["*redis:*"], False),
        ("redis:7", ["redis.7"], False),
        ("redisx:7", ["redis:*"], False),
        ("agent-conductor/shell:0123456789ab", ["*:*"], False),
    ],
)
def test_a_star_stands_for_anything_but_a_slash(reference: str, patterns: list[str], verdict: bool) -> None:
    assert allowed(reference, patterns) is verdict


def settings(*images: str, memory: str = "4g") -> Settings:
    return fixed_settings(service_images=images, memory=memory)


def test_services_become_what_the_runner_is_told() -> None:
    config = parse(
        """
services:
  db:
    image: postgres:16
    env: {POSTGRES_PASSWORD: test}
    health: {command: [pg_isready, -U, postgres], interval: 0.5, retries: 9}
    memory: 1g
  cache: {image: redis, command: [redis-server, --save, ""]}
"""
    )
    assert services_of(config.services, settings("postgres:*", "redis:*")) == (
        ServiceSpec(
            name="cache", image="redis:latest", command=("redis-server", "--save", ""), memory=512 << 20
        ),
        ServiceSpec(
            name="db",
            image="postgres:16",
            env={"POSTGRES_PASSWORD": "test"},
            health=HealthCheck(
                command=("pg_isready", "-U", "postgres"), interval=0.5, timeout=5.0, retries=9
            ),
            memory=1 << 30,
        ),
    )


def test_by_default_no_service_is_allowed() -> None:
    config = parse("services: {cache: {image: redis}}")
    with pytest.raises(ConfigurationError) as told:
        services_of(config.services, fixed_settings())
    assert "The service `cache` wants the image `redis`" in told.value.message
    assert "Allowed are: none" in told.value.hint
    assert "`service_images`" in told.value.hint


def test_what_is_allowed_is_told() -> None:
    config = parse("services: {cache: {image: evil/miner}}")
    with pytest.raises(ConfigurationError) as told:
        services_of(config.services, settings("redis:7", "postgres:*"))
    assert "Allowed are: `redis:7`, `postgres:*`" in told.value.hint


def test_all_services_together_take_no_more_memory_than_a_container() -> None:
    config = parse("services: {a: {image: redis, memory: 3g}, b: {image: redis, memory: 2g}}")
    with pytest.raises(ConfigurationError, match=r"5120 MiB of memory together; this server allows 4g"):
        services_of(config.services, settings("redis"))
    assert len(services_of(config.services, settings("redis", memory="5g"))) == 2


@pytest.mark.parametrize("name", ["A=B", "", "A B", "1A", "LD-X"])
def test_a_variable_has_a_proper_name(name: str) -> None:
    config = parse(f"services: {{cache: {{image: redis, env: {{{name!r}: x}}}}}}")
    with pytest.raises(ConfigurationError, match="cannot have the variable"):
        services_of(config.services, settings("redis"))
