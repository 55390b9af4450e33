"""The agent's tools, by the Model Context Protocol over HTTP: tell how far it is, and ask people.

https://modelcontextprotocol.io/specification. One POST holds one message and is answered at once with one JSON
document: no session, no stream, no message from us. The versions up to 2025-11-25 begin with ``initialize``; since
2026-07-28 every request says itself what it is. What messages look like is checked by the protocol's own SDK
(``mcp_types``); what a tool is given, here and by ``bot.agent_requests``.

No call waits for a person: what was asked is kept on the desk, the turn ends, and the answer begins the next one.
"""

from __future__ import annotations

import math
import time
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from http import HTTPStatus
from typing import Annotated, Any, Literal

import mcp_types
import orjson
import structlog
from aiohttp import web
from mcp_types import methods
from mcp_types.version import HANDSHAKE_PROTOCOL_VERSIONS, LATEST_HANDSHAKE_VERSION, MODERN_PROTOCOL_VERSIONS
from pydantic import BaseModel, ConfigDict, Field, StringConstraints, ValidationError

from bot import __version__
from bot.agent_requests import (
    MAX_NOTE,
    MAX_PATH,
    MAX_PATHS,
    MAX_REASON,
    AgentRequest,
    NotGrantable,
    Operator,
    ProgressNote,
    ToDo,
    budget_now,
    dollars_to_ask,
    host_to_ask,
    paths_to_ask,
)
from bot.budget import dollars
from bot.model import ApprovalKind
from bot.prompts import visible
from runners.gateway import bodies
from runners.gateway.desk import Desk, RequestRefused

MAX_BODY = 256 * 1024  # bytes of a message
MAX_TODO = 50  # items
MAX_TODO_TEXT = 200  # characters of one item
#: What is assumed of a client that does not say its version (2025-06-18, "Protocol Version Header").
UNSAID_VERSION = "2025-03-26"


_STATUS = {
    mcp_types.PARSE_ERROR: HTTPStatus.BAD_REQUEST,
    mcp_types.INVALID_REQUEST: HTTPStatus.BAD_REQUEST,
    mcp_types.UNSUPPORTED_PROTOCOL_VERSION: HTTPStatus.BAD_REQUEST,
    mcp_types.HEADER_MISMATCH: HTTPStatus.BAD_REQUEST,
}
#: Since 2026-07-28 the HTTP status tells these, too; before they are answers like others.
_MODERN_STATUS = _STATUS | {
    mcp_types.INVALID_PARAMS: HTTPStatus.BAD_REQUEST,
    mcp_types.METHOD_NOT_FOUND: HTTPStatus.NOT_FOUND,
}

_INSTRUCTIONS = (
    "Tell people how far you are with `progress`. Ask them with `ask` or `request_approval` when you cannot go on "
    "without them: both answer at once that people were asked. Then end your turn: your work is kept, and the answer "
    "is your next message. One request a turn."
)
_ASKED = (
    "People were asked. Nobody answers while you work: end your turn now, without waiting or trying other ways. Your "
    "work is kept, and the decision is your next message."
)

log = structlog.get_logger(__name__)


class _Arguments(BaseModel):
    """What a tool takes. Models write these: numbers as text are taken, unknown names are told."""

    model_config = ConfigDict(extra="forbid")


class _ToDoArgument(_Arguments):
    text: Annotated[str, Field(description="one line", max_length=4 * MAX_TODO_TEXT)]
    done: bool = False


class _Progress(_Arguments):
    text: Annotated[str, Field(max_length=4 * MAX_NOTE, description="what you are doing, in a sentence")] = ""
    todo: Annotated[
        list[_ToDoArgument],
        Field(
            max_length=MAX_TODO,
            description="the whole to-do list as it is now; leave it out to keep the last one",
        ),
    ] = []


_Reason = Annotated[str, StringConstraints(max_length=MAX_REASON, strip_whitespace=True)]


class _Ask(_Arguments):
    question: Annotated[_Reason, Field(description="the question, with the choices that you see; Markdown")]


