"""aider (https://aider.chat), which edits by what the model writes, without tools.

It is driven by our adapter ``adapters/aider.py``; see there why. A session is its chat history and the list of files
that were in the chat. SIGTERM ends it at once; what it had written by then stays.
"""

from __future__ import annotations

import json
from dataclasses import replace

from bot.ports import Command, Turn
from runners.agents.adapter import FOLDER, in_own_python, read_events
from runners.agents.cli import CliAgent
from runners.agents.models import model_of

#: The variable with the attempt's token; the adapter takes it out of the environment.
TOKEN_VARIABLE = "AGENT_LLM_TOKEN"  # noqa: S105 - a name, no secret
SESSION = ".aider-session"
#: Seconds; waits double from a quarter of a second up to this one, so a provider gets 16 seconds to recover.
LONGEST_WAIT = 8
#: A model price list of nearly nothing: without a fresh one aider fetches it from the network at every start.
_PRICES = {".aider/caches/model_prices_and_context_window.json": '{"unknown": {}}'}


def _start(turn: Turn, gateway: str, token: str) -> Command:
    model = model_of(turn, "aider")
    settings = {
        "model": f"{model.provider}/{model.name}",  # as litellm wants it
        "base_url": model.base_url(gateway),
        "session_id": turn.session_id,
        "session_folder": SESSION,
        "resume": turn.resume,
        "longest_wait": LONGEST_WAIT,
    }
    env = {
        TOKEN_VARIABLE: token,
        "LITELLM_LOCAL_MODEL_COST_MAP": "True",
        "NO_COLOR": "1",
    }
    command = in_own_python("aider", "aider", stdin=turn.prompt, env=env)
    return replace(command, files={**command.files, **_PRICES, f"{FOLDER}/turn.json": json.dumps(settings)})


AIDER = CliAgent(
    name="aider",
    version="0.86.2",
    llm="openai",
    instruction_file="AGENTS.md",
    session_paths=(SESSION,),
    start=_start,
    translate=read_events,
)
