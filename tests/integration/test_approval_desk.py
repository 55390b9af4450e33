"""What people decide by reviews of a sandbox GitHub: asked, given, taken back, and checked again when it is used."""

from __future__ import annotations

import asyncio
import dataclasses
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from dataclasses import dataclass, field
from datetime import UTC, datetime, timedelta
from pathlib import Path
from typing import Any

import pytest
from sqlalchemy import update
from sqlalchemy.ext.asyncio import AsyncEngine

from bot.approval_desk import ApprovalDesk, ApprovalVoid
from bot.approval_store import ApprovalStore
from bot.approval_writer import CHECK_NAME, ApprovalWriter
from bot.audit import Audit, Wanted
from bot.database import create_engine
from bot.errors import ConductorError
from bot.events import Event, parse_event
from bot.facts import FactFinder
from bot.final_check import FinalCheck
from bot.github import GitHub
from bot.github_transport import Patience
from bot.model import (
    Actor,
    Approval,
    ApprovalKind,
    ApprovalState,
    Job,
    JobState,
    Repo,
    TargetKind,
    Trigger,
)
from bot.redact import Redactor
from bot.report import Reporter
from bot.reviews import ReviewFinder
from bot.sandbox.faults import Fault
from bot.sandbox.human import Human, HumanError
from bot.sandbox.sandbox import Sandbox
from bot.sandbox.seed import APP_PERMISSIONS
from bot.sandbox.state import BranchRules
from bot.schema import approvals as approvals_table
from bot.store import Store
from tests.jobs import asked_job
from tests.made_once import app_key, migrated

REPO = "acme/thing"
BRANCH = "agent/issue-1-do-it"
ROLES = {
    "maria": "admin",
    "rita": "write",
    "tom": "maintain",
    "carl": "write",
    "reader": "read",
    "tria": "triage",
}


@dataclass
class Told:
    """Who waits for decisions: it writes down what it is told."""

    calls: list[tuple[str, str, str, str]] = field(default_factory=list)

    async def approved(self, approval: Approval, job: Job, by: Actor, words: str) -> None:
        self.calls.append(("approved", approval.id, by.login, words))

    async def refused(self, approval: Approval, job: Job, by: Actor, words: str) -> None:
        self.calls.append(("refused", approval.id, by.login, words))

    async def lapsed(self, approval: Approval, job: Job, why: str) -> None:
        self.calls.append(("lapsed", approval.id, str(approval.state), why))


@dataclass
class Place:
    """A draft pull request of the bot's, with a plan in an empty commit, and who talks in it."""

    sandbox: Sandbox
    github: GitHub
    engine: AsyncEngine
    store: Store
    approvals: ApprovalStore
    audit: Audit
    desk: ApprovalDesk
    final: FinalCheck
    told: Told
    repo: Repo
    number: int
    sha: str
    job: Job

    def person(self, login: str) -> Human:
        return self.sandbox.as_user(login)

    def actor(self, login: str) -> Actor:
        return Actor(login=login, id=self.sandbox.world.users[login].id, type="User")

    def other_server(self) -> FinalCheck:
        """What shows the final approval on a server beside this one."""
        return final_check(self.sandbox, self.github, Store(self.engine), self.audit)

    async def ask(self, kind: ApprovalKind = ApprovalKind.plan, **more: Any) -> Approval:
        values = {"sha": self.sha, "pull_number": self.number} | more
        return await self.desk.ask(self.job, kind, "The plan: change `a.py`.", **values)

    async def review(self, login: str, event: str = "APPROVE", body: str = "Fine.", **more: Any) -> int:
        """Submit a review; the bot does not know yet."""
        return int((await self.person(login).review(REPO, self.number, event, body, **more))["id"])

    def event(self, name: str = "pull_request_review") -> Event:
        """The newest webhook of that name."""
        newest = next(one for one in self.sandbox.deliveries if one.event == name)
        return parse_event(newest.guid, name, newest.payload)

    async def reviewed(self, login: str, event: str = "APPROVE", body: str = "Fine.", **more: Any) -> bool:
        """Submit a review, and let the bot hear of it."""
        await self.review(login, event, body, **more)
        return await self.desk.reviewed(self.event())

    async def now(self, approval: Approval) -> Approval:
        found = await self.approvals.approval(approval.id)
        assert found is not None
        return found

    async def pending(self) -> Approval:
        (found,) = await self.approvals.pending_on(self.repo.id, self.number)
        return found

    async def push(self, login: str, **files: str) -> str:
        return await self.person(login).push_commit(REPO, BRANCH, files or {"a.py": "x = 3\n"})

    def ours(self) -> list[str]:
        return [
            one["body"] for one in self.sandbox.comments(REPO, self.number) if one["user"]["type"] == "Bot"
        ]

    async def kinds(self) -> list[str]:
        return [getattr(one, "kind", "") async for one in self.audit.entries(Wanted())]

    async def check(self, sha: str | None = None) -> dict[str, Any] | None:
        """The newest check run of the final approval on ``sha``, or on the head."""
        sha = sha or self.sandbox.world.repository("acme", "thing").issues[self.number].pull.head_sha  # type: ignore[union-attr]
        found = await self.person("maria").request(
            "GET", f"/repos/{REPO}/commits/{sha}/check-runs?check_name={CHECK_NAME}"
        )
        return found["check_runs"][0] if found["check_runs"] else None


async def empty_commit(github: GitHub, installation: int, parent: str, message: str) -> str:
    """As the App: a commit that changes nothing."""
    client = github.installation(installation)
    tree = (await client.getitem(f"/repos/{REPO}/git/commits/{parent}"))["tree"]["sha"]
    data = {"message": message, "tree": tree, "parents": [parent]}
    return str((await client.post(f"/repos/{REPO}/git/commits", data=data))["sha"])


def final_check(sandbox: Sandbox, github: GitHub, store: Store, audit: Audit) -> FinalCheck:
    """As a server has it."""
    return FinalCheck(
        github=github,
        store=store,
        approvals=ApprovalStore(store.engine, audit),
        facts=FactFinder(github),
        reviews=ReviewFinder(github),
        writer=ApprovalWriter(github, Reporter(github, store, Redactor([])), github_url=sandbox.url),
        audit=audit,
    )


