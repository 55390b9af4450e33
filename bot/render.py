"""Texts for people, from `templates/`. A variable that a template lacks is an error, never an empty string."""

from __future__ import annotations

import re
from collections.abc import Sequence
from functools import cache

from jinja2 import Environment, PackageLoader, StrictUndefined
from markdown_it import MarkdownIt

from bot.agent_requests import ToDo
from bot.held_back import HeldBack
from bot.model import Job, Usage, Waiting

#: GitHub refuses longer bodies (issues, comments, pull requests) and check-run summaries.
MAX_BODY = 65_000
MAX_ASKED = 20_000  # characters of what a comment asks people to approve

_ZERO_WIDTH = "\u200b"
# Characters that nobody sees, or that reorder what is seen: zero-width, bidirectional, tags, soft hyphens, variation
# selectors of their own, and control characters but tabs and line ends (CVE-2021-42574, https://trojansource.codes).
_UNSEEN = re.compile(
    "[\x00-\x08\x0b-\x1f\x7f-\x9f\u00ad\u034f\u061c\u115f\u1160\u17b4\u17b5\u180b-\u180f\u200b-\u200f"
    "\u2028-\u202e\u2060-\u206f\u3164\ufe00-\ufe0e\ufeff\uffa0\ufff9-\ufffb\U000e0000-\U000e0fff]"
)
# Each of these gets a zero-width space where it says so (at the empty group), so that it looks as it did and does
# nothing. An entity could write any of the others, so entities go as well.
_ACTIVE = re.compile(
    # @user, @org/team, in any context
    r"@()(?=\S)"
    # https://docs.github.com/en/get-started/writing-on-github/working-with-advanced-formatting/
    # autolinked-references-and-urls: #12, owner/repo#12, GH-12
    r"|#()(?=[0-9])"
    r"|\b[Gg][Hh]-()(?=[0-9])"
    # the address of an issue, pull request, discussion or commit, on any GitHub
    r"|/(?:issues|pull|pulls|discussions|commit|commits)/()(?=[0-9a-fA-F])"
    # &#64; &commat;
    r"|&()(?=#|[A-Za-z][A-Za-z0-9]*;)"
)
# Only where Markdown is read: raw HTML and comments; images, which are fetched by whoever looks; other bots' commands.
_MARKUP = re.compile(r"<()(?=[A-Za-z/!?])|!()(?=\[)|^[ \t]{0,3}()(?=/[A-Za-z])", re.MULTILINE)
# https://docs.github.com/en/issues/tracking-your-work-with-issues/linking-a-pull-request-to-an-issue
_CLOSING = re.compile(
    r"\b(close[sd]?|fix(?:e[sd])?|resolve[sd]?)()(?=[\s:*_~`\[(\\]{1,20}"
    r"(?:#|GH-|https?://|[\w.-]{1,100}/[\w.-]{1,100}#))",
    re.IGNORECASE,
)
# https://docs.github.com/en/actions/managing-workflow-runs/skipping-workflow-runs
_SKIPPING = re.compile(
    r"\[()(?=(?:skip[ -]ci|ci[ -]skip|no[ -]ci|skip[ -]actions|actions[ -]skip)\])", re.IGNORECASE
)


def marker(kind: str, key: str) -> str:
    """The hidden line by which a text of ours is found again."""
    return f"<!-- agent-conductor:{kind}:{key} -->"


def quiet(text: str) -> str:
    """Markdown that is not ours, made harmless: it mentions nobody, refers to and closes no issue, loads no image.

    It holds no HTML and no marker, hides nothing, and is no other bot's command. It looks as it did: what is active
    is parted by a zero-width space. Code is treated like everything else, because only GitHub knows what it takes
    for code.
    """
    return _parted(_parted(_quiet(text), _MARKUP), _SKIPPING)


def seen(text: str) -> str:
    """``text`` without the characters that nobody sees, or that reorder what is seen."""
    return _UNSEEN.sub("", text)


def quiet_line(text: str) -> str:
    """The same for one line that is no Markdown: a title, the first line of a commit's message."""
    return _parted(_quiet(" ".join(text.split())), _SKIPPING)


