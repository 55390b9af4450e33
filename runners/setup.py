"""A repository's set-up steps: run once in a locked container, what they leave in the home folder becomes an image.

The container is an attempt's in everything: no network but the gateway, no rights, no secret, limits. The steps run in
a checkout of the default branch. The image gets a copy of the home folder, made by us: nothing of the container's own
configuration, so also not its token, can get into it.
"""

from __future__ import annotations

import asyncio
import secrets
import shlex
import shutil
from collections import deque
from collections.abc import AsyncIterator, Callable, Mapping, Sequence
from contextlib import asynccontextmanager
from pathlib import Path
from typing import Any

import structlog

from bot.errors import InfrastructureError, JobFailed
from bot.images import ImageNeeds
from bot.model import FailureKind, Phase
from bot.ports import ContainerSpec, Exit, Handle, Limits, Runner
from runners.gateway.desk import Desk, Outcome
from runners.gateway.server import Gateway

PREFIX = "setup-"
TURN = 1
TAIL_LINES = 40
STOP_GRACE = 5.0  # seconds
OVERTIME = 60.0  # seconds after the steps' own time before the container is stopped from outside
WEIGH_INTERVAL = 30.0  # seconds between looks at the disk
MAX_OUTPUT = 20 << 20  # bytes of the steps' output that are kept

_log = structlog.get_logger(__name__)


class SetupFailed(JobFailed):
    """A set-up step failed, or all of them took too long; ``tail`` holds the last lines of their output."""

    def __init__(self, kind: FailureKind, message: str, tail: str) -> None:
        said = f"{message}\n\n{tail}" if tail else message
        hint = (
            "Correct `image.setup` in the repository's configuration on its default branch, then ask again."
        )
        super().__init__(Phase.image, kind, said, hint)
        self.tail = tail


