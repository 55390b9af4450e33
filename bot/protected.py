"""Paths that only people change: workflows, code owners, our own configuration, and what was added to them. Pure."""

from __future__ import annotations

import fnmatch
import re
import unicodedata
from collections.abc import Iterable
from dataclasses import dataclass

#: Always protected. Code owners: https://docs.github.com/en/repositories/
#: managing-your-repositorys-settings-and-features/customizing-your-repository/about-code-owners
#: Our own configuration lies below ``.github`` too.
ALWAYS = (".github/**", ".gitmodules", "CODEOWNERS", "docs/CODEOWNERS")

# Characters that HFS+ leaves out when it compares names (git: utf8.c, next_hfs_char), and others that nobody sees.
_UNSEEN = re.compile("[\u00ad\u200b-\u200f\u202a-\u202e\u2060-\u2064\u206a-\u206f\ufe00-\ufe0f\ufeff]")


class Protection:
    """Patterns of protected paths.

    A pattern is a path from the repository's root, in which ``*`` and ``?`` stand for characters of one name,
    ``[ab]`` for one of these and ``**`` for any number of folders, as in git's ``:(glob)`` pathspecs. A pattern that
    matches a folder protects all that is in it. Names are compared as the most forgiving file system would: without
    case, whatever the Unicode form, without characters that nobody sees; a name that Windows shortens counts, too.
    """

    def __init__(self, more: Iterable[str] = ()) -> None:
        self.patterns = tuple(dict.fromkeys((*ALWAYS, *more)))
        self._rules = tuple(rule for rule in map(_rule, self.patterns) if rule)

    def covers(self, path: str, *, leads: bool = False) -> bool:
        """Whether only people may change what is at ``path``.

        ``leads``: it is a link or a submodule, so that it also counts where a pattern has a folder of that name.
        """
        names = tuple(_folded(part) for part in _parts(path))
        return any(rule.covers(names, leads) for rule in self._rules)


def matching(patterns: Iterable[str], paths: Iterable[str]) -> list[str]:
    """Those of ``paths`` that one of ``patterns`` covers, in the way of :class:`Protection`."""
    rules = [rule for rule in map(_rule, patterns) if rule]
    return [
        path
        for path in paths
        if any(rule.covers(tuple(_folded(part) for part in _parts(path)), False) for rule in rules)
    ]


@dataclass(frozen=True)
class _Rule:
    """One pattern, name by name; None is ``**``."""

    names: tuple[re.Pattern[str] | None, ...]

    def covers(self, path: tuple[str, ...], leads: bool) -> bool:
        # which parts of the pattern may come next, after each name of the path
        places = self._beyond({0})
        for name in path:
            if len(self.names) in places:
                return True  # the folder is protected
            places = self._beyond(
                {
                    place if part is None else place + 1
                    for place in places
                    if place < len(self.names)
                    and ((part := self.names[place]) is None or part.fullmatch(name))
                }
            )
            if not places:
                return False
        return len(self.names) in places or (
            leads and any(place and self.names[place - 1] is not None for place in places)
        )

    def _beyond(self, places: set[int]) -> set[int]:
        """With the places after each ``**``, which may stand for no folder at all."""
        reached = set(places)
        for place in range(len(self.names)):
            if place in reached and self.names[place] is None:
                reached.add(place + 1)
        return reached


def _parts(path: str) -> list[str]:
    return [part for part in path.replace("\\", "/").split("/") if part not in ("", ".")]


def _rule(pattern: str) -> _Rule | None:
    parts = _parts(pattern)
    if not parts:
        return None
    while parts and parts[-1] == "**":
        parts.pop()  # a folder with all that is in it is the folder
    return _Rule(tuple(None if part == "**" else _name(_folded(part)) for part in parts))


def _name(glob: str) -> re.Pattern[str]:
    """A pattern for one name; with the short name that Windows may give to it, where that can be told."""
    expression = fnmatch.translate(glob)
    plain = re.sub(r"[. ]", "", glob)
    if not re.search(r"[*?\[]", glob) and (len(glob) > 8 or glob.startswith(".")):
        expression += "|" + re.escape(plain[:6]) + r"~[0-9]{1,6}(?:\.[^.]{0,3})?"
    return re.compile(expression)


def _folded(name: str) -> str:
    """A name as file systems compare it that are lenient about case, form, ends and what cannot be seen."""
    plain = unicodedata.normalize("NFKC", _UNSEEN.sub("", name)).casefold()
    # Windows drops dots and spaces at the end, and takes what follows a colon for a stream of the file
    return unicodedata.normalize("NFKC", plain).partition(":")[0].rstrip(" .")
