"""The audit trail as a chain: each entry's hash covers all its fields and the hash of the entry before it.

Changing, removing, inserting or reordering entries breaks the chain, and :class:`Verifier` says where. What no chain
can show by itself is that its end was cut off, or that somebody wrote all of it anew: for that, compare it with a
:class:`Link` that was noted elsewhere (`conductor audit` prints the newest one, and so does the log).
"""

from __future__ import annotations

import enum
import hashlib
import json
import re
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any, Self

#: What the first entry names as the hash before it.
GENESIS = "0" * 64
#: Integers up to here are the same number in every language's JSON: https://www.rfc-editor.org/rfc/rfc8785#section-3.2.2.3
LARGEST = 2**53 - 1

_LINK = re.compile(r"([1-9][0-9]{0,18}):([0-9a-f]{64})")


class AuditKind(enum.StrEnum):
    """What happened. What stands in ``details`` is up to whoever records it."""

    job_accepted = "job.accepted"
    job_refused = "job.refused"  # any command that was refused, with the decision
    job_cancelled = "job.cancelled"  # somebody wants it to stop
    job_answered = "job.answered"  # a paused job's question
    job_told = "job.told"  # more words for an agent that works
    job_ended = "job.ended"  # with what it used and cost
    approval_asked = "approval.asked"
    approval_granted = "approval.granted"
    approval_refused = "approval.refused"
    approval_void = "approval.void"  # dismissed, edited, stale, expired, withdrawn, or not entitled
    approval_used = "approval.used"  # what was approved is done now
    operator = "operator"  # a command on the host
    override = "override"  # somebody or something decided in place of the rule or the review
    token_minted = "token.minted"  # noqa: S105 - the name of an event
    push = "push"  # recorded right before: nothing leaves unrecorded
    push_failed = "push.failed"
    pull_opened = "pull.opened"
    pull_closed = "pull.closed"  # a draft that nothing came of
    branch_removed = "branch.removed"  # that nobody owned any more
    lfs_upload = "lfs.upload"  # large files; recorded right before
    token_revoked = "token.revoked"  # noqa: S105 - the name of an event; others end by themselves
    review_ignored = "review.ignored"  # it does not count, and why
    agent_refused = "agent.refused"  # what an agent asked for, and nobody can grant
    held_back = "held_back"  # changes that only people may make
    merge = "merge"
    process_started = "process.started"  # with what its operator set
    installation = "installation"  # installed, suspended, removed, repositories or permissions changed


#: Without the entry these are not done: power is given out, or something leaves that cannot be taken back. Everything
#: else goes on, and the log gets the entry: to stop, to refuse and to tell the end must never be hindered.
MUST = frozenset(
    {
        AuditKind.job_accepted,
        AuditKind.job_answered,
        AuditKind.job_told,
        AuditKind.approval_asked,
        AuditKind.approval_granted,
        AuditKind.approval_used,
        AuditKind.operator,
        AuditKind.override,
        AuditKind.token_minted,
        AuditKind.push,
        AuditKind.lfs_upload,
        AuditKind.merge,
    }
)


@dataclass(frozen=True, kw_only=True)
class Link:
    """One entry's place in the chain, to be noted elsewhere: ``17:9f86d0…``."""

    seq: int
    hash: str

    @classmethod
    def parse(cls, text: str) -> Self:
        """``SEQ:HASH``. Raises ValueError for anything else."""
        found = _LINK.fullmatch(text.strip().lower())
        if found is None:
            raise ValueError(f"{text!r} is not SEQ:HASH, as `conductor audit verify` prints it")
        return cls(seq=int(found[1]), hash=found[2])

    def __str__(self) -> str:
        return f"{self.seq}:{self.hash}"


