"""Count tokens and money in what an LLM provider answers, while the answer streams past.

Four wire formats, each as server-sent events or as one JSON document:

* Anthropic Messages: ``message_start.message.usage`` and ``message_delta.usage``, whose counts are cumulative
  (https://docs.anthropic.com/en/api/messages-streaming). ``input_tokens`` leaves the cached ones out.
* OpenAI Responses: the ``usage`` of the response in ``response.completed`` (or ``incomplete``, ``failed``;
  https://platform.openai.com/docs/api-reference/responses-streaming).
* OpenAI chat completions: a last chunk with ``usage``, which only comes when the client asked for it by
  ``stream_options.include_usage`` (https://platform.openai.com/docs/api-reference/chat/streaming).

* Gemini: ``usageMetadata`` in every event, the last one counts (https://ai.google.dev/api/generate-content).
  Thoughts are not part of ``candidatesTokenCount``. Without ``alt=sse`` a stream is one JSON array.

OpenAI's and Google's formats count cached tokens within the input tokens; a :class:`~bot.model.Usage` never does.
An answer whose numbers did not come is counted by :meth:`UsageReader.estimate`.
"""

from __future__ import annotations

import dataclasses
from collections.abc import Callable, Mapping
from typing import Any, Protocol

import orjson

from bot.model import Usage

#: The longest line of a stream or JSON document that we look into. A Responses stream repeats the whole
#: answer in its last event; nothing that a model writes in one go comes near this.
MAX_DOCUMENT = 16 * 2**20

MILLION = 1_000_000

#: Of a request's JSON: a rule of thumb, rather too high a count for English and code.
BYTES_PER_TOKEN = 4


#: So many times the price of input costs what Anthropic's cache keeps for an hour, not for five minutes
#: (https://platform.claude.com/docs/en/about-claude/pricing#prompt-caching).
HOUR_WRITE = 2


class Price(Protocol):
    """What a model costs, in US dollars for a million tokens (``bot.config.Price``)."""

    @property
    def input(self) -> float:
        """Tokens sent that were in no cache."""

    @property
    def output(self) -> float:
        """Tokens generated."""

    @property
    def cached(self) -> float | None:
        """Tokens read from the cache; None: as ``input``."""

    @property
    def cache_write(self) -> float | None:
        """Tokens written to the cache; None: as ``input``."""

    def for_prompt(self, tokens: int) -> Price:
        """The price of a call that sends so many tokens, those from the cache included."""


def price(
    usage: Usage, model: str, price_of: Callable[[str], Price | None], *, kept_for_an_hour: int = 0
) -> Usage:
    """``usage`` with its cost by ``price_of(model)``; the cost is None when ``model`` has no known price.

    ``kept_for_an_hour``: so many of its tokens were written to the cache for longer than usual.
    """
    known = price_of(model) if model else None
    if known is None:
        return dataclasses.replace(usage, cost=None)
    known = known.for_prompt(usage.input_tokens + usage.cached_tokens + usage.cache_write_tokens)
    cached = known.input if known.cached is None else known.cached
    written = known.input if known.cache_write is None else known.cache_write
    dollars = (
        usage.input_tokens * known.input
        + usage.output_tokens * known.output
        + usage.cached_tokens * cached
        + (usage.cache_write_tokens - kept_for_an_hour) * written
        + kept_for_an_hour * known.input * HOUR_WRITE
    )
    return dataclasses.replace(usage, cost=dollars / MILLION)


