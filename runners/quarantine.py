"""The quarantine: a bare repository of this host into which one attempt pushes, and from which we publish.

The host never checks out what an agent wrote and runs no command that obeys it: commits come in by
``receive-pack`` with every object checked, are looked at with plumbing commands that know neither filters,
attributes nor hooks, and one commit of our own making leaves. Objects of the repository's past are read from
the mirror (``alternates``), so a push brings only what is new.

Layout: ``create`` makes ``<path>`` whole or not at all; its configuration is all in one file, written by us.
"""

from __future__ import annotations

import contextlib
import os
import re
import shutil
import stat
import tempfile
from collections.abc import AsyncGenerator, Collection, Iterable, Sequence
from dataclasses import dataclass, replace
from datetime import datetime
from pathlib import Path
from typing import NamedTuple

from bot.branches import valid_branch
from bot.changes import MAX_TARGET, ChangedFile, Changes
from bot.errors import ConductorError, InfrastructureError, JobFailed
from bot.model import FailureKind, Phase
from runners.git import (
    WARY,
    WARY_OF_TREES,
    GitError,
    GitTimeout,
    git,
    protocols_for,
    remote_failure,
    stream,
    with_token,
)
from runners.signing import SshSigner

WORK, CHECKPOINT = "work", "checkpoint"

#: Seconds: for reading what came, and for pushing it to GitHub.
INSPECT_TIMEOUT = 120.0
PUSH_TIMEOUT = 600.0
#: Entries of a difference that are read; more makes the change "incomplete", which every rule refuses.
MAX_ENTRIES = 20_000
#: How many times the largest push an attempt may leave here in all.
ROOM_FACTOR = 4

# transfer.hideRefs / receive.hideRefs: a push to a hidden ref is refused, so these two are all there is
# (https://git-scm.com/docs/git-config#Documentation/git-config.txt-transferhideRefs). No hook is needed for it.
# unpackLimit 1: every push stays a pack, is streamed by index-pack and never unpacked into memory as a whole.
# bigFileThreshold: larger blobs are hashed in pieces instead of being held in memory.
_CONFIG = """\
[core]
\trepositoryformatversion = 0
\tbare = true
\tlogAllRefUpdates = false
\thooksPath = /dev/null
\tbigFileThreshold = 4m
\talternateRefsPrefixes = refs/heads/
[gc]
\tauto = 0
[maintenance]
\tauto = false
[pack]
\tthreads = 1
[http]
\treceivepack = true
\tuploadpack = false
[transfer]
\tfsckObjects = true
\tunpackLimit = 1
\thideRefs = refs
\thideRefs = HEAD
[receive]
\tfsckObjects = true
\tunpackLimit = 1
\tmaxInputSize = {max_bytes}
\tdenyDeletes = true
\tdenyCurrentBranch = ignore
\tautogc = false
\tupdateServerInfo = false
\tadvertisePushOptions = false
\tshallowUpdate = false
\thideRefs = !refs/heads/work
\thideRefs = !refs/heads/checkpoint
"""
_SHA = re.compile(r"[0-9a-f]{40}")


@dataclass(frozen=True, kw_only=True)
class Person:
    """Who a commit is said to be by."""

    name: str
    email: str

    def __str__(self) -> str:
        return f"{_plain(self.name)} <{_plain(self.email)}>"


@dataclass(frozen=True, kw_only=True)
class TreeEntry:
    """One entry of the difference between two trees, as it shall be."""

    path: str  # bytes that are not UTF-8 are kept as surrogates (PEP 383)
    mode: int  # as in st_mode; 0: it shall go
    oid: str  # of the blob; all zeros when it shall go
    size: int = 0  # bytes


class AddedText(NamedTuple):
    """Lines that a change adds to one file: whole lines where they are not longer than a piece."""

    path: str
    text: str


