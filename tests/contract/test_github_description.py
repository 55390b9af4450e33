"""The validator: it must let GitHub's own traffic through and find what is wrong with a client's."""

from __future__ import annotations

import copy
import gzip
from pathlib import Path

import httpx
import orjson
import pytest

from bot.sandbox.completion import Completer
from bot.sandbox.description import GitHubDescription, github_description
from bot.sandbox.extract import EVENTS, Extractor, closed, to_json_schema
from bot.sandbox.permissions import OPERATIONS
from bot.sandbox.transport import ContractError, ValidatingTransport

R = "/repos/o/r"
EXAMPLES = Path(__file__).parents[1] / "payloads" / "webhooks-examples.json.gz"


@pytest.fixture(scope="module")
def description() -> GitHubDescription:
    return github_description()


@pytest.fixture(scope="module")
def completer(description) -> Completer:
    return Completer(description)


def test_the_extract_holds_all_that_the_sandbox_needs(description):
    assert set(description.operations) == OPERATIONS
    assert set(description.webhooks) == EVENTS
    assert description.source == "npm @octokit/openapi 23.0.2"


@pytest.mark.parametrize(
    ("method", "path", "operation", "arguments"),
    [
        ("GET", "/repos/o/r/contents/a/b%20c.md", "repos/get-content", {"path": "a/b c.md"}),
        ("GET", "/repos/o/r/commits/feature/x", "repos/get-commit", {"ref": "feature/x"}),
        (
            "GET",
            "/repos/o/r/commits/feature/x/status",
            "repos/get-combined-status-for-ref",
            {"ref": "feature/x"},
        ),
        ("GET", "/repos/o/r/commits/main/check-runs", "checks/list-for-ref", {"ref": "main"}),
        ("GET", "/repos/o/r/compare/a...b/c", "repos/compare-commits-with-basehead", {"basehead": "a...b/c"}),
        ("GET", "/repos/o/r/git/ref/heads/a/b", "git/get-ref", {"ref": "heads/a/b"}),
        ("GET", "/repos/o/r/issues/comments/5", "issues/get-comment", {"comment_id": "5"}),
        ("GET", "/repos/o/r/issues/comments", "issues/list-comments-for-repo", {}),
        ("GET", "/users/a%5Bbot%5D", "users/get-by-username", {"username": "a[bot]"}),
        ("GET", "/repos/o/r/branches/a/b", "repos/get-branch", {"branch": "a/b"}),
    ],
)
def test_paths(description, method, path, operation, arguments):
    found, values = description.find(method, path)
    assert found.id == operation
    assert arguments.items() <= values.items()


@pytest.mark.parametrize(("method", "path"), [("GET", "/nothing"), ("POST", R), ("GET", f"{R}/issues/x")])
def test_unknown_paths(description, method, path):
    operation, problems = description.check_request(method, path)
    assert operation is None
    assert [one.where for one in problems] == ["route"]


GOOD = [
    ("POST", f"{R}/issues", {"title": "t", "labels": ["a", {"name": "b"}]}),
    ("POST", f"{R}/check-runs", {"name": "n", "head_sha": "a" * 40, "status": "in_progress"}),
    ("POST", f"{R}/check-runs", {"name": "n", "head_sha": "a" * 40, "conclusion": "success"}),
    ("PATCH", f"{R}/check-runs/1", {"status": "completed", "conclusion": "failure"}),
    ("POST", f"{R}/pulls", {"title": "t", "head": "h", "base": "b"}),
    ("POST", f"{R}/issues/1/labels", {"labels": ["a"]}),
    ("POST", "/app/installations/1/access_tokens", {"permissions": {"contents": "write"}}),
    ("POST", "/app/installations/1/access_tokens", None),
    ("GET", f"{R}/issues?state=all&per_page=100&page=2", None),
]


@pytest.mark.parametrize(("method", "url", "body"), GOOD)
def test_good_requests(description, method, url, body):
    raw = None if body is None else orjson.dumps(body)
    assert description.check_request(method, url, raw)[1] == []
    assert description.check_request(method, url, body)[1] == []


