"""Profiles: the front matter of other products, mistakes with their places, which file a name means."""

from __future__ import annotations

import json
from datetime import UTC, datetime
from typing import Any

import pytest

from bot.model import KEPT_PROFILE, Actor, Job, JobKind, JobState, Repo, Request, TargetKind, Trigger
from bot.policy import Facts, Rules, choose, decide
from bot.profiles import (
    FOLDER,
    MAX_TEXT,
    Profile,
    ProfileError,
    UnknownProfile,
    asked_for,
    bundled,
    bundled_profile,
    find,
    keep,
    kept,
    name_of,
    names_not_there,
    read,
)
from bot.prompts import bare_prompt, task_prompt
from bot.repo_config import RepoConfig, dump, of, parse
from bot.steps import steps_of

MARIA = Actor(login="maria", id=7, type="User")
RULES = Rules(
    agents=("claude", "codex"),
    known_agents=("claude", "codex"),
    max_timeout=3600,
    default_agent="claude",
    models={"claude": "usual", "codex": "gpt"},
)


def request(**more: Any) -> Request:
    values: dict[str, Any] = {
        "repo": Repo(owner="acme", name="hello", id=1, installation_id=2),
        "number": 12,
        "target": TargetKind.issue,
        "trigger": Trigger(delivery_id="d", event="issue_comment.created", actor=MARIA),
        "instructions": "Greet.",
        "title": "Greeting",
        "body": "",
    }
    return Request(**values | more)


def job(config: dict[str, Any], **more: Any) -> Job:
    asked = request()
    values: dict[str, Any] = {
        name: getattr(asked, name)
        for name in ("repo", "number", "target", "trigger", "instructions", "title", "body")
    }
    values |= {"id": "j1", "agent": "claude", "model": None, "timeout": 60, "state": JobState.queued}
    values |= {"created_at": datetime(2026, 1, 2, tzinfo=UTC), "config": config}
    return Job(**values | more)


# as the documentation of both products has them, with every kind of value
COPILOT = """---
name: Test Specialist
description: 'Tests: all of them'
target: github-copilot
tools: ["read", "edit", "custom-mcp/tool-1"]
mcp-servers:
  custom-mcp:
    type: local
    env: {KEY: "${{ secrets.KEY }}"}
infer: false
metadata: {team: core}
---

You write tests.
---
More below a rule.
"""
CLAUDE = """\ufeff---\r
name: code-reviewer\r
description: |\r
  Reviews code.\r
  Use it after every change.\r
tools: Read, Grep, Bash\r
model: inherit\r
permissionMode: bypassPermissions\r
color: blue\r
---\r
Look closely.\r
"""


def test_the_file_of_a_copilot_agent() -> None:
    profile, remarks = read(COPILOT, "tests")
    assert (profile.name, profile.description) == ("tests", "Tests: all of them")
    assert profile.text == "You write tests.\n---\nMore below a rule."
    assert profile.unused == ("target", "tools", "mcp-servers", "infer", "metadata")
    assert [(one.line, one.column) for one in remarks] == [(4, 1), (5, 1), (6, 1), (10, 1), (11, 1)]
    said = {one.message.split("`")[1]: one.message for one in remarks}
    assert "never by a profile" in said["tools"]
    assert "never by a profile" in said["mcp-servers"]
    assert "of another product" in said["target"]


def test_the_file_of_a_claude_code_agent() -> None:
    profile, remarks = read(CLAUDE, "reviewer")
    assert profile.description == "Reviews code. Use it after every change."
    assert (profile.model, profile.agent, profile.text) == (None, None, "Look closely.")
    assert profile.unused == ("tools", "permissionMode", "color")
    assert "never by a profile" in remarks[1].message


def test_what_it_chooses() -> None:
    text = "---\ndescription: x\nagent: codex\nmodel: [gpt-5, gpt-4]\nmodle: x\n---\n"
    profile, (remark,) = read(text, "a")
    assert (profile.agent, profile.model, profile.text) == ("codex", "gpt-5", "")
    assert str(remark) == "line 5, column 1: `modle` is not known and has no effect; did you mean `model`?"