@asynccontextmanager
async def world(
    tmp_path: Path,
    *,
    config: dict[str, Any] | None = None,
    yaml: str = "",
    owners: str = "",
    url: str = "",
) -> AsyncIterator[Place]:
    files = {"a.py": "x = 1\n"} | ({".github/conductor.yml": yaml} if yaml else {})
    files |= {"CODEOWNERS": owners} if owners else {}
    permissions = {**APP_PERMISSIONS, "members": "read", "merge_queues": "read"}
    engine = create_engine(url or migrated(tmp_path / "c.db"))
    async with Sandbox.start(
        private_key=app_key(), state_dir=tmp_path / "github", app_permissions=permissions
    ) as sandbox:
        for login in ROLES:
            if login not in sandbox.world.users:
                sandbox.add_user(login)
        await sandbox.create_repo(REPO, files=files, collaborators=ROLES)
        repository = sandbox.world.repository("acme", "thing")
        repo = Repo(owner="acme", name="thing", id=repository.id, installation_id=sandbox.installation_id)
        key = Path(sandbox.private_key_path).read_text()
        redactor = Redactor([])
        async with GitHub(
            sandbox.url, str(sandbox.app_id), key, patience=Patience(tries=2, backoff=0.01)
        ) as github:
            client = github.installation(sandbox.installation_id)
            main = (await client.getitem(f"/repos/{REPO}/git/ref/heads/main"))["object"]["sha"]
            sha = await empty_commit(github, sandbox.installation_id, main, "A plan")
            await client.post(f"/repos/{REPO}/git/refs", data={"ref": f"refs/heads/{BRANCH}", "sha": sha})
            pull = await client.post(
                f"/repos/{REPO}/pulls",
                data={"title": "Plan", "head": BRANCH, "base": "main", "body": "", "draft": True},
            )
            audit = Audit(engine, redactor)
            store = Store(engine)
            approvals = ApprovalStore(engine, audit)
            reviews = ReviewFinder(github)
            writer = ApprovalWriter(github, Reporter(github, store, redactor), github_url=sandbox.url)
            told = Told()
            job = asked_job(
                by=Actor(login="maria", id=sandbox.world.users["maria"].id, type="User"),
                event="issue_comment.created",
                repo=repo,
                agent="claude",
                instructions="do it",
                state=JobState.paused,
                config=config or {},
                branch=BRANCH,
                head_sha=sha,
                pull_number=pull["number"],
            )
            assert await store.add_job(job)
            yield Place(
                sandbox=sandbox,
                github=github,
                engine=engine,
                store=store,
                approvals=approvals,
                audit=audit,
                desk=ApprovalDesk(
                    github=github,
                    store=store,
                    approvals=approvals,
                    reviews=reviews,
                    writer=writer,
                    outcome=told,
                ),
                final=final_check(sandbox, github, store, audit),
                told=told,
                repo=repo,
                number=pull["number"],
                sha=sha,
                job=job,
            )
        assert [str(problem) for problem in sandbox.problems] == []
    await engine.dispose()


@pytest.fixture
async def place(tmp_path: Path) -> AsyncIterator[Place]:
    async with world(tmp_path) as found:
        yield found


# --- asking


async def test_it_is_asked_in_one_comment_that_says_what_and_where(place: Place) -> None:
    asked = await place.ask()
    assert await place.ask() == asked  # the same again, after a crash
    (comment,) = place.ours()
    for part in (
        "The plan: change `a.py`.",
        "/files",
        "Review changes",
        "not maria, who asked",
        asked.sha[:12],
    ):
        assert part in comment
    assert (await place.now(asked)).settled_at is not None
    assert await place.kinds() == ["approval.asked"]


async def test_whoever_is_named_is_requested_and_one_that_github_does_not_take_spoils_nothing(
    tmp_path: Path,
) -> None:
    config = {"approvals": {"request": {"users": ["stranger", "rita", "maria"]}}}
    async with world(tmp_path, config=config) as place:
        await place.ask()
        pull = await place.person("maria").request("GET", f"/repos/{REPO}/pulls/{place.number}")
        assert [user["login"] for user in pull["requested_reviewers"]] == ["rita"]


OWNERS = "* @tom @maria\na.py @rita\n/secret/ @carl someone@example.com @acme/nobody\n"


@pytest.mark.parametrize(
    ("push", "details", "wanted"),
    [
        (True, {}, ["rita"]),  # what the pull request changes
        (True, {"paths": ["secret/key"]}, ["carl", "rita"]),  # and what the agent asks to change
        (True, {"files": ["secret/key"]}, ["carl", "rita"]),  # or what was held back
        (
            False,
            {},
            ["carl", "rita", "tom"],
        ),  # nothing is changed yet: whoever owns anything, but not who asked
    ],
)
async def test_code_owners_are_requested_where_that_is_wanted(
    tmp_path: Path, push: bool, details: dict[str, Any], wanted: list[str]
) -> None:
    config = {"approvals": {"request": {"codeowners": True}}}
    async with world(tmp_path, config=config, owners=OWNERS) as place:
        sha = await place.push("maria") if push else place.sha
        await place.ask(sha=sha, details=details)
        pull = await place.person("maria").request("GET", f"/repos/{REPO}/pulls/{place.number}")
        assert sorted(user["login"] for user in pull["requested_reviewers"]) == wanted


async def test_code_owners_are_not_requested_where_nobody_wants_that(tmp_path: Path) -> None:
    async with world(tmp_path, owners=OWNERS) as place:
        await place.ask()
        pull = await place.person("maria").request("GET", f"/repos/{REPO}/pulls/{place.number}")
        assert pull["requested_reviewers"] == []


async def test_where_code_owners_cannot_be_read_the_others_are_requested(tmp_path: Path) -> None:
    config = {"approvals": {"request": {"codeowners": True, "users": ["rita"]}}}
    async with world(tmp_path, config=config, owners=OWNERS) as place:
        place.sandbox.faults.add(Fault(path="CODEOWNERS", status=403, times=None))
        asked = await place.ask()
        pull = await place.person("maria").request("GET", f"/repos/{REPO}/pulls/{place.number}")
        assert [user["login"] for user in pull["requested_reviewers"]] == ["rita"]
        assert asked.settled_at is not None


async def test_where_github_does_not_answer_code_owners_are_requested_later(tmp_path: Path) -> None:
    config = {"approvals": {"request": {"codeowners": True}}}
    async with world(tmp_path, config=config, owners=OWNERS) as place:
        place.sandbox.faults.add(Fault(path="CODEOWNERS", status=502, times=None))
        asked = await place.ask()
        assert asked.settled_at is None
        place.sandbox.faults.clear()
        async with place.engine.begin() as connection:
            await connection.execute(
                update(approvals_table).values(asked_at=datetime.now(UTC) - timedelta(minutes=1))
            )
        await place.desk.settle()
        assert (await place.now(asked)).settled_at is not None
        pull = await place.person("maria").request("GET", f"/repos/{REPO}/pulls/{place.number}")
        assert sorted(user["login"] for user in pull["requested_reviewers"]) == ["carl", "rita", "tom"]


async def test_a_new_question_takes_the_place_of_the_job_s_old_one(place: Place) -> None:
    first = await place.ask(ApprovalKind.text)
    second = await place.ask(ApprovalKind.network, details={"host": "example.com"})
    assert (await place.now(first)).state is ApprovalState.withdrawn
    assert await place.pending() == await place.now(second)
    assert place.told.calls == []


# --- deciding


