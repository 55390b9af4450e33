"""What may be in a request to a provider. The same through the real proxy: tests/security/test_llm_way_out.py."""

from __future__ import annotations

from typing import Any

import pytest

from runners.gateway.llm_filter import Checked, RequestRefused, check

PATHS = {"anthropic": "v1/messages", "openai": "responses", "gemini": "v1beta/models/m:generateContent"}
FUNCTION = {
    "anthropic": {"name": "Bash", "input_schema": {"type": "object"}},
    "openai": {"type": "function", "name": "exec_command", "parameters": {}},
    "gemini": {"functionDeclarations": [{"name": "run"}]},
}


def look(kind: str, document: Any, *, path: str = "", allowed: tuple[str, ...] = ()) -> Checked:
    return check(kind, document, path=path or PATHS[kind], path_model="", allowed=allowed)


#: Wire format, tool, and the name that allows it.
SERVER_SIDE = [
    ("anthropic", {"type": "web_search_20250305", "name": "web_search"}, "web_search"),
    ("anthropic", {"type": "web_fetch_20250910", "name": "web_fetch"}, "web_fetch"),
    ("anthropic", {"type": "code_execution_20250825", "name": "code_execution"}, "code_execution"),
    ("anthropic", {"type": "mcp_toolset", "mcp_server_name": "x"}, "mcp_toolset"),
    ("anthropic", {"type": "invented_20991231", "name": "x"}, "invented"),
    ("openai", {"type": "web_search"}, "web_search"),
    ("openai", {"type": "web_search_preview_2025_03_11"}, "web_search_preview"),
    ("openai", {"type": "file_search", "vector_store_ids": ["vs_1"]}, "file_search"),
    ("openai", {"type": "code_interpreter", "container": {"type": "auto"}}, "code_interpreter"),
    ("openai", {"type": "mcp", "server_label": "x", "server_url": "https://x.example"}, "mcp"),
    ("openai", {"type": "image_generation"}, "image_generation"),
    ("openai", {"type": "shell", "environment": {"type": "container_auto"}}, "shell"),
    ("openai", {"type": "namespace", "name": "n", "tools": [{"type": "mcp"}]}, "mcp"),
    ("gemini", {"googleSearch": {}}, "googleSearch"),
    ("gemini", {"google_search": {}}, "google_search"),
    ("gemini", {"urlContext": {}}, "urlContext"),
    ("gemini", {"codeExecution": {}}, "codeExecution"),
    ("gemini", {"fileSearch": {}}, "fileSearch"),
    ("gemini", {"googleSearchRetrieval": {}}, "googleSearchRetrieval"),
    ("gemini", {"functionDeclarations": [], "urlContext": {}}, "urlContext"),
]


@pytest.mark.parametrize(("kind", "tool", "name"), SERVER_SIDE)
def test_tools_that_the_provider_runs(kind: str, tool: dict[str, Any], name: str) -> None:
    with pytest.raises(RequestRefused) as caught:
        look(kind, {"tools": [tool]})
    assert repr(name) in str(caught.value)
    assert "CONDUCTOR_LLM_SERVER_TOOLS" in str(caught.value)
    assert look(kind, {"tools": [tool]}, allowed=(name,)).document["tools"] == [tool]
    assert look(kind, {"tools": [tool]}, allowed=("*",)).document["tools"] == [tool]


@pytest.mark.parametrize(
    ("kind", "tool"),
    [
        ("anthropic", FUNCTION["anthropic"]),
        ("anthropic", {"type": "custom", "name": "x", "input_schema": {}}),
        ("anthropic", {"type": None, "name": "x", "input_schema": {}}),
        ("anthropic", {"type": "bash_20250124", "name": "bash"}),
        ("anthropic", {"type": "text_editor_20250728", "name": "str_replace_based_edit_tool"}),
        ("anthropic", {"type": "computer_20250124", "name": "computer"}),
        ("anthropic", {"type": "tool_search_tool_regex_20251119", "name": "tool_search_tool_regex"}),
        ("openai", FUNCTION["openai"]),
        ("openai", {"type": "custom", "name": "apply_patch", "format": {"type": "grammar"}}),
        ("openai", {"type": "local_shell"}),
        ("openai", {"type": "shell"}),
        ("openai", {"type": "shell", "environment": {"type": "local"}}),
        ("openai", {"type": "tool_search", "execution": "client"}),
        ("openai", {"type": "namespace", "name": "n", "tools": [{"type": "function", "name": "x"}]}),
        ("gemini", FUNCTION["gemini"]),
        ("gemini", {"function_declarations": [{"name": "x"}]}),
    ],
)
def test_tools_that_run_inside_pass_as_they_are(kind: str, tool: dict[str, Any]) -> None:
    assert look(kind, {"tools": [tool]}).document["tools"] == [tool]


