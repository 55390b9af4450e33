"""Failed checks of a commit: what an agent is told about them, and whether one may fix them by itself. Pure.

Automatic fixing is bounded on every side, because it spends money while nobody looks: a few tries in a row, never the
same failure twice, never on commits of others, and never before the other checks had their time.
"""

from __future__ import annotations

import hashlib
import re
from collections.abc import Collection, Sequence
from dataclasses import dataclass, replace

from bot.feedback import code_lines, own_words, quoted, visible_words
from bot.reasons import Reason, all_of
from bot.render import clip, duration, oneline, render

#: Characters of a turn's instructions, of one check's log, and of its other texts.
MAX_INSTRUCTIONS = 60_000
MAX_LOG = 16_000
MAX_TEXT = 4_000
MAX_CHECKS = 20  # that are told of; the rest are named
MAX_ANNOTATIONS = 30  # of one check
MAX_NAMED = 50
#: Checks that are still running may take this long, in seconds, before the failed ones are fixed without them.
PENDING_PATIENCE = 1800.0

#: Conclusions of check runs, and states of commit statuses, that an agent could do something about.
#: https://docs.github.com/en/rest/checks/runs and https://docs.github.com/en/rest/commits/statuses
FAILED = frozenset({"failure", "timed_out", "startup_failure", "error"})

# https://www.ecma-international.org/publications-and-standards/standards/ecma-48/ (CSI and OSC sequences, and the rest)
_ANSI = re.compile(
    r"\x1b(?:\[[0-?]*[ -/]*[@-~]|\][^\x07\x1b]{0,2000}(?:\x07|\x1b\\)|[()*+][0-9A-Za-z]|[@-Z\\-_])"
)
_TIMESTAMP = re.compile(r"^\ufeff?\d{4}-\d\d-\d\dT\d\d:\d\d:\d\d\.\d+Z ?", re.MULTILINE)
_ERROR_LINE = re.compile(
    r"\b(?:error|fail(?:ed|ure|ing)?|exception|assert\w*|panic|fatal|traceback)\b|##\[error\]", re.I
)
# what differs from run to run: numbers, hashes, times, temporary folders
_VARYING = re.compile(r"0x[0-9a-f]+|\b[0-9a-f]{7,64}\b|\d+(?:\.\d+)*", re.I)
#: Fences of Markdown: a block that a program printed must not be taken for one that a person wrote, whose commands run.
_FENCE = re.compile(r"`{3,}|~{3,}")
_AFTER_ERROR = 5  # lines that are kept after the last error of a log


@dataclass(frozen=True, kw_only=True)
class CheckAnnotation:
    """A remark of a check about some lines."""

    path: str
    start_line: int
    end_line: int
    level: str  # "failure", "warning" or "notice"
    message: str
    title: str = ""


@dataclass(frozen=True, kw_only=True)
class FailedCheck:
    """A check run or commit status that failed. All its texts were written by programs that run others' code."""

    name: str
    conclusion: str
    by: str = ""  # the App or the service
    title: str = ""
    summary: str = ""
    text: str = ""
    annotations: Sequence[CheckAnnotation] = ()
    log: str = ""  # the end of its log
    unread: str = ""  # what could not be read of it, and why


@dataclass(frozen=True, kw_only=True)
class Checks:
    """All checks of one commit but ours."""

    sha: str
    failed: Sequence[FailedCheck] = ()
    pending: Sequence[str] = ()  # names of those that have not ended
    passed: int = 0
    quiet: float | None = None  # seconds since the last one ended; None: none has
    unread: Sequence[str] = ()  # what could not be read at all, a sentence each


