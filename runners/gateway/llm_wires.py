"""The wire formats of LLM providers: what may be called, how a key is shown, what an error looks like."""

from __future__ import annotations

import re
from collections.abc import Mapping
from dataclasses import dataclass

MODEL = re.compile(r"[A-Za-z0-9_-][A-Za-z0-9_.:-]*")
_GEMINI_CALL = re.compile(
    r"v1beta/models/([A-Za-z0-9_-][A-Za-z0-9_.-]*):(generateContent|streamGenerateContent|countTokens)"
)

#: Tokens of Claude subscriptions (`claude setup-token`) begin so. Claude Code sends them as bearer tokens with
#: this flag (seen in what it sends with CLAUDE_CODE_OAUTH_TOKEN set).
OAUTH_PREFIX = "sk-ant-oat"
OAUTH_BETA = "oauth-2025-04-20"

#: https://google.aip.dev/193
_GOOGLE_STATUSES = {
    400: "INVALID_ARGUMENT",
    401: "UNAUTHENTICATED",
    402: "FAILED_PRECONDITION",
    404: "NOT_FOUND",
    413: "INVALID_ARGUMENT",
    502: "UNAVAILABLE",
    503: "UNAVAILABLE",
    504: "DEADLINE_EXCEEDED",
}
#: https://docs.anthropic.com/en/api/errors; OpenAI's clients only look at the status and show the message.
_ERROR_TYPES = {
    400: "invalid_request_error",
    401: "authentication_error",
    402: "billing_error",
    404: "not_found_error",
    413: "request_too_large",
    504: "timeout_error",
}


@dataclass(frozen=True, kw_only=True)
class Call:
    """One thing that an agent may ask for."""

    costs: bool = False  # whether it costs tokens
    model: str = ""  # as far as the path tells it


@dataclass(frozen=True, kw_only=True)
class Wire:
    """One wire format. Paths are below the provider's base URL."""

    kind: str
    calls: Mapping[str, bool]  # what may be POSTed -> whether it costs tokens
    models: str  # the list of models, and each one below it, may be read
    queries: frozenset[str]  # query parameters that are sent on

    def call(self, method: str, path: str) -> Call | None:
        """The call that ``method`` and ``path`` mean; None when agents may not make it."""
        if method == "GET":
            folder, _, model = path.rpartition("/")
            listed = path == self.models or (folder == self.models and MODEL.fullmatch(model))
            return Call() if listed else None
        if method != "POST":
            return None
        if self.kind == "gemini":
            match = _GEMINI_CALL.fullmatch(path)
            return Call(costs=match[2] != "countTokens", model=match[1]) if match else None
        return Call(costs=self.calls[path]) if path in self.calls else None

    def auth(self, key: str, betas: str) -> dict[str, str]:
        """The headers that show ``key``; ``betas`` is the client's own ``anthropic-beta`` header."""
        if self.kind == "gemini":
            return {"x-goog-api-key": key}
        if self.kind == "openai":
            return {"Authorization": f"Bearer {key}"}
        if key.startswith(OAUTH_PREFIX):
            flags = [flag.strip() for flag in betas.split(",") if flag.strip()]
            if OAUTH_BETA not in flags:
                flags.append(OAUTH_BETA)
            return {"Authorization": f"Bearer {key}", "anthropic-beta": ",".join(flags)}
        return {"x-api-key": key}

    def error(self, status: int, message: str) -> dict[str, object]:
        """The body of an error answer in this format, so that the client can show it."""
        kind = _ERROR_TYPES.get(status, "api_error")
        if self.kind == "anthropic":
            return {"type": "error", "error": {"type": kind, "message": message}}
        if self.kind == "gemini":
            name = _GOOGLE_STATUSES.get(status, "UNKNOWN")
            return {"error": {"code": status, "message": message, "status": name}}
        return {"error": {"message": message, "type": kind, "code": kind, "param": None}}


WIRES: Mapping[str, Wire] = {
    "anthropic": Wire(
        kind="anthropic",
        calls={"v1/messages": True, "v1/messages/count_tokens": False},
        models="v1/models",
        queries=frozenset({"beta", "limit", "after_id", "before_id"}),
    ),
    "openai": Wire(
        kind="openai",
        calls={"responses": True, "chat/completions": True},
        models="models",
        queries=frozenset(),
    ),
    # only these two: `fields` could hide the numbers, `key` and `$httpMethod` change who asks for what
    "gemini": Wire(
        kind="gemini",
        calls={},
        models="v1beta/models",
        queries=frozenset({"alt", "pageSize", "pageToken"}),
    ),
}