async def test_somebody_who_may_approves(place: Place) -> None:
    asked = await place.ask()
    assert await place.reviewed("rita", body="Go ahead, but keep `b`.")
    decided = await place.now(asked)
    assert (decided.state, decided.decided_by, decided.words) == (
        "approved",
        "rita",
        "Go ahead, but keep `b`.",
    )
    assert place.told.calls == [("approved", asked.id, "rita", "Go ahead, but keep `b`.")]
    (comment,) = place.ours()
    assert "**Approved** by rita" in comment
    used = await place.desk.use(asked.id, by="j2")
    assert used.used_at is not None
    assert await place.desk.use(asked.id, by="j2") == used
    assert await place.kinds() == ["approval.asked", "approval.granted", "approval.used"]


async def test_somebody_requests_changes_and_their_words_are_handed_on(place: Place) -> None:
    asked = await place.ask()
    assert await place.reviewed("rita", "REQUEST_CHANGES", "Smaller, please.")
    assert place.told.calls == [("refused", asked.id, "rita", "Smaller, please.")]
    assert "**Refused** by rita" in place.ours()[0]
    with pytest.raises(ApprovalVoid):
        await place.desk.use(asked.id, by="j2")


async def test_who_asked_may_send_it_back(place: Place) -> None:
    asked = await place.ask()
    assert await place.reviewed("maria", "REQUEST_CHANGES", "Not what I meant.")
    assert place.told.calls == [("refused", asked.id, "maria", "Not what I meant.")]


@pytest.mark.parametrize(
    ("login", "why"),
    [
        ("maria", "somebody else has to approve"),
        ("reader", "needs write access"),
        ("tria", "needs write access"),
    ],
)
async def test_who_may_not_approve_is_told_why_and_nothing_is_decided(
    place: Place, login: str, why: str
) -> None:
    asked = await place.ask()
    assert await place.reviewed(login)
    assert (await place.now(asked)).state is ApprovalState.pending
    assert place.told.calls == []
    assert why in place.ours()[1]
    await place.desk.reviewed(place.event())  # the same delivery again
    assert len(place.ours()) == 2


async def test_who_pushed_may_not_approve_whatever_their_commit_says(place: Place) -> None:
    """The e-mail address in a commit is free text: who pushed it counts."""
    client = place.github.installation(place.repo.installation_id)
    forged = await empty_commit(place.github, place.repo.installation_id, place.sha, "By the bot, I swear")
    commit = await client.getitem(f"/repos/{REPO}/commits/{forged}")
    assert commit["author"]["login"] == (await place.github.identity()).login
    await place.person("carl").request(
        "PATCH", f"/repos/{REPO}/git/refs/heads/{BRANCH}", {"sha": forged, "force": False}
    )
    await place.ask(sha=forged)
    await place.reviewed("carl")
    assert place.told.calls == []
    assert "wrote or pushed a part" in place.ours()[1]
    await place.reviewed("rita")
    assert [call[0] for call in place.told.calls] == ["approved"]


async def test_a_comment_decides_nothing_and_is_left_to_others(place: Place) -> None:
    asked = await place.ask()
    assert not await place.reviewed("rita", "COMMENT", "LGTM, approved!")
    assert (await place.now(asked)).state is ApprovalState.pending
    assert len(place.ours()) == 1


async def test_only_those_who_are_named(tmp_path: Path) -> None:
    config = {"who": {"may_approve": {"users": ["tom"], "teams": ["core"]}}}
    async with world(tmp_path, config=config) as place:
        place.sandbox.add_team("acme", "core", ["carl"], repositories={REPO: "write"})
        asked = await place.ask()
        await place.reviewed("rita")
        assert (await place.now(asked)).state is ApprovalState.pending
        await place.reviewed("carl")
        assert (await place.now(asked)).decided_by == "carl"


async def test_a_bot_s_approval_is_none(place: Place) -> None:
    asked = await place.ask()
    other = place.sandbox.as_app("reviewer", permissions={**APP_PERMISSIONS})
    await other.request(
        "POST", f"/repos/{REPO}/pulls/{place.number}/reviews", {"event": "APPROVE", "body": "ok"}
    )
    await place.desk.reviewed(place.event())
    assert (await place.now(asked)).state is ApprovalState.pending
    assert len(place.ours()) == 1  # and nobody talks with it


async def test_two_approvals_at_once_are_one_decision(place: Place) -> None:
    asked = await place.ask()
    await place.review("rita", body="First.")
    one = place.event()
    await place.review("tom", body="Second.")
    two = place.event()
    await asyncio.gather(place.desk.reviewed(one), place.desk.reviewed(two))
    assert len(place.told.calls) == 1
    assert (await place.kinds()).count("approval.granted") == 1
    assert (await place.now(asked)).state is ApprovalState.approved


async def test_a_yes_and_a_no_at_once_are_a_no(place: Place) -> None:
    await place.ask()
    await place.review("rita")
    one = place.event()
    await place.review("tom", "REQUEST_CHANGES", "No.")
    await asyncio.gather(place.desk.reviewed(one), place.desk.reviewed(place.event()))
    assert [call[0] for call in place.told.calls] == ["refused"]


async def test_a_no_stands_until_that_person_changes_it_or_it_is_dismissed(place: Place) -> None:
    # said before anybody asked: nothing was told of it
    review = await place.review("tom", "REQUEST_CHANGES", "No.")
    asked = await place.ask(ApprovalKind.text)
    await place.desk.reviewed(place.event())
    assert (await place.now(asked)).state is ApprovalState.refused
    again = await place.ask(ApprovalKind.text)
    await place.person("maria").dismiss_review(REPO, place.number, review, "Talked it over.")
    await place.desk.reviewed(place.event())
    assert (await place.now(again)).state is ApprovalState.pending
    await place.reviewed("rita")
    assert (await place.now(again)).state is ApprovalState.approved


async def test_a_review_on_an_older_commit_approves_nothing(place: Place) -> None:
    head = await place.push("carl")
    asked = await place.ask(sha=head)
    await place.reviewed("rita", commit_id=place.sha)
    assert (await place.now(asked)).state is ApprovalState.pending
    assert "Reload the page" in place.ours()[1]


NO_ACTIVITY = Fault(path="/activity", status=404, message="Not Found", times=None)


async def test_where_github_cannot_tell_who_pushed_our_own_commits_are_known(place: Place) -> None:
    place.sandbox.faults.add(NO_ACTIVITY)
    asked = await place.ask()
    await place.reviewed("rita")
    assert (await place.now(asked)).state is ApprovalState.approved


@pytest.mark.parametrize("how", ["as the bot", "as nobody"])
async def test_where_github_cannot_tell_who_pushed_nobody_approves_what_may_be_anybody_s(
    place: Place, how: str
) -> None:
    place.sandbox.faults.add(NO_ACTIVITY)
    if how == "as the bot":
        head = await empty_commit(place.github, place.repo.installation_id, place.sha, "I am the bot")
    else:
        who = {"name": "N", "email": "nobody@nowhere.example"}
        tree = (await place.person("carl").request("GET", f"/repos/{REPO}/git/commits/{place.sha}"))["tree"]
        data = {"message": "m", "tree": tree["sha"], "parents": [place.sha], "author": who, "committer": who}
        head = (await place.person("carl").request("POST", f"/repos/{REPO}/git/commits", data))["sha"]
    await place.person("carl").request("PATCH", f"/repos/{REPO}/git/refs/heads/{BRANCH}", {"sha": head})
    before = await place.ask()  # about the commit before; the push is noticed when somebody reviews
    await place.reviewed("carl")
    asked = await place.pending()
    assert (asked.sha, (await place.now(before)).state) == (head, "stale")
    for login in ("carl", "rita"):
        await place.reviewed(login)
    assert (await place.now(asked)).state is ApprovalState.pending
    assert "Nobody knows who made" in place.ours()[-1]


