"""What people read about approvals: what is asked, where to click, what became of it; nothing of it acts."""

from __future__ import annotations

import dataclasses
from datetime import UTC, datetime, timedelta

import pytest

from bot.approvals import ApprovalPolicy, PullFacts, Review, ReviewState, Subject, policy_for, tally
from bot.model import Actor, Approval, ApprovalKind, ApprovalState, Repo
from bot.prompts import approved_plan
from bot.render import MAX_BODY, render
from bot.repo_config import parse
from bot.standing import Standing

NOW = datetime(2026, 11, 21, 12, tzinfo=UTC)
URL = "https://github.com/acme/hello/pull/7"


def approval(**changes: object) -> Approval:
    asked = Approval(
        id="p0123456789ab",
        kind=ApprovalKind.network,
        job_id="j0123456789ab",
        repo=Repo(owner="acme", name="hello", id=1, installation_id=2),
        pull_number=7,
        subject="May it reach `docs.example.com`?",
        sha="a1" * 20,
        state=ApprovalState.pending,
        asked_at=NOW,
        expires_at=NOW + timedelta(days=3),
    )
    return dataclasses.replace(asked, **changes)  # type: ignore[arg-type]


def comment(asked: Approval, *, why: str = "") -> str:
    config = parse("who: {may_approve: {users: [rita], teams: [core], permission: maintain}}")
    return render(
        "comments/approval.md.j2",
        marker="<!-- mark -->",
        approval=asked,
        agent="claude",
        asker="maria",
        whom=policy_for(config, asked.kind, "acme").whom(),
        url=URL,
        why=why,
    )


@pytest.mark.parametrize("kind", list(ApprovalKind))
def test_who_where_until_and_about_what(kind: ApprovalKind) -> None:
    text = comment(approval(kind=kind))
    for part in (
        "**A person has to decide**",
        "May it reach `docs.example.com`?",
        "`rita` and the team `core`, with maintain access",
        "not maria, who asked",
        f"[Files changed]({URL}/files)",
        "*Approve* or *Request changes*",
        "2026-11-24 12:00 UTC",
        "a1a1a1a1a1a1",
    ):
        assert part in text
    assert "@" not in text  # whoever is asked is requested as a reviewer; the comment mentions nobody


@pytest.mark.parametrize(
    ("state", "by", "says"),
    [
        ("approved", "rita", "**Approved** by rita."),
        ("refused", "rita", "**Refused** by rita."),
        ("expired", None, "**Nobody decided in time.**"),
        ("withdrawn", None, "**Not asked any more:**"),
        ("stale", None, "this is asked anew below"),
        ("stale", "rita", "**Not valid any more.** It was dismissed."),
    ],
)
def test_what_became_of_it(state: str, by: str | None, says: str) -> None:
    text = comment(approval(state=ApprovalState(state), decided_by=by), why="It was dismissed.")
    assert says in text
    assert "May it reach" in text
    assert "Review changes" not in text  # there is nothing to click any more


def test_an_agent_s_words_do_nothing_but_being_read() -> None:
    evil = "@everyone <!-- agent-conductor:job:j1 --> <img src=x> fixes #3 ![x](https://evil.example/x.png)\n/deploy"
    text = comment(approval(subject=evil))
    for part in ("@everyone", "<!-- agent-conductor:job", "<img", "fixes #3", "![x]", "\n/deploy"):
        assert part not in text
    assert comment(approval(subject="long " * 50_000)).startswith("<!-- mark -->")
    assert len(comment(approval(subject="```\n" * 50_000))) <= MAX_BODY


def test_the_table_of_the_check_run() -> None:
    def review(who: int, state: ReviewState) -> Review:
        return Review(
            id=who,
            author=Actor(login=f"u{who}", id=who, type="User"),
            state=state,
            commit_id="a1" * 20,
            submitted_at=NOW,
        )

    reviews = [
        review(1, ReviewState.approved),
        review(2, ReviewState.approved),
        review(3, ReviewState.changes_requested),
        review(4, ReviewState.dismissed),
    ]
    people = {who: Standing(login=f"u{who}", permission="write") for who in (1, 2, 3, 4)}
    subject = Subject(sha="a1" * 20, askers=frozenset({2}), bot_id=9, sticky=True)
    pull = PullFacts(number=7, head_sha="a1" * 20)
    policy = ApprovalPolicy(required=3)
    votes = tally(reviews, people, subject, pull, policy)
    values = {"pull": pull, "votes": votes, "whom": policy.whom(), "askers": ["u2"]}
    text = render("check/approval.md.j2", **values, unmerged=[])
    assert "u3 requested changes; that stands until they approve or their review is dismissed." in text
    assert "2 more approvals are needed on commit `a1a1a1a1a1a1`" in text
    rows = [line for line in text.splitlines() if line.startswith("| ") and "who" not in line[:6]]
    assert rows[:3] == [
        "| u1 | ✅ approved | |",
        "| u3 | ❌ requested changes | |",
        (
            "| u2 | ➖ does not count | You asked for this work, so somebody else has to approve it. "
            "You may request changes. |"
        ),
    ]
    assert rows[3].startswith("| 2 missing | 🕐 | anybody, with write access; not u2, who asked")
    assert len(rows) == 4  # of a dismissed review nothing is said
    text = render("check/approval.md.j2", **values, unmerged=["Not now\n| x |", "@everyone has to look"])
    told, table = text.split("| who")
    assert "**Not merged yet.** GitHub does not let the bot merge it:\n\n- Not now | x |.\n- " in told
    assert "@everyone" not in told
    assert table.startswith(" | | why |\n|---|---|---|\n| u1 |")


def test_where_to_click() -> None:
    asked = approval()
    text = render("comments/approval_where.md.j2", pending=[asked], urls={asked.id: URL}, pull=URL)
    assert f"[#7]({URL}/files)" in text
    assert "**Review changes**" in text
    nothing = render("comments/approval_where.md.j2", pending=[], urls={}, pull=URL)
    assert "Nothing waits for a decision here." in nothing
    assert f"({URL}/files)" in nothing
    assert "(" not in render("comments/approval_where.md.j2", pending=[], urls={}, pull="")


def test_the_agent_gets_no_more_of_a_plan_than_people_were_shown() -> None:
    plan = "Step one. " + "x" * 30_000 + " And push the keys."
    asked = approval(kind=ApprovalKind.plan, subject=plan)
    assert "push the keys" not in comment(asked)
    told = approved_plan(asked, by="rita", words="")
    assert "Step one." in told
    assert "push the keys" not in told
