"""What the sandbox's pages make of the Markdown that people and bots write."""

from __future__ import annotations

import pytest

from bot.sandbox.markup import rendered


@pytest.mark.parametrize(
    ("text", "html"),
    [
        ("<!-- agent-conductor:job:j1 -->\n**Done**", "<p><strong>Done</strong></p>\n"),
        ("a <!-- hidden --> b", "<p>a  b</p>\n"),
        ("<sub>small</sub>", "<p><sub>small</sub></p>\n"),
        ("`<!-- shown in code -->`", "<p><code>&lt;!-- shown in code --&gt;</code></p>\n"),
        ("one\ntwo", "<p>one<br>\ntwo</p>\n"),
    ],
)
def test_it_looks_as_on_github(text: str, html: str) -> None:
    assert str(rendered(text)).strip().replace("<br />", "<br>") == html.strip()


def test_details_can_be_opened() -> None:
    html = str(rendered("<details><summary>What it does</summary>\n\n- one\n</details>"))
    assert "<details><summary>What it does</summary>" in html
    assert "<li>one" in html
    assert "</details>" in html


@pytest.mark.parametrize(
    "text",
    [
        "<script>alert(1)</script>",
        "hello <img src=x onerror=alert(1)>",
        "<details ontoggle=alert(1)>",
        "<!-- --><script>alert(1)</script>",
        "<!-- <sub> --\n\n<script>alert(1)</script>",
        "[x](javascript:alert(1))",
        '<a href="javascript:alert(1)">x</a>',
        "<sub onclick=alert(1)>x</sub>",
        "<SCRIPT>alert(1)</SCRIPT>",
        "<svg/onload=alert(1)>",
    ],
)
def test_nothing_dangerous_comes_through(text: str) -> None:
    html = str(rendered(text)).lower()
    for tag in ("<script", "<img", "<svg", "<a ", "<details ", "<sub "):
        assert tag not in html
