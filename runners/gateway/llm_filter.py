"""What may be in a request to a provider: nothing that reaches out of the container, or into others' data.

Tools that the provider runs, content that it would fetch, and things that are kept under the operator's key are ways
past the container's walls. Tools are compared with a list of what is harmless; what is not on it is a way out.
"""

from __future__ import annotations

import re
from collections.abc import Collection, Iterator, Mapping
from dataclasses import dataclass
from typing import Any, NoReturn

from bot.config import ENV_PREFIX

MAX_DEPTH = 60  # of a request's content: more than any conversation needs


class RequestRefused(Exception):
    """The request may not be made; the message is a sentence for the agent."""


@dataclass(frozen=True, kw_only=True)
class Checked:
    """What is sent, and what was asked for."""

    document: dict[str, Any]
    model: str
    max_output: int | None  # tokens, where the request sets a limit
    taken_out: tuple[str, ...] = ()  # tools that the CLI offers by itself


#: Tools that only describe something, or that the client runs: by the start of their type, without its date.
_CLIENT_TOOLS = {
    # https://docs.anthropic.com/en/docs/agents-and-tools/tool-use/overview; the tool searches look through the
    # request's own tools
    "anthropic": frozenset(
        {
            "custom",
            "bash",
            "text_editor",
            "computer",
            "memory",
            "tool_search_tool_regex",
            "tool_search_tool_bm25",
        }
    ),
    # https://platform.openai.com/docs/api-reference/responses/create
    "openai": frozenset(
        {
            "function",
            "custom",
            "local_shell",
            "apply_patch",
            "computer",
            "computer_use_preview",
            "tool_search",
        }
    ),
    # https://ai.google.dev/api/caching#Tool: the keys of a tool's object
    "gemini": frozenset({"functiondeclarations", "computeruse"}),
}

#: What CLIs offer in every request beside their own tools; the model works without. Seen: Codex 0.169.
_OFFERED = {"openai": frozenset({"web_search", "web_search_preview", "image_generation"})}

#: Fields of LiteLLM, OpenRouter and the like that lead a request elsewhere or give it tools.
_REDIRECTING = (
    "api_base", "base_url", "api_key", "user_config", "fallbacks", "context_window_fallbacks", "models", "plugins",
    "extra_body", "extra_headers", "router_settings_override",
)  # fmt: skip

#: Fields that name what is kept under the key, or that make a gateway in between do something else.
_KEPT = {
    "anthropic": {"container": "a container"},
    "openai": {
        "previous_response_id": "a stored response",
        "conversation": "a stored conversation",
        "prompt": "a stored prompt",
        "background": "background work",
        **dict.fromkeys(_REDIRECTING, "another route"),
    },
    "gemini": {"cachedcontent": "a cache"},
}

#: Fields that ask for a server-side tool without a tool's entry.
_TOOL_FIELDS = {
    "anthropic": {"mcp_servers": "mcp"},
    "openai": {"web_search_options": "web_search"},
    "gemini": {},
}

#: Dearer ways to the same answer, which the price table does not know.
_DEARER = {"anthropic": ("speed", "inference_geo"), "openai": (), "gemini": ()}
_USUAL_TIERS = frozenset({"auto", "default", "flex"})

#: Models that search by themselves.
_SEARCHING = re.compile(r":online$|-search-(?:preview|api)|deep-research|^sonar")

#: Values that providers do not look into: a call's arguments, a function's answer, a schema.
_OPAQUE = frozenset(
    {"args", "arguments", "response", "input_schema", "parameters", "metadata", "client_metadata"}
)


