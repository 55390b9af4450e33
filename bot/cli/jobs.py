"""`conductor jobs`: list jobs, and stop or repeat one. Whoever can read the configuration is the operator."""

from __future__ import annotations

import asyncio
import uuid
from collections.abc import Awaitable, Callable
from pathlib import Path
from typing import TYPE_CHECKING

import click

from bot.audit import operator
from bot.audit_chain import AuditKind
from bot.cli.run import config_option, fail, logging_redactor, settings_from, with_redis
from bot.config import Settings
from bot.database import create_engine, upgrade
from bot.errors import ConductorError
from bot.model import Job, Trigger
from bot.render import duration, money
from bot.store import Store

if TYPE_CHECKING:
    from bot.conductor import Conductor

Order = Callable[["Conductor", Job], Awaitable[str]]


@click.group(invoke_without_command=True)
@config_option
@click.option(
    "-n", "--limit", default=20, show_default=True, type=click.IntRange(1, 1000), help="How many jobs."
)
@click.pass_context
def jobs(context: click.Context, config: Path | None, limit: int) -> None:
    """List the newest jobs, from the database; or stop or repeat one."""
    if context.invoked_subcommand:
        context.obj = config
        return
    try:
        lines = asyncio.run(_job_lines(settings_from(config), limit))
    except ConductorError as error:
        fail(error)
    click.echo("\n".join(lines) if lines else "There are no jobs yet.")


@jobs.command()
@click.argument("job_id", metavar="JOB")
@click.pass_obj
def cancel(config: Path | None, job_id: str) -> None:
    """Stop a job that waits, runs or asks. Its comment on GitHub tells that."""
    _give(config, _cancel, job_id)


@jobs.command()
@click.argument("job_id", metavar="JOB")
@click.pass_obj
def retry(config: Path | None, job_id: str) -> None:
    """Do a job that has ended once more, in the name of who asked for it."""
    _give(config, _retry, job_id)


def _give(config: Path | None, order: Order, job_id: str) -> None:
    try:
        click.echo(asyncio.run(_carry_out(settings_from(config), order, job_id)))
    except ConductorError as error:
        fail(error)


async def _carry_out(settings: Settings, order: Order, job_id: str) -> str:
    # imported here: listing jobs needs neither GitHub nor a web server
    from bot.embedded_redis import EmbeddedRedis
    from bot.server import heart

    if not settings.redis_url:  # the one of `conductor up`; when that does not run, nobody needs to be woken
        settings = with_redis(settings, EmbeddedRedis(settings.data_dir / "redis").url)
    async with heart(settings, logging_redactor(settings)) as (conductor, _):
        job = await conductor.store.job(job_id)
        if job is None:
            raise ConductorError(f"There is no job {job_id!r}.", "`conductor jobs` lists them.")
        return await order(conductor, job)


async def _cancel(conductor: Conductor, job: Job) -> str:
    if not await conductor.stop_job(job, by="the operator"):
        raise ConductorError(f"Job {job.id} has ended already: {job.state}.")
    now = await conductor.store.job(job.id) or job
    return f"{job.id} is {now.state}." if now.state.final else f"{job.id} is being stopped."


async def _retry(conductor: Conductor, job: Job) -> str:
    if not job.state.final:
        raise ConductorError(
            f"Job {job.id} is still {job.state}.", f"`conductor jobs cancel {job.id}` stops it."
        )
    # that person's rights and budgets count, as if they had asked again
    trigger = Trigger(delivery_id=f"cli-{uuid.uuid4()}", event="cli.retry", actor=job.trigger.actor)
    await conductor.audit.record(
        AuditKind.operator,
        actor=operator(),
        repo=job.repo,
        number=job.number,
        job_id=job.id,
        delivery_id=trigger.delivery_id,  # what it causes has the same one
        details={"command": "jobs retry", "in_the_name_of": job.trigger.actor.login},
    )
    again = await conductor.retry_job(job, trigger)
    if again is None:
        raise ConductorError(
            f"Job {job.id} was not repeated.", f"A comment in {job.repo.full_name}#{job.number} says why."
        )
    return f"{again.id} is {again.state}: {job.id} once more."


async def _job_lines(settings: Settings, limit: int) -> list[str]:
    engine = create_engine(settings.sql_url)
    try:
        await upgrade(engine)
        lines = []
        for job in await Store(engine).recent_jobs(limit):
            took = ""
            if job.started_at and job.finished_at:
                took = duration((job.finished_at - job.started_at).total_seconds())
            why = f" ({job.phase}/{job.failure})" if job.failure else ""
            pull = f" -> #{job.pull_number}" if job.pull_number else ""
            lines.append(
                f"{job.created_at:%Y-%m-%d %H:%M} {job.id} {job.state}{why} {job.repo.full_name}#{job.number}{pull} "
                f"{job.agent} by {job.trigger.actor.login} {took} {money(job.usage)}".rstrip()
            )
        return lines
    finally:
        await engine.dispose()
