"""One turn of mini-swe-agent (2.4), by its Python API, with events of ours (``runners.agents.adapter``) on stdout.

Its command line takes the task as an argument only (at most 128 KiB, and every process can read it), and prints for
people. Here it is a library (https://mini-swe-agent.com/latest/advanced/cookbook/) with its own configuration
``mini.yaml``: what it tells is what it would write to its trajectory file, as it comes.

Runs in its interpreter. The task is standard input, the rest ``turn.json`` beside this file; $AGENT_LLM_TOKEN is the
key.
"""

from __future__ import annotations

import json
import logging
import os
import sys
from pathlib import Path
from typing import Any


class Events:
    """Prints events on what was standard output; whatever else is printed goes to standard error."""

    def __init__(self) -> None:
        self._out = os.fdopen(os.dup(1), "w", encoding="utf-8", errors="replace")
        os.dup2(2, 1)

    def tell(self, kind: str, text: str = "", **values: object) -> None:
        """Print one event."""
        self._out.write(json.dumps({"kind": kind, "text": text, **values}) + "\n")
        self._out.flush()


class Retries(logging.Handler):
    """Tells the failed calls that are tried again; the library only logs them."""

    def __init__(self, events: Events) -> None:
        super().__init__(logging.WARNING)
        self._events = events

    def emit(self, record: logging.LogRecord) -> None:
        """Tell one."""
        self._events.tell("retry", record.getMessage(), ok=False)


def main() -> int:
    """Run the turn; 0 when the agent submitted its work."""
    events = Events()
    task = sys.stdin.read()
    turn = json.loads(Path(__file__).with_name("turn.json").read_text("utf-8"))
    token = os.environ.pop("AGENT_LLM_TOKEN")  # the commands of the agent have no use for it
    events.tell("started", turn["model"])

    # these take seconds
    from minisweagent.agents.default import DefaultAgent
    from minisweagent.config import get_config_from_spec
    from minisweagent.environments.local import LocalEnvironment
    from minisweagent.models.litellm_model import LitellmModel

    logging.getLogger("litellm_model").addHandler(Retries(events))
    config = get_config_from_spec("mini.yaml")
    options = {**config["model"], "model_name": turn["model"], "cost_tracking": "ignore_errors"}
    options["model_kwargs"] = {
        **options.get("model_kwargs", {}),
        "api_base": turn["base_url"],
        "api_key": token,
        "max_retries": 0,  # of the client below the library, which tries again by itself
    }
    if turn["model"].startswith("anthropic/"):
        options["set_cache_control"] = "default_end"
    environment = {**config["environment"], "timeout": turn["command_seconds"]}

    class Teller(DefaultAgent):  # type: ignore[misc]
        """The agent, which tells each message."""

        def add_messages(self, *messages: dict[str, Any]) -> list[dict[str, Any]]:
            for message in messages:
                _tell(events, message)
            return list(super().add_messages(*messages))

    # the money is counted outside, where the agent cannot count it differently
    settings = {key: config["agent"][key] for key in ("system_template", "instance_template")}
    agent = Teller(
        LitellmModel(**options), LocalEnvironment(**environment), **settings, cost_limit=0, step_limit=0
    )
    status, words = "", ""
    try:
        ended = agent.run(task)
        status, words = str(ended.get("exit_status")), str(ended.get("submission", "")).strip()
    except Exception as error:  # whatever it was: it is the turn's end
        status, words = type(error).__name__, str(error)
    if status == "Submitted":
        events.tell("final", words)
        return 0
    words = words.partition(" You can permanently set your API key")[0]  # advice for another place than this
    events.tell("final", words or status, ok=False)
    return 1


def _tell(events: Events, message: dict[str, Any]) -> None:
    role, content = message.get("role"), message.get("content") or ""
    words = content if isinstance(content, str) else json.dumps(content)
    if role == "assistant":
        if words.strip():
            events.tell("text", words)
        for action in message.get("extra", {}).get("actions", []):
            events.tell("tool", f"bash: {action.get('command', '')}")
    elif role == "tool":
        extra = message.get("extra", {})
        events.tell("tool_result", str(extra.get("raw_output", words)), ok=extra.get("returncode") == 0)
    elif message.get("extra", {}).get("interrupt_type") == "FormatError":
        events.tell("error", words, ok=False)  # an answer without a command: the model is told so


if __name__ == "__main__":
    sys.exit(main())
