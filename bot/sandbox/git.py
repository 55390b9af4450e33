"""A bare git repository on disk and the questions that GitHub's API asks it."""

from __future__ import annotations

import asyncio
import re
import tempfile
from collections.abc import Mapping
from dataclasses import dataclass
from datetime import datetime
from pathlib import Path

from bot import child_process
from bot.githttp import git_environment

TIMEOUT = 60.0
"""Seconds that one git command may take."""

NO_COMMIT = "0" * 40
"""What git writes for the side of a change that does not exist."""

EMPTY_TREE = "4b825dc642cb6eb9a060e54bf8d69288fbee4904"
"""The tree of nothing, which git knows without having it: what a first commit is compared with."""

_PRE_RECEIVE = Path(__file__).with_name("pre-receive")
_LOG_FORMAT = "%x1f".join(["%H", "%T", "%P", "%an", "%ae", "%aI", "%cn", "%ce", "%cI", "%B"]) + "%x1e"
_STATUS_WORDS = {"A": "added", "D": "removed", "M": "modified", "R": "renamed", "C": "copied", "T": "changed"}


class GitError(Exception):
    """git refused; the text is what it said."""


@dataclass(frozen=True)
class Identity:
    """Who wrote or committed, and when."""

    name: str
    email: str
    date: datetime


@dataclass(frozen=True)
class Commit:
    """One commit."""

    sha: str
    tree: str
    parents: list[str]
    author: Identity
    committer: Identity
    message: str


@dataclass(frozen=True)
class FileChange:
    """What a diff does to one file; ``patch`` is None for a binary file."""

    path: str
    status: str
    additions: int
    deletions: int
    blob: str
    previous_path: str | None
    patch: str | None


@dataclass(frozen=True)
class TreeEntry:
    """One name in a tree."""

    mode: str
    type: str
    sha: str
    size: int | None
    path: str


