"""The wire formats: a turn as the events that each provider would send, or as one JSON document."""

from __future__ import annotations

import json
import uuid
from collections.abc import Iterator
from typing import Any

from tests.llm.script import Turn

Event = tuple[str | None, Any]  # the SSE event's name (None: none) and its data

ERROR_TYPES = {
    400: "invalid_request_error",
    401: "authentication_error",
    403: "permission_error",
    404: "not_found_error",
    429: "rate_limit_error",
    500: "api_error",
    529: "overloaded_error",
}


#: https://ai.google.dev/gemini-api/docs/troubleshooting
GOOGLE_STATUSES = {
    400: "INVALID_ARGUMENT",
    401: "UNAUTHENTICATED",
    403: "PERMISSION_DENIED",
    404: "NOT_FOUND",
    429: "RESOURCE_EXHAUSTED",
    500: "INTERNAL",
    503: "UNAVAILABLE",
    504: "DEADLINE_EXCEEDED",
}


def new_id(prefix: str) -> str:
    return f"{prefix}_{uuid.uuid4().hex[:20]}"


def error_body(protocol: str, error: dict[str, Any]) -> dict[str, Any]:
    kind = error.get("type") or ERROR_TYPES.get(error["status"], "api_error")
    message = error.get("message") or kind.replace("_", " ")
    if protocol == "gemini":
        # https://google.aip.dev/193; `details` is where Google says more, such as when to come back
        status = error.get("type") or GOOGLE_STATUSES.get(error["status"], "UNKNOWN")
        more = {"details": error["details"]} if "details" in error else {}
        return {"error": {"code": error["status"], "message": message, "status": status, **more}}
    if protocol == "messages":
        return {"type": "error", "error": {"type": kind, "message": message}, "request_id": new_id("req")}
    return {"error": {"message": message, "type": kind, "code": error.get("code", kind), "param": None}}


# --- Anthropic Messages --------------------------------------------------------------------------


def messages_document(turn: Turn, model: str) -> dict[str, Any]:
    content: list[dict[str, Any]] = [{"type": "text", "text": turn.text}] if turn.text else []
    content += [
        {"type": "tool_use", "id": new_id("toolu"), "name": call["name"], "input": call.get("input", {})}
        for call in turn.calls
    ]
    tokens = turn.tokens
    return {
        "id": new_id("msg"),
        "type": "message",
        "role": "assistant",
        "model": model,
        "content": content,
        "stop_reason": "tool_use" if turn.calls else "end_turn",
        "stop_sequence": None,
        "usage": {
            "input_tokens": tokens["input"],
            "output_tokens": tokens["output"],
            "cache_read_input_tokens": tokens["cached"],
            "cache_creation_input_tokens": tokens["cache_write"],
        },
    }


def messages_events(turn: Turn, model: str) -> Iterator[Event]:
    whole = messages_document(turn, model)
    start = {"content": [], "stop_reason": None, "usage": {**whole["usage"], "output_tokens": 1}}
    yield "message_start", {"type": "message_start", "message": {**whole, **start}}
    for index, block in enumerate(whole["content"]):
        if block["type"] == "text":
            empty: dict[str, Any] = {"type": "text", "text": ""}
            delta = {"type": "text_delta", "text": block["text"]}
        else:
            empty = {**block, "input": {}}
            delta = {"type": "input_json_delta", "partial_json": json.dumps(block["input"])}
        at = {"index": index}
        yield "content_block_start", {"type": "content_block_start", **at, "content_block": empty}
        yield "content_block_delta", {"type": "content_block_delta", **at, "delta": delta}
        yield "content_block_stop", {"type": "content_block_stop", **at}
    yield (
        "message_delta",
        {
            "type": "message_delta",
            "delta": {"stop_reason": whole["stop_reason"], "stop_sequence": None},
            "usage": {"output_tokens": whole["usage"]["output_tokens"]},
        },
    )
    yield "message_stop", {"type": "message_stop"}


# --- OpenAI Responses ----------------------------------------------------------------------------


def responses_document(turn: Turn, model: str) -> dict[str, Any]:
    output: list[dict[str, Any]] = []
    if turn.text:
        part = {"type": "output_text", "text": turn.text, "annotations": []}
        output.append(
            {
                "type": "message",
                "id": new_id("msg"),
                "role": "assistant",
                "status": "completed",
                "content": [part],
            }
        )
    for call in turn.calls:
        item = {"call_id": new_id("call"), "name": call["name"], "status": "completed"}
        if "namespace" in call:  # of the tools of an MCP server
            item["namespace"] = call["namespace"]
        if "raw" in call:
            item |= {"type": "custom_tool_call", "id": new_id("ctc"), "input": call["raw"]}
        else:
            arguments = json.dumps(call.get("input", {}))
            item |= {"type": "function_call", "id": new_id("fc"), "arguments": arguments}
        output.append(item)
    tokens = turn.tokens
    sent = tokens["input"] + tokens["cached"] + tokens["cache_write"]  # OpenAI's input includes the cached
    return {
        "id": new_id("resp"),
        "object": "response",
        "created_at": 1_700_000_000,
        "status": "completed",
        "model": model,
        "output": output,
        "error": None,
        "parallel_tool_calls": True,
        "tool_choice": "auto",
        "tools": [],
        "usage": {
            "input_tokens": sent,
            "input_tokens_details": {"cached_tokens": tokens["cached"]},
            "output_tokens": tokens["output"],
            "output_tokens_details": {"reasoning_tokens": 0},
            "total_tokens": sent + tokens["output"],
        },
    }