def tail_of_log(text: str, limit: int = MAX_LOG) -> str:
    """The part of a job's log that tells why it failed, at most ``limit`` characters: the end, up to the last error.

    Without colours and time stamps. What follows the last error is the runner cleaning up.
    """
    lines = _TIMESTAMP.sub("", _ANSI.sub("", text.replace("\r\n", "\n"))).split("\n")
    # a bar that draws itself again and again ends with its last state
    lines = [line.rsplit("\r", 1)[-1].rstrip() for line in lines]
    errors = [number for number, line in enumerate(lines) if "##[error]" in line]
    if errors:
        lines = lines[: errors[-1] + 1 + _AFTER_ERROR]
    shown = "\n".join(lines).strip("\n")
    if len(shown) <= limit:
        return shown
    note = "… (the beginning was cut)\n"
    kept = shown[-(limit - len(note)) :]
    return note + kept[kept.find("\n") + 1 :]


def fingerprint(checks: Checks) -> str:
    """A short key of what is wrong: equal when the same checks fail for the same reasons as before.

    Line numbers, hashes and times do not count. "" when nothing failed.
    """
    if not checks.failed:
        return ""
    parts = []
    for one in checks.failed:
        said = [f"{item.path} {item.message}" for item in one.annotations if item.level == "failure"]
        said += [line for line in one.log.split("\n") if _ERROR_LINE.search(line)]
        said = said or [one.title, one.summary]
        reasons = sorted({_VARYING.sub("#", " ".join(line.split()))[:300] for line in said})
        parts.append("\0".join((one.name, one.conclusion, *reasons)))
    return hashlib.sha256("\1".join(sorted(parts)).encode()).hexdigest()[:32]


def instructions(checks: Checks, words: str = "") -> str:
    """What the turn that fixes failed checks is told: Markdown, at most MAX_INSTRUCTIONS long.

    ``words``: what the person who asked for it wrote. The longest logs are cut first.
    """
    shown = [_shown(one, MAX_LOG) for one in checks.failed[:MAX_CHECKS]]
    limit = MAX_LOG
    while len(text := _rendered(checks, shown, words)) > MAX_INSTRUCTIONS and limit > 500:
        limit //= 2
        shown = [_shown(one, limit) for one in shown]
    while len(text) > MAX_INSTRUCTIONS and shown:
        shown.pop()  # a cut would take the line away that ends its words
        text = _rendered(checks, shown, words)
    return text


def _rendered(checks: Checks, shown: Sequence[FailedCheck], words: str) -> str:
    return render(
        "prompts/fix.md.j2",
        limit=10 * MAX_INSTRUCTIONS,
        sha=checks.sha,
        failed=shown,
        more=[oneline(visible_words(one.name), 100) for one in checks.failed[len(shown) :][:MAX_NAMED]],
        pending=[oneline(visible_words(name), 100) for name in checks.pending[:MAX_NAMED]],
        unread=checks.unread,
        words=own_words(words, 10_000),
        quoted=quoted,
    ).strip()


def _shown(check: FailedCheck, limit: int) -> FailedCheck:
    """A check as it may stand in a prompt. No block of Markdown begins in it."""
    text = min(limit, MAX_TEXT)
    return replace(
        check,
        name=oneline(visible_words(check.name), 100),
        by=oneline(visible_words(check.by), 100),
        title=_unfenced(oneline(visible_words(check.title), 300)),
        summary=_unfenced(visible_words(check.summary, text)),
        text=_unfenced(visible_words(check.text, text)),
        annotations=[
            replace(
                item,
                path=_unfenced(oneline(visible_words(item.path), 300)),
                title=_unfenced(oneline(visible_words(item.title), 200)),
                message=_unfenced(clip(code_lines(item.message[:2000]), min(text, 1000))),
            )
            for item in check.annotations[: MAX_ANNOTATIONS if limit == MAX_LOG else 10]
        ],
        log=_unfenced(clip(code_lines(tail_of_log(check.log, limit)), limit)),
    )


def _unfenced(text: str) -> str:
    return _FENCE.sub(lambda found: found[0][:2], text)