def check(
    kind: str, document: object, *, path: str, path_model: str = "", allowed: Collection[str] = ()
) -> Checked:
    """Look through a request of wire format ``kind`` for ``path``.

    ``allowed``: server-side tools that may be used, or ``*``.

    Raises RequestRefused.
    """
    if not isinstance(document, dict):
        raise RequestRefused("The request's body is not a JSON object.")
    document = dict(document)
    filter_ = _Filter(kind, allowed)
    if kind == "gemini":
        document = {key: value for key, value in document.items() if _plain(key) != "model"}
        for key, value in document.items():
            if _plain(key) == "generatecontentrequest" and isinstance(value, dict):  # of countTokens
                document[key] = filter_.document(dict(value))
    document = filter_.document(document)
    if path == "responses":
        document["store"] = False  # the default is to keep the answer
    elif path == "chat/completions":
        document.pop("store", None)
        if document.get("stream") is True:
            options = document.get("stream_options")
            # else nobody knows what it cost
            document["stream_options"] = {
                **(options if isinstance(options, dict) else {}),
                "include_usage": True,
            }
    model = path_model or _text(document.get("model"))
    if _SEARCHING.search(model):
        filter_.need("web_search", f"The model {model!r} searches the web")
    return Checked(
        document=document,
        model=model,
        max_output=_max_output(kind, document),
        taken_out=tuple(filter_.taken_out),
    )


