"""`conductor costs`: what was spent on LLM calls, from the database."""

from __future__ import annotations

import asyncio
import dataclasses
from collections.abc import Sequence
from datetime import UTC, datetime, timedelta
from pathlib import Path

import click
import orjson

from bot.budget import dollars
from bot.cli.run import config_option, fail, settings_from
from bot.config import Settings
from bot.database import create_engine, upgrade
from bot.errors import ConductorError
from bot.ledger import GROUPS, Ledger, Line

USUAL_DAYS = 30


@click.command()
@config_option
@click.option("--by", type=click.Choice(GROUPS), default="day", show_default=True, help="One line for each.")
@click.option(
    "--since",
    type=click.DateTime(formats=["%Y-%m-%d"]),
    help=f"From this day on (UTC, YYYY-MM-DD); default: the last {USUAL_DAYS} days.",
)
@click.option("--json", "as_json", is_flag=True, help="One JSON object a line, for programs.")
def costs(config: Path | None, by: str, since: datetime | None, as_json: bool) -> None:
    """Show what LLM calls cost, by day, repository, user, model, job or turn.

    Amounts are by the price table (PRICES), not by the provider's bill. Calls of models without a price have no cost:
    they are counted as unpriced.
    """
    first = since or datetime.now(UTC) - timedelta(days=USUAL_DAYS - 1)
    try:
        lines = asyncio.run(_report(settings_from(config), by, first))
    except ConductorError as error:
        fail(error)
    if as_json:
        for line in lines:
            click.echo(orjson.dumps({by: line.name} | _numbers(line)))
    elif lines:
        click.echo("\n".join(table(by, lines)))
    else:
        click.echo(f"No LLM calls since {first:%Y-%m-%d}.")


async def _report(settings: Settings, by: str, since: datetime) -> list[Line]:
    engine = create_engine(settings.sql_url)
    try:
        await upgrade(engine)
        return await Ledger(engine).report(by=by, since=since.date())
    finally:
        await engine.dispose()


def _numbers(line: Line) -> dict[str, object]:
    return {name: value for name, value in dataclasses.asdict(line).items() if name != "name"}


def table(by: str, lines: Sequence[Line]) -> list[str]:
    """The report as columns, with a sum below."""
    total = Line(
        name="total",
        calls=sum(line.calls for line in lines),
        input_tokens=sum(line.input_tokens for line in lines),
        output_tokens=sum(line.output_tokens for line in lines),
        cached_tokens=sum(line.cached_tokens for line in lines),
        cost=sum(line.cost for line in lines),
        unpriced=sum(line.unpriced for line in lines),
    )
    rows: list[tuple[str, ...]] = [(by, "calls", "tokens in", "out", "cached", "cost", "unpriced")]
    for line in (*lines, total):
        numbers = (line.calls, line.input_tokens, line.output_tokens, line.cached_tokens)
        rows.append(
            (line.name, *(f"{number:,}" for number in numbers), dollars(line.cost), f"{line.unpriced:,}")
        )
    widths = [max(len(row[column]) for row in rows) for column in range(len(rows[0]))]
    return [
        "  ".join(
            [row[0].ljust(widths[0]), *(cell.rjust(w) for cell, w in zip(row[1:], widths[1:], strict=True))]
        )
        for row in rows
    ]
