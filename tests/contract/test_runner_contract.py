"""The promises of `bot.ports.Runner`, asked of every backend."""

from __future__ import annotations

import asyncio
import json
import os
import signal
import subprocess
import sys
import threading
from collections.abc import AsyncIterator, Mapping
from pathlib import Path
from typing import Any

import pytest

from bot.config import Settings, fixed_settings
from bot.errors import ConfigurationError, InfrastructureError
from bot.ports import ContainerSpec, Exit, Handle, Runner
from runners.backends import create_runner
from tests import containers

#: Says `ready`, then lives until it is killed; SIGTERM does not impress it.
STUBBORN = 'trap "" TERM; echo 1 > "$CONDUCTOR_WORKSPACE/ready"; while :; do sleep 0.05; done'
#: Says `ready`, and `bye` on SIGTERM.
POLITE = (
    'trap "echo 1 > \\"$CONDUCTOR_WORKSPACE/bye\\"; exit 0" TERM; echo 1 > "$CONDUCTOR_WORKSPACE/ready"; '
    "while :; do sleep 0.05; done"
)
#: Ends when the host says so, by a file in the mirror.
OBEDIENT = 'while ! test -e "$CONDUCTOR_MIRROR/go"; do sleep 0.02; done; echo 1 > "$CONDUCTOR_WORKSPACE/went"'


class World:
    """One backend, and how a test looks into its attempts from outside."""

    backend: str
    image = "unused"

    def __init__(self, folder: Path) -> None:
        self.folder = folder
        self.settings = self._settings("mine")
        self.runner = create_runner(self.backend, self.settings)
        self._runners = [self.runner]

    def _settings(self, name: str) -> Settings:
        return fixed_settings(
            host_name=f"{self.folder.name}-{name}", data_dir=self.folder / name, allow_local_runner=True
        )

    def another(self, settings: Settings | None = None) -> Runner:
        """A runner object of a restarted worker, or of a worker with other ``settings``."""
        runner = create_runner(self.backend, settings or self.settings)
        self._runners.append(runner)
        return runner

    def stranger(self) -> Runner:
        """A runner of another worker host on the same machine."""
        return self.another(self._settings("theirs"))

    def spec(self, script: str | list[str], **changes: Any) -> ContainerSpec:
        argv = ["sh", "-c", script] if isinstance(script, str) else script
        return containers.spec(self.image, argv, self.folder, **changes)

    async def start(self, script: str | list[str], **changes: Any) -> Handle:
        return await self.runner.start(self.spec(script, **changes))

    def read(self, handle: Handle, name: str) -> str | None:
        """A file of the attempt's workspace, running or ended."""
        raise NotImplementedError

    def traces(self, handle: Handle) -> list[str]:
        """What is left of the attempt on this machine."""
        raise NotImplementedError

    def expected_environment(self, handle: Handle) -> Mapping[str, str]:
        """What the backend adds to the attempt's own variables."""
        raise NotImplementedError

    async def said(self, handle: Handle, name: str) -> None:
        async def is_there() -> bool:
            return await asyncio.to_thread(self.read, handle, name) is not None

        await containers.until(is_there, f"the file {name} in the workspace")

    async def close(self) -> None:
        cleaner = self.another()
        for handle in await cleaner.list():
            await cleaner.remove(handle)
        for runner in self._runners:
            await runner.close()


class DockerWorld(World):
    backend = "docker"

    def __init__(self, folder: Path) -> None:
        self.client = containers.engine()
        self.image = containers.built(self.client)
        super().__init__(folder)

    def read(self, handle: Handle, name: str) -> str | None:
        return containers.file_in(self.client, handle.ref, f"/workspace/{name}")

    def traces(self, handle: Handle) -> list[str]:
        return containers.traces(self.client, handle.attempt_id)

    def expected_environment(self, handle: Handle) -> Mapping[str, str]:
        return {
            "PATH": "/usr/local/sbin:/usr/local/bin:/usr/sbin:/usr/bin:/sbin:/bin",  # the engine's default
            "HOSTNAME": "agent",
            "LANG": "C.UTF-8",
            "HOME": "/home/agent",
            "CONDUCTOR_WORKSPACE": "/workspace",
            "CONDUCTOR_SOCKET": "/run/conductor/gateway.sock",
            "CONDUCTOR_MIRROR": "/mirror",
            "CONDUCTOR_LISTEN_PORT": "8080",
        }

    async def close(self) -> None:
        try:
            await super().close()
        finally:
            for settings in (self.settings, self._settings("theirs")):
                containers.sweep(self.client, settings.host_name)
            self.client.close()


