"""What an attempt is started from: an agent's image, or this machine's own programs for the local runner."""

from __future__ import annotations

import sys
from collections.abc import Sequence
from pathlib import Path
from typing import Protocol

from bot.config import Settings
from bot.errors import ConductorError, ConfigurationError
from bot.ports import Agent

SHIM = Path(__file__).with_name("shim.py")
SHIM_IN_IMAGE = "/opt/conductor/shim.py"


class Images(Protocol):
    """Where attempts start from."""

    @property
    def shim_argv(self) -> Sequence[str]:
        """How the shim is started there."""

    async def ensure(self, agent: Agent) -> str:
        """Provide what ``agent`` needs; the image's name, or "" where there is none."""

    async def close(self) -> None:
        """Break off what is under way."""


class AgentImages:
    """Images of the Docker engine, built when they are missing."""

    shim_argv: Sequence[str] = ("python3", SHIM_IN_IMAGE)

    def __init__(self, settings: Settings) -> None:
        # imported here: the local runner needs no engine
        from runners.images import ImageBuilder

        bundle = settings.image_ca_bundle
        try:
            ca_bundle = bundle.read_bytes() if bundle else b""
        except OSError as error:
            raise ConfigurationError(
                f"IMAGE_CA_BUNDLE {str(bundle)!r} cannot be read: {error.strerror}.",
                "Give the path of a PEM file, or leave it out.",
            ) from error
        self._builder = ImageBuilder(base=settings.base_image, shim=SHIM.read_bytes(), ca_bundle=ca_bundle)

    async def ensure(self, agent: Agent) -> str:
        """The image with ``agent`` in it."""
        return await self._builder.ensure(await self._builder.spec(agent.name, agent.version))

    async def check(self) -> None:
        """Raise InfrastructureError when the base image is not there and cannot be pulled."""
        await self._builder.spec("shell", "")

    async def close(self) -> None:
        """Break off builds under way."""
        await self._builder.close()


class OwnPrograms:
    """For the local runner: the agent's CLI must be on this machine's PATH."""

    shim_argv: Sequence[str] = (sys.executable, str(SHIM))

    async def ensure(self, agent: Agent) -> str:
        """Nothing to provide: a CLI that is missing shows when it is started."""
        del agent
        return ""

    async def close(self) -> None:
        """Nothing is under way."""


def create_images(settings: Settings) -> Images:
    """What fits the configured runner."""
    return OwnPrograms() if settings.runner == "local" else AgentImages(settings)


async def engine_problem(settings: Settings) -> ConductorError | None:
    """Why agents cannot run in containers here: no engine, or no base image and no way to get one."""
    from runners.backends import create_runner

    images = AgentImages(settings)
    try:
        runner = create_runner("docker", settings)
        try:
            await runner.check()
            await images.check()
        finally:
            await runner.close()
    except ConductorError as error:
        return error
    finally:
        await images.close()
    return None
