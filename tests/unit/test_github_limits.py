"""Telling rate limits from refusals, and the gate of one installation."""

import asyncio
import json
from datetime import UTC, datetime
from email.utils import format_datetime

import pytest

from bot.github_limits import Gate, Limit, limit_in

NOW = 1_800_000_000.0
DATE = format_datetime(datetime.fromtimestamp(NOW - 100, UTC), usegmt=True)


def said(message: str) -> bytes:
    return json.dumps({"message": message}).encode()


PERMISSION = said("Resource not accessible by integration")
PRIMARY = said("API rate limit exceeded for installation ID 7.")
SECONDARY = said("You have exceeded a secondary rate limit. Please wait a few minutes before you try again.")
SPENT = {"x-ratelimit-remaining": "0", "x-ratelimit-reset": str(int(NOW) + 90)}


@pytest.mark.parametrize(
    ("status", "headers", "body", "expected"),
    [
        (403, SPENT, PRIMARY, Limit("primary", 91)),
        (429, SPENT, PRIMARY, Limit("primary", 91)),
        (403, SPENT | {"date": DATE}, PRIMARY, Limit("primary", 191)),  # the server's own clock counts
        (403, {"retry-after": "30"}, SECONDARY, Limit("secondary", 30)),
        (429, {"retry-after": "30"}, b"", Limit("secondary", 30)),
        (403, {"x-ratelimit-remaining": "4000"}, SECONDARY, Limit("secondary", None)),
        (403, SPENT, SECONDARY, Limit("secondary", None)),  # the hour's reset says nothing about it
        (429, {}, b"<html>", Limit("primary", None)),
        (429, {"retry-after": "soon"}, b"", Limit("primary", None)),
        (429, {"retry-after": "-5"}, b"", Limit("primary", None)),
        (429, {"retry-after": "inf"}, b"", Limit("primary", None)),
        (403, {"retry-after": "0"}, SECONDARY, Limit("secondary", 0)),
        (403, {}, said("You have triggered an abuse detection mechanism."), Limit("secondary", None)),
    ],
)
def test_limits_are_seen(status, headers, body, expected):
    assert limit_in(status, headers, body, now=NOW) == expected


@pytest.mark.parametrize(
    ("status", "headers", "body"),
    [
        (403, {"x-ratelimit-remaining": "4999", "x-accepted-github-permissions": "issues=write"}, PERMISSION),
        (403, SPENT, PERMISSION),  # the hour's last request, refused for want of a permission
        (403, {}, said("This installation has been suspended")),
        (403, {}, b"not JSON"),
        (403, {}, b"[1]"),
        (404, SPENT, said("Not Found")),
        (200, SPENT, b"{}"),
        (503, {"retry-after": "5"}, b""),
    ],
)
def test_other_answers_are_no_limits(status, headers, body):
    assert limit_in(status, headers, body, now=NOW) is None


class Time:
    def __init__(self):
        self.now = 1000.0
        self.slept = []

    def monotonic(self):
        return self.now

    async def sleep(self, seconds):
        self.slept.append(seconds)
        self.now += seconds


async def test_no_more_requests_at_once_than_slots():
    gate = Gate(in_flight=3)
    inside = most = 0
    release = asyncio.Event()
    full = asyncio.Event()

    async def request():
        nonlocal inside, most
        async with gate.slot("GET"):
            inside += 1
            most = max(most, inside)
            if inside == 3:
                full.set()
            await release.wait()
            inside -= 1

    tasks = [asyncio.create_task(request()) for _ in range(12)]
    await full.wait()
    assert most == 3
    release.set()
    await asyncio.gather(*tasks)
    assert most == 3


async def test_writes_are_spaced_and_reads_are_not():
    time = Time()
    starts = []

    async def sleep_until(seconds):  # does not move the clock: all three ask at the same moment
        starts.append(seconds)

    gate = Gate(write_spacing=1.0, sleep=sleep_until, monotonic=time.monotonic)
    for method in ("POST", "GET", "PATCH", "GET", "DELETE"):
        async with gate.slot(method):
            pass
    assert starts == [1.0, 2.0]


def test_a_closed_gate_never_opens_earlier():
    time = Time()
    gate = Gate(sleep=time.sleep, monotonic=time.monotonic)
    assert gate.closed_for == 0
    gate.close_for(60)
    gate.close_for(5)
    assert gate.closed_for == 60
    time.now += 59
    assert gate.closed_for == 1
    time.now += 2
    assert gate.closed_for == 0