class _RequestApproval(_Arguments):
    kind: Annotated[
        Literal["network", "budget", "path", "text"],
        Field(
            description="network: reach a host. budget: spend more. path: change protected files. text: anything else"
        ),
    ]
    reason: Annotated[_Reason, Field(description="what you want to do and why it is needed; Markdown")]
    host: Annotated[
        str, Field(max_length=300, description="network: one host, example.com or example.com:8443")
    ] = ""
    dollars: Annotated[float, Field(description="budget: how many US dollars more")] = 0.0
    paths: Annotated[
        list[Annotated[str, StringConstraints(max_length=MAX_PATH)]],
        Field(
            max_length=MAX_PATHS, description="path: the files, from the repository's root, without patterns"
        ),
    ] = []


_GOES_WITH = {
    "host": ApprovalKind.network,
    "dollars": ApprovalKind.budget,
    "paths": ApprovalKind.path,
}


class _Failed(Exception):
    """A JSON-RPC error."""

    def __init__(self, code: int, message: str, data: Any = None) -> None:
        super().__init__(message)
        self.code, self.message, self.data = code, message, data


@dataclass(frozen=True)
class _Tool:
    description: str
    arguments: type[_Arguments]
    run: Callable[[Desk, Any], str]


class McpRoute:
    """Serves ``/mcp`` for all attempts of a worker. ``proxied``: they reach the network by the egress proxy alone."""

    def __init__(self, operator: Operator, *, proxied: bool = True) -> None:
        self._operator = operator
        self._proxied = proxied
        self._tools = {
            "progress": _Tool(
                "Tell the people who wait for you how far you are. They see the newest text and to-do list.",
                _Progress,
                self._progress,
            ),
            "ask": _Tool(
                "Ask people a question that only they can answer. It answers at once that they were asked; end your "
                "turn then, the answer is your next message.",
                _Ask,
                self._ask,
            ),
            "request_approval": _Tool(
                "Ask people for something that you may not do by yourself: connect to one more network host, spend "
                "more, change protected files, or anything else. It answers at once that they were asked; end your "
                "turn then, the decision is your next message.",
                _RequestApproval,
                self._request_approval,
            ),
        }
        self._listed = [
            {
                "name": name,
                "description": tool.description,
                "inputSchema": _flat(tool.arguments.model_json_schema()),
                "annotations": {"readOnlyHint": name == "progress", "openWorldHint": False},
            }
            for name, tool in self._tools.items()
        ]

    async def serve(self, request: web.Request, desk: Desk, tail: str) -> web.StreamResponse:
        """Answer ``request`` for ``/mcp``; the caller has checked the attempt's token."""
        if tail:
            return web.json_response({"error": "The tools are at /mcp."}, status=404)
        if request.method != "POST":  # we have nothing to say by ourselves, and no session to end
            return web.Response(status=405, headers={"Allow": "POST"})
        if request.content_type != "application/json":
            return web.json_response({"error": "A message is application/json."}, status=415)
        version = request.headers.get("MCP-Protocol-Version", UNSAID_VERSION)
        statuses = _MODERN_STATUS if version in MODERN_PROTOCOL_VERSIONS else _STATUS
        number: int | str | None = None
        try:
            message = _message(await bodies.whole(request, MAX_BODY), version)
            if message is None:
                return web.Response(status=202)
            number = message.id
            result = self._answer(desk, message, version, request.headers)
        except _Failed as failed:
            error = {"code": failed.code, "message": failed.message}
            if failed.data is not None:
                error["data"] = failed.data
            return _json(
                {"jsonrpc": "2.0", "id": number, "error": error}, statuses.get(failed.code, HTTPStatus.OK)
            )
        return _json({"jsonrpc": "2.0", "id": number, "result": result}, HTTPStatus.OK)

    def _answer(
        self, desk: Desk, message: mcp_types.JSONRPCRequest, version: str, headers: Mapping[str, str]
    ) -> dict[str, Any]:
        method, params = message.method, message.params or {}
        if version in MODERN_PROTOCOL_VERSIONS:
            _check_envelope(method, params, version, headers)
        try:
            methods.validate_client_request(method, version, message.params)
        except KeyError as error:
            raise _Failed(mcp_types.METHOD_NOT_FOUND, f"There is no method {method[:100]!r} here.") from error
        except ValidationError as error:
            raise _Failed(mcp_types.INVALID_PARAMS, _first(error)) from error
        match method:
            case "initialize":
                # a version that we do not know is answered with one that we do; the client goes on or hangs up
                wanted = params["protocolVersion"]
                version = wanted if wanted in HANDSHAKE_PROTOCOL_VERSIONS else LATEST_HANDSHAKE_VERSION
                result = {"protocolVersion": version, **_about()}
            case "server/discover":
                result = {
                    "supportedVersions": [*HANDSHAKE_PROTOCOL_VERSIONS, *MODERN_PROTOCOL_VERSIONS],
                    **_about(),
                }
            case "ping":
                result = {}
            case "tools/list":
                result = {"tools": self._listed}
            case "tools/call":
                result = self._call(desk, params["name"], params.get("arguments") or {})
            case _:
                raise _Failed(mcp_types.METHOD_NOT_FOUND, f"There is no method {method!r} here.")
        if version in MODERN_PROTOCOL_VERSIONS:
            result["resultType"] = "complete"
            if method in methods.CACHEABLE_METHODS:
                result |= {"ttlMs": 0, "cacheScope": "private"}
        return methods.serialize_server_result(method, version, result)

    def _call(self, desk: Desk, name: str, arguments: Mapping[str, Any]) -> dict[str, Any]:
        """Run a tool. What is wrong with the arguments is the tool's answer: so the model can do better."""
        tool = self._tools.get(name)
        if tool is None:
            raise _Failed(
                mcp_types.INVALID_PARAMS, f"There is no tool {name[:100]!r}, only: {', '.join(self._tools)}."
            )
        try:
            # some models write null for what they leave out
            given = {key: value for key, value in arguments.items() if value is not None}
            words, failed = tool.run(desk, tool.arguments.model_validate(given)), False
        except ValidationError as error:
            words, failed = f"{name} was not called: {_first(error)}.", True
        except (NotGrantable, RequestRefused) as error:
            words, failed = error.message, True
            log.info("request refused", attempt=desk.attempt_id, tool=name, why=error.message)
            desk.note_refused(name, error.message)
        return {"content": [{"type": "text", "text": words}], "isError": failed}

    # --- the tools

    def _progress(self, desk: Desk, given: _Progress) -> str:
        text = visible(given.text)[:MAX_NOTE]
        listed = [ToDo(text=line, done=item.done) for item in given.todo if (line := _line(item.text))]
        if not text and not listed:
            raise RequestRefused("Say something: give text, todo, or both.")
        before = desk.progress.todo if desk.progress else ()
        desk.take_progress(
            ProgressNote(turn=desk.turns_given, at=time.time(), text=text, todo=tuple(listed) or before)
        )
        limit = budget_now(self._operator, desk.terms)
        if math.isinf(limit):
            return "Told."
        used = dollars(desk.usage().cost or 0.0)
        return f"Told. This job may spend {dollars(limit)} in all; {used} were used since you began."

    def _ask(self, desk: Desk, given: _Ask) -> str:
        return self._request(desk, None, given.question)

    def _request_approval(self, desk: Desk, given: _RequestApproval) -> str:
        kind = ApprovalKind(given.kind)
        for name, goes_with in _GOES_WITH.items():
            # people would approve what they read, and nothing would come of the rest
            if kind is not goes_with and getattr(given, name):
                raise RequestRefused(
                    f"{name} goes with the kind {goes_with} alone: ask for one thing at a time."
                )
        more: dict[str, Any] = {}
        match kind:
            case ApprovalKind.network:
                if not self._proxied:
                    raise NotGrantable("There are no network rules here: connect without asking.")
                more["host"] = host_to_ask(given.host, self._operator, desk.terms)
            case ApprovalKind.budget:
                more["dollars"] = dollars_to_ask(given.dollars, self._operator, desk.terms)
            case ApprovalKind.path:
                more["paths"] = paths_to_ask(given.paths, self._operator, desk.terms)
        return self._request(desk, kind, given.reason, **more)

    def _request(self, desk: Desk, kind: ApprovalKind | None, reason: str, **more: Any) -> str:
        words = visible(reason)[:MAX_REASON]
        if not words:
            raise RequestRefused("Say what you ask people for, and why.")
        request = AgentRequest(turn=desk.turns_given, at=time.time(), kind=kind, reason=words, **more)
        desk.take_request(request)
        log.info("people are asked", attempt=desk.attempt_id, kind=kind and str(kind), **request.details)
        return _ASKED