class GitRepository:
    """A bare repository.

    Args:
        path: its folder.
    """

    def __init__(self, path: Path):
        self.path = path
        self.lock = asyncio.Lock()
        """Held while refs change, so that a push and an API call are told apart."""

    async def create(self, default_branch: str) -> None:
        """Make the folder a bare repository that takes pushes over HTTP."""
        self.path.mkdir(parents=True, exist_ok=True)
        await self.run("init", "--quiet", "--bare", f"--initial-branch={default_branch}")
        for key, value in {
            "http.receivepack": "true",
            "uploadpack.allowFilter": "true",
            "uploadpack.allowAnySHA1InWant": "true",
            "receive.fsckObjects": "true",
            # GitHub keeps the heads of pull requests there, and nobody may push them
            "receive.hideRefs": "refs/pull",
        }.items():
            await self.run("config", key, value)
        hook = self.path / "hooks" / "pre-receive"
        hook.parent.mkdir(exist_ok=True)
        hook.write_bytes(_PRE_RECEIVE.read_bytes())
        hook.chmod(0o755)

    async def run(self, *arguments: str, stdin: bytes = b"", env: Mapping[str, str] | None = None) -> bytes:
        """Run one git command in the repository and return what it prints.

        Raises:
            GitError: git failed or took longer than ``TIMEOUT``.
        """
        code, output, errors = await self._execute(arguments, stdin, env)
        if code:
            raise GitError(errors.decode(errors="replace").strip() or f"git {arguments[0]} gave code {code}")
        return output

    async def text(self, *arguments: str, stdin: bytes = b"", env: Mapping[str, str] | None = None) -> str:
        """As ``run``, decoded and without the last line end."""
        return (await self.run(*arguments, stdin=stdin, env=env)).decode(errors="replace").rstrip("\n")

    async def _execute(
        self, arguments: tuple[str, ...], stdin: bytes, env: Mapping[str, str] | None
    ) -> tuple[int, bytes, bytes]:
        process = await child_process.start(
            "git",
            *arguments,
            cwd=self.path,
            env={**git_environment(), **(env or {})},
            stdin=asyncio.subprocess.PIPE,
            stdout=asyncio.subprocess.PIPE,
            stderr=asyncio.subprocess.PIPE,
        )
        try:
            output, errors = await asyncio.wait_for(process.communicate(stdin), TIMEOUT)
        except TimeoutError:
            raise GitError(f"git {arguments[0]} took longer than {TIMEOUT:g} seconds") from None
        finally:
            if process.returncode is None:
                await child_process.end(process)
        return process.returncode or 0, output, errors

    # ---- refs

    async def refs(self, prefix: str = "refs") -> dict[str, str]:
        """Full ref names below ``prefix`` and what they point at, in order."""
        text = await self.text("for-each-ref", "--format=%(objectname) %(refname)", prefix)
        pairs = (line.split(" ", 1) for line in text.splitlines())
        return {name: sha for sha, name in pairs}

    async def resolve(self, revision: str) -> str | None:
        """The full SHA of the commit that ``revision`` names (a branch, a tag, a SHA), if there is one."""
        for candidate in (f"refs/heads/{revision}", f"refs/tags/{revision}", revision):
            code, output, _ = await self._execute(
                ("rev-parse", "--verify", "--quiet", "--end-of-options", candidate + "^{commit}"), b"", None
            )
            if code == 0:
                return output.decode().strip()
        return None

    async def object_type(self, sha: str) -> str | None:
        """``commit``, ``tree``, ``blob`` or ``tag``; None when there is no such object."""
        code, output, _ = await self._execute(("cat-file", "-t", sha), b"", None)
        return output.decode().strip() if code == 0 else None

    async def valid_ref(self, name: str) -> bool:
        """Whether git takes this as a ref's name."""
        code, _, _ = await self._execute(("check-ref-format", name), b"", None)
        return code == 0

    async def update_ref(self, name: str, new: str, old: str | None = None) -> None:
        """Point a ref at ``new``, provided that it points at ``old`` (``NO_COMMIT``: that it does not exist)."""
        await self.run("update-ref", name, new, *([old] if old is not None else []))

    async def delete_ref(self, name: str) -> None:
        """Delete a ref."""
        await self.run("update-ref", "-d", name)

    async def fetch(self, other: GitRepository, *refspecs: str) -> None:
        """Copy refs and what they need from another repository on this disk."""
        await self.run("fetch", "--quiet", "--no-tags", "--no-write-fetch-head", str(other.path), *refspecs)

    # ---- history

    async def commit(self, sha: str) -> Commit:
        """One commit by its SHA."""
        return (await self.log(sha, "--max-count=1"))[0]

    async def log(self, *arguments: str) -> list[Commit]:
        """Commits as ``git log`` lists them."""
        text = (await self.run("log", f"--format={_LOG_FORMAT}", *arguments)).decode(errors="replace")
        return [_parse_commit(record.lstrip("\n")) for record in text.split("\x1e") if record.strip("\n")]

    async def merge_base(self, one: str, other: str) -> str | None:
        """The best common ancestor, if there is any."""
        code, output, _ = await self._execute(("merge-base", one, other), b"", None)
        return output.decode().strip() if code == 0 else None

    async def is_ancestor(self, older: str, newer: str) -> bool:
        """Whether ``newer`` contains ``older``."""
        code, _, _ = await self._execute(("merge-base", "--is-ancestor", older, newer), b"", None)
        return code == 0

    async def count(self, revisions: str) -> int:
        """How many commits a range such as ``a..b`` holds."""
        return int(await self.text("rev-list", "--count", revisions))

    # ---- differences

    async def diff(self, base: str, head: str) -> str:
        """The unified diff between two commits or trees."""
        return (await self.run("diff", "-M", base, head)).decode(errors="replace")

    async def changes(self, base: str, head: str) -> list[FileChange]:
        """The files that differ, with their patches."""
        summary = (
            await self.run("diff", "-M", "-z", "--raw", "--numstat", "--no-abbrev", base, head)
        ).decode(errors="replace")
        patches = re.split(r"^(?=diff --git )", await self.diff(base, head), flags=re.MULTILINE)[1:]
        return _parse_changes(summary.split("\0")[:-1], patches)

    # ---- content

    async def entries(self, treeish: str, *, recursive: bool = False, path: str = "") -> list[TreeEntry]:
        """What a tree holds; with ``path``, that entry alone (or a folder's content if it ends in a slash)."""
        flags = ["-r", "-t"] if recursive else []
        text = (
            await self.run("ls-tree", "-z", "--long", *flags, treeish, "--", *([path] if path else []))
        ).decode(errors="replace")
        entries = []
        for line in text.split("\0")[:-1]:
            description, _, name = line.partition("\t")
            mode, kind, sha, size = description.split()
            entries.append(TreeEntry(mode, kind, sha, None if size == "-" else int(size), name))
        return entries

    async def blob(self, sha: str) -> bytes:
        """A file's bytes."""
        return await self.run("cat-file", "blob", sha)

    async def write_blob(self, content: bytes) -> str:
        """Store a file's bytes and return their SHA."""
        return await self.text("hash-object", "-w", "--stdin", stdin=content)

    async def write_tree(self, base: str | None, changes: Mapping[str, tuple[str, str] | None]) -> str:
        """A tree made of ``base`` and changes: path to (mode, SHA of a blob), or to None to remove it."""
        with tempfile.TemporaryDirectory(prefix="sandbox-index-") as folder:
            env = {"GIT_INDEX_FILE": str(Path(folder) / "index")}
            if base is not None:
                await self.run("read-tree", base, env=env)
            lines = []
            for path, entry in changes.items():
                mode, sha = entry or ("0", NO_COMMIT)
                lines.append(f"{mode} {sha}\t{path}\0".encode())
            await self.run("update-index", "-z", "--index-info", stdin=b"".join(lines), env=env)
            return await self.text("write-tree", env=env)

    async def write_commit(
        self, tree: str, parents: list[str], message: str, author: Identity, committer: Identity | None = None
    ) -> str:
        """Store a commit and return its SHA."""
        committer = committer or author
        env = {
            "GIT_AUTHOR_NAME": author.name,
            "GIT_AUTHOR_EMAIL": author.email,
            "GIT_AUTHOR_DATE": author.date.isoformat(),
            "GIT_COMMITTER_NAME": committer.name,
            "GIT_COMMITTER_EMAIL": committer.email,
            "GIT_COMMITTER_DATE": committer.date.isoformat(),
        }
        flags = [part for parent in parents for part in ("-p", parent)]
        return await self.text("commit-tree", tree, *flags, stdin=message.encode(), env=env)

    async def write_files(
        self, parent: str | None, files: Mapping[str, str | bytes | None], message: str, author: Identity
    ) -> str:
        """A commit upon ``parent`` that writes these files; None removes one."""
        changes: dict[str, tuple[str, str] | None] = {}
        for path, content in files.items():
            data = content.encode() if isinstance(content, str) else content
            changes[path] = None if data is None else ("100644", await self.write_blob(data))
        tree = await self.write_tree(parent, changes)
        return await self.write_commit(tree, [parent] if parent else [], message, author)

    async def merge(self, base: str, head: str) -> str | None:
        """The tree that merging ``head`` into ``base`` gives; None when they conflict."""
        code, output, errors = await self._execute(("merge-tree", "--write-tree", base, head), b"", None)
        if code > 1:
            raise GitError(errors.decode(errors="replace"))
        return output.decode().split("\n", 1)[0] if code == 0 else None


