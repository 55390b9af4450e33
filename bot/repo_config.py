"""The repository's own configuration: ``.github/conductor.yml`` on its default branch.

It may ask for less than the server allows, and for more only where the server lets it. It is read when a job is
accepted and kept with the job, so that a change in between changes nothing that was decided.
"""

from __future__ import annotations

import re
from collections.abc import Mapping, Sequence
from typing import Annotated, Any, Literal, Self

from pydantic import (
    Field,
    StringConstraints,
    ValidationError,
    ValidationInfo,
    field_validator,
    model_validator,
)

from bot.errors import ConductorError
from bot.model import KEPT, Job
from bot.network import parse_rule
from bot.repo_rules import (
    ApprovalsConfig,
    Duration,
    FixConfig,
    ProfileName,
    ProfilesConfig,
    Section,
    WhoConfig,
)
from bot.yaml_text import BadText, Document, Problem

PATH = ".github/conductor.yml"
MAX_BYTES = 64 * 1024
_SIZE = r"^[1-9]\d{0,5}[kmg]$"

Name = Annotated[str, StringConstraints(pattern=r"^[a-z0-9]([a-z0-9_.+-]{0,60}[a-z0-9+])?$")]
#: So many of them, joined by "+", fit into the column that a claim compares.
MAX_NEEDS = 6
Capability = Annotated[str, StringConstraints(pattern=r"^[a-z0-9]([a-z0-9_.-]{0,28}[a-z0-9])?$")]
Line = Annotated[str, StringConstraints(min_length=1, max_length=2000, pattern=r"^[^\x00]*$")]
Argument = Annotated[str, StringConstraints(max_length=2000, pattern=r"^[^\x00]*$")]  # may be empty
Script = Annotated[str, StringConstraints(min_length=1, max_length=10_000, pattern=r"^[^\x00]*$")]
#: Any spelling that people use; bot.capabilities knows the one that we use.
CapabilityName = Annotated[str, StringConstraints(pattern=r"^[A-Za-z0-9][A-Za-z0-9 _.+@:=-]{0,60}$")]
#: What may stand in the prompt of a named job, in double braces.
PLACEHOLDERS = ("text", "repo", "number")
PLACEHOLDER = re.compile(r"\{\{[ \t]*([a-z_]+)[ \t]*\}\}")
#: The agent that runs steps, without a model.
STEPS_AGENT = "shell"


def placeholders_in(text: str) -> list[str]:
    """The names in double braces in ``text``, in order."""
    return PLACEHOLDER.findall(text)


class RepoConfigError(ConductorError):
    """The file cannot be used. ``problems`` tells what is wrong and where, one sentence each."""

    def __init__(self, problems: Sequence[Problem], *, repository: str = "") -> None:
        """``repository``: of which ``owner/name`` the file is, when it is not the one that people look at."""
        self.problems = tuple(problems)
        listed = "; ".join(str(problem) for problem in problems[:5])
        of = f" of `{repository}`" if repository else ""
        super().__init__(
            f"`{PATH}` on the default branch{of} cannot be used: {listed}.",
            "Correct the file on the default branch, then ask again.",
        )


class ImageConfig(Section):
    """What the container must hold besides the agent."""

    capabilities: tuple[CapabilityName, ...] = Field(
        (), max_length=30, description="for example git, node22, python3.12"
    )
    setup: tuple[Line, ...] = Field((), max_length=50, description="shell commands, run as the agent's user")


class HealthConfig(Section):
    """How to find out that a service is ready."""

    command: tuple[Argument, ...] = Field(
        min_length=1, max_length=100, description="argv, run in the service's container"
    )
    interval: float = Field(1.0, ge=0.2, le=60, description="seconds")
    timeout: float = Field(5.0, ge=0.5, le=60, description="seconds")
    retries: int = Field(60, ge=1, le=600)


class ServiceConfig(Section):
    """A container beside the agent's, on its localhost."""

    image: Line
    command: tuple[Argument, ...] = Field((), max_length=100)
    env: dict[str, str] = Field(default_factory=dict, max_length=50)
    health: HealthConfig | None = None
    memory: str = Field("512m", pattern=_SIZE)


class NetworkConfig(Section):
    """Where the container may go, within what the server allows."""

    allow: tuple[Line, ...] = Field((), max_length=100, description="host, *.suffix, host:port")
    presets: tuple[Name, ...] | None = Field(
        None, description="pypi, npm, debian …; default: those of the image's package managers"
    )

    @field_validator("allow")
    @classmethod
    def _rules(cls, value: tuple[str, ...]) -> tuple[str, ...]:
        for rule in value:
            parse_rule(rule)
        return value


class LimitsConfig(Section):
    """Lower limits than the server's."""

    memory: str | None = Field(None, pattern=_SIZE)
    cpus: float | None = Field(None, gt=0, le=256)
    pids: int | None = Field(None, ge=32, le=100_000)
    workspace: str | None = Field(None, pattern=_SIZE)
    timeout: Duration | None = Field(None, ge=10, le=86400, description="seconds, or 90s, 30m, 2h")
    idle: Duration | None = Field(None, ge=10, le=86400, description="seconds without a sign of life")
    user_hour: int | None = Field(None, ge=1, le=10_000, description="jobs that one person may ask for here")
    repository_hour: int | None = Field(None, ge=1, le=10_000, description="jobs of this repository an hour")


