"""``make manual``: write the parts of the manual that are made from the code into its pages.

    python -m tests.manual

A page says where such a part stands, and everything between the two lines is replaced:

    <!-- commands -->
    <!-- /commands -->
"""

from __future__ import annotations

import re
import sys
from collections.abc import Callable, Mapping
from pathlib import Path

from bot.slash import help_table

ROOT = Path(__file__).parents[1]
PAGES = (
    ROOT / "README.md",
    ROOT / "CONTRIBUTING.md",
    ROOT / "CHANGELOG.md",
    *sorted((ROOT / "docs").glob("*.md")),
)
#: Name of a part -> what makes it.
PARTS: Mapping[str, Callable[[], str]] = {"commands": help_table}
_PART = re.compile(
    r"(?P<start>^<!-- (?P<name>[a-z-]+) -->\n)(?P<text>.*?)(?P<end>^<!-- /(?P=name) -->$)", re.M | re.S
)


def parts_of(text: str) -> list[str]:
    """The names of the parts that a page has, in order."""
    return [found["name"] for found in _PART.finditer(text)]


def renewed(text: str) -> str:
    """A page with its parts as the code makes them now. Raises KeyError for a part that nobody makes."""
    return _PART.sub(lambda found: f"{found['start']}{PARTS[found['name']]()}\n{found['end']}", text)


def main() -> int:
    """Bring all pages up to date, and name those that changed."""
    for page in PAGES:
        before = page.read_text()
        after = renewed(before)
        if after != before:
            page.write_text(after)
            print(f"wrote {page.relative_to(ROOT)}")
    return 0


if __name__ == "__main__":
    sys.exit(main())
