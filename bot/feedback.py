"""A review of a pull request as the next thing that its agent is told, and the agent's answers to its threads.

Everything that people wrote is quoted between lines that it cannot contain, as in ``bot.prompts``. What was edited
after the review was submitted, and what people without write access wrote, is left out, and that is said.

The shape of reviews and of their comments: https://docs.github.com/en/rest/pulls/reviews and
https://docs.github.com/en/rest/pulls/comments.
"""

from __future__ import annotations

import hashlib
import re
import sys
from collections.abc import Collection, Mapping, Sequence
from dataclasses import dataclass, replace
from datetime import datetime, timedelta
from typing import Any

from bot.prompts import visible
from bot.render import clip, closed, oneline, render, seen
from bot.slash import parse_commands

#: Characters of a turn's instructions that reviews may make up in all, and of one text of theirs.
MAX_INSTRUCTIONS = 60_000
MAX_WORDS = 8_000
MAX_MERGED = 90_000  # of several turns' instructions in one; bot.prompts cuts at 100,000
MIN_ROOM = 2_000  # less than this of another review is of no use
MAX_THREADS = 50  # of one review
MAX_EARLIER = 10  # comments of a thread before the review's own: the newest ones
MAX_HUNK_LINES = 30  # of the diff above a comment
MAX_REPLIES = 50
MAX_REPLY = 5_000  # characters
#: GitHub may set ``updated_at`` of a review's comments while it submits them; an edit by hand is later.
SUBMITTING = timedelta(seconds=5)

_THREAD = re.compile(r"^## Thread (\d{1,18}): ", re.MULTILINE)
_SAYS = {
    "CHANGES_REQUESTED": "requested changes",
    "COMMENTED": "commented",
    "APPROVED": "approved, with comments",
}


@dataclass(frozen=True, kw_only=True)
class Words:
    """What one person, or we, wrote in a thread."""

    by: str  # "maria", or "You" for us
    text: str


@dataclass(frozen=True, kw_only=True)
class ReviewThread:
    """A place in the diff that a review speaks about. ``id`` is its first comment's: what replies go to."""

    id: int
    place: str  # "`src/a.py`, lines 3 to 5"
    hunk: str  # the diff up to there
    earlier: Sequence[Words] = ()
    said: Sequence[Words] = ()  # by this review


@dataclass(frozen=True, kw_only=True)
class Feedback:
    """What a submitted review asks for. ``left_out``: what the agent is not shown, a sentence each."""

    review_id: int
    author: str
    state: str  # GitHub's: CHANGES_REQUESTED, COMMENTED, APPROVED
    body: str
    sha: str  # the commit that was reviewed
    threads: Sequence[ReviewThread] = ()
    left_out: Sequence[str] = ()

    @property
    def empty(self) -> bool:
        """Whether there is nothing in it for an agent to do."""
        return not self.body and not self.threads


@dataclass(frozen=True, kw_only=True)
class Asked:
    """The instructions of a turn, and what was kept out of them, a sentence each."""

    text: str
    left_out: tuple[str, ...] = ()


@dataclass(frozen=True, kw_only=True)
class Reply:
    """What the agent says to a thread, and whether it has done what was asked there."""

    thread: int
    text: str
    resolved: bool


def read_feedback(
    review: Mapping[str, Any],
    comments: Sequence[Mapping[str, Any]],
    *,
    body: str,
    trusted: Collection[int],
    me: int,
) -> Feedback | None:
    """What a review says, from GitHub's answers as they are now; None when it does not count (any more).

    ``comments`` are all comments on the diff of the pull request, of any review; ``body`` is the review's text as it
    was when it was submitted (the delivery has it); ``trusted`` are the ids of people whose words may reach a
    prompt, and ``me`` is our own. Who wrote the review must have been asked about before, and be trusted.
    """
    author = review.get("user") or {}
    state = str(review.get("state") or "").upper()
    submitted = _time(review.get("submitted_at"))
    if state not in _SAYS or submitted is None or author.get("id") not in trusted:
        return None
    left_out: list[str] = []
    said = visible_words(body)
    if (review.get("body") or "") != body:
        said = ""
        left_out.append("The text of the review was edited after it was submitted.")
    elif parse_commands(body):
        said = ""  # a command, which is carried out as one
    threads, more = _threads(review, comments, submitted=submitted, trusted=trusted, me=me)
    return Feedback(
        review_id=int(review["id"]),
        author=str(author.get("login") or "somebody"),
        state=state,
        body=said,
        sha=str(review.get("commit_id") or ""),
        threads=threads,
        left_out=(*left_out, *more),
    )


