"""Children end with whoever started them, also when that one is cancelled at any step of the start."""

from __future__ import annotations

import asyncio
import contextlib
import os
import uuid
from pathlib import Path

import pytest

from bot import child_process

PIPE = asyncio.subprocess.PIPE


@pytest.fixture
def mark() -> str:
    """What is in the environment of a test's children and of nobody else."""
    return f"child-{uuid.uuid4()}"


async def start(mark: str, script: str) -> asyncio.subprocess.Process:
    return await child_process.start(
        "sh",
        "-c",
        script,
        stdin=PIPE,
        stdout=PIPE,
        stderr=PIPE,
        env={"PATH": os.environ["PATH"], "MARK": mark},
    )


def alive(mark: str) -> list[int]:
    """The processes with ``mark`` that have not ended."""
    found = []
    for process in Path("/proc").glob("[0-9]*"):
        with contextlib.suppress(OSError):
            environment = (process / "environ").read_bytes().split(b"\0")
            dead = (process / "stat").read_text().rpartition(")")[2].split()[0] == "Z"
            if f"MARK={mark}".encode() in environment and not dead:
                found.append(int(process.name))
    return found


async def nobody(mark: str) -> None:
    """Return when all are dead: those that are not our own children may take a moment after their kill."""
    async with asyncio.timeout(10):
        while alive(mark):
            await asyncio.sleep(0.01)


@pytest.mark.parametrize("steps", range(8))
async def test_cancelled_in_the_middle_of_the_start(mark: str, steps: int):
    # the grandchild holds the pipes: whoever waits for their end before killing it waits for ever
    starting = asyncio.create_task(start(mark, "sleep 1000 & echo started; wait"))
    for _ in range(steps):
        await asyncio.sleep(0)
    starting.cancel()
    async with asyncio.timeout(10):
        if steps < 3:  # later it may have been ready, on a fast machine
            with pytest.raises(asyncio.CancelledError):
                await starting
        else:
            with contextlib.suppress(asyncio.CancelledError):
                await child_process.end(await starting)
    await nobody(mark)


async def test_cancelled_again_while_it_is_being_ended(mark: str):
    starting = asyncio.create_task(start(mark, "sleep 1000 & wait"))
    await asyncio.sleep(0)
    for _ in range(5):
        starting.cancel()
        await asyncio.sleep(0)
    async with asyncio.timeout(10):
        with pytest.raises(asyncio.CancelledError):
            await starting
    assert not alive(mark)


async def test_the_end_is_the_end_of_the_whole_group(mark: str):
    process = await start(mark, "sleep 1000 & echo started; wait")
    assert process.stdout is not None
    assert await process.stdout.readline() == b"started\n"
    assert len(alive(mark)) == 2
    await child_process.end(process)
    assert process.returncode is not None
    await nobody(mark)


async def test_the_end_of_what_has_ended(mark: str):
    process = await start(mark, "exit 3")
    await process.wait()
    await child_process.end(process)
    assert process.returncode == 3


async def test_a_program_that_is_not_there(mark: str):
    with pytest.raises(FileNotFoundError):
        await child_process.start("no-such-program", stdin=PIPE, stdout=PIPE, stderr=PIPE)
    starting = asyncio.create_task(
        child_process.start("no-such-program", stdin=PIPE, stdout=PIPE, stderr=PIPE)
    )
    await asyncio.sleep(0)
    starting.cancel()
    with pytest.raises((asyncio.CancelledError, FileNotFoundError)):
        await starting
