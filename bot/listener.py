"""Reads one turn of an agent as it comes: what the verdict needs, and the last lines for people."""

from __future__ import annotations

from bot.ports import Agent
from bot.results import Transcript
from runners.gateway.desk import Desk

RECENT = 6  # lines that people are shown


class Listener:
    """Everything that was said in the turn that was listened to last."""

    def __init__(self, agent: Agent) -> None:
        self._agent = agent
        self.transcript = Transcript()
        self.recent: tuple[str, ...] = ()

    async def listen(self, desk: Desk, turn: int) -> None:
        """Take in a turn's whole output from its first line, as it comes; returns when the turn has ended."""
        transcript, recent = Transcript(), list[str]()
        self.transcript = transcript
        async for event in desk.events(turn=turn):
            if event.turn != turn or event.stream != "stdout":
                continue
            for said in self._agent.read(event.line):
                goes_on = transcript.speaking and said.piece
                transcript.add(said)
                words = transcript.text if said.kind == "text" else said.text
                if said.kind in ("text", "tool") and words.strip():
                    if goes_on and recent and transcript.text.startswith(recent[-1]):
                        recent.pop()
                    recent.append(words)
                    del recent[:-RECENT]
                    self.recent = tuple(recent)
