"""Telling people how far it is, behind the work's back: GitHub's slowness must not slow an agent down."""

from __future__ import annotations

import asyncio
from collections.abc import Awaitable, Callable

import structlog

from bot.errors import ConductorError

log = structlog.get_logger(__name__)

CLOSE_TIMEOUT = 30.0  # seconds for a report that is under way

Report = Callable[[], Awaitable[object]]


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
            except ConductorError as error:
                log.warning("not reported", kind=kind, error=str(error))

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