async def create(path: Path, mirror: Path, *, max_input_bytes: int) -> Path:
    """Make the bare repository at ``path`` that reads ``mirror``'s objects; safe to repeat.

    A single push may have ``max_input_bytes``. Only ``refs/heads/work`` and ``refs/heads/checkpoint`` can be
    pushed. Raises InfrastructureError.
    """
    path, mirror = path.absolute(), mirror.absolute()
    if path.exists():
        return path
    if "\n" in str(mirror):
        raise InfrastructureError(f"The data folder's name {str(mirror)!r} has a line end.", "Use another.")
    new = path.with_name(path.name + ".new")
    if new.exists():
        shutil.rmtree(new)
    new.parent.mkdir(parents=True, exist_ok=True)
    await git("init", "--quiet", "--bare", "--template=", "--", str(new), umask=0o077)
    (new / "config").write_text(_CONFIG.format(max_bytes=max_input_bytes))
    info = new / "objects" / "info"
    info.mkdir(exist_ok=True)
    # https://git-scm.com/docs/gitrepository-layout: one path a line; a leading quote or hash has a meaning
    (info / "alternates").write_text(f"{mirror / 'objects'}\n")
    new.rename(path)
    return path


def size(quarantine: Path) -> int:
    """Bytes on disk of everything in ``quarantine``, at least a block for each file."""
    total = 0
    for file in quarantine.rglob("*"):
        with contextlib.suppress(FileNotFoundError):  # a push that is just ending moves its files
            total += max(file.lstat().st_size, 4096)
    return total


async def head(quarantine: Path, branch: str = WORK) -> str | None:
    """The commit that was pushed to ``branch``; None when nothing was."""
    try:
        found = await git(
            "rev-parse",
            "--verify",
            "--quiet",
            "--end-of-options",
            f"refs/heads/{branch}",
            git_dir=quarantine,
            env=WARY,
        )
    except GitError as error:
        if error.code == 1:
            return None
        raise
    return found.text


async def forget_checkpoint(quarantine: Path) -> None:
    """Drop the last checkpoint: the turn has handed in its work, which is newer."""
    await git("update-ref", "-d", f"refs/heads/{CHECKPOINT}", git_dir=quarantine, env=WARY)


async def inspect(
    quarantine: Path, base_sha: str, head_sha: str, *, max_entries: int = MAX_ENTRIES
) -> Changes:
    """What changed between two commits, read without checking anything out.

    At most ``max_entries`` files are read. Raises JobFailed (publish, refused) when the commits cannot be
    compared: the head is missing, is no commit, or is built to exhaust whoever reads it.
    """
    _check_sha(base_sha)
    _check_sha(head_sha)
    try:
        descends = await _is_ancestor(quarantine, base_sha, head_sha)
        commits = 0
        if descends:
            counted = await git(
                "rev-list", "--count", f"{base_sha}..{head_sha}", git_dir=quarantine, env=WARY
            )
            commits = int(counted.text)
        entries, complete = await _difference(quarantine, base_sha, head_sha, max_entries)
        files = await _with_contents(quarantine, entries)
    except GitError as error:
        raise _unreadable(error) from error
    return Changes(
        base_sha=base_sha,
        head_sha=head_sha,
        descends=descends,
        commits=commits,
        files=files,
        complete=complete,
    )


async def added_text(
    quarantine: Path, base_sha: str, head_sha: str, *, max_bytes: int = 256 * 2**20, piece: int = 256 * 2**10
) -> AsyncGenerator[AddedText]:
    """Everything that a change adds, as text, for a search for secrets; of binary files too.

    Pieces have about ``piece`` characters and overlap by 16 Ki where a piece ends within a file, so that
    nothing that is shorter than that hides on a border. Bytes that are not UTF-8 become U+FFFD. Raises JobFailed
    (publish, refused) for more than ``max_bytes`` of patch or MAX_ENTRIES files. Use ``contextlib.aclosing``
    when leaving early.
    """
    _check_sha(base_sha)
    _check_sha(head_sha)
    reader = _AddedLines(piece)
    seen = 0
    output = stream(
        "-c",
        "core.quotePath=false",
        "diff-tree",
        "-r",
        "-p",
        "-U0",
        "--text",  # attributes must not hide a file from the search
        "--no-ext-diff",
        "--no-textconv",
        "--no-renames",
        "--no-color",
        "--no-indent-heuristic",
        "--irreversible-delete",
        "--ignore-submodules=none",
        "--src-prefix=a/",
        "--dst-prefix=b/",
        base_sha,
        head_sha,
        "--",
        git_dir=quarantine,
        env=WARY,
        timeout=INSPECT_TIMEOUT,
    )
    try:
        # a patch is made in memory: first make sure that it ends
        if not (await _difference(quarantine, base_sha, head_sha, MAX_ENTRIES))[1]:
            raise _too_large_to_search(f"more than {MAX_ENTRIES} files")
        async with contextlib.aclosing(output):
            async for chunk in output:
                seen += len(chunk)
                if seen > max_bytes:
                    raise _too_large_to_search(f"more than {max_bytes} bytes of text")
                for part in reader.feed(chunk):
                    yield part
        for part in reader.end():
            yield part
    except GitError as error:
        raise _unreadable(error) from error