@dataclass(frozen=True, kw_only=True)
class FixRules:
    """How far fixing by itself may go: `fix` of the repository's configuration."""

    automatic: bool = False
    attempts: int = 3  # in a row, until a person does something
    settle: float = 120.0  # seconds without a check that ends


@dataclass(frozen=True, kw_only=True)
class FixFacts:
    """What is known about a pull request with a failed check when it is decided whether to fix it."""

    open: bool
    head: str  # of the pull request, now
    ours: str | None  # the last commit that we pushed to it
    checks: Checks
    waited: float  # seconds since the first of these failures was seen
    attempts: int  # automatic fixes since a person last asked for anything here
    before: Collection[str] = ()  # the fingerprints that those were started for
    busy: bool = False  # a job waits or runs here
    last: str = "succeeded"  # how the newest job here ended


@dataclass(frozen=True, kw_only=True)
class FixDecision:
    """Whether to fix, and why. ``again``: after how many seconds to ask again; None: not before something new."""

    root: Reason
    again: float | None = None

    @property
    def allowed(self) -> bool:
        """Whether a job may be started now."""
        return self.root.ok


def should_fix(rules: FixRules, facts: FixFacts) -> FixDecision:
    """Whether to start a job that fixes what failed, without being asked. All reasons are in the answer."""
    checks = facts.checks
    failed = ", ".join(oneline(one.name, 60) for one in checks.failed[:5])
    lasting = [
        _reason("wanted", rules.automatic, "`fix: automatic` is on", "`fix: automatic` is off"),
        _reason("open", facts.open, "the pull request is open", "the pull request is closed"),
        _reason(
            "head",
            facts.head == checks.sha,
            "it is the head of the pull request",
            f"the pull request went on to {facts.head[:12]}",
        ),
        _reason(
            "own commit",
            facts.ours == checks.sha,
            "the commit is the bot's own",
            "the commit is somebody else's: write `/agent fix` to have it fixed",
        ),
        _reason("failure", bool(checks.failed), f"failed: {failed}", "no check failed"),
        _reason(
            "attempts",
            facts.attempts < rules.attempts,
            f"{facts.attempts} of {rules.attempts} tries in a row were made",
            f"{facts.attempts} tries in a row did not help: a person has to look (`/agent fix` tries once more)",
        ),
        _reason(
            "progress",
            fingerprint(checks) not in facts.before,
            "it is not what an earlier try was about",
            "the same checks fail as before the last try, for the same reasons: a person has to look",
        ),
        _reason(
            "last job",
            facts.busy or facts.last == "succeeded",
            "the last job here succeeded",
            f"the last job here ended as {facts.last.replace('_', ' ')}",
        ),
    ]
    quiet = checks.quiet if checks.quiet is not None else rules.settle
    patient = facts.waited >= PENDING_PATIENCE
    passing = [
        _reason("free", not facts.busy, "nothing waits or runs here", "a job waits or runs here"),
        _reason(
            "others ended",
            not checks.pending or patient,
            f"waited {duration(facts.waited)} for {', '.join(checks.pending[:5])}"
            if checks.pending
            else "all other checks have ended",
            f"still running: {', '.join(oneline(name, 60) for name in checks.pending[:5])}",
        ),
        _reason(
            "settled",
            quiet >= rules.settle,
            f"no check ended for {duration(quiet)}",
            f"the last check ended {duration(quiet)} ago: others may start now",
        ),
    ]
    root = all_of("may the failed checks be fixed without being asked", [*lasting, *passing])
    again: float | None = None
    if not root.ok and all(one.ok for one in lasting):
        # the end of a job, and of a check, is told by an event; this is for when that does not come
        again = max(rules.settle - quiet, 5.0) if passing[1].ok and passing[0].ok else 60.0
    return FixDecision(root=root, again=again)


def _reason(question: str, ok: bool, yes: str, no: str) -> Reason:
    return Reason(question=question, ok=ok, said=yes if ok else no)