def _threads(
    review: Mapping[str, Any],
    comments: Sequence[Mapping[str, Any]],
    *,
    submitted: datetime,
    trusted: Collection[int],
    me: int,
) -> tuple[list[ReviewThread], list[str]]:
    """The threads in which the review says something, in its order, and what of them is left out."""
    by_id = {int(one["id"]): one for one in comments}
    talks: dict[int, list[Mapping[str, Any]]] = {}
    for one in sorted(comments, key=lambda one: int(one["id"])):
        talks.setdefault(_root(one, by_id), []).append(one)
    threads: list[ReviewThread] = []
    edited = strangers = 0
    author = review["user"]["id"]
    late = submitted + SUBMITTING
    for root, talk in talks.items():
        earlier: list[Words] = []
        said: list[Words] = []
        old_edited = old_strangers = 0
        for one in talk:
            user = one.get("user") or {}
            written, changed = _time(one.get("created_at")), _time(one.get("updated_at"))
            if written is None or written > late:
                continue  # came after the review: whoever wrote it will be heard in their own turn
            own = one.get("pull_request_review_id") == review["id"] and user.get("id") == author
            if own and parse_commands(str(one.get("body") or "")):
                continue  # a command, which is carried out as one
            touched = changed is None or changed > late
            known = user.get("id") == me or user.get("id") in trusted
            if touched or not known:
                if own:
                    edited += 1
                else:
                    old_edited += known
                    old_strangers += not known
                continue
            text = visible_words(str(one.get("body") or ""))
            if text:
                by = "You" if user.get("id") == me else str(user.get("login") or "somebody")
                (said if own else earlier).append(Words(by=by, text=text))
        if said:
            edited, strangers = edited + old_edited, strangers + old_strangers
            first = by_id.get(root) or talk[0]
            threads.append(
                ReviewThread(
                    id=root,
                    place=_place(first),
                    hunk=_hunk(str(first.get("diff_hunk") or "")),
                    earlier=earlier[-MAX_EARLIER:],
                    said=said,
                )
            )
    left_out = []
    if edited:
        left_out.append(f"{_count(edited, 'comment')} on the diff, edited after the review was submitted.")
    if strangers:
        left_out.append(
            f"{_count(strangers, 'earlier comment')} in the review's threads by people without write access."
        )
    if len(threads) > MAX_THREADS:
        left_out.append(f"{_count(len(threads) - MAX_THREADS, 'thread')} of the review: it has too many.")
    return threads[:MAX_THREADS], left_out


def thread_of(comment: Mapping[str, Any]) -> ReviewThread:
    """The place that a comment on the diff speaks about, without what was said there."""
    return ReviewThread(
        id=int(comment.get("in_reply_to_id") or comment["id"]),
        place=_place(comment),
        hunk=_hunk(str(comment.get("diff_hunk") or "")),
    )


