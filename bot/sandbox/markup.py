"""Markdown of issues and comments as HTML for the pages, safe to show whoever wrote it.

As on GitHub, HTML comments are not seen and a few tags work; everything else that looks like HTML is shown as text.
"""

from __future__ import annotations

import re
from collections.abc import Sequence
from typing import Any

from markdown_it import MarkdownIt
from markdown_it.token import Token
from markupsafe import Markup, escape

_COMMENT = re.compile(r"<!--.*?(?:-->|\Z)", re.S)
#: Tags without attributes that bots use, after escaping.
_HARMLESS = re.compile(r"&lt;(/?(?:details|summary|sub|sup|br))&gt;")


def rendered(text: str) -> Markup:
    """``text`` as HTML; markdown-it itself refuses ``javascript:`` links."""
    markdown = MarkdownIt("commonmark", {"breaks": True}).enable(["table", "strikethrough"])
    markdown.add_render_rule("html_block", _html)
    markdown.add_render_rule("html_inline", _html)
    return Markup(markdown.render(text))  # noqa: S704


def _html(_renderer: Any, tokens: Sequence[Token], index: int, _options: Any, _env: Any) -> str:
    shown = str(escape(_COMMENT.sub("", tokens[index].content)))
    return _HARMLESS.sub(r"<\1>", shown)