def _message(body: bytes, version: str) -> mcp_types.JSONRPCRequest | None:
    """The request in ``body``; None for what wants no answer. Raises _Failed."""
    if version not in (*HANDSHAKE_PROTOCOL_VERSIONS, *MODERN_PROTOCOL_VERSIONS):
        known = [*HANDSHAKE_PROTOCOL_VERSIONS, *MODERN_PROTOCOL_VERSIONS]
        raise _Failed(
            mcp_types.UNSUPPORTED_PROTOCOL_VERSION,
            "This version of the protocol is not known here.",
            {"supported": known, "requested": version[:100]},
        )
    try:
        document = orjson.loads(body)
    except orjson.JSONDecodeError as error:
        raise _Failed(mcp_types.PARSE_ERROR, f"The body is not JSON: {error}") from error
    if not isinstance(document, dict):
        raise _Failed(mcp_types.INVALID_REQUEST, "A body holds one message, and is an object.")
    try:
        if "id" in document and "method" in document:
            return mcp_types.JSONRPCRequest.model_validate(document)
        if "method" in document:
            mcp_types.JSONRPCNotification.model_validate(document)
        else:  # an answer; we asked nothing
            mcp_types.jsonrpc_message_adapter.validate_python(document)
    except ValidationError as error:
        raise _Failed(mcp_types.INVALID_REQUEST, f"This is no JSON-RPC message: {_first(error)}") from error
    return None