def responses_events(turn: Turn, model: str) -> Iterator[Event]:
    whole = responses_document(turn, model)
    numbered = 0

    def event(kind: str, **values: Any) -> Event:
        nonlocal numbered
        numbered += 1
        return kind, {"type": kind, "sequence_number": numbered - 1, **values}

    yield event("response.created", response={**whole, "status": "in_progress", "output": [], "usage": None})
    for index, item in enumerate(whole["output"]):
        at = {"output_index": index, "item_id": item["id"]}
        begun = {**item, "status": "in_progress"}
        if item["type"] == "message":
            part = item["content"][0]
            yield event("response.output_item.added", output_index=index, item={**begun, "content": []})
            inside = {**at, "content_index": 0}
            yield event("response.content_part.added", **inside, part={**part, "text": ""})
            yield event("response.output_text.delta", **inside, delta=part["text"])
            yield event("response.output_text.done", **inside, text=part["text"])
            yield event("response.content_part.done", **inside, part=part)
        elif item["type"] == "function_call":
            yield event("response.output_item.added", output_index=index, item={**begun, "arguments": ""})
            yield event("response.function_call_arguments.delta", **at, delta=item["arguments"])
            yield event("response.function_call_arguments.done", **at, arguments=item["arguments"])
        else:
            yield event("response.output_item.added", output_index=index, item={**begun, "input": ""})
            yield event("response.custom_tool_call_input.delta", **at, delta=item["input"])
            yield event("response.custom_tool_call_input.done", **at, input=item["input"])
        yield event("response.output_item.done", output_index=index, item=item)
    yield event("response.completed", response=whole)


# --- OpenAI chat completions ---------------------------------------------------------------------


def chat_document(turn: Turn, model: str) -> dict[str, Any]:
    message: dict[str, Any] = {"role": "assistant", "content": turn.text or None}
    if turn.calls:
        message["tool_calls"] = [
            {
                "id": new_id("call"),
                "type": "function",
                "function": {"name": call["name"], "arguments": json.dumps(call.get("input", {}))},
            }
            for call in turn.calls
        ]
    tokens = turn.tokens
    sent = tokens["input"] + tokens["cached"] + tokens["cache_write"]
    return {
        "id": new_id("chatcmpl"),
        "object": "chat.completion",
        "created": 1_700_000_000,
        "model": model,
        "choices": [
            {"index": 0, "message": message, "finish_reason": "tool_calls" if turn.calls else "stop"}
        ],
        "usage": {
            "prompt_tokens": sent,
            "completion_tokens": tokens["output"],
            "total_tokens": sent + tokens["output"],
            "prompt_tokens_details": {"cached_tokens": tokens["cached"]},
        },
    }


def chat_events(turn: Turn, model: str, *, include_usage: bool) -> Iterator[Event]:
    whole = chat_document(turn, model)
    message, finish = whole["choices"][0]["message"], whole["choices"][0]["finish_reason"]
    frame = {
        "id": whole["id"],
        "object": "chat.completion.chunk",
        "created": whole["created"],
        "model": model,
    }

    def chunk(delta: dict[str, Any], finish_reason: str | None = None) -> Event:
        return None, {**frame, "choices": [{"index": 0, "delta": delta, "finish_reason": finish_reason}]}

    yield chunk({"role": "assistant", "content": ""})
    if message["content"]:
        yield chunk({"content": message["content"]})
    for index, call in enumerate(message.get("tool_calls", ())):
        yield chunk({"tool_calls": [{"index": index, **call}]})
    yield chunk({}, finish)
    if include_usage:
        yield None, {**frame, "choices": [], "usage": whole["usage"]}
    yield None, "[DONE]"


# --- Gemini generateContent (https://ai.google.dev/api/generate-content) ------------------------------


def gemini_document(turn: Turn, model: str) -> dict[str, Any]:
    parts: list[dict[str, Any]] = [{"text": turn.text}] if turn.text else []
    parts += [{"functionCall": {"name": call["name"], "args": call.get("input", {})}} for call in turn.calls]
    tokens = turn.tokens
    sent = tokens["input"] + tokens["cached"] + tokens["cache_write"]  # Google's count includes the cached
    return {
        "candidates": [{"content": {"parts": parts, "role": "model"}, "finishReason": "STOP", "index": 0}],
        "usageMetadata": {
            "promptTokenCount": sent,
            "candidatesTokenCount": tokens["output"],
            "totalTokenCount": sent + tokens["output"],
            "promptTokensDetails": [{"modality": "TEXT", "tokenCount": sent}],
            **({"cachedContentTokenCount": tokens["cached"]} if tokens["cached"] else {}),
        },
        "modelVersion": model,
        "responseId": new_id("g"),
    }


def gemini_events(turn: Turn, model: str) -> Iterator[Event]:
    """The text comes in two pieces, cut anywhere, as it does from the real one; the last event ends it."""
    whole = gemini_document(turn, model)
    usage = whole["usageMetadata"]
    frame = {"modelVersion": model, "responseId": whole["responseId"]}

    def chunk(part: dict[str, Any], *, last: bool = False) -> Event:
        candidate = {"content": {"parts": [part], "role": "model"}, "index": 0}
        # the counts so far: what went in is known at once, what came out only at the end
        counts = usage if last else {"promptTokenCount": usage["promptTokenCount"]}
        return None, {
            "candidates": [{**candidate, "finishReason": "STOP"} if last else candidate],
            "usageMetadata": counts,
            **frame,
        }

    half = len(turn.text) // 2
    yield chunk({"text": turn.text[:half]})
    yield chunk({"text": turn.text[half:]})
    for part in whole["candidates"][0]["content"]["parts"]:
        if "functionCall" in part:
            yield chunk(part)
    yield chunk({"text": ""}, last=True)