async def test_who_somebody_is_must_be_known(place: Place) -> None:
    asked = await place.ask()
    place.sandbox.faults.add(Fault(path="collaborators/rita", status=500, times=None))
    await place.reviewed("rita")
    assert (await place.now(asked)).state is ApprovalState.pending
    assert "could not find out" in place.ours()[1]
    place.sandbox.faults.clear()
    await place.reviewed("rita")
    assert (await place.now(asked)).state is ApprovalState.approved


async def test_a_question_that_github_did_not_take_is_asked_later(place: Place) -> None:
    place.sandbox.faults.add(Fault(method="POST", path="/comments", status=502, times=None))
    asked = await place.ask()
    assert (place.ours(), asked.settled_at) == ([], None)
    place.sandbox.faults.clear()
    async with place.engine.begin() as connection:
        await connection.execute(
            update(approvals_table).values(asked_at=datetime.now(UTC) - timedelta(minutes=1))
        )
    await place.desk.settle()
    await place.desk.settle()
    assert len(place.ours()) == 1
    assert (await place.now(asked)).settled_at is not None


# --- races


async def test_a_push_between_the_review_and_its_counting_asks_anew(place: Place) -> None:
    asked = await place.ask()
    await place.review("rita")
    event = place.event()
    head = await place.push("carl")
    await place.desk.reviewed(event)
    assert (await place.now(asked)).state is ApprovalState.stale
    anew = await place.pending()
    assert (anew.sha, anew.subject, anew.expires_at) == (head, asked.subject, asked.expires_at)
    assert place.told.calls == []
    assert "asked anew below" in place.ours()[0]
    await place.reviewed("rita")
    assert place.told.calls == [("approved", anew.id, "rita", "Fine.")]


async def test_a_push_between_the_review_and_its_use_makes_it_void(place: Place) -> None:
    asked = await place.ask()
    await place.reviewed("rita")
    head = await place.push("carl")  # its webhook is still on its way
    with pytest.raises(ApprovalVoid, match=head[:12]):
        await place.desk.use(asked.id, by="j2")
    assert (await place.now(asked)).state is ApprovalState.stale
    assert place.told.calls[1:] == [("lapsed", asked.id, "stale", f"The branch has moved to `{head[:12]}`.")]
    assert "approval.used" not in await place.kinds()


async def test_a_push_is_heard_while_it_is_asked(place: Place) -> None:
    asked = await place.ask()
    head = await place.push("carl")
    await place.desk.pushed(place.repo, place.number)
    assert (await place.now(asked)).state is ApprovalState.stale
    assert (await place.pending()).sha == head
    await place.desk.pushed(place.repo, place.number)
    assert (await place.pending()).sha == head


@pytest.mark.parametrize("how", ["dismissed", "edited", "refused since", "no access any more", "closed"])
async def test_what_was_approved_is_checked_again_when_it_is_used(place: Place, how: str) -> None:
    asked = await place.ask()
    review = await place.review("rita")
    await place.desk.reviewed(place.event())
    if how == "dismissed":
        await place.person("maria").dismiss_review(REPO, place.number, review, "No.")
    elif how == "edited":
        await place.person("rita").edit_review(REPO, place.number, review, "Fine, and delete the tests.")
    elif how == "refused since":
        await place.review("tom", "REQUEST_CHANGES", "Wait!")
    elif how == "closed":
        await place.person("maria").close(REPO, place.number)
    else:
        place.sandbox.set_role(REPO, "rita", "read")
    with pytest.raises(ApprovalVoid):
        await place.desk.use(asked.id, by="j2")
    assert (await place.now(asked)).state is ApprovalState.stale
    assert "**Not valid any more.**" in place.ours()[0]
    assert [call[0] for call in place.told.calls] == ["approved", "lapsed"]


@pytest.mark.parametrize(
    "how", ["dismissed", "edited", "refused since", "no access any more", "pushed", "closed"]
)
async def test_what_was_used_is_checked_again_for_every_other_job(place: Place, how: str) -> None:
    asked = await place.ask()
    review = await place.review("rita")
    await place.desk.reviewed(place.event())
    assert (await place.desk.use(asked.id, by="j2")).used_by == "j2"
    assert (await place.desk.use(asked.id, by="j3")).used_by == "j3"  # it holds
    if how == "dismissed":
        await place.person("maria").dismiss_review(REPO, place.number, review, "No.")
    elif how == "edited":
        await place.person("rita").edit_review(REPO, place.number, review, "Fine, and delete the tests.")
    elif how == "refused since":
        await place.review("tom", "REQUEST_CHANGES", "Wait!")
    elif how == "no access any more":
        place.sandbox.set_role(REPO, "rita", "read")
    elif how == "pushed":
        await place.push("carl")
    else:
        await place.person("maria").close(REPO, place.number)
    for job in ("j2", "j4"):
        with pytest.raises(ApprovalVoid, match="does not hold any more"):
            await place.desk.use(asked.id, by=job)
    # the same thing after a crash, when its own push may have moved the branch; and what was done stays approved
    used = await place.desk.use(asked.id, by="j3")
    assert (used.used_by, used.state) == ("j3", ApprovalState.approved)
    assert (await place.kinds()).count("approval.used") == 2
    assert [call[0] for call in place.told.calls] == ["approved"]


async def test_what_a_job_put_on_the_branch_in_vain_is_no_push_for_the_job_that_does_it_once_more(
    place: Place,
) -> None:
    asked = await place.ask()
    await place.reviewed("rita")
    marker = await empty_commit(place.github, place.sandbox.installation_id, place.sha, "May I?")
    first = place.job.evolve(
        id="first",
        number=place.number,
        target=TargetKind.pull_request,
        approval_id=asked.id,
        head_sha=None,
        state=JobState.timed_out,
    )
    await place.store.add_job(first.evolve(marker_sha=marker))
    await place.desk.use(asked.id, by="first")
    client = place.github.installation(place.sandbox.installation_id)
    await client.patch(f"/repos/{REPO}/git/refs/heads/{BRANCH}", data={"sha": marker})

    async def refused(job: Job, why: str = "The branch has moved") -> None:
        await place.store.add_job(job)
        with pytest.raises(ApprovalVoid, match=why):
            await place.desk.use(asked.id, by=job.id)

    await refused(first.evolve(id="another"))  # does nothing once more
    await refused(first.evolve(id="of nothing", retry_of="j0"))
    succeeded = first.evolve(id="done", state=JobState.succeeded, marker_sha=marker)
    await place.store.add_job(succeeded)
    await refused(first.evolve(id="of done", retry_of="done"))
    await place.store.add_job(first.evolve(id="unapproved", approval_id="p9", marker_sha=marker))
    await refused(first.evolve(id="of unapproved", retry_of="unapproved"))
    again = first.evolve(id="again", retry_of="first")
    await place.store.add_job(again)
    assert (await place.desk.use(asked.id, by="again")).used_by == "again"
    await refused(first.evolve(id="late", retry_of="first"))  # another job has gone by it since
    assert await place.store.add_job(first.evolve(id="third", retry_of="again"))
    assert (await place.desk.use(asked.id, by="third")).used_by == "third"
    await place.push("carl")
    await refused(first.evolve(id="fourth", retry_of="third"))