async def tree_of(quarantine: Path, treeish: str) -> str:
    """The tree of a commit (or the tree itself)."""
    _check_sha(treeish)
    return (
        await git(
            "rev-parse", "--verify", "--end-of-options", f"{treeish}^{{tree}}", git_dir=quarantine, env=WARY
        )
    ).text


async def without(quarantine: Path, base_sha: str, head_sha: str, held: Collection[str]) -> str:
    """The tree of ``head_sha`` with the paths ``held`` as they are in ``base_sha``; made in an index of its own.

    ``held`` are paths of changed files; when one is at the place of a folder that another needs, both must be in it.
    Raises JobFailed (publish, refused) when the trees cannot be read.
    """
    _check_sha(base_sha)
    _check_sha(head_sha)
    with tempfile.TemporaryDirectory(prefix="index-", dir=quarantine) as folder:
        env = WARY | {"GIT_INDEX_FILE": str(Path(folder) / "index")}
        # the rules of bot/changes.py looked at every changed name; those that were there before are not ours
        config = (("core.protectNTFS", "false"), ("core.protectHFS", "false"))

        async def run(*argv: str, lines: Iterable[bytes] = ()) -> str:
            found = await git(
                *argv,
                git_dir=quarantine,
                env=env,
                config=config,
                input=b"\0".join((*lines, b"")),
                timeout=INSPECT_TIMEOUT,
                umask=0o077,
            )
            return found.text

        try:
            before = await _reversed_entries(quarantine, base_sha, head_sha, held)
            await run("read-tree", f"{head_sha}^{{tree}}")
            gone = [entry for entry in before if not entry.mode]
            kept = [entry for entry in before if entry.mode]
            # first what must go: it may be where a folder was
            lines = [
                f"{entry.mode:o} {entry.oid}\t".encode() + os.fsencode(entry.path) for entry in (*gone, *kept)
            ]
            await run("update-index", "-z", "--index-info", lines=lines)
            return await run("write-tree")
        except GitError as error:
            raise _unreadable(error) from error


async def _reversed_entries(
    quarantine: Path, base_sha: str, head_sha: str, held: Collection[str]
) -> list[TreeEntry]:
    """What would bring the paths ``held`` back to what they are in ``base_sha``."""
    entries, complete = await _difference(quarantine, head_sha, base_sha, MAX_ENTRIES)
    if not complete:
        raise _too_large_to_search(f"more than {MAX_ENTRIES} files")
    return [
        TreeEntry(path=file.path, mode=file.new_mode, oid=oid) for file, oid in entries if file.path in held
    ]


async def difference(quarantine: Path, old: str, new: str) -> list[TreeEntry]:
    """What makes the tree of ``new`` from the tree of ``old``, with the sizes of the contents."""
    _check_sha(old)
    _check_sha(new)
    try:
        entries, complete = await _difference(quarantine, old, new, MAX_ENTRIES)
        if not complete:
            raise _too_large_to_search(f"more than {MAX_ENTRIES} files")
        files = await _with_contents(quarantine, entries)
    except GitError as error:
        raise _unreadable(error) from error
    return [
        TreeEntry(path=file.path, mode=file.new_mode, oid=oid, size=file.size)
        for file, (_, oid) in zip(files, entries, strict=True)
    ]


async def blob(quarantine: Path, oid: str, *, max_bytes: int) -> bytes:
    """The content of one file. Raises GitError when it is longer than ``max_bytes``."""
    _check_sha(oid)
    found = await git(
        "cat-file", "blob", oid, git_dir=quarantine, env=WARY, timeout=INSPECT_TIMEOUT, max_output=max_bytes
    )
    return found.stdout