BAD = [
    ("POST", f"{R}/check-runs", {"name": "n", "head_sha": "a", "outputs": {}}, "outputs"),
    ("POST", f"{R}/check-runs", {"name": "n", "head_sha": "a", "status": "completed"}, "conclusion"),
    ("POST", f"{R}/check-runs", {"name": "n", "head_sha": "a", "status": "waiting"}, "GitHub Actions only"),
    ("POST", f"{R}/check-runs", {"name": "n", "head_sha": "a", "conclusion": "stale"}, "only GitHub"),
    ("PATCH", f"{R}/check-runs/1", {"output": {"title": "t", "summary": "s", "text": "x" * 65_536}}, "65535"),
    (
        "PATCH",
        f"{R}/check-runs/1",
        {"actions": [{"label": "l" * 21, "description": "d", "identifier": "i"}]},
        "",
    ),
    ("POST", f"{R}/pulls/1/reviews", {"event": "APPROVED"}, "APPROVED"),
    ("POST", f"{R}/pulls/1/reviews", {"event": "COMMENT"}, "body is required"),
    ("POST", f"{R}/issues/1/reactions", {"content": "thumbsup"}, "thumbsup"),
    ("POST", f"{R}/issues/1/comments", {"text": "x"}, "body"),
    ("POST", f"{R}/issues/1/comments", {"body": "x" * 65_537}, "too long"),
    ("POST", f"{R}/issues/1/labels", {"labels": ["a"], "label": "b"}, "label"),
    ("POST", f"{R}/issues/1/assignees", {"assignees": list("abcdefghijk")}, "10 assignees"),
    ("POST", f"{R}/labels", {"name": "x" * 51}, "50"),
    ("POST", f"{R}/dispatches", {"event_type": "x", "client_payload": dict.fromkeys("abcdefghijk", 1)}, "10"),
    ("POST", "/app/installations/1/access_tokens", {"permissions": {"content": "write"}}, "content"),
    ("POST", f"{R}/issues", None, "missing"),
    ("GET", f"{R}/issues?state=closd", None, "closd"),
    ("GET", f"{R}/issues?stat=open", None, "stat"),
    ("GET", f"{R}/issues?per_page=200", None, "at most 100"),
    ("GET", f"{R}/issues?page=two", None, "integer"),
    ("GET", R, {"no": "body"}, "takes no body"),
]


@pytest.mark.parametrize(("method", "url", "body", "word"), BAD)
def test_bad_requests(description, method, url, body, word):
    _, problems = description.check_request(method, url, body)
    assert problems
    assert word in " ".join(map(str, problems))


def test_bodies_of_the_wrong_kind(description):
    _, [problem] = description.check_request("POST", f"{R}/issues", b"{")
    assert "not JSON" in problem.message
    _, [problem] = description.check_request(
        "POST", f"{R}/issues", b"title=x", "application/x-www-form-urlencoded"
    )
    assert "content type" in problem.message
    annotation = {"path": "p", "start_line": 1, "end_line": 2, "annotation_level": "notice", "message": "m"}
    output = {"title": "t", "summary": "s", "annotations": [{**annotation, "start_column": 1}]}
    _, [problem] = description.check_request("PATCH", f"{R}/check-runs/1", {"output": output})
    assert "one line" in problem.message
    output["annotations"] = [{**annotation, "title": "x" * 256}]
    _, [problem] = description.check_request("PATCH", f"{R}/check-runs/1", {"output": output})
    assert "255" in problem.message


def test_every_answer_can_be_completed_from_nothing(description, completer):
    for operation in description.operations.values():
        for status, content in operation.responses.items():
            if status.startswith("2") and "application/json" in content:
                schema = description.resolve(content["application/json"])
                empty: object = [] if schema.get("type") == "array" else {}
                body = completer.complete_response(operation.id, int(status), empty)
                assert description.is_valid(content["application/json"], body), (operation.id, status)


PERSON = {"name": "n", "email": "n@example.com", "date": "2026-01-01T00:00:00Z"}
# where parts of one schema disagree about what may be null, the sandbox always says the value
TOLD = {
    "issues": {"issue": {"user": {}}},
    "issue_comment": {"issue": {"user": {}}},
    "status": {"commit": {"commit": {"author": PERSON, "committer": PERSON}}},
}


def test_every_webhook_can_be_completed_from_next_to_nothing(description, completer):
    for event, actions in description.webhooks.items():
        for action in actions:
            start = copy.deepcopy(TOLD.get(event, {}))
            payload = completer.complete_webhook(event, {**start, "action": action} if action else start)
            assert description.check_webhook(event, payload) == [], (event, action)


def test_completion_keeps_what_is_said(completer):
    body = {"number": 7, "title": "t", "user": {"login": "x"}, "labels": [{"name": "agent"}], "body": None}
    issue = completer.complete_response("issues/get", 200, body)
    assert (issue["number"], issue["title"], issue["body"]) == (7, "t", None)
    assert issue["user"]["login"] == "x"
    assert issue["labels"][0]["name"] == "agent"
    assert issue["comments_url"] == "https://api.github.com/"


def test_githubs_recorded_webhooks_pass_once_their_newer_fields_are_there(description, completer):
    """Old recordings lack required fields that are newer, and three have dates that GitHub writes otherwise now."""
    checked, known = (
        0,
        ("installation/created_at", "installation/updated_at", "app/created_at", "app/updated_at"),
    )
    for event, examples in orjson.loads(gzip.decompress(EXAMPLES.read_bytes())).items():
        for example in examples if event in description.webhooks else ():
            problems = description.check_webhook(event, completer.complete_webhook(event, example))
            assert all(any(word in one.message for word in known) for one in problems), problems
            checked += 1
    assert checked > 100


