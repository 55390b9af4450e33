"""Telling people how far it is, behind the work's back: GitHub's slowness must not slow an agent down."""

from __future__ import annotations

import asyncio
from collections.abc import Awaitable, Callable

import structlog
from sqlalchemy.exc import SQLAlchemyError

from bot.errors import ConductorError, InfrastructureError

log = structlog.get_logger(__name__)

CLOSE_TIMEOUT = 30.0  # seconds for a report that is under way

Report = Callable[[], Awaitable[object]]

_AWAY = (SQLAlchemyError, OSError)  # the database, or our own disk


async def look_while(running: asyncio.Future[None], look: Report, *, every: float) -> None:
    """Call ``look`` every so many seconds, as long as ``running`` is not done.

    What it depends on may be away for a while: then the next look is tried. Raises what else it raises, such as
    StaleAttempt.
    """
    while True:
        await asyncio.wait((running,), timeout=every)
        if running.done():
            return
        try:
            await look()
        except (InfrastructureError, *_AWAY) as error:
            log.warning("a look at an agent's progress failed", error=str(error).split("\n")[0])


class Progress:
    """One report at a time, in order; of those of the same kind that wait, only the newest is made."""

    def __init__(self) -> None:
        self._waiting: dict[str, Report] = {}
        self._task: asyncio.Task[None] | None = None

    def tell(self, kind: str, report: Report) -> None:
        """Make ``report`` soon, instead of an older one of its ``kind`` that still waits."""
        self._waiting.pop(kind, None)
        self._waiting[kind] = report
        if self._task is None or self._task.done():
            self._task = asyncio.create_task(self._make())

    async def _make(self) -> None:
        while self._waiting:
            kind = next(iter(self._waiting))
            report = self._waiting.pop(kind)
            try:
                await report()
            except (ConductorError, *_AWAY) as error:
                log.warning("not reported", kind=kind, error=str(error).split("\n")[0])

    async def close(self, *drop: str) -> None:
        """Return when nothing more will be told: what comes next must not be overtaken by what was before.

        Reports of the kinds ``drop`` that wait are left out.
        """
        for kind in drop:
            self._waiting.pop(kind, None)
        if self._task is not None:
            await asyncio.wait((self._task,), timeout=CLOSE_TIMEOUT)
            self._task.cancel()
            await asyncio.gather(self._task, return_exceptions=True)
            self._task = None
