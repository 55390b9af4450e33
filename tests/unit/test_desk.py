"""The desk: what it keeps across a crash, and what it does not let in."""

from __future__ import annotations

import asyncio
import json
import resource
import stat
from pathlib import Path
from typing import Any

import pytest

from bot.errors import InfrastructureError
from bot.model import Usage
from runners.gateway.desk import FIRST_BLOCKED, FULL, MAX_BLOCKED, BadMessage, Desk, Event

TURN: dict[str, Any] = {"number": 1, "command": {"argv": ["x"]}, "timeout": 5}


def post(*events: tuple[int, str], turn: int = 1) -> bytes:
    return json.dumps(
        {
            "turn": turn,
            "events": [
                {"seq": seq, "time": 1.5, "stream": "stdout", "lines": [line]} for seq, line in events
            ],
        }
    ).encode()


def make(tmp_path: Path, **changes: Any) -> Desk:
    desk = Desk.create(tmp_path / "desk", attempt_id="j1-1", mirror=Path("/mirror.git"), **changes)
    desk.give(TURN)
    return desk


def again(desk: Desk) -> Desk:
    """What a worker sees that was killed and started again."""
    desk.close()
    return Desk.open(desk.directory)


async def recorded(desk: Desk, after: int = 0) -> list[Event]:
    """Everything on disk, by a follower of a desk that ends at once."""
    follower = Desk.open(desk.directory)
    follower.close()
    return [event async for event in follower.events(after)]


# --- the folder -----------------------------------------------------------------------------------------


def test_a_desk_is_private_and_its_socket_folder_can_only_be_passed_through(tmp_path: Path) -> None:
    desk = make(tmp_path)
    modes = {
        name: stat.S_IMODE((desk.directory / name).stat().st_mode)
        for name in (".", "token", "run", "turns/1.json", "events.jsonl")
    }
    assert modes == {".": 0o700, "token": 0o600, "run": 0o711, "turns/1.json": 0o600, "events.jsonl": 0o600}
    assert list(desk.socket_dir.iterdir()) == []
    desk.close()


def test_each_attempt_has_its_own_long_token_and_keeps_it(tmp_path: Path) -> None:
    desk = make(tmp_path)
    other = Desk.create(tmp_path / "other", attempt_id="j1-2", mirror=None)
    assert len(desk.token) >= 43  # 32 bytes
    assert desk.token != other.token
    assert other.mirror is None
    reopened = again(desk)
    assert (reopened.token, reopened.attempt_id, reopened.mirror) == (desk.token, "j1-1", Path("/mirror.git"))
    assert reopened.accepts(desk.token)
    assert not reopened.accepts(other.token)
    assert not reopened.accepts("")
    assert not reopened.accepts("\udcff")
    reopened.close()
    other.close()


def test_a_container_with_the_token_of_an_earlier_one_is_not_listened_to(tmp_path: Path) -> None:
    desk = Desk.create(tmp_path / "a", attempt_id="j1-1", mirror=None)
    old = desk.token
    desk.renew_token()
    assert not desk.accepts(old)
    assert desk.accepts(desk.token)
    desk.close()
    opened = Desk.open(tmp_path / "a")
    assert opened.accepts(desk.token)
    assert not opened.accepts(old)
    opened.close()


def test_creating_it_again_changes_nothing(tmp_path: Path) -> None:
    desk = make(tmp_path)
    desk.take_events(post((1, "a")))
    second = Desk.create(desk.directory, attempt_id="j1-1", mirror=None)
    assert (second.token, second.last_seq, second.mirror) == (desk.token, 1, Path("/mirror.git"))
    desk.close()
    second.close()


@pytest.mark.parametrize("damage", ["attempt.json", "token"])
def test_a_folder_that_is_not_whole_is_refused_with_the_next_step(tmp_path: Path, damage: str) -> None:
    desk = make(tmp_path)
    desk.close()
    (desk.directory / damage).unlink()
    with pytest.raises(InfrastructureError, match="Run the job again"):
        Desk.open(desk.directory)


