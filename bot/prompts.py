"""What an agent is told. The text of a trigger is quoted between lines that it cannot contain."""

from __future__ import annotations

import hashlib
import re
from collections.abc import Sequence
from typing import Any

from markdown_it import MarkdownIt
from markdown_it.common.utils import normalizeReference

from bot.model import Approval, Job, JobKind, TargetKind
from bot.profiles import Profile, kept
from bot.render import MAX_ASKED, clip, quiet, render, seen

MAX_TEXT = 100_000
_HTML_COMMENT = re.compile(r"<!--.*?(?:-->|\Z)", re.S)


def visible(text: str) -> str:
    """The text as a reader of the page sees it: without HTML comments, link definitions and invisible characters.

    Of a definition that a link uses, the address stays. (`[//]: # (…)` is a well-known way to hide a remark.)
    """
    text = _HTML_COMMENT.sub("", text.replace("\r\n", "\n"))
    text = seen(text)
    if not text.replace("\n", "").replace("\t", "").isprintable():
        text = "".join(character for character in text if character in "\n\t" or character.isprintable())
    return _without_definitions(text[:MAX_TEXT]).strip()


def _without_definitions(text: str) -> str:
    # https://spec.commonmark.org/0.31.2/#link-reference-definitions
    if "]:" not in text:
        return text
    found: dict[str, Any] = {}
    MarkdownIt("commonmark").parse(text, found)
    definitions = [{"label": label, **one} for label, one in found.get("references", {}).items()]
    definitions += found.get("duplicate_refs", [])
    if not definitions:
        return text
    lines: list[str | None] = list(text.split("\n"))
    for one in definitions:
        lines[slice(*one["map"])] = [None] * (one["map"][1] - one["map"][0])
    rest = normalizeReference("\n".join(line for line in lines if line is not None))
    for label, one in found.get("references", {}).items():
        if f"[{label}]" in rest:
            lines[one["map"][0]] = f"[{label.lower()}]: {one['href']}"
    return "\n".join(line for line in lines if line is not None)


#: What a job is told first, by its kind. The failed checks of a `fix` are part of its instructions.
_TEMPLATES = {
    JobKind.task: "prompts/task.md.j2",
    JobKind.fix: "prompts/task.md.j2",
    JobKind.plan: "prompts/plan.md.j2",
    JobKind.review: "prompts/review.md.j2",
    JobKind.ask: "prompts/ask.md.j2",
}


def task_prompt(job: Job, *, may_ask: bool = False, tools: bool = False) -> str:
    """The prompt of a job's first turn.

    ``may_ask``: its agent can go on after a person's answer; ``tools``: it has the tools of the gateway's MCP server.
    """
    profile = profile_part(kept(job))
    title, body = visible(job.title), visible(job.body)
    # derived from the text: the text cannot contain the line that ends it
    fence = "=====" + hashlib.sha256(f"{title}\0{body}".encode()).hexdigest()[:16]
    return profile + render(
        _TEMPLATES[job.kind],
        limit=4 * MAX_TEXT,
        repo=job.repo.full_name,
        number=job.number,
        pull=job.target is TargetKind.pull_request,
        issue=job.asked_in if job.asked_in != job.number else None,
        instructions=visible(job.instructions),
        title=title,
        body=body,
        fence=fence,
        may_ask=may_ask,
        tools=tools,
        base=job.base or "",
    )


def bare_prompt(job: Job) -> str:
    """What an agent without a model gets: nobody is there to instruct, so it is what people wrote, and only that."""
    if job.named is not None and job.named.steps:
        return job.instructions  # the repository's own scripts, as they are written
    return visible(job.instructions) or visible(job.body)


def profile_part(profile: Profile | None) -> str:
    """What stands before a task of somebody with a profile.

    Every line is quoted: so nothing in it ends the part, and a code block in it is no step (bot.steps).
    """
    text = visible(profile.text) if profile is not None else ""
    if profile is None or not text:
        return ""
    quoted = "\n".join(f"> {line}".rstrip() for line in text.split("\n"))
    # an empty line ends a quotation: https://spec.commonmark.org/0.31.2/#block-quotes
    return render("prompts/profile.md.j2", limit=4 * MAX_TEXT, name=profile.name, quoted=quoted) + "\n"


def told_prompt(said: Sequence[tuple[str, str]]) -> str:
    """The prompt of the turn after an agent's work was done, when people said more meanwhile: who, and the words."""
    told = [(by, visible(words)) for by, words in said]
    fence = "=====" + hashlib.sha256("\0".join(words for _, words in told).encode()).hexdigest()[:16]
    return render("prompts/told.md.j2", limit=4 * MAX_TEXT, told=told, fence=fence)


def approved_plan(approval: Approval, *, by: str, words: str) -> str:
    """The instructions of the job that carries out an approved plan."""
    return render(
        "prompts/approved_plan.md.j2",
        limit=4 * MAX_TEXT,
        plan=visible(clip(quiet(approval.subject), MAX_ASKED)),  # what people were shown, and no more
        by=by,
        words=visible(words),
    )


def answer_prompt(job: Job) -> str:
    """The prompt of the turn after a question: the answer of a person who may command us."""
    question, answer = visible(job.question), visible(job.answer or "") or "Go on as you think best."
    return render(
        "prompts/answer.md.j2",
        limit=4 * MAX_TEXT,
        question=question,
        by=job.answered_by or "A person",
        answer=answer,
        fence="=====" + hashlib.sha256(answer.encode()).hexdigest()[:16],
    )


def go_on_prompt(job: Job, *, work: bool, may_ask: bool = False, tools: bool = False) -> str:
    """The prompt of a turn that goes on from an earlier try. ``work``: its changes are in the branch."""
    return render(
        "prompts/go_on.md.j2",
        limit=4 * MAX_TEXT,
        work=work,
        base=job.base_sha or "",
        task=task_prompt(job, may_ask=may_ask, tools=tools),
    )