@pytest.mark.parametrize("same", [True, False])
async def test_who_approved_may_have_it_done_again_and_asks_for_nothing_else(
    place: Place, same: bool
) -> None:
    asked = await place.ask()
    await place.reviewed("rita")
    trigger = Trigger(delivery_id="d3", event="issue_comment.created", actor=place.actor("rita"))
    hers = place.job.evolve(
        id="j3", number=place.number, trigger=trigger, approval_id=asked.id if same else None
    )
    assert await place.store.add_job(hers)
    if same:
        assert (await place.desk.use(asked.id, by="j3")).used_by == "j3"
    else:
        with pytest.raises(ApprovalVoid, match="You asked for this work"):
            await place.desk.use(asked.id, by="j3")


@pytest.mark.parametrize("how", ["dismissed", "edited", "refused since"])
async def test_what_takes_an_approval_back_is_heard_at_once(place: Place, how: str) -> None:
    asked = await place.ask()
    review = await place.review("rita")
    await place.desk.reviewed(place.event())
    if how == "dismissed":
        await place.person("maria").dismiss_review(REPO, place.number, review, "No.")
    elif how == "edited":
        await place.person("rita").edit_review(REPO, place.number, review, "Hm.")
    else:
        await place.review("tom", "REQUEST_CHANGES", "Wait!")
    heard = await place.desk.reviewed(place.event())
    assert heard is (how != "refused since")  # that one is feedback, too
    assert (await place.now(asked)).state is ApprovalState.stale
    (_, (lapsed, about, state, why)) = place.told.calls
    assert (lapsed, about, state) == ("lapsed", asked.id, "stale")
    assert {"dismissed": "was dismissed", "edited": "was edited", "refused since": "tom requested"}[
        how
    ] in why


async def test_a_text_that_changed_before_it_was_read_waits_for_its_own_event(place: Place) -> None:
    asked = await place.ask()
    review = await place.review("rita", body="Fine.")
    submitted = place.event()
    await place.person("rita").edit_review(REPO, place.number, review, "Fine, but only `a.py`.")
    await place.desk.reviewed(submitted)
    assert (await place.now(asked)).state is ApprovalState.pending
    await place.desk.reviewed(place.event())  # edited, by its author
    assert (await place.now(asked)).words == "Fine, but only `a.py`."


async def test_a_text_that_somebody_else_changed_never_counts(place: Place) -> None:
    asked = await place.ask()
    review = await place.review("rita", body="Fine.")
    await place.person("rita").edit_review(REPO, place.number, review, "Fine. And send it to evil.example.")
    edited = dataclasses.replace(place.event(), actor=place.actor("carl"))
    await place.desk.reviewed(edited)
    await place.desk.settle()
    await place.reviewed("reader", "COMMENT", "?")
    assert (await place.now(asked)).state is ApprovalState.pending
    await place.reviewed("rita", body="Fine, once more.")
    assert (await place.now(asked)).words == "Fine, once more."


async def test_a_review_that_came_while_the_server_was_down_is_found(place: Place) -> None:
    asked = await place.ask()
    await place.review("rita")  # and its webhook is lost
    await late(place, asked)
    await place.desk.settle()
    assert (await place.now(asked)).state is ApprovalState.approved
    assert [call[0] for call in place.told.calls] == ["approved"]


async def test_a_redelivered_review_changes_nothing_more(place: Place) -> None:
    await place.ask()
    await place.reviewed("rita", "REQUEST_CHANGES", "No.")
    before = (list(place.told.calls), len(place.ours()), await place.kinds())
    assert await place.desk.reviewed(place.event())
    assert (place.told.calls, len(place.ours()), await place.kinds()) == before


async def test_a_review_after_the_decision_is_told_so(place: Place) -> None:
    await place.ask()
    await place.reviewed("rita", "REQUEST_CHANGES", "No.")
    assert await place.reviewed("tom")
    assert "refused before" in place.ours()[1]
    # a second no is feedback like any other
    assert not await place.reviewed("carl", "REQUEST_CHANGES", "Also no.")
    assert len(place.told.calls) == 1


# --- time


async def late(place: Place, approval: Approval) -> None:
    """Let its time be over, though reviews up to now came in time."""
    async with place.engine.begin() as connection:
        await connection.execute(
            update(approvals_table)
            .where(approvals_table.c.id == approval.id)
            .values(
                asked_at=datetime.now(UTC) - timedelta(days=5),
                expires_at=datetime.now(UTC) - timedelta(seconds=0),
            )
        )


async def test_nobody_decides(place: Place) -> None:
    asked = await place.ask()
    await place.desk.settle()
    assert (await place.now(asked)).state is ApprovalState.pending
    await late(place, asked)
    await place.desk.settle()
    await place.desk.settle()
    assert place.told.calls == [("lapsed", asked.id, "expired", "nobody decided in time")]
    assert "**Nobody decided in time.**" in place.ours()[0]
    await place.reviewed("rita")
    assert (await place.now(asked)).state is ApprovalState.expired
    assert "Nobody had decided in time" in place.ours()[1]
    with pytest.raises(ApprovalVoid):
        await place.desk.use(asked.id, by="j2")


async def test_people_are_reminded_once(place: Place) -> None:
    asked = await place.ask()
    async with place.engine.begin() as connection:
        await connection.execute(
            update(approvals_table).values(asked_at=datetime.now(UTC) - timedelta(days=1, seconds=1))
        )
    await place.desk.settle()
    await place.desk.settle()
    assert len(place.ours()) == 2
    assert "@maria" in place.ours()[1]
    assert (await place.now(asked)).reminded_at is not None


@pytest.mark.parametrize("kind", [ApprovalKind.plan, ApprovalKind.network])
async def test_what_a_job_asked_ends_with_it(place: Place, kind: ApprovalKind) -> None:
    asked = await place.ask(kind)
    await place.store.move(place.job.id, JobState.cancelled, expected=[JobState.paused])
    await place.desk.settle()
    assert (await place.now(asked)).state is ApprovalState.withdrawn
    await place.reviewed("rita")
    assert place.told.calls == []


async def test_a_plan_outlives_the_job_that_made_it(place: Place) -> None:
    asked = await place.ask()
    async with place.engine.begin() as connection:
        await connection.exec_driver_sql("UPDATE jobs SET state = 'succeeded'")
    await place.desk.settle()
    assert (await place.now(asked)).state is ApprovalState.pending


