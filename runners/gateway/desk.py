"""The desk: the host's side of one attempt. What its container said and was told, all on disk.

A container speaks to it, so nothing that comes in is trusted: each field is typed and bounded, and a message that is
refused changes nothing. A worker that was restarted opens the same folder and goes on.
"""

from __future__ import annotations

import asyncio
import dataclasses
import hmac
import json
import os
import secrets
import time
from collections.abc import AsyncIterator, Iterator, Mapping, Sequence
from contextlib import contextmanager, suppress
from pathlib import Path
from typing import Annotated, Any, Final, Literal, NamedTuple

import orjson
from pydantic import (
    BaseModel,
    ConfigDict,
    Field,
    StringConstraints,
    TypeAdapter,
    ValidationError,
    with_config,
)
from typing_extensions import TypedDict

from bot.agent_requests import AgentRequest, ProgressNote
from bot.errors import ConductorError, InfrastructureError
from bot.live_words import LiveWords
from bot.model import FailureKind, Usage
from bot.terms import Grant, Terms
from runners import shim

MAX_LINES = 5000  # in one post
MAX_LINE = shim.MAX_LINE + 100  # characters: the shim's limit and its note about what was cut
MAX_RECORDED = 200 << 20  # bytes of one attempt's events
REMARKS: Final = "conductor"  # the stream of the shim's own lines, and ours
FULL = "The output of this attempt is longer than what is kept of it; the rest is dropped."
MAX_BLOCKED = 1000  # refused connections that are recorded
FIRST_BLOCKED = 200  # of those, kept for destinations that were not refused before
MAX_REFUSED = 50  # requests to people, in one turn
SCAN = 256 * 1024  # bytes read at once from the records


class BadMessage(ConductorError):
    """A container sent something that the protocol does not know; nothing was changed."""


class RequestRefused(ConductorError):
    """People cannot be asked this now; the message tells the agent why."""


class Event(NamedTuple):
    """One line of an attempt's output."""

    seq: int  # from 1, over the whole attempt
    turn: int
    time: float  # seconds since the epoch, by the container's clock
    stream: str  # "stdout", "stderr", or "conductor" for what the shim or the desk say themselves
    line: str


class Outcome(BaseModel):
    """How one turn ended, as the shim reports it. Everything in it is the container's word."""

    model_config = ConfigDict(strict=True, extra="forbid", frozen=True)

    exit_code: Annotated[int, Field(ge=0, le=255)] | None = None
    signal: Annotated[int, Field(ge=1, le=64)] | None = None
    timed_out: bool = False
    stopped: bool = False
    head: Annotated[str, StringConstraints(pattern=r"^([0-9a-f]{40}|[0-9a-f]{64})$")] | None = None
    error: Annotated[str, StringConstraints(max_length=8000)] | None = None
    push_error: Annotated[str, StringConstraints(max_length=8000)] | None = None
    duration: Annotated[float, Field(ge=0, le=10**8, allow_inf_nan=False)] = 0.0


@with_config(ConfigDict(strict=True, extra="forbid"))
class _PostedEvent(TypedDict):
    """Lines that came together. One number and one time for all of them: what the host checks is small."""

    seq: Annotated[int, Field(gt=0, lt=1 << 53)]
    time: Annotated[float, Field(ge=0, lt=1e11, allow_inf_nan=False)]
    stream: Literal["stdout", "stderr", "conductor"]
    lines: Annotated[
        list[Annotated[str, StringConstraints(max_length=MAX_LINE)]],
        Field(min_length=1, max_length=MAX_LINES),
    ]


@with_config(ConfigDict(strict=True, extra="forbid"))
class _Post(TypedDict):
    turn: Annotated[int, Field(ge=0, le=1_000_000)]
    events: Annotated[list[_PostedEvent], Field(min_length=1, max_length=MAX_LINES)]


_POST = TypeAdapter(_Post)
_GRANTS = TypeAdapter(tuple[Grant, ...])