async def small_blobs(quarantine: Path, oids: Sequence[str]) -> dict[str, bytes]:
    """The contents of files that are known to be small (MAX_TARGET on average at most). Raises JobFailed."""
    for oid in oids:
        _check_sha(oid)
    try:
        found = await _contents(quarantine, oids)
    except GitError as error:
        raise _unreadable(error) from error
    return {oid: text.encode("utf-8", "surrogateescape") for oid, text in found.items()}


async def patch(quarantine: Path, old: str, new: str) -> AsyncGenerator[bytes]:
    """What `git apply` needs to make the tree of ``new`` from the tree of ``old``; binary files, too.

    Use ``contextlib.aclosing`` when leaving early. Raises JobFailed (publish, refused).
    """
    _check_sha(old)
    _check_sha(new)
    output = stream(
        "diff-tree",
        "-r",
        "-p",
        "--binary",
        "--full-index",
        "--no-ext-diff",
        "--no-textconv",
        "--no-renames",
        "--no-color",
        "--no-indent-heuristic",
        "--ignore-submodules=none",
        "--src-prefix=a/",
        "--dst-prefix=b/",
        old,
        new,
        "--",
        git_dir=quarantine,
        env=WARY,
        timeout=INSPECT_TIMEOUT,
    )
    try:
        async with contextlib.aclosing(output):
            async for chunk in output:
                yield chunk
    except GitError as error:
        raise _unreadable(error) from error


def with_co_author(message: str, co_author: Person | None) -> str:
    """A commit's message that names who asked for it."""
    text = message.replace("\x00", "").strip() or "Work of the agent"
    if co_author is not None:
        # https://docs.github.com/en/pull-requests/committing-changes-to-your-project/
        # creating-and-editing-commits/creating-a-commit-with-multiple-authors
        text += f"\n\nCo-authored-by: {co_author}"
    return text + "\n"


async def seal(
    quarantine: Path,
    base_sha: str,
    head_sha: str,
    *,
    author: Person,
    committer: Person,
    message: str,
    moment: datetime,
    co_author: Person | None = None,
    tree: str | None = None,
    signer: SshSigner | None = None,
) -> str:
    """Make one commit on top of ``base_sha`` with ``head_sha``'s tree (or ``tree``) and return its SHA.

    Author, committer and message are ours, whatever the agent wrote into its own commits; those stay here.
    The same arguments give the same SHA (with a signer: for Ed25519 and RSA keys), so a repetition after a crash makes
    nothing new. ``moment`` needs a time zone.
    """
    _check_sha(base_sha)
    _check_sha(head_sha)
    if tree is not None:
        _check_sha(tree)
    if moment.tzinfo is None:
        raise ValueError("`moment` needs a time zone")
    stamp = f"{int(moment.timestamp())} +0000"
    with signer.ready() if signer else contextlib.nullcontext(()) as config:
        sealed = await git(
            "commit-tree",
            *(("-S",) if signer else ()),
            "-p",
            base_sha,
            "-F",
            "-",
            tree or f"{head_sha}^{{tree}}",
            git_dir=quarantine,
            input=with_co_author(message, co_author).encode("utf-8", "replace"),
            config=config,
            env=WARY
            | {
                "GIT_AUTHOR_NAME": _plain(author.name),
                "GIT_AUTHOR_EMAIL": _plain(author.email),
                "GIT_AUTHOR_DATE": stamp,
                "GIT_COMMITTER_NAME": _plain(committer.name),
                "GIT_COMMITTER_EMAIL": _plain(committer.email),
                "GIT_COMMITTER_DATE": stamp,
            },
            umask=0o077,
        )
    return sealed.text