@pytest.mark.parametrize(
    ("kind", "tools"),
    [
        ("anthropic", "web_search"),
        ("anthropic", ["web_search"]),
        ("anthropic", [{"type": 7}]),
        ("openai", [{"name": "no type"}]),
        ("openai", {"type": "mcp"}),
        ("gemini", ["googleSearch"]),
    ],
)
def test_tools_of_no_known_shape_are_refused(kind: str, tools: object) -> None:
    with pytest.raises(RequestRefused):
        look(kind, {"tools": tools})


def test_what_codex_offers_by_itself_is_taken_out() -> None:
    checked = look(
        "openai", {"tools": [FUNCTION["openai"], {"type": "web_search", "external_web_access": True}]}
    )
    assert checked.document["tools"] == [FUNCTION["openai"]]
    assert checked.taken_out == ("web_search",)


def test_codex_offers_newer_models_their_tools_as_an_item_of_the_input() -> None:
    custom = {"type": "custom", "name": "exec"}
    items = [{"type": "additional_tools", "tools": [custom, {"type": "web_search"}]}]
    assert look("openai", {"input": items}).document["input"][0]["tools"] == [custom]
    with pytest.raises(RequestRefused, match="mcp"):
        look("openai", {"input": [{"type": "tool_search_output", "tools": [custom, {"type": "mcp"}]}]})


@pytest.mark.parametrize(
    ("kind", "field", "value"),
    [
        ("anthropic", "container", "container_011"),
        ("anthropic", "mcp_servers", [{"type": "url", "url": "https://x.example"}]),
        ("openai", "previous_response_id", "resp_1"),
        ("openai", "conversation", "conv_1"),
        ("openai", "prompt", {"id": "pmpt_1"}),
        ("openai", "background", True),
        ("openai", "web_search_options", {}),
        ("openai", "api_base", "https://x.example"),
        ("openai", "plugins", [{"id": "web"}]),
        ("openai", "fallbacks", ["x"]),
        ("gemini", "cachedContent", "cachedContents/1"),
        ("gemini", "cached_content", "cachedContents/1"),
    ],
)
def test_fields_that_lead_elsewhere(kind: str, field: str, value: object) -> None:
    with pytest.raises(RequestRefused, match=field):
        look(kind, {field: value, "messages": []})


def test_nothing_is_kept_at_the_provider() -> None:
    assert look("openai", {"input": "hi"}).document["store"] is False
    assert look("openai", {"input": "hi", "store": True}).document["store"] is False
    chat = look("openai", {"messages": [], "store": True}, path="chat/completions")
    assert "store" not in chat.document


def test_dearer_ways_to_the_same_answer_are_taken_out() -> None:
    assert "service_tier" not in look("openai", {"input": "", "service_tier": "priority"}).document
    assert look("openai", {"input": "", "service_tier": "flex"}).document["service_tier"] == "flex"
    assert "speed" not in look("anthropic", {"messages": [], "speed": "fast"}).document


URL = "https://attacker.example/?stolen"
FETCHED: list[tuple[str, Any]] = [
    ("anthropic", {"type": "image", "source": {"type": "url", "url": URL}}),
    ("anthropic", {"type": "document", "source": {"type": "url", "url": URL}}),
    ("anthropic", {"type": "document", "source": {"type": "file", "file_id": "file_1"}}),
    ("anthropic", {"type": "image", "source": {"type": "newer", "what": URL}}),
    ("anthropic", {"type": "container_upload", "file_id": "file_1"}),
    (
        "anthropic",
        {"type": "tool_result", "content": [{"type": "image", "source": {"type": "url", "url": URL}}]},
    ),
    ("openai", {"type": "input_image", "image_url": URL}),
    ("openai", {"type": "input_image", "file_id": "file_1"}),
    ("openai", {"type": "input_file", "file_url": URL}),
    ("openai", {"type": "input_file", "file_id": "file_1"}),
    ("openai", {"type": "image_url", "image_url": {"url": URL}}),
    ("openai", {"type": "video_url", "video_url": {"url": URL}}),
    ("openai", {"type": "image_url", "image_url": {"url": f" {URL}"}}),
    ("openai", {"type": "file", "file": {"file_id": "file_1"}}),
    ("gemini", {"fileData": {"fileUri": URL}}),
    ("gemini", {"file_data": {"file_uri": URL}}),
    ("gemini", {"FILE_DATA": {"fileUri": URL}}),
    ("gemini", {"functionResponse": {"name": "x", "parts": [{"fileData": {"fileUri": URL}}]}}),
]


