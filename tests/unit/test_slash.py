"""The grammar of `/agent`."""

from __future__ import annotations

import pytest
from hypothesis import given
from hypothesis import strategies as st

from bot.slash import COMMANDS, OPTIONS, help_table, parse_commands, parse_duration


@pytest.mark.parametrize(
    ("body", "name", "text", "options"),
    [
        ("/agent correct the typo", "run", "correct the typo", {}),
        ("/agent run fix the typo", "run", "fix the typo", {}),
        ("/agent please mend it\nand test it", "run", "please mend it\nand test it", {}),
        ("Hello!\n\n/agent make it faster  ", "run", "make it faster", {}),
        (
            "/agent run --agent codex --timeout 30m do it",
            "run",
            "do it",
            {"agent": "codex", "timeout": "30m"},
        ),
        ("/agent --agent=claude do it now", "run", "do it now", {"agent": "claude"}),
        ('/agent --model "a b" do it', "run", "do it", {"model": "a b"}),
        ("/agent run --base release/1.x do it", "run", "do it", {"base": "release/1.x"}),
        ("/agent run\n```sh\necho hi\n```", "run", "```sh\necho hi\n```", {}),
        ("/agent status", "status", "", {}),
        ("/agent plan the release", "plan", "the release", {}),
        ("/agent plan --agent claude", "plan", "", {"agent": "claude"}),
        ("/agent fix", "fix", "", {}),
        ("/agent review", "review", "", {}),
        ("/agent ask why is it slow?", "ask", "why is it slow?", {}),
        ("/agent tell mind the tests", "tell", "mind the tests", {}),
        ("/agent logs", "logs", "", {}),
        ("/agent approve", "decide", "", {}),
        ("/agent deny this is bad", "decide", "", {}),
        ("/agent reject", "decide", "", {}),
        ("/agent cancel", "cancel", "", {}),
        ("/agent retry", "retry", "", {}),
        ("/agent retry --timeout 2h --budget 5", "retry", "", {"timeout": "2h", "budget": "5"}),
        ("/agent retry --agent codex --model m", "retry", "", {"agent": "codex", "model": "m"}),
        ("/agent resume --profile careful go on", "resume", "go on", {"profile": "careful"}),
        ("/agent resume --timeout 2h go on", "resume", "go on", {"timeout": "2h"}),
        ("/agent", "help", "", {}),
        ("/agent help", "help", "", {}),
        ("- [ ] x\n\n/agent do it\r\nnow", "run", "do it\nnow", {}),
    ],
)
def test_a_command_starts_its_line(body: str, name: str, text: str, options: dict[str, str]) -> None:
    (command,) = parse_commands(body)
    assert (command.name, command.text, dict(command.options), command.problem) == (name, text, options, "")


@pytest.mark.parametrize(
    "body",
    [
        "",
        "thanks, agent",
        "please use /agent run it",
        "> /agent run it",
        "> quoted\n/agent run it",  # CommonMark: a lazy continuation belongs to the quote
        "```\n/agent run it\n```",
        "~~~\n/agent run it\n~~~",
        "```\n/agent run it",  # never closed
        "    /agent run it",
        " /agent run it",
        "/agents run it",
        "/agent:claude",
        "<!--\n/agent run it\n-->",
        "<div>\n/agent run it\n</div>",
        "- item\n\n      /agent run it",
    ],
)
def test_text_that_is_no_command(body: str) -> None:
    assert parse_commands(body) == []


@pytest.mark.parametrize(
    ("body", "says"),
    [
        ("/agent stauts", "Did you mean `/agent status`?"),
        ("/agent frobnicate", "do not know the command `frobnicate`"),
        ("/agent run", "Say what to do"),
        ("/agent --colour red do it", "do not know the option `--colour`"),
        ("/agent run --agent", "needs a value"),
        ("/agent run --timeout soon do it", "needs a time"),
        ("/agent job --agent codex", "Name the job first"),
        ("/agent job ../x", "Name the job first"),
        ("/agent job\nnightly", "Name the job in the same line"),
        ("/agent --profile ../x do it", "needs a name such as `reviewer`, and no path"),
        ("/agent --profile .. do it", "needs a name such as `reviewer`, and no path"),
        ("/agent --profile a/b do it", "needs a name such as `reviewer`, and no path"),
        ("/agent ask", "Say what you want to know"),
        ("/agent tell", "Say what the agent is to know"),
        ("/agent tell --agent codex hello", "takes no options"),
        ("/agent status --agent codex", "takes no options"),
        (
            "/agent resume --base main",
            "only the options `--agent`, `--budget`, `--model`, `--profile`, `--timeout`",
        ),
        ("/agent retry --profile ../x", "needs a name"),
        ("/agent retry --timeout soon", "needs a time"),
        ("/agent run " + "x" * 70_000, "longer than"),
    ],
)
def test_a_command_with_a_problem_says_which(body: str, says: str) -> None:
    (command,) = parse_commands(body)
    assert says in command.problem


@pytest.mark.parametrize(
    ("body", "job", "options", "text"),
    [
        ("/agent job", "", {}, ""),
        ("/agent job nightly", "nightly", {}, ""),
        ("/agent job Nightly only the parser\nplease", "nightly", {}, "only the parser\nplease"),
        ("/agent job deps.up --budget 2 --profile Bug_Fixer now", "deps.up",
         {"budget": "2", "profile": "Bug_Fixer"}, "now"),
    ],
)  # fmt: skip
def test_a_named_job(body: str, job: str, options: dict[str, str], text: str) -> None:
    (command,) = parse_commands(body)
    assert (command.name, command.problem) == ("job", "")
    assert (command.job, command.options, command.text) == (job, options, text)


def test_two_commands_in_one_comment() -> None:
    first, second = parse_commands("/agent cancel\n\n/agent run do it right\nthis time")
    assert first.name == "cancel"
    assert second.text == "do it right\nthis time"


@pytest.mark.parametrize(
    ("text", "seconds"),
    [
        ("90", 90),
        ("90s", 90),
        ("30m", 1800),
        ("2h", 7200),
        ("0", None),
        ("-1", None),
        ("1d", None),
        ("", None),
    ],
)
def test_durations(text: str, seconds: int | None) -> None:
    assert parse_duration(text) == seconds


@given(st.text())
def test_no_comment_breaks_the_parser(body: str) -> None:
    for command in parse_commands("/agent " + body):
        assert command.name in COMMANDS or command.problem


def test_the_help_lists_everything() -> None:
    table = help_table()
    assert all(help_.usage in table for help_ in COMMANDS.values())
    assert all(f"--{name}" in table for name in OPTIONS)