class BudgetConfig(Section):
    """How much may be spent, in US dollars."""

    job: float | None = Field(None, ge=0)
    thread: float | None = Field(None, ge=0)
    day: float | None = Field(None, ge=0, description="of the whole repository, by UTC days")


class CheckoutConfig(Section):
    """What belongs to a checkout besides the repository itself."""

    lfs: bool = False
    submodules: bool = False


class JobDefinition(Section):
    """A job that people start by its name: `/agent job NAME`. What a command says counts more."""

    description: str = Field("", max_length=200, description="one line for the list of `/agent job`")
    kind: Literal["task", "plan", "review", "fix", "ask"] = "task"
    prompt: str = Field(
        "",
        max_length=20_000,
        description="what is to be done; may hold {{ text }} (the words of the command), {{ repo }}, {{ number }}",
    )
    steps: tuple[Script, ...] = Field(
        (), max_length=50, description="shell scripts that the agent `shell` runs in order, without a model"
    )
    agent: Name | None = None
    model: Line | None = None
    profile: ProfileName | None = None
    timeout: Duration | None = Field(None, ge=10, le=86400, description="seconds, or 90s, 30m, 2h")
    budget: float | None = Field(None, gt=0, description="US dollars")
    base: Line | None = Field(None, description="the branch to start from, on issues")
    needs: tuple[Capability, ...] = Field(
        (), max_length=MAX_NEEDS, description="besides the `needs` of all jobs"
    )

    @field_validator("prompt")
    @classmethod
    def _placeholders(cls, value: str) -> str:
        unknown = [name for name in placeholders_in(value) if name not in PLACEHOLDERS]
        if unknown:
            known = ", ".join(f"{{{{ {name} }}}}" for name in PLACEHOLDERS)
            raise ValueError(f"{{{{ {unknown[0]} }}}} is no placeholder; there are {known}")
        return value

    @model_validator(mode="after")
    def _either(self) -> Self:
        if self.steps and self.prompt:
            raise ValueError("has `prompt` or `steps`, not both")
        if self.steps and self.agent not in (None, STEPS_AGENT):
            raise ValueError(f"`steps` are run by the agent `{STEPS_AGENT}`; leave `agent` out")
        if self.steps and self.kind not in ("task", "ask"):
            raise ValueError("`steps` are for the kinds task and ask")
        return self


class RepoConfig(Section):
    """The whole file."""

    agent: Name | None = None
    model: Line | None = None
    needs: tuple[Capability, ...] = Field(
        (), max_length=MAX_NEEDS, description="what the worker host must have, e.g. gpu"
    )
    image: ImageConfig = ImageConfig()
    services: dict[Name, ServiceConfig] = Field(default_factory=dict, max_length=10)
    network: NetworkConfig = NetworkConfig()
    limits: LimitsConfig = LimitsConfig()
    budget: BudgetConfig = BudgetConfig()
    protected: tuple[Line, ...] = Field(
        (), max_length=200, description="path patterns that a human must push"
    )
    checkout: CheckoutConfig = CheckoutConfig()
    approvals: ApprovalsConfig = ApprovalsConfig()
    who: WhoConfig = WhoConfig()
    fix: FixConfig = FixConfig()
    forks: Literal["branch", "never"] = Field(
        "branch", description="work on a fork's pull request goes to a branch here, or there is none"
    )
    outsiders: Literal["endorsed", "never"] = Field(
        "endorsed",
        description="an outsider's issue on a public repository is read when the label is set, or never",
    )
    profile: ProfilesConfig = Field(
        ProfilesConfig(), description="a name for all jobs, or {review: reviewer, fix: bug-fixer, …}"
    )
    jobs: dict[Name, JobDefinition] = Field(
        default_factory=dict, max_length=50, description="what `/agent job NAME` starts"
    )

    @field_validator("jobs")
    @classmethod
    def _needs_fit(cls, value: dict[str, JobDefinition], info: ValidationInfo) -> dict[str, JobDefinition]:
        for name, job in value.items():
            if len({*info.data.get("needs", ()), *job.needs}) > MAX_NEEDS:
                raise ValueError(f"{name} has more than {MAX_NEEDS} `needs` together with those of all jobs")
        return value


def parse(text: str) -> RepoConfig:
    """The configuration in ``text`` (YAML). Raises RepoConfigError that tells line and column of each mistake."""
    return read(text)[0]


def read(text: str) -> tuple[RepoConfig, Document]:
    """The configuration in ``text`` and the places of its values. Raises RepoConfigError as :func:`parse`."""
    try:
        document = Document(text, max_bytes=MAX_BYTES)
    except BadText as error:
        raise RepoConfigError(error.problems) from error
    try:
        return RepoConfig.model_validate(document.values), document
    except ValidationError as error:
        raise RepoConfigError([document.problem(detail) for detail in error.errors()]) from error


def of(job: Job) -> RepoConfig:
    """The configuration as it stood when ``job`` was accepted."""
    kept = {key: value for key, value in job.config.items() if key not in KEPT}
    return RepoConfig.model_validate(kept)


def dump(config: RepoConfig) -> Mapping[str, Any]:
    """What is kept with a job: only what differs from the defaults, and no other jobs that might be started."""
    return config.model_dump(mode="json", exclude_defaults=True, exclude={"jobs"})
