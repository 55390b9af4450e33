"""What LLM calls cost, call by call, in SQL: budgets and reports are sums over it."""

from __future__ import annotations

from collections.abc import Collection, Mapping, Sequence
from dataclasses import dataclass
from datetime import UTC, date, datetime

from sqlalchemy import ColumnElement, ScalarSelect, String, and_, cast, func, insert, or_, select
from sqlalchemy.ext.asyncio import AsyncEngine

from bot.budget import Scope
from bot.model import Usage
from bot.schema import jobs, spend, turns
from bot.terms import Terms

#: What a report can be made by, and the column that says it.
GROUPS = ("day", "repository", "user", "model", "job", "turn")


@dataclass(frozen=True, kw_only=True)
class Entry:
    """One call, for whom it was made, and what it cost."""

    terms: Terms
    attempt_id: str
    at: datetime
    model: str
    usage: Usage


@dataclass(frozen=True, kw_only=True)
class Line:
    """One line of a report. ``unpriced`` calls are in the tokens, and not in ``cost``."""

    name: str
    calls: int
    input_tokens: int
    output_tokens: int
    cached_tokens: int
    cost: float  # US dollars
    unpriced: int


class Ledger:
    """The table ``spend``. Methods raise SQLAlchemy's errors when the database fails."""

    def __init__(self, engine: AsyncEngine) -> None:
        self._engine = engine

    async def add(self, entries: Sequence[Entry]) -> None:
        """Write down calls, all or none."""
        async with self._engine.begin() as connection:
            await connection.execute(insert(spend), [_row(entry) for entry in entries])

    async def spent(self, terms: Terms, scopes: Collection[Scope]) -> Mapping[Scope, float]:
        """US dollars spent so far in each of ``scopes``, for the job, people and repository of ``terms``."""
        if not scopes:
            return {}
        of_today = spend.c.day == today()
        within: dict[Scope, ColumnElement[bool]] = {
            Scope.job: spend.c.job_id == terms.job_id,
            Scope.thread: spend.c.thread_id == terms.thread_id,
            Scope.user_day: and_(of_today, spend.c.actor_id == terms.actor_id),
            Scope.repository_day: and_(of_today, spend.c.repo_id == terms.repo_id),
            Scope.day: of_today,
        }
        wanted = [scope for scope in Scope if scope in scopes]
        query = select(*(_sum(within[scope]).label(str(scope)) for scope in wanted))
        async with self._engine.connect() as connection:
            row = (await connection.execute(query)).one()
        return {scope: float(amount) for scope, amount in zip(wanted, row, strict=True)}

    async def report(self, *, by: str, since: date | None = None) -> list[Line]:
        """What was spent, one line for each ``by`` (one of GROUPS); days in order, else the dearest first."""
        name = {
            "day": spend.c.day,
            "repository": func.coalesce(func.max(jobs.c.repo_owner + "/" + jobs.c.repo_name), ""),
            "user": func.coalesce(func.max(jobs.c.trigger["actor"]["login"].as_string()), ""),
            "model": spend.c.model,
            "job": spend.c.job_id,
            "turn": spend.c.attempt_id + "/" + func.coalesce(cast(turns.c.number, String), "?"),
        }[by]
        group = {"repository": spend.c.repo_id, "user": spend.c.actor_id}.get(by, name)
        source = spend.outerjoin(jobs, jobs.c.id == spend.c.job_id)
        if by == "turn":
            during = and_(
                spend.c.at >= turns.c.started_at,
                or_(turns.c.finished_at.is_(None), spend.c.at <= turns.c.finished_at),
            )
            source = source.outerjoin(turns, and_(turns.c.attempt_id == spend.c.attempt_id, during))
        cost = func.coalesce(func.sum(spend.c.cost), 0.0)
        query = (
            select(
                name.label("name"),
                group.label("key"),
                func.count().label("calls"),
                func.sum(spend.c.input_tokens).label("input_tokens"),
                func.sum(spend.c.output_tokens).label("output_tokens"),
                func.sum(spend.c.cached_tokens).label("cached_tokens"),
                cost.label("cost"),
                (func.count() - func.count(spend.c.cost)).label("unpriced"),
            )
            .select_from(source)
            .group_by(group)
            .order_by(*([group] if by == "day" else [cost.desc(), group]))
        )
        if since is not None:
            query = query.where(spend.c.day >= since.isoformat())
        async with self._engine.connect() as connection:
            rows = (await connection.execute(query)).all()
        return [
            Line(
                name=str(row.name or row.key),
                calls=row.calls,
                input_tokens=int(row.input_tokens),
                output_tokens=int(row.output_tokens),
                cached_tokens=int(row.cached_tokens),
                cost=float(row.cost),
                unpriced=row.unpriced,
            )
            for row in rows
        ]


def day_of(at: datetime) -> str:
    """The UTC day that a call counts for: ``2026-11-21``."""
    return at.astimezone(UTC).date().isoformat()


def today() -> str:
    """The UTC day of now."""
    return day_of(datetime.now(UTC))


def _sum(where: ColumnElement[bool]) -> ScalarSelect[float]:
    return select(func.coalesce(func.sum(spend.c.cost), 0.0)).where(where).scalar_subquery()


def _row(entry: Entry) -> dict[str, object]:
    terms, usage = entry.terms, entry.usage
    return {
        "job_id": terms.job_id,
        "attempt_id": entry.attempt_id,
        "thread_id": terms.thread_id,
        "repo_id": terms.repo_id,
        "actor_id": terms.actor_id,
        "at": entry.at,
        "day": day_of(entry.at),
        "model": entry.model[:200],
        "input_tokens": usage.input_tokens,
        "output_tokens": usage.output_tokens,
        "cached_tokens": usage.cached_tokens,
        "cache_write_tokens": usage.cache_write_tokens,
        "cost": usage.cost,
    }