def around(kind: str, part: Any) -> dict[str, Any]:
    if kind == "gemini":
        return {"contents": [{"role": "user", "parts": [part]}]}
    key = "input" if kind == "openai" and str(part.get("type")).startswith("input_") else "messages"
    return {key: [{"role": "user", "content": [part]}]}


@pytest.mark.parametrize(("kind", "part"), FETCHED)
def test_content_that_the_provider_would_fetch(kind: str, part: Any) -> None:
    with pytest.raises(RequestRefused, match="inline"):
        look(kind, around(kind, part))


@pytest.mark.parametrize(
    ("kind", "part"),
    [
        ("anthropic", {"type": "image", "source": {"type": "base64", "data": "AA=="}}),
        (
            "anthropic",
            {"type": "tool_use", "name": "x", "input": {"type": "image", "source": {"type": "url"}}},
        ),
        ("anthropic", {"type": "text", "text": URL}),
        ("openai", {"type": "input_image", "image_url": "data:image/png;base64,AA=="}),
        ("openai", {"type": "image_url", "image_url": {"url": "data:image/png;base64,AA=="}}),
        (
            "openai",
            {"type": "input_file", "filename": "a.pdf", "file_data": "data:application/pdf;base64,AA=="},
        ),
        ("gemini", {"inlineData": {"mimeType": "image/png", "data": "AA=="}}),
        ("gemini", {"functionCall": {"name": "x", "args": {"fileData": {"fileUri": URL}}}}),
        ("gemini", {"functionResponse": {"name": "x", "response": {"fileData": 1}}}),
    ],
)
def test_content_that_is_inline_passes_as_it_is(kind: str, part: Any) -> None:
    document = around(kind, part)
    assert look(kind, document).document.items() >= document.items()


def test_counting_tokens_of_a_request_looks_into_it() -> None:
    inner = {"model": "models/m", **around("gemini", {"fileData": {"fileUri": URL}})}
    with pytest.raises(RequestRefused):
        look("gemini", {"generateContentRequest": inner}, path="v1beta/models/m:countTokens")


def test_an_item_by_reference_is_refused() -> None:
    with pytest.raises(RequestRefused):
        look("openai", {"input": [{"type": "item_reference", "id": "msg_1"}]})


@pytest.mark.parametrize(
    "model", ["gpt-4o-search-preview", "openai/gpt-5:online", "o3-deep-research", "sonar-pro"]
)
def test_models_that_search_by_themselves(model: str) -> None:
    with pytest.raises(RequestRefused, match="searches the web"):
        look("openai", {"model": model, "messages": []})
    assert look("openai", {"model": model}, allowed=("web_search",)).model == model


@pytest.mark.parametrize("document", [None, [], "x", 3])
def test_a_body_that_is_no_object(document: object) -> None:
    with pytest.raises(RequestRefused, match="JSON object"):
        look("anthropic", document)


def test_content_that_is_nested_without_end() -> None:
    deep: Any = "x"
    for _ in range(200):
        deep = [deep]
    with pytest.raises(RequestRefused, match="nested"):
        look("anthropic", {"messages": deep})


@pytest.mark.parametrize(
    ("kind", "document", "expected"),
    [
        ("anthropic", {"max_tokens": 32000}, 32000),
        ("openai", {"max_output_tokens": 50}, 50),
        ("openai", {"max_completion_tokens": 50, "n": 4}, 200),
        ("openai", {}, None),
        ("openai", {"max_tokens": "many"}, None),
        ("gemini", {"generationConfig": {"maxOutputTokens": 7, "candidateCount": 2}}, 14),
    ],
)
def test_the_longest_answer_that_is_asked_for(
    kind: str, document: dict[str, Any], expected: int | None
) -> None:
    assert look(kind, document).max_output == expected
