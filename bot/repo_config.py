"""The repository's own configuration: ``.github/conductor.yml`` on its default branch.

It may ask for less than the server allows, and for more only where the server lets it. It is read when a job is
accepted and kept with the job, so that a change in between changes nothing that was decided.
"""

from __future__ import annotations

import re
from collections.abc import Iterator, Mapping, Sequence
from typing import Annotated, Any

import yaml
from pydantic import BaseModel, ConfigDict, Field, StringConstraints, ValidationError, field_validator

from bot.errors import ConductorError
from bot.model import Job
from bot.network import parse_rule

PATH = ".github/conductor.yml"
MAX_BYTES = 64 * 1024
_SIZE = r"^[1-9]\d{0,5}[kmg]$"
_SECONDS = {"s": 1, "m": 60, "h": 3600}

Name = Annotated[str, StringConstraints(pattern=r"^[a-z0-9]([a-z0-9_.+-]{0,60}[a-z0-9+])?$")]
#: Six of them, joined by "+", fit into the column that a claim compares.
Capability = Annotated[str, StringConstraints(pattern=r"^[a-z0-9]([a-z0-9_.-]{0,28}[a-z0-9])?$")]
Line = Annotated[str, StringConstraints(min_length=1, max_length=2000, pattern=r"^[^\x00]*$")]
Argument = Annotated[str, StringConstraints(max_length=2000, pattern=r"^[^\x00]*$")]  # may be empty
#: Any spelling that people use; bot.capabilities knows the one that we use.
CapabilityName = Annotated[str, StringConstraints(pattern=r"^[A-Za-z0-9][A-Za-z0-9 _.+@:=-]{0,60}$")]


class RepoConfigError(ConductorError):
    """The file cannot be used. ``problems`` tells what is wrong and where, one sentence each."""

    def __init__(self, problems: Sequence[Problem]) -> None:
        self.problems = tuple(problems)
        listed = "; ".join(str(problem) for problem in problems[:5])
        super().__init__(
            f"`{PATH}` on the default branch cannot be used: {listed}.",
            "Correct the file on the default branch, then ask again.",
        )


class Problem:
    """One thing that is wrong: the sentence, and where (from 1)."""

    def __init__(self, message: str, line: int, column: int) -> None:
        self.message = message
        self.line = line
        self.column = column

    def __str__(self) -> str:
        return f"line {self.line}, column {self.column}: {self.message}"


class _Part(BaseModel):
    model_config = ConfigDict(extra="forbid", frozen=True)


class ImageConfig(_Part):
    """What the container must hold besides the agent."""

    capabilities: tuple[CapabilityName, ...] = Field(
        (), max_length=30, description="for example git, node22, python3.12"
    )
    setup: tuple[Line, ...] = Field((), max_length=50, description="shell commands, run as the agent's user")


class HealthConfig(_Part):
    """How to find out that a service is ready."""

    command: tuple[Argument, ...] = Field(
        min_length=1, max_length=100, description="argv, run in the service's container"
    )
    interval: float = Field(1.0, ge=0.2, le=60, description="seconds")
    timeout: float = Field(5.0, ge=0.5, le=60, description="seconds")
    retries: int = Field(60, ge=1, le=600)


class ServiceConfig(_Part):
    """A container beside the agent's, on its localhost."""

    image: Line
    command: tuple[Argument, ...] = Field((), max_length=100)
    env: dict[str, str] = Field(default_factory=dict, max_length=50)
    health: HealthConfig | None = None
    memory: str = Field("512m", pattern=_SIZE)


class NetworkConfig(_Part):
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


class LimitsConfig(_Part):
    """Lower limits than the server's."""

    memory: str | None = Field(None, pattern=_SIZE)
    cpus: float | None = Field(None, gt=0, le=256)
    pids: int | None = Field(None, ge=32, le=100_000)
    workspace: str | None = Field(None, pattern=_SIZE)
    timeout: int | None = Field(None, ge=10, le=86400, description="seconds, or 90s, 30m, 2h")
    idle: int | None = Field(None, ge=10, le=86400, description="seconds without a sign of life")

    @field_validator("timeout", "idle", mode="before")
    @classmethod
    def _duration(cls, value: object) -> object:
        match = re.fullmatch(r"(\d{1,6})([smh])", value) if isinstance(value, str) else None
        return int(match[1]) * _SECONDS[match[2]] if match else value


