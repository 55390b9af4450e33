"""Why something may be done or not: a tree of questions, their answers, and the questions behind them. Pure."""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

#: More is not said: a tree is for people. Deeper or longer ones are cut with a line that says so.
MAX_LINES = 60


@dataclass(frozen=True, kw_only=True)
class Reason:
    """One question that was asked, how it was answered, and the questions behind it."""

    question: str
    ok: bool
    said: str  # a sentence for the asker
    because: Sequence[Reason] = ()


def all_of(question: str, reasons: Sequence[Reason], *, said: str = "") -> Reason:
    """Yes when every one of ``reasons`` is. All of them are kept: people shall see everything that is wrong."""
    ok = all(reason.ok for reason in reasons)
    return Reason(question=question, ok=ok, said=said or ("yes" if ok else "no"), because=tuple(reasons))


def any_of(question: str, reasons: Sequence[Reason], *, said: str = "") -> Reason:
    """Yes when one of ``reasons`` is. Of no reasons at all: no."""
    ok = any(reason.ok for reason in reasons)
    return Reason(question=question, ok=ok, said=said or ("yes" if ok else "no"), because=tuple(reasons))


def refusals(reason: Reason) -> list[str]:
    """The sentences of every no directly below ``reason``: what the asker is told."""
    return [below.said for below in reason.because if not below.ok]


def as_markdown(reason: Reason) -> str:
    """The tree as a nested list for a comment, a check run or a page.

    The sentences may hold what people wrote: whoever shows them redacts and clips, as with everything that is shown.
    """
    lines = list(_lines(reason, 0))
    if len(lines) > MAX_LINES:
        lines = [*lines[: MAX_LINES - 1], f"- … and {len(lines) - MAX_LINES + 1} more"]
    return "\n".join(lines)


def as_data(reason: Reason) -> dict[str, Any]:
    """The tree as JSON values, for the audit."""
    data: dict[str, Any] = {"question": reason.question, "ok": reason.ok, "said": reason.said}
    if reason.because:
        data["because"] = [as_data(below) for below in reason.because]
    return data


def from_data(data: Mapping[str, Any]) -> Reason:
    """The tree that :func:`as_data` wrote."""
    return Reason(
        question=str(data["question"]),
        ok=bool(data["ok"]),
        said=str(data["said"]),
        because=tuple(from_data(below) for below in data.get("because", ())),
    )


def _lines(reason: Reason, depth: int) -> Iterator[str]:
    said = " ".join(reason.said.split())
    # "yes" and "no" stand in the sign already
    words = reason.question if said in ("", "yes", "no") else f"{reason.question}: {said}"
    yield f"{'  ' * depth}- {'✅' if reason.ok else '❌'} {' '.join(words.split())}"
    for below in reason.because:
        yield from _lines(below, depth + 1)
