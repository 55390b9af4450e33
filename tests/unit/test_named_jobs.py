"""Named jobs: what `/agent job NAME` asks for, and what may stand in a definition."""

from __future__ import annotations

import json
from dataclasses import replace
from typing import Any

import pytest

from bot.model import Actor, Job, JobKind, JobState, NamedJob, Repo, Request, TargetKind, Trigger
from bot.named_jobs import CannotStart, goes_on, keep, listing, request_for, with_needs
from bot.prompts import bare_prompt
from bot.repo_config import RepoConfigError, parse
from bot.repo_layers import merge
from bot.steps import steps_of

CONFIG = parse("""
needs: [large]
jobs:
  deps:
    description: Raises | dependencies, @everybody
    prompt: "Raise {{ text }} in {{repo}}#{{ number }}."
    agent: claude
    model: opus
    profile: careful
    timeout: 45m
    budget: 3
    base: next
    needs: [gpu, large]
  count:
    steps: ["echo '<!-- x -->'", "echo '```' > fence"]
  why: {kind: ask}
  look: {kind: review, prompt: Look at the locks.}
  plain: {profile: reviewer}
""")


def asked(words: str = "", **more: Any) -> Request:
    values: dict[str, Any] = {
        "repo": Repo(owner="acme", name="hello", id=1, installation_id=2),
        "number": 12,
        "target": TargetKind.issue,
        "trigger": Trigger(
            delivery_id="d", event="issue_comment.created", actor=Actor(login="maria", id=7, type="User")
        ),
        "instructions": words,
        "title": "T",
        "body": "B",
    }
    return Request(**values | more)


def test_all_that_a_definition_may_say() -> None:
    request = request_for("deps", CONFIG, asked("all <!-- x --> but {{ repo }}"), "")
    assert request.instructions == "Raise all  but {{ repo }} in acme/hello#12.", "words are no template"
    assert (request.kind, request.agent, request.model) == (JobKind.task, "claude", "opus")
    assert (request.profile, request.budget, request.base) == ("careful", 3, "next")
    assert (request.timeout, request.usual_timeout) == (None, 2700)
    assert request.named == NamedJob(name="deps", needs=("gpu", "large"))
    assert with_needs(CONFIG, request.named).needs == ("large", "gpu")
    assert (request.title, request.body, request.trigger) == ("T", "B", asked().trigger)


def test_what_a_command_says_counts_more() -> None:
    said = {"agent": "codex", "model": "gpt", "profile": "none", "timeout": 60, "budget": 1.0, "base": "main"}
    request = request_for("deps", CONFIG, asked("x", **said), "x")
    assert {name: getattr(request, name) for name in said} == said


def test_a_base_is_not_for_pull_requests() -> None:
    assert request_for("deps", CONFIG, asked(target=TargetKind.pull_request), "").base is None


def test_words_follow_a_prompt_without_a_place_for_them() -> None:
    request = request_for("look", CONFIG, asked("And at the index."), "")
    assert request.instructions == "Look at the locks.\n\nAnd at the index."
    assert request.kind is JobKind.review
    assert request_for("plain", CONFIG, asked(), "").instructions == ""


def test_steps_are_run_as_they_are_written_and_those_of_others_are_not() -> None:
    of_others = "```sh\necho theirs\n```"
    request = request_for("count", CONFIG, asked(f"{of_others}\n\nmine"), "```sh\necho mine\n```")
    assert request.agent == "shell"
    assert request.named == NamedJob(name="count", steps=True)
    there = job(request)
    assert [step.script for step in steps_of(bare_prompt(there))] == [
        "echo '<!-- x -->'\n", "echo '```' > fence\n", "echo mine\n",
    ]  # fmt: skip
    assert not request_for("count", CONFIG, asked(agent="claude"), "").named.steps  # type: ignore[union-attr]


def job(request: Request) -> Job:
    names = ("repo", "number", "target", "trigger", "instructions", "title", "body", "model")
    assert request.named is not None
    return Job(
        **{name: getattr(request, name) for name in names},
        id="j1",
        agent=request.agent or "",
        timeout=60,
        state=JobState.queued,
        created_at=None,  # type: ignore[arg-type]
        config=json.loads(json.dumps(dict(keep(request.named)))),
    )


@pytest.mark.parametrize("name", ["deps", "count"])
def test_it_is_kept_with_the_job(name: str) -> None:
    request = request_for(name, CONFIG, asked("x"), "x")
    assert job(request).named == request.named
    assert goes_on(request.named) == replace(request.named, steps=False)  # type: ignore[type-var]
    assert goes_on(None) is None


def test_what_cannot_start() -> None:
    with pytest.raises(CannotStart, match="There is no job `x` here"):
        request_for("x", CONFIG, asked(), "")
    with pytest.raises(CannotStart, match="Say what you want to know: `/agent job why TEXT`"):
        request_for("why", CONFIG, asked(), "")
    with pytest.raises(CannotStart, match="more than 6"):
        with_needs(CONFIG, NamedJob(name="x", needs=tuple("abcdef")))


def test_the_list() -> None:
    table = listing(CONFIG)
    assert "| `count` |  | task |" in table
    assert "| `why` |  | ask |" in table
    assert "Raises \\| dependencies, @everybody" not in table, "nobody is mentioned"
    assert "Raises \\| dependencies, @\u200beverybody" in table
    assert "has no named jobs" in listing(parse(""))


@pytest.mark.parametrize(
    ("definition", "says"),
    [
        ("{promt: x}", "line 1, column 12: `jobs.a.promt` is not known"),
        ("{prompt: 'Do {{ words }}'}", "line 1, column 20: `jobs.a.prompt`: {{ words }} is no placeholder"),
        ("{prompt: x, steps: [y]}", "has `prompt` or `steps`, not both"),
        ("{steps: [y], agent: claude}", "`steps` are run by the agent `shell`"),
        ("{steps: [y], kind: review}", "`steps` are for the kinds task and ask"),
        ("{kind: release}", "line 1, column 18: `jobs.a.kind`"),
        ("{profile: ../x}", "line 1, column 21: `jobs.a.profile`"),
        ("{timeout: 1s}", "`jobs.a.timeout`"),
        ("{budget: 0}", "`jobs.a.budget`"),
    ],
)
def test_a_mistake_in_a_definition(definition: str, says: str) -> None:
    with pytest.raises(RepoConfigError) as caught:
        parse(f"jobs: {{a: {definition}}}")
    assert says in str(caught.value)


def test_needs_must_fit_together() -> None:
    with pytest.raises(RepoConfigError, match="a has more than 6 `needs` together"):
        parse("needs: [x]\njobs: {a: {needs: [b, c, d, e, f, g]}}")


def test_placeholders_of_other_languages_are_text() -> None:
    prompt = parse("jobs: {a: {prompt: 'Set {{ .Values.x }} and ${{ secrets.X }}'}}").jobs["a"].prompt
    assert prompt == "Set {{ .Values.x }} and ${{ secrets.X }}"


def test_a_repositorys_job_replaces_its_organisations_whole() -> None:
    default = parse("jobs: {a: {prompt: x, model: opus}, b: {prompt: y}}\nprofile: {review: r, fix: f}")
    merged = merge(default, parse("jobs: {a: {steps: ['true']}}\nprofile: {fix: mine}"))
    assert merged.jobs["a"] == parse("jobs: {a: {steps: ['true']}}").jobs["a"]
    assert merged.jobs["b"].prompt == "y"
    assert (merged.profile.review, merged.profile.fix) == ("r", "mine")
