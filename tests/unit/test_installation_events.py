"""What payloads about the App itself say, on GitHub's own examples."""

from __future__ import annotations

import gzip
import json
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import pytest

from bot.events import NotForUs, parse_event
from bot.installation_store import Installation
from bot.installs import NEEDED, missing_permissions
from handlers.table import router

EXAMPLES = Path(__file__).parents[1] / "payloads" / "webhooks-examples.json.gz"


def examples(event: str, action: str) -> list[dict[str, Any]]:
    table = json.loads(gzip.decompress(EXAMPLES.read_bytes()))
    found = [payload for payload in table.get(event, ()) if payload.get("action") == action]
    assert found, f"the examples have no {event}.{action}"
    return found


@pytest.mark.parametrize("action", ["created", "deleted", "suspend", "unsuspend", "new_permissions_accepted"])
def test_installations(action: str) -> None:
    for payload in examples("installation", action):
        event = parse_event("d", "installation", payload)
        change = event.installation
        assert change is not None
        assert event.kind == f"installation.{action}"
        assert (event.repo.installation_id, event.repo.id) == (payload["installation"]["id"], 0)
        assert change.account == payload["installation"]["account"]["login"]
        assert change.account_type in ("User", "Organization")
        assert change.suspended == (payload["installation"].get("suspended_at") is not None)
        assert change.permissions == payload["installation"]["permissions"]
        names = [one["full_name"] for one in payload.get("repositories") or ()]
        assert [repo.full_name for repo in change.added] == names


@pytest.mark.parametrize("action", ["added", "removed"])
def test_repositories_of_an_installation(action: str) -> None:
    for payload in examples("installation_repositories", action):
        change = parse_event("d", "installation_repositories", payload).installation
        assert change is not None
        for found, key in ((change.added, "repositories_added"), (change.removed, "repositories_removed")):
            assert [(one.id, one.full_name) for one in found] == [
                (one["id"], one["full_name"]) for one in payload[key]
            ]
            assert {one.installation_id for one in found} <= {payload["installation"]["id"]}


def moved(changes: dict[str, Any]) -> dict[str, Any]:
    return {
        "action": "x",
        "changes": changes,
        "repository": {"id": 7, "name": "hello", "owner": {"login": "acme"}},
        "installation": {"id": 5},
        "sender": {"login": "maria", "id": 1, "type": "User"},
    }


@pytest.mark.parametrize(
    ("changes", "former"),
    [
        ({"repository": {"name": {"from": "hi"}}}, "acme/hi"),
        ({"owner": {"from": {"user": {"login": "tom"}}}}, "tom/hello"),
        ({"owner": {"from": {"organization": {"login": "old"}, "user": None}}}, "old/hello"),
        ({}, "acme/hello"),
    ],
)
def test_what_a_repository_was_called_before(changes: dict[str, Any], former: str) -> None:
    event = parse_event("d", "repository", moved(changes))
    assert (event.repo.full_name, event.repo.id, event.former) == ("acme/hello", 7, former)
    assert event.installation is None


@pytest.mark.parametrize("missing", ["installation", "sender"])
def test_what_lacks_the_essentials_is_not_for_us(missing: str) -> None:
    payload = {name: value for name, value in moved({}).items() if name != missing}
    with pytest.raises(NotForUs):
        parse_event("d", "repository", payload)
    with pytest.raises(NotForUs):
        parse_event("d", "installation", payload)


@pytest.mark.parametrize("action", ["archived", "deleted"])
def test_a_repository_that_is_closed_down(action: str) -> None:
    # GitHub's examples have none of these; only the action tells them from a rename
    event = parse_event("d", "repository", moved({}) | {"action": action})
    assert event.kind == f"repository.{action}"
    assert (event.repo.full_name, event.repo.id) == ("acme/hello", 7)
    assert action in router.wanted["repository"]


@pytest.mark.parametrize("action", ["deleted", "transferred"])
def test_an_issue_that_is_gone(action: str) -> None:
    for payload in examples("issues", action):
        with_app = {**payload, "installation": {"id": 5}}
        event = parse_event("d", "issues", with_app)
        assert event.kind == f"issues.{action}"
        assert (event.repo.id, event.number) == (payload["repository"]["id"], payload["issue"]["number"])
        assert action in router.wanted["issues"]


def missing(granted: Mapping[str, str], account_type: str = "Organization") -> dict[str, str]:
    return missing_permissions(
        Installation(id=1, account="acme", account_type=account_type, permissions=granted)
    )


def test_missing_permissions() -> None:
    assert missing(NEEDED) == {}
    assert missing({**NEEDED, "checks": "read"}) == {"checks": "write"}
    assert missing({}) == NEEDED
    assert missing({**NEEDED, "contents": "admin"}) == {}
    without_members = {name: level for name, level in NEEDED.items() if name != "members"}
    assert missing(without_members) == {"members": "read"}
    assert missing(without_members, "User") == {}  # a person has no members
