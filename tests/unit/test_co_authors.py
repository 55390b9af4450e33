"""Whom a commit's message names as authors: as far as GitHub's own addresses tell whose they are."""

from __future__ import annotations

import pytest

from bot.reviews import CoAuthors, co_authors

HOST = "users.noreply.github.com"


@pytest.mark.parametrize(
    ("message", "ids", "logins"),
    [
        (f"A\n\nCo-authored-by: Rita <7+rita@{HOST}>", {7}, set()),
        (f"A\n\nco-authored-BY:Rita<7+RITA@{HOST.upper()}>\r\nCo-authored-by: T <8+t@{HOST}>", {7, 8}, set()),
        (f"A\n\nCo-authored-by: Rita <rita@{HOST}>", set(), {"rita"}),
        (f"A\n\n  Co-authored-by: Rita <Rita@{HOST}>  \n\nSigned-off-by: C <c@x.org>", set(), {"rita"}),
        ("A\n\nCo-authored-by: Rita <rita@example.com>", set(), set()),
        (f"A\n\nCo-authored-by: Rita <7+rita@{HOST}.example.com>", set(), set()),
        (f"A\n\nSigned-off-by: Rita <7+rita@{HOST}>\nWith Co-authored-by: <7+rita@{HOST}>", set(), set()),
        (f"Co-authored-by: Rita <{'9' * 40}+rita@{HOST}>", set(), {f"{'9' * 40}+rita"}),
        (f"Co-authored-by: {'<' * 9000}Rita <7+rita@{HOST}> and more", set(), set()),
    ],
)
def test_who_wrote_it_too(message: str, ids: set[int], logins: set[str]) -> None:
    assert co_authors(message, HOST) == CoAuthors(ids=frozenset(ids), logins=frozenset(logins))
