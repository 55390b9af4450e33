"""What GitHub's description says in prose only, as checks on request bodies.

Each rule is a generator of sentences; a correct body yields none. Source: the descriptions of the
operations at https://docs.github.com/en/rest (checks, issues, pulls, repos).
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping
from typing import Any

import orjson

MAX_BODY = 65_536
"""Characters that an issue, a comment or a review may hold."""

MAX_OUTPUT = 65_535
"""Characters that a check run's summary and text may hold, each."""

Body = Mapping[str, Any]


def _text(body: Body) -> Iterator[str]:
    if len(body.get("body") or "") > MAX_BODY:
        yield f"body is too long (maximum is {MAX_BODY} characters)"


def _review(body: Body) -> Iterator[str]:
    yield from _text(body)
    if body.get("event") in ("REQUEST_CHANGES", "COMMENT") and not body.get("body"):
        yield f"body is required with event {body['event']}"


def _check_run(body: Body) -> Iterator[str]:
    completed = body.get("status") == "completed" or "completed_at" in body
    if completed and not body.get("conclusion"):
        yield "conclusion is required with status completed and with completed_at"
    if body.get("status") in ("waiting", "requested", "pending"):
        yield f"status {body['status']} is for GitHub Actions only"
    if body.get("conclusion") == "stale":
        yield "only GitHub may set the conclusion stale"
    output = body.get("output") or {}
    for key in ("summary", "text"):
        if len(output.get(key) or "") > MAX_OUTPUT:
            yield f"output.{key} is over {MAX_OUTPUT} characters"
    for annotation in output.get("annotations", []):
        yield from _annotation(annotation)


def _annotation(annotation: Body) -> Iterator[str]:
    columns = annotation.keys() & {"start_column", "end_column"}
    if columns and annotation.get("start_line") != annotation.get("end_line"):
        yield "an annotation may name columns only when it starts and ends on one line"
    for key, limit in (("message", 65_536), ("raw_details", 65_536), ("title", 255)):
        if len((annotation.get(key) or "").encode()) > limit:
            yield f"annotation {key} is over {limit} bytes"


def _label(body: Body) -> Iterator[str]:
    if len(body.get("description") or "") > 100:
        yield "description is too long (maximum is 100 characters)"
    if len(body.get("name") or body.get("new_name") or "") > 50:
        yield "name is too long (maximum is 50 characters)"


def _assignees(body: Body) -> Iterator[str]:
    if len(body.get("assignees") or []) > 10:
        yield "at most 10 assignees"


def _dispatch(body: Body) -> Iterator[str]:
    payload = body.get("client_payload", {})
    if len(payload) > 10:
        yield "client_payload has more than 10 top-level keys"
    if len(orjson.dumps(payload)) >= 64 * 1024:
        yield "client_payload is 64 KiB or more"


_RULES: dict[str, Callable[[Body], Iterator[str]]] = {
    "checks/create": _check_run,
    "checks/update": _check_run,
    "issues/create": _text,
    "issues/update": _text,
    "issues/create-comment": _text,
    "issues/update-comment": _text,
    "issues/create-label": _label,
    "issues/update-label": _label,
    "issues/add-assignees": _assignees,
    "pulls/create": _text,
    "pulls/update": _text,
    "pulls/create-review": _review,
    "pulls/submit-review": _review,
    "pulls/create-review-comment": _text,
    "pulls/create-reply-for-review-comment": _text,
    "pulls/update-review-comment": _text,
    "repos/create-dispatch-event": _dispatch,
}


def broken_rules(operation: str, body: Any) -> list[str]:
    """The prose rules of ``operation`` that this decoded JSON body breaks."""
    rule = _RULES.get(operation)
    return list(dict.fromkeys(rule(body))) if rule and isinstance(body, dict) else []
