"""Repositories that wait to be set up, because many came at once: one after the other, also after a restart."""

from __future__ import annotations

from collections.abc import Sequence
from datetime import UTC, datetime, timedelta

import structlog
from pydantic import BaseModel, TypeAdapter, ValidationError

from bot.cursors import Cursors
from bot.locks import Locks
from bot.model import Repo

log = structlog.get_logger(__name__)

CURSOR = "setup-backlog"
#: Between two of them. What creates content is limited to 500 requests an hour, and people's answers need most of it:
#: https://docs.github.com/en/rest/using-the-rest-api/rate-limits-for-the-rest-api#about-secondary-rate-limits
PAUSE = timedelta(minutes=1)
#: More do not wait: some days are enough for a convenience.
MOST = 5_000


class _Entry(BaseModel):
    id: int
    owner: str
    name: str
    installation_id: int
    delivery_id: str  # that brought it

    @property
    def repo(self) -> Repo:
        return Repo(owner=self.owner, name=self.name, id=self.id, installation_id=self.installation_id)


_LIST = TypeAdapter(list[_Entry])


class SetupBacklog:
    """A line of repositories. Methods raise SQLAlchemyError when the database does not answer."""

    def __init__(self, cursors: Cursors, locks: Locks, *, pause: timedelta = PAUSE) -> None:
        self._cursors = cursors
        self._locks = locks
        self._pause = pause

    async def add(self, repos: Sequence[Repo], delivery_id: str) -> None:
        """Let ``repos`` wait behind the others; one that waits already keeps its place."""
        async with self._locks.hold(CURSOR):
            entries, _ = await self._read()
            known = {one.id for one in entries}
            entries += [
                _Entry(
                    id=repo.id,
                    owner=repo.owner,
                    name=repo.name,
                    installation_id=repo.installation_id,
                    delivery_id=delivery_id,
                )
                for repo in repos
                if repo.id not in known
            ]
            if len(entries) > MOST:
                log.warning("not every repository is set up", left_out=len(entries) - MOST)
            await self._write(entries[:MOST])

    async def first(self) -> tuple[Repo, str] | None:
        """The repository whose turn it is and the delivery that brought it; None when there is none, or not yet."""
        entries, written = await self._read()
        if not entries or datetime.now(UTC) - written < self._pause:
            return None
        return entries[0].repo, entries[0].delivery_id

    async def done(self, repo: Repo, *, again: bool = False) -> None:
        """``repo`` waits no more; ``again``: it does, behind the others."""
        async with self._locks.hold(CURSOR):
            entries, _ = await self._read()
            others = [one for one in entries if one.id != repo.id]
            await self._write(others + [one for one in entries if again and one.id == repo.id])

    async def _read(self) -> tuple[list[_Entry], datetime]:
        found = await self._cursors.get(CURSOR)
        if found is None:
            return [], datetime.min.replace(tzinfo=UTC)
        try:
            return _LIST.validate_json(found[0]), found[1]
        except ValidationError:
            log.error("the line of repositories to set up makes no sense; it is begun anew")
            return [], found[1]

    async def _write(self, entries: list[_Entry]) -> None:
        await self._cursors.set(CURSOR, _LIST.dump_json(entries).decode())