class LocalWorld(World):
    backend = "local"

    def _attempt(self, handle: Handle) -> Path:
        return self.settings.data_dir / "attempts" / handle.attempt_id

    def read(self, handle: Handle, name: str) -> str | None:
        path = self._attempt(handle) / "workspace" / name
        return path.read_text() if path.exists() else None

    def traces(self, handle: Handle) -> list[str]:
        folder = self._attempt(handle)
        files = [str(path) for path in (folder, *folder.rglob("*")) if path.exists()]
        return files + [f"process {pid}" for pid in containers.processes_of(folder)]

    async def close(self) -> None:
        await super().close()
        left = containers.processes_of(self.folder)
        for pid in left:
            os.kill(pid, signal.SIGKILL)
        assert left == [], "processes outlived the removal of their attempts"

    def expected_environment(self, handle: Handle) -> Mapping[str, str]:
        folder = self._attempt(handle)
        return {
            "PATH": os.environ["PATH"],
            "LANG": "C.UTF-8",
            "HOME": f"{folder}/home",
            "TMPDIR": f"{folder}/tmp",
            "CONDUCTOR_WORKSPACE": f"{folder}/workspace",
            "CONDUCTOR_SOCKET": f"{self.folder}/run/gateway.sock",
            "CONDUCTOR_MIRROR": f"{self.folder}/mirror",
            "CONDUCTOR_LISTEN_PORT": "0",
        }


@pytest.fixture(params=[pytest.param(DockerWorld, id="docker", marks=pytest.mark.docker), LocalWorld])
async def world(request: pytest.FixtureRequest, tmp_path: Path) -> AsyncIterator[World]:
    made = request.param(tmp_path)
    try:
        yield made
    finally:
        await made.close()


async def test_the_backend_can_be_used(world: World) -> None:
    await world.runner.check()


# --- how it ends --------------------------------------------------------------------------------------


@pytest.mark.parametrize("code", [0, 1, 42, 255])
async def test_an_exit_code_is_reported(world: World, code: int) -> None:
    handle = await world.start(f"exit {code}")
    assert await world.runner.wait(handle) == Exit(code=code)


@pytest.mark.parametrize("number", [signal.SIGTERM, signal.SIGKILL, signal.SIGABRT])
async def test_a_death_by_signal_is_reported(world: World, number: signal.Signals) -> None:
    handle = await world.start(f"kill -{int(number)} $$")
    assert await world.runner.wait(handle) == Exit(code=128 + number, signal=number)


async def test_a_program_that_does_not_exist_ends_as_a_shell_says_it(world: World) -> None:
    handle = await world.start(["/no/such/program"])
    assert await world.runner.wait(handle) == Exit(code=127)


async def test_a_program_that_may_not_be_run_ends_as_a_shell_says_it(world: World) -> None:
    handle = await world.start(["/etc/passwd"])
    assert await world.runner.wait(handle) == Exit(code=126)


async def test_arguments_arrive_as_they_were_given(world: World) -> None:
    odd = ["a b", "$HOME", "'\"`", "", "-x", "line\nline", "ümlaut"]
    script = 'for each; do printf "%s\\0" "$each"; done > "$CONDUCTOR_WORKSPACE/arguments"'
    handle = await world.start(["sh", "-c", script, "sh", *odd])
    assert await world.runner.wait(handle) == Exit(code=0)
    assert (world.read(handle, "arguments") or "").split("\0")[:-1] == odd


