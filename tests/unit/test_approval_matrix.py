"""The approval matrix: who reviewed, what they are to the work, which commit, what became of the review.

Two ways to say what must come out, both independent of the code: a table that people can read, and for every
combination a rule in one line for each sentence of docs/approvals.md.
"""

from __future__ import annotations

import itertools
from collections.abc import Iterator
from dataclasses import dataclass, replace
from datetime import UTC, datetime, timedelta

import pytest

from bot.approvals import (
    ApprovalPolicy,
    PullFacts,
    Review,
    ReviewState,
    Subject,
    Verdict,
    final,
    latest,
    policy_for,
    tally,
    weigh,
)
from bot.model import Actor, ApprovalKind, ApprovalState
from bot.repo_config import parse
from bot.repo_rules import Entitled, FinalRule
from bot.standing import Standing

SHA, OTHER, MOVED = "a" * 40, "b" * 40, "c" * 40
NOON = datetime(2026, 11, 21, 12, tzinfo=UTC)
BOT, ASKER, AUTHOR, REVIEWER = 1, 2, 3, 4

RELATIONS = {
    "somebody else": Actor(login="rita", id=REVIEWER, type="User"),
    "asked": Actor(login="alice", id=ASKER, type="User"),
    "wrote or pushed": Actor(login="carl", id=AUTHOR, type="User"),
    "the bot": Actor(login="conductor[bot]", id=BOT, type="Bot"),
    "the bot as a user": Actor(login="conductor", id=BOT, type="User"),
    "another bot": Actor(login="rita[bot]", id=9, type="Bot"),
    "an organisation": Actor(login="acme", id=10, type="Organization"),
    "gone": None,
}
PERMISSIONS = ("none", "read", "triage", "write", "maintain", "admin", None)
NAMED = {
    "nobody": Entitled(),
    "admins": Entitled(permission="admin"),
    "the reviewer": Entitled(users=("RITA", "alice", "carl")),
    "their team": Entitled(teams=("core",)),
    "code owners": Entitled(codeowners=True),
    "somebody else": Entitled(users=("zoe",), teams=("acme/others",)),
}
STATES = tuple(ReviewState)
COMMITS = {
    "the head": (SHA, SHA),
    "an older one": (OTHER, SHA),
    "moved since": (SHA, MOVED),
    "the new head": (MOVED, MOVED),
    "shortened": (SHA[:12], SHA),
    "unknown": ("", SHA),
}


@dataclass(frozen=True)
class Cell:
    relation: str
    permission: str | None
    named: str
    state: ReviewState
    commit: str
    asked: ApprovalState = ApprovalState.pending
    altered: bool = False
    late: bool = False
    open: bool = True


def verdict(cell: Cell) -> Verdict:
    """What the code says."""
    author = RELATIONS[cell.relation]
    commit, head = COMMITS[cell.commit]
    review = Review(
        id=77,
        author=author,
        state=cell.state,
        commit_id=commit,
        submitted_at=NOON + timedelta(minutes=1 if cell.late else -1),
        altered=cell.altered,
    )
    person = Standing(
        login=author.login if author else "ghost",
        permission=cell.permission,
        teams=frozenset({"acme/core"}) if cell.named == "their team" else frozenset(),
        owner=cell.named == "code owners",
    )
    subject = Subject(sha=SHA, askers=frozenset({ASKER}), bot_id=BOT, state=cell.asked, expires_at=NOON)
    pull = PullFacts(number=7, head_sha=head, open=cell.open, hands=frozenset({AUTHOR}))
    policy = ApprovalPolicy(rules=(NAMED[cell.named],), owner="acme")
    return weigh(review, person, subject, pull, policy).verdict


def expected(cell: Cell) -> Verdict:
    """What the manual says."""
    writers = {"write", "maintain", "admin"}
    no_person = {"the bot", "the bot as a user", "another bot", "an organisation", "gone"}
    about_it = cell.commit == "the head" and cell.open and not cell.late and cell.asked == "pending"
    if cell.relation in no_person or cell.permission not in writers or not about_it:
        return Verdict.ignored
    if cell.state == "changes_requested":
        return Verdict.refused
    named = cell.named not in ("somebody else", "admins") or (
        cell.named == "admins" and cell.permission == "admin"
    )
    if cell.state == "approved" and cell.relation == "somebody else" and named and not cell.altered:
        return Verdict.approved
    return Verdict.ignored


def cells(relation: str, state: ReviewState) -> Iterator[Cell]:
    usual = (ApprovalState.pending, False, False, True)
    others = [(asked, False, False, True) for asked in ApprovalState if asked != "pending"]
    others += [(usual[0], True, False, True), (usual[0], False, True, True), (usual[0], False, False, False)]
    for permission, named, commit, more in itertools.product(PERMISSIONS, NAMED, COMMITS, [usual, *others]):
        yield Cell(relation, permission, named, state, commit, *more)