def test_a_closed_desk_takes_nothing(tmp_path: Path) -> None:
    desk = make(tmp_path)
    desk.close()
    desk.close()
    with pytest.raises(InfrastructureError, match="closed"):
        desk.take_events(post((1, "a")))
    with pytest.raises(InfrastructureError, match="closed"):
        desk.take_outcome(1, b"{}")


# --- turns ----------------------------------------------------------------------------------------------


async def test_turns_are_handed_out_in_order_also_after_a_restart(tmp_path: Path) -> None:
    desk = make(tmp_path)
    desk.give(TURN)  # the same again: a worker that repeats its last step
    desk.give(TURN | {"number": 2})
    desk = again(desk)
    assert await desk.next_turn(0, 1) == TURN
    assert await desk.next_turn(1, 1) == TURN | {"number": 2}
    assert await desk.next_turn(2, 0.01) is None
    with pytest.raises(ValueError, match="given already and differs"):
        desk.give(TURN | {"timeout": 6})
    with pytest.raises(ValueError, match="not the next"):
        desk.give(TURN | {"number": 4})
    desk.close()


async def test_a_waiting_shim_gets_a_turn_as_soon_as_it_is_given(tmp_path: Path) -> None:
    desk = make(tmp_path)
    waiting = asyncio.create_task(desk.next_turn(1, 60))
    await asyncio.sleep(0)
    desk.give(TURN | {"number": 2})
    assert await waiting == TURN | {"number": 2}
    desk.close()


async def test_a_finished_desk_hands_out_nothing_also_after_a_restart(tmp_path: Path) -> None:
    desk = make(tmp_path)
    waiting = asyncio.create_task(desk.next_turn(1, 60))
    await asyncio.sleep(0)
    desk.finish()
    desk.finish()
    assert await waiting is None
    desk = again(desk)
    assert desk.finished
    assert await desk.next_turn(0, 60) is None
    desk.close()


# --- events ---------------------------------------------------------------------------------------------


async def test_events_are_kept_once_whatever_is_sent_again(tmp_path: Path) -> None:
    desk = make(tmp_path)
    assert desk.take_events(post((1, "a"), (2, "b"))) == 2
    assert desk.take_events(post((1, "a"), (2, "b"))) == 2
    assert desk.take_events(post((2, "b"), (3, "c\u2028\r\0ä"))) == 3
    desk = again(desk)
    assert desk.last_seq == 3
    assert desk.take_events(post((3, "changed"), (4, "d"))) == 4
    events = await recorded(desk)
    assert events[2] == Event(3, 1, 1.5, "stdout", "c\u2028\r\0ä")
    assert [(event.seq, event.line) for event in events] == [
        (1, "a"),
        (2, "b"),
        (3, "c\u2028\r\0ä"),
        (4, "d"),
    ]
    assert [event.seq for event in await recorded(desk, after=2)] == [3, 4]
    desk.close()


async def test_only_what_the_agent_prints_is_a_sign_of_life(tmp_path: Path) -> None:
    desk = make(tmp_path)
    before = desk.last_sign
    # the shim's own remark, for example that a checkpoint failed, once more every few minutes
    assert desk.take_events(post((1, "A checkpoint failed")).replace(b"stdout", b"conductor")) == 1
    assert desk.last_sign == before
    assert desk.take_events(post((2, "hello"))) == 2
    assert desk.last_sign > before
    desk.close()


def test_a_destination_that_is_tried_again_and_again_does_not_hide_the_next_one(tmp_path: Path) -> None:
    desk = make(tmp_path)
    for _ in range(MAX_BLOCKED + 1):
        desk.add_blocked("busy.example:443")
    desk.add_blocked("other.example:443")
    assert desk.blocked == {"busy.example:443": MAX_BLOCKED - FIRST_BLOCKED, "other.example:443": 1}
    for number in range(MAX_BLOCKED):
        desk.add_blocked(f"h{number}.example:443")
    assert sum(desk.blocked.values()) == MAX_BLOCKED
    assert again(desk).blocked == desk.blocked


