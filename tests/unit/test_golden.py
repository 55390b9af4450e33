"""What people read about a job, word for word: one file in ``tests/golden`` for each way in which it may be or end.

After a text was changed on purpose, write them anew and look at the difference before you commit it::

    GOLDEN=renew pytest tests/unit/test_golden.py && git diff tests/golden
"""

from __future__ import annotations

import os
import re
from datetime import UTC, datetime, timedelta
from itertools import product
from pathlib import Path

import pytest

from bot.agent_requests import ToDo
from bot.annotations import of_job
from bot.check_report import buttons, check_name, check_run
from bot.endings import PlanState, became, next_step, said, why
from bot.held_back import HeldBack
from bot.model import (
    FINAL_STATES,
    ApprovalState,
    FailureKind,
    Job,
    JobKind,
    JobState,
    Phase,
    TargetKind,
    Usage,
    Waiting,
)
from bot.network import explain
from bot.render import marker, render, waiting_words
from bot.results import HINTS
from tests.jobs import asked_job

GOLDEN = Path(__file__).parents[1] / "golden"
START = datetime(2026, 1, 2, 3, 4, 5, tzinfo=UTC)
TOOK = 95.0
MAY_ALLOW = ("*.example.com",)
DOING = ("Reading hello/greeting.py", "python -m unittest")
TODO = (
    ToDo(text="Read the code", done=True),
    ToDo(text="Write the test"),
    ToDo(text="Make it pass"),
)


def job(state: JobState, **changes: object) -> Job:
    values: dict[str, object] = {
        "number": 12,
        "agent": "claude",
        "model": "claude-sonnet-4-5",
        "title": "Greet",
        "body": "Say hello.",
        "timeout": 3600,
        "state": state,
        "created_at": START,
        "started_at": None if state is JobState.queued else START,
        "finished_at": START + timedelta(seconds=TOOK) if state.final else None,
        "comment_id": 7,
        "usage": Usage(input_tokens=1200, output_tokens=90, cached_tokens=200, requests=3, cost=0.51)
        if state is not JobState.queued
        else Usage(),
    }
    return asked_job("j0123456789ab", **values | changes)


def done(**changes: object) -> Job:
    values: dict[str, object] = {
        "head_sha": "a" * 40,
        "branch": "agent/issue-12-greet",
        "pull_number": 13,
        "summary": "Says hello in **three** languages.\n\n- `hello/greeting.py`: a table\n- tests for each language",
    }
    return job(JobState.succeeded, **values | changes)


def failed(kind: FailureKind) -> Job:
    hint = HINTS.get(kind, "Particular advice about this case.")
    return job(
        JobState.failed,
        phase=_PHASES.get(kind, Phase.agent),
        failure=kind,
        message=f"What exactly went wrong.\n\n{hint}",
    )


_PHASES = {
    FailureKind.refused: Phase.publish,
    FailureKind.conflict: Phase.publish,
    FailureKind.infrastructure: Phase.workspace,
    FailureKind.configuration: Phase.image,
}
HELD = HeldBack(files=[".github/workflows/ci.yml"], count=1, patch="--- a\n+++ b\n", base_sha="b" * 40).dump()
QUESTION = "Which greeting is right for Austria:\n\n1. *Hallo*\n2. *Servus*"

#: What became of a plan, by the name of its file.
PLANS = {
    "plan-pending": PlanState(ApprovalState.pending, 13),
    "plan-approved": PlanState(ApprovalState.approved, 13, "octocat"),
    "plan-approved-in-its-pull-request": PlanState(ApprovalState.approved, 13, "octocat"),
    "plan-refused": PlanState(ApprovalState.refused, 13, "octocat"),
    "plan-expired": PlanState(ApprovalState.expired, 13),
    "plan-withdrawn": PlanState(ApprovalState.withdrawn, 13),
    "plan-void": PlanState(ApprovalState.stale, 13, "octocat"),
}