@pytest.mark.parametrize("state", STATES)
@pytest.mark.parametrize("relation", RELATIONS)
def test_every_cell_is_what_the_manual_says(relation: str, state: ReviewState) -> None:
    wrong = [cell for cell in cells(relation, state) if verdict(cell) is not expected(cell)]
    assert wrong == []


#: reviewer | permission | who may approve | review | commit | more -> verdict
TABLE = """
somebody else     | write    | nobody        | approved          | the head     |         | approved
somebody else     | maintain | nobody        | approved          | the head     |         | approved
somebody else     | admin    | admins        | approved          | the head     |         | approved
somebody else     | write    | the reviewer  | approved          | the head     |         | approved
somebody else     | write    | their team    | approved          | the head     |         | approved
somebody else     | write    | code owners   | approved          | the head     |         | approved
somebody else     | write    | nobody        | changes_requested | the head     |         | refused
asked             | write    | nobody        | changes_requested | the head     |         | refused
wrote or pushed   | write    | nobody        | changes_requested | the head     |         | refused
somebody else     | write    | somebody else | changes_requested | the head     |         | refused
somebody else     | write    | nobody        | changes_requested | the head     | altered | refused
asked             | admin    | nobody        | approved          | the head     |         | ignored
asked             | admin    | the reviewer  | approved          | the head     |         | ignored
wrote or pushed   | admin    | nobody        | approved          | the head     |         | ignored
the bot           | admin    | nobody        | approved          | the head     |         | ignored
the bot as a user | admin    | nobody        | approved          | the head     |         | ignored
the bot           | admin    | nobody        | changes_requested | the head     |         | ignored
another bot       | admin    | the reviewer  | approved          | the head     |         | ignored
gone              | admin    | nobody        | approved          | the head     |         | ignored
somebody else     | none     | nobody        | approved          | the head     |         | ignored
somebody else     | read     | nobody        | approved          | the head     |         | ignored
somebody else     | triage   | the reviewer  | approved          | the head     |         | ignored
somebody else     | read     | nobody        | changes_requested | the head     |         | ignored
somebody else     | unknown  | nobody        | approved          | the head     |         | ignored
somebody else     | write    | admins        | approved          | the head     |         | ignored
somebody else     | write    | somebody else | approved          | the head     |         | ignored
somebody else     | write    | nobody        | approved          | an older one |         | ignored
somebody else     | write    | nobody        | approved          | moved since  |         | ignored
somebody else     | write    | nobody        | approved          | the new head |         | ignored
somebody else     | write    | nobody        | approved          | shortened    |         | ignored
somebody else     | write    | nobody        | approved          | unknown      |         | ignored
somebody else     | write    | nobody        | changes_requested | an older one |         | ignored
somebody else     | write    | nobody        | commented         | the head     |         | ignored
somebody else     | write    | nobody        | dismissed         | the head     |         | ignored
somebody else     | write    | nobody        | pending           | the head     |         | ignored
somebody else     | write    | nobody        | approved          | the head     | altered | ignored
somebody else     | write    | nobody        | approved          | the head     | late    | ignored
somebody else     | write    | nobody        | approved          | the head     | closed  | ignored
somebody else     | write    | nobody        | approved          | the head     | again   | ignored
"""


@pytest.mark.parametrize("line", TABLE.strip().splitlines())
def test_the_table(line: str) -> None:
    relation, permission, named, state, commit, more, wanted = (part.strip() for part in line.split("|"))
    cell = Cell(
        relation,
        None if permission == "unknown" else permission,
        named,
        ReviewState(state),
        commit,
        asked=ApprovalState.approved if more == "again" else ApprovalState.pending,
        altered=more == "altered",
        late=more == "late",
        open=more != "closed",
    )
    assert verdict(cell) == expected(cell) == wanted


# --- several reviews together

POLICY = ApprovalPolicy(owner="acme")
PULL = PullFacts(number=7, head_sha=SHA, hands=frozenset({AUTHOR}))
SUBJECT = Subject(sha=SHA, askers=frozenset({ASKER}), bot_id=BOT)
APPROVED, CHANGES, COMMENTED, DISMISSED = (
    ReviewState.approved,
    ReviewState.changes_requested,
    ReviewState.commented,
    ReviewState.dismissed,
)


def said(who: int, state: ReviewState, minute: int, *, sha: str = SHA) -> Review:
    return Review(
        id=100 + minute,
        author=Actor(login=f"u{who}", id=who, type="User"),
        state=state,
        commit_id=sha,
        submitted_at=NOON + timedelta(minutes=minute),
    )


