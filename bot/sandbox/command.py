"""``conductor sandbox``: run the sandbox GitHub until a signal, and say how to point a bot at it."""

from __future__ import annotations

import asyncio
import signal
from collections.abc import Callable
from pathlib import Path

import click

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
        roles = ", ".join(f"{one.login} ({repository.role(one.login)})" for one in people)
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
        OSError: the address is taken.
    """
    done = stop or asyncio.Event()
    loop = asyncio.get_running_loop()
    if stop is None:
        for number in (signal.SIGINT, signal.SIGTERM):
            loop.add_signal_handler(number, done.set)
    async with Sandbox.start(listen=listen, state_dir=state, webhook_url=webhook_url) as github:
        say(greeting(github))
        await done.wait()
