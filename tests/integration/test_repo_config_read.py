"""The repository's configuration as it is read from GitHub: from the default branch, and only a sane file."""

from __future__ import annotations

from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from pathlib import Path
from typing import NamedTuple

import pytest

from bot.errors import GitHubUnavailable
from bot.facts import FactFinder
from bot.github import GitHub
from bot.github_transport import Patience
from bot.model import Actor, JobKind, Repo, Request, TargetKind, Trigger
from bot.policy import Facts
from bot.profiles import ProfileError, UnknownProfile
from bot.repo_config import MAX_BYTES, PATH, RepoConfig, RepoConfigError
from bot.repo_layers import ServerRules
from bot.sandbox.faults import Fault
from bot.sandbox.sandbox import Sandbox
from tests.made_once import app_key


@asynccontextmanager
async def reader(tmp_path: Path, **files: str | bytes) -> AsyncIterator[tuple[Sandbox, FactFinder, Repo]]:
    """A repository with these files on its default branch, and who reads it."""
    async with Sandbox.start(private_key=app_key(), state_dir=tmp_path / "github") as sandbox:
        await sandbox.create_repo("acme/thing", files={"README.md": "x\n"} | files)
        repository = sandbox.world.repository("acme", "thing")
        repo = Repo(owner="acme", name="thing", id=repository.id, installation_id=sandbox.installation_id)
        key = Path(sandbox.private_key_path).read_text()
        async with GitHub(sandbox.url, str(sandbox.app_id), key, patience=Patience(tries=1)) as github:
            yield sandbox, FactFinder(github), repo
        assert [str(problem) for problem in sandbox.problems] == []


async def test_without_a_file_there_are_the_defaults(tmp_path: Path) -> None:
    async with reader(tmp_path) as (_, facts, repo):
        assert await facts.repo_config(repo) == RepoConfig()


async def test_the_default_branch_alone_counts(tmp_path: Path) -> None:
    async with reader(tmp_path, **{PATH: "agent: codex\n"}) as (sandbox, facts, repo):
        sandbox.set_role("acme/thing", "maria", "write")
        await sandbox.as_user("maria").push_commit("acme/thing", "other", {PATH: "agent: evil\n"})
        assert (await facts.repo_config(repo)).agent == "codex"
        # and what is new there is seen at once, whatever was read before
        await sandbox.as_user("maria").push_commit("acme/thing", "main", {PATH: "agent: claude\n"})
        assert (await facts.repo_config(repo)).agent == "claude"


@pytest.mark.parametrize(
    ("files", "says"),
    [
        ({PATH: "agent: [1\n"}, "line 2, column 1"),
        ({PATH: "agnet: codex\n"}, "line 1, column 1: `agnet` is not known"),
        ({PATH: "# " + "x" * MAX_BYTES}, "larger than 64 KiB"),
        (
            {PATH: "# " + "x" * 2_000_000},
            "larger than 64 KiB",
        ),  # GitHub leaves the content of such a file out
        ({PATH: b"agent: \xff\xfe\n"}, "it is not text in UTF-8"),
        ({f"{PATH}/inner.yml": "agent: codex\n"}, "it is not a plain file"),
        ({PATH: "needs: [c++]\n"}, "needs"),  # "+" joins the names of several needs
        ({PATH: f"needs: [{'x' * 31}]\n"}, "needs"),
        ({PATH: "needs: [a, b, c, d, e, f, g]\n"}, "needs"),
    ],
)
async def test_what_cannot_be_used_is_told(tmp_path: Path, files: dict[str, str | bytes], says: str) -> None:
    async with reader(tmp_path, **files) as (_, facts, repo):
        with pytest.raises(RepoConfigError) as caught:
            await facts.repo_config(repo)
        assert says in str(caught.value)
        assert "default branch" in str(caught.value)


async def test_a_github_that_does_not_answer_is_no_missing_file(tmp_path: Path) -> None:
    """Else a job would run without the limits that its repository sets."""
    async with reader(tmp_path, **{PATH: "agent: codex\n"}) as (sandbox, facts, repo):
        sandbox.faults.add(Fault(path=r"/contents/", status=502, times=None))
        with pytest.raises(GitHubUnavailable):
            await facts.repo_config(repo)


@asynccontextmanager
async def with_default(tmp_path: Path, text: str, own: str = "", **more: object) -> AsyncIterator[Layers]:
    """The repository with its ``own`` file, and its owner's default."""
    files = {PATH: own} if own else {}
    async with reader(tmp_path, **files) as (sandbox, facts, repo):
        await sandbox.create_repo("acme/.github", files={PATH: text}, **more)  # type: ignore[arg-type]
        yield Layers(sandbox, facts, repo)


class Layers(NamedTuple):
    sandbox: Sandbox
    facts: FactFinder
    repo: Repo


async def test_the_owners_default_below_the_repositorys_own(tmp_path: Path) -> None:
    text = "agent: codex\nprotected: [a]\nlimits: {timeout: 10m}\n"
    async with with_default(tmp_path, text, "protected: [b]\nlimits: {timeout: 1h}\n") as (_, facts, repo):
        config = await facts.repo_config(repo)
        assert (config.agent, config.protected, config.limits.timeout) == ("codex", ("a", "b"), 600)