def _check_envelope(method: str, params: Mapping[str, Any], version: str, headers: Mapping[str, str]) -> None:
    """Raise _Failed when the fields of a request that routers read are not what its body says (since 2026-07-28)."""
    meta = params.get("_meta")
    said = {
        "MCP-Protocol-Version": (
            version,
            meta.get(mcp_types.PROTOCOL_VERSION_META_KEY) if isinstance(meta, dict) else None,
        ),
        "Mcp-Method": (headers.get("Mcp-Method"), method),
    }
    if method == "tools/call":
        said["Mcp-Name"] = (headers.get("Mcp-Name"), params.get("name"))
    for name, (field, body) in said.items():
        if field != body:
            raise _Failed(mcp_types.HEADER_MISMATCH, f"The field {name} is not what the body says.")


def _about() -> dict[str, Any]:
    return {
        "capabilities": {"tools": {}},
        "serverInfo": {"name": "agent-conductor", "version": __version__},
        "instructions": _INSTRUCTIONS,
    }


def _flat(schema: dict[str, Any]) -> dict[str, Any]:
    """``schema`` with its definitions where they are used, and without titles: not every client follows references."""
    definitions = schema.pop("$defs", {})

    def walk(value: Any) -> Any:
        if isinstance(value, list):
            return [walk(item) for item in value]
        if not isinstance(value, dict):
            return value
        if (reference := value.get("$ref")) is not None:
            return walk(definitions[reference.removeprefix("#/$defs/")])
        return {
            key: walk(item) for key, item in value.items() if not (key == "title" and isinstance(item, str))
        }

    flat: dict[str, Any] = walk(schema)
    return flat


def _line(text: str) -> str:
    return " ".join(visible(text).split())[:MAX_TODO_TEXT]


def _first(error: ValidationError) -> str:
    detail = error.errors(include_url=False, include_input=False)[0]
    return f"{'.'.join(map(str, detail['loc'])) or 'message'}: {detail['msg']}"


def _json(document: Mapping[str, Any], status: HTTPStatus | int) -> web.Response:
    return web.Response(status=status, body=orjson.dumps(document), content_type="application/json")