def _parse_commit(record: str) -> Commit:
    sha, tree, parents, *identities, message = record.split("\x1f", 9)
    author, committer = (
        Identity(name, email, datetime.fromisoformat(date))
        for name, email, date in (identities[:3], identities[3:])
    )
    return Commit(sha, tree, parents.split(), author, committer, message.rstrip("\n"))


def _parse_changes(fields: list[str], patches: list[str]) -> list[FileChange]:
    """Read ``git diff -z --raw --numstat``: first the raw records, then the counts, both in the same order."""
    raw: list[tuple[str, str, str, str | None]] = []
    position = 0
    while position < len(fields) and fields[position].startswith(":"):
        *_, blob, letter = fields[position].split(" ")
        if letter[0] in "RC":
            raw.append((letter[0], blob, fields[position + 2], fields[position + 1]))
            position += 3
        else:
            raw.append((letter[0], blob, fields[position + 1], None))
            position += 2
    counts = [match for one in fields[position:] if (match := re.match(r"(\d+|-)\t(\d+|-)\t", one))]
    changes = []
    for (letter, blob, path, previous), count, patch in zip(raw, counts, patches, strict=True):
        added, removed = (0 if number == "-" else int(number) for number in count.groups())
        hunks = patch.find("\n@@")
        changes.append(
            FileChange(
                path,
                _STATUS_WORDS.get(letter, "changed"),
                added,
                removed,
                blob,
                previous,
                patch[hunks + 1 :].rstrip("\n") if hunks >= 0 else None,
            )
        )
    return changes
