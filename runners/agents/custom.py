"""An agent of the operator's own, by configuration alone (``bot.agent_config.CustomAgent``)."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import replace

from bot.agent_config import CustomAgent, placeholders_in
from bot.errors import ConfigurationError
from bot.ports import Command, Installation, Turn
from runners.agents.adapter import FOLDER, around_text, read_events
from runners.agents.claude import CLAUDE
from runners.agents.cli import CliAgent
from runners.agents.codex import CODEX

_PROMPT = f"{FOLDER}/prompt.md"

#: Puts the prompt's file into the arguments where HOME is known, and becomes the command.
_WITH_FILE = (
    f'file="$HOME/{_PROMPT}"; given=(); '
    'for argument in "$@"; do given+=("${argument//"{prompt_file}"/"$file"}"); done; exec "${given[@]}"'
)

#: The usual names of the variables with a provider's address and key.
_VARIABLES = {
    "anthropic": {
        "ANTHROPIC_BASE_URL": "{gateway}/llm/anthropic",
        "ANTHROPIC_API_KEY": "{token}",
    },
    "openai": {
        "OPENAI_BASE_URL": "{gateway}/llm/openai",
        "OPENAI_API_BASE": "{gateway}/llm/openai",
        "OPENAI_API_KEY": "{token}",
    },
    "gemini": {
        "GOOGLE_GEMINI_BASE_URL": "{gateway}/llm/gemini",
        "GEMINI_API_KEY": "{token}",
    },
}

_READERS = {
    "jsonl": read_events,
    "text": read_events,  # made by the adapter
    "claude-stream-json": CLAUDE.translate,
    "codex-json": CODEX.translate,
}


def custom_agent(name: str, config: CustomAgent) -> CliAgent:
    """The agent ``name`` as ``config`` describes it."""

    def start(turn: Turn, gateway: str, token: str) -> Command:
        return _start(name, config, turn, gateway, token)

    return CliAgent(
        name=name,
        version=config.version,
        llm=None if config.llm == "none" else config.llm,
        instruction_file=config.instruction_file,
        session_paths=config.session_paths if config.resume else (),
        start=start,
        translate=_READERS[config.output],
        installation=Installation(program=config.argv[0], commands=config.install),
    )


def _start(name: str, config: CustomAgent, turn: Turn, gateway: str, token: str) -> Command:
    argv = config.resume if turn.resume and config.resume else config.argv
    env = {**_VARIABLES.get(config.llm, {}), **config.env}
    if not turn.model and any("model" in placeholders_in(text) for text in (*argv, *env.values())):
        raise ConfigurationError(
            f"The agent {name} needs to be told its model.",
            f"Name one with `--model`, or the operator sets `models = {{ {name} = … }}` in conductor.toml.",
        )
    values = {"gateway": gateway, "token": token, "model": turn.model or "", "session": turn.session_id}
    arguments = [_filled(argument, values) for argument in argv]
    variables = {variable: _filled(text, values) for variable, text in env.items()} | config.secrets()
    by_file = any("prompt_file" in placeholders_in(argument) for argument in argv)
    command = _command(config, arguments, turn, variables)
    if by_file:
        wrapped = ["bash", "-c", _WITH_FILE, "bash", *command.argv]
        command = replace(command, argv=wrapped, stdin="", files={**command.files, _PROMPT: turn.prompt})
    return command


def _command(config: CustomAgent, argv: Sequence[str], turn: Turn, env: dict[str, str]) -> Command:
    if config.output == "text":
        session = turn.session_id if config.resume else None
        return around_text(argv, session_id=session, stdin=turn.prompt, env=env)
    return Command(argv=argv, stdin=turn.prompt, env=env)


def _filled(text: str, values: dict[str, str]) -> str:
    """``text`` with the placeholders replaced in one go: what a value holds is not looked at again."""
    pieces = []
    rest = text
    while rest:
        before, brace, after = rest.partition("{")
        pieces.append(before)
        name, closed, more = after.partition("}")
        if brace and closed and name in values:
            pieces.append(values[name])
            rest = more
        else:
            pieces.append(brace)
            rest = after
    return "".join(pieces)