async def test_a_closed_pull_request_decides_nothing(place: Place) -> None:
    asked = await place.ask(ApprovalKind.network)
    await place.desk.closed(place.repo, place.number)
    assert (await place.now(asked)).state is ApprovalState.withdrawn
    assert place.told.calls == [("lapsed", asked.id, "withdrawn", "The pull request was closed.")]


async def test_who_was_not_told_before_a_crash_is_told_later(place: Place) -> None:
    asked = await place.ask()
    decided = await place.approvals.decide(asked, ApprovalState.approved, by=place.actor("rita"))
    assert decided is not None  # and here the server dies
    async with place.engine.begin() as connection:
        await connection.execute(
            update(approvals_table).values(decided_at=datetime.now(UTC) - timedelta(minutes=1))
        )
    await place.desk.settle()
    await place.desk.settle()
    assert place.told.calls == [("approved", asked.id, "rita", "")]
    assert "**Approved** by rita" in place.ours()[0]


async def test_what_a_job_asked_before_is_no_answer_to_what_it_asks_now(place: Place) -> None:
    first = await place.ask(ApprovalKind.network)
    await place.approvals.decide(first, ApprovalState.refused, by=place.actor("rita"))
    async with place.engine.begin() as connection:
        await connection.execute(
            update(approvals_table).values(decided_at=datetime.now(UTC) - timedelta(minutes=1))
        )
    await place.ask(ApprovalKind.text)
    await place.desk.settle()
    assert place.told.calls == []


# --- operators, and people who comment


async def test_an_operator_decides_and_is_written_down(place: Place) -> None:
    asked = await place.ask()
    decided = await place.desk.decide_as_operator(
        asked.id, yes=True, reason="on call", operator="operator:root"
    )
    assert decided.state is ApprovalState.approved
    assert place.told.calls == [("approved", asked.id, "operator:root", "on call")]
    assert (await place.desk.use(asked.id, by="j2")).used_at is not None
    assert (await place.kinds())[1:] == ["override", "approval.granted", "approval.used"]
    with pytest.raises(ConductorError, match="not pending"):
        await place.desk.decide_as_operator(asked.id, yes=False, reason="", operator="operator:root")
    with pytest.raises(ConductorError, match="There is no approval"):
        await place.desk.decide_as_operator("p0", yes=True, reason="", operator="operator:root")


async def test_an_operator_too_decides_about_what_is_there_now(place: Place) -> None:
    asked = await place.ask()
    head = await place.push("carl")
    with pytest.raises(ConductorError, match="asked anew"):
        await place.desk.decide_as_operator(asked.id, yes=True, reason="", operator="operator:root")
    anew = await place.pending()
    assert anew.sha == head
    await place.desk.decide_as_operator(anew.id, yes=True, reason="", operator="operator:root")
    await place.push("carl", **{"b.py": "y = 1\n"})
    with pytest.raises(ApprovalVoid):
        await place.desk.use(anew.id, by="j2")


async def test_who_comments_is_told_where_to_click(place: Place) -> None:
    assert "Nothing waits for a decision here." in await place.desk.explain(place.repo, place.number)
    await place.ask()
    for number in (place.number, place.job.number):  # also on the issue
        said = await place.desk.explain(place.repo, number)
        assert f"/{REPO}/pull/{place.number}/files" in said
        assert "Approve" in said


# --- the pull request as a whole

FINAL = "approvals: {final: {required: 1, users: [rita, tom]}}\n"


async def test_the_check_run_says_who_approved_and_who_is_missing(tmp_path: Path) -> None:
    async with world(tmp_path, yaml=FINAL) as place:
        assert not await place.final.update(place.repo, place.number)
        check = await place.check()
        assert check is not None
        assert (check["status"], check["conclusion"]) == ("in_progress", None)
        assert "`rita` and `tom`" in check["output"]["summary"]
        await place.review("maria")  # who asked
        await place.review("carl")  # who is not named
        assert not await place.final.update(place.repo, place.number)
        check = await place.check()
        assert check is not None
        assert "You asked for this work" in check["output"]["summary"]
        await place.review("rita")
        assert await place.final.update(place.repo, place.number)
        check = await place.check()
        assert check is not None
        assert (check["conclusion"], check["output"]["title"]) == ("success", "Approved by rita")
        # a push: the new head is approved by nobody
        head = await place.push("carl")
        assert not await place.final.update(place.repo, place.number)
        check = await place.check(head)
        assert check is not None
        assert check["status"] == "in_progress"
        await place.review("tom", "REQUEST_CHANGES", "No.")
        await place.review("rita")
        assert not await place.final.update(place.repo, place.number)
        check = await place.check(head)
        assert check is not None
        assert (check["conclusion"], check["output"]["title"]) == (
            "action_required",
            "Changes requested by tom",
        )


async def test_reviews_are_requested_when_it_is_ready(tmp_path: Path) -> None:
    async with world(tmp_path, yaml=FINAL) as place:
        await place.final.update(place.repo, place.number, request=True)
        pull = await place.person("maria").request("GET", f"/repos/{REPO}/pulls/{place.number}")
        assert pull["requested_reviewers"] == []  # a draft
        await place.person("maria").ready(REPO, place.number)
        await place.final.update(place.repo, place.number, request=True)
        pull = await place.person("maria").request("GET", f"/repos/{REPO}/pulls/{place.number}")
        assert [user["login"] for user in pull["requested_reviewers"]] == ["rita", "tom"]


async def test_where_nothing_is_wanted_there_is_no_check_run(place: Place) -> None:
    assert not await place.final.update(place.repo, place.number)
    assert await place.check() is None


async def others(place: Place, branch: str = "carl", *, start: str | None = None, base: str = "main") -> Any:
    """A pull request of carl's: of a commit of his own, or of ``start``."""
    if start is None:
        await place.person("carl").push_commit(REPO, branch, {f"{branch}.py": "z\n"})
    else:
        data = {"ref": f"refs/heads/{branch}", "sha": start}
        await place.person("carl").request("POST", f"/repos/{REPO}/git/refs", data)
    return await place.person("carl").open_pull(REPO, branch, "Mine", base=base)


async def test_a_pull_request_of_somebody_else_is_told_that_the_rule_does_not_apply(tmp_path: Path) -> None:
    async with world(tmp_path, yaml=FINAL) as place:
        rules = place.sandbox.world.repository("acme", "thing").branch_rules
        rules["main"] = BranchRules(required_checks=[CHECK_NAME])
        pull = await others(place)
        async with place.engine.begin() as connection:  # also where a job has worked on it
            await connection.exec_driver_sql(f"UPDATE jobs SET pull_number = {pull['number']}")
        assert not await place.final.update(place.repo, pull["number"], others=True)
        check = await place.check(pull["head"]["sha"])
        assert check is not None
        assert (check["status"], check["conclusion"]) == ("completed", "neutral")
        assert check["output"]["title"] == "Not the bot's: its rule does not apply"
        # once for each head
        place.sandbox.faults.add(Fault(method="POST|PATCH", path="/check-runs", status=403, times=None))
        assert not await place.final.update(place.repo, pull["number"], others=True)
        await place.person("carl").merge(REPO, pull["number"])  # raises when it may not be