def earlier_words(
    comments: Sequence[Mapping[str, Any]],
    *,
    before: int,
    at: datetime,
    trusted: Collection[int],
    me: int,
) -> tuple[list[Words], list[str]]:
    """What was said in a thread before its comment ``before``, written ``at``, and what of that is left out.

    ``comments`` are the thread's; ``trusted`` and ``me`` are as for :func:`read_feedback`.
    """
    shown: list[Words] = []
    edited = strangers = 0
    for one in sorted(comments, key=lambda one: int(one["id"])):
        if int(one["id"]) >= before:
            break
        user = one.get("user") or {}
        changed = _time(one.get("updated_at"))
        if user.get("id") != me and user.get("id") not in trusted:
            strangers += 1
        elif changed is None or changed > at + SUBMITTING:
            edited += 1
        elif text := visible_words(str(one.get("body") or "")):
            by = "You" if user.get("id") == me else str(user.get("login") or "somebody")
            shown.append(Words(by=by, text=text))
    left_out = []
    if edited:
        left_out.append(f"{_count(edited, 'comment')} of the thread, edited after the command was written.")
    if strangers:
        left_out.append(
            f"{_count(strangers, 'earlier comment')} in the thread by people without write access."
        )
    return shown[-MAX_EARLIER:], left_out


def in_place(words: str, thread: ReviewThread, *, left_out: Sequence[str] = (), replies: bool) -> Asked:
    """``words`` of a comment on the diff with the place that they are about.

    ``replies``: the agent may answer in the thread.
    """
    text = render(
        "prompts/inline.md.j2",
        limit=sys.maxsize,
        words=own_words(words),
        thread=thread,
        left_out=left_out,
        replies=replies,
        aside=aside,
    ).strip()
    return Asked(text=text, left_out=tuple(left_out))


def instructions(feedbacks: Sequence[Feedback]) -> Asked:
    """What the turn that answers one or more reviews is told: Markdown, at most MAX_INSTRUCTIONS long."""
    shown, dropped = list(feedbacks), 0
    while len(text := _rendered(shown, dropped)) > MAX_INSTRUCTIONS:
        fullest = max(range(len(shown)), key=lambda at: len(shown[at].threads), default=None)
        if fullest is None or not shown[fullest].threads:
            text = clip(text, MAX_INSTRUCTIONS)
            break
        shown[fullest] = replace(shown[fullest], threads=shown[fullest].threads[:-1])
        dropped += 1
    left_out = [sentence for one in feedbacks for sentence in one.left_out]
    if dropped:
        left_out.append(_too_long(dropped))
    return Asked(text=text, left_out=tuple(left_out))


def _rendered(feedbacks: Sequence[Feedback], dropped: int) -> str:
    return render(
        "prompts/feedback.md.j2",
        limit=sys.maxsize,
        reviews=feedbacks,
        says=_SAYS,
        quoted=quoted,
        aside=aside,
        closed=closed,
        dropped=_too_long(dropped) if dropped else "",
        any_threads=any(one.threads for one in feedbacks),
    ).strip()


def _too_long(dropped: int) -> str:
    return f"{_count(dropped, 'thread')} of the review: together they are too long."


def merge(before: str, more: str) -> str:
    """The instructions of a job that still waits when another review comes: both, the newer one cut if need be.

    What was there stays as it is. Raises ValueError when there is no room for anything more: then the new review
    is a job of its own.
    """
    room = MAX_MERGED - len(before)
    if room < min(len(more), MIN_ROOM):
        raise ValueError("the instructions are too long for one more review")
    return f"{closed(before.rstrip())}\n\n{clip(more.strip(), room)}"


def thread_ids(text: str) -> frozenset[int]:
    """The threads that a job's instructions show: those that its agent may reply to.

    Quoted words may name others. The caller must compare with the threads that the pull request has.
    """
    return frozenset(int(number) for number in _THREAD.findall(text))


def parse_replies(value: object, known: Collection[int]) -> list[Reply]:
    """The ``replies`` of a result that are well-formed and meant for a thread of ``known``, one for each.

    A reply without words counts only when it says that the thread is resolved.
    """
    replies: dict[int, Reply] = {}
    for item in value if isinstance(value, Sequence) and not isinstance(value, str | bytes) else ():
        if not isinstance(item, Mapping):
            continue
        thread, text = _number(item.get("thread")), item.get("text")
        words = visible_words(text, MAX_REPLY) if isinstance(text, str) else ""
        resolved = item.get("resolved") is True
        if thread in known and thread not in replies and (words or resolved):
            replies[thread] = Reply(thread=thread, text=words, resolved=resolved)
        if len(replies) == MAX_REPLIES:
            break
    return list(replies.values())