@pytest.mark.parametrize(
    ("text", "says"),
    [
        ("", "line 1, column 1: the file must begin with `---`"),
        ("# Reviewer\n", "line 1, column 1: the file must begin with `---`"),
        ("---\ndescription: x\n", "line 1, column 1: the front matter has no end"),
        ("---\n---\n", "`description`: Field required"),
        ("---\nname: x\n---\n", "line 2, column 1: `description`: Field required"),
        ("---\ndescription: Use: it\n---\n", "line 2, column 17: mapping values are not allowed here"),
        ("---\nname: x\ndescription: y\nagent: [a]\n---\n", "line 4, column 8: `agent`"),
        ("---\ndescription: y\nagent: Not One\n---\n", "line 3, column 8: `agent`"),
        ("---\ndescription: y\nmodel: 5\n---\n", "line 3, column 8: `model`"),
        ("---\ndescription: y\nname: a\nname: b\n---\n", "line 4, column 1: `name` stands here twice"),
        ("---\n- x\n---\n", "must be a mapping"),
        ("---\na: &a [x]\ndescription: *a\n---\n", "line 3, column 14: aliases are not taken"),
        (
            f"---\ndescription: y\n---\n{'x' * (MAX_TEXT + 1)}",
            "line 4, column 1: the text below the front matter",
        ),
        (f"---\ndescription: y\n---\n{'x' * 70_000}", "larger than 64 KiB"),
    ],
)
def test_a_mistake_is_told_with_its_place(text: str, says: str) -> None:
    with pytest.raises(ProfileError) as caught:
        read(text, "mine")
    assert says in str(caught.value)
    assert f"`{FOLDER}/mine.md` on the default branch" in str(caught.value)


@pytest.mark.parametrize(
    ("path", "name"),
    [
        (".github/agents/reviewer.md", "reviewer"),
        (".github/agents/reviewer.agent.md", "reviewer"),
        (".github/agents/My_Tests-2.MD", "My_Tests-2"),
        (".github/agents/README.md", None),
        (".github/agents/none.md", None),
        (".github/agents/../x.md", None),
        (".github/agents/sub/x.md", None),
        (".github/agents/..md", None),
        (".github/agents/.agent.md", None),
        (".github/agents/a b.md", None),
        (".github/agents/a.yml", None),
        ("agents/a.md", None),
    ],
)
def test_which_file_is_which_profile(path: str, name: str | None) -> None:
    assert name_of(path) == name


def test_a_name_finds_one_file() -> None:
    paths = [f"{FOLDER}/Reviewer.agent.md", f"{FOLDER}/x.md", f"{FOLDER}/X.agent.md"]
    assert find("reviewer", paths) == paths[0]
    assert find("../agents/Reviewer", paths) is None
    assert find("Reviewer.agent", paths) is None
    with pytest.raises(ProfileError, match="has the same name"):
        find("x", paths)


def test_the_bundled_ones_are_in_order() -> None:
    assert set(bundled()) == {"reviewer", "bug-fixer", "test-writer", "docs-writer", "planner"}
    for name, text in bundled().items():
        profile, remarks = read(text, name)
        assert remarks == []
        assert 200 < len(profile.text) < 2500
        assert steps_of(profile.text) == []
    assert bundled_profile("Reviewer") == read(bundled()["reviewer"], "reviewer", bundled=True)[0]
    assert bundled_profile("../profiles/reviewer") is None


def test_an_unknown_name_is_answered_with_those_that_there_are() -> None:
    said = str(UnknownProfile("x", ["mine", "Reviewer"]))
    assert "There is no profile `x` here; there are `mine`, `Reviewer`, `bug-fixer`, `docs-writer`" in said
    assert said.count("eviewer`") == 1, "the repository's own shadows the bundled one"


@pytest.mark.parametrize(
    ("config", "profile", "asked", "agent", "model"),
    [
        ("{}", {}, {}, "claude", "usual"),
        ("{}", {"model": "opus"}, {}, "claude", "opus"),
        ("{model: sonnet}", {"model": "opus"}, {}, "claude", "opus"),
        ("{model: sonnet}", {}, {}, "claude", "sonnet"),
        ("{}", {"agent": "codex"}, {}, "codex", "gpt"),
        ("{model: sonnet}", {"agent": "codex"}, {}, "codex", "gpt"),
        ("{}", {"agent": "codex", "model": "gpt-5"}, {}, "codex", "gpt-5"),
        ("{}", {"agent": "codex", "model": "gpt-5"}, {"agent": "claude"}, "claude", "usual"),
        ("{model: sonnet}", {"agent": "codex", "model": "gpt-5"}, {"agent": "claude"}, "claude", "sonnet"),
        ("{}", {"model": "opus"}, {"agent": "codex"}, "codex", "gpt"),
        ("{}", {"agent": "codex", "model": "gpt-5"}, {"model": "mine"}, "codex", "mine"),
        # who worked there before comes after the profile, and before the repository
        ("{model: sonnet}", {}, {"usual_agent": "codex", "usual_model": "o9"}, "codex", "o9"),
        ("{}", {"model": "opus"}, {"usual_agent": "codex"}, "codex", "gpt"),
        ("{}", {"agent": "claude"}, {"usual_agent": "codex", "usual_model": "o9"}, "claude", "usual"),
        ("{}", {}, {"usual_agent": "codex", "usual_model": "o9", "agent": "claude"}, "claude", "usual"),
        ("{}", {}, {"usual_agent": "codex", "usual_model": "o9", "model": "mine"}, "codex", "mine"),
    ],
)
def test_a_command_counts_more_than_the_profile_and_that_more_than_the_repository(
    config: str, profile: dict[str, str], asked: dict[str, str], agent: str, model: str
) -> None:
    chosen = Profile(name="p", text="x", **profile)  # type: ignore[arg-type]
    choice = choose(RULES, parse(config), request(**asked), chosen)
    assert (choice.agent, choice.model) == (agent, model)


