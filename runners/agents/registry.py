"""The agents by name. A new one is a module and a line in this table."""

from __future__ import annotations

from importlib import import_module

from bot.errors import ConfigurationError
from bot.ports import Agent

#: name -> module and value; imported on use
AGENTS: dict[str, tuple[str, str]] = {
    "claude": ("runners.agents.claude", "CLAUDE"),
    "codex": ("runners.agents.codex", "CODEX"),
    "gemini": ("runners.agents.gemini", "GEMINI"),
    "opencode": ("runners.agents.opencode", "OPENCODE"),
    "qwen": ("runners.agents.qwen", "QWEN"),
    "shell": ("runners.agents.shell", "SHELL"),
}


def known_agents() -> tuple[str, ...]:
    """Every agent's name, in the order people are shown them."""
    return tuple(AGENTS)


def agent(name: str) -> Agent:
    """The agent ``name``. Raises ConfigurationError that lists the known ones when there is none."""
    if name not in AGENTS:
        raise ConfigurationError(
            f"There is no agent named {name!r}.", f"The known agents are {', '.join(known_agents())}."
        )
    module, value = AGENTS[name]
    found: Agent = getattr(import_module(module), value)
    return found
