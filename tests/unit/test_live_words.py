"""What of people's words is handed over at once: as much as a hook's answer may hold, oldest first."""

from __future__ import annotations

import pytest

from bot.live_words import MAX_LIVE, LiveWords, Said, live_words
from bot.prompts import told_prompt

A, B = (
    Said("d1/0", "octocat", "Keep the old format."),
    Said("d2/0", "maria", "And <!-- sh --> hurry.\nPlease."),
)


def test_they_are_the_words_of_a_turn() -> None:
    words = live_words(3, [A, B])
    assert words is not None
    assert (words.turn, words.said) == (3, (A, B))
    assert words.text == told_prompt([(A.by, A.words), (B.by, B.words)])
    assert words.lines == ["told: octocat: Keep the old format.", "told: maria: And hurry. Please."]
    assert LiveWords.model_validate_json(words.model_dump_json()) == words


@pytest.mark.parametrize("character", ["x", "🚀"])
def test_what_is_too_long_waits_and_holds_up_what_came_after_it(character: str) -> None:
    long = Said("d3/0", "maria", character * MAX_LIVE)
    assert live_words(1, [A, B, long, A]) == live_words(1, [A, B])
    assert live_words(1, [long, A]) is None


def test_they_are_measured_as_the_cli_measures_them() -> None:
    assert live_words(1, [Said("d3/0", "maria", "x" * (MAX_LIVE // 2))]) is not None
    assert live_words(1, [Said("d3/0", "maria", "🚀" * (MAX_LIVE // 2))]) is None  # two units each


def test_nothing_is_no_words() -> None:
    assert live_words(1, []) is None