@dataclass(frozen=True, kw_only=True)
class Entry:
    """One thing that happened. All values are of JSON, so that anybody can compute the hash again."""

    seq: int  # 1, 2, 3 … without a gap
    at: str  # 2026-11-21T10:51:47.123456Z
    kind: str
    actor: str  # a login; "operator:NAME" for somebody on the host; "conductor" for the bot itself
    actor_id: int | None = None  # GitHub's id of the account
    repo_id: int | None = None
    repo: str = ""  # owner/name, as it was called then
    number: int | None = None
    job_id: str | None = None
    delivery_id: str | None = None  # the webhook that caused it
    sha: str | None = None
    decision: Any = None  # the tree of reasons: bot.reasons.as_data
    details: Any = None  # an object
    previous: str  # the hash of the entry before
    hash: str = ""

    @property
    def link(self) -> Link:
        """Its place in the chain."""
        return Link(seq=self.seq, hash=self.hash)

    def digest(self) -> str:
        """What its hash must be: SHA-256 of the canonical JSON of all other fields. Raises ValueError."""
        fields = self.values()
        del fields["hash"]
        return hashlib.sha256(canonical(fields)).hexdigest()

    def values(self) -> dict[str, Any]:
        """Its fields by name. Nothing is copied: do not change what they hold."""
        return dict(vars(self))


@dataclass(frozen=True, kw_only=True)
class Unreadable:
    """A row in the place of an entry that cannot have been written by us."""

    seq: int
    why: str


class FindingKind(enum.StrEnum):
    """What can be wrong with a chain."""

    changed = "changed"  # an entry does not have the hash that it names
    replaced = "replaced"  # an entry is whole, but not the one that its successor was chained to
    missing = "missing"
    inserted = "inserted"
    cut = "cut"  # the end is gone
    anchor = "anchor"  # an entry is not the one that was noted elsewhere


@dataclass(frozen=True, kw_only=True)
class Finding:
    """One thing that is wrong, where, in words."""

    kind: FindingKind
    seq: int
    said: str


#: In place of the newest entry, when the database has lost the row that tells it.
HEAD_GONE = Link(seq=-1, hash="")


