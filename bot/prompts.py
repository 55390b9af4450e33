"""What an agent is told. The text of a trigger is quoted between lines that it cannot contain."""

from __future__ import annotations

import hashlib
import re

from bot.model import Job, TargetKind
from bot.render import render

MAX_TEXT = 100_000
# characters that people do not see, and that hide instructions: zero-width, bidirectional, tags, variation
_INVISIBLE = re.compile(
    "[\u200b-\u200f\u202a-\u202e\u2060-\u2064\u2066-\u206f\ufeff\u00ad\U000e0000-\U000e007f]"
)
_HTML_COMMENT = re.compile(r"<!--.*?(?:-->|\Z)", re.S)


def visible(text: str) -> str:
    """The text as a reader of the page sees it: without HTML comments and invisible characters."""
    text = _HTML_COMMENT.sub("", text.replace("\r\n", "\n"))
    text = _INVISIBLE.sub("", text)
    text = "".join(character for character in text if character in "\n\t" or character.isprintable())
    return text[:MAX_TEXT].strip()


def task_prompt(job: Job) -> str:
    """The prompt of a job's first turn."""
    title, body = visible(job.title), visible(job.body)
    # derived from the text: the text cannot contain the line that ends it
    fence = "=====" + hashlib.sha256(f"{title}\0{body}".encode()).hexdigest()[:16]
    return render(
        "prompts/task.md.j2",
        limit=4 * MAX_TEXT,
        repo=job.repo.full_name,
        number=job.number,
        pull=job.target is TargetKind.pull_request,
        instructions=visible(job.instructions),
        title=title,
        body=body,
        fence=fence,
    )