@pytest.mark.parametrize(
    "torn",
    [
        b'{"turn":1,"events":[{"seq":3,"ti',
        b"\0\0\0\0",
        b"\0\0\n",
        b'{"turn":1,"events":[{"seq":3}]}\n',
        b"\n",
    ],
)
async def test_a_last_line_torn_by_a_crash_is_cut_off_and_taken_again(tmp_path: Path, torn: bytes) -> None:
    desk = make(tmp_path)
    desk.take_events(post((1, "a"), (2, "b" * 600_000)))
    desk.close()
    with (desk.directory / "events.jsonl").open("ab") as file:
        file.write(torn)
    desk = Desk.open(desk.directory)
    assert desk.last_seq == 2
    assert desk.take_events(post((3, "c"))) == 3
    assert [event.line[:1] for event in await recorded(desk)] == ["a", "b", "c"]
    desk.close()


async def test_a_record_of_only_a_torn_line_is_an_empty_one(tmp_path: Path) -> None:
    desk = make(tmp_path)
    desk.close()
    (desk.directory / "events.jsonl").write_bytes(b'{"seq":1,"turn":1')
    desk = Desk.open(desk.directory)
    assert desk.last_seq == 0
    assert await recorded(desk) == []
    desk.close()


async def test_lines_that_came_together_are_numbered_up_to_their_events_number(tmp_path: Path) -> None:
    desk = make(tmp_path)
    together = {"turn": 1, "events": [EVENT | {"seq": 3, "lines": ["a", "b", "c"]}]}
    assert desk.take_events(json.dumps(together).encode()) == 3
    # what was taken is cut off in the middle of an event, as after an acknowledgement that was lost
    together["events"] = [
        EVENT | {"seq": 1, "lines": ["changed"]},
        EVENT | {"seq": 5, "lines": ["changed", "changed", "d", "e"]},
        EVENT | {"seq": 7, "lines": ["f", "g"]},
    ]
    assert desk.take_events(json.dumps(together).encode()) == 7
    desk = again(desk)
    assert desk.last_seq == 7
    assert [(event.seq, event.line) for event in await recorded(desk)] == list(enumerate("abcdefg", 1))
    assert [event.seq for event in await recorded(desk, after=4)] == [5, 6, 7]
    desk.close()


async def test_output_without_end_stops_at_the_limit_with_one_remark(tmp_path: Path) -> None:
    desk = make(tmp_path, max_recorded=2000)
    for start in range(1, 100, 3):
        last = desk.take_events(post(*((start + offset, "x" * 50) for offset in range(3))))
        assert last == start + 2  # acknowledged all the same, or the shim would send it for ever
    desk.close()
    desk = Desk.open(desk.directory, max_recorded=2000)
    desk.take_events(post((200, "after the restart")))
    lines = [event.line for event in await recorded(desk)]
    assert lines.count(FULL) == 1
    assert lines[-1] == FULL
    assert 10 < len(lines) < 30
    assert (desk.directory / "events.jsonl").stat().st_size < 2300
    desk.close()


async def test_followers_get_what_was_and_what_comes_until_the_outcome(tmp_path: Path) -> None:
    desk = make(tmp_path)
    desk.take_events(post((1, "a")))
    got: list[str] = []
    third = asyncio.Event()

    async def follow() -> None:
        async for event in desk.events(turn=1):
            got.append(event.line)
            if event.seq == 3:
                third.set()

    async def late() -> list[int]:
        return [event.seq async for event in desk.events(2, turn=1)]

    followers = asyncio.gather(follow(), late())
    await asyncio.sleep(0)
    desk.take_events(post((2, "b"), (3, "c" * 700_000)))
    await asyncio.wait_for(third.wait(), 30)
    desk.take_events(post((4, "d")))
    desk.take_outcome(1, b'{"exit_code": 0}')
    _, seqs = await asyncio.wait_for(followers, 30)
    assert [line[:1] for line in got] == ["a", "b", "c", "d"]
    assert seqs == [3, 4]
    desk.close()


