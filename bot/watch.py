"""Waiting for a turn's end, whatever ends it: the agent, its container, a person, a limit, the gateway."""

from __future__ import annotations

import asyncio
import enum
import time
from collections.abc import Awaitable, Callable
from dataclasses import dataclass
from datetime import UTC, datetime

import structlog

from bot.errors import ConductorError
from bot.ports import Exit, Handle, Runner
from runners.gateway.desk import Desk, Outcome

log = structlog.get_logger(__name__)

GRACE = 30.0  # seconds for the shim to end the agent, checkpoint and report
OVERTIME = 60.0  # seconds after the deadline before the container is stopped from outside
EXIT_WAIT = 120.0  # seconds for a container whose agent was stopped to end; the engine may be away meanwhile
OUTCOME_WAIT = 5.0  # seconds for a posted outcome to arrive after the container has ended
SILENT = 180.0  # seconds without any call of the shim, which calls every ten
LOOK_INTERVAL = 5.0  # seconds between two looks at the limits
WEIGH_INTERVAL = 30.0  # seconds between two looks at the disk


class Cause(enum.StrEnum):
    """What ended a turn."""

    outcome = "outcome"  # the shim reported it
    container = "container"  # the container ended without a report
    stopped = "stopped"  # a person wants it to end
    halted = "halted"  # the gateway wants it to end: the desk says why
    deadline = "deadline"
    idle = "idle"
    silent = "silent"  # the container runs, but nothing in it answers
    disk = "disk"


@dataclass(frozen=True, kw_only=True)
class Ending:
    """How a turn ended, with what is known of it."""

    cause: Cause
    outcome: Outcome | None = None
    exit: Exit | None = None


class TurnWatch:
    """Watches one turn of a running container. ``weigh`` tells the bytes of its workspace and home."""

    def __init__(
        self,
        runner: Runner,
        desk: Desk,
        handle: Handle,
        *,
        turn: int,
        deadline: datetime,
        idle: float | None,
        workspace: int,
        weigh: Callable[[str], Awaitable[int]],
    ) -> None:
        self._runner = runner
        self._desk = desk
        self._handle = handle
        self._turn = turn
        self._deadline = deadline
        self._idle = idle
        self._workspace = workspace
        self._weigh = weigh
        self._started = time.monotonic()
        self._weighed = float("-inf")

    async def wait(self, stop: asyncio.Event) -> Ending:
        """Return when the turn is over. For any other cause than its own end the container was stopped."""
        outcome = asyncio.create_task(self._desk.outcome(self._turn))
        ended = asyncio.create_task(self._runner.wait(self._handle))
        halted = asyncio.create_task(self._desk.wait_halted())
        stopped = asyncio.create_task(stop.wait())
        tasks = (outcome, ended, halted, stopped)
        try:
            cause = None
            while cause is None:
                await asyncio.wait(tasks, timeout=LOOK_INTERVAL, return_when=asyncio.FIRST_COMPLETED)
                if outcome.done():
                    if outcome.result().stopped:  # not by us: the container's end tells by whom
                        await asyncio.wait((ended,), timeout=EXIT_WAIT)
                    return Ending(
                        cause=Cause.outcome,
                        outcome=outcome.result(),
                        exit=ended.result() if ended.done() else None,
                    )
                if ended.done():
                    cause = Cause.container
                elif stopped.done():
                    cause = Cause.stopped
                elif halted.done():
                    cause = Cause.halted
                else:
                    cause = await self._over_limit()
            if not ended.done():
                log.info("ending the turn", cause=str(cause))
                await self._runner.stop(self._handle, GRACE)
                await asyncio.wait((ended,), timeout=GRACE)
            # the shim reports before it ends; what it sent may still be on its way
            await asyncio.wait((outcome,), timeout=OUTCOME_WAIT)
            return Ending(
                cause=cause,
                outcome=outcome.result() if outcome.done() else None,
                exit=ended.result() if ended.done() else None,
            )
        finally:
            for task in tasks:
                task.cancel()
            await asyncio.gather(*tasks, return_exceptions=True)

    async def _over_limit(self) -> Cause | None:
        now = time.monotonic()
        if (datetime.now(UTC) - self._deadline).total_seconds() > OVERTIME:
            return Cause.deadline  # the shim keeps the time itself; this is for one that does not
        if now - max(self._desk.last_heard, self._started) > SILENT:
            return Cause.silent
        if self._idle and now - max(self._desk.last_sign, self._started) > self._idle:
            return Cause.idle
        if now - self._weighed > WEIGH_INTERVAL:
            self._weighed = now
            try:
                if await self._weigh(self._handle.attempt_id) > self._workspace:
                    return Cause.disk
            except ConductorError as error:
                log.warning("the workspace was not weighed", error=str(error))
        return None