CASES: dict[str, Job] = {
    "queued": job(JobState.queued),
    **{
        f"running-{phase}": job(JobState.running, phase=phase)
        for phase in (Phase.image, Phase.workspace, Phase.start, Phase.agent, Phase.publish)
    },
    **{f"running-{kind}": job(JobState.running, phase=Phase.agent, kind=kind) for kind in JobKind},
    "running-with-everything": job(
        JobState.running,
        phase=Phase.agent,
        left_out=("A comment of rita: she has no write access.", "The description was edited after you asked."),
        blocked={"files.example.com:443": 2, "evil.example:443": 1},
    ),
    "paused": job(JobState.paused, question=QUESTION, asked_at=START),
    "paused-for-a-review": job(JobState.paused, question="May I use `example.com`?", asked_at=START, pull_number=13),
    "paused-answered": job(
        JobState.paused, question=QUESTION, asked_at=START, answer="The first.", answered_by="octocat"
    ),
    "paused-answered-and-asleep": job(
        JobState.paused,
        question=QUESTION,
        asked_at=START,
        answer="The first.",
        answered_by="octocat",
        hibernated=True,
    ),
    "succeeded": done(),
    "succeeded-in-its-pull-request": done(number=13, target=TargetKind.pull_request, kind=JobKind.fix),
    "succeeded-without-a-change": done(head_sha=None, pull_number=None, summary="It does that already."),
    "succeeded-in-part": done(held_back=HELD),
    "succeeded-as-a-patch": done(held_back=HELD, head_sha=None, pull_number=None),
    "succeeded-as-a-patch-to-approve": done(held_back=HELD, head_sha=None),
    **{name: done(kind=JobKind.plan, head_sha=None, summary="1. Make a table.\n2. Test it.") for name in PLANS},
    "plan-approved-in-its-pull-request": done(
        kind=JobKind.plan, number=13, target=TargetKind.pull_request, pull_number=None, head_sha=None, summary="1. Go."
    ),
    "succeeded-plan-without-a-pull-request": done(kind=JobKind.plan, pull_number=None, head_sha=None),
    "succeeded-review": done(
        kind=JobKind.review, number=13, target=TargetKind.pull_request, head_sha=None, summary="Two remarks."
    ),
    "succeeded-ask": done(kind=JobKind.ask, pull_number=None, head_sha=None, summary="In `greeting.py`."),
    **{f"failed-{kind}": failed(kind) for kind in FailureKind},
    "failed-without-a-kind": job(JobState.failed),
    "timed-out": job(JobState.timed_out, phase=Phase.agent, failure=FailureKind.timeout,
                     message=f"The agent used up its time and was ended.\n\n{HINTS[FailureKind.timeout]}"),
    "timed-out-idle": job(JobState.timed_out, phase=Phase.agent, failure=FailureKind.idle,
                          message="The agent showed no sign of life for 10 min and was ended."),
    "timed-out-unanswered": job(JobState.timed_out, phase=Phase.agent, failure=FailureKind.timeout,
                                question=QUESTION, message="Nobody answered the agent's question within 168 h."),
    "cancelled": job(JobState.cancelled, cancel_requested_by="octocat", phase=Phase.agent),
    "cancelled-before-it-began": job(JobState.cancelled, cancel_requested_by="octocat", phase=None,
                                     started_at=None, usage=Usage()),
    "lost": job(JobState.lost, failure=FailureKind.infrastructure, phase=Phase.agent,
                message="The worker host w1 went silent and no other one took over.\n\n"
                "Write `/agent retry` when a worker runs again."),
}  # fmt: skip


def everything(shown: Job, plan: PlanState | None = None) -> str:
    """The job's comment and its check run, as text."""
    doing = shown.state is JobState.running and shown.phase is Phase.agent
    review = shown.pull_number if shown.state is JobState.paused else None
    about: dict[str, object] = {
        "job": shown,
        "progress": DOING if doing else (),
        "todo": TODO if doing else (),
        "why": why(shown),
        "said": said(shown),
        "review": review,
        "plan": plan,
        "became": became(shown, plan),
        "next_step": next_step(shown, review=review, plan=plan),
        "took": TOOK if shown.started_at else 0,
        "blocked": explain(shown.blocked, MAY_ALLOW),
    }
    waits = waiting_words(shown, Waiting(position=2)) if shown.state is JobState.queued else ""
    text = render("comments/sticky.md.j2", marker=marker("job", shown.id), waits=waits, **about)  # type: ignore[arg-type]
    name = check_name(shown.kind)
    if name is None:
        return text
    comment = "https://github.com/acme/hello/issues/12#issuecomment-7"
    run = check_run(
        name,
        shown,
        summary=render("check/summary.md.j2", comment=comment, **about),  # type: ignore[arg-type]
        details_url=comment,
        todo=TODO if doing else (),
        became=became(shown, plan),
        annotations=of_job(shown, explain(shown.blocked, MAY_ALLOW)),
    )
    pressed = ", ".join(button["label"] for button in buttons(shown))
    beside = "".join(f"{one.path}:{one.start_line}: {one.level}: {one.message}\n" for one in run.annotations)
    return (
        f"{text}\n======== check run {run.name}: {run.conclusion or run.status} [{pressed}]\n{run.title}\n\n"
        f"{run.summary}======== beside the files\n{beside}"
    )


