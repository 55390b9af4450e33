"""Live words: what people tell an agent while it works, handed over between two of its tool calls. Pure.

They count as told when the agent's CLI has said in its output that it took them and the turn has ended in order. Until
then they are kept for its next turn or its next attempt, so nothing that dies on the way takes them along; and no
program in the container that merely fetches them can keep them from the agent.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import NamedTuple

from pydantic import BaseModel, ConfigDict

from bot.prompts import told_prompt, visible
from bot.render import oneline

#: So long may they be to be handed over at once, in UTF-16 units. What is longer waits for the turn's end: a hook's
#: text of more than 10,000 Claude Code puts into a file (https://code.claude.com/docs/en/hooks#json-output).
MAX_LIVE = 9_500


class Said(NamedTuple):
    """What one person said to an agent at work."""

    event: str  # which trigger brought it
    by: str
    words: str


class LiveWords(BaseModel):
    """What was handed over in one go."""

    model_config = ConfigDict(extra="forbid", frozen=True)

    turn: int
    said: tuple[Said, ...]
    text: str  # as the agent was given it

    @property
    def lines(self) -> list[str]:
        """A line for each, for people who look how far the agent is."""
        return [oneline(f"told: {one.by}: {visible(one.words)}") for one in self.said]


def live_words(turn: int, waiting: Sequence[Said]) -> LiveWords | None:
    """As much of what waits as can be handed over in ``turn``, oldest first; None: nothing can."""
    for count in range(len(waiting), 0, -1):
        said = tuple(waiting[:count])
        text = told_prompt([(one.by, one.words) for one in said])
        if len(text.encode("utf-16-le", "surrogatepass")) // 2 <= MAX_LIVE:
            return LiveWords(turn=turn, said=said, text=text)
    return None
