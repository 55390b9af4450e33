"""A scripted stand-in for the LLM providers: what the "model" answers is data.

In a test::

    async with ScriptedLlm(Script.of([{"text": "hello"}])) as llm:
        ...  # llm.url is the base for Anthropic and Gemini, llm.url + "/v1" for OpenAI
        assert llm.requests[0].headers["x-api-key"] == "the-real-key"

As a program: ``python -m tests.llm --script story.yaml --port 9100 --log requests.jsonl``.
"""

from tests.llm.script import Script
from tests.llm.server import Recorded, ScriptedLlm

__all__ = ["Recorded", "Script", "ScriptedLlm"]
