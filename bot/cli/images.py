"""`conductor images`: what this worker host's engine holds of ours, and making room."""

from __future__ import annotations

import asyncio
import time
from collections.abc import Iterable
from pathlib import Path
from typing import TYPE_CHECKING

import click

from bot.changes import size_text
from bot.cli.run import config_option, fail, settings_from
from bot.errors import ConductorError, ConfigurationError
from bot.render import duration

if TYPE_CHECKING:
    from bot.config import Settings
    from runners.image_collector import HeldImage, ImageCollector


@click.group()
def images() -> None:
    """List or remove the images that agents run in, on this host's engine."""


@images.command(name="list")
@config_option
def list_(config: Path | None) -> None:
    """List them, the most recently used first."""
    try:
        lines = asyncio.run(_listed(settings_from(config)))
    except ConductorError as error:
        fail(error)
    click.echo("\n".join(lines))


@images.command()
@config_option
@click.option("--all", "everything", is_flag=True, help="Whatever no container has now, however young.")
def prune(config: Path | None, *, everything: bool) -> None:
    """Remove those that were unused for image_max_age, and the longest unused above image_max_disk."""
    try:
        removed = asyncio.run(_collector(settings_from(config)).collect(everything=everything))
    except ConductorError as error:
        fail(error)
    click.echo("\n".join(_lines(removed)) if removed else "There is nothing to remove.")


async def _listed(settings: Settings) -> list[str]:
    collector = _collector(settings)
    found = await collector.images()
    disk = await collector.disk()
    return [
        *_lines(found),
        f"{len(found)} images take {size_text(disk)}; {settings.image_max_disk} are allowed.",
    ]


def _collector(settings: Settings) -> ImageCollector:
    if settings.runner == "local":
        raise ConfigurationError("The local runner has no images.", "Look on a host with runner = docker.")
    # imported here: no other command needs an engine
    from runners.provision import AgentImages

    return AgentImages(settings).collector


def _lines(images: Iterable[HeldImage]) -> list[str]:
    now = time.time()
    return [
        "  ".join(
            word
            for word in (
                image.name or f"{image.id.removeprefix('sha256:')[:12]} (left by a build)",
                size_text(image.size),
                f"used {duration(max(0.0, now - image.used))} ago",
                f"with {image.capabilities}" if image.capabilities else "",
                f"set up for repository {image.repository}" if image.repository else "",
                "in use" if image.busy else "",
            )
            if word
        )
        for image in images
    ]
