"""The shim's way from an agent's bytes to posts of events: lines are cut right, none is lost, posts stay small."""

from __future__ import annotations

import itertools
import json
import random
from pathlib import Path

import pytest

from runners.shim import MAX_LINE, MAX_POST_LINES, SMALL_POST, LineSplitter, Spool

TRICKY = b"a\r\n\r\n\n\xff\xc3\nb\xc3\xa4\xe2\x80\xa8c\r\rd\r\r\n\x00\x0b\x0c\x85e\r"


def plainly(data: bytes) -> list[str]:
    """What the lines are, without thought of speed."""
    *whole, last = data.split(b"\n")
    return [line.decode("utf-8", "replace").rstrip("\r") for line in (*whole, *([last] if last else []))]


@pytest.mark.parametrize("size", range(1, len(TRICKY) + 1))
def test_lines_are_the_same_however_the_bytes_come(size: int) -> None:
    splitter = LineSplitter()
    data = TRICKY * 3
    lines = [
        line for start in range(0, len(data), size) for line in splitter.feed(data[start : start + size])
    ]
    assert lines + splitter.finish() == plainly(data)


@pytest.mark.parametrize("size", [1 << 16, 4 << 20])
def test_a_line_that_is_too_long_is_cut_and_says_so(size: int) -> None:
    splitter = LineSplitter()
    data = b"before\n" + b"x" * (MAX_LINE + 5) + b"\nafter\n" + b"y" * MAX_LINE + b"\n"
    lines = [
        line for start in range(0, len(data), size) for line in splitter.feed(data[start : start + size])
    ]
    cut = "x" * MAX_LINE + " …[line cut, 5 bytes left out]"
    assert lines == ["before", cut, "after", "y" * MAX_LINE]
    assert splitter.finish() == []


def drained(spool: Spool) -> list[tuple[int, str]]:
    """Every line with its number, post after post, as the host would count them."""
    lines: list[tuple[int, str]] = []
    while True:
        block, last = spool.block()
        if not block:
            assert spool.empty.is_set()
            assert last == spool.acked
            return lines
        posted = []
        for event in map(json.loads, block.splitlines()):
            first = event["seq"] - len(event["lines"]) + 1
            posted += list(enumerate(event["lines"], first))
        assert len(posted) <= MAX_POST_LINES
        assert posted[-1][0] == last
        lines += posted
        spool.forget(len(block), last)


async def test_every_line_is_posted_once_in_its_order(tmp_path: Path) -> None:
    spool = Spool(tmp_path / "spool")
    sizes = random.Random(7)
    printed = []
    for round_ in itertools.count():
        lines = [
            f'{round_}.{number} "ä\u2028\\' for number in range(sizes.choice((1, 3, 499, 500, 501, 2600)))
        ]
        spool.put("stdout", lines)
        printed += lines
        if len(printed) > 3 * MAX_POST_LINES:
            break
    assert drained(spool) == list(enumerate(printed, 1))
    spool.put("stdout", ["once more"])
    assert drained(spool) == [(len(printed) + 1, "once more")]
    spool.close()


async def test_lines_that_came_one_by_one_are_posted_together(tmp_path: Path) -> None:
    spool = Spool(tmp_path / "spool")
    for number in range(MAX_POST_LINES + 10):
        spool.put("stdout", [str(number)])
    assert spool.block()[1] == MAX_POST_LINES
    assert drained(spool) == [(number + 1, str(number)) for number in range(MAX_POST_LINES + 10)]
    spool.close()


async def test_it_tells_when_there_is_enough_for_a_post_that_is_not_small(tmp_path: Path) -> None:
    spool = Spool(tmp_path / "spool")
    spool.put("stdout", ["x" * (SMALL_POST // 2)])
    assert not spool.plenty.is_set()
    spool.put("stdout", ["x" * (SMALL_POST // 2)])
    assert spool.plenty.is_set()
    block, last = spool.block()
    spool.forget(len(block), last)
    assert not spool.plenty.is_set()
    spool.close()


async def test_an_event_larger_than_a_post_is_posted_alone(tmp_path: Path) -> None:
    spool = Spool(tmp_path / "spool")
    for line in ("x" * MAX_LINE, "small", "\x01" * MAX_LINE):
        spool.put("stdout", [line])
    assert drained(spool) == [(1, "x" * MAX_LINE), (2, "small"), (3, "\x01" * MAX_LINE)]
    spool.close()


async def test_on_a_full_disk_lines_are_held_in_memory() -> None:
    spool = Spool(Path("/dev/full"))
    lines = [str(number) for number in range(2 * MAX_POST_LINES)]
    for line in lines[:10]:
        spool.put("stdout", [line])
    spool.put("stdout", lines[10:])
    assert spool.size
    assert drained(spool) == list(enumerate(lines, 1))
    spool.close()