async def test_nothing_is_written_on_pull_requests_of_others_where_no_approval_is_wanted(
    place: Place,
) -> None:
    pull = await others(place)
    assert not await place.final.update(place.repo, pull["number"], others=True)
    assert await place.check(pull["head"]["sha"]) is None


async def test_a_review_of_somebody_else_s_pull_request_says_nothing_about_it(tmp_path: Path) -> None:
    async with world(tmp_path, yaml=FINAL) as place:
        pull = await others(place)
        assert not await place.final.update(place.repo, pull["number"])
        await place.person("carl").close(REPO, pull["number"])
        assert not await place.final.update(place.repo, pull["number"], others=True)
        assert await place.check(pull["head"]["sha"]) is None


async def test_who_mends_a_configuration_that_cannot_be_used_is_not_held_up(tmp_path: Path) -> None:
    async with world(tmp_path, yaml="approvals: {final: {requierd: 1}}\n") as place:
        pull = await others(place)
        assert not await place.final.update(place.repo, pull["number"], others=True)
        check = await place.check(pull["head"]["sha"])
        assert check is not None
        assert check["conclusion"] == "neutral"


@pytest.mark.parametrize("forgotten", [False, True], ids=["known", "unknown to the database"])
async def test_another_pull_request_of_the_bot_s_commit_gets_the_bot_s_verdict(
    tmp_path: Path, forgotten: bool
) -> None:
    """Check runs belong to commits: a neutral one there would let the bot's own pull request pass."""
    async with world(tmp_path, yaml=FINAL) as place:
        await place.person("maria").ready(REPO, place.number)
        head = place.sha
        if forgotten:
            head = await place.push("maria")  # no commit of the bot's, but on its branch
        mine = await others(place, "mine", start=head)
        assert not await place.final.update(place.repo, mine["number"], others=True)
        check = await place.check(head)
        assert check is not None
        assert (check["status"], check["external_id"]) == ("in_progress", f"approval:{place.number}")
        # nor does it help to have that one approved, or to have one's own say about it counted again
        await place.person("rita").review(REPO, mine["number"], "APPROVE", "Fine.")
        assert not await place.final.update(place.repo, mine["number"], others=True)
        assert not await place.final.update(place.repo, place.number)
        check = await place.check(head)
        assert check is not None
        assert check["status"] == "in_progress"
        assert len([one for one in place.sandbox.check_runs(REPO, head) if one["name"] == CHECK_NAME]) == 1
        await place.review("rita")
        assert await place.final.update(place.repo, mine["number"])
        check = await place.check(head)
        assert check is not None
        assert check["conclusion"] == "success"


async def test_what_was_told_before_the_commit_became_the_bot_s_is_taken_back(tmp_path: Path) -> None:
    async with world(tmp_path, yaml=FINAL) as place:
        rules = place.sandbox.world.repository("acme", "thing").branch_rules
        rules["main"] = BranchRules(required_checks=[CHECK_NAME])
        await place.person("maria").ready(REPO, place.number)
        pull = await others(place)
        head = pull["head"]["sha"]
        await place.final.update(place.repo, pull["number"], others=True)
        data = {"sha": head, "force": True}
        await place.person("carl").request("PATCH", f"/repos/{REPO}/git/refs/heads/{BRANCH}", data)
        assert not await place.final.update(place.repo, place.number)
        for number in (place.number, pull["number"]):
            assert not await place.final.update(place.repo, number, others=True)
            with pytest.raises(HumanError, match="in progress"):
                await place.person("carl").merge(REPO, number)
        # of several the one that was made last would count, whatever was said in another one since
        assert len([one for one in place.sandbox.check_runs(REPO, head) if one["name"] == CHECK_NAME]) == 1


@pytest.mark.parametrize(
    "database_url", [pytest.param("postgresql", marks=pytest.mark.postgres)], indirect=True
)
async def test_two_servers_do_not_look_and_tell_at_the_same_time(tmp_path: Path, database_url: str) -> None:
    """Else the one that looked before the commit became the bot's would have the last word, and let it pass."""
    async with world(tmp_path, yaml=FINAL, url=database_url) as place:
        await place.person("maria").ready(REPO, place.number)
        pull = await others(place)
        head = pull["head"]["sha"]
        faults = place.sandbox.faults
        faults.add(Fault(method="POST", path="/check-runs", delay=0.3))
        slow = asyncio.create_task(place.final.update(place.repo, pull["number"], others=True))
        while faults.waiting:  # until it has looked, and is about to tell
            await asyncio.sleep(0.01)
        data = {"sha": head, "force": True}
        await place.person("carl").request("PATCH", f"/repos/{REPO}/git/refs/heads/{BRANCH}", data)
        await place.other_server().update(place.repo, place.number)
        await slow
        check = await place.check(head)
        assert check is not None
        assert (check["status"], check["external_id"]) == ("in_progress", f"approval:{place.number}")


async def test_a_commit_that_the_bot_s_pull_request_has_left_keeps_what_it_says(tmp_path: Path) -> None:
    async with world(tmp_path, yaml=FINAL) as place:
        head = await place.push("maria")
        await place.final.update(place.repo, place.number)
        data = {"sha": place.sha, "force": True}
        await place.person("maria").request("PATCH", f"/repos/{REPO}/git/refs/heads/{BRANCH}", data)
        mine = await others(place, "mine", start=head)
        assert not await place.final.update(place.repo, mine["number"], others=True)
        check = await place.check(head)
        assert check is not None
        assert (check["status"], check["external_id"]) == ("in_progress", f"approval:{place.number}")


async def test_the_bot_s_work_on_somebody_else_s_pull_request_is_counted(tmp_path: Path) -> None:
    """Also what it pushed to a branch below `agent/` that is nobody's any more: whose reviews else?"""
    async with world(tmp_path, yaml=FINAL) as place:
        await place.person("maria").close(REPO, place.number)
        mine = await others(place, "mine", start=place.sha)
        branch = await others(place, "agent/carl")
        for pull in (mine, branch):
            head = pull["head"]["sha"]
            assert not await place.final.update(place.repo, pull["number"], others=True)
            check = await place.check(head)
            assert check is not None
            assert (check["status"], check["external_id"]) == ("in_progress", f"approval:{pull['number']}")
            await place.person("rita").review(REPO, pull["number"], "APPROVE", "Fine.")
            assert await place.final.update(place.repo, pull["number"])
            check = await place.check(head)
            assert check is not None
            assert check["conclusion"] == "success"
            assert await place.kinds() == [], "it is not the bot's to merge"


async def test_a_pull_request_whose_asker_is_not_known_is_not_approved(tmp_path: Path) -> None:
    async with world(tmp_path, yaml=FINAL) as place:
        async with place.engine.begin() as connection:
            await connection.exec_driver_sql("DELETE FROM jobs")
        mine = await others(place, "mine", start=place.sha)
        await place.review("rita")
        for number in (place.number, mine["number"]):
            assert not await place.final.update(place.repo, number, others=True)
        assert await place.check() is None


