"""Submodules as a repository's ``.gitmodules`` declares them, and which repository of our GitHub each one means.

Nothing here is obeyed: neither the URL nor any command in the file is ever handed to git. From a URL only the owner's
and the repository's name are taken, when it leads to our GitHub at all.
"""

from __future__ import annotations

import re
from collections.abc import Iterable, Iterator
from dataclasses import dataclass
from urllib.parse import urlsplit

from bot.changes import name_problem, shown

FILE = ".gitmodules"
#: Bytes of the file, and how many submodules are looked at, those of submodules included; deeper ones stay out.
MAX_BYTES, MAX_SUBMODULES, MAX_DEPTH = 256 * 2**10, 50, 3

_KEY = re.compile(r"submodule\.(.+)\.(path|url)", re.S)
_NAME = re.compile(r"[A-Za-z0-9_.][A-Za-z0-9_./+@ -]{0,199}")
# https://docs.github.com/en/repositories/creating-and-managing-repositories/repository-limits has no rule for names;
# these are what its own forms take. Accounts of managed users have an underscore.
_OWNER = re.compile(r"[A-Za-z0-9][A-Za-z0-9_-]{0,99}")
_REPOSITORY = re.compile(r"[A-Za-z0-9._-]{1,100}")
_SCP = re.compile(r"(?:[A-Za-z0-9_.-]+@)?([A-Za-z0-9.-]+):(?!//)(.+)", re.S)
_SCHEMES = ("https", "http", "ssh", "git")


class BadSubmodule(ValueError):
    """A submodule cannot be had; the text is the reason, as the end of a sentence."""


@dataclass(frozen=True, kw_only=True)
class Declared:
    """A submodule in a ``.gitmodules``. All of it is somebody's text."""

    name: str
    path: str
    url: str


def declared(pairs: Iterable[tuple[str, str]]) -> Iterator[Declared]:
    """The submodules in the file's (key, value) pairs; those without a path or a URL are none."""
    found: dict[str, dict[str, str]] = {}
    for key, value in pairs:
        if match := _KEY.fullmatch(key):
            found.setdefault(match[1], {})[match[2]] = value  # as for git, the last one counts
    for name, values in found.items():
        if values.keys() == {"path", "url"}:
            yield Declared(name=name, path=values["path"], url=values["url"])


def check_place(submodule: Declared) -> None:
    """Refuse names and paths that could lead out of the work tree or be taken for options. Raises BadSubmodule."""
    parts = submodule.name.split("/")
    if not _NAME.fullmatch(submodule.name) or any(part in ("", ".", "..") for part in parts):
        raise BadSubmodule("its name is not a plain one")
    if problem := name_problem(submodule.path):
        raise BadSubmodule(f"its path {problem}")
    if submodule.path.startswith("-"):
        raise BadSubmodule("its path looks like an option")


def repository_of(url: str, *, parent: str, github_url: str) -> str:
    """The ``owner/name`` that ``url`` means in the ``.gitmodules`` of the repository ``parent`` (``owner/name``).

    ``github_url`` is our GitHub's address. Raises BadSubmodule for any other host, scheme or form.
    """
    text = url.strip()
    if text.startswith(("./", "../")):
        return _checked(_relative(text, parent))
    if any(character.isspace() or not character.isprintable() for character in text) or text.startswith("-"):
        raise BadSubmodule(f"its URL {shown(url, 100)!r} is none that is taken")
    ours = urlsplit(github_url)
    try:
        parts = urlsplit(text)
        host, port = (parts.hostname or "").lower(), parts.port
    except ValueError as error:
        raise BadSubmodule(f"its URL {shown(url, 100)!r} is none that is taken") from error
    path = parts.path
    if "://" not in text and (match := _SCP.fullmatch(text)):
        host, port, path = match[1].lower(), None, match[2]
    elif parts.scheme not in _SCHEMES or parts.query or parts.fragment:
        raise BadSubmodule(f"its URL {shown(url, 100)!r} is none that is taken")
    web = parts.scheme in ("https", "http")
    if host != (ours.hostname or "").lower() or (web and port != ours.port):
        raise BadSubmodule(f"it is not on {ours.netloc}")
    prefix = ours.path.strip("/")
    path = path.strip("/")
    if prefix:
        if not path.startswith(f"{prefix}/"):
            raise BadSubmodule(f"it is not on {ours.netloc}")
        path = path.removeprefix(f"{prefix}/")
    return _checked(path)


def _relative(text: str, parent: str) -> str:
    """As git does it: relative to the superproject's URL (gitmodules(5))."""
    parts = parent.split("/")
    for part in text.rstrip("/").split("/"):
        if part == "..":
            if not parts:
                raise BadSubmodule(f"its URL {shown(text, 100)!r} leads out of this GitHub")
            parts.pop()
        elif part not in (".", ""):
            parts.append(part)
    return "/".join(parts)


def _checked(path: str) -> str:
    owner, slash, name = path.removesuffix(".git").partition("/")
    if not slash or not _OWNER.fullmatch(owner) or not _REPOSITORY.fullmatch(name) or name in (".", ".."):
        raise BadSubmodule(f"{shown(path, 100)!r} is no repository's name")
    return f"{owner}/{name}"
