"""Commits of ours on which a check failed, in SQL: when to look at them again, and what was tried already."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from datetime import UTC, datetime
from typing import Any

from sqlalchemy import Row, and_, select, update
from sqlalchemy.dialects import postgresql, sqlite
from sqlalchemy.ext.asyncio import AsyncEngine

from bot.schema import failing_heads

MAX_SAID = 2_000  # characters


@dataclass(frozen=True, kw_only=True)
class FailingHead:
    """One of them. ``look_at`` None: nothing is to be done about it any more."""

    repo_id: int
    number: int  # of the pull request
    sha: str
    seen_at: datetime
    look_at: datetime | None
    job_id: str | None = None  # the job that shall fix it; it may not have been accepted yet
    fingerprint: str = ""  # of what failed when that was decided


class FailingHeads:
    """The table. Methods raise SQLAlchemy's errors when the database fails."""

    def __init__(self, engine: AsyncEngine) -> None:
        self._engine = engine

    async def see(self, repo_id: int, number: int, sha: str) -> FailingHead:
        """Remember that checks ended on a commit.

        One about which nothing was to be done, and nothing was begun, is looked at afresh: there may be news.
        """
        now = datetime.now(UTC)
        insert = sqlite.insert if self._engine.dialect.name == "sqlite" else postgresql.insert
        new = insert(failing_heads).values(repo_id=repo_id, number=number, sha=sha, seen_at=now, look_at=now)
        async with self._engine.begin() as connection:
            await connection.execute(new.on_conflict_do_nothing())
            where = _is(repo_id, number, sha)
            closed = and_(failing_heads.c.look_at.is_(None), failing_heads.c.job_id.is_(None))
            again = update(failing_heads).where(where, closed).values(seen_at=now, look_at=now)
            await connection.execute(again)
            row = (await connection.execute(select(failing_heads).where(where))).one()
        return _head(row)

    async def due(self, limit: int = 20) -> list[FailingHead]:
        """Those that should be looked at by now, the longest waiting ones first."""
        query = (
            select(failing_heads)
            .where(failing_heads.c.look_at <= datetime.now(UTC))
            .order_by(failing_heads.c.look_at)
            .limit(limit)
        )
        async with self._engine.connect() as connection:
            return [_head(row) for row in await connection.execute(query)]

    async def tried(self, repo_id: int, number: int, since: datetime | None) -> Mapping[str, str]:
        """Commit -> fingerprint of each automatic fix of a pull request that was begun after ``since``."""
        query = select(failing_heads.c.sha, failing_heads.c.fingerprint).where(
            failing_heads.c.repo_id == repo_id,
            failing_heads.c.number == number,
            failing_heads.c.job_id.is_not(None),
        )
        if since is not None:
            query = query.where(failing_heads.c.seen_at > since)
        async with self._engine.connect() as connection:
            return {row.sha: row.fingerprint for row in await connection.execute(query)}

    async def later(self, head: FailingHead, moment: datetime) -> None:
        """Look again at ``moment``."""
        await self._set(head, look_at=moment)

    async def begin(self, head: FailingHead, job_id: str, fingerprint: str) -> bool:
        """A job shall fix it: said before that is accepted, so that it counts whatever happens then.

        False when it was said before, or nothing is to be done any more.
        """
        where = and_(failing_heads.c.job_id.is_(None), failing_heads.c.look_at.is_not(None))
        return await self._set(head, where, job_id=job_id, fingerprint=fingerprint) == 1

    async def close(self, head: FailingHead, said: str) -> None:
        """Nothing is to be done about it any more, and why."""
        await self._set(head, look_at=None, said=said[:MAX_SAID])

    async def _set(self, head: FailingHead, *where: Any, **values: Any) -> int:
        change = (
            update(failing_heads).where(_is(head.repo_id, head.number, head.sha), *where).values(**values)
        )
        async with self._engine.begin() as connection:
            return (await connection.execute(change)).rowcount


def _is(repo_id: int, number: int, sha: str) -> Any:
    table = failing_heads.c
    return and_(table.repo_id == repo_id, table.number == number, table.sha == sha)


def _head(row: Row[Any]) -> FailingHead:
    return FailingHead(
        repo_id=row.repo_id,
        number=row.number,
        sha=row.sha,
        seen_at=row.seen_at,
        look_at=row.look_at,
        job_id=row.job_id,
        fingerprint=row.fingerprint,
    )
