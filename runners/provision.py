"""What an attempt is started from: an agent's image, or this machine's own programs for the local runner."""

from __future__ import annotations

import sys
from collections.abc import Collection, Sequence
from pathlib import Path
from typing import Protocol

from bot.capabilities import known_capabilities
from bot.config import Settings
from bot.errors import ConductorError, ConfigurationError
from bot.images import ImageNeeds, ImageSpec, image_tag, setup_labels, setup_tag
from bot.limits import limits_for, size
from bot.model import FailureKind
from bot.network import proxy_environment
from bot.ports import Agent, Runner
from bot.repo_config import LimitsConfig
from runners.builds import LineCallback
from runners.gateway.server import Gateway
from runners.setup import SetupFailed, SetupRoom

SHIM = Path(__file__).with_name("shim.py")
SHIM_IN_IMAGE = "/opt/conductor/shim.py"


class Images(Protocol):
    """Where attempts start from."""

    @property
    def shim_argv(self) -> Sequence[str]:
        """How the shim is started there."""

    @property
    def running(self) -> Collection[str]:
        """The ids of containers that this process uses to make images: they are nobody's leftovers."""

    async def ensure(
        self, agent: Agent, needs: ImageNeeds | None = None, *, log: LineCallback | None = None
    ) -> str:
        """Provide ``agent`` and what the job needs besides; the image's name, or "" where there is none.

        ``log`` is told what a build or a set-up step prints. Raises ImageBuildFailed, SetupFailed,
        ConfigurationError for a capability that nobody knows, InfrastructureError.
        """

    async def collect(self) -> None:
        """Remove images that nobody needs any more. Raises InfrastructureError."""

    async def close(self) -> None:
        """Break off what is under way."""


class AgentImages:
    """Images of the Docker engine, built when they are missing.

    ``runner`` and ``gateway`` are for the set-up steps of repositories: without them those are refused.
    """

    shim_argv: Sequence[str] = ("python3", SHIM_IN_IMAGE)

    def __init__(
        self, settings: Settings, runner: Runner | None = None, gateway: Gateway | None = None
    ) -> None:
        # imported here: the local runner needs no engine
        import docker

        from runners.image_collector import ImageCollector
        from runners.images import ImageBuilder

        bundle = settings.image_ca_bundle
        try:
            ca_bundle = bundle.read_bytes() if bundle else b""
        except OSError as error:
            raise ConfigurationError(
                f"IMAGE_CA_BUNDLE {str(bundle)!r} cannot be read: {error.strerror}.",
                "Give the path of a PEM file, or leave it out.",
            ) from error
        folder = settings.data_dir.absolute()
        self._builder = ImageBuilder(
            base=settings.base_image,
            shim=SHIM.read_bytes(),
            ca_bundle=ca_bundle,
            locks=folder / "images" / "locks",
        )
        self._table = known_capabilities(settings.image_capabilities)
        self.collector = ImageCollector(
            docker.from_env,
            max_age=settings.image_max_age * 86400,
            max_disk=size(settings.image_max_disk),
        )
        self._room: SetupRoom | None = None
        if runner is not None and gateway is not None:
            limits = limits_for(settings, LimitsConfig())
            self._room = SetupRoom(
                runner,
                gateway,
                folder=folder / "attempts",
                limits=limits.container,
                workspace=limits.workspace,
                shim_argv=self.shim_argv,
                timeout=settings.setup_timeout,
                environment=proxy_environment,
            )

    @property
    def running(self) -> Collection[str]:
        """The ids of the containers in which set-up steps run now."""
        return frozenset(self._room.running) if self._room else frozenset()

    async def ensure(
        self, agent: Agent, needs: ImageNeeds | None = None, *, log: LineCallback | None = None
    ) -> str:
        """The image with ``agent``, the capabilities, and what the repository's set-up steps leave behind."""
        needs = needs or ImageNeeds()
        spec = await self._builder.spec(
            agent.name, agent.version, needs.capabilities, self._table, agent.installation
        )
        image = await self._builder.ensure(spec, log)
        await self._builder.note_use(image_tag(spec))
        if not needs.setup:
            return image
        tag = setup_tag(spec, needs)
        image = await self._builder.builds.once(tag, lambda tell: self._set_up(image, spec, needs, tell), log)
        await self._builder.note_use(tag)
        return image

    async def _set_up(self, image: str, spec: ImageSpec, needs: ImageNeeds, tell: LineCallback) -> str:
        tag = setup_tag(spec, needs)
        found = await self._builder.image_id(tag)
        if found is not None:
            return found
        if self._room is None:
            raise ConfigurationError(
                "Set-up steps cannot be run here.", "They need a worker; leave `image.setup` out."
            )
        from runners.images import SetupTooLarge

        async with self._room.done(image, needs, tell) as container:
            try:
                return await self._builder.keep_home(container.ref, image, tag, setup_labels(spec, needs))
            except SetupTooLarge as error:
                message = f"The set-up steps left {error} in the home folder."
                raise SetupFailed(FailureKind.configuration, message, "") from error

    async def collect(self) -> None:
        """Remove images that were not used for long, and the longest unused while all take too much space."""
        await self.collector.collect()

    async def check(self) -> None:
        """Raise InfrastructureError when the base image is not there and cannot be pulled."""
        await self._builder.spec("shell", "")

    async def close(self) -> None:
        """Break off builds under way."""
        await self._builder.close()


class OwnPrograms:
    """For the local runner: the agent's CLI and everything else must be on this machine's PATH."""

    shim_argv: Sequence[str] = (sys.executable, str(SHIM))
    running: Collection[str] = ()

    async def ensure(
        self, agent: Agent, needs: ImageNeeds | None = None, *, log: LineCallback | None = None
    ) -> str:
        """Nothing to provide: a CLI that is missing shows when it is started. Set-up steps are refused."""
        del agent
        if needs is not None and needs.setup:
            raise ConfigurationError(
                "The local runner has no images, so it runs no set-up steps.",
                "Use the docker runner, or leave `image.setup` out of the repository's configuration.",
            )
        del log
        return ""

    async def collect(self) -> None:
        """There are none."""

    async def close(self) -> None:
        """Nothing is under way."""


def create_images(settings: Settings, runner: Runner | None = None, gateway: Gateway | None = None) -> Images:
    """What fits the configured runner; with ``runner`` and ``gateway`` also for repositories with set-up steps."""
    return OwnPrograms() if settings.runner == "local" else AgentImages(settings, runner, gateway)


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