class SetupRoom:
    """Runs set-up steps on this host.

    ``timeout`` in seconds, ``workspace`` in bytes on disk. ``environment`` gives the variables of the egress proxy for
    a desk's token.
    """

    def __init__(
        self,
        runner: Runner,
        gateway: Gateway,
        *,
        folder: Path,
        limits: Limits,
        shim_argv: Sequence[str],
        timeout: float,
        workspace: int,
        environment: Callable[[str], Mapping[str, str]],
        weigh_interval: float = WEIGH_INTERVAL,
    ) -> None:
        self._runner = runner
        self._gateway = gateway
        self._folder = folder
        self._limits = limits
        self._shim_argv = shim_argv
        self._timeout = timeout
        self._workspace = workspace
        self._weigh_interval = weigh_interval
        self._environment = environment
        self.running: set[str] = set()  # attempt ids

    @asynccontextmanager
    async def done(self, image: str, needs: ImageNeeds, tell: Callable[[str], None]) -> AsyncIterator[Handle]:
        """The ended container of ``image`` in which the steps of ``needs`` have run; removed after the block.

        ``tell`` hears each line of their output. Raises SetupFailed, InfrastructureError.
        """
        attempt_id = f"{PREFIX}{secrets.token_hex(8)}"
        self.running.add(attempt_id)
        directory = self._folder / attempt_id
        handle: Handle | None = None
        desk: Desk | None = None
        try:
            # nobody pays for a model here, so none is to be had
            terms = needs.terms.model_copy(update={"budget_job": 0.0})
            desk = Desk.create(
                directory, attempt_id=attempt_id, mirror=needs.mirror, terms=terms, max_recorded=MAX_OUTPUT
            )
            await self._gateway.open(desk)
            handle = await self._runner.start(self._spec(attempt_id, image, desk, needs))
            desk.give(self._turn(needs, self._environment(desk.token)))
            await self._finish(desk, handle, tell)
            yield handle
        finally:
            # also when this process is told to end: nobody adopts it
            await asyncio.shield(self._clear(attempt_id, directory, desk, handle))
            self.running.discard(attempt_id)

    async def _finish(self, desk: Desk, handle: Handle, tell: Callable[[str], None]) -> None:
        tail: deque[str] = deque(maxlen=TAIL_LINES)
        outcome = asyncio.create_task(desk.outcome(TURN))
        ended = asyncio.create_task(self._runner.wait(handle))
        listening = asyncio.create_task(_listen(desk, tail, tell))
        full = asyncio.create_task(self._full(handle))
        try:
            await asyncio.wait(
                (outcome, ended, full), timeout=self._timeout + OVERTIME, return_when=asyncio.FIRST_COMPLETED
            )
            if full.done():
                await full
                message = f"The set-up steps wrote more than {self._workspace >> 20} MiB."
                raise SetupFailed(FailureKind.disk, message, "\n".join(tail))
            if not outcome.done() and ended.done():
                # what it sent may still be on its way
                await asyncio.wait((outcome,), timeout=STOP_GRACE)
            if outcome.done():
                await listening
                desk.finish()
                await asyncio.wait((ended,), timeout=STOP_GRACE)
            late = not ended.done()
            await self._runner.stop(handle, STOP_GRACE)
            exit_ = await ended
            if exit_.host and not outcome.done():
                raise InfrastructureError(
                    "The engine or the host was restarted during the set-up steps.", "They can be run again."
                )
            failure = self._failure(outcome.result() if outcome.done() else None, exit_, late)
            if failure is not None:
                raise SetupFailed(*failure, "\n".join(tail))
        finally:
            for task in (outcome, ended, listening, full):
                task.cancel()
            await asyncio.gather(outcome, ended, listening, full, return_exceptions=True)

    async def _full(self, handle: Handle) -> None:
        """Return when more is on the disk than may be. Raises InfrastructureError."""
        while True:
            await asyncio.sleep(self._weigh_interval)
            if (await self._runner.workspace_bytes()).get(handle.attempt_id, 0) > self._workspace:
                return

    def _failure(self, outcome: Outcome | None, exit_: Exit, late: bool) -> tuple[FailureKind, str] | None:
        if outcome is not None and not outcome.error and outcome.exit_code == 0 and not outcome.timed_out:
            return None
        if exit_.oom:
            return FailureKind.oom, "The set-up steps used up their memory."
        if (outcome is None and late) or (outcome is not None and outcome.timed_out):
            return FailureKind.timeout, f"The set-up steps did not end within {self._timeout:g} seconds."
        if outcome is None:
            return FailureKind.crash, "The container of the set-up steps ended by itself."
        if outcome.error:
            return FailureKind.infrastructure, outcome.error
        if outcome.exit_code is None:
            return FailureKind.agent, f"A set-up step was ended by signal {outcome.signal}."
        return FailureKind.agent, f"A set-up step failed (exit code {outcome.exit_code})."

    async def _clear(
        self, attempt_id: str, directory: Path, desk: Desk | None, handle: Handle | None
    ) -> None:
        try:
            await self._gateway.close(attempt_id)
            if desk is not None:
                desk.close()
            # a start that was broken off may have left a container, too
            await self._runner.remove(handle or Handle(attempt_id=attempt_id, ref=""))
        finally:
            await asyncio.to_thread(shutil.rmtree, directory, ignore_errors=True)

    def _spec(self, attempt_id: str, image: str, desk: Desk, needs: ImageNeeds) -> ContainerSpec:
        return ContainerSpec(
            attempt_id=attempt_id,
            image=image,
            argv=self._shim_argv,
            env={"CONDUCTOR_TOKEN": desk.token},
            socket_dir=desk.socket_dir,
            mirror=needs.mirror,
            limits=self._limits,
            labels={"agent-conductor.purpose": "setup"},
        )

    def _turn(self, needs: ImageNeeds, environment: Mapping[str, str]) -> dict[str, Any]:
        return {
            "number": TURN,
            "command": {
                "argv": ["bash", "--noprofile", "--norc", "-s"],
                "stdin": script(needs.setup),
                "env": dict(environment),
                "files": {},
            },
            "timeout": self._timeout,
            "checkout": {"base_sha": needs.revision, "branch": "work", "restore": []},
            "checkpoint_every": self._timeout + OVERTIME * 2,
            "hand_in": False,
            "session_paths": [],
            "commit": {"name": "setup", "email": "setup@localhost", "message": ""},
        }


def script(steps: Sequence[str]) -> str:
    """One bash script that runs each step in a bash of its own, as GitHub Actions runs steps, until one fails."""
    lines = []
    for number, step in enumerate(steps, 1):
        heading = (
            f"Set-up step {number} of {len(steps)}: {step.strip().splitlines()[0] if step.strip() else ''}"
        )
        lines += [
            f"printf '%s\\n' {shlex.quote(heading)}",
            f"bash --noprofile --norc -eo pipefail -c {shlex.quote(step)} </dev/null || exit",
        ]
    return "\n".join(lines)


async def _listen(desk: Desk, tail: deque[str], tell: Callable[[str], None]) -> None:
    async for event in desk.events(turn=TURN):
        tail.append(event.line)
        tell(event.line)
