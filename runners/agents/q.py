"""Amazon Q Developer's CLI, which is the Kiro CLI now (``kiro-cli``). NOT RUN HERE: written from its documentation.

It comes from no package registry and speaks to a service of its own with a key of its own, so we could neither install
nor drive it. Every fact is from https://kiro.dev/docs/cli/headless/ (prompt on standard input, KIRO_API_KEY, output for
people), https://kiro.dev/docs/cli/reference/exit-codes (0 success, 1 failure) and
https://kiro.dev/docs/cli/chat/session-management (sessions for each folder, below ``~/.kiro``). Its output is plain
text, so it is judged by its exit code and its ``<result>`` block.

Its service cannot be put behind the gateway: the key is in the container, and its hosts must be on the egress proxy's
allow-list. That breaks the promise that nothing secret is inside; the operator agrees to it by setting the key.
"""

from __future__ import annotations

from bot.config import Settings
from bot.errors import ConfigurationError
from bot.ports import Command, Installation, Turn
from runners.agents.adapter import around_text, read_events
from runners.agents.cli import CliAgent

PROGRAM = "kiro-cli"


def q_agent(settings: Settings | None) -> CliAgent:
    """The agent with the operator's key and installation; without settings one that cannot be started."""
    key = settings.kiro_api_key.get_secret_value().strip() if settings else ""

    def start(turn: Turn, gateway: str, token: str) -> Command:
        del gateway, token  # it knows no other service than its own
        if not key:
            raise ConfigurationError(
                "The agent q has no key.",
                "The operator must set CONDUCTOR_KIRO_API_KEY; the agent can read it.",
            )
        argv = [PROGRAM, "chat", "--no-interactive", "--trust-all-tools", "--wrap", "never"]
        if turn.model:
            argv += ["--model", turn.model]
        if turn.resume:
            argv.append("--resume")  # the latest of this folder; there is only one in the container
        env = {"KIRO_API_KEY": key, "NO_COLOR": "1"}
        return around_text(argv, session_id=turn.session_id, stdin=turn.prompt, env=env)

    return CliAgent(
        name="q",
        version="",
        llm="own",
        instruction_file="AGENTS.md",
        session_paths=(".kiro/sessions", ".local/share/kiro-cli"),
        start=start,
        translate=read_events,
        installation=Installation(program=PROGRAM, commands=settings.kiro_install if settings else ()),
    )
