"""Where the App is installed, in SQL; and what else there has to follow when a repository moves."""

from __future__ import annotations

from collections.abc import Collection, Mapping
from dataclasses import dataclass
from datetime import UTC, datetime
from typing import Any

from sqlalchemy import Row, and_, or_, select, update
from sqlalchemy.dialects import postgresql, sqlite
from sqlalchemy.ext.asyncio import AsyncEngine

from bot.model import FINAL_STATES, Repo
from bot.schema import approvals, installations, jobs

_FINAL = [str(state) for state in FINAL_STATES]


@dataclass(frozen=True, kw_only=True)
class Installation:
    """The App on one account, as we were last told."""

    id: int
    account: str
    account_type: str = "User"  # or "Organization"
    suspended: bool = False
    removed: bool = False
    permissions: Mapping[str, str]


class InstallationStore:
    """Reads and writes the table ``installations``. Methods raise SQLAlchemyError when the database does not answer."""

    def __init__(self, engine: AsyncEngine) -> None:
        self._engine = engine

    async def get(self, installation_id: int) -> Installation | None:
        """What we know of an installation; None when it was never told of."""
        query = select(installations).where(installations.c.id == installation_id)
        async with self._engine.connect() as connection:
            row = (await connection.execute(query)).one_or_none()
        return None if row is None else _installation(row)

    async def all(self) -> list[Installation]:
        """All that were ever told of, the removed ones included."""
        async with self._engine.connect() as connection:
            rows = await connection.execute(select(installations).order_by(installations.c.id))
            return [_installation(row) for row in rows]

    async def put(self, installation: Installation) -> None:
        """Remember how an installation is now."""
        new = {
            "account": installation.account[:120],
            "account_type": installation.account_type[:20],
            "suspended": installation.suspended,
            "removed": installation.removed,
            "permissions": dict(installation.permissions),
            "updated_at": datetime.now(UTC),
        }
        insert = sqlite.insert if self._engine.dialect.name == "sqlite" else postgresql.insert
        statement = (
            insert(installations)
            .values(id=installation.id, **new)
            .on_conflict_do_update(index_elements=["id"], set_=new)
        )
        async with self._engine.begin() as connection:
            await connection.execute(statement)

    async def open_jobs(self, installation_id: int, repo_ids: Collection[int] | None = None) -> list[str]:
        """Ids of the jobs of an installation (None: of all its repositories) that have not ended, oldest first."""
        where = and_(jobs.c.installation_id == installation_id, jobs.c.state.not_in(_FINAL))
        if repo_ids is not None:
            where = and_(where, jobs.c.repo_id.in_(list(repo_ids)))
        query = select(jobs.c.id).where(where).order_by(jobs.c.created_at)
        async with self._engine.connect() as connection:
            return list((await connection.execute(query)).scalars())

    async def elsewhere(self, repo: Repo) -> list[int]:
        """The installations, other than its own now, under which a repository has jobs that have not ended."""
        where = and_(
            jobs.c.repo_id == repo.id,
            jobs.c.installation_id != repo.installation_id,
            jobs.c.state.not_in(_FINAL),
        )
        query = select(jobs.c.installation_id).where(where).distinct()
        async with self._engine.connect() as connection:
            return list((await connection.execute(query)).scalars())

    async def moved(self, repo: Repo) -> int:
        """Let the jobs and approvals of a repository have its new name and installation; how many jobs did not yet."""
        new = {"repo_owner": repo.owner, "repo_name": repo.name, "installation_id": repo.installation_id}
        async with self._engine.begin() as connection:
            counts = [
                (
                    await connection.execute(
                        update(table)
                        .where(
                            table.c.repo_id == repo.id,
                            or_(*(table.c[name] != value for name, value in new.items())),
                        )
                        .values(**new)
                    )
                ).rowcount
                for table in (jobs, approvals)
            ]
        return counts[0]

    async def tell_nobody(self, installation_id: int, repo_ids: Collection[int] | None = None) -> int:
        """Take the ends of jobs as told, where nobody can be told any more; how many they were."""
        where = and_(
            jobs.c.installation_id == installation_id,
            jobs.c.state.in_(_FINAL),
            or_(jobs.c.reported.is_(None), jobs.c.reported != jobs.c.state),
        )
        if repo_ids is not None:
            where = and_(where, jobs.c.repo_id.in_(list(repo_ids)))
        async with self._engine.begin() as connection:
            done = await connection.execute(update(jobs).where(where).values(reported=jobs.c.state))
        return done.rowcount


def _installation(row: Row[Any]) -> Installation:
    return Installation(
        id=row.id,
        account=row.account,
        account_type=row.account_type,
        suspended=row.suspended,
        removed=row.removed,
        permissions=row.permissions,
    )