class _Filter:
    def __init__(self, kind: str, allowed: Collection[str]) -> None:
        self._kind = kind
        self._allowed = {_plain(name) for name in allowed}
        self.taken_out: list[str] = []

    def document(self, document: dict[str, Any]) -> dict[str, Any]:
        """The request without what a CLI offers by itself. Raises RequestRefused for what it must not hold."""
        kind = self._kind
        for key in list(document):
            plain = _plain(key) if kind == "gemini" else key
            if plain in _KEPT[kind] and document[key] not in (None, False):
                raise RequestRefused(
                    f"`{key}` is refused here: {_KEPT[kind][plain]} is not the job's own. Leave it out."
                )
            if plain in _TOOL_FIELDS[kind] and document[key] not in (None, [], False):
                self.need(_TOOL_FIELDS[kind][plain], f"`{key}`")
            if plain in _DEARER[kind]:
                del document[key]
            elif plain == "tools" and document[key] is not None:
                document[key] = self._tools(document[key])
        if kind == "openai":
            if document.get("service_tier", "auto") not in _USUAL_TIERS:
                del document["service_tier"]
            if isinstance(document.get("input"), list):
                document["input"] = [self._item(item) for item in document["input"]]
        for key in ("system", "messages", "input", "contents", "systemInstruction", "system_instruction"):
            if key in document:
                self._look(document[key])
        return document

    def need(self, tool: str, what: str) -> None:
        """Raise RequestRefused unless the server-side ``tool`` is allowed."""
        if "*" not in self._allowed and _plain(tool) not in self._allowed:
            self._refuse(tool, what)

    def _refuse(self, tool: str, what: str) -> NoReturn:
        raise RequestRefused(
            f"{what} is refused: it runs at the provider, outside the container's network policy. Work without it; "
            f"the server's operator can allow it by adding {tool!r} to {ENV_PREFIX}LLM_SERVER_TOOLS."
        )

    # --- tools

    def _tools(self, tools: object) -> object:
        if isinstance(tools, dict) and self._kind == "gemini":
            tools = [tools]  # protobuf's JSON takes one for a list of one in some places
        if not isinstance(tools, list):
            raise RequestRefused("`tools` is not a list.")
        kept, offered = [], []
        for tool in tools:
            names = list(self._server_side(tool))
            refused = [name for name in names if not self._is_allowed(name)]
            if not refused:
                kept.append(self._nested(tool))
            elif all(name in _OFFERED.get(self._kind, ()) for name in refused):
                offered += refused
            else:
                self._refuse(refused[0], f"The tool {refused[0]!r}")
        if offered and not kept:
            self._refuse(offered[0], f"The tool {offered[0]!r}")  # it is what the request is about
        self.taken_out += offered
        return kept

    def _is_allowed(self, name: str) -> bool:
        return "*" in self._allowed or _plain(name) in self._allowed

    def _server_side(self, tool: object) -> Iterator[str]:
        """The names of what the provider would run for an entry of ``tools``."""
        if not isinstance(tool, dict):
            raise RequestRefused("A tool is not an object.")
        known = _CLIENT_TOOLS[self._kind]
        if self._kind == "gemini":
            yield from (key for key in tool if _plain(key) not in known)
            return
        name = tool.get("type", "custom" if self._kind == "anthropic" else None)
        if name is None and self._kind == "anthropic":
            name = "custom"
        if not isinstance(name, str):
            raise RequestRefused("A tool's type is not a text.")
        name = re.sub(r"_20\d{6}$", "", name)  # Anthropic's tools, and web_search_preview_2025_03_11
        name = re.sub(r"_20\d\d_\d\d_\d\d$", "", name)
        if name == "namespace" and self._kind == "openai":
            return  # looked into by _nested
        if name == "shell" and self._kind == "openai":
            where = tool.get("environment")
            if where is None or (isinstance(where, dict) and where.get("type") == "local"):
                return
        if name not in known:
            yield name

    def _nested(self, tool: dict[str, Any]) -> dict[str, Any]:
        """A group of tools is as good as its worst."""
        if self._kind == "openai" and tool.get("type") == "namespace":
            return {**tool, "tools": self._tools(tool.get("tools") or [])}
        return tool

    def _item(self, item: object) -> object:
        """Items of the input bring tools, too: Codex offers newer models all of theirs in one."""
        if isinstance(item, dict) and item.get("tools") and item.get("type") != "mcp_list_tools":
            return {**item, "tools": self._tools(item["tools"])}
        return item

    # --- content

    def _look(self, value: object, depth: int = 0) -> None:
        if depth > MAX_DEPTH:
            raise RequestRefused(f"The request's content is nested deeper than {MAX_DEPTH} levels.")
        if isinstance(value, list):
            for part in value:
                self._look(part, depth + 1)
        elif isinstance(value, dict):
            self._part(value)
            opaque = _OPAQUE | (
                {"input"} if value.get("type") in ("tool_use", "server_tool_use") else frozenset()
            )
            for key, part in value.items():
                if isinstance(part, (dict, list)) and key not in opaque:
                    self._look(part, depth + 1)

    def _part(self, part: Mapping[str, Any]) -> None:
        """Refuse a part of the content that the provider would have to fetch or look up."""
        kind = self._kind
        if kind == "gemini":
            if any(_plain(key) == "filedata" for key in part):
                raise RequestRefused(_FETCHED)
        elif kind == "anthropic":
            source = part.get("source")
            if isinstance(source, dict) and part.get("type") in ("image", "document"):
                if source.get("type") not in ("base64", "text", "content"):
                    raise RequestRefused(_FETCHED)
            elif part.get("type") in ("container_upload", "file"):
                raise RequestRefused(_FETCHED)
        else:
            for key, value in part.items():
                url = value.get("url") if isinstance(value, dict) else value
                if key.endswith("_url") and isinstance(url, str) and not url.startswith("data:"):
                    raise RequestRefused(_FETCHED)
            if part.get("type") == "item_reference" or part.get("file_id"):
                raise RequestRefused(_FETCHED)
            if part.get("role") == "assistant" and part.get("audio"):  # by the id of an earlier answer
                raise RequestRefused(_FETCHED)


_FETCHED = (
    "Images, documents and files by URL or by id are refused: the provider would fetch them, past the container's "
    "network policy. Send their content inline."
)


def _max_output(kind: str, document: Mapping[str, Any]) -> int | None:
    """The most tokens that the answer may have, by the request's own limit."""
    if kind == "gemini":
        config = document.get("generationConfig") or document.get("generation_config")
        config = config if isinstance(config, dict) else {}
        limit = config.get("maxOutputTokens", config.get("max_output_tokens"))
        answers = config.get("candidateCount", config.get("candidate_count"))
    else:
        names = ("max_tokens", "max_completion_tokens", "max_output_tokens")
        limit = next((document[name] for name in names if isinstance(document.get(name), int)), None)
        answers = document.get("n")
    if not isinstance(limit, int) or limit < 0:
        return None
    return limit * (answers if isinstance(answers, int) and answers > 1 else 1)


def _plain(name: str) -> str:
    """A name as Google's JSON compares it (``file_data`` is ``fileData``), without case and underlines."""
    return name.replace("_", "").replace("-", "").lower()


def _text(value: object) -> str:
    return value if isinstance(value, str) else ""
