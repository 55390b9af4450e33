"""Jobs for tests that are about something else: as one is when somebody has asked for it."""

from __future__ import annotations

from datetime import UTC, datetime, timedelta
from typing import Any

from bot.model import Actor, Job, JobState, Repo, TargetKind, Trigger

MARIA = Actor(login="maria", id=3, type="User")
HELLO = Repo(owner="acme", name="hello", id=10, installation_id=20)


def asked_job(name: str = "j1", *, by: Actor = MARIA, event: str = "issues.labeled", **changes: Any) -> Job:
    """A job for the shell agent that waits, on an issue, with the id ``name``; ``changes`` are other fields.

    Each name has a delivery of its own that asked for it, a minute ago: while it is younger, who has something to tell
    waits some seconds for whoever may be writing the job's first comment.
    """
    values: dict[str, Any] = {
        "id": name,
        "repo": HELLO,
        "number": 1,
        "target": TargetKind.issue,
        "trigger": Trigger(delivery_id=f"d-{name}", event=event, actor=by),
        "agent": "shell",
        "model": None,
        "instructions": "",
        "title": "T",
        "body": "",
        "timeout": 60,
        "state": JobState.queued,
        "created_at": datetime.now(UTC) - timedelta(minutes=1),
    }
    return Job(**values | changes)