async def test_many_can_wait_and_again_after_the_end(world: World) -> None:
    handle = await world.start(OBEDIENT + "; exit 7")
    waiters = [asyncio.create_task(world.runner.wait(handle)) for _ in range(5)]
    (world.folder / "mirror" / "go").touch()
    assert await asyncio.gather(*waiters) == [Exit(code=7)] * 5
    assert await world.runner.wait(handle) == Exit(code=7)


async def test_a_cancelled_wait_changes_nothing(world: World) -> None:
    handle = await world.start(OBEDIENT)
    waiter = asyncio.create_task(world.runner.wait(handle))
    await asyncio.sleep(0)
    waiter.cancel()
    with pytest.raises(asyncio.CancelledError):
        await waiter
    (world.folder / "mirror" / "go").touch()
    assert await world.runner.wait(handle) == Exit(code=0)


async def test_different_attempts_do_not_wait_for_each_other(world: World) -> None:
    slow = await world.start(STUBBORN)
    handles = await asyncio.gather(*(world.start(f"exit {code}") for code in range(5)))
    exits = await asyncio.gather(*(world.runner.wait(handle) for handle in handles))
    assert exits == [Exit(code=code) for code in range(5)]
    assert slow.attempt_id in {handle.attempt_id for handle in await world.runner.list() if handle.running}


async def test_idle_attempts_cost_no_thread_each(world: World) -> None:
    handles = await asyncio.gather(*(world.start(OBEDIENT) for _ in range(12)))
    await asyncio.gather(*(world.runner.stop(handle, 0) for handle in handles[:2]))
    before = threading.active_count()
    waiters = [asyncio.create_task(world.runner.wait(handle)) for handle in handles[2:]]
    (world.folder / "mirror" / "go").touch()
    counts = [threading.active_count()]
    for waiter in asyncio.as_completed(waiters):
        assert await waiter == Exit(code=0)
        counts.append(threading.active_count())
    assert max(counts) <= before + 8  # a bounded pool, however many wait; see test_docker_runner for more


async def test_what_a_finished_program_left_running_ends_with_it(world: World) -> None:
    marker = containers.new_marker()
    script = f'setsid sh -c "trap \\"\\" TERM HUP; sleep {marker} & sleep {marker}" & '
    handle = await world.start(
        script + f'nohup sleep {marker} > /dev/null 2>&1 & echo 1 > "$CONDUCTOR_WORKSPACE/ready"; ' + OBEDIENT
    )
    await world.said(handle, "ready")

    async def born() -> bool:
        return len(containers.processes_with(marker)) >= 3

    await containers.until(born, "three processes that try to stay")
    (world.folder / "mirror" / "go").touch()
    assert await world.runner.wait(handle) == Exit(code=0)
    assert containers.processes_with(marker) == []


# --- stop ---------------------------------------------------------------------------------------------


async def test_stop_lets_a_polite_program_say_goodbye(world: World) -> None:
    handle = await world.start(POLITE)
    await world.said(handle, "ready")
    await world.runner.stop(handle, 30)
    assert await world.runner.wait(handle) == Exit(code=0, stopped=True)
    assert world.read(handle, "bye") == "1\n"


async def test_stop_kills_a_program_that_ignores_sigterm(world: World) -> None:
    handle = await world.start(STUBBORN)
    await world.said(handle, "ready")
    waiter = asyncio.create_task(world.runner.wait(handle))
    await world.runner.stop(handle, 0.3)
    assert [each.running for each in await world.runner.list()] == [False]  # it is dead when stop returns
    assert await waiter == Exit(code=137, signal=9, stopped=True)


async def test_stop_kills_everything_in_it(world: World) -> None:
    marker = containers.new_marker()
    child = f'trap \\"\\" TERM HUP INT; sleep {marker} & sleep {marker}; sleep {marker}'
    handle = await world.start(f'setsid sh -c "{child}" & sh -c "{child}" & {STUBBORN}')
    await world.said(handle, "ready")

    async def born() -> bool:
        return len(containers.processes_with(marker)) >= 4

    await containers.until(born, "four grandchildren")
    await world.runner.stop(handle, 0.1)
    assert containers.processes_with(marker) == []


