"""Whose words an agent reads."""

from __future__ import annotations

import pytest

from bot.model import Actor, Repo, Request, TargetKind, Trigger
from bot.outsiders import is_outsider, task_text
from bot.policy import Facts
from bot.repo_config import RepoConfig, parse

MARIA = Actor(login="maria", id=7, type="User")
EVE = Actor(login="eve", id=8, type="User")
BOT = Actor(login="other[bot]", id=9, type="Bot")
US = Actor(login="agent-conductor[bot]", id=99, type="Bot")


@pytest.mark.parametrize(
    ("author", "permission", "outside"),
    [
        (EVE, "write", False),
        (EVE, "maintain", False),
        (EVE, "admin", False),
        (EVE, "triage", True),
        (EVE, "read", True),
        (EVE, "none", True),
        (EVE, None, True),  # nobody could tell
        (None, "write", True),
        (BOT, "write", True),
    ],
)
def test_who_is_an_outsider(author: Actor | None, permission: str | None, outside: bool) -> None:
    assert is_outsider(author, permission) is outside


def request(event: str = "issues.labeled", **changes: object) -> Request:
    values: dict[str, object] = {
        "repo": Repo(owner="acme", name="hello", id=1, installation_id=2),
        "number": 12,
        "target": TargetKind.issue,
        "trigger": Trigger(delivery_id="d", event=event, actor=MARIA),
        "instructions": "",
        "title": "A title",
        "body": "A body",
    }
    return Request(**values | changes)  # type: ignore[arg-type]


def facts(**changes: object) -> Facts:
    values = {
        "actor": MARIA,
        "permission": "write",
        "app_user_id": US.id,
        "public": True,
        "author": EVE,
        "author_permission": "read",
        "title_now": "A title",
        "body_now": "A body",
    }
    return Facts(**values | changes)  # type: ignore[arg-type]


NEVER = parse("outsiders: never")


@pytest.mark.parametrize(
    ("event", "changes", "read"),
    [
        ("issues.labeled", {}, True),  # the label endorses
        ("pull_request.labeled", {}, True),
        ("issues.labeled", {"config": NEVER}, False),
        ("issue_comment.created", {}, False),
        ("issue_comment.created", {"author_permission": None}, False),
        ("issue_comment.created", {"author": BOT, "author_permission": "write"}, False),
        ("issue_comment.created", {"author": None}, False),
        ("issue_comment.created", {"author": US}, True),  # our own pull request
        ("issue_comment.created", {"author_permission": "write"}, True),
        ("issue_comment.created", {"author_permission": "write", "config": NEVER}, True),
        ("issue_comment.created", {"public": False}, True),
        ("issue_comment.created", {"public": False, "config": NEVER}, True),
        ("issues.unlabeled", {}, False),
        ("check_run.rerequested", {}, False),
    ],
)
def test_the_issue_itself(event: str, changes: dict[str, object], read: bool) -> None:
    found = task_text(request(event), facts(**changes))
    if read:
        assert (found.title, found.body, found.left_out) == ("A title", "A body", ())
    else:
        assert (found.title, found.body) == ("Issue #12", "")
        assert len(found.left_out) == 1
        assert "who may not write to this repository" in found.left_out[0]


def test_the_next_step_is_one_that_helps() -> None:
    (said,) = task_text(request("issue_comment.created"), facts()).left_out
    assert "set the label `agent`" in said
    (said,) = task_text(request(), facts(config=NEVER)).left_out
    assert "label" not in said


@pytest.mark.parametrize(
    ("changes", "says"),
    [
        ({"body_now": "now evil"}, "in the description"),
        ({"title_now": "now evil"}, "in the title"),
        ({"title_now": "x", "body_now": "y"}, "in the title and the description"),
        ({"body_now": "A body\r\n"}, None),
    ],
)
@pytest.mark.parametrize("public", [True, False])
def test_the_words_of_the_event_are_used_and_later_ones_are_told(
    changes: dict[str, object], says: str | None, public: bool
) -> None:
    found = task_text(request(), facts(public=public, **changes))
    assert (found.title, found.body) == ("A title", "A body")
    assert (says in found.left_out[0]) if says else found.left_out == ()


def test_defaults() -> None:
    assert RepoConfig().outsiders == "endorsed"