async def test_closing_ends_followers_and_waiters(tmp_path: Path) -> None:
    desk = make(tmp_path)

    async def follow() -> list[Event]:
        return [event async for event in desk.events()]

    waiting = asyncio.gather(follow(), desk.next_turn(1, 60), desk.outcome(1), return_exceptions=True)
    await asyncio.sleep(0)
    desk.close()
    events, turn, outcome = await asyncio.wait_for(waiting, 30)
    assert events == []
    assert turn is None
    assert isinstance(outcome, InfrastructureError)


EVENT = {"seq": 5, "time": 1.5, "stream": "stdout", "lines": ["x"]}


@pytest.mark.parametrize(
    "message",
    [
        b"",
        b"[]",
        b"null",
        b"{",
        b"\xff",
        b'{"turn": 1}',
        b'{"turn": 1, "events": {}}',
        b'{"turn": 1, "events": []}',
        b'{"turn": 1, "events": [1]}',
        *(
            json.dumps({"turn": turn, "events": [EVENT]}).encode()
            for turn in ("1", -1, 1.0, 1.5, True, None, [1], 10**30)
        ),
        json.dumps({"turn": 2, "events": [EVENT]}).encode(),  # was never given
        json.dumps({"turn": 1, "events": [EVENT], "more": 1}).encode(),
        b"[" * 100_000,
        b'{"turn": 1, "events": [{"seq": 5, "time": 1, "stream": "stdout", "lines": ["\\ud800"]}]}',
        post(*((seq, "x") for seq in range(2, 5003))),
        json.dumps({"turn": 1, "events": [EVENT | {"seq": 9000, "lines": ["x"] * 5001}]}).encode(),
        json.dumps(
            {"turn": 1, "events": [EVENT | {"seq": seq, "lines": ["x"] * 2600} for seq in (3000, 6000)]}
        ).encode(),
        *(
            json.dumps({"turn": 1, "events": [EVENT | {"seq": 4}, EVENT | wrong]}).encode()
            for wrong in (
                {"seq": 0},
                {"seq": -1},
                {"seq": "5"},
                {"seq": 5.0},
                {"seq": True},
                {"seq": None},
                {"seq": 1 << 60},
                {"seq": 4},  # does not rise
                {"seq": 3},
                {"time": "now"},
                {"time": -1},
                {"time": 1e12},
                {"time": True},
                {"time": None},
                {"stream": "stdin"},
                {"stream": ["stdout"]},
                {"stream": 1},
                {"lines": 1},
                {"lines": None},
                {"lines": "x"},
                {"lines": []},
                {"lines": [1]},
                {"lines": ["x", "two\nlines"]},
                {"lines": ["x" * ((1 << 20) + 101)]},
                {"lines": ["x", "y"]},  # the first of them would be number 4 once more
                {"extra": 1},
            )
        ),
        json.dumps({"turn": 1, "events": [{key: EVENT[key] for key in ("seq", "time", "stream")}]}).encode(),
    ],
)
async def test_hostile_events_are_refused_and_change_nothing(tmp_path: Path, message: bytes) -> None:
    desk = make(tmp_path)
    desk.take_events(post((1, "a")))
    with pytest.raises(BadMessage):
        desk.take_events(message)
    assert desk.last_seq == 1
    assert [event.seq for event in await recorded(desk)] == [1]
    desk.close()


# --- outcomes -------------------------------------------------------------------------------------------


