"""What an agent changed, and which of it is never published without a human. Pure: facts in, reasons out.

The facts come from ``runners/quarantine.py``, which reads them with plumbing commands from a bare repository.
"""

from __future__ import annotations

import enum
import re
import stat
from collections.abc import Iterator, Sequence
from dataclasses import dataclass, field

from bot.config import Settings
from bot.protected import Protection

#: More violations than this are not listed; the change is refused all the same.
MAX_VIOLATIONS = 50
#: Bytes of a path, and of each of its names, that every common file system takes.
MAX_PATH, MAX_NAME = 4096, 255
#: The longest symlink target that is read.
MAX_TARGET = 4096


@dataclass(frozen=True, kw_only=True)
class ChangedFile:
    """One entry of the difference between the base's tree and the head's."""

    path: str  # from the tree's root; bytes that are not UTF-8 are kept as surrogates (PEP 383)
    status: str  # "A" added, "M" modified, "D" deleted, "T" became another kind of file
    old_mode: int  # as in st_mode; 0 when added
    new_mode: int  # 0 when deleted
    size: int = 0  # bytes of the new content; 0 when deleted and for submodules
    target: str | None = None  # what a new symlink points to; None also for one longer than MAX_TARGET

    @property
    def is_symlink(self) -> bool:
        """Whether it is a symbolic link now."""
        return stat.S_ISLNK(self.new_mode)

    @property
    def is_submodule(self) -> bool:
        """Whether it is a submodule entry (a "gitlink", mode 160000) now."""
        return self.new_mode == 0o160000


@dataclass(frozen=True, kw_only=True)
class Changes:
    """Everything between two commits."""

    base_sha: str
    head_sha: str
    descends: bool  # whether the base is an ancestor of the head (or the head itself)
    commits: int  # between them; 0 when it does not descend
    files: Sequence[ChangedFile] = ()
    complete: bool = True  # False: there are more files than were read

    @property
    def empty(self) -> bool:
        """Whether there is nothing to publish: the trees are the same."""
        return not self.files and self.complete


@dataclass(frozen=True, kw_only=True)
class ChangeRules:
    """What may be published. Sizes in bytes."""

    protected: Protection = field(default_factory=Protection)
    max_files: int = 3000
    max_file_bytes: int = 50 * 2**20
    max_total_bytes: int = 200 * 2**20

    @classmethod
    def of(cls, settings: Settings, *, protected: Sequence[str] = ()) -> ChangeRules:
        """The rules of this server, and the paths that the repository protects besides."""
        return cls(
            protected=Protection((*settings.protected_paths, *protected)),
            max_files=settings.max_changed_files,
            max_file_bytes=settings.max_file_bytes,
            max_total_bytes=settings.max_push_bytes,
        )


class ViolationKind(enum.StrEnum):
    """Why something is not published."""

    unrelated_history = "unrelated_history"
    too_many_files = "too_many_files"
    total_too_large = "total_too_large"
    file_too_large = "file_too_large"
    submodule = "submodule"
    symlink = "symlink"
    bad_name = "bad_name"


@dataclass(frozen=True, kw_only=True)
class Violation:
    """One reason not to publish. ``message`` is a sentence of plain printable text that names the file."""

    kind: ViolationKind
    message: str
    path: str | None = None  # printable (see `shown`); None when it is about the change as a whole


def check_changes(changes: Changes, rules: ChangeRules) -> list[Violation]:
    """Every reason not to publish ``changes``, the general ones first; empty when it may be published.

    Never raises, whatever is in there. At most MAX_VIOLATIONS are listed.
    """
    found: list[Violation] = []
    for violation in _violations(changes, rules):
        found.append(violation)
        if len(found) == MAX_VIOLATIONS:
            break
    return found


def _violations(changes: Changes, rules: ChangeRules) -> Iterator[Violation]:
    if not changes.descends:
        yield Violation(
            kind=ViolationKind.unrelated_history,
            message="The agent's branch does not descend from the commit it started from "
            f"({changes.base_sha[:12]}); its history was rewritten or replaced.",
        )
    if not changes.complete or len(changes.files) > rules.max_files:
        more = "" if changes.complete else "more than "
        yield Violation(
            kind=ViolationKind.too_many_files,
            message=f"{more}{len(changes.files)} files changed; at most {rules.max_files} are allowed.".capitalize(),
        )
    total = sum(file.size for file in changes.files)
    if total > rules.max_total_bytes:
        yield Violation(
            kind=ViolationKind.total_too_large,
            message=f"The changed files have {size_text(total)}; "
            f"at most {size_text(rules.max_total_bytes)} are allowed.",
        )
    for file in changes.files:
        yield from _file_violations(file, rules)


def _file_violations(file: ChangedFile, rules: ChangeRules) -> Iterator[Violation]:
    name = shown(file.path)

    def violation(kind: ViolationKind, message: str) -> Violation:
        return Violation(kind=kind, path=name, message=message)

    if file.status == "D":
        return  # whatever it was, it is going
    problem = name_problem(file.path)
    if problem:
        yield violation(ViolationKind.bad_name, f"The file name {name} {problem}.")
    if file.is_submodule:
        yield violation(ViolationKind.submodule, f"{name} is a submodule; agents must not add or move those.")
    elif file.is_symlink:
        problem = link_problem(file.path, file.target)
        if problem:
            yield violation(ViolationKind.symlink, f"{name} is a symbolic link {problem}.")
    elif file.new_mode not in (0o100644, 0o100755, 0o100664):  # the last one: git's own early days
        yield violation(ViolationKind.bad_name, f"{name} is of an unknown kind (mode {file.new_mode:o}).")
    if file.size > rules.max_file_bytes:
        yield violation(
            ViolationKind.file_too_large,
            f"{name} has {size_text(file.size)}; at most {size_text(rules.max_file_bytes)} are allowed in one file.",
        )