def everybody(reviews: list[Review], permission: str = "write") -> dict[int, Standing]:
    return {
        review.author.id: Standing(login=review.author.login, permission=permission)
        for review in reviews
        if review.author
    }


@pytest.mark.parametrize(
    ("reviews", "wanted"),
    [
        ([], Verdict.waiting),
        ([said(4, APPROVED, 1)], Verdict.approved),
        ([said(4, COMMENTED, 1)], Verdict.waiting),
        # the last that decides is what somebody means
        ([said(4, CHANGES, 1), said(4, APPROVED, 2)], Verdict.approved),
        ([said(4, APPROVED, 1), said(4, CHANGES, 2)], Verdict.refused),
        ([said(4, APPROVED, 2), said(4, CHANGES, 1)], Verdict.approved),  # whatever order they are listed in
        # a comment changes nothing that was said before
        ([said(4, APPROVED, 1), said(4, COMMENTED, 2)], Verdict.approved),
        ([said(4, CHANGES, 1), said(4, COMMENTED, 2)], Verdict.refused),
        # one that was dismissed takes back what came before it, and is no opinion itself
        ([said(4, APPROVED, 1), said(4, DISMISSED, 2)], Verdict.waiting),
        ([said(4, DISMISSED, 1), said(4, APPROVED, 2)], Verdict.approved),
        # one no outweighs every yes
        ([said(4, APPROVED, 1), said(5, CHANGES, 2)], Verdict.refused),
        ([said(5, CHANGES, 1), said(4, APPROVED, 2), said(6, APPROVED, 3)], Verdict.refused),
        ([said(5, CHANGES, 1), said(4, APPROVED, 2), said(5, APPROVED, 3)], Verdict.approved),
        ([said(5, DISMISSED, 1), said(4, APPROVED, 2)], Verdict.approved),
        # who asked may say no, and their yes counts for nothing
        ([said(4, APPROVED, 1), said(ASKER, CHANGES, 2)], Verdict.refused),
        ([said(ASKER, APPROVED, 1)], Verdict.waiting),
        # of somebody whose last word is on an older commit nothing is known about this one
        ([said(4, APPROVED, 1), said(4, CHANGES, 2, sha=OTHER)], Verdict.waiting),
    ],
)
def test_of_each_person_the_last_word_counts_and_a_no_wins(reviews: list[Review], wanted: Verdict) -> None:
    assert tally(reviews, everybody(reviews), SUBJECT, PULL, POLICY).verdict is wanted


def test_a_no_of_somebody_who_may_not_write_stops_nothing() -> None:
    reviews = [said(4, APPROVED, 1), said(5, CHANGES, 2)]
    people = everybody(reviews) | {5: Standing(login="u5", permission="read")}
    votes = tally(reviews, people, SUBJECT, PULL, POLICY)
    assert votes.verdict is Verdict.approved
    assert [one.review.author.id for one in votes.ignored if one.review.author] == [5]


def test_of_whom_nothing_is_known_decides_nothing() -> None:
    assert tally([said(4, APPROVED, 1)], {}, SUBJECT, PULL, POLICY).verdict is Verdict.waiting


@pytest.mark.parametrize(("count", "wanted"), [(0, 2), (1, 1), (2, 0), (3, 0)])
def test_as_many_people_as_are_wanted(count: int, wanted: int) -> None:
    reviews = [said(4 + number, APPROVED, number) for number in range(count)]
    policy = replace(POLICY, required=2)
    votes = tally(reviews, everybody(reviews), SUBJECT, PULL, policy)
    assert votes.missing == wanted
    assert votes.verdict is (Verdict.waiting if wanted else Verdict.approved)


def test_one_person_who_approves_twice_is_one_person() -> None:
    reviews = [said(4, APPROVED, 1), said(4, APPROVED, 2)]
    votes = tally(reviews, everybody(reviews), SUBJECT, PULL, replace(POLICY, required=2))
    assert votes.missing == 1


def test_nobody_approves_what_nobody_knows_who_made() -> None:
    reviews = [said(4, APPROVED, 1)]
    pull = replace(PULL, unattributed=(OTHER,))
    votes = tally(reviews, everybody(reviews), SUBJECT, pull, POLICY)
    assert votes.verdict is Verdict.waiting
    assert OTHER[:12] in votes.ignored[0].decision.refusals[0]


def test_a_suspended_account_decides_nothing() -> None:
    reviews = [said(4, APPROVED, 1), said(5, CHANGES, 2)]
    people = {
        who: Standing(login=f"u{who}", permission="admin", suspended=suspended)
        for who, suspended in ((4, True), (5, None))
    }
    assert tally(reviews, people, SUBJECT, PULL, POLICY).verdict is Verdict.waiting