async def test_the_first_outcome_counts_also_after_a_restart(tmp_path: Path) -> None:
    desk = make(tmp_path)
    assert desk.outcome_now(1) is None
    whole = {
        "exit_code": 3,
        "signal": None,
        "timed_out": False,
        "stopped": True,
        "head": "ab" * 20,
        "error": None,
        "push_error": "refused",
        "duration": 12,
    }
    desk.take_outcome(1, json.dumps(whole).encode())
    desk = again(desk)
    desk.take_outcome(1, b'{"exit_code": 0}')
    outcome = await desk.outcome(1)
    assert outcome == desk.outcome_now(1)
    assert outcome.model_dump() == whole
    desk.close()


@pytest.mark.parametrize(
    "message",
    [
        b"",
        b"{",
        b"[]",
        b'{"exit_code": "0"}',
        b'{"exit_code": 256}',
        b'{"exit_code": -1}',
        b'{"exit_code": true}',
        b'{"signal": 0}',
        b'{"signal": 65}',
        b'{"timed_out": 1}',
        b'{"stopped": null}',
        b'{"head": "HEAD"}',
        b'{"head": "%s"}' % (b"A" * 40),
        b'{"head": "%s\\n"}' % (b"a" * 40),
        b'{"head": "--upload-pack=x"}',
        b'{"duration": -1}',
        b'{"duration": NaN}',
        b'{"duration": 1e400}',
        b'{"error": "%s"}' % (b"x" * 8001),
        b'{"unknown": 1}',
    ],
)
def test_hostile_outcomes_are_refused_and_change_nothing(tmp_path: Path, message: bytes) -> None:
    desk = make(tmp_path)
    with pytest.raises(BadMessage):
        desk.take_outcome(1, message)
    assert desk.outcome_now(1) is None
    assert list((desk.directory / "outcomes").iterdir()) == []
    desk.close()


def test_the_outcome_of_a_turn_that_was_never_given_is_refused(tmp_path: Path) -> None:
    desk = make(tmp_path)
    with pytest.raises(BadMessage, match="no turn 2"):
        desk.take_outcome(2, b"{}")
    desk.close()


# --- usage ----------------------------------------------------------------------------------------------


def test_usage_adds_up_by_model_also_after_a_crash(tmp_path: Path) -> None:
    desk = make(tmp_path)
    assert desk.usage() == Usage()
    desk.add_usage("big", Usage(input_tokens=10, output_tokens=2, requests=1, cost=0.5))
    desk.close()
    with (desk.directory / "usage.jsonl").open("ab") as file:
        file.write(b'{"model":"torn","inp')
    desk = Desk.open(desk.directory)
    desk.add_usage("big", Usage(input_tokens=5, cached_tokens=7, requests=1, cost=0.25))
    desk.add_usage("small", Usage(output_tokens=1, cache_write_tokens=3, requests=1, cost=None))
    desk = again(desk)
    assert [(each.model, each.usage) for each in desk.usage_by_model()] == [
        ("big", Usage(input_tokens=15, output_tokens=2, cached_tokens=7, requests=2, cost=0.75)),
        ("small", Usage(output_tokens=1, cache_write_tokens=3, requests=1, cost=None)),
    ]
    assert desk.usage().requests == 3
    assert desk.usage().cost is None
    desk.close()


async def test_a_full_disk_records_nothing_by_halves(tmp_path: Path) -> None:
    desk = make(tmp_path)
    desk.take_events(post((1, "a")))
    limits = resource.getrlimit(resource.RLIMIT_FSIZE)
    resource.setrlimit(resource.RLIMIT_FSIZE, (1000, limits[1]))
    try:
        with pytest.raises(OSError, match=r"disk is full|File too large"):
            desk.take_events(post((2, "b"), (3, "c" * 5000)))
    finally:
        resource.setrlimit(resource.RLIMIT_FSIZE, limits)
    assert desk.last_seq == 1
    assert desk.take_events(post((2, "b"), (3, "c" * 5000))) == 3
    assert [event.seq for event in await recorded(desk)] == [1, 2, 3]
    desk.close()
