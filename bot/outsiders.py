"""Which words of a conversation an agent may read: not those of people who could not have changed the code. Pure.

On a public repository anybody may write an issue or a comment, and what they write may be an attack on the agent
that reads it. So there the words of people without write access are left out, and that is said. Words that were
changed after somebody asked for the work are left out everywhere: nobody has asked for those.
"""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import dataclass
from datetime import datetime

from bot.model import Actor, Request, TargetKind
from bot.policy import Facts
from bot.standing import at_least

#: People are listed by name up to so many; the others are counted.
_NAMED = 5


@dataclass(frozen=True, kw_only=True)
class Text:
    """Something that somebody wrote, as it stands on GitHub."""

    kind: str  # "title", "description", "comment", "review", "review comment"
    author: Actor | None  # None: the account is gone
    body: str
    permission: str | None = None  # the author's, one of bot.standing.ROLES; None: could not be found out
    written_at: datetime | None = None
    edited_at: datetime | None = None  # None: never, as far as is known
    url: str = ""


@dataclass(frozen=True, kw_only=True)
class Kept:
    """What may be read, and a sentence for everything that may not."""

    texts: tuple[Text, ...] = ()
    left_out: tuple[str, ...] = ()


def keep(
    texts: Iterable[Text], *, public: bool, asked_at: datetime | None = None, endorsed: bool = False
) -> Kept:
    """What of ``texts`` an agent may read.

    ``public``: anybody may read the repository, and so write in it. ``asked_at``: when the work was asked for; what
    was written or edited after that is left out. ``endorsed``: somebody with write access asked for these very
    words to be worked on, by setting the label, so that it does not matter who wrote them.
    """
    kept, strangers, late = [], [], []
    for text in texts:
        if asked_at is not None and _after(text, asked_at):
            late.append(text)
        elif public and not endorsed and is_outsider(text):
            strangers.append(text)
        else:
            kept.append(text)
    left_out = [_sentence(texts, "who may not write to this repository") for texts in _by_kind(strangers)]
    left_out += [f"{_what(texts)} changed or written after this was asked for." for texts in _by_kind(late)]
    return Kept(texts=tuple(kept), left_out=tuple(left_out))


@dataclass(frozen=True, kw_only=True)
class TaskText:
    """What a job's agent reads of its issue or pull request, and a sentence for everything that it does not."""

    title: str
    body: str
    left_out: tuple[str, ...] = ()


def task_text(request: Request, facts: Facts) -> TaskText:
    """The title and description for the job that ``request`` asks for: as they stood in the event, or not at all.

    Setting the label on an issue says that the issue itself is to be done, by somebody who may write here and who
    has just seen it: that endorses its words, whoever wrote them (unless the repository says ``outsiders: never``).
    A command has words of its own, so it endorses no others.
    """
    title, body = request.title, request.body
    what = "pull request" if request.target is TargetKind.pull_request else "issue"
    text = Text(kind="description", author=facts.author, body=body, permission=facts.author_permission)
    ours = facts.author is not None and facts.author.id == facts.app_user_id
    labelled = request.trigger.event.endswith(".labeled")
    if facts.public and not ours and is_outsider(text):
        by = f"`{facts.author.login}`" if facts.author else "a deleted account"
        who = f"The title and description of this {what} by {by}, who may not write to this repository"
        if facts.config.outsiders == "never":
            said = f"{who}. Say in a command what is to be done."
        elif labelled:
            who = ""
        else:
            said = (
                f"{who}. Say in the command what is to be done, or set the label `agent` to have them read."
            )
        if who:
            return TaskText(title=f"{what.capitalize()} #{request.number}", body="", left_out=(said,))
    changed = [
        name
        for name, then, now in (("title", title, facts.title_now), ("description", body, facts.body_now))
        if _plain(then) != _plain(now)
    ]
    what = " and the ".join(changed)
    said = f"What was changed in the {what} after this was asked for: the agent reads what stood there then."
    return TaskText(title=title, body=body, left_out=(said,) if changed else ())


def is_outsider(text: Text) -> bool:
    """Whether its author may not write to the repository, or nobody can tell. Bots and Apps are outsiders, too."""
    return text.author is None or text.author.is_bot or not at_least(text.permission, "write")


def _plain(text: str) -> str:
    return text.replace("\r\n", "\n").strip()


def _after(text: Text, moment: datetime) -> bool:
    return any(at is not None and at > moment for at in (text.written_at, text.edited_at))


def _by_kind(texts: Iterable[Text]) -> Iterable[list[Text]]:
    found: dict[str, list[Text]] = {}
    for text in texts:
        found.setdefault(text.kind, []).append(text)
    return found.values()


def _sentence(texts: list[Text], why: str) -> str:
    return f"{_what(texts)} by {_names(texts)}, {why}."


def _what(texts: list[Text]) -> str:
    kind = texts[0].kind
    return f"The {kind}" if len(texts) == 1 else f"{len(texts)} {kind}s"


def _names(texts: list[Text]) -> str:
    # in code: nobody shall be notified of not having been read
    logins = list(
        dict.fromkeys(f"`{text.author.login}`" if text.author else "a deleted account" for text in texts)
    )
    more = len(logins) - _NAMED
    return ", ".join(logins[:_NAMED]) + (f" and {more} more" if more > 0 else "")
