"""Names of branches and refs: the ones we choose, and whether others' are well-formed."""

from __future__ import annotations

import re
import unicodedata

#: Everything that we push to lies below this, except a pull request's own branch.
PREFIX = "agent"
MAX_LENGTH = 60

_FORBIDDEN = re.compile(r"[\x00-\x20\x7f~^:?*\[\\]|\.\.|@\{|//|/\.|\.lock(/|$)")


def branch_for(number: int, title: str, job_id: str, *, kind: str = "issue") -> str:
    """The branch of a job that starts from issue ``number``: ``agent/issue-12-fix-the-thing-ab12cd``.

    ``kind``: "pull" for a pull request whose branch is not here.
    At most 60 ASCII characters and a valid ref whatever the title is. The job's id at its end keeps a retry
    off the branch of the job before it; the same job always gets the same name.
    """
    if number < 1:
        raise ValueError(f"issue numbers start at 1, not {number}")
    head = f"{PREFIX}/{kind}-{number}"
    tail = _slug(job_id)[-6:].strip("-") or "job"
    room = MAX_LENGTH - len(head) - len(tail) - 2
    words = _shorten(_slug(title), room)
    return "-".join(part for part in (head, words, tail) if part)


def valid_ref(name: str) -> bool:
    """Whether ``name`` is a full, well-formed ref such as ``refs/heads/main``.

    The rules of https://git-scm.com/docs/git-check-ref-format, in bytes where git counts them.
    """
    if not name.startswith("refs/") or name.endswith(("/", ".")):
        return False
    try:
        raw = name.encode()
    except UnicodeEncodeError:
        return False
    if len(raw) > 1024 or any(len(part) > 255 for part in raw.split(b"/")):
        return False  # a ref is a file: longer names do not fit
    return _FORBIDDEN.search(name) is None


def valid_branch(name: str) -> bool:
    """Whether ``name`` may be a branch (without ``refs/heads/``)."""
    return valid_ref(f"refs/heads/{name}")


def _slug(text: str) -> str:
    plain = unicodedata.normalize("NFKD", text).encode("ascii", "ignore").decode().lower()
    return re.sub(r"[^a-z0-9]+", "-", plain).strip("-")


def _shorten(slug: str, room: int) -> str:
    """At most ``room`` characters, cut between words where that leaves more than half."""
    if room <= 0:
        return ""
    if len(slug) <= room:
        return slug
    cut = slug[:room]
    if slug[room] != "-":
        at_word = cut.rpartition("-")[0]
        cut = at_word if len(at_word) > room // 2 else cut
    return cut.strip("-")