async def test_the_default_is_asked_for_once_in_a_while(tmp_path: Path) -> None:
    async with with_default(tmp_path, "agent: codex\n") as (sandbox, facts, repo):
        assert (await facts.repo_config(repo)).agent == "codex"
        sandbox.faults.add(Fault(path=r"/repos/acme/\.github/contents/", status=502, times=None))
        assert (await facts.repo_config(repo)).agent == "codex"


async def test_a_broken_default_names_its_file(tmp_path: Path) -> None:
    async with with_default(tmp_path, "agnet: codex\n", "agent: claude\n") as (sandbox, facts, repo):
        with pytest.raises(RepoConfigError) as caught:
            await facts.repo_config(repo)
        assert "`.github/conductor.yml` on the default branch of `acme/.github`" in str(caught.value)
        assert "line 1, column 1: `agnet` is not known" in str(caught.value)
        # a mistake is not kept: it is corrected at once
        await sandbox.as_user("octocat").push_commit("acme/.github", "main", {PATH: "agent: codex\n"})
        assert (await facts.repo_config(repo)).agent == "claude"


async def test_in_the_repository_of_defaults_the_file_is_its_own(tmp_path: Path) -> None:
    async with with_default(tmp_path, "protected: [a]\n") as (sandbox, facts, repo):
        there = sandbox.world.repository("acme", ".github")
        of = Repo(owner="acme", name=".github", id=there.id, installation_id=repo.installation_id)
        assert (await facts.repo_config(of)).protected == ("a",)


async def test_a_github_that_does_not_answer_is_no_missing_default(tmp_path: Path) -> None:
    async with with_default(tmp_path, "protected: [a]\n") as (sandbox, facts, repo):
        sandbox.faults.add(Fault(path=r"/repos/acme/\.github/contents/", status=502, times=None))
        with pytest.raises(GitHubUnavailable):
            await facts.repo_config(repo)


async def test_the_servers_word_stands_above(tmp_path: Path) -> None:
    async with with_default(tmp_path, "approvals: {final: {required: 1}}\n") as (_, facts, repo):
        strict = FactFinder(facts._github, ServerRules(approvals=2, ask="admin"))
        config = await strict.repo_config(repo)
        assert config.approvals.final.required == 2
        assert config.who.may_ask.permission == "admin"


MINE = ".github/agents/mine.md"
GOOD = "---\ndescription: {}\n---\nBe quick.\n"


async def test_a_profile_is_the_default_branchs_own_or_a_bundled_one(tmp_path: Path) -> None:
    files = {
        MINE: GOOD.format("main"),
        ".github/agents/Reviewer.agent.md": GOOD.format("own"),
        ".github/agents/README.md": "x",
        ".github/agents/sub/inner.md": GOOD.format("inner"),
    }
    async with reader(tmp_path, **files) as (sandbox, facts, repo):
        octocat = sandbox.as_user("octocat")
        await octocat.push_commit(
            "acme/thing", "other", {MINE: GOOD.format("evil"), ".github/agents/x.md": GOOD.format("evil")}
        )
        assert (await facts.profile(repo, "MINE")).description == "main"
        shadowing = await facts.profile(repo, "reviewer")
        assert (shadowing.description, shadowing.bundled) == ("own", False)
        assert (await facts.profile(repo, "planner")).bundled
        assert (await facts.profile(repo, "none")).text == ""
        for name in ("x", "inner", "sub/inner", "../conductor", "README", "../../templates/profiles/planner"):
            with pytest.raises(UnknownProfile, match="there are `mine`, `Reviewer`, `bug-fixer`"):
                await facts.profile(repo, name)
        # what is new is seen at once
        await octocat.push_commit("acme/thing", "main", {MINE: "broken"})
        with pytest.raises(ProfileError, match=r"`.github/agents/mine.md` .*line 1, column 1"):
            await facts.profile(repo, "mine")


async def test_a_profile_that_is_no_text(tmp_path: Path) -> None:
    files: dict[str, str | bytes] = {
        MINE: b"---\n\xff\n---\n",
        ".github/agents/long.md": "x" * (MAX_BYTES + 1),
    }
    async with reader(tmp_path, **files) as (_, facts, repo):
        for name, says in (("mine", "it is not text in UTF-8"), ("long", "larger than 64 KiB")):
            with pytest.raises(ProfileError) as caught:
                await facts.profile(repo, name)
            assert says in str(caught.value)


async def test_a_github_that_does_not_answer_is_no_missing_profile(tmp_path: Path) -> None:
    async with reader(tmp_path, **{".github/agents": "a file, no folder"}) as (sandbox, facts, repo):
        assert await facts.profile_paths(repo) == []
        sandbox.faults.add(Fault(path=r"/contents/", status=502, times=None))
        with pytest.raises(GitHubUnavailable):
            await facts.profile(repo, "planner")
        # for a stranger, and for a job without an agent, nothing is read
        maria = Actor(login="maria", id=7, type="User")
        request = Request(
            repo=repo,
            number=1,
            target=TargetKind.issue,
            trigger=Trigger(delivery_id="d", event="issue_comment.created", actor=maria),
            instructions="x",
            title="",
            body="",
            profile="planner",
        )
        stranger = Facts(actor=maria, permission="read")
        assert await facts.with_profile(request, stranger) == stranger
        writer = Facts(actor=maria, permission="write")
        assert await facts.with_profile(request.evolve(kind=JobKind.release), writer) == writer
        with pytest.raises(GitHubUnavailable):
            await facts.with_profile(request, writer)
