"""What the fault tests share: the seed, the images for engines of their own, and why they cannot run here."""

from __future__ import annotations

import asyncio
import os
import random
import shutil
from collections.abc import Iterator
from pathlib import Path

import docker
import pytest

from bot.config import fixed_settings
from runners.agents.registry import agent as agent_named
from runners.provision import AgentImages
from tests.containers import BASE_IMAGE

# taken out of the environment, where the product would refuse names that are no settings of its own
SEED = os.environ.pop("CONDUCTOR_FAULTS_SEED", "")
ROUNDS = os.environ.pop("CONDUCTOR_FAULTS_ROUNDS", "")


@pytest.fixture(scope="session")
def faults_seed() -> int:
    """Where the rounds' random numbers begin; CONDUCTOR_FAULTS_SEED sets it, and so repeats what was seen."""
    return int(SEED) if SEED else random.SystemRandom().randrange(1_000_000)


@pytest.fixture(scope="session")
def faults_rounds() -> int:
    """How many rounds in all; CONDUCTOR_FAULTS_ROUNDS sets it (`make faults`). Each database gets its half."""
    return int(ROUNDS or 2)


@pytest.fixture(scope="session")
def image_files(tmp_path_factory: pytest.TempPathFactory) -> Iterator[list[Path]]:
    """The base image and the shell agent's image as files, for engines that have none yet."""
    missing = [name for name in ("dockerd", "containerd") if shutil.which(name) is None]
    if os.getuid() != 0 or missing:
        pytest.skip(f"an engine of our own needs root{''.join(f' and {name}' for name in missing)}")
    bundle = os.environ.get("SSL_CERT_FILE")
    image = asyncio.run(_image(bundle))
    folder = tmp_path_factory.mktemp("images")
    client = docker.from_env()
    try:
        names = [BASE_IMAGE, *client.images.get(image).tags]
        files = [folder / f"{number}.tar" for number in range(len(names))]
        for name, file in zip(names, files, strict=True):
            with file.open("wb") as sink:
                for chunk in client.api.get_image(name):  # by name: an id alone would come without its name
                    sink.write(chunk)
    finally:
        client.close()
    yield files
    shutil.rmtree(folder)


async def _image(bundle: str | None) -> str:
    images = AgentImages(fixed_settings(image_ca_bundle=bundle or None))
    try:
        return await images.ensure(agent_named("shell"))
    finally:
        await images.close()