async def push(
    quarantine: Path,
    *,
    url: str,
    token: str,
    sha: str,
    branch: str,
    expected: str | None,
    timeout: float = PUSH_TIMEOUT,
) -> None:
    """Make ``branch`` at ``url`` be ``sha``, only if it is ``expected`` now (None: it does not exist).

    ``sha`` must descend from ``expected``. When the branch is at ``sha`` already nothing happens, so it may
    be repeated after a crash or an unclear answer. Raises JobFailed in phase publish: conflict when the branch
    is somewhere else, refused when GitHub's rules say no, auth or configuration when the App may not;
    GitHubUnavailable or InfrastructureError for the rest.
    """
    _check_sha(sha)
    if not valid_branch(branch):
        raise JobFailed(
            Phase.publish,
            FailureKind.configuration,
            f"{branch!a} is not a branch name.",
            "Use another branch.",
        )
    ref = f"refs/heads/{branch}"
    if expected is not None:
        _check_sha(expected)
        try:
            forward = await _is_ancestor(quarantine, expected, sha)
        except GitError as error:
            if error.code != 128 or isinstance(error, GitTimeout):
                raise
            forward = False  # we do not even have the commit that the branch is said to be at
        if not forward:
            raise conflict(branch, "it does not contain the branch's newest commit")
    try:
        await git(
            "push",
            "--porcelain",
            "--no-verify",
            "--no-signed",
            "--no-follow-tags",
            "--recurse-submodules=no",
            # GitHub compares again when it updates the ref; without this a new branch could move a foreign one
            f"--force-with-lease={ref}:{expected or ''}",
            "--",
            url,
            f"{sha}:{ref}",
            git_dir=quarantine,
            env=WARY,
            config=with_token(token, url),
            protocols=protocols_for(url),
            timeout=timeout,
        )
    except GitError as error:
        raise _push_failure(error, branch) from error


def _push_failure(error: GitError, branch: str) -> ConductorError:
    answer = error.stdout.decode("utf-8", "replace")
    words = f"{answer}\n{error.stderr}"
    remote = _remote_words(error.stderr)
    workflow = re.search(r"refusing to allow .* to create or update workflow `?([^`\s]+)`?", words)
    if workflow or "without `workflows` permission" in words or "without `workflow` scope" in words:
        name = workflow[1] if workflow else "a workflow"
        return JobFailed(
            Phase.publish,
            FailureKind.refused,
            f"GitHub does not let this App change {name}: it has no permission for workflows.",
            "Make that change by hand, or bring the branch up to date with its base, then retry.",
        )
    if "verified signature" in words:
        return JobFailed(
            Phase.publish,
            FailureKind.refused,
            f"A rule of the repository wants signed commits. {remote}".strip(),
            "The operator can have them signed: `commit_signing` in conductor.toml.",
        )
    if "GH006" in words or "protected branch hook declined" in words:
        return JobFailed(
            Phase.publish,
            FailureKind.refused,
            f"The branch {branch} is protected: GitHub refused the push. {remote}".strip(),
            "Let the App push to it in the branch protection's settings, or use another branch.",
        )
    if "GH013" in words:
        return JobFailed(
            Phase.publish,
            FailureKind.refused,
            f"A rule of the repository does not allow this push. {remote}".strip(),
            "Change what the rule names (for a secret: remove it), or exempt the App in the repository's rulesets.",
        )
    if re.search(r"\(stale info\)|\((non-fast-forward|fetch first|needs force)\)", answer) or re.search(
        r"\[remote rejected\].*(cannot lock ref|failed to update ref|incorrect old value|reference already exists)",
        words,
    ):
        return conflict(branch, "somebody else pushed to it meanwhile")
    if "[remote rejected]" in answer:
        reason = re.search(r"\[remote rejected\] \((.*)\)", answer)
        return JobFailed(
            Phase.publish,
            FailureKind.refused,
            f"GitHub refused the push ({reason[1] if reason else 'no reason given'}). {remote}".strip(),
            "Change what it names, then retry.",
        )
    return remote_failure(error, Phase.publish, "did not take the push")


def conflict(branch: str, why: str) -> JobFailed:
    """The branch is not where it was when the work began."""
    return JobFailed(
        Phase.publish,
        FailureKind.conflict,
        f"The result was not pushed to {branch}: {why}.",
        "Nothing was overwritten. Retry the job to work on the branch as it is now.",
    )


def _remote_words(stderr: str) -> str:
    """What GitHub said on its ``remote:`` lines, shortened to one line."""
    lines = [
        line.removeprefix("remote:").strip() for line in stderr.splitlines() if line.startswith("remote:")
    ]
    said = " ".join(line.removeprefix("error:").strip() for line in lines if line)
    return f"GitHub says: {said[:500]}" if said else ""


