"""What only the local runner has to bear: its own first process, its state on disk, no engine to fall back on."""

from __future__ import annotations

import asyncio
import json
import os
import signal
from collections.abc import AsyncIterator
from pathlib import Path

import pytest

from bot.config import fixed_settings
from bot.errors import InfrastructureError
from bot.ports import Exit, Handle
from runners.local import LocalRunner
from tests import containers


@pytest.fixture
async def runner(tmp_path: Path) -> AsyncIterator[LocalRunner]:
    made = LocalRunner(fixed_settings(host_name="h", data_dir=tmp_path / "data", allow_local_runner=True))
    yield made
    for handle in await made.list():
        await made.remove(handle)
    await made.close()


def _state(folder: Path, handle: Handle) -> Path:
    return folder / "data" / "attempts" / handle.attempt_id / "process.json"


async def _running(runner: LocalRunner, folder: Path, marker: str) -> Handle:
    handle = await runner.start(containers.spec("unused", ["setsid", "sleep", marker], folder))

    async def born() -> bool:
        return bool(containers.processes_with(marker))

    await containers.until(born, "the program")
    return handle


async def test_a_first_process_that_is_killed_takes_all_with_it(runner: LocalRunner, tmp_path: Path) -> None:
    marker = containers.new_marker()
    handle = await _running(runner, tmp_path, marker)
    waiter = asyncio.create_task(runner.wait(handle))
    os.kill(int(handle.ref), signal.SIGKILL)
    assert await waiter == Exit(code=None)
    assert containers.processes_with(marker) == []


async def test_a_stop_is_remembered_by_the_next_worker(runner: LocalRunner, tmp_path: Path) -> None:
    handle = await _running(runner, tmp_path, containers.new_marker())
    await runner.stop(handle, 10)
    heir = LocalRunner(fixed_settings(host_name="h", data_dir=tmp_path / "data", allow_local_runner=True))
    assert (await heir.wait(handle)).stopped


async def test_a_process_of_before_a_reboot_is_not_touched(runner: LocalRunner, tmp_path: Path) -> None:
    marker = containers.new_marker()
    handle = await _running(runner, tmp_path, marker)
    state = _state(tmp_path, handle)
    text = state.read_text()
    state.write_text(json.dumps(json.loads(text) | {"boot": "another"}))
    assert [each.running for each in await runner.list()] == [False]
    await runner.stop(handle, 0)
    assert await runner.wait(handle) == Exit(code=None, host=True)
    assert len(containers.processes_with(marker)) == 1
    state.write_text(text)


async def test_a_pid_that_was_given_to_another_process_is_not_touched(
    runner: LocalRunner, tmp_path: Path
) -> None:
    handle = await _running(runner, tmp_path, containers.new_marker())
    state = _state(tmp_path, handle)
    text = state.read_text()
    bystander = await asyncio.create_subprocess_exec("sleep", "600", start_new_session=True)
    state.write_text(json.dumps(json.loads(text) | {"pid": bystander.pid}))
    assert [each.running for each in await runner.list()] == [False]
    await runner.stop(handle, 0)
    assert bystander.returncode is None
    assert Path(f"/proc/{bystander.pid}/cmdline").read_bytes() == b"sleep\x00600\x00"
    bystander.kill()
    await bystander.wait()
    state.write_text(text)


@pytest.mark.parametrize("text", ["", "[]", "{", "null"])
async def test_a_damaged_state_is_an_ended_attempt_that_can_be_removed(
    runner: LocalRunner, tmp_path: Path, text: str
) -> None:
    folder = tmp_path / "data" / "attempts" / "a-1"
    folder.mkdir(parents=True)
    (folder / "process.json").write_text(text)
    (handle,) = await runner.list()
    assert (handle.attempt_id, handle.running) == ("a-1", False)
    assert await runner.wait(handle) == Exit(code=None)
    await runner.remove(handle)
    assert not folder.exists()


async def test_files_of_others_beside_the_attempts_own_are_kept(runner: LocalRunner, tmp_path: Path) -> None:
    handle = await _running(runner, tmp_path, containers.new_marker())
    folder = _state(tmp_path, handle).parent
    (folder / "events.jsonl").write_text("kept")
    await runner.remove(handle)
    assert [path.name for path in folder.iterdir()] == ["events.jsonl"]


async def test_a_data_folder_that_cannot_be_used_is_told(tmp_path: Path) -> None:
    (tmp_path / "data").write_text("a file")
    runner = LocalRunner(fixed_settings(host_name="h", data_dir=tmp_path / "data", allow_local_runner=True))
    with pytest.raises(InfrastructureError, match=r"could not make .*Check CONDUCTOR_DATA_DIR"):
        await runner.check()
    with pytest.raises(
        InfrastructureError, match=r"could not start an attempt in .*Check CONDUCTOR_DATA_DIR"
    ):
        await runner.start(containers.spec("unused", ["true"], tmp_path))


async def test_what_the_program_says_to_its_terminal_is_kept_for_the_developer(
    runner: LocalRunner, tmp_path: Path
) -> None:
    spec = containers.spec("unused", ["sh", "-c", "echo out; echo err >&2; cat"], tmp_path)
    handle = await runner.start(spec)
    assert await runner.wait(handle) == Exit(code=0)  # `cat` ended: there is no input
    assert (_state(tmp_path, handle).parent / "output.log").read_text() == "out\nerr\n"
