"""Agents of the operator's own, as they stand in ``conductor.toml``: ``[custom_agents.NAME]``."""

from __future__ import annotations

import os
import re
from pathlib import PurePosixPath
from typing import Annotated, Literal

from pydantic import BaseModel, ConfigDict, Field, SecretStr, StringConstraints, field_validator

from bot.errors import ConfigurationError

#: What may stand in an argument or a variable, in braces.
PLACEHOLDERS = ("prompt_file", "model", "session", "gateway", "token")
_PLACEHOLDER = re.compile(r"\{([a-z_]+)\}")

AgentName = Annotated[str, StringConstraints(pattern=r"^[a-z0-9][a-z0-9-]{0,31}$")]
VariableName = Annotated[str, StringConstraints(pattern=r"^[A-Za-z_][A-Za-z0-9_]*$")]


def placeholders_in(text: str) -> set[str]:
    """The names in braces in ``text``."""
    return set(_PLACEHOLDER.findall(text))


class CustomAgent(BaseModel):
    """How an agent's CLI is put into its image, started and read."""

    model_config = ConfigDict(extra="forbid", frozen=True)

    argv: tuple[str, ...] = Field(min_length=1, description="the command of a session's first turn")
    resume: tuple[str, ...] = Field(
        (), description="that of its later turns; empty: every turn is a new session"
    )
    output: Literal["text", "jsonl", "claude-stream-json", "codex-json"] = "text"
    llm: Literal["anthropic", "openai", "gemini", "own", "none"] = Field(
        "openai",
        description="the gateway's route; own: a service that is not ours; none: runs without a model",
    )
    instruction_file: str | None = Field(None, description="what it reads in the repository by itself")
    session_paths: tuple[str, ...] = Field((), description="below HOME: kept for the session's next turn")
    env: dict[VariableName, str] = Field(default_factory=dict)
    secret_env: dict[VariableName, SecretStr] = Field(
        default_factory=dict, description="the agent sees them; env:NAME reads a variable of the worker"
    )
    version: str = Field(
        "", pattern=r"^([0-9A-Za-z][0-9A-Za-z.+-]*)?$", description="shown, part of the image's name"
    )
    install: tuple[str, ...] = Field(
        (), description="bash commands that put the CLI below $AGENT, run as root"
    )

    @field_validator("argv", "resume")
    @classmethod
    def _arguments(cls, value: tuple[str, ...]) -> tuple[str, ...]:
        for argument in value:
            _known(argument)
            if "\0" in argument:
                raise ValueError("an argument cannot hold a NUL")
            if "token" in placeholders_in(argument):
                raise ValueError(
                    "{token} cannot be an argument, which every process can read; put it into `env`"
                )
        if value and placeholders_in(value[0]):
            raise ValueError("the first argument is the program and holds no placeholder")
        return value

    @field_validator("env")
    @classmethod
    def _variables(cls, value: dict[str, str]) -> dict[str, str]:
        for text in value.values():
            _known(text)
            if "prompt_file" in placeholders_in(text):
                raise ValueError("{prompt_file} can only be an argument")
        return value

    @field_validator("session_paths")
    @classmethod
    def _paths(cls, value: tuple[str, ...]) -> tuple[str, ...]:
        for path in value:
            pure = PurePosixPath(path)
            if pure.is_absolute() or not pure.parts or ".." in pure.parts or pure.parts[0] == ".conductor":
                raise ValueError(f"{path!r} is not a path below the home folder")
        return value

    @field_validator("instruction_file")
    @classmethod
    def _instructions(cls, value: str | None) -> str | None:
        if value is not None and (PurePosixPath(value).is_absolute() or ".." in PurePosixPath(value).parts):
            raise ValueError(f"{value!r} is not a path in the repository")
        return value

    def secrets(self) -> dict[str, str]:
        """The values of ``secret_env``. Raises ConfigurationError for a variable of the worker that is not set."""
        values = {}
        for name, secret in self.secret_env.items():
            value = secret.get_secret_value()
            if value.startswith("env:"):
                source = value.removeprefix("env:")
                value = os.environ.get(source, "")
                if not value:
                    raise ConfigurationError(
                        f"The variable {source}, which an agent of `custom_agents` needs, is not set.",
                        "Set it for `conductor worker`, or take it out of `secret_env` in conductor.toml.",
                    )
            values[name] = value
        return values


def _known(text: str) -> None:
    unknown = sorted(placeholders_in(text) - set(PLACEHOLDERS))
    if unknown:
        known = ", ".join(f"{{{name}}}" for name in PLACEHOLDERS)
        raise ValueError(f"{{{unknown[0]}}} is no placeholder; there are {known}")
