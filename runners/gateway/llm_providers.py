"""Which provider answers an attempt's calls, and with which keys: from the settings, once."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import get_args

from bot.config import ENV_PREFIX, LLM_ROUTES, DearBeta, Settings
from runners.gateway.llm_keys import Key, KeyRing
from runners.gateway.llm_wires import OAUTH_PREFIX, WIRES, Wire

_TITLES = {"anthropic": "Anthropic", "openai": "OpenAI", "gemini": "Gemini"}


@dataclass(frozen=True, kw_only=True)
class Provider:
    """Somebody who serves a model, and how we are known there."""

    name: str
    title: str
    wire: Wire
    url: str
    keys: KeyRing
    headers: Mapping[str, str] = field(default_factory=dict)
    betas_left_out: tuple[str, ...] = ()  # beginnings of the flags of ``anthropic-beta`` that are not sent on
    setting: str = ""  # what the operator must set where a key is needed and none is there

    def redacted(self, text: bytes) -> bytes:
        """``text`` without our keys and headers: a gateway in between may quote what it refuses."""
        for secret in (*(key.value for key in self.keys), *self.headers.values()):
            if len(secret) > 5:
                text = text.replace(secret.encode(), b"[redacted]")
        return text


class Providers:
    """All providers of the settings. Raises ConfigurationError when a key's variable is not set."""

    def __init__(self, settings: Settings) -> None:
        self._by_name: dict[str, Provider] = {}
        left_out = tuple(beta for beta in get_args(DearBeta) if beta not in settings.llm_betas)
        for name in LLM_ROUTES:
            if name not in settings.providers:
                self._by_name[name] = _short_form(settings, name, left_out)
        for name, table in settings.providers.items():
            self._by_name[name] = Provider(
                name=name,
                title=_TITLES.get(name, name),
                wire=WIRES[table.kind],
                url=table.url,
                keys=KeyRing(_key(value, table.subscription) for value in table.key_values()),
                headers={header: value.get_secret_value() for header, value in table.headers.items()},
                betas_left_out=left_out,
            )
        self._of_agent = dict(settings.agent_providers)

    def find(self, route: str, agent: str) -> Provider | None:
        """Who serves ``/llm/<route>`` for ``agent``: its own provider if that speaks the format, else the route's."""
        if route not in LLM_ROUTES:
            return None
        own = self._by_name.get(self._of_agent.get(agent, ""))
        return own if own is not None and own.wire.kind == route else self._by_name[route]


def _short_form(settings: Settings, name: str, left_out: tuple[str, ...]) -> Provider:
    key = str(getattr(settings, f"llm_{name}_key").get_secret_value()).strip()
    return Provider(
        name=name,
        title=_TITLES[name],
        wire=WIRES[name],
        url=str(getattr(settings, f"llm_{name}_url")),
        keys=KeyRing([_key(key, subscription=False)] if key else []),
        betas_left_out=left_out,
        setting=f"{ENV_PREFIX}LLM_{name.upper()}_KEY",
    )


def _key(value: str, subscription: bool) -> Key:
    return Key(value=value, free=subscription or value.startswith(OAUTH_PREFIX))
