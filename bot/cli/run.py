"""Running the long-lived processes: until a signal, with errors as one clear line."""

from __future__ import annotations

import asyncio
import signal
import sys
from collections.abc import AsyncIterator, Callable
from contextlib import AbstractAsyncContextManager, AsyncExitStack, asynccontextmanager
from pathlib import Path
from typing import Any, NoReturn

import click

from bot.config import Settings, fixed_settings, load_settings
from bot.errors import ConductorError, ConfigurationError
from bot.logs import configure
from bot.redact import Redactor

#: Opens what runs, and keeps it open while the block runs.
Opener = Callable[[Settings, Redactor], AbstractAsyncContextManager[Any]]

config_option = click.option(
    "--config",
    type=click.Path(path_type=Path, dir_okay=False),
    help="The configuration file. Default: $CONDUCTOR_CONFIG or ./conductor.toml, if it exists.",
)


def fail(error: ConductorError) -> NoReturn:
    """Say what is wrong and what to do, and exit with 2 (configuration) or 1."""
    click.secho(f"conductor: {error.message}", fg="red", err=True)
    if error.hint:
        click.echo(f"  {error.hint}", err=True)
    sys.exit(2 if isinstance(error, ConfigurationError) else 1)


def settings_from(config: Path | None, **overrides: Any) -> Settings:
    """The settings, or a clear message and the end of the program."""
    try:
        return load_settings(
            config, **{name: value for name, value in overrides.items() if value is not None}
        )
    except ConductorError as error:
        fail(error)


def logging_redactor(settings: Settings) -> Redactor:
    """What takes the secrets out of all that a process tells. Its log goes through it, too, to standard error."""
    redactor = Redactor(settings.secrets())
    configure(settings.mode, settings.log_level, redactor)
    return redactor


def run_until_signal(settings: Settings, *openers: Opener) -> None:
    """Run ``openers`` in order until SIGINT or SIGTERM, then close them in reverse."""
    try:
        redactor = logging_redactor(settings)
        asyncio.run(_until_signal(settings, redactor, openers))
    except ConductorError as error:
        fail(error)


async def _until_signal(settings: Settings, redactor: Redactor, openers: tuple[Opener, ...]) -> None:
    stop = asyncio.Event()
    loop = asyncio.get_running_loop()
    for number in (signal.SIGINT, signal.SIGTERM):
        loop.add_signal_handler(number, stop.set)
    async with AsyncExitStack() as stack:
        for opener in openers:
            await stack.enter_async_context(opener(settings, redactor))
        await stop.wait()
        # a second signal ends the process at once
        for number in (signal.SIGINT, signal.SIGTERM):
            loop.remove_signal_handler(number)


def with_redis(settings: Settings, url: str) -> Settings:
    """The same settings with another Redis."""
    values = {name: getattr(settings, name) for name in settings.model_fields_set}
    return fixed_settings(**(values | {"redis_url": url}))


@asynccontextmanager
async def everything(settings: Settings, redactor: Redactor) -> AsyncIterator[str]:
    """Server and worker in one process, with an embedded Redis unless one is configured. Yields the address."""
    # imported here: `conductor serve` must not import a container engine
    from bot.embedded_redis import EmbeddedRedis
    from bot.server import server
    from bot.worker import worker

    async with AsyncExitStack() as stack:
        if not settings.redis_url:
            redis = await stack.enter_async_context(EmbeddedRedis(settings.data_dir / "redis"))
            settings = with_redis(settings, redis.url)
        # the worker last: it is the first to be stopped
        address = await stack.enter_async_context(server(settings, redactor))
        await stack.enter_async_context(worker(settings, redactor))
        yield str(address)
