"""Live words (``bot.live_words``): between two tool calls a CLI asks here what its agent has been told meanwhile.

The question and the answer are those of Claude Code's hooks: https://code.claude.com/docs/en/hooks. A CLI goes on when
it gets an error or no answer in time; the words then wait for its next question, or for the end of the turn.
"""

from __future__ import annotations

import asyncio
from collections.abc import Awaitable, Callable, Sequence
from typing import Literal

import orjson
import structlog
from aiohttp import web
from pydantic import BaseModel, ConfigDict, ValidationError
from sqlalchemy.exc import SQLAlchemyError

from bot.live_words import Said, live_words
from runners.gateway import bodies
from runners.gateway.desk import BadMessage, Desk

#: Bytes of a question. It holds what the tool answered, which may be the picture of a page.
MAX_BODY = 16 << 20
STORE_SECONDS = 1.0  # the agent waits for us

log = structlog.get_logger(__name__)


class _Question(BaseModel):
    """What is read of a hook's input."""

    model_config = ConfigDict(extra="ignore")

    hook_event_name: Literal["PostToolUse", "PostToolUseFailure"]
    agent_id: str = ""  # of a sub-agent: what people say is for the agent itself


class LiveWordsRoute:
    """Serves ``/live-words`` for all attempts of a worker."""

    def __init__(self, waiting: Callable[[str], Awaitable[Sequence[Said]]]) -> None:
        """``waiting``: what the agent of an attempt (by its id) may be told now (``Store.live_words``)."""
        self._waiting = waiting

    async def serve(self, request: web.Request, desk: Desk, tail: str) -> web.StreamResponse:
        """Answer ``request``; the caller has checked the attempt's token."""
        if tail:
            return web.json_response({"error": "Live words are at /live-words."}, status=404)
        if request.method != "POST":
            return web.Response(status=405, headers={"Allow": "POST"})
        body = await bodies.whole(request, MAX_BODY)
        if not desk.hears:
            return web.Response(status=204)
        try:
            async with asyncio.timeout(STORE_SECONDS):
                waiting = await self._waiting(desk.attempt_id)
        except (SQLAlchemyError, OSError) as error:  # TimeoutError is an OSError
            log.warning("live words not asked for", attempt=desk.attempt_id, error=str(error))
            return web.json_response({"error": "The database does not answer."}, status=503)
        # nothing waits between here and the note on the desk: of two questions at once one gets them
        handed_over = {one.event for words in desk.live_words for one in words.said}
        waiting = [one for one in waiting if one.event not in handed_over]
        if not waiting or not desk.hears:
            return web.Response(status=204)
        try:
            question = _Question.model_validate_json(body)
        except ValidationError as error:
            raise BadMessage("This is not the input of a hook after a tool call.") from error
        words = None if question.agent_id else live_words(desk.turns_given, waiting)
        if words is None:
            return web.Response(status=204)
        desk.hand_over(words)
        log.info("live words", attempt=desk.attempt_id, turn=words.turn, count=len(words.said))
        about = {"hookEventName": question.hook_event_name, "additionalContext": words.text}
        answer = orjson.dumps({"hookSpecificOutput": about})
        return web.Response(body=answer, content_type="application/json")