def test_wrong_answers(description):
    def wrong(status: int, body: object, content_type: str = "application/json") -> str:
        _, problems = description.check_response("GET", f"{R}/issues/1/comments", status, body, content_type)
        return " ".join(map(str, problems))

    assert wrong(200, []) == ""
    assert "is not of type" in wrong(200, {})
    assert "required property" in wrong(200, [{"id": 1}])
    assert "never 204" in wrong(204, None)
    assert "not JSON" in wrong(200, b"<html>")
    assert wrong(502, b"<html>", "text/html") == ""
    assert description.check_response("GET", "/nothing", 200, {})[0] is None
    _, [problem] = description.check_response("DELETE", f"{R}/issues/comments/1", 204, b"x")
    assert "no body" in problem.message


def test_wrong_webhooks(description):
    assert "no event" in str(description.check_webhook("nonsense", {})[0])
    assert "no event issues with action" in str(
        description.check_webhook("issues", {"action": "exploded"})[0]
    )
    assert "required property" in str(description.check_webhook("issues", {"action": "opened"})[0])


# ---- the transport


def transport(description, body: object, **options) -> ValidatingTransport:
    inner = httpx.MockTransport(lambda request: httpx.Response(200, json=body))
    return ValidatingTransport(inner, description, **options)


async def test_the_transport_stops_a_wrong_request_before_it_is_sent(description):
    sent = []

    def inner(request: httpx.Request) -> httpx.Response:
        sent.append(request)
        return httpx.Response(201, json={})

    wire = ValidatingTransport(httpx.MockTransport(inner), description)
    async with httpx.AsyncClient(transport=wire, base_url="https://api.github.com") as client:
        with pytest.raises(ContractError, match="boddy"):
            await client.post(f"{R}/issues/1/comments", json={"body": "x", "boddy": "y"})
    assert sent == []


async def test_the_transport_refuses_an_impossible_answer(description):
    async with httpx.AsyncClient(transport=transport(description, [{"id": 1}])) as client:
        with pytest.raises(ContractError, match="required property"):
            await client.get(f"https://api.github.com{R}/issues/1/comments")


async def test_the_transport_lets_good_traffic_through(description, completer):
    async with httpx.AsyncClient(transport=transport(description, [])) as client:
        assert (await client.get(f"https://api.github.com{R}/issues/1/comments?page=2")).json() == []


async def test_the_transport_on_an_enterprise_server_and_with_a_listener(description):
    said: list[str] = []
    wire = transport(description, [], prefix="/api/v3", on_problem=said.append)
    async with httpx.AsyncClient(transport=wire) as client:
        await client.get(f"https://ghe.example.com/api/v3{R}/issues/1/comments")
        assert said == []
        await client.get(f"https://ghe.example.com/api/v3{R}/issues/1/comments?oops=1")
    assert len(said) == 1
    assert "oops" in said[0]


# ---- the extract


@pytest.mark.parametrize(
    ("old", "new"),
    [
        (
            {"type": "string", "nullable": True, "enum": ["a"]},
            {"type": ["string", "null"], "enum": ["a", None]},
        ),
        (
            {"type": "integer", "minimum": 1, "exclusiveMinimum": True},
            {"type": "integer", "exclusiveMinimum": 1},
        ),
        ({"type": "string", "format": "email"}, {"type": "string"}),
        ({"type": "string", "format": "date-time"}, {"type": "string", "format": "date-time"}),
        (
            {"$ref": "#/components/schemas/x", "nullable": True},
            {"$ref": "github:description#/schemas/x"},
        ),
        ({"oneOf": [{"type": "string"}]}, {"type": "string"}),
        (
            {"nullable": True, "anyOf": [{"type": "string"}, {"type": "integer"}]},
            {"anyOf": [{"anyOf": [{"type": "string"}, {"type": "integer"}]}, {"type": "null"}]},
        ),
    ],
)
def test_the_dialect_is_translated(old, new):
    assert to_json_schema(old) == new


def test_bodies_are_closed_but_maps_stay_open():
    body = {
        "type": "object",
        "properties": {"a": {"type": "object", "additionalProperties": {"type": "string"}}},
    }
    result = closed(body)
    assert result["unevaluatedProperties"] is False
    assert "unevaluatedProperties" not in result["properties"]["a"]


def test_a_source_that_lacks_an_operation():
    empty = {"paths": {}, "x-webhooks": {}, "components": {}, "info": {"version": "0"}}
    with pytest.raises(LookupError, match="issues/create"):
        Extractor(empty).extract()
