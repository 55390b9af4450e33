"""The `conductor` command."""

from __future__ import annotations

import asyncio
import sys
from pathlib import Path

import click

from bot import __version__
from bot.cli.approvals import approvals
from bot.cli.audit import audit
from bot.cli.check_config import check_config
from bot.cli.costs import costs
from bot.cli.images import images
from bot.cli.jobs import jobs
from bot.cli.run import config_option, everything, fail, run_until_signal, settings_from
from bot.database import create_engine, redacted_url, upgrade
from bot.errors import ConductorError


@click.group(context_settings={"help_option_names": ["-h", "--help"], "max_content_width": 100})
@click.version_option(__version__, prog_name="conductor")
def main() -> None:
    """Agent Conductor: coding agents for your GitHub repositories, on your own machines.

    Somebody labels an issue `agent` or writes `/agent fix this` in a comment; a coding agent works on it in a locked
    container; the bot opens a pull request and tells how it went.

    \b
    Try it without an account:   conductor demo
    One machine, for real:       conductor up
    Several machines:            conductor serve   and, on each host,   conductor worker

    Settings come from CONDUCTOR_* variables and conductor.toml; deploy/conductor.example.toml explains each.
    """  # noqa: D301 - click wants a real backspace


@main.command()
@config_option
@click.option("--listen", help="host:port of the webhook server; default: the LISTEN setting.")
def serve(config: Path | None, listen: str | None) -> None:
    """Run the webhook server and the housekeeping.

    Point the App's webhook URL at http(s)://HOST/webhook. Needs GITHUB_APP_ID, GITHUB_PRIVATE_KEY, WEBHOOK_SECRET and
    REDIS_URL. /healthz says that it lives, /readyz that database and Redis answer. Any number may run.
    """
    from bot.server import server

    run_until_signal(settings_from(config, listen=listen), server)


@main.command()
@config_option
@click.option("--slots", type=click.IntRange(min=1), help="Attempts at once; default: the SLOTS setting.")
@click.option("--runner", help="docker or local; default: the RUNNER setting.")
def worker(config: Path | None, slots: int | None, runner: str | None) -> None:
    """Run a worker host: take queued jobs and run their agents in containers.

    Stopping it (SIGTERM) or killing it leaves the containers running; start it again with the same HOST_NAME and
    DATA_DIR, and it goes on with them.
    """
    from bot.worker import worker as open_worker

    run_until_signal(settings_from(config, slots=slots, runner=runner), open_worker)


@main.command()
@config_option
@click.option("--listen", help="host:port of the webhook server; default: the LISTEN setting.")
@click.option("--slots", type=click.IntRange(min=1), help="Attempts at once; default: the SLOTS setting.")
@click.option("--runner", help="docker or local; default: the RUNNER setting.")
def up(config: Path | None, listen: str | None, slots: int | None, runner: str | None) -> None:
    """Run everything on this machine: server, worker, SQLite and, unless REDIS_URL is set, a Redis of its own."""
    run_until_signal(settings_from(config, listen=listen, slots=slots, runner=runner), everything)


@main.command()
@config_option
def migrate(config: Path | None) -> None:
    """Bring the database to this version's schema. Every command does that at its start, too."""
    settings = settings_from(config)

    async def run() -> None:
        engine = create_engine(settings.sql_url)
        try:
            await upgrade(engine)
        finally:
            await engine.dispose()

    try:
        asyncio.run(run())
    except ConductorError as error:
        fail(error)
    click.echo(f"{redacted_url(settings.sql_url)} has the schema of version {__version__}.")


@main.command()
@click.option("--listen", default="127.0.0.1:8088", show_default=True, help="host:port of the sandbox.")
@click.option(
    "--state", type=click.Path(path_type=Path, file_okay=False), help="Keep its state in this folder."
)
@click.option("--webhook-url", help="Where to send webhooks, for example http://127.0.0.1:8000/webhook.")
def sandbox(listen: str, state: Path | None, webhook_url: str | None) -> None:
    """Run a sandbox GitHub: a GitHub on this machine to try any bot against.

    It has issues, pull requests, reviews, check runs, real git, Apps and webhooks, and plain web pages to use them. It
    prints its URL, the App's id, key and webhook secret, and the users. Without --state it keeps nothing.
    """
    from bot.sandbox.command import run_sandbox

    try:
        asyncio.run(run_sandbox(listen, state, webhook_url))
    except ConductorError as error:
        fail(error)
    except KeyboardInterrupt:
        return


@main.command()
@click.option(
    "--agent", default="shell", show_default=True, help="shell, or claude or codex with your key set."
)
@click.option("--runner", type=click.Choice(["auto", "docker", "local"]), default="auto", show_default=True)
@click.option("--keep", is_flag=True, help="Stay up afterwards, to look around in the sandbox's web pages.")
def demo(agent: str, runner: str, keep: bool) -> None:
    """Play the whole story on this machine: label, container, branch, pull request. No account, no key.

    `--agent claude` needs ANTHROPIC_API_KEY, `--agent codex` OPENAI_API_KEY.
    """
    from bot.cli.demo import play

    try:
        asyncio.run(play(agent=agent, runner=runner, keep=keep))
    except ConductorError as error:
        fail(error)
    except (KeyboardInterrupt, asyncio.CancelledError):
        # with --keep that is how it ends; in the middle of the story it is a failure
        sys.exit(0 if keep else 130)


main.add_command(approvals)
main.add_command(audit)
main.add_command(check_config)
main.add_command(costs)
main.add_command(images)
main.add_command(jobs)
