"""The steps of a task for the ``shell`` agent: the shell blocks of its Markdown text."""

from __future__ import annotations

from dataclasses import dataclass

from markdown_it import MarkdownIt

SHELL_LANGUAGES = frozenset({"sh", "bash", "shell"})


@dataclass(frozen=True, kw_only=True)
class Step:
    """One shell block: the commands that run together in one shell."""

    number: int  # from 1
    script: str

    @property
    def title(self) -> str:
        """Its first line that does something: what people are shown."""
        lines = [line.strip() for line in self.script.splitlines()]
        return next((line for line in lines if line and not line.startswith("#")), "")


def steps_of(markdown: str) -> list[Step]:
    """The fenced ``sh``, ``bash`` and ``shell`` blocks of ``markdown``, in order; empty ones are left out.

    Blocks inside a quotation are somebody else's words, and a block without a language may be anything: both
    are no steps. What is inside an HTML comment is not shown to the reader, so it is no step either (a fence
    in there is part of CommonMark's HTML block).
    """
    steps: list[Step] = []
    quoted = 0
    for token in MarkdownIt("commonmark").parse(markdown):
        if token.type == "blockquote_open":
            quoted += 1
        elif token.type == "blockquote_close":
            quoted -= 1
        elif token.type == "fence" and not quoted:
            language = token.info.split(maxsplit=1)[0].lower() if token.info.strip() else ""
            step = Step(number=len(steps) + 1, script=token.content)
            if language in SHELL_LANGUAGES and step.title:
                steps.append(step)
    return steps