@dataclasses.dataclass(frozen=True)
class Halt:
    """Why the host ends an attempt: what the gateway found out, in words for the user."""

    kind: FailureKind
    message: str


@dataclasses.dataclass(frozen=True)
class ModelUsage:
    """What one model was used for."""

    model: str
    usage: Usage


class Desk:
    """The state of one attempt in ``directory``. Not thread-safe: it belongs to the worker's event loop.

    Layout: ``token`` and ``attempt.json``; ``run/``, the folder that the container sees; ``turns/N.json`` what it
    was told, ``outcomes/N.json`` what it reported, ``events.jsonl`` what it printed (one post a line),
    ``usage.jsonl`` what the LLM proxies counted, ``blocked.jsonl`` where the egress proxy did not let it go;
    ``halt.json`` why it must end; ``progress.json`` how far its agent says it is, ``requests/N.json`` what it asked
    people for in that turn, ``grants.json`` what they granted, ``live_words.jsonl`` what it was told between two tool
    calls; ``session.tar``, ``work.bundle`` and ``quarantine.git``.
    """

    def __init__(
        self,
        directory: Path,
        attempt_id: str,
        mirror: Path | None,
        token: str,
        max_recorded: int,
        terms: Terms,
    ) -> None:
        """Use create() or open()."""
        self.directory = directory
        self.attempt_id = attempt_id
        self.mirror = mirror
        self.token = token
        self._terms = terms  # as the attempt began
        self._grants: tuple[Grant, ...] = ()
        self._progress: ProgressNote | None = None
        self._requests: dict[int, AgentRequest] = {}
        self._live_words: list[LiveWords] = []
        self._heard_at = self._sign_at = time.monotonic()
        self._calls = 0  # of a model, under way
        self._changed = asyncio.Event()
        self._closed = False
        self._max_recorded = max_recorded
        self._turns: dict[int, dict[str, Any]] = {}
        self._outcomes: dict[int, Outcome] = {}
        self._finished = (directory / "finished").exists()
        self._usage: dict[str, Usage] = {}
        self._halted: Halt | None = None
        self._blocked: dict[str, int] = {}
        self._refused: list[tuple[str, str]] = []
        flags = os.O_RDWR | os.O_CREAT | os.O_APPEND | os.O_CLOEXEC
        self._events = os.open(directory / "events.jsonl", flags, 0o600)
        self._size = 0
        self._seq = 0
        self._full = False

    # --- life ---

    @classmethod
    def create(
        cls,
        directory: Path,
        *,
        attempt_id: str,
        mirror: Path | None,
        terms: Terms | None = None,
        max_recorded: int = MAX_RECORDED,
    ) -> Desk:
        """Make the folder and a fresh token; where it was made already, the same as open().

        ``terms``: what the attempt may do; by default nothing that costs or leaves this host is limited or allowed.

        Raises InfrastructureError when the folder cannot be written.
        """
        try:
            directory.mkdir(parents=True, exist_ok=True, mode=0o700)
            directory.chmod(0o700)
            for name in ("turns", "outcomes"):
                (directory / name).mkdir(exist_ok=True, mode=0o700)
            run = directory / "run"
            run.mkdir(exist_ok=True)
            run.chmod(
                0o711
            )  # its one file can be reached by the container's user, nothing can be listed or added
            if not (directory / "token").exists():
                _write(directory / "token", secrets.token_urlsafe(32).encode())
            # last: a folder with this file is a whole desk
            if not (directory / "attempt.json").exists():
                about = {
                    "attempt": attempt_id,
                    "mirror": None if mirror is None else str(mirror),
                    "terms": (terms or Terms()).model_dump(mode="json"),
                }
                _write(directory / "attempt.json", json.dumps(about).encode())
        except OSError as error:
            raise InfrastructureError(
                f"The attempt's folder {directory} cannot be made: {error}.",
                "Check the disk and the owner of DATA_DIR.",
            ) from error
        return cls.open(directory, max_recorded=max_recorded)

    @classmethod
    def open(cls, directory: Path, *, max_recorded: int = MAX_RECORDED) -> Desk:
        """Go on with an attempt whose folder exists. Raises InfrastructureError when it is not whole."""
        try:
            about = json.loads((directory / "attempt.json").read_bytes())
            token = (directory / "token").read_text("ascii")
            mirror = None if about["mirror"] is None else Path(about["mirror"])
            terms = Terms.model_validate(about.get("terms", {}))
            desk = cls(directory, about["attempt"], mirror, token, max_recorded, terms)
            desk._load()
        except (OSError, ValueError, KeyError, TypeError) as error:
            raise InfrastructureError(
                f"The attempt's folder {directory} cannot be read: {error}.",
                "Run the job again; this attempt cannot be continued.",
            ) from error
        return desk

    def _load(self) -> None:
        for path in (self.directory / "turns").glob("*.json"):
            self._turns[int(path.stem)] = json.loads(path.read_bytes())
        for path in (self.directory / "outcomes").glob("*.json"):
            self._outcomes[int(path.stem)] = Outcome.model_validate_json(path.read_bytes())
        last = _repair(self._events)
        self._size = os.fstat(self._events).st_size
        if last is not None:
            self._seq = last["events"][-1]["seq"]
            self._full = last["events"][-1]["lines"] == [FULL]
        for entry in _lines(self.directory / "usage.jsonl"):
            with suppress(ValueError, TypeError, KeyError):  # the last one may be torn
                record = orjson.loads(entry)
                self._count(record.pop("model"), Usage(**record))
        for entry in _lines(self.directory / "blocked.jsonl"):
            with suppress(ValueError, TypeError):
                where = str(orjson.loads(entry))
                self._blocked[where] = self._blocked.get(where, 0) + 1
        with suppress(FileNotFoundError):
            halt = json.loads((self.directory / "halt.json").read_bytes())
            self._halted = Halt(FailureKind(halt["kind"]), str(halt["message"]))
        for path in (self.directory / "requests").glob("*.json"):
            self._requests[int(path.stem)] = AgentRequest.model_validate_json(path.read_bytes())
        for entry in _lines(self.directory / "live_words.jsonl"):
            with suppress(ValidationError):  # the last one may be torn: then nobody got its answer
                self._live_words.append(LiveWords.model_validate_json(entry))
        with suppress(FileNotFoundError):
            self._grants = _GRANTS.validate_json((self.directory / "grants.json").read_bytes())
        with suppress(FileNotFoundError, ValidationError):  # not synced to the disk: a crash may have torn it
            told = (self.directory / "progress.json").read_bytes()
            self._progress = ProgressNote.model_validate_json(told)

    def close(self) -> None:
        """Release the file and end every follower and long poll; the folder stays."""
        if not self._closed:
            self._closed = True
            os.close(self._events)
            self._notify()

    def _check_open(self) -> None:
        if self._closed:  # its file descriptor may be another file's by now
            raise InfrastructureError(f"The desk of {self.attempt_id} is closed.", "Open it again.")

    @property
    def socket_dir(self) -> Path:
        """The folder that the container sees as ``/run/conductor``."""
        return self.directory / "run"

    @property
    def quarantine(self) -> Path:
        """Where the bare repository lies that takes the attempt's pushes."""
        return self.directory / "quarantine.git"

    @property
    def session_tar(self) -> Path:
        """The thread's session files; absent while there are none."""
        return self.directory / "session.tar"

    @property
    def work(self) -> Path:
        """The work in progress that the attempt goes on from, as a git bundle; absent while there is none."""
        return self.directory / "work.bundle"

    def renew_token(self) -> None:
        """Make a new token, for a new container: one that had the old one is not listened to any more.

        An engine that is killed while it starts a container may forget it and leave its processes behind.
        """
        self._check_open()
        self.token = secrets.token_urlsafe(32)
        _write(self.directory / "token", self.token.encode())

    def accepts(self, token: str) -> bool:
        """Whether ``token`` is this attempt's, in constant time."""
        return hmac.compare_digest(token.encode("utf-8", "surrogatepass"), self.token.encode())

    def heard(self) -> None:
        """The container spoke."""
        self._heard_at = time.monotonic()

    @property
    def last_heard(self) -> float:
        """When the container last spoke, by time.monotonic(); when the desk was opened, before that."""
        return self._heard_at

    @property
    def last_sign(self) -> float:
        """When the agent, not the shim, last said or did something, by time.monotonic(); now while it calls a model."""
        return time.monotonic() if self._calls else self._sign_at

    @contextmanager
    def calling(self) -> Iterator[None]:
        """The agent waits for a model while the block runs: many think for minutes, and the CLI is silent then."""
        self._calls += 1
        try:
            yield
        finally:
            self._calls -= 1
            self._sign_at = time.monotonic()

    def _notify(self) -> None:
        self._changed.set()
        self._changed = asyncio.Event()

    # --- turns ---

    def give(self, turn: Mapping[str, Any]) -> None:
        """Put a turn on the desk; the same again changes nothing. Raises ValueError for another with its number."""
        number = turn["number"]
        known = self._turns.get(number)
        if known is not None:
            if known != turn:
                raise ValueError(f"turn {number} of {self.attempt_id} was given already and differs")
            return
        if number != len(self._turns) + 1:
            raise ValueError(
                f"turn {number} of {self.attempt_id} is not the next: {len(self._turns)} were given"
            )
        _write(self.directory / "turns" / f"{number}.json", json.dumps(dict(turn)).encode())
        self._turns[number] = json.loads(json.dumps(dict(turn)))
        self._notify()

    def finish(self) -> None:
        """There will be no more turns: the shim is told to end, also before a turn that it has not taken yet."""
        if not self._finished:
            _write(self.directory / "finished", b"")
            self._finished = True
            self._notify()

    @property
    def turns_given(self) -> int:
        """How many turns were given so far."""
        return len(self._turns)

    @property
    def finished(self) -> bool:
        """Whether the attempt gets no more turns."""
        return self._finished

    async def next_turn(self, after: int, timeout: float) -> dict[str, Any] | None:
        """The first turn above ``after``; None when there is none within ``timeout`` seconds, or finished."""
        with suppress(TimeoutError):
            async with asyncio.timeout(timeout):
                while not self._finished and not self._closed:
                    number = min((number for number in self._turns if number > after), default=None)
                    if number is not None:
                        return self._turns[number]
                    await self._changed.wait()
        return None

    # --- events ---

    @property
    def last_seq(self) -> int:
        """The newest event that the shim need not send again."""
        return self._seq

    def take_events(self, message: bytes) -> int:
        """Record a post of events; the sequence number up to which everything is on disk.

        Raises BadMessage, and OSError when the disk is full; then nothing was recorded.
        """
        self._check_open()
        try:
            post = _POST.validate_json(message)
        except ValidationError as error:
            raise BadMessage(f"The events are not what the protocol says: {_first(error)}") from error
        if post["turn"] > len(self._turns):
            raise BadMessage(f"There is no turn {post['turn']}.")
        previous = count = 0
        for event in post["events"]:
            lines = event["lines"]
            count += len(lines)
            if event["seq"] - len(lines) < previous:
                raise BadMessage("The sequence numbers of the events do not rise.")
            if "\n" in "".join(lines):
                raise BadMessage("An event's line is one line.")
            previous = event["seq"]
        if count > MAX_LINES:
            raise BadMessage(f"One post has at most {MAX_LINES} lines.")
        if previous > self._seq:
            if (first := post["events"][0])["seq"] - len(first["lines"]) < self._seq:  # some came before
                post["events"] = [event for event in post["events"] if event["seq"] > self._seq]
                first = post["events"][0]
                first["lines"] = first["lines"][-(first["seq"] - self._seq) :]
            if not self._full:
                self._record(post)
            if any(event["stream"] != REMARKS for event in post["events"]):
                self._sign_at = time.monotonic()
            self._seq = previous
        return self._seq

    def _record(self, post: _Post) -> None:
        data = orjson.dumps(post, option=orjson.OPT_APPEND_NEWLINE)
        full = self._size + len(data) > self._max_recorded
        if full:
            seq = post["events"][-1]["seq"]
            post["events"] = [{"seq": seq, "time": time.time(), "stream": REMARKS, "lines": [FULL]}]
            data = orjson.dumps(post, option=orjson.OPT_APPEND_NEWLINE)
        try:
            if os.write(self._events, data) != len(data):
                raise OSError("the disk is full")
        except OSError:
            os.ftruncate(self._events, self._size)
            raise
        self._full = full
        self._size += len(data)
        self._notify()

    async def events(self, after: int = 0, *, turn: int | None = None) -> AsyncIterator[Event]:
        """Every event above ``after``, then those that come.

        Ends when the desk is closed; with ``turn``, also as soon as that turn's outcome is in and everything that
        was recorded before it has been yielded.
        """
        offset = 0
        with (self.directory / "events.jsonl").open("rb", buffering=0) as file:
            while True:
                ended = self._closed or (turn is not None and turn in self._outcomes)
                changed = self._changed
                while offset < self._size:
                    size = SCAN
                    while (cut := (data := os.pread(file.fileno(), size, offset)).rfind(b"\n") + 1) == 0:
                        size *= 2  # one long line
                    offset += cut
                    for line in data[: cut - 1].split(b"\n"):
                        for event in _decode(line, after):
                            yield event
                    await asyncio.sleep(0)  # catching up must not hold up the other attempts
                if ended:
                    return
                await changed.wait()

    # --- outcomes ---

    def take_outcome(self, number: int, message: bytes) -> None:
        """Record how turn ``number`` ended; what was recorded first stays. Raises BadMessage or OSError."""
        self._check_open()
        if number not in self._turns:
            raise BadMessage(f"There is no turn {number}.")
        try:
            outcome = Outcome.model_validate_json(message)
        except ValidationError as error:
            raise BadMessage(f"The outcome is not what the protocol says: {_first(error)}") from error
        if number in self._outcomes:
            return
        _write(self.directory / "outcomes" / f"{number}.json", outcome.model_dump_json().encode())
        self._outcomes[number] = outcome
        self._notify()

    def outcome_now(self, number: int) -> Outcome | None:
        """How the turn ended, None while it has not."""
        return self._outcomes.get(number)

    async def outcome(self, number: int) -> Outcome:
        """How the turn ended, however long that takes. Raises InfrastructureError when the desk is closed first."""
        while (found := self._outcomes.get(number)) is None:
            if self._closed:
                raise InfrastructureError(
                    f"The desk of {self.attempt_id} was closed before turn {number} ended."
                )
            await self._changed.wait()
        return found

    # --- what the host decides ---

    def halt(self, kind: FailureKind, message: str) -> None:
        """The attempt must end, because ``message`` (a sentence for the user). What was said first stays."""
        self._check_open()
        if self._halted is None:
            about = {"kind": str(kind), "message": message}
            _write(self.directory / "halt.json", json.dumps(about).encode())
            self._halted = Halt(kind, message)
            self._notify()

    @property
    def halted(self) -> Halt | None:
        """Why the attempt must end; None while it may go on."""
        return self._halted

    async def wait_halted(self) -> Halt:
        """Why the attempt must end, as soon as it must. Raises InfrastructureError when the desk is closed first."""
        while (found := self._halted) is None:
            if self._closed:
                raise InfrastructureError(f"The desk of {self.attempt_id} was closed.")
            await self._changed.wait()
        return found

    def add_blocked(self, where: str) -> None:
        """Count that the container was not let through to ``where`` (see bot.network). At most MAX_BLOCKED are kept.

        One that is tried again and again leaves room for others: people must be told of each.
        """
        room = MAX_BLOCKED - FIRST_BLOCKED if where in self._blocked else MAX_BLOCKED
        if sum(self._blocked.values()) < room:
            _append(self.directory / "blocked.jsonl", where)
            self._blocked[where] = self._blocked.get(where, 0) + 1

    @property
    def blocked(self) -> Mapping[str, int]:
        """Where the container was not let go, and how often it tried."""
        return dict(self._blocked)

    @property
    def terms(self) -> Terms:
        """What the attempt may do now: what it began with, and what people granted since."""
        return self._terms.with_grants(self._grants)

    def grant(self, grant: Grant) -> None:
        """Let the attempt do more from now on, also after a restart; the same approval's grant counts once."""
        self._check_open()
        if grant.approval not in {known.approval for known in self.terms.granted}:
            grants = (*self._grants, grant)
            _write(self.directory / "grants.json", _GRANTS.dump_json(grants))
            self._grants = grants

    # --- what the agent tells and asks ---

    def take_progress(self, note: ProgressNote) -> None:
        """Keep how far the agent says it is; the note before is forgotten."""
        self._check_open()
        self._sign_at = time.monotonic()
        # as often as it likes, so without waiting for the disk
        _write(self.directory / "progress.json", note.model_dump_json().encode(), sync=False)
        self._progress = note
        self._notify()

    @property
    def progress(self) -> ProgressNote | None:
        """How far the agent said that it is; None while it said nothing."""
        return self._progress

    def take_request(self, request: AgentRequest) -> None:
        """Keep what the agent asks people for in the turn that is under way, so that no crash loses it.

        The same again changes nothing. Raises RequestRefused when the turn has another request already, or no turn is
        under way.
        """
        self._check_open()
        turn = len(self._turns)
        if not turn or turn in self._outcomes or self._finished or self._halted or request.turn != turn:
            raise RequestRefused("No turn is under way: people cannot be asked now.")
        known = self._requests.get(turn)
        if known is not None:
            if known.model_copy(update={"at": request.at}) != request:
                raise RequestRefused(
                    "People were asked in this turn already, and can be asked one thing at a time. End your turn now; "
                    "what else you need you can ask for when the decision is there."
                )
            return
        (self.directory / "requests").mkdir(exist_ok=True, mode=0o700)
        _write(self.directory / "requests" / f"{turn}.json", request.model_dump_json().encode())
        self._requests[turn] = request
        self._sign_at = time.monotonic()
        self._notify()

    def note_refused(self, tool: str, why: str) -> None:
        """The agent asked for what nobody can grant. Kept in memory only, at most ``MAX_REFUSED`` of them."""
        if len(self._refused) < MAX_REFUSED:
            self._refused.append((tool, why))

    def take_refused(self) -> list[tuple[str, str]]:
        """The refused requests since the last call: tool, and what it was told."""
        taken, self._refused = self._refused, []
        return taken

    @property
    def requested(self) -> AgentRequest | None:
        """What the agent asked people for in the newest turn; None when it asked nothing."""
        return self._requests.get(len(self._turns))

    @property
    def hears(self) -> bool:
        """Whether the agent may be told something now: a turn is under way in which it has asked nothing itself."""
        turn = len(self._turns)
        over = turn in self._outcomes or self._finished or self._halted is not None or self._closed
        return turn > 0 and not over and turn not in self._requests

    def hand_over(self, words: LiveWords) -> None:
        """Keep what the agent is told between two of its tool calls, so that this turn does not tell it again."""
        self._check_open()
        _append(self.directory / "live_words.jsonl", words.model_dump(mode="json"))
        self._live_words.append(words)

    @property
    def live_words(self) -> Sequence[LiveWords]:
        """What was handed over in the newest turn."""
        return [words for words in self._live_words if words.turn == len(self._turns)]

    # --- session ---

    def take_session(self, archive: Path) -> None:
        """Keep a session that was received into ``archive`` (same disk). Raises BadMessage. Blocks: use a thread."""
        try:
            shim.check_session(archive)
        except shim.SessionRefused as error:
            raise BadMessage(f"The session is refused: {error}.") from error
        archive.chmod(0o600)
        archive.replace(self.session_tar)

    # --- usage ---

    def add_usage(self, model: str, usage: Usage) -> None:
        """Count what an LLM call cost."""
        _append(self.directory / "usage.jsonl", {"model": model, **dataclasses.asdict(usage)})
        self._sign_at = time.monotonic()
        self._count(model, usage)

    def _count(self, model: str, usage: Usage) -> None:
        self._usage[model] = self._usage.get(model, Usage()) + usage

    def usage(self) -> Usage:
        """Everything that was used."""
        return sum(self._usage.values(), Usage())

    def usage_by_model(self) -> list[ModelUsage]:
        """The same, for each model."""
        return [ModelUsage(model, usage) for model, usage in sorted(self._usage.items())]


