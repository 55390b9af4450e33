"""Wakes worker hosts when there is something for them to do.

SQL says what waits, and a host that is woken takes the best of that (``Store.claim_next``). So what goes through Redis
is a wake-up and no order: one for each job that may start now, for every combination of capabilities that a host which
is there has and that is enough. A host that finds nothing drops it. Whatever makes jobs startable (an end, a
cancellation, a pause, an answer, a new host) calls :meth:`Scheduler.offer_waiting` after its commit; housekeeping does
so every ten seconds, for the case that somebody died in between.
"""

from __future__ import annotations

import structlog
from sqlalchemy.exc import SQLAlchemyError

from bot.claims import needs_of
from bot.errors import InfrastructureError
from bot.model import Job
from bot.queue import Dispatcher
from bot.store import Store

log = structlog.get_logger(__name__)


class Scheduler:
    """Offers jobs to the hosts that can do them. Every method may be repeated."""

    def __init__(self, store: Store, dispatcher: Dispatcher) -> None:
        self._store = store
        self._dispatcher = dispatcher

    async def offer(self, job: Job) -> None:
        """Wake a host for this job. When Redis is away it waits: housekeeping offers it again."""
        await self._offer([(job.id, job.queue)])

    async def offer_waiting(self) -> None:
        """Wake hosts for every job that may start now. Troubles are logged: housekeeping tries again."""
        try:
            startable = await self._store.startable()
        except (SQLAlchemyError, OSError) as error:
            log.warning("not offered yet", error=str(error).split("\n")[0])
            return
        await self._offer(startable)

    async def _offer(self, startable: list[tuple[str, str]]) -> None:
        try:
            for serves in await self._store.present() if startable else ():
                fitting = [job_id for job_id, queue in startable if needs_of(queue) <= serves]
                await self._dispatcher.offer(fitting, serves)
        except (InfrastructureError, SQLAlchemyError, OSError) as error:
            log.warning("not offered yet", error=str(error).split("\n")[0])