class BudgetConfig(_Part):
    """How much may be spent, in US dollars."""

    job: float | None = Field(None, ge=0)
    thread: float | None = Field(None, ge=0)
    day: float | None = Field(None, ge=0, description="of the whole repository, by UTC days")


class CheckoutConfig(_Part):
    """What belongs to a checkout besides the repository itself."""

    lfs: bool = False
    submodules: bool = False


class RepoConfig(_Part):
    """The whole file."""

    agent: Name | None = None
    model: Line | None = None
    needs: tuple[Capability, ...] = Field(
        (), max_length=6, description="what the worker host must have, e.g. gpu"
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


def parse(text: str) -> RepoConfig:
    """The configuration in ``text`` (YAML). Raises RepoConfigError that tells line and column of each mistake."""
    if len(text.encode()) > MAX_BYTES:
        raise RepoConfigError([Problem(f"the file is larger than {MAX_BYTES // 1024} KiB", 1, 1)])
    try:
        root = yaml.compose(text, Loader=yaml.SafeLoader)
        if root is not None:
            _refuse_aliases(text)
        values = yaml.safe_load(text) or {}
    except yaml.MarkedYAMLError as error:
        mark = error.problem_mark
        where = (mark.line + 1, mark.column + 1) if mark else (1, 1)
        raise RepoConfigError([Problem(error.problem or "this is no YAML", *where)]) from error
    except (yaml.YAMLError, ValueError, RecursionError) as error:
        raise RepoConfigError([Problem("this is no YAML", 1, 1)]) from error
    if not isinstance(values, dict):
        raise RepoConfigError([Problem("the file must be a mapping of names to values", 1, 1)])
    repeated = [Problem(f"`{key}` stands here twice", *where) for key, where in _repeated(root)]
    if repeated:
        raise RepoConfigError(repeated)
    try:
        return RepoConfig.model_validate(values)
    except ValidationError as error:
        raise RepoConfigError([_problem(detail, root) for detail in error.errors()]) from error


def of(job: Job) -> RepoConfig:
    """The configuration as it stood when ``job`` was accepted."""
    return RepoConfig.model_validate(dict(job.config))


def dump(config: RepoConfig) -> Mapping[str, Any]:
    """What is kept with a job: only what differs from the defaults."""
    return config.model_dump(mode="json", exclude_defaults=True)


def _refuse_aliases(text: str) -> None:
    """Anchors and aliases can make a small file huge, and nobody needs them here."""
    for event in yaml.parse(text, Loader=yaml.SafeLoader):
        if isinstance(event, yaml.AliasEvent):
            mark = event.start_mark
            where = (mark.line + 1, mark.column + 1) if mark else (1, 1)
            raise RepoConfigError([Problem("aliases are not taken", *where)])


def _repeated(node: yaml.Node | None) -> Iterator[tuple[str, tuple[int, int]]]:
    if isinstance(node, yaml.MappingNode):
        seen = set()
        for key, value in node.value:
            if key.value in seen:
                yield str(key.value), (key.start_mark.line + 1, key.start_mark.column + 1)
            seen.add(key.value)
            yield from _repeated(value)
    elif isinstance(node, yaml.SequenceNode):
        for item in node.value:
            yield from _repeated(item)


def _problem(detail: Any, root: yaml.Node | None) -> Problem:
    path = [part for part in detail["loc"] if part != "[key]"]
    unknown = detail["type"] == "extra_forbidden"
    name = ".".join(str(part) for part in path)
    message = (
        f"`{name}` is not known" if unknown else f"`{name}`: {detail['msg'].removeprefix('Value error, ')}"
    )
    return Problem(message, *_where(root, path, at_key=unknown))


def _where(root: yaml.Node | None, path: Sequence[str | int], *, at_key: bool) -> tuple[int, int]:
    """Line and column of what stands at ``path``, or of the nearest thing above it that is there."""
    node, mark = root, root.start_mark if root else None
    for depth, part in enumerate(path):
        found = None
        if isinstance(node, yaml.MappingNode):
            for key, value in node.value:
                if key.value == str(part):
                    found = value
                    mark = key.start_mark if at_key and depth == len(path) - 1 else value.start_mark
        elif isinstance(node, yaml.SequenceNode) and isinstance(part, int) and part < len(node.value):
            found = node.value[part]
            mark = found.start_mark
        if found is None:
            break
        node = found
    return (mark.line + 1, mark.column + 1) if mark else (1, 1)