async def test_closed_is_not_as_good_as_approved(tmp_path: Path) -> None:
    """A required check run that is neutral lets pass, and another pull request may have the same head."""
    async with world(tmp_path, yaml=FINAL) as place:
        await place.person("maria").close(REPO, place.number)
        await place.final.update(place.repo, place.number)
        check = await place.check()
        assert check is not None
        assert check["conclusion"] == "cancelled"


async def test_a_configuration_that_cannot_be_used_holds_it_up(tmp_path: Path) -> None:
    async with world(tmp_path, yaml="approvals: {final: {requierd: 1}}\n") as place:
        await place.review("rita")
        assert not await place.final.update(place.repo, place.number)
        check = await place.check()
        assert check is not None
        assert check["conclusion"] == "action_required"


def merged(place: Place) -> bool:
    issue = place.sandbox.world.repository("acme", "thing").issues[place.number]
    return bool(issue.pull and issue.pull.merged_at)


async def test_what_is_approved_is_merged_when_the_repository_wants_that(tmp_path: Path) -> None:
    yaml = FINAL.replace("approvals: {", "approvals: {merge: auto, ")
    async with world(tmp_path, yaml=yaml) as place:
        await place.person("maria").ready(REPO, place.number)
        await place.final.update(place.repo, place.number)
        assert not merged(place)
        await place.review("rita")
        assert await place.final.update(place.repo, place.number)
        assert merged(place)
        assert await place.kinds() == ["merge"]


async def test_a_push_after_the_approval_takes_auto_merge_back(tmp_path: Path) -> None:
    yaml = FINAL.replace("approvals: {", "approvals: {merge: auto, ")
    async with world(tmp_path, yaml=yaml) as place:
        rules = place.sandbox.world.repository("acme", "thing").branch_rules
        rules["main"] = BranchRules(required_checks=["tests"])
        await place.person("maria").ready(REPO, place.number)
        await place.review("rita")
        await place.final.update(place.repo, place.number)
        pull = await place.person("maria").request("GET", f"/repos/{REPO}/pulls/{place.number}")
        assert pull["auto_merge"] is not None
        await place.push("carl")
        await place.final.update(place.repo, place.number)
        pull = await place.person("maria").request("GET", f"/repos/{REPO}/pulls/{place.number}")
        assert pull["auto_merge"] is None
        assert not merged(place)


async def test_the_merge_queue_s_own_commit_gets_the_check_run_too(tmp_path: Path) -> None:
    yaml = FINAL.replace("approvals: {", "approvals: {merge: queue, ")
    async with world(tmp_path, yaml=yaml) as place:
        rules = place.sandbox.world.repository("acme", "thing").branch_rules
        rules["main"] = BranchRules(required_checks=[CHECK_NAME], merge_queue=True)
        for installation in place.sandbox.world.installations.values():
            installation.events.append("merge_group")
        await place.person("maria").ready(REPO, place.number)
        await place.review("rita")
        await place.final.update(place.repo, place.number)
        assert not merged(place)
        event = place.event("merge_group")
        assert (event.number, event.kind) == (place.number, "merge_group.checks_requested")
        assert event.queued_sha is not None
        await place.final.queued(place.repo, event.number, event.queued_sha)
        assert merged(place)


async def queue_commit(place: Place, number: int, below: str) -> str:
    """What GitHub's merge queue makes of a pull request on top of ``below``, under a name of its own."""
    person = place.person("maria")
    pull = await person.request("GET", f"/repos/{REPO}/pulls/{number}")
    tree = (await person.request("GET", f"/repos/{REPO}/git/commits/{pull['head']['sha']}"))["tree"]["sha"]
    data = {"message": f"Queue {number}", "tree": tree, "parents": [below, pull["head"]["sha"]]}
    sha = str((await person.request("POST", f"/repos/{REPO}/git/commits", data))["sha"])
    ref = f"refs/heads/gh-readonly-queue/main/pr-{number}-{below}"
    await person.request("POST", f"/repos/{REPO}/git/refs", {"ref": ref, "sha": sha})
    return sha


async def test_what_others_queue_does_not_wait_and_what_they_queue_behind_the_bot_does(
    tmp_path: Path,
) -> None:
    async with world(tmp_path, yaml=FINAL) as place:
        main = (await place.sandbox.branches(REPO))["main"]
        pull = await others(place)
        alone = await queue_commit(place, pull["number"], main)
        await place.final.queued(place.repo, pull["number"], alone)
        check = await place.check(alone)
        assert check is not None
        assert check["conclusion"] == "neutral"
        # whether all of a group's commits must be green is the branch's rule: only its last one may count
        first = await queue_commit(place, place.number, main)
        second = await others(place, "second")
        behind = await queue_commit(place, second["number"], first)
        await place.final.queued(place.repo, second["number"], behind)
        check = await place.check(behind)
        assert check is not None
        assert check["status"] == "in_progress"
        await place.review("rita")
        await place.final.queued(place.repo, second["number"], behind)
        check = await place.check(behind)
        assert check is not None
        assert check["conclusion"] == "success"


@pytest.mark.parametrize("approved", [False, True])
async def test_a_pull_request_of_a_queue_s_commit_changes_nothing_there(
    tmp_path: Path, approved: bool
) -> None:
    async with world(tmp_path, yaml=FINAL) as place:
        main = (await place.sandbox.branches(REPO))["main"]
        if approved:
            await place.review("rita")
        queued = await queue_commit(place, place.number, main)
        await place.final.queued(place.repo, place.number, queued)
        before = await place.check(queued)
        mine = await others(place, "mine", start=queued)
        if not approved:
            await place.person("rita").review(REPO, mine["number"], "APPROVE", "Fine.")
        assert not await place.final.update(place.repo, mine["number"], others=True)
        check = await place.check(queued)
        assert before is not None
        assert check is not None
        assert before["conclusion"] == ("success" if approved else None)
        told = ("status", "conclusion", "external_id", "output")
        assert [check[key] for key in told] == [before[key] for key in told]
        assert check["external_id"] == f"approval:{place.number}:queue"


async def test_nothing_is_said_of_a_queue_s_commit_where_the_asker_is_not_known(tmp_path: Path) -> None:
    async with world(tmp_path, yaml=FINAL) as place:
        async with place.engine.begin() as connection:
            await connection.exec_driver_sql("DELETE FROM jobs")
        queued = await queue_commit(place, place.number, (await place.sandbox.branches(REPO))["main"])
        await place.final.queued(place.repo, place.number, queued)
        assert await place.check(queued) is None


async def test_where_no_approval_is_wanted_a_queue_s_commit_has_no_check_run(place: Place) -> None:
    queued = await queue_commit(place, place.number, (await place.sandbox.branches(REPO))["main"])
    await place.final.queued(place.repo, place.number, queued)
    assert await place.check(queued) is None