def _decode(line: bytes, after: int) -> Iterator[Event]:
    post = orjson.loads(line)
    turn = post["turn"]
    for event in post["events"]:
        first = event["seq"] - len(event["lines"]) + 1
        known = max(0, after + 1 - first)
        when, stream = event["time"], event["stream"]
        for seq, text in enumerate(event["lines"][known:], first + known):
            yield Event(seq, turn, when, stream, text)


def _first(error: ValidationError) -> str:
    detail = error.errors(include_url=False, include_input=False)[0]
    return f"{'.'.join(map(str, detail['loc'])) or 'message'}: {detail['msg']}"


def _write(path: Path, data: bytes, *, sync: bool = True) -> None:
    """Write a small file whole or not at all (rename(2)). ``sync``: also when the machine loses power right after."""
    new = path.with_name(f"{path.name}.new")
    descriptor = os.open(new, os.O_WRONLY | os.O_CREAT | os.O_TRUNC | os.O_CLOEXEC, 0o600)
    try:
        view = memoryview(data)
        while view:
            view = view[os.write(descriptor, view) :]
        if sync:
            os.fsync(descriptor)
    finally:
        os.close(descriptor)
    new.replace(path)


def _append(path: Path, record: object) -> None:
    """Add a line of JSON to a file."""
    descriptor = os.open(path, os.O_WRONLY | os.O_CREAT | os.O_APPEND | os.O_CLOEXEC, 0o600)
    try:
        # a line that a crash has torn must not swallow this one
        os.write(descriptor, b"\n" + orjson.dumps(record) + b"\n")
    finally:
        os.close(descriptor)


def _repair(descriptor: int) -> _Post | None:
    """Cut off what a crash left half written at the end; the last whole post."""
    size = os.fstat(descriptor).st_size
    while size:
        start = _line_start(descriptor, size)
        line = os.pread(descriptor, size - start, start)
        with suppress(ValidationError):
            if line.endswith(b"\n"):
                return _POST.validate_json(line)
        os.ftruncate(descriptor, start)
        size = start
    return None


def _line_start(descriptor: int, end: int) -> int:
    """Where the line begins whose last byte is the one before ``end``."""
    position = end - 1
    while position > 0:
        start = max(0, position - SCAN)
        found = os.pread(descriptor, position - start, start).rfind(b"\n")
        if found >= 0:
            return start + found + 1
        position = start
    return 0


def _lines(path: Path) -> Iterator[bytes]:
    with suppress(FileNotFoundError), path.open("rb") as file:
        for line in file:
            if line.strip():
                yield line
