"""What payloads say, on GitHub's own examples."""

from __future__ import annotations

import gzip
import json
from pathlib import Path
from typing import Any

import pytest

from bot.events import NotForUs, parse_event
from bot.model import TargetKind

EXAMPLES = Path(__file__).parents[1] / "payloads" / "webhooks-examples.json.gz"


def examples(event: str, action: str) -> list[dict[str, Any]]:
    table = json.loads(gzip.decompress(EXAMPLES.read_bytes()))
    found = [payload for payload in table[event] if payload.get("action") == action]
    assert found, f"no example of {event}.{action}"
    return [payload | {"installation": {"id": 5, "node_id": "x"}} for payload in found]


def test_a_label_on_an_issue() -> None:
    for payload in examples("issues", "labeled"):
        event = parse_event("d", "issues", payload)
        assert event.kind == "issues.labeled"
        assert event.target is TargetKind.issue
        assert event.label == payload["label"]["name"]
        assert event.repo.full_name == payload["repository"]["full_name"]
        assert event.actor.login == payload["sender"]["login"]
        assert event.title == payload["issue"]["title"]


def test_comments_on_issues_and_on_pull_requests_are_told_apart() -> None:
    targets = set()
    for payload in examples("issue_comment", "created"):
        event = parse_event("d", "issue_comment", payload)
        assert event.comment is not None
        assert event.comment.body == payload["comment"]["body"]
        assert (event.target is TargetKind.pull_request) == ("pull_request" in payload["issue"])
        targets.add(event.target)
    assert TargetKind.issue in targets


def test_what_was_changed_says_whose_text_it_was_and_what_stood_there() -> None:
    for name, key in (("issue_comment", "comment"), ("pull_request", "pull_request")):
        payload = examples(name, "opened" if name == "pull_request" else "edited")[0] | {"action": "edited"}
        edit = parse_event("d", name, payload | {"changes": {"body": {"from": "Before."}}}).edit
        assert edit is not None
        assert (edit.author_id, edit.before) == (payload[key]["user"]["id"], "Before.")
        assert edit.at is not None
        assert parse_event("d", name, payload | {"changes": {"title": {"from": "T"}}}).edit is None
    review = examples("pull_request_review", "submitted")[0]
    review |= {"action": "edited", "changes": {"body": {"from": "Before."}}}
    assert parse_event("d", "pull_request_review", review).edit is None  # no text of the pull request's


def test_an_inline_comment_is_about_its_pull_request() -> None:
    for payload in examples("pull_request_review_comment", "created"):
        event = parse_event("d", "pull_request_review_comment", payload)
        assert event.target is TargetKind.pull_request
        assert event.number == payload["pull_request"]["number"]
        assert event.comment is not None
        assert event.comment.kind == "review"
        assert event.comment.thread is not None
        assert f"`{payload['comment']['path']}`" in event.comment.thread.place
        assert event.comment.thread.hunk.endswith(payload["comment"]["diff_hunk"].split("\n")[-1])
        first = payload["comment"].get("in_reply_to_id") or payload["comment"]["id"]
        assert event.comment.thread.id == first


@pytest.mark.parametrize(("name", "key"), [("issues", "issue"), ("pull_request", "pull_request")])
def test_what_is_new_says_who_wrote_it(name: str, key: str) -> None:
    payload = examples(name, "opened")[0]
    payload.pop("changes", None)
    payload[key]["user"] = payload["sender"]
    payload[key]["performed_via_github_app"] = None
    payload[key]["labels"] = [{"name": "agent"}]
    event = parse_event("d", name, payload)
    assert event.opened_by == event.actor
    assert event.labels == ("agent",)
    other = {"login": "other", "id": 1, "type": "User"}
    for wrong in (
        payload | {"action": "edited"},
        payload | {"sender": other},  # opened for somebody
        payload | {"changes": {"old_issue": {}, "old_repository": {}}},  # transferred
        payload | {key: payload[key] | {"performed_via_github_app": {"id": 7}}},
    ):
        assert parse_event("d", name, wrong).opened_by is None


def test_a_commit_status_has_no_action() -> None:
    table = json.loads(gzip.decompress(EXAMPLES.read_bytes()))
    for payload in table["status"]:
        event = parse_event("d", "status", payload | {"installation": {"id": 5}})
        assert (event.kind, event.number) == ("status.", 0)
        assert event.status is not None
        assert (event.status.sha, event.status.state) == (payload["sha"], payload["state"])
        assert list(event.status.branches) == [branch["name"] for branch in payload["branches"]]
        del payload["sha"]
        with pytest.raises(NotForUs):
            parse_event("d", "status", payload | {"installation": {"id": 5}})


def test_a_button_of_a_check_run_says_which_one_and_who_pressed_it() -> None:
    for payload in examples("check_run", "requested_action"):
        event = parse_event("d", "check_run", payload)
        assert event.check is not None
        assert event.check.button == payload["requested_action"]["identifier"]
        assert event.check.job_id == payload["check_run"]["external_id"]
        assert event.check.app_id == payload["check_run"]["app"]["id"]
        assert event.actor.login == payload["sender"]["login"]
    for payload in examples("check_run", "rerequested"):
        again = parse_event("d", "check_run", payload)
        assert again.check is not None
        assert again.check.button is None


def test_a_closed_pull_request_says_whether_it_was_merged() -> None:
    (first, *_) = examples("pull_request", "closed")
    for merged in (True, False):
        first["pull_request"]["merged"] = merged
        event = parse_event("d", "pull_request", first)
        assert not event.open
        assert event.merged is merged


@pytest.mark.parametrize(
    "payload",
    [{}, {"repository": None}, {"installation": {"id": 1}, "repository": {"id": 1}}, {"sender": []}],
)
def test_a_payload_without_what_it_must_have_is_not_for_us(payload: dict[str, Any]) -> None:
    with pytest.raises(NotForUs):
        parse_event("d", "issues", payload)


def test_no_official_payload_breaks_the_parser() -> None:
    table = json.loads(gzip.decompress(EXAMPLES.read_bytes()))
    parsed = 0
    for name, payloads in table.items():
        for payload in payloads:
            try:
                parse_event("d", name, payload | {"installation": {"id": 5}})
                parsed += 1
            except NotForUs:
                continue
    assert parsed > 50
