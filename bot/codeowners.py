"""CODEOWNERS: who owns which paths of a repository. Pure.

https://docs.github.com/en/repositories/managing-your-repositorys-settings-and-features/customizing-your-repository/about-code-owners
"""

from __future__ import annotations

import fnmatch
import re
from collections.abc import Iterable, Sequence
from dataclasses import dataclass

#: Where GitHub looks, on the base branch; the first file that is there counts alone.
PLACES = (".github/CODEOWNERS", "CODEOWNERS", "docs/CODEOWNERS")
#: A larger file is not loaded, and nobody owns anything.
MAX_BYTES = 3 * 2**20
#: @login, @organisation/team, or an e-mail address (which only GitHub can match to an account).
_OWNER = re.compile(r"@[A-Za-z0-9](?:[\w-]*)(?:/[\w.-]+)?|[^\s@]+@[^\s@]+\.[^\s@]+")
_WORD = re.compile(r"(?:\\.|\S)+")


@dataclass(frozen=True)
class _Rule:
    """One line: the parts of its pattern (None is ``**``), and who owns what it matches."""

    parts: tuple[re.Pattern[str] | None, ...]
    folder: bool  # the pattern ends in a slash: only what is in such a folder
    flat: bool  # it ends in `/*`: the files of the folder, not those of folders in it
    owners: tuple[str, ...]

    def matches(self, names: Sequence[str]) -> bool:
        # which parts of the pattern may come next, after each name of the path; never more than there are parts
        places = self._beyond({0})
        end = len(self.parts)
        for index, name in enumerate(names):
            if end in places and index and not self.flat:
                return True  # a folder matched, and this is in it
            places = self._beyond(
                {
                    place if part is None else place + 1
                    for place in places
                    if place < end and ((part := self.parts[place]) is None or part.fullmatch(name))
                }
            )
            if not places:
                return False
        return end in places and not self.folder

    def _beyond(self, places: set[int]) -> set[int]:
        """With the places after each ``**``, which may stand for no folder at all."""
        reached = set(places)
        for place, part in enumerate(self.parts):
            if place in reached and part is None:
                reached.add(place + 1)
        return reached


class Owners:
    """Who owns what, as one CODEOWNERS file says."""

    def __init__(self, text: str = "") -> None:
        """Read ``text``. A line that cannot be read counts as if it were not there, as on GitHub."""
        self._rules = tuple(rule for line in text.splitlines() if (rule := _rule(line)))

    def of(self, path: str) -> tuple[str, ...]:
        """The owners of ``path`` as the file names them; () when it has none. The last line that matches counts."""
        names = path.strip("/").split("/")
        for rule in reversed(self._rules):
            if rule.matches(names):
                return rule.owners
        return ()

    def of_any(self, paths: Iterable[str]) -> tuple[str, ...]:
        """The owners of at least one of ``paths``, each once, in the order in which they are found."""
        return tuple(dict.fromkeys(owner for path in paths for owner in self.of(path)))

    def everybody(self) -> tuple[str, ...]:
        """Whoever owns anything that there could be."""
        return tuple(dict.fromkeys(owner for rule in self._rules for owner in rule.owners))


def _rule(line: str) -> _Rule | None:
    words: list[str] = _WORD.findall(line)
    comment = next((at for at, word in enumerate(words) if word.startswith("#")), len(words))
    words = words[:comment]
    if not words:
        return None
    pattern, owners = words[0], words[1:]
    # what gitignore knows and CODEOWNERS does not: such a line is in error
    if pattern.startswith(("!", "\\#")) or re.search(r"[\[\]]", pattern):
        return None
    if not all(_OWNER.fullmatch(owner) for owner in owners):
        return None
    parts = _parts(pattern)
    if not parts:
        return None
    return _Rule(
        parts=tuple(None if part == "**" else _name(part) for part in parts),
        folder=pattern.endswith("/"),
        flat=pattern.endswith("/*"),
        owners=tuple(owners),
    )


def _parts(pattern: str) -> list[str]:
    """The pattern, name by name, from the repository's root."""
    parts = [part for part in pattern.split("/") if part]
    # without a slash before its end it may stand anywhere, as in gitignore
    if parts and "/" not in pattern.rstrip("/"):
        parts.insert(0, "**")
    parts = [part for at, part in enumerate(parts) if part != "**" or at == 0 or parts[at - 1] != "**"]
    if parts and parts[-1] == "**":
        parts[-1] = "*"  # at the end it is what a folder holds, and all that is in that
    return parts


def _name(glob: str) -> re.Pattern[str]:
    """A pattern for one name. fnmatch's expressions are atomic: they need no time to speak of, whatever the name."""
    plain = re.sub(r"\\(.)", lambda match: match[1] if match[1] not in "*?" else f"[{match[1]}]", glob)
    return re.compile(fnmatch.translate(plain))
