"""The agents by name. A new one is a module and a line in this table; the operator may add own ones by settings."""

from __future__ import annotations

from importlib import import_module
from typing import cast

from bot.config import Settings
from bot.errors import ConfigurationError
from bot.ports import Agent

#: name -> module and value, or a function that makes the value from the settings; imported on use
AGENTS: dict[str, tuple[str, str]] = {
    "aider": ("runners.agents.aider", "AIDER"),
    "claude": ("runners.agents.claude", "CLAUDE"),
    "codex": ("runners.agents.codex", "CODEX"),
    "droid": ("runners.agents.droid", "DROID"),
    "gemini": ("runners.agents.gemini", "GEMINI"),
    "mini": ("runners.agents.mini", "MINI"),
    "opencode": ("runners.agents.opencode", "OPENCODE"),
    "q": ("runners.agents.q", "q_agent"),
    "qwen": ("runners.agents.qwen", "QWEN"),
    "shell": ("runners.agents.shell", "SHELL"),
}


def known_agents(settings: Settings | None = None) -> tuple[str, ...]:
    """Every agent's name, in the order people are shown them; with ``settings`` also those of the operator.

    Raises ConfigurationError when one of those has a name that is taken.
    """
    own = settings.custom_agents if settings else {}
    if taken := sorted(set(own) & set(AGENTS)):
        raise ConfigurationError(
            f"The agent {taken[0]!r} in custom_agents has the name of a built-in one.",
            "Give it another name.",
        )
    return (*AGENTS, *own)


def agent(name: str, settings: Settings | None = None) -> Agent:
    """The agent ``name``. Raises ConfigurationError that lists the known ones when there is none."""
    known = known_agents(settings)
    if name not in known:
        raise ConfigurationError(
            f"There is no agent named {name!r}.", f"The known agents are {', '.join(known)}."
        )
    if settings is not None and name in settings.custom_agents:
        from runners.agents.custom import custom_agent

        return cast(Agent, custom_agent(name, settings.custom_agents[name]))
    module, value = AGENTS[name]
    found = getattr(import_module(module), value)
    made: Agent = found(settings) if callable(found) else found
    return made
