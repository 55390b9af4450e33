"""The nouns: transitions, ids, sums."""

from __future__ import annotations

import re
from pathlib import Path

from bot.model import FINAL_STATES, TRANSITIONS, JobState, Usage, job_id_for


def test_every_state_has_its_moves_and_finals_have_none() -> None:
    assert set(TRANSITIONS) == set(JobState)
    assert {state for state, moves in TRANSITIONS.items() if not moves} == FINAL_STATES
    assert all(state.final == (state in FINAL_STATES) for state in JobState)


def test_every_state_can_be_reached_and_can_end() -> None:
    reached, todo = set(), [JobState.queued]
    while todo:
        state = todo.pop()
        if state not in reached:
            reached.add(state)
            todo.extend(TRANSITIONS[state])
    assert reached == set(JobState)


def test_the_drawing_in_the_manual_shows_the_same_moves() -> None:
    text = (Path(__file__).parents[2] / "docs" / "architecture.md").read_text()
    drawn = set(re.findall(r"^    (\w+) --> (\w+)$", text, re.M))
    assert drawn == {(str(a), str(b)) for a, moves in TRANSITIONS.items() for b in moves}


def test_the_same_delivery_makes_the_same_job() -> None:
    assert job_id_for("abc") == job_id_for("abc")
    assert len({job_id_for("abc"), job_id_for("abd"), job_id_for("abc", 1)}) == 3
    assert re.fullmatch(r"j[0-9a-f]{12}", job_id_for("abc"))


def test_usage_adds_up_and_an_unknown_price_stays_unknown() -> None:
    total = Usage(input_tokens=1, requests=1, cost=0.5) + Usage(output_tokens=2, requests=1, cost=0.25)
    assert total == Usage(input_tokens=1, output_tokens=2, requests=2, cost=0.75)
    assert (total + Usage(requests=1, cost=None)).cost is None