async def test_stop_reaches_a_paused_program(world: World) -> None:
    handle = await world.start(POLITE)
    await world.said(handle, "ready")
    await world.runner.pause(handle)
    await world.runner.stop(handle, 30)
    assert await world.runner.wait(handle) == Exit(code=0, stopped=True)


async def test_stop_kills_a_paused_stubborn_program(world: World) -> None:
    handle = await world.start(STUBBORN)
    await world.said(handle, "ready")
    await world.runner.pause(handle)
    await world.runner.stop(handle, 0)
    assert await world.runner.wait(handle) == Exit(code=137, signal=9, stopped=True)


async def test_stops_from_many_tasks_are_one_stop(world: World) -> None:
    handle = await world.start(STUBBORN)
    await world.said(handle, "ready")
    await asyncio.gather(*(world.runner.stop(handle, 0.2) for _ in range(4)))
    await world.runner.stop(handle, 0.2)
    assert await world.runner.wait(handle) == Exit(code=137, signal=9, stopped=True)


async def test_a_program_that_had_ended_was_not_stopped(world: World) -> None:
    handle = await world.start("exit 3")
    assert await world.runner.wait(handle) == Exit(code=3)
    await world.runner.stop(handle, 1)
    assert await world.runner.wait(handle) == Exit(code=3, stopped=False)


# --- pause --------------------------------------------------------------------------------------------


async def test_pause_freezes_every_process_and_unpause_lets_them_go_on(world: World) -> None:
    other = 'sh -c "while ! test -e \\"$CONDUCTOR_MIRROR/go\\"; do sleep 0.02; done; echo 1 > other"'
    handle = await world.start(f"setsid {other} & echo 1 > ready; {OBEDIENT}; wait")
    await world.said(handle, "ready")
    await world.runner.pause(handle)
    await world.runner.pause(handle)
    (world.folder / "mirror" / "go").touch()
    # each looks for the file fifty times a second; a frozen one cannot, however long this takes
    await asyncio.sleep(0.5)
    assert (world.read(handle, "went"), world.read(handle, "other")) == (None, None)
    assert [each.running for each in await world.runner.list()] == [True]
    await world.runner.unpause(handle)
    await world.runner.unpause(handle)
    assert await world.runner.wait(handle) == Exit(code=0)
    assert (world.read(handle, "went"), world.read(handle, "other")) == ("1\n", "1\n")


async def test_pause_right_after_the_start_holds(world: World) -> None:
    handle = await world.start(OBEDIENT)
    await world.runner.pause(handle)
    (world.folder / "mirror" / "go").touch()
    await asyncio.sleep(0.5)
    assert world.read(handle, "went") is None
    await world.runner.unpause(handle)
    assert await world.runner.wait(handle) == Exit(code=0)
    assert world.read(handle, "went") == "1\n"


# --- repeating ----------------------------------------------------------------------------------------


async def test_calls_on_an_ended_attempt_change_nothing(world: World) -> None:
    handle = await world.start("exit 5")
    await world.runner.wait(handle)
    for _ in range(2):
        await world.runner.pause(handle)
        await world.runner.unpause(handle)
        await world.runner.stop(handle, 1)
    assert await world.runner.wait(handle) == Exit(code=5)


async def test_calls_on_a_removed_attempt_change_nothing(world: World) -> None:
    handle = await world.start(STUBBORN)
    await world.runner.remove(handle)
    for _ in range(2):
        await world.runner.stop(handle, 1)
        await world.runner.pause(handle)
        await world.runner.unpause(handle)
        await world.runner.remove(handle)
    assert await world.runner.list() == []


async def test_removals_from_many_tasks_are_one_removal(world: World) -> None:
    handle = await world.start(STUBBORN)
    await asyncio.gather(*(world.runner.remove(handle) for _ in range(4)))
    assert world.traces(handle) == []


