"""Whose words an agent may read: not those of people who could not have changed the code. Pure.

On a public repository anybody may write an issue, and what they write may be an attack on the agent that reads it. So
there the words of people without write access are left out, and that is said. Words that were changed after somebody
asked for the work are left out everywhere: nobody has asked for those. (What a review's threads say is judged by
bot.conversation, in the same way.)
"""

from __future__ import annotations

from dataclasses import dataclass

from bot.model import Actor, Request, TargetKind
from bot.policy import Facts
from bot.standing import at_least


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
    ours = facts.author is not None and facts.author.id == facts.app_user_id
    labelled = request.trigger.event.endswith(".labeled")
    if facts.public and not ours and is_outsider(facts.author, facts.author_permission):
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


def is_outsider(author: Actor | None, permission: str | None) -> bool:
    """Whether somebody may not write to the repository, or nobody can tell. Bots and Apps are outsiders, too."""
    return author is None or author.is_bot or not at_least(permission, "write")


def _plain(text: str) -> str:
    return text.replace("\r\n", "\n").strip()
