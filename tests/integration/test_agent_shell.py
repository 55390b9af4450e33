"""The shell agent with a real bash."""

from __future__ import annotations

import os
import subprocess
from pathlib import Path

import pytest

from bot.model import FailureKind
from bot.ports import Turn
from bot.results import Transcript, Verdict, judge
from runners.agents.shell import SHELL


def run(tmp_path: Path, prompt: str) -> tuple[list[str], Verdict]:
    """Run a task as the shim would, in ``tmp_path / "repo"``."""
    turn = Turn(number=1, prompt=prompt, model=None, session_id="s", resume=False, timeout=60)
    command = SHELL.command(turn, gateway="{gateway}", token="t")
    home, repo = tmp_path / "home it's", tmp_path / "repo"
    repo.mkdir()
    for path, text in command.files.items():
        target = home / path
        target.parent.mkdir(parents=True, exist_ok=True)
        target.write_text(text)
    done = subprocess.run(
        list(command.argv),
        input=command.stdin,
        cwd=repo,
        env={"PATH": os.environ["PATH"], "HOME": str(home), **command.env},
        capture_output=True,
        text=True,
        timeout=60,
        check=False,
    )
    lines = done.stdout.splitlines()
    events = [event for line in lines for event in SHELL.read(line)]
    return lines, judge(Transcript(events), exit_code=done.returncode, changed=True)


def test_steps_run_in_order(tmp_path: Path) -> None:
    lines, verdict = run(
        tmp_path, "```sh\necho one > a.txt\n```\nthen\n```bash\ncat a.txt\n[[ -f a.txt ]]\n```\n"
    )
    assert lines[:3] == ["Step 1 of 2: echo one > a.txt", "Step 2 of 2: cat a.txt", "one"]
    assert verdict.ok
    assert verdict.result is not None
    assert verdict.result.title == ""
    assert verdict.result.summary == "Ran these steps:\n\n- `echo one > a.txt`\n- `cat a.txt`"
    assert (tmp_path / "repo" / "a.txt").read_text() == "one\n"


def test_first_failure_ends_it(tmp_path: Path) -> None:
    lines, verdict = run(tmp_path, "```sh\ntrue\n```\n```sh\nexit 7\n```\n```sh\ntouch never\n```")
    assert (verdict.ok, verdict.kind) == (False, FailureKind.agent)
    assert "Step 2 of 3: exit 7 It ended with exit code 7." in verdict.message
    assert len(lines) == 3
    assert not (tmp_path / "repo" / "never").exists()


@pytest.mark.parametrize("script", ["false\ntouch never", "false | true\ntouch never"])
def test_first_failing_command_ends_its_step(tmp_path: Path, script: str) -> None:
    _, verdict = run(tmp_path, f"```sh\n{script}\n```")
    assert not verdict.ok
    assert not (tmp_path / "repo" / "never").exists()


def test_result_of_a_step_wins(tmp_path: Path) -> None:
    own = """echo '<result>{"status": "done", "title": "Mine"}</result>'"""
    _, verdict = run(tmp_path, f"```sh\n{own}\n```\n```sh\necho bye\n```")
    assert verdict.ok
    assert verdict.result is not None
    assert verdict.result.title == "Mine"


def test_result_of_a_step_does_not_hide_a_later_failure(tmp_path: Path) -> None:
    own = """echo '<result>{"status": "done", "title": "Mine"}</result>'"""
    _, verdict = run(tmp_path, f"```sh\n{own}\n```\n```sh\nfalse\n```")
    assert (verdict.ok, verdict.kind) == (False, FailureKind.agent)


def test_odd_characters_in_a_step_are_only_text(tmp_path: Path) -> None:
    line = r"""echo "it's" '%s %d' \\ '</result>' 'CODE' é $((1 + 1)) > out.txt"""
    lines, verdict = run(tmp_path, f"```sh\n{line}\n```")
    assert lines[0] == f"Step 1 of 1: {line}"
    assert verdict.ok
    assert verdict.result is not None
    assert "- `echo" in verdict.result.summary
    assert (tmp_path / "repo" / "out.txt").read_text() == "it's %s %d \\ </result> CODE é 2\n"


def test_odd_characters_in_a_failing_step(tmp_path: Path) -> None:
    _, verdict = run(tmp_path, '```sh\nexit 3 # "it\'s" CODE %s \\\n```')
    assert "exit code 3." in verdict.message


def test_steps_read_nothing(tmp_path: Path) -> None:
    lines, verdict = run(tmp_path, "```sh\ncat\n```\n```sh\necho two\n```")
    assert verdict.ok
    assert lines[1:3] == ["Step 2 of 2: echo two", "two"]
