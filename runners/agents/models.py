"""Which provider serves a model: for agents that speak to more than one.

``anthropic/NAME`` and ``openai/NAME`` say it themselves. Without such a prefix the models named ``claude…`` are
Anthropic's, all others come from whatever is behind the gateway's OpenAI route.
"""

from __future__ import annotations

import re
from dataclasses import dataclass
from typing import Literal

from bot.errors import ConfigurationError
from bot.ports import Turn

PROVIDERS = ("anthropic", "openai")

#: OpenAI's own reasoning models: they want Responses, and refuse the `max_tokens` of chat completions. Every other
#: server that speaks OpenAI's language (vLLM, Ollama, a company's gateway) is at home in chat completions.
_RESPONSES = re.compile(r"(gpt-[5-9]|o[1-9]|codex)(?![a-z])")


@dataclass(frozen=True, kw_only=True)
class Model:
    """A model and the route of the gateway that leads to it."""

    provider: str
    name: str  # as the provider knows it

    def base_url(self, gateway: str) -> str:
        """Where its provider's API begins, seen from the container."""
        return f"{gateway}/llm/{self.provider}"

    @property
    def api(self) -> Literal["messages", "responses", "chat"]:
        """The API that it is best spoken to by, for agents that know all three."""
        if self.provider == "anthropic":
            return "messages"
        return "responses" if _RESPONSES.match(self.name) else "chat"


def model_of(turn: Turn, agent: str) -> Model:
    """The model of ``turn``. Raises ConfigurationError when there is none: ``agent`` has no default of its own."""
    if not turn.model:
        raise ConfigurationError(
            f"The agent {agent} needs to be told its model.",
            f"Name one with `--model`, or the operator sets `models = {{ {agent} = … }}` in conductor.toml.",
        )
    provider, slash, name = turn.model.partition("/")
    if slash and name and provider in PROVIDERS:
        return Model(provider=provider, name=name)
    return Model(provider="anthropic" if turn.model.startswith("claude") else "openai", name=turn.model)
