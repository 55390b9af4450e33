"""The ``shell`` agent: runs the shell blocks of the task, one after the other, without any model.

Each step gets a ``bash`` of its own in the repository's folder, as GitHub Actions runs a step: it ends at the first
command that fails. The first step that fails ends the turn with its exit code. A step may print its own
``<result>{…}</result>`` on one line, and then that counts; else the last line is one that tells the steps.
"""

from __future__ import annotations

import json
import re
import shlex

from bot.errors import ConductorError
from bot.model import FailureKind
from bot.ports import AgentEvent, Command, Turn
from bot.results import parse_result
from bot.steps import Step, steps_of
from runners.agents.cli import CliAgent, cut, log

#: Below HOME: the driver and one file for each step.
FOLDER = ".agent-steps"

#: How the driver's own result starts; with it `read` tells it from one that a step printed.
_OURS = '<result>{"by": "steps", '


def _start(turn: Turn, gateway: str, token: str) -> Command:
    del gateway, token  # no model, no calls
    steps = steps_of(turn.prompt)
    if not steps:
        raise ConductorError(
            "The shell agent found no commands in the task.", "Put the commands into a ```sh block."
        )
    files = {f"{FOLDER}/{step.number}.sh": step.script for step in steps}
    files[f"{FOLDER}/run.sh"] = _driver(steps)
    return Command(argv=["bash", "-c", f'exec bash "$HOME/{FOLDER}/run.sh"'], stdin="", files=files)


def _driver(steps: list[Step]) -> str:
    lines = ["#!/bin/bash"]
    for step in steps:
        heading = f"Step {step.number} of {len(steps)}: {step.title}"
        failed = {
            "title": f"Step {step.number} failed",
            "summary": f"{heading}\nIt ended with exit code CODE.",
        }
        # the exit code is a number, so it can be put into the JSON text by the shell
        before, after = _result("failed", **failed).rsplit("CODE", 1)
        lines += [
            f"printf '%s\\n' {shlex.quote(heading)}",
            f'bash --noprofile --norc -eo pipefail "$HOME/{FOLDER}/{step.number}.sh" </dev/null',
            "code=$?",
            'if [ "$code" -ne 0 ]; then',
            f"  printf '%s%s%s\\n' {shlex.quote(before)} \"$code\" {shlex.quote(after)}",
            '  exit "$code"',
            "fi",
        ]
    told = "\n".join(f"- `{step.title}`" for step in steps)
    # no title: that of the issue says better what the steps are for
    done = _result("done", summary=f"Ran these steps:\n\n{told}")
    lines.append(f"printf '%s\\n' {shlex.quote(done)}")
    return "\n".join(lines) + "\n"


def _result(status: str, **values: str) -> str:
    text = json.dumps({"status": status, **values})
    return f"{_OURS}{text.removeprefix('{')}</result>"


_HEADING = re.compile(r"Step \d+ of \d+: ")


def _read(line: str) -> list[AgentEvent]:
    line = line.rstrip("\r\n")
    if _HEADING.match(line):
        return [AgentEvent(kind="tool", text=cut(line))]
    result = parse_result(line) if "<result>" in line.lower() else None
    if result is None:
        return [log(line)]
    if not line.startswith(_OURS):
        return [AgentEvent(kind="text", text=line)]
    if result.status == "done":
        return [AgentEvent(kind="final", text=line)]
    return [AgentEvent(kind="final", text=result.summary, ok=False, failure=FailureKind.agent.value)]


SHELL = CliAgent(
    name="shell",
    version="",
    llm=None,
    instruction_file=None,
    session_paths=(),
    start=_start,
    translate=_read,
)