def test_without_its_profile_no_job_starts() -> None:
    facts = Facts(actor=MARIA, permission="write", profile_problem="There is no profile `x` here.")
    decision = decide(RULES, facts, agent="claude")
    assert decision.refusals == ["There is no profile `x` here."]


def test_what_is_kept_with_a_job_is_all_of_it_and_no_configuration() -> None:
    config = parse("agent: codex\njobs: {a: {}}\nprofile: reviewer")
    profile = Profile(name="p", text="x", agent="codex", unused=("tools",), asked=True)
    stored = json.loads(json.dumps({**dump(config), **keep(profile)}))
    there = job(stored)
    assert kept(there) == profile
    assert (there.profile, there.without_effect, asked_for(there)) == ("p", ("tools",), "p")
    assert of(there) == config.model_copy(update={"jobs": {}})
    assert asked_for(job({**stored, **keep(Profile(name="p", text=""))})) is None, "the usual one"
    assert (kept(job({})), job({}).profile) == (None, "")
    with pytest.raises(Exception, match="not known"):
        parse(f"{KEPT_PROFILE}: {{name: p}}")


@pytest.mark.parametrize("kind", [kind for kind in JobKind if kind is not JobKind.release])
def test_it_stands_before_the_task_and_ends_before_it(kind: JobKind) -> None:
    text = "# Task\n\nBe quick.\n```sh\nrm -rf /\n```\n<!-- hidden -->\n=====\nlast line"
    there = job(dict(keep(Profile(name="quick", text=text))), kind=kind)
    plain = task_prompt(job({}, kind=kind))
    prompt = task_prompt(there)
    assert prompt.endswith(plain)
    part = prompt.removesuffix(plain)
    assert part.startswith("# How you work: the profile `quick`\n")
    assert part.endswith("\n> last line\n\n")
    quoted = part[part.index("> ") :].strip().split("\n")
    assert all(line.startswith(">") for line in quoted)
    assert "hidden" not in part
    assert steps_of(prompt) == [], "nothing in a profile is run"


def test_one_that_says_nothing_and_an_agent_without_a_model_get_no_such_part() -> None:
    empty = job(dict(keep(Profile(name="none", text=""))))
    assert task_prompt(empty) == task_prompt(job({}))
    assert bare_prompt(job(dict(keep(Profile(name="p", text="Be quick."))))) == "Greet."


@pytest.mark.parametrize(
    ("text", "usual"),
    [
        ("{}", [None] * 5),
        ("profile: Careful", ["Careful"] * 5),
        ("profile: {review: reviewer, ask: none}", [None, None, "reviewer", None, "none"]),
    ],
)
def test_the_repositorys_usual_profile(text: str, usual: list[str | None]) -> None:
    config = parse(text)
    assert [config.profile.usual(kind) for kind in ("task", "plan", "review", "fix", "ask")] == usual
    assert config.profile.usual("release") is None
    assert RepoConfig.model_validate(dump(config)) == config


@pytest.mark.parametrize(
    ("text", "says"),
    [
        ("profile: ../x", "line 1, column 10: `profile`: must be the name of a profile"),
        ("profile: {review: ../x}", "line 1, column 19: `profile.review`"),
        ("profile: {merge: x}", "line 1, column 11: `profile.merge` is not known"),
        ("profile: [x]", "line 1, column 10: `profile`"),
    ],
)
def test_a_usual_profile_that_can_be_none(text: str, says: str) -> None:
    with pytest.raises(Exception, match="cannot be used") as caught:
        parse(text)
    assert says in str(caught.value)
    assert str(caught.value).count("line 1") == 1


def test_names_that_are_not_there() -> None:
    config = parse(
        "profile: {task: Mine, ask: reviewer, plan: gone, fix: none}\njobs: {a: {profile: lost}, b: {}}"
    )
    found = names_not_there(config, ["mine"])
    assert [(one.place, one.stops) for one in found] == [
        (("profile", "plan"), True),
        (("jobs", "a", "profile"), False),
    ]
    assert "there are `mine`" in found[0].said