async def test_waiting_for_a_removed_attempt_is_an_error_with_a_next_step(world: World) -> None:
    handle = await world.start("exit 0")
    await world.runner.remove(handle)
    with pytest.raises(InfrastructureError, match=f"{handle.attempt_id} is gone.*can be tried again"):
        await world.runner.wait(handle)


async def test_start_again_finds_the_attempt(world: World) -> None:
    spec = world.spec('echo 1 >> "$CONDUCTOR_WORKSPACE/starts"; ' + STUBBORN)
    first = await world.runner.start(spec)
    await world.said(first, "ready")
    assert first.running
    assert await world.runner.start(spec) == first
    assert await world.another().start(spec) == first
    assert world.read(first, "starts") == "1\n"


async def test_starts_from_many_tasks_are_one_start(world: World) -> None:
    spec = world.spec('echo 1 >> "$CONDUCTOR_WORKSPACE/starts"; ' + STUBBORN)
    handles = await asyncio.gather(*(world.runner.start(spec) for _ in range(4)))
    assert len({handle.ref for handle in handles}) == 1
    await world.said(handles[0], "ready")
    assert world.read(handles[0], "starts") == "1\n"


async def test_start_again_does_not_revive_an_ended_attempt(world: World) -> None:
    spec = world.spec('echo 1 >> "$CONDUCTOR_WORKSPACE/starts"; exit 4')
    handle = await world.runner.start(spec)
    await world.runner.wait(handle)
    again = await world.runner.start(spec)
    assert (again.ref, again.running) == (handle.ref, False)
    assert await world.runner.wait(again) == Exit(code=4)
    assert world.read(handle, "starts") == "1\n"


# --- finding them again -------------------------------------------------------------------------------


async def test_list_finds_the_running_and_the_ended(world: World) -> None:
    assert await world.runner.list() == []
    running = await world.start(STUBBORN)
    ended = await world.start("exit 0")
    await world.runner.wait(ended)
    found = {handle.attempt_id: handle for handle in await world.runner.list()}
    assert found == {
        running.attempt_id: running,
        ended.attempt_id: Handle(attempt_id=ended.attempt_id, ref=ended.ref, running=False),
    }
    await world.runner.remove(ended)
    assert await world.runner.list() == [running]


async def test_list_leaves_out_what_belongs_to_another_host(world: World) -> None:
    await world.start(STUBBORN)
    assert await world.stranger().list() == []


async def test_attempts_go_on_when_the_runner_closes_and_another_takes_over(world: World) -> None:
    handle = await world.start(OBEDIENT + "; exit 6")
    await world.runner.close()
    heir = world.another()
    assert await heir.list() == [handle]
    waiter = asyncio.create_task(heir.wait(handle))
    (world.folder / "mirror" / "go").touch()
    assert await waiter == Exit(code=6)


WORKER = """
import asyncio, json, sys, pathlib
from bot.config import fixed_settings
from bot.ports import ContainerSpec, Limits
from runners.backends import create_runner

async def main():
    order = json.load(sys.stdin)
    settings = fixed_settings(**order["settings"], allow_local_runner=True)
    runner = create_runner(order["backend"], settings)
    paths = {name: pathlib.Path(order["spec"].pop(name)) for name in ("socket_dir", "mirror")}
    limits = Limits(**order["spec"].pop("limits"))
    handle = await runner.start(ContainerSpec(**order["spec"], **paths, limits=limits))
    print(handle.ref, flush=True)
    await runner.wait(handle)

asyncio.run(main())
"""


