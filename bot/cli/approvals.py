"""`conductor approvals`: what people are asked, and an operator's word in place of a review."""

from __future__ import annotations

import asyncio
from datetime import UTC, datetime
from pathlib import Path

import click

from bot.approval_store import ApprovalStore
from bot.audit import Audit, operator
from bot.cli.run import config_option, fail, logging_redactor, settings_from, with_redis
from bot.config import Settings
from bot.database import create_engine, upgrade
from bot.errors import ConductorError
from bot.logs import harmless
from bot.model import Approval, ApprovalState
from bot.redact import Redactor
from bot.render import duration, oneline

MAX_SUBJECT = 100  # characters of what is asked, in one line


@click.group(invoke_without_command=True)
@config_option
@click.pass_context
def approvals(context: click.Context, config: Path | None) -> None:
    r"""List what people are asked to approve; or decide in place of a review.

    Plans, and what running agents ask for (a network host, more budget, protected paths), are decided by a pull
    request review of somebody who may. When nobody who may is there, whoever runs this program decides: `approve` or
    `deny`. The audit trail says that it was an operator, and gives the reason.

    \b
    What waits:            conductor approvals
    What ever was asked:   conductor approvals list --all
    Say yes, or no:        conductor approvals approve p0123456789ab
                           conductor approvals deny p0123456789ab --reason "use the mirror"
    """
    context.obj = config
    if not context.invoked_subcommand:
        _show(config, limit=50, everything=False)


@approvals.command("list")
@click.option("--all", "everything", is_flag=True, help="Also what is decided or over.")
@click.option(
    "-n", "--limit", default=50, show_default=True, type=click.IntRange(1, 1000), help="How many at most."
)
@click.pass_obj
def list_(config: Path | None, everything: bool, limit: int) -> None:
    """List what waits for a decision, the newest first."""
    _show(config, limit=limit, everything=everything)


@approvals.command()
@click.argument("approval_id", metavar="ID")
@click.option("--reason", default="", help="Why; the agent and the audit trail get it.")
@click.pass_obj
def approve(config: Path | None, approval_id: str, reason: str) -> None:
    """Say yes in place of a review, about the commit that was asked about.

    Refused when it is not pending any more, or the branch has moved since: look at what is there now first.
    """
    _decide(config, approval_id, yes=True, reason=reason)


@approvals.command()
@click.argument("approval_id", metavar="ID")
@click.option("--reason", required=True, help="Why; the agent and the audit trail get it.")
@click.pass_obj
def deny(config: Path | None, approval_id: str, reason: str) -> None:
    """Say no in place of a review. A plan is then made anew by what the reason says."""
    _decide(config, approval_id, yes=False, reason=reason)


def _show(config: Path | None, *, limit: int, everything: bool) -> None:
    try:
        lines = asyncio.run(_lines(settings_from(config), limit, everything))
    except ConductorError as error:
        fail(error)
    nothing = "Nothing was ever asked." if everything else "Nothing waits for a decision."
    click.echo("\n".join(lines) if lines else nothing)


def _decide(config: Path | None, approval_id: str, *, yes: bool, reason: str) -> None:
    try:
        click.echo(asyncio.run(_decided(settings_from(config), approval_id, yes, reason)))
    except ConductorError as error:
        fail(error)


async def _decided(settings: Settings, approval_id: str, yes: bool, reason: str) -> str:
    # imported here: listing needs neither GitHub nor a web server
    from bot.embedded_redis import EmbeddedRedis
    from bot.server import everything_that_acts

    if not settings.redis_url:  # the one of `conductor up`; when that does not run, nobody needs to be woken
        settings = with_redis(settings, EmbeddedRedis(settings.data_dir / "redis").url)
    async with everything_that_acts(settings, logging_redactor(settings)) as bot:
        decided = await bot.desk.decide_as_operator(approval_id, yes=yes, reason=reason, operator=operator())
        return f"{decided.id} is {decided.state} by {decided.decided_by}."


async def _lines(settings: Settings, limit: int, everything: bool) -> list[str]:
    engine = create_engine(settings.sql_url)
    try:
        await upgrade(engine)
        store = ApprovalStore(engine, Audit(engine, Redactor(settings.secrets())))
        found = await store.recent(limit) if everything else (await store.pending())[:limit]
        return [_line(approval) for approval in found]
    finally:
        await engine.dispose()


def _line(approval: Approval) -> str:
    state = str(approval.state)
    if approval.state is ApprovalState.pending:
        left = (approval.expires_at - datetime.now(UTC)).total_seconds()
        state = f"pending, {duration(left)} left" if left > 0 else "pending, its time is over"
    elif approval.decided_by:
        state += f" by {approval.decided_by}" + (" and used" if approval.used_at else "")
    where = f"{approval.repo.full_name}#{approval.pull_number}"
    return harmless(
        f"{approval.asked_at:%Y-%m-%d %H:%M} {approval.id} {approval.kind} {where} at {approval.sha[:12]} "
        f"({state}) job {approval.job_id}: {oneline(approval.subject, MAX_SUBJECT)}"
    )
