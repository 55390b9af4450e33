"""Reads one turn of an agent as it comes: what the verdict needs, and the last lines for people."""

from __future__ import annotations

from collections import deque
from collections.abc import Sequence

from bot.live_words import LiveWords
from bot.ports import Agent
from bot.results import Transcript
from runners.gateway.desk import Desk

RECENT = 6  # lines that people are shown while it works
LOGGED = 200  # lines that are kept for `/agent logs`
MAX_LOGGED = 12_000  # characters of them


class Listener:
    """Everything that was said in the turn that was listened to last."""

    def __init__(self, agent: Agent) -> None:
        self._agent = agent
        self._turn = 0
        self._heard = 0  # number of the last line of the attempt that was taken in
        self.transcript = Transcript()
        self.recent: tuple[str, ...] = ()
        self.told: frozenset[str] = frozenset()  # of the live words: the events of those that its CLI took
        self._logged: deque[str] = deque(maxlen=LOGGED)

    @property
    def log(self) -> str:
        """What the agent said and did last, over all its turns."""
        return "\n".join(self._logged)[-MAX_LOGGED:]

    async def listen(self, desk: Desk, turn: int) -> None:
        """Take in a turn's whole output, as it comes; returns when the turn has ended.

        After it was cancelled it goes on, for the same turn of the same desk, with the first line not heard yet.
        """
        if turn != self._turn:
            self._turn, self.transcript, self.recent, self.told = turn, Transcript(), (), frozenset()
        async for event in desk.events(self._heard, turn=turn):
            if event.turn == turn and event.stream == "stdout":
                self._hear(event.line, desk.live_words)
            self._heard = event.seq  # nothing above waits, so no line is ever half taken in

    def _hear(self, line: str, handed_over: Sequence[LiveWords]) -> None:
        transcript, recent = self.transcript, list(self.recent)
        for said in self._agent.read(line):
            goes_on = transcript.speaking and said.piece
            transcript.add(said)
            words = transcript.text if said.kind == "text" else said.text
            if said.kind in ("text", "tool") and words.strip():
                if goes_on and recent and transcript.text.startswith(recent[-1]):
                    before = recent.pop()
                    if self._logged[-1] == before:  # else a program wrote something in between
                        self._logged.pop()
                recent.append(words)
                self._logged.append(words)
                self.recent = tuple(recent[-RECENT:])
            elif said.kind == "told":
                # others may have hooks, too: only what was handed over was told
                for taken in [words for words in handed_over if words.text == said.text]:
                    self.told |= {one.event for one in taken.said}
                    self._logged.extend(taken.lines)
                    recent.extend(taken.lines)
                    self.recent = tuple(recent[-RECENT:])
            elif said.kind == "log" and words.strip():
                self._logged.append(words)  # what steps and programs print: for `/agent logs` alone