def held_back(files: Sequence[ChangedFile], protected: Protection) -> list[ChangedFile]:
    """Those of ``files`` that only a person may publish, and what cannot be in one tree without them.

    When a folder with a protected file in it becomes a link or a file, or the other way round, the tree can hold
    the one or the other: then both wait.
    """
    held = {
        file.path for file in files if protected.covers(file.path, leads=file.is_symlink or file.is_submodule)
    }
    waiting = [file for file in files if file.path not in held]
    while True:
        kept = {file.path for file in files if file.path in held and file.old_mode}
        above = {parent for path in kept for parent in _parents(path)}
        more = {
            file.path
            for file in waiting
            if file.new_mode and (file.path in above or not kept.isdisjoint(_parents(file.path)))
        }
        if not more:
            return [file for file in files if file.path in held]
        held |= more
        waiting = [file for file in waiting if file.path not in more]


def _parents(path: str) -> Iterator[str]:
    """The folders that ``path`` is in."""
    at = path.rfind("/")
    while at > 0:
        yield path[:at]
        at = path.rfind("/", 0, at)


# Control characters (C0, DEL, C1), line and paragraph separators, and the ones that reorder text on a screen
# (CVE-2021-42574, https://trojansource.codes).
_UNSEEN = re.compile("[\x00-\x1f\x7f-\x9f\u2028\u2029\u202a-\u202e\u2066-\u2069]")
# Characters that HFS+ leaves out when it compares names (git: utf8.c, is_hfs_dotgit).
_HFS_IGNORED = re.compile("[\u200c-\u200f\u202a-\u202e\u206a-\u206f\ufeff]")


def name_problem(path: str) -> str | None:
    """What is wrong with a path, as the end of a sentence; None when any system can check it out safely."""
    try:
        raw = path.encode("utf-8")
    except UnicodeEncodeError:
        return "is not valid UTF-8"
    if _UNSEEN.search(path):
        return "has control or invisible characters"
    if len(raw) > MAX_PATH or any(len(part) > MAX_NAME for part in raw.split(b"/")):
        return f"is too long (more than {MAX_NAME} bytes, or {MAX_PATH} for the whole path)"
    # Windows takes a backslash for a separator
    parts = path.replace("\\", "/").split("/")
    if any(part in ("", ".", "..") for part in parts):
        return "leaves its folder"
    if any(is_dot_git(part) for part in parts):
        return "is one that git keeps for itself"
    return None


def is_dot_git(name: str) -> bool:
    """Whether some file system takes ``name`` for ``.git``: case, NTFS short names and streams, HFS+.

    The cases of git's own checks for CVE-2014-9390 and CVE-2019-1352 (path.c, utf8.c).
    """
    plain = _HFS_IGNORED.sub("", name).casefold()
    plain = plain.partition(":")[0].rstrip(" .")
    return plain == ".git" or re.fullmatch(r"git~\d+", plain) is not None


def link_problem(path: str, target: str | None) -> str | None:
    """What is wrong with a symlink at ``path`` to ``target``, as the end of a sentence; None when it stays inside.

    ``..`` is allowed at the target's beginning only: after another name, which may itself be a link, nobody
    can tell from the text where it leads.
    """
    if target is None:
        return "with a target that is too long"
    if not target or _UNSEEN.search(target):
        return "with an empty target or one with control characters"
    plain = target.replace("\\", "/")
    if plain.startswith("/") or re.match(r"[A-Za-z]:", plain):
        return f"to an absolute path ({shown(target)})"
    parts = [part for part in plain.split("/") if part not in ("", ".")]
    ups = 0
    while ups < len(parts) and parts[ups] == "..":
        ups += 1
    if ups > path.count("/") or ".." in parts[ups:]:
        return f"out of the repository ({shown(target)})"
    if any(is_dot_git(part) for part in parts):
        return f"into git's own folder ({shown(target)})"
    return None


def shown(path: str, limit: int = 200) -> str:
    """``path`` as one line of printable text: control characters and broken bytes as escapes, cut in the middle."""
    text = "".join(_escaped(character) for character in path)
    if len(text) > limit:
        half = (limit - 1) // 2
        text = f"{text[:half]}…{text[-half:]}"
    return text


def _escaped(character: str) -> str:
    code = ord(character)
    if 0xDC80 <= code <= 0xDCFF:  # a byte that was not UTF-8
        return f"\\x{code - 0xDC00:02x}"
    if character.isprintable():
        return character
    return f"\\x{code:02x}" if code < 0x100 else f"\\u{code:04x}" if code < 0x10000 else f"\\U{code:08x}"


def size_text(size: int) -> str:
    """A number of bytes for people: ``1.5 GiB``."""
    amount = float(size)
    for unit in ("bytes", "KiB", "MiB"):
        if amount < 1024:
            return f"{amount:.0f} {unit}" if unit == "bytes" else f"{amount:.1f} {unit}"
        amount /= 1024
    return f"{amount:.1f} GiB"
