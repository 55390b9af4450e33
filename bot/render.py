"""Texts for people, from `templates/`. A variable that a template lacks is an error, never an empty string."""

from __future__ import annotations

import re
from functools import cache

from jinja2 import Environment, PackageLoader, StrictUndefined

from bot.model import Job, JobState, Usage, Waiting

#: GitHub refuses longer bodies (issues, comments, pull requests) and check-run summaries.
MAX_BODY = 65_000

_MENTION = re.compile(r"@(?=[A-Za-z0-9])")
# https://docs.github.com/en/issues/tracking-your-work-with-issues/linking-a-pull-request-to-an-issue
_CLOSING = re.compile(
    r"\b(close[sd]?|fix(?:e[sd])?|resolve[sd]?)(:?\s+)(?=#|https?://|[\w.-]+/[\w.-]+#)", re.I
)
_ZERO_WIDTH = "\u200b"


def marker(kind: str, key: str) -> str:
    """The hidden line by which a text of ours is found again."""
    return f"<!-- agent-conductor:{kind}:{key} -->"


def quiet(text: str) -> str:
    """Text that is not ours, made harmless: it mentions nobody, closes no issue and hides no marker."""
    text = text.replace("<!--", "&lt;!--")
    text = _MENTION.sub("@" + _ZERO_WIDTH, text)
    return _CLOSING.sub(lambda match: f"{match[1]}{_ZERO_WIDTH}{match[2]}", text)


def clip(text: str, limit: int = MAX_BODY) -> str:
    """At most ``limit`` characters; what was cut is said."""
    if len(text) <= limit:
        return text
    note = "\n\n… (cut)"
    return text[: limit - len(note)] + note


def oneline(text: str, limit: int = 160) -> str:
    """The text as one short line."""
    line = " ".join(text.split())
    return line if len(line) <= limit else line[: limit - 1] + "…"


def duration(seconds: float) -> str:
    """``95`` -> ``1 min 35 s``."""
    whole = round(seconds)
    if whole < 60:
        return f"{whole} s"
    minutes, rest = divmod(whole, 60)
    if minutes < 60:
        return f"{minutes} min {rest} s" if rest else f"{minutes} min"
    hours, minutes = divmod(minutes, 60)
    return f"{hours} h {minutes} min" if minutes else f"{hours} h"


def money(usage: Usage) -> str:
    """What the calls cost, or that no price is known."""
    if not usage.requests:
        return "no calls"
    if usage.cost is None:
        return "cost unknown"
    return f"${usage.cost:.2f}" if usage.cost >= 0.1 else f"${usage.cost:.4f}"


def tokens(usage: Usage) -> str:
    """Tokens and cost in a few words."""
    parts = f"{usage.input_tokens:,} tokens in, {usage.output_tokens:,} out"
    if usage.cached_tokens:
        parts += f", {usage.cached_tokens:,} cached"
    return f"{parts}, {money(usage)}"


def ordinal(number: int) -> str:
    """``1`` -> ``1st``, ``12`` -> ``12th``."""
    endings = {1: "st", 2: "nd", 3: "rd"}
    return f"{number}{'th' if number % 100 in (11, 12, 13) else endings.get(number % 10, 'th')}"


def waiting_words(job: Job, waiting: Waiting) -> str:
    """When a queued job will start: what follows "it starts"."""
    if waiting.unserved:
        names = " and ".join(f"`{name}`" for name in waiting.unserved)
        return f"when a worker host that serves {names} is there; none is at the moment"
    if waiting.no_host:
        return "when a worker host is there; none is at the moment"
    if waiting.here:
        return f"after {waiting.here} other {'job' if waiting.here == 1 else 'jobs'} here"
    if waiting.limit:
        runs = "job that runs" if waiting.running == 1 else f"{waiting.running} jobs that run"
        whose = {
            "user": f"for {quiet(job.trigger.actor.login)}",
            "repository": "in this repository",
            "installation": f"for {quiet(job.repo.owner)}",
        }[waiting.limit]
        ends = "when the" if waiting.running == 1 else "when one of the"
        return f"{ends} {runs} {whose} has ended; no more may run at once"
    if waiting.position > 1:
        return f"as soon as a slot is free: it is {ordinal(waiting.position)} in line"
    return "as soon as a slot is free"


def next_step(job: Job) -> str:
    """What the reader may do now."""
    if job.state is JobState.succeeded and job.head_sha:
        return f"review pull request #{job.pull_number}." if job.pull_number else ""
    if job.state in (JobState.queued, JobState.running):
        return "`/agent cancel` stops it."
    if job.state is JobState.paused:
        return "" if job.answer is not None else "write `/agent resume` and your answer; `/agent cancel` stops it."
    if job.state is JobState.succeeded:
        return "write `/agent` and what should be different."
    return (
        "write `/agent resume` to go on from where it stopped, `/agent retry` to do it afresh, or `/agent` and what "
        "should be different."
    )


@cache
def _environment() -> Environment:
    environment = Environment(
        loader=PackageLoader("templates", ""),
        undefined=StrictUndefined,
        autoescape=False,  # noqa: S701 - Markdown; what others wrote goes through `quiet`
        trim_blocks=True,
        lstrip_blocks=True,
        keep_trailing_newline=False,
    )
    environment.filters |= {
        function.__name__: function for function in (quiet, clip, oneline, duration, money, tokens)
    }
    return environment


def render(template: str, *, limit: int = MAX_BODY, **values: object) -> str:
    """Render ``templates/<template>``, cut to ``limit`` characters (default: what GitHub takes)."""
    text = _environment().get_template(template).render(values).strip()
    return clip(re.sub(r"\n{3,}", "\n\n", text) + "\n", limit)