def test_all_rules_must_fit() -> None:
    config = parse("who: {may_approve: {users: [u4, u5]}, may_spend: {users: [u5]}}")
    reviews = [said(4, APPROVED, 1)]
    budget = policy_for(config, ApprovalKind.budget, "acme")
    network = policy_for(config, ApprovalKind.network, "acme")
    assert tally(reviews, everybody(reviews), SUBJECT, PULL, network).verdict is Verdict.approved
    assert tally(reviews, everybody(reviews), SUBJECT, PULL, budget).verdict is Verdict.waiting
    reviews = [said(5, APPROVED, 1)]
    assert tally(reviews, everybody(reviews), SUBJECT, PULL, budget).verdict is Verdict.approved


def test_the_whole_pull_request_has_its_own_rule_on_top() -> None:
    config = parse(
        "approvals: {final: {required: 2, teams: [core]}}\nwho: {may_approve: {permission: maintain}}"
    )
    policy = policy_for(config, None, "acme")
    assert (policy.required, policy.rules[1]) == (2, FinalRule(required=2, teams=("core",)))
    reviews = [said(4, APPROVED, 1), said(5, APPROVED, 2)]
    people = {
        4: Standing(login="u4", permission="maintain", teams=frozenset({"acme/core"})),
        5: Standing(login="u5", permission="write", teams=frozenset({"acme/core"})),
    }
    votes = tally(reviews, people, SUBJECT, PULL, policy)
    assert votes.missing == 1
    assert "maintain" in " ".join(votes.ignored[0].decision.refusals)


# --- the check run for the whole pull request


def test_a_no_stays_across_pushes_for_the_pull_request_as_a_whole() -> None:
    reviews = [said(5, CHANGES, 1, sha=OTHER), said(4, APPROVED, 2)]
    sticky = replace(SUBJECT, sticky=True)
    assert tally(reviews, everybody(reviews), sticky, PULL, POLICY).verdict is Verdict.refused
    assert tally(reviews, everybody(reviews), SUBJECT, PULL, POLICY).verdict is Verdict.approved


@pytest.mark.parametrize(
    ("reviews", "is_open", "conclusion", "title"),
    [
        ([], True, None, "1 approval is missing"),
        ([said(4, APPROVED, 1)], True, "success", "Approved by u4"),
        ([said(4, APPROVED, 1, sha=OTHER)], True, None, "1 approval is missing"),
        ([said(4, CHANGES, 1, sha=OTHER)], True, "action_required", "Changes requested by u4"),
        ([said(4, APPROVED, 1)], False, "cancelled", "Closed before it was approved"),
    ],
)
def test_what_the_check_run_says(
    reviews: list[Review], is_open: bool, conclusion: str | None, title: str
) -> None:
    pull = replace(PULL, open=is_open)
    votes = tally(reviews, everybody(reviews), replace(SUBJECT, sticky=True), pull, POLICY)
    says = final(votes, pull)
    assert (says.conclusion, says.title) == (conclusion, title)


# --- words


def test_people_are_told_what_to_do_and_bots_nothing() -> None:
    person = Standing(login="rita", permission="write")
    moved = weigh(said(4, APPROVED, 1), person, SUBJECT, replace(PULL, head_sha=MOVED), POLICY)
    assert "submit the review again" in " ".join(moved.decision.refusals)
    assert not moved.decision.silent
    bot = replace(said(4, APPROVED, 1), author=Actor(login="x[bot]", id=9, type="Bot"))
    assert weigh(bot, person, SUBJECT, PULL, POLICY).decision.silent
    again = weigh(said(4, APPROVED, 1), person, replace(SUBJECT, state=ApprovalState.approved), PULL, POLICY)
    assert again.decision.silent
    other_way = weigh(
        said(4, CHANGES, 1), person, replace(SUBJECT, state=ApprovalState.approved), PULL, POLICY
    )
    assert not other_way.decision.silent
    assert "/agent cancel" in other_way.decision.refusals[0]


def test_the_decision_of_all_reviews_is_a_tree_of_every_question() -> None:
    reviews = [said(4, APPROVED, 1), said(ASKER, APPROVED, 2)]
    tree = tally(reviews, everybody(reviews), SUBJECT, PULL, POLICY).decision.root
    assert tree.ok
    questions = [reason.question for reason in tree.because]
    assert questions == [
        "are there enough approvals",
        "has nobody requested changes",
        "does review 101 of @u4 count",
        "does review 102 of @u2 count",
    ]
    asked = next(reason for reason in tree.because[3].because if "who asked" in reason.question)
    assert not asked.ok


def test_the_last_of_each_person_are_found_whatever_lacks() -> None:
    ghost = replace(said(4, APPROVED, 1), author=None)
    undated = replace(said(5, APPROVED, 3), submitted_at=None)
    assert latest([ghost, undated, said(5, CHANGES, 2)]) == [said(5, CHANGES, 2)]
