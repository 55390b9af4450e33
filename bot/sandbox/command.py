"""``conductor sandbox``: run the sandbox GitHub until a signal, and say how to point a bot at it."""

from __future__ import annotations

import asyncio
import contextlib
import signal
from collections.abc import Callable
from pathlib import Path

import click
from pydantic import ValidationError

from bot.errors import ConfigurationError
from bot.sandbox.auth import user_token
from bot.sandbox.sandbox import Sandbox


def greeting(github: Sandbox) -> str:
    """What somebody needs to use a sandbox: where it is, who there is, and the settings for a bot."""
    world = github.world
    people = [one for one in world.users.values() if one.type == "User"]
    lines = [
        f"Sandbox GitHub at {github.url} (pages, REST and git)",
        "",
        f"App             {world.app.name}, id {github.app_id}, installation {github.installation_id}",
        f"Private key     {github.private_key_path}",
        f"Webhook secret  {github.webhook_secret}",
        f"Webhook URL     {github.webhook_url or '(none: start with --webhook-url)'}",
        "",
        "Repositories",
    ]
    for repository in world.repositories.values():
        lines.append(f"  {github.git_url(repository.full_name)}")
        roles = ", ".join(f"{one.login} ({world.role(repository, one.login)})" for one in people)
        lines.append(f"    {roles}")
    lines += ["", "People and their tokens (REST: Authorization: token T; git: any user name, T as password)"]
    lines += [f"  {one.login:<12} {user_token(one.login)}" for one in people]
    lines += [
        "",
        "For the bot:",
        f"export CONDUCTOR_GITHUB_API_URL={github.url}",
        f"export CONDUCTOR_GITHUB_APP_ID={github.app_id}",
        f"export CONDUCTOR_GITHUB_PRIVATE_KEY={github.private_key_path.resolve()}",
        f"export CONDUCTOR_WEBHOOK_SECRET={github.webhook_secret}",
    ]
    return "\n".join(lines)


async def run_sandbox(
    listen: str,
    state: Path | None = None,
    webhook_url: str | None = None,
    *,
    say: Callable[[str], None] = click.echo,
    stop: asyncio.Event | None = None,
) -> None:
    """Run until SIGINT, SIGTERM or ``stop``.

    Args:
        listen: ``host:port``.
        state: folder that keeps the world over restarts; None forgets everything at the end.
        webhook_url: where the App's webhooks go.
        say: prints the greeting.
        stop: ends the sandbox; without one, signals do.

    Raises:
        ConfigurationError: the address cannot be had, or the state folder cannot be read.
    """
    done = stop or asyncio.Event()
    loop = asyncio.get_running_loop()
    if stop is None:
        for number in (signal.SIGINT, signal.SIGTERM):
            loop.add_signal_handler(number, done.set)
    async with contextlib.AsyncExitStack() as stack:
        try:
            github = await stack.enter_async_context(
                Sandbox.start(listen=listen, state_dir=state, webhook_url=webhook_url)
            )
        except OSError as error:
            raise ConfigurationError(
                f"The sandbox cannot listen on {listen}: {error.strerror or error}.",
                "Choose another address with --listen HOST:PORT; port 0 takes a free one.",
            ) from error
        except ValidationError as error:
            raise ConfigurationError(
                f"The sandbox cannot read the state in {state}: {error.error_count()} values make no sense.",
                "Remove the folder to begin anew, or name another with --state.",
            ) from error
        say(greeting(github))
        await done.wait()