@pytest.mark.parametrize("ends", ["while nobody looks", "later", "by a stop"])
async def test_a_killed_workers_attempt_is_adopted(world: World, ends: str) -> None:
    spec = world.spec(OBEDIENT + "; exit 6")
    order = {
        "backend": world.backend,
        "settings": {"host_name": world.settings.host_name, "data_dir": str(world.settings.data_dir)},
        "spec": vars(spec) | {"limits": vars(spec.limits)},
    }
    worker = subprocess.Popen(
        [sys.executable, "-c", WORKER], stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True
    )
    assert worker.stdin is not None
    assert worker.stdout is not None
    with worker:
        worker.stdin.write(json.dumps(order, default=str))
        worker.stdin.close()
        ref = await asyncio.to_thread(worker.stdout.readline)
        worker.kill()
    handle = Handle(attempt_id=spec.attempt_id, ref=ref.strip())
    assert await world.runner.list() == [handle]
    if ends == "by a stop":
        await world.runner.stop(handle, 0)
        assert (await world.runner.wait(handle)).stopped
        return
    waiter = None if ends == "while nobody looks" else asyncio.create_task(world.runner.wait(handle))
    (world.folder / "mirror" / "go").touch()
    if waiter is None:

        async def is_over() -> bool:
            return [each.running for each in await world.runner.list()] == [False]

        await containers.until(is_over, "the end of the attempt")
    assert await (waiter or world.runner.wait(handle)) == Exit(code=6)


# --- what the attempt sees ----------------------------------------------------------------------------


