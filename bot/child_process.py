"""Child processes that are gone when whoever started them gives up, also in the middle of the start."""

from __future__ import annotations

import asyncio
import contextlib
import os
import signal
from collections.abc import Mapping
from pathlib import Path

_READ = 64 * 2**10


async def start(
    *argv: str,
    stdin: int,
    stdout: int,
    stderr: int,
    env: Mapping[str, str] | None = None,
    cwd: Path | str | None = None,
    umask: int = -1,
) -> asyncio.subprocess.Process:
    """Start ``argv`` in a session, and so in a process group, of its own.

    Cancelled before the child is ready, it ends the child's whole group and then raises CancelledError. asyncio's
    own way would end the child alone, and wait for ever when something that the child started holds its pipes:
    https://github.com/python/cpython/issues/103847

    ``stdin``, ``stdout``, ``stderr`` and ``umask`` are as in :class:`subprocess.Popen`. Raises OSError when the
    program cannot be started.
    """
    starting = asyncio.ensure_future(
        asyncio.create_subprocess_exec(
            *argv,
            stdin=stdin,
            stdout=stdout,
            stderr=stderr,
            env=env,
            cwd=cwd,
            umask=umask,
            start_new_session=True,
        )
    )
    try:
        return await asyncio.shield(starting)
    except asyncio.CancelledError:
        await _whatever_comes(asyncio.ensure_future(_started_and_ended(starting)))
        raise


def kill_group(process: asyncio.subprocess.Process) -> None:
    """Kill everything in the child's group; also when the child has ended, as others may hold its pipes."""
    with contextlib.suppress(ProcessLookupError):
        os.killpg(process.pid, signal.SIGKILL)


async def end(process: asyncio.subprocess.Process) -> None:
    """Kill the child's group and wait for the child, also if we are cancelled (again) meanwhile."""
    kill_group(process)
    await _whatever_comes(asyncio.ensure_future(_reaped(process)))


async def _started_and_ended(starting: asyncio.Future[asyncio.subprocess.Process]) -> None:
    with contextlib.suppress(OSError):  # it never ran
        process = await starting
        kill_group(process)
        await _reaped(process)


async def _reaped(process: asyncio.subprocess.Process) -> None:
    if process.stdin is not None:
        process.stdin.close()
    for pipe in (process.stdout, process.stderr):
        while pipe is not None and await pipe.read(_READ):
            pass
    await process.wait()


async def _whatever_comes(work: asyncio.Future[None]) -> None:
    """Wait for ``work``; a cancellation meanwhile is raised when it is done."""
    cancelled: asyncio.CancelledError | None = None
    while not work.done():
        try:
            await asyncio.shield(work)
        except asyncio.CancelledError as error:
            cancelled = error
    if cancelled is not None:
        raise cancelled