async def _is_ancestor(quarantine: Path, older: str, newer: str) -> bool:
    answer = await git(
        "merge-base",
        "--is-ancestor",
        older,
        newer,
        git_dir=quarantine,
        env=WARY,
        accept=(0, 1),
        timeout=INSPECT_TIMEOUT,
    )
    return answer.code == 0


async def _difference(
    quarantine: Path, base_sha: str, head_sha: str, limit: int
) -> tuple[list[tuple[ChangedFile, str]], bool]:
    """The changed entries with their new object ids, and whether these are all."""
    output = stream(
        "diff-tree",
        "-r",
        "-z",
        "--raw",
        "--no-renames",
        "--no-abbrev",
        "--ignore-submodules=none",
        base_sha,
        head_sha,
        "--",
        git_dir=quarantine,
        env=WARY_OF_TREES,
        timeout=INSPECT_TIMEOUT,
    )
    entries: list[tuple[ChangedFile, str]] = []
    rest = b""
    async with contextlib.aclosing(output):
        async for chunk in output:
            fields = (rest + chunk).split(b"\0")
            rest = fields.pop()
            if len(fields) % 2:  # the meta-data of an entry whose path has not come yet
                rest = fields.pop() + b"\0" + rest
            for meta, path in zip(fields[::2], fields[1::2], strict=True):
                if len(entries) == limit:
                    return entries, False
                entries.append(_entry(meta.decode(), path))
            if len(rest) > 2**20:
                # a path of this length is an attack by depth; what was read is enough to refuse it
                return entries, False
    return entries, True


def _entry(meta: str, path: bytes) -> tuple[ChangedFile, str]:
    # ":100644 100755 <old id> <new id> M", https://git-scm.com/docs/diff-format
    old_mode, new_mode, _, new_id, status = meta.removeprefix(":").split(" ")
    file = ChangedFile(
        path=path.decode("utf-8", "surrogateescape"),
        status=status[0],
        old_mode=int(old_mode, 8),
        new_mode=int(new_mode, 8),
    )
    return file, new_id


async def _with_contents(
    quarantine: Path, entries: Sequence[tuple[ChangedFile, str]]
) -> tuple[ChangedFile, ...]:
    """The files with their sizes and, for symlinks, their targets. Contents of others are never read."""
    wanted = sorted({oid for file, oid in entries if file.new_mode and not file.is_submodule})
    listed = await git(
        "cat-file",
        "--batch-check=%(objectname) %(objecttype) %(objectsize)",
        "--buffer",
        git_dir=quarantine,
        env=WARY,
        input="".join(f"{oid}\n" for oid in wanted).encode(),
        timeout=INSPECT_TIMEOUT,
    )
    sizes: dict[str, int] = {}
    for line in listed.text.splitlines():
        oid, kind, *amount = line.split(" ")
        if kind == "missing" or not amount:
            raise GitError("cat-file", 0, f"object {oid} is missing")
        sizes[oid] = int(amount[0])
    short = sorted({oid for file, oid in entries if stat.S_ISLNK(file.new_mode) and sizes[oid] <= MAX_TARGET})
    targets = await _contents(quarantine, short)
    return tuple(
        replace(file, size=sizes.get(oid, 0), target=targets.get(oid) if file.is_symlink else None)
        for file, oid in entries
    )


async def _contents(quarantine: Path, oids: Sequence[str]) -> dict[str, str]:
    if not oids:
        return {}
    answer = await git(
        "cat-file",
        "--batch",
        "--buffer",
        git_dir=quarantine,
        env=WARY,
        input="".join(f"{oid}\n" for oid in oids).encode(),
        timeout=INSPECT_TIMEOUT,
        max_output=len(oids) * (MAX_TARGET + 100),
    )
    found: dict[str, str] = {}
    data, at = answer.stdout, 0
    while at < len(data):
        end = data.index(b"\n", at)
        oid, _, length = data[at:end].decode().split(" ")
        at = end + 1
        found[oid] = data[at : at + int(length)].decode("utf-8", "surrogateescape")
        at += int(length) + 1
    return found