async def test_the_environment_is_exactly_what_was_given(
    world: World, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("CANARY_OF_THE_WORKER", "must stay outside")
    given = {"PLAIN": "1", "ODD": "a b\n$HOME '\"=x", "EMPTY": ""}
    handle = await world.start('env -0 > "$CONDUCTOR_WORKSPACE/environment"', env=given)
    assert await world.runner.wait(handle) == Exit(code=0)
    lines = (world.read(handle, "environment") or "").split("\0")[:-1]
    seen = dict(line.split("=", 1) for line in lines)
    seen.pop("PWD", None)  # the shell's own
    assert seen == {**world.expected_environment(handle), **given}


async def test_the_attempt_cannot_rename_its_folders(world: World) -> None:
    given = dict.fromkeys(("HOME", "CONDUCTOR_WORKSPACE", "CONDUCTOR_SOCKET"), "/elsewhere")
    handle = await world.start('pwd > pwd; printf %s "$HOME$CONDUCTOR_SOCKET" > names', env=given)
    assert await world.runner.wait(handle) == Exit(code=0)
    expected = world.expected_environment(handle)
    assert world.read(handle, "pwd") == expected["CONDUCTOR_WORKSPACE"] + "\n"
    assert world.read(handle, "names") == expected["HOME"] + expected["CONDUCTOR_SOCKET"]


async def test_its_folders_are_fresh_and_its_own(world: World) -> None:
    script = (
        'ls -A "$CONDUCTOR_WORKSPACE" > "${TMPDIR:-/tmp}/first" && '
        'for each in "$HOME" "${TMPDIR:-/tmp}" "$CONDUCTOR_WORKSPACE"; do echo 1 > "$each/mine" || exit 9; done; '
        'cp "${TMPDIR:-/tmp}/first" "$CONDUCTOR_WORKSPACE/first"'
    )
    spec = world.spec(script)
    for _ in range(2):
        handle = await world.runner.start(spec)
        assert await world.runner.wait(handle) == Exit(code=0)
        assert world.read(handle, "first") == ""
        await world.runner.remove(handle)


async def test_it_reaches_the_socket_in_its_run_folder(world: World) -> None:
    heard: asyncio.Queue[bytes] = asyncio.Queue()

    async def answer(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        await heard.put(await reader.readline())
        writer.write(b"welcome\n")
        writer.close()
        await writer.wait_closed()

    run = world.folder / "run"
    run.mkdir()
    server = await asyncio.start_unix_server(answer, run / "gateway.sock")
    (run / "gateway.sock").chmod(0o666)
    script = (
        "my $s = IO::Socket::UNIX->new(Peer => $ENV{CONDUCTOR_SOCKET}) or die $!; print $s qq(hello\\n);"
        "open(my $f, '>', 'heard') or die $!; print $f scalar <$s>;"
    )
    async with server:
        handle = await world.start(["perl", "-MIO::Socket::UNIX", "-e", script])
        assert await world.runner.wait(handle) == Exit(code=0)
    assert heard.get_nowait() == b"hello\n"
    assert world.read(handle, "heard") == "welcome\n"


async def test_an_attempt_without_a_mirror_has_none(world: World) -> None:
    handle = await world.start(
        'printf %s "${CONDUCTOR_MIRROR-none}" > mirror; test ! -e /mirror', mirror=None
    )
    assert await world.runner.wait(handle) == Exit(code=0)
    assert world.read(handle, "mirror") == "none"


async def test_a_file_cannot_grow_over_its_limit(world: World) -> None:
    handle = await world.start("trap '' XFSZ; head -c 20000000 /dev/zero > big; wc -c < big > size; exit 11")
    assert await world.runner.wait(handle) == Exit(code=11)
    assert int(world.read(handle, "size") or 0) == 8 * containers.MIB


async def test_its_files_are_weighed(world: World) -> None:
    script = 'head -c 3000000 /dev/zero > "$HOME/b"; head -c 2000000 /dev/zero > a; ln a twin; touch ready; '
    handle = await world.start(script + OBEDIENT)
    await world.said(handle, "ready")

    async def weighed() -> bool:
        found = await world.runner.workspace_bytes()
        return set(found) == {handle.attempt_id} and 5_000_000 <= found[handle.attempt_id] < 6_500_000

    await containers.until(weighed, "the files are counted, a linked one once")
    assert await world.stranger().workspace_bytes() == {}
    await world.runner.remove(handle)
    assert await world.runner.workspace_bytes() == {}


async def test_only_an_end_from_outside_is_the_hosts(world: World) -> None:
    for script in ("exit 143", "kill -KILL $$"):
        handle = await world.start(script)
        assert not (await world.runner.wait(handle)).host


# --- remove -------------------------------------------------------------------------------------------


async def test_remove_leaves_nothing(world: World) -> None:
    marker = containers.new_marker()
    outside = world.folder / "outside"
    outside.mkdir()
    (outside / "precious").write_text("kept")
    script = (
        f"mkdir -p a/b && touch a/b/c && chmod 500 a/b a && ln -s {outside} link && ln -s {outside} a.link; "
        f'ln -s {outside} "$HOME/link"; setsid sleep {marker} & {STUBBORN}'
    )
    handle = await world.start(script)
    await world.said(handle, "ready")
    assert world.traces(handle) != []
    await world.runner.remove(handle)
    assert world.traces(handle) == []
    assert containers.processes_with(marker) == []
    assert await world.runner.list() == []
    assert (outside / "precious").read_text() == "kept"


async def test_remove_right_after_the_start_leaves_nothing(world: World) -> None:
    # the program may just be coming to life: it must not slip through between two looks
    for _ in range(5):
        handle = await world.start(STUBBORN)
        await world.runner.remove(handle)
        assert world.traces(handle) == []


async def test_remove_takes_a_paused_attempt_too(world: World) -> None:
    handle = await world.start(STUBBORN)
    await world.said(handle, "ready")
    await world.runner.pause(handle)
    await world.runner.remove(handle)
    assert world.traces(handle) == []


async def test_a_removed_attempts_waiter_does_not_wait_for_ever(world: World) -> None:
    handle = await world.start(STUBBORN)
    waiter = asyncio.create_task(world.runner.wait(handle))
    await world.said(handle, "ready")
    await world.runner.remove(handle)
    (outcome,) = await asyncio.gather(waiter, return_exceptions=True)
    assert isinstance(outcome, InfrastructureError | Exit)


@pytest.mark.parametrize("attempt_id", ["", ".", "..", "../x", "a/b", "-x", "a b", "a\n", "x" * 101, "ä"])
async def test_an_id_that_could_mean_another_place_is_refused(world: World, attempt_id: str) -> None:
    with pytest.raises(ConfigurationError, match="cannot be an attempt's id"):
        await world.start("exit 0", attempt_id=attempt_id)
    with pytest.raises(ConfigurationError, match="cannot be an attempt's id"):
        await world.runner.remove(Handle(attempt_id=attempt_id, ref="x"))
