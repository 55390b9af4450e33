"""Annotations of check runs: remarks beside the lines of files.

https://docs.github.com/en/rest/checks/runs#create-a-check-run
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from typing import Any

from bot.held_back import HeldBack
from bot.model import Job
from bot.network import Blocked
from bot.repo_config import PATH as CONFIG_PATH

BATCH = 50  # that GitHub takes with one request; further ones are added by further requests
MAX_ANNOTATIONS = 500  # of one check run: more are not read by anybody
MAX_MESSAGE = 16_000  # characters; GitHub takes 64 KB
MAX_TITLE = 255
MAX_LINES = 20  # of hosts that could be allowed; the summary counts the rest
LEVELS = frozenset({"notice", "warning", "failure"})


@dataclass(frozen=True, kw_only=True)
class Annotation:
    """One remark. ``end_line`` defaults to ``start_line``; lines count from 1."""

    path: str
    message: str
    start_line: int = 1
    end_line: int | None = None
    column: int | None = None  # where it begins; GitHub takes columns for remarks on one line only
    level: str = "warning"  # one of LEVELS
    title: str = ""

    def __post_init__(self) -> None:
        if self.level not in LEVELS or self.start_line < 1 or not (self.path and self.message):
            raise ValueError(f"not an annotation: {self}")

    def data(self) -> dict[str, Any]:
        """As GitHub takes it."""
        values: dict[str, Any] = {
            "path": self.path,
            "start_line": self.start_line,
            "end_line": max(self.start_line, self.end_line or self.start_line),
            "annotation_level": self.level,
            "message": self.message[:MAX_MESSAGE],
        }
        if self.column is not None and values["end_line"] == self.start_line:
            values |= {"start_column": self.column, "end_column": self.column}
        return values | ({"title": self.title[:MAX_TITLE]} if self.title else {})


def batches(annotations: Sequence[Annotation], told: int = 0) -> Iterator[list[Annotation]]:
    """Groups that GitHub takes with one request each, without the first ``told``: those it has."""
    wanted = annotations[:MAX_ANNOTATIONS]
    for start in range(told, len(wanted), BATCH):
        yield list(wanted[start : start + BATCH])


def of_job(job: Job, blocked: Sequence[Blocked]) -> tuple[Annotation, ...]:
    """What there is to remark beside files at a job's end, always in the same order.

    Files whose change was held back, and the lines that would let an agent connect to what it was refused.
    """
    found = []
    if held := HeldBack.load(job.held_back):
        found += [
            Annotation(
                path=file,
                title="Not pushed",
                message=f"{job.agent} changed this file. Only people change it here: read the patch in the job's "
                "comment or pull request, and apply it or leave it.",
            )
            for file in held.files
        ]
    for line in list(dict.fromkeys(entry.line for entry in blocked if entry.line))[:MAX_LINES]:
        found.append(
            Annotation(
                path=CONFIG_PATH,
                level="notice",
                title="Connection refused",
                message=f"{job.agent} wanted to connect to what this job may not reach. To allow it, add to "
                f"`network.allow` in {CONFIG_PATH} on the default branch:\n\n- {line}",
            )
        )
    return tuple(found)
