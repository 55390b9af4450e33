from __future__ import annotations

import pytest

from bot.steps import Step, steps_of


@pytest.mark.parametrize("language", ["sh", "bash", "shell", "Bash", "sh title=x"])
def test_shell_blocks_are_steps(language: str) -> None:
    assert steps_of(f"Do this:\n\n```{language}\nmake\nmake test\n```\n") == [
        Step(number=1, script="make\nmake test\n")
    ]


def test_order_and_numbers() -> None:
    text = (
        "```sh\none\n```\n\n1. in a list\n\n   ~~~bash\n   two\n   ~~~\n\n```\nnot me\n```\n```sh\nthree\n```"
    )
    assert [(step.number, step.script) for step in steps_of(text)] == [
        (1, "one\n"),
        (2, "two\n"),
        (3, "three\n"),
    ]


@pytest.mark.parametrize(
    "text",
    [
        "",
        "just words: `rm -rf .`",
        "```\nmake\n```",
        "```python\nprint()\n```",
        "    make  # indented",
        "> ```sh\n> quoted\n> ```",
        "> 1. deep\n>    ```sh\n>    quoted\n>    ```",
        "<!--\n```sh\nhidden\n```\n-->",
        "```sh\n\n# only a comment\n```",
        "````md\n```sh\nshown, not run\n```\n````",
    ],
)
def test_everything_else_is_no_step(text: str) -> None:
    assert steps_of(text) == []


def test_title_is_the_first_line_that_does_something() -> None:
    assert Step(number=1, script="\n# set up\n  set -x\nmake\n").title == "set -x"
