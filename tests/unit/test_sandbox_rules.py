"""The sandbox's pure parts: permissions, faults, rate limits, and reading git's output."""

from __future__ import annotations

from datetime import UTC, datetime, timedelta

import pytest

from bot.sandbox.faults import Fault, Faults
from bot.sandbox.git import _parse_changes
from bot.sandbox.permissions import accepted_header, covers, highest, installation_may, role_needed
from bot.sandbox.present import iso, suite_state
from bot.sandbox.ratelimit import RateLimit
from bot.sandbox.state import CheckRun

NOW = datetime(2026, 1, 2, 3, 4, 5, tzinfo=UTC)


@pytest.mark.parametrize(
    ("granted", "may"),
    [
        ({"issues": "write"}, True),
        ({"pull_requests": "write"}, True),
        ({"issues": "read", "pull_requests": "read"}, False),
        ({}, False),
    ],
)
def test_one_of_several_permissions_is_enough(granted, may):
    assert installation_may("issues/create-comment", granted) is may


def test_unknown_operations_are_denied():
    assert not installation_may("repos/delete", {"administration": "write"})


def test_the_header_names_all_alternatives():
    assert accepted_header("issues/create-comment") == "issues=write; pull_requests=write"
    assert accepted_header("git/create-ref") == "contents=write; contents=write,workflows=write"
    assert accepted_header("repos/get") == "metadata=read"


def test_levels_and_roles():
    assert covers({"contents": "write"}, {"contents": "read"})
    assert not covers({"contents": "read"}, {"contents": "write"})
    assert not covers({}, {"contents": "read"})
    assert highest(["read", "admin", "none"]) == "admin"
    assert highest([]) == "none"


@pytest.mark.parametrize(
    ("operation", "author", "role"),
    [
        ("issues/get", False, "read"),
        ("issues/create-comment", False, "read"),
        ("issues/add-labels", True, "triage"),
        ("issues/update", False, "triage"),
        ("issues/update", True, "read"),
        ("issues/update-comment", False, "write"),
        ("issues/update-comment", True, "read"),
        ("pulls/create-review", False, "read"),
        ("pulls/merge", True, "write"),
        ("git/create-ref", False, "write"),
    ],
)
def test_what_people_need(operation, author, role):
    assert role_needed(operation, author=author) == role


def test_faults_are_used_up():
    faults = Faults()
    faults.add(Fault(method="POST|PUT", path="/a", status=500, times=2))
    assert faults.take("GET", "/a") is None
    assert faults.take("PUT", "/b") is None
    assert [faults.take("POST", "/a") is None for _ in range(3)] == [False, False, True]


def test_the_rate_limit_counts_by_caller_and_hour():
    limit = RateLimit(2)
    limit.count("a", NOW)
    limit.count("a", NOW)
    assert limit.exhausted("a", NOW)
    assert not limit.exhausted("b", NOW)
    headers = limit.headers("a", NOW)
    assert (headers["X-RateLimit-Remaining"], headers["X-RateLimit-Used"]) == ("0", "2")
    assert int(headers["X-RateLimit-Reset"]) == datetime(2026, 1, 2, 4, tzinfo=UTC).timestamp()
    assert not limit.exhausted("a", NOW + timedelta(hours=1))


def run(status: str, conclusion: str | None = None) -> CheckRun:
    return CheckRun(1, 1, "n", "s", status, NOW, conclusion)


@pytest.mark.parametrize(
    ("runs", "state"),
    [
        ([], ("queued", None)),
        ([run("queued")], ("queued", None)),
        ([run("in_progress"), run("completed", "success")], ("in_progress", None)),
        ([run("completed", "success"), run("completed", "failure")], ("completed", "failure")),
        ([run("completed", "skipped"), run("completed", "success")], ("completed", "success")),
    ],
)
def test_a_suite_follows_its_runs(runs, state):
    assert suite_state(runs) == state


def test_times_are_written_as_github_does():
    assert iso(NOW) == "2026-01-02T03:04:05Z"
    assert iso(None) is None


def test_renames_and_binary_files_in_a_diff():
    fields = [":100644 100644 aaa bbb R090", "old.txt", "new.txt", ":000000 100644 000 ccc A", "b.bin"]
    fields += ["1\t1\t", "old.txt", "new.txt", "-\t-\tb.bin"]
    patches = [
        "diff --git a/old.txt b/new.txt\nrename from old.txt\n--- a\n+++ b\n@@ -1 +1 @@\n-a\n+b\n",
        "diff --git a/b.bin b/b.bin\nnew file mode 100644\nBinary files differ\n",
    ]
    renamed, binary = _parse_changes(fields, patches)
    assert (renamed.path, renamed.previous_path, renamed.status) == ("new.txt", "old.txt", "renamed")
    assert renamed.patch == "@@ -1 +1 @@\n-a\n+b"
    assert (binary.path, binary.status, binary.additions, binary.patch) == ("b.bin", "added", 0, None)