def visible_words(text: str, limit: int = MAX_WORDS) -> str:
    """``text`` as a reader sees it, at most ``limit`` characters. It cannot hide what is put after it."""
    for _ in range(10):
        before, text = text, visible(text)
        if text == before:
            break
    # what is left of nested comments must not begin one that swallows the rest of a prompt
    return clip(text.replace("<!--", "<! --"), limit)


def quoted(text: str) -> str:
    """``text`` between two equal lines that it cannot contain: they are made from it."""
    fence = "=====" + hashlib.sha256(text.encode()).hexdigest()[:16]
    return f"{fence}\n{text}\n{fence}"


def aside(text: str) -> str:
    """The same for what others wrote than who is followed: a code block in a quotation is no step (bot.steps)."""
    return quoted("\n".join(f"> {line}" for line in text.split("\n")))


def with_words(before: str, words: str) -> str:
    """Instructions, and the words that came later: those may have the place of an inline comment beside them."""
    return f"{closed(before)}\n\n{words}".strip()


def own_words(text: str, limit: int = MAX_INSTRUCTIONS) -> str:
    """What a person says, for what stands before the words of others: no code block of theirs goes on into those."""
    return closed(visible_words(text, limit))


def _root(comment: Mapping[str, Any], by_id: Mapping[int, Mapping[str, Any]]) -> int:
    """The first comment of the thread that a comment stands in; also when that was deleted."""
    number = int(comment["id"])
    for _ in range(len(by_id) + 1):
        above = by_id.get(number, {}).get("in_reply_to_id")
        if not above:
            break
        number = int(above)
    return number


def _place(comment: Mapping[str, Any]) -> str:
    path = "`" + oneline(visible(str(comment.get("path") or "")).replace("`", "'"), 300) + "`"
    if comment.get("subject_type") == "file":
        return f"{path}, the whole file"
    line, start = comment.get("line"), comment.get("start_line")
    old = ""
    if line is None:
        line, start = comment.get("original_line"), comment.get("original_start_line")
        old = " of an older version"
    if line is None:
        return path
    lines = f"lines {int(start)} to {int(line)}" if start and start != line else f"line {int(line)}"
    if comment.get("side") == "LEFT":
        old = " of the base (a removed line)"
    return f"{path}, {lines}{old}"


def _hunk(text: str) -> str:
    """The end of a diff hunk: the commented line is its last."""
    return code_lines("\n".join(text.split("\n")[-MAX_HUNK_LINES:]))


def code_lines(text: str) -> str:
    """Code, or what a program printed: nothing is hidden in it by HTML, and it cannot hide what comes after it."""
    return "\n".join(_code_line(line) for line in seen(text).split("\n")).replace("<!--", "<! --")


def _code_line(line: str) -> str:
    """A line of code with its indentation, without what nobody sees, and not too long."""
    shown = line
    if not line.isprintable():
        shown = "".join(sign for sign in line if sign == "\t" or sign.isprintable())
    return shown if len(shown) <= 500 else shown[:499] + "…"


def _time(value: object) -> datetime | None:
    try:
        return datetime.fromisoformat(value) if isinstance(value, str) else None
    except ValueError:
        return None


def _number(value: object) -> int:
    if isinstance(value, bool):
        return 0
    if isinstance(value, int):
        return value
    return int(value) if isinstance(value, str) and re.fullmatch(r"[0-9]{1,18}", value.strip()) else 0


def _count(number: int, noun: str) -> str:
    return f"{number} {noun}" if number == 1 else f"{number} {noun}s"
