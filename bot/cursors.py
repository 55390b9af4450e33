"""How far something was read, kept over restarts and shared by all servers."""

from __future__ import annotations

from datetime import UTC, datetime

from sqlalchemy import select
from sqlalchemy.dialects import postgresql, sqlite
from sqlalchemy.ext.asyncio import AsyncEngine

from bot.schema import cursors


class Cursors:
    """Named positions. Methods raise SQLAlchemyError when the database does not answer."""

    def __init__(self, engine: AsyncEngine) -> None:
        self._engine = engine

    async def get(self, name: str) -> tuple[str, datetime] | None:
        """The position ``name`` and when it was written; None when it never was."""
        query = select(cursors.c.value, cursors.c.updated_at).where(cursors.c.name == name)
        async with self._engine.connect() as connection:
            row = (await connection.execute(query)).one_or_none()
        return None if row is None else (row.value, row.updated_at)

    async def set(self, name: str, value: str) -> None:
        """Write the position ``name`` down."""
        insert = sqlite.insert if self._engine.dialect.name == "sqlite" else postgresql.insert
        new = {"value": value, "updated_at": datetime.now(UTC)}
        statement = (
            insert(cursors).values(name=name, **new).on_conflict_do_update(index_elements=["name"], set_=new)
        )
        async with self._engine.begin() as connection:
            await connection.execute(statement)