@pytest.mark.parametrize("name", list(CASES))
def test_people_read_exactly_this(name: str) -> None:
    file = GOLDEN / f"{name}.md"
    text = everything(CASES[name], PLANS.get(name))
    if os.environ.get("GOLDEN") == "renew":
        file.write_text(text)
    assert text == file.read_text(), f"see the top of {Path(__file__).name} for how to renew tests/golden"


def test_no_golden_file_is_left_over() -> None:
    assert {file.stem for file in GOLDEN.glob("*.md")} == set(CASES)


@pytest.mark.parametrize(("state", "kind"), list(product(sorted(FINAL_STATES), [None, *FailureKind])))
def test_every_ending_has_a_sentence_and_a_next_step(state: JobState, kind: FailureKind | None) -> None:
    for phase in (None, *Phase):
        ended = job(state, failure=kind, phase=phase)
        text = everything(ended)
        headline = text.split("\n")[1]
        assert headline.endswith((".", ".**"))
        assert 10 < len(headline) < 160
        step = next_step(ended)
        assert step.endswith(".")
        assert "/agent" in step
        assert f"**Next:** {step}" in text
        if kind is not None and state is JobState.failed:
            assert why(ended) in headline


def test_a_plan_whose_branch_has_moved_is_asked_about_anew() -> None:
    moved = PlanState(ApprovalState.stale, 13)
    assert everything(CASES["plan-pending"], moved) == everything(
        CASES["plan-pending"], PLANS["plan-pending"]
    )


def test_what_has_no_unfinished_work_offers_none() -> None:
    early = job(JobState.failed, phase=Phase.image, failure=FailureKind.infrastructure)
    assert "/agent resume" not in next_step(early)
    assert "/agent resume" in next_step(early.evolve(phase=Phase.agent))


def test_advice_is_given_once() -> None:
    text = everything(failed(FailureKind.quota)).partition("========")[0]
    assert text.count(HINTS[FailureKind.quota]) == 1
    own = job(JobState.failed, failure=FailureKind.crash, message="It broke.\n\nTell the operator.")
    text = everything(own).partition("========")[0]
    assert "Tell the operator." in text
    assert HINTS[FailureKind.crash] not in text


def open_text(comment: str) -> str:
    """What is seen before anything is unfolded."""
    outside, depth = [], 0
    for line in re.sub(r"<!--.*?-->", "", comment).split("\n"):
        depth += line.count("<details>")
        if not depth:
            outside.append(line)
        depth -= line.count("</details>")
    assert depth == 0
    return "\n".join(outside)


@pytest.mark.parametrize(
    "wall",
    [
        "word " * 8000,
        ("a line\n\n" * 4000),
        "```\n" + "code\n" * 5000,
        "- point\n" * 4000,
        "~~~~\nx\n" * 3000,
    ],
)
def test_a_wall_of_text_is_folded_and_its_code_blocks_end(wall: str) -> None:
    shown = done(
        message=wall,
        summary=wall,
        held_back=HELD,
        left_out=("x" * 1000,) * 200,
        blocked={f"h{number}.example.com:443": number + 1 for number in range(300)},
    )
    comment, check, beside = everything(shown).split("========")
    assert len(beside.splitlines()) < 100
    for text, most in ((comment, 3500), (check.partition("\n\n")[2], 7500)):
        assert len(text) < 65_000
        assert len(open_text(text)) < most
        inside = ""
        for line in text.split("\n"):
            if mark := re.match(r" {0,3}(`{3,}|~{3,})", line):
                inside = "" if inside and mark[1].startswith(inside) else inside or mark[1]
            elif line.startswith(("</details>", "**Next:**", "<sub>")):
                assert not inside, "a code block swallows what follows it"


def test_a_running_job_shows_little_of_a_long_list() -> None:
    todo = tuple(ToDo(text="t" * 200, done=number < 3) for number in range(30))
    shown = job(JobState.running, phase=Phase.agent)
    about: dict[str, object] = {
        "job": shown,
        "progress": ["p" * 5000] * 6,
        "todo": todo,
        "why": "",
        "said": "",
        "review": None,
        "plan": None,
        "became": "",
        "next_step": next_step(shown),
        "took": 1,
        "blocked": [],
    }
    text = render("comments/sticky.md.j2", marker="<!-- m -->", waits="", **about)  # type: ignore[arg-type]
    assert "**3 of 30 done, next: ttt" in text
    assert len(open_text(text)) < 600
    assert len(text) < 8000