class Verifier:
    """Checks a chain entry by entry, in constant memory. Findings say what is wrong as exactly as the chain can."""

    def __init__(self, anchors: Iterable[Link] = (), *, max_findings: int = 100) -> None:
        """``anchors``: links that were noted elsewhere and must be in it. Only ``max_findings`` are kept."""
        self.findings: list[Finding] = []
        self.count = 0
        self.found = 0  # findings in all
        self.newest: Link | None = None
        self._anchors: dict[int, set[str]] = {}
        for anchor in anchors:
            self._anchors.setdefault(anchor.seq, set()).add(anchor.hash)
        self._max = max_findings
        self._computed = GENESIS  # what the entry before should be hashed to

    def take(self, entry: Entry | Unreadable) -> None:
        """The next one, in the order in which they are stored."""
        before = self.newest.seq if self.newest else 0
        if entry.seq <= before:
            # cannot come from a table with a primary key, but from a file
            self._find(
                FindingKind.inserted, entry.seq, f"comes after entry {before}: it was inserted or moved"
            )
            return
        self.count += 1
        if entry.seq > before + 1:
            more = f", and all until {entry.seq - 1}" if entry.seq > before + 2 else ""
            self._find(FindingKind.missing, before + 1, f"is missing{more}")
        if isinstance(entry, Unreadable):
            self._find(FindingKind.changed, entry.seq, f"was changed: {entry.why}")
            for noted in self._anchors.pop(entry.seq, ()):
                self._find(FindingKind.anchor, entry.seq, f"is not the one noted elsewhere ({noted})")
            self.newest, self._computed = Link(seq=entry.seq, hash=""), ""
            return
        self._check(entry, follows=entry.seq == before + 1)

    def _check(self, entry: Entry, *, follows: bool) -> None:
        try:
            computed = entry.digest()
        except ValueError as error:
            computed = ""
            self._find(FindingKind.changed, entry.seq, f"was changed: {error}")
        else:
            if computed != entry.hash:
                self._find(
                    FindingKind.changed, entry.seq, "was changed: it does not have the hash that it names"
                )
        stored = self.newest.hash if self.newest else GENESIS
        # an entry whose hash alone was changed was found already, and an unreadable one says nothing
        if follows and stored and entry.previous not in (stored, self._computed):
            if entry.seq == 1:
                self._find(
                    FindingKind.replaced, 1, "is not the first that was written: it names one before it"
                )
            else:
                self._find(
                    FindingKind.replaced,
                    entry.seq - 1,
                    f"is not the one that entry {entry.seq} was chained to: "
                    f"it was rewritten or inserted, or entry {entry.seq} was",
                )
        for noted in self._anchors.pop(entry.seq, ()):
            if noted != entry.hash:
                self._find(
                    FindingKind.anchor,
                    entry.seq,
                    f"is not the one noted elsewhere ({noted}): the chain was written anew from here or before",
                )
        self.newest, self._computed = entry.link, computed

    def finish(self, head: Link | None = None) -> Sequence[Finding]:
        """No more come. ``head``: what the database says is its newest entry (sequence 0: there is none)."""
        last = self.newest.seq if self.newest else 0
        if head is not None:
            if head == HEAD_GONE:
                why = "the row that tells which entry is the newest is gone"
                self._find(FindingKind.cut, last + 1, f"may be missing, and more: {why}")
            elif head.seq > last:
                self._find(
                    FindingKind.cut, last + 1, f"is missing, and all until {head.seq}: the end was cut off"
                )
            elif head.seq < last:
                self._find(FindingKind.inserted, last, f"was inserted: the newest one is {head.seq}")
            elif self.newest and self.newest.hash and head.hash != self.newest.hash:
                self._find(
                    FindingKind.replaced, last, "is not the newest entry that was written: it was rewritten"
                )
        for seq, hashes in sorted(self._anchors.items()):
            for noted in sorted(hashes):
                kind = FindingKind.cut if seq > last else FindingKind.missing
                self._find(kind, seq, f"is missing, and was noted elsewhere ({noted})")
        self._anchors.clear()
        return self.findings

    def _find(self, kind: FindingKind, seq: int, said: str) -> None:
        self.found += 1
        if len(self.findings) < self._max:
            self.findings.append(Finding(kind=kind, seq=seq, said=f"entry {seq} {said}"))


def verify(
    entries: Iterable[Entry | Unreadable], *, head: Link | None = None, anchors: Iterable[Link] = ()
) -> Sequence[Finding]:
    """What is wrong with a whole chain; nothing, when it is as it was written."""
    verifier = Verifier(anchors)
    for entry in entries:
        verifier.take(entry)
    return verifier.finish(head)


def canonical(value: Any) -> bytes:
    """JSON in exactly one way: RFC 8785, for values without fractions (we write those as texts).

    Raises ValueError for anything else: floats, integers beyond 2**53, texts that are no Unicode, other types.
    """
    return json.dumps(_ordered(value), ensure_ascii=False, separators=(",", ":"), allow_nan=False).encode()


def _ordered(value: Any) -> Any:
    match value:
        case None | bool():
            return value
        case int():
            if abs(value) > LARGEST:
                raise ValueError(f"the number {value} is too large")
            return value
        case str():
            if not _is_unicode(value):
                raise ValueError("a text that is no Unicode")
            return value
        case list() | tuple():
            return [_ordered(item) for item in value]
        case Mapping():
            if not all(isinstance(key, str) for key in value):
                raise ValueError("a name that is no text")
            # RFC 8785, 3.2.3: by UTF-16 code units
            names = sorted(value, key=lambda name: name.encode("utf-16-be", "surrogatepass"))
            return {_ordered(name): _ordered(value[name]) for name in names}
    raise ValueError(f"a value of type {type(value).__name__}")


def _is_unicode(text: str) -> bool:
    try:
        text.encode()
    except UnicodeEncodeError:
        return False
    return True