class UsageReader:
    """Reads one answer of a provider piece by piece, wherever its pieces are cut.

    Feed it every chunk and then ``close`` it. An answer that ends early, or is no answer at all, leaves
    what was seen until then; odd input is passed over, never an error, for this must not break a stream.
    """

    def __init__(self, content_type: str) -> None:
        self._stream = content_type.partition(";")[0].strip().lower() == "text/event-stream"
        self._buffer = bytearray()
        self._scanned = 0  # so much of the buffer is known to hold no line end
        self._skipping = False  # the rest of a document beyond MAX_DOCUMENT
        self._counts: dict[str, int] = {}
        self._hour = 0  # of the tokens written to the cache
        self._bytes = 0  # of an answer that is no stream
        self._pieces = 0  # events with a part of the answer: each is a token or more
        self.model = ""  # as the provider names it
        self.complete = False  # whether the provider told the final numbers

    def feed(self, chunk: bytes) -> None:
        """Take the next bytes of the answer's body."""
        if not self._stream:
            self._bytes += len(chunk)
            if not self._skipping:
                self._buffer += chunk
                self._drop_when_too_long()
            return
        self._buffer += chunk
        while (end := self._buffer.find(b"\n", self._scanned)) >= 0:
            line = bytes(self._buffer[:end])
            del self._buffer[: end + 1]
            self._scanned = 0
            if not self._skipping:
                self._line(line)
            self._skipping = False
        self._scanned = len(self._buffer)
        self._drop_when_too_long()

    def close(self) -> None:
        """The answer is over: look into what has no line end, or at the JSON document as a whole."""
        rest, self._buffer = bytes(self._buffer), bytearray()
        if self._skipping:
            return
        if self._stream:
            self._line(rest)
        else:
            self._document(rest)

    @property
    def kept_for_an_hour(self) -> int:
        """How many of the tokens that were written to the cache are kept there for an hour."""
        return min(self._hour, self._counts.get("cache_write_tokens", 0))

    @property
    def usage(self) -> Usage:
        """What was seen so far, as one request without a price."""
        return Usage(requests=1, **self._counts)

    def estimate(self, request_bytes: int) -> Usage:
        """What an answer without its numbers did cost at least: what was told, and for the rest its length.

        Providers tell the numbers at the end, so that leaving early must not make an answer free.
        """
        told = self.usage
        sent = told.input_tokens + told.cached_tokens + told.cache_write_tokens
        return dataclasses.replace(
            told,
            input_tokens=told.input_tokens if sent else request_bytes // BYTES_PER_TOKEN,
            output_tokens=max(told.output_tokens, self._pieces, self._bytes // BYTES_PER_TOKEN),
        )

    def _drop_when_too_long(self) -> None:
        if len(self._buffer) > MAX_DOCUMENT:
            self._buffer.clear()
            self._scanned = 0
            self._skipping = True

    def _line(self, line: bytes) -> None:
        if not line.startswith(b"data:"):
            return
        self._pieces += b'delta"' in line or b'"candidates"' in line
        # Most lines carry a few words of text; parsing those as JSON would cost more than all the rest.
        if b'"usage"' in line or b'"model"' in line or b'"usageMetadata"' in line:
            self._document(line[len(b"data:") :])

    def _document(self, text: bytes) -> None:
        try:
            document = orjson.loads(text.strip() or b"null")
        except orjson.JSONDecodeError:
            return
        for part in document if isinstance(document, list) else [document]:
            if isinstance(part, dict):
                self._message(part)

    def _message(self, document: Mapping[str, Any]) -> None:
        kind = document.get("type")
        if kind == "message_start":
            self._anthropic(_mapping(document.get("message")), final=False)
        elif kind in ("message_delta", "message"):  # "message": an answer that is no stream
            self._anthropic(document, final=True)
        elif isinstance(kind, str) and kind.startswith("response."):
            self._responses(_mapping(document.get("response")))
        elif document.get("object") == "response":
            self._responses(document)
        elif str(document.get("object")).startswith("chat.completion"):
            self._chat(document)
        elif "usageMetadata" in document:
            self._gemini(document)

    def _name(self, message: Mapping[str, Any]) -> None:
        model = message.get("model")
        if isinstance(model, str) and model:
            self.model = model

    def _anthropic(self, message: Mapping[str, Any], *, final: bool) -> None:
        self._name(message)
        usage = message.get("usage")
        if not isinstance(usage, dict):
            return
        for ours, theirs in (
            ("input_tokens", "input_tokens"),
            ("output_tokens", "output_tokens"),
            ("cached_tokens", "cache_read_input_tokens"),
            ("cache_write_tokens", "cache_creation_input_tokens"),
        ):
            if theirs in usage and usage[theirs] is not None:
                self._counts[ours] = _count(usage, theirs)
        if isinstance(written := usage.get("cache_creation"), dict):
            self._hour = _count(written, "ephemeral_1h_input_tokens")
        self.complete = self.complete or final

    def _responses(self, response: Mapping[str, Any]) -> None:
        self._name(response)
        self._openai(response.get("usage"), "input_tokens", "output_tokens", "input_tokens_details")

    def _chat(self, chunk: Mapping[str, Any]) -> None:
        self._name(chunk)
        self._openai(chunk.get("usage"), "prompt_tokens", "completion_tokens", "prompt_tokens_details")

    def _openai(self, usage: object, sent: str, generated: str, details: str) -> None:
        if not isinstance(usage, dict):
            return
        parts = _mapping(usage.get(details))
        cached = _count(parts, "cached_tokens")
        written = _count(parts, "cache_write_tokens")
        self._counts = {
            "input_tokens": max(0, _count(usage, sent) - cached - written),
            "output_tokens": _count(usage, generated),
            "cached_tokens": cached,
            "cache_write_tokens": written,
        }
        self.complete = True

    def _gemini(self, chunk: Mapping[str, Any]) -> None:
        self._name({"model": chunk.get("modelVersion")})
        usage = _mapping(chunk.get("usageMetadata"))
        cached = _count(usage, "cachedContentTokenCount")
        sent = _count(usage, "promptTokenCount") + _count(usage, "toolUsePromptTokenCount")
        self._counts = {
            "input_tokens": max(0, sent - cached),
            "output_tokens": _count(usage, "candidatesTokenCount") + _count(usage, "thoughtsTokenCount"),
            "cached_tokens": cached,
        }
        candidates = chunk.get("candidates")
        ends = (
            [_mapping(one).get("finishReason") for one in candidates] if isinstance(candidates, list) else []
        )
        # a prompt that was blocked has no candidates at all
        self.complete = self.complete or any(ends) or "promptFeedback" in chunk


def _mapping(value: object) -> Mapping[str, Any]:
    return value if isinstance(value, dict) else {}


def _count(values: Mapping[str, Any], key: str) -> int:
    value = values.get(key)
    return value if isinstance(value, int) and value > 0 else 0
