"""mini-swe-agent (https://mini-swe-agent.com), which has one tool, bash, and no sessions to go on with.

It is driven by our adapter ``adapters/mini.py``; see there why. SIGTERM ends it at once, but not the command that it
runs: that one has a session of its own and is ended by the shim's sweep.
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
#: How often a call is made before it counts as failed; the waits between are 4 seconds and more.
TRIES = 4
#: How long one command may take; its own default of 30 seconds is too short for most test suites.
COMMAND_SECONDS = 600


def _start(turn: Turn, gateway: str, token: str) -> Command:
    model = model_of(turn, "mini")
    settings = {
        "model": f"{model.provider}/{model.name}",  # as litellm wants it
        "base_url": model.base_url(gateway),
        "command_seconds": COMMAND_SECONDS,
    }
    env = {
        TOKEN_VARIABLE: token,
        "LITELLM_LOCAL_MODEL_COST_MAP": "True",
        "MSWEA_CONFIGURED": "true",
        "MSWEA_SILENT_STARTUP": "1",
        "MSWEA_MODEL_RETRY_STOP_AFTER_ATTEMPT": str(TRIES),
    }
    command = in_own_python("mini", "mini", stdin=turn.prompt, env=env)
    return replace(command, files={**command.files, f"{FOLDER}/turn.json": json.dumps(settings)})


MINI = CliAgent(
    name="mini",
    version="2.4.6",
    llm="openai",
    instruction_file=None,
    session_paths=(),
    start=_start,
    translate=read_events,
)
