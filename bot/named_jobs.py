"""Named jobs: what `/agent job NAME` makes of the repository's definition and the asker's words. Pure."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from bot.errors import ConductorError
from bot.model import KEPT_JOB, JobKind, NamedJob, Request, TargetKind
from bot.prompts import visible
from bot.render import fence, render
from bot.repo_config import MAX_NEEDS, PLACEHOLDER, STEPS_AGENT, JobDefinition, RepoConfig


class CannotStart(ConductorError):
    """A named job cannot be started as it was asked for; the message is for the asker."""


def request_for(name: str, config: RepoConfig, request: Request, words: str) -> Request:
    """``request`` as the job ``name`` of ``config``.

    Its instructions are the asker's ``words``, and perhaps the place in a diff that they are about, where others wrote
    as well. What the asker said (agent, model, limits …) counts more than the definition. Raises CannotStart.
    """
    definition = config.jobs.get(name)
    if definition is None:
        raise CannotStart(f"There is no job `{name}` here. {listing(config)}")
    text = instructions_of(definition, request, words)
    if definition.kind == JobKind.ask and not text:
        raise CannotStart(f"Say what you want to know: `/agent job {name} TEXT`.")
    agent = request.agent or definition.agent or (STEPS_AGENT if definition.steps else None)
    on_issue = request.target is TargetKind.issue
    return request.evolve(
        kind=JobKind(definition.kind),
        instructions=text,
        agent=agent,
        model=request.model or definition.model,
        profile=request.profile or definition.profile,
        # cut to what is allowed now, and not refused: the asker did not choose it
        usual_timeout=definition.timeout,
        budget=definition.budget if request.budget is None else request.budget,
        # work on a pull request starts from its own branch, whatever the job is
        base=request.base or (definition.base if on_issue else None),
        named=NamedJob(
            name=name, needs=definition.needs, steps=bool(definition.steps) and agent == STEPS_AGENT
        ),
    )


def instructions_of(definition: JobDefinition, request: Request, words: str) -> str:
    """What the agent is told to do: the definition's prompt or steps, and the asker's words."""
    if definition.steps:
        # scripts are taken as they are written, and steps from nobody but the repository and the asker
        blocks = [f"{(mark := fence(step))}sh\n{step.rstrip()}\n{mark}" for step in definition.steps]
        return "\n\n".join([*blocks, visible(words)]).strip()
    said = visible(request.instructions)
    values = {"text": said, "repo": request.repo.full_name, "number": str(request.number)}
    placed = "text" in {match[1] for match in PLACEHOLDER.finditer(definition.prompt)}
    # in one pass: what the words hold is never taken for a placeholder
    prompt = PLACEHOLDER.sub(lambda match: values[match[1]], definition.prompt)
    return "\n\n".join(part for part in (prompt.strip(), "" if placed else said) if part)


def listing(config: RepoConfig) -> str:
    """The jobs that may be started, for people."""
    return render("comments/jobs.md.j2", jobs=config.jobs).strip()


def with_needs(config: RepoConfig, named: NamedJob | None) -> RepoConfig:
    """``config`` with what the host of this named job must have. Raises CannotStart when that is too much."""
    needs = tuple(dict.fromkeys((*config.needs, *(named.needs if named else ()))))
    if len(needs) > MAX_NEEDS:
        raise CannotStart(f"The job's `needs` and those of all jobs are more than {MAX_NEEDS} together.")
    return config if needs == config.needs else config.model_copy(update={"needs": needs})


def keep(named: NamedJob) -> Mapping[str, Any]:
    """What a job's ``config`` has of the named job that it is."""
    return {KEPT_JOB: {"name": named.name, "needs": list(named.needs), "steps": named.steps}}


def goes_on(named: NamedJob | None) -> NamedJob | None:
    """What the conversation's next job has of ``named``: it needs the same host, and is told other things."""
    return None if named is None else NamedJob(name=named.name, needs=named.needs)