def _quiet(text: str) -> str:
    text = seen(text.replace("\r\n", "\n").replace("\u2028", "\n").replace("\u2029", "\n"))
    return _parted(_parted(text, _CLOSING), _ACTIVE)


def _parted(text: str, active: re.Pattern[str]) -> str:
    """``text`` with a zero-width space at each match's empty group."""
    parts, at = [], 0
    for match in active.finditer(text):
        place = next(match.start(number) for number, group in enumerate(match.groups(), 1) if group == "")
        parts += [text[at:place], _ZERO_WIDTH]
        at = place
    return "".join((*parts, text[at:]))


def fence(text: str) -> str:
    """A code fence that nothing in ``text`` can end (https://spec.commonmark.org/0.31.2/#fenced-code-blocks)."""
    longest = max((len(run) for run in re.findall(r"`+", text)), default=0)
    return "`" * max(3, longest + 1)


def code(text: str) -> str:
    """One line as a code span that nothing in it can end."""
    longest = max((len(run) for run in re.findall(r"`+", text)), default=0)
    mark, space = "`" * (longest + 1), " " if "`" in text else ""
    return f"{mark}{space}{oneline(text, 300)}{space}{mark}"


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
    if waiting.settling:
        return "in a moment; until then other reviews can join it"
    if waiting.position > 1:
        return f"as soon as a slot is free: it is {ordinal(waiting.position)} in line"
    return "as soon as a slot is free"


def how_far(todo: Sequence[ToDo]) -> str:
    """How much of a list is done, and what comes next: ``3 of 7 done, next: write the tests``."""
    done = sum(item.done for item in todo)
    coming = next((item.text for item in todo if not item.done), "")
    return f"{done} of {len(todo)} done" + (f", next: {oneline(coming, 80)}" if coming else "")


def closed(text: str) -> str:
    """Markdown whose last code fence does not go on into what follows it."""
    parsed = MarkdownIt("commonmark").parse(text)
    if not parsed or parsed[-1].type != "fence":  # one inside a list or a quotation ends with that
        return text
    ended = f"{text}\n{parsed[-1].markup}"
    # a fence that was closed before is not closed by that: another one begins
    return ended if len(MarkdownIt("commonmark").parse(ended)) == len(parsed) else text


def split(text: str, limit: int) -> tuple[str, str]:
    """Whole paragraphs of Markdown, ``limit`` characters at most, and the rest; no code block is torn.

    A first paragraph that is too long is in the rest, with its beginning as the first part.
    """
    text = text.strip()
    if len(text) <= limit:
        return closed(text), ""
    lines, fence, end, at = text.split("\n"), "", 0, 0
    for line in lines:
        if not line.strip() and not fence:
            end = at
        fence = _fence_after(line, fence)
        at += len(line) + 1
        if at > limit:
            break
    if not end:
        return oneline(text.lstrip("`~# "), min(limit, 300)), closed(text)
    return text[:end].rstrip(), closed(text[end:].strip())


def _fence_after(line: str, fence: str) -> str:
    """The code fence that is open after ``line`` when ``fence`` was before it; "" when none is.

    https://spec.commonmark.org/0.31.2/#fenced-code-blocks
    """
    found = re.match(r" {0,3}(`{3,}|~{3,})(.*)$", line)
    if found is None:
        return fence
    mark, rest = found[1], found[2]
    if not fence:
        return "" if mark[0] == "`" and "`" in rest else mark
    ends = mark[0] == fence[0] and len(mark) >= len(fence) and not rest.strip()
    return "" if ends else fence


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
    environment.globals["max_asked"] = MAX_ASKED
    environment.filters |= {
        function.__name__: function
        for function in (
            quiet,
            quiet_line,
            clip,
            oneline,
            duration,
            money,
            tokens,
            fence,
            code,
            how_far,
            closed,
            split,
        )
    }
    environment.filters["held_back"] = HeldBack.load
    return environment


def render(template: str, *, limit: int = MAX_BODY, **values: object) -> str:
    """Render ``templates/<template>``, cut to ``limit`` characters (default: what GitHub takes)."""
    text = _environment().get_template(template).render(values).strip()
    return clip(re.sub(r"\n{3,}", "\n\n", text) + "\n", limit)