class _AddedLines:
    """Reads a patch with no context lines and gives the added ones.

    Counts lines, so that nothing in a file can look like the patch's own structure.
    """

    _HUNK = re.compile(rb"@@ -\d+(?:,(\d+))? \+\d+(?:,(\d+))? @@")
    _OVERLAP = 16 * 2**10  # more than bot/redact.py matches on one line

    def __init__(self, piece: int) -> None:
        self._piece = piece
        self._path = ""
        self._line = b""  # the beginning of a line that has not ended yet
        self._old = self._new = 0  # lines left in this hunk
        self._inside_long = False  # the beginning of this added line was given to the text already
        self._text = bytearray()
        self._fresh = 0  # bytes of the text that were not yielded before

    def feed(self, chunk: bytes) -> list[AddedText]:
        """Take the next part of the patch."""
        parts: list[AddedText] = []
        *lines, self._line = (self._line + chunk).split(b"\n")
        for line in lines:
            parts += self._take(line)
        if self._new and not self._old and len(self._line) > self._piece and self._starts_added():
            # a very long added line: do not wait for its end
            parts += self._add(self._line if self._inside_long else self._line[1:])
            self._inside_long, self._line = True, b""
        return parts

    def end(self) -> list[AddedText]:
        """The last piece."""
        parts = self._take(self._line) if self._line else []
        return parts + self._flush(keep=False)

    def _starts_added(self) -> bool:
        return self._inside_long or self._line.startswith(b"+")

    def _take(self, line: bytes) -> list[AddedText]:
        if self._inside_long:
            self._inside_long = False
            self._new -= 1
            return self._add(line + b"\n")
        if line.startswith(b"\\"):  # "\ No newline at end of file"
            return []
        if self._old and line.startswith(b"-"):
            self._old -= 1
            return []
        if self._new and line.startswith(b"+"):
            self._new -= 1
            return self._add(line[1:] + b"\n")
        hunk = self._HUNK.match(line)
        if hunk:
            self._old, self._new = (int(count) if count else 1 for count in hunk.groups())
        elif line.startswith(b"diff --git "):
            return self._flush(keep=False)
        elif line.startswith(b"+++ "):
            name = line[4:].rstrip(b"\t").decode("utf-8", "surrogateescape")
            self._path = name.removeprefix("b/")
        return []

    def _add(self, data: bytes) -> list[AddedText]:
        self._text += data
        self._fresh += len(data)
        return self._flush(keep=True) if len(self._text) >= self._piece else []

    def _flush(self, *, keep: bool) -> list[AddedText]:
        parts = []
        if self._fresh:
            parts.append(AddedText(path=self._path, text=self._text.decode("utf-8", "replace")))
        self._text = self._text[-self._OVERLAP :] if keep else bytearray()
        self._fresh = 0
        return parts


def _too_large_to_search(why: str) -> JobFailed:
    return JobFailed(
        Phase.publish,
        FailureKind.refused,
        f"The change is too large to be searched for secrets: {why}.",
        "Ask for it in smaller steps.",
    )


def _unreadable(error: GitError) -> JobFailed:
    if "over limit" in error.stderr or isinstance(error, GitTimeout):
        return JobFailed(
            Phase.publish,
            FailureKind.refused,
            "What the agent pushed is too large to be read.",
            "Look at the job's log for what made so many or so large files, and ask for it in smaller steps.",
        )
    return JobFailed(
        Phase.publish,
        FailureKind.refused,
        f"What the agent pushed cannot be read: {error.stderr.strip()[:200] or 'git crashed on it'}.",
        "Retry the job; if it stays, look at the job's log for what the agent did to the repository.",
    )


def _check_sha(sha: str) -> None:
    # some come from the container's own report
    if not _SHA.fullmatch(sha):
        raise JobFailed(
            Phase.publish,
            FailureKind.refused,
            f"{sha[:80]!a} is not a full commit id.",
            "Retry the job; if it stays, look at its log for what the agent did to the repository.",
        )


def _plain(text: str) -> str:
    """``text`` without what has a meaning in a commit's header or a trailer."""
    return re.sub(r"[<>\x00-\x1f\x7f]", "", text).strip() or "unknown"
