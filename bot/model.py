"""The nouns of the product: jobs, attempts, turns and what is said about them. No I/O, no imports of ours."""

from __future__ import annotations

import dataclasses
import enum
import hashlib
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from datetime import datetime
from typing import Any


class JobState(enum.StrEnum):
    """Where a job is. The sentence after each value is what people are told."""

    queued = "queued"  # accepted, waits for a free slot
    running = "running"  # an agent works on it
    paused = "paused"  # a human was asked
    succeeded = "succeeded"  # done, the result is published
    failed = "failed"  # ended without a result; phase and kind say why
    cancelled = "cancelled"  # somebody stopped it
    timed_out = "timed_out"  # it used up its time
    lost = "lost"  # its host went away and could not be taken over

    @property
    def final(self) -> bool:
        """Whether a job in this state never changes again."""
        return self in FINAL_STATES


FINAL_STATES = frozenset(
    {JobState.succeeded, JobState.failed, JobState.cancelled, JobState.timed_out, JobState.lost}
)

#: The legal moves. Everything else is refused by the store's compare-and-set.
TRANSITIONS: Mapping[JobState, frozenset[JobState]] = {
    JobState.queued: frozenset({JobState.running, JobState.cancelled, JobState.failed}),
    JobState.running: frozenset(
        {
            JobState.paused,
            JobState.succeeded,
            JobState.failed,
            JobState.cancelled,
            JobState.timed_out,
            JobState.lost,
        }
    ),
    JobState.paused: frozenset(
        {JobState.running, JobState.cancelled, JobState.timed_out, JobState.lost, JobState.failed}
    ),
    **{state: frozenset() for state in FINAL_STATES},
}


class JobKind(enum.StrEnum):
    """What is wanted of a job. Of one that only reads nothing is published but what its agent says."""

    task = "task"  # change the code
    fix = "fix"  # change the code so that its checks pass
    plan = "plan"  # say how a task would be done; a person approves that first
    review = "review"  # comment on a pull request
    ask = "ask"  # answer a question
    release = "release"  # push what was held back, now that a reviewer approved it; no agent

    @property
    def reads_only(self) -> bool:
        """Whether nothing that the agent changes may be published."""
        return self in (JobKind.plan, JobKind.review, JobKind.ask)


class Phase(enum.StrEnum):
    """How far a running job has come; on failure, where it broke."""

    policy = "policy"
    image = "image"
    workspace = "workspace"
    start = "start"
    agent = "agent"
    publish = "publish"
    report = "report"


class FailureKind(enum.StrEnum):
    """Why a job did not succeed."""

    quota = "quota"  # the LLM provider refused: quota or rate limit
    auth = "auth"  # the LLM provider or GitHub refused our credentials
    timeout = "timeout"
    oom = "oom"
    crash = "crash"  # the agent's process died
    no_result = "no_result"  # the agent ended without saying what it did
    agent = "agent"  # the agent itself says that it failed
    refused = "refused"  # a check refused to publish what the agent made
    conflict = "conflict"  # the branch moved under us
    infrastructure = "infrastructure"
    budget = "budget"  # the money that the operator, the repository or the asker allows is spent
    idle = "idle"  # no sign of life from the agent for too long
    disk = "disk"  # the workspace grew over its limit
    host = "host"  # the engine or the host was restarted, and the container with it
    configuration = "configuration"


class TargetKind(enum.StrEnum):
    """What a job is about."""

    issue = "issue"
    pull_request = "pull_request"


@dataclass(frozen=True, kw_only=True)
class Repo:
    """A repository as GitHub names it, and the installation that lets us in."""

    owner: str
    name: str
    id: int  # GitHub's database id: survives renames
    installation_id: int

    @property
    def full_name(self) -> str:
        """``owner/name``."""
        return f"{self.owner}/{self.name}"


@dataclass(frozen=True, kw_only=True)
class Actor:
    """Who caused an event."""

    login: str
    id: int
    type: str  # "User", "Bot", "Organization" as GitHub says

    @property
    def is_bot(self) -> bool:
        """Whether GitHub says that this account is not a person."""
        return self.type != "User"


#: The event whose actor gave feedback on the work, and did not ask for it. A command in a review has another one.
FEEDBACK = "pull_request_review.submitted"
#: The event of jobs that a decision started: they are in the name of whoever started the job that asked.
DECIDED = "approval.decided"


@dataclass(frozen=True, kw_only=True)
class Trigger:
    """What started a job: enough to answer it and to never start it twice."""

    delivery_id: str
    event: str  # "issues.labeled", "issue_comment.created" …
    actor: Actor
    comment_id: int | None = None  # the comment with the command, if there is one
    comment_kind: str = "issue"  # "issue", "review" (inline) or "review_body"
    thread: int | None = None  # an inline one's: the first comment there, which answers go to


#: Keys of a job's ``config`` for what was chosen when it was accepted: no configuration file can hold them.
KEPT_PROFILE = "$profile"
KEPT_JOB = "$job"
KEPT_ASKED_IN = "$asked_in"
KEPT = (KEPT_PROFILE, KEPT_JOB, KEPT_ASKED_IN)


@dataclass(frozen=True, kw_only=True)
class NamedJob:
    """A job of the repository's own list (``jobs`` in its configuration) that somebody started."""

    name: str
    needs: tuple[str, ...] = ()  # capabilities of its host, besides the repository's
    steps: bool = False  # its instructions are scripts for the agent that has no model


@dataclass(frozen=True, kw_only=True)
class Request:
    """What somebody asks for, before anything was decided."""

    repo: Repo
    number: int  # of the issue or pull request
    target: TargetKind
    trigger: Trigger
    instructions: str  # what the asker wrote; empty for a label
    title: str
    body: str  # the issue's text as it was in the payload of the trigger
    agent: str | None = None  # None: the profile's, usual_agent, the repository's or the server's
    model: str | None = None
    usual_agent: str | None = None  # that has worked there, when neither the asker nor a profile names one
    usual_model: str | None = None  # and its model
    timeout: int | None = None  # seconds; asked for, and refused when that is too long
    base: str | None = None
    retry_of: str | None = None
    usual_timeout: int | None = None  # of retry_of, when none is asked for; cut to what is allowed now
    budget: float | None = None  # US dollars, when the asker sets a limit of their own
    go_on: bool = False  # with retry_of: from the work in progress that the other job left
    kind: JobKind = JobKind.task
    left_out: tuple[str, ...] = ()  # what of the conversation was kept out of the prompt, a sentence each
    approval_id: str | None = None  # the approved plan that is to be carried out
    head_sha: str | None = None  # of the pull request when it was asked for, where the event tells
    asked_at: datetime | None = None  # by GitHub's clock, where the event tells
    judged: bool = False  # title and body are another job's: whose words may be read was decided then
    profile: str | None = None  # None: the repository's usual one; "none": without
    named: NamedJob | None = None
    asked_in: int | None = None  # the issue, when its work goes on in the pull request ``number``

    def evolve(self, **changes: Any) -> Request:
        """A copy with ``changes``."""
        return dataclasses.replace(self, **changes)


@dataclass(frozen=True, kw_only=True)
class Usage:
    """Tokens and money of one or more LLM calls. ``cost`` is in US dollars, None when a price is unknown."""

    input_tokens: int = 0
    output_tokens: int = 0
    cached_tokens: int = 0  # read from the provider's cache; not part of input_tokens
    cache_write_tokens: int = 0
    requests: int = 0
    cost: float | None = 0.0

    def __add__(self, other: Usage) -> Usage:
        cost = None if self.cost is None or other.cost is None else self.cost + other.cost
        return Usage(
            input_tokens=self.input_tokens + other.input_tokens,
            output_tokens=self.output_tokens + other.output_tokens,
            cached_tokens=self.cached_tokens + other.cached_tokens,
            cache_write_tokens=self.cache_write_tokens + other.cache_write_tokens,
            requests=self.requests + other.requests,
            cost=cost,
        )


@dataclass(frozen=True, kw_only=True)
class Job:
    """One piece of accepted work. Values only; the store keeps the truth."""

    id: str
    repo: Repo
    number: int
    target: TargetKind
    trigger: Trigger
    agent: str
    model: str | None
    instructions: str
    title: str
    body: str
    timeout: int  # seconds of wall clock for the whole job
    state: JobState
    created_at: datetime
    base: str | None = None  # branch asked for; None: default branch, or the pull request's own branch
    retry_of: str | None = None
    fence: int = 0  # number of the newest attempt; an older one must not publish
    phase: Phase | None = None
    failure: FailureKind | None = None
    message: str = ""  # the sentence for the user when it ended
    summary: str = ""  # what the agent says it did
    branch: str | None = None  # the branch that we push
    base_sha: str | None = None
    head_sha: str | None = None  # the commit that was published
    pull_number: int | None = None
    comment_id: int | None = None  # the sticky comment
    check_run_id: int | None = None
    cancel_requested_by: str | None = None
    started_at: datetime | None = None
    finished_at: datetime | None = None
    usage: Usage = dataclasses.field(default_factory=Usage)
    thread_id: str = ""  # the conversation it belongs to: one job of it runs at a time
    config: Mapping[str, Any] = dataclasses.field(default_factory=dict)  # bot.repo_config.of() reads it
    queue: str = ""  # the capabilities that its host must have, sorted and joined by "+"
    priority: int = 0  # higher first: what a person waits for is above what a schedule started
    budget: float | None = None  # US dollars, when the asker set a limit
    go_on: bool = False  # starts from the work in progress of retry_of
    question: str = ""  # paused: what the agent wants to know
    asked_at: datetime | None = None
    answer: str | None = None  # the words that start its next turn; None while nobody answered
    answered_by: str | None = None
    hibernated: bool = False  # paused without a container: any host may wake it up
    held_back: str = ""  # the protected part of the change, as a patch for a human
    blocked: Mapping[str, int] = dataclasses.field(default_factory=dict)  # "host:port" -> refused so often
    waits: str = ""  # queued: what its comment says about why it waits
    kind: JobKind = JobKind.task
    left_out: Sequence[str] = ()  # what was kept out of the prompt, a sentence each
    fork: bool = False  # about a pull request from a fork: base_sha is its head when the job was accepted
    recent_log: str = ""  # what its agent said last
    marker_sha: str | None = None  # the empty commit of ours on its branch that a reviewer decides about
    approval_id: str | None = None  # the approved plan that it carries out; checked again before it starts

    @property
    def own_branch(self) -> bool:
        """Whether its branch is a new one of ours, with a pull request of its own: not a pull request's from here."""
        return self.target is TargetKind.issue or self.fork

    @property
    def profile(self) -> str:
        """The name of its profile, "" without one. ``bot.profiles.kept`` has the whole."""
        return str(self.config.get(KEPT_PROFILE, {}).get("name", ""))

    @property
    def without_effect(self) -> tuple[str, ...]:
        """The keys of its profile's front matter that do nothing here: whoever wrote them may count on them."""
        return tuple(self.config.get(KEPT_PROFILE, {}).get("unused", ()))

    @property
    def asked_in(self) -> int:
        """The issue or pull request where it was asked for: of work that goes on in a pull request, maybe its issue."""
        return int(self.config.get(KEPT_ASKED_IN, self.number))

    @property
    def named(self) -> NamedJob | None:
        """The named job that it is, if any."""
        kept = self.config.get(KEPT_JOB)
        return None if kept is None else NamedJob(**kept | {"needs": tuple(kept["needs"])})

    def evolve(self, **changes: Any) -> Job:
        """A copy with ``changes``."""
        return dataclasses.replace(self, **changes)

    def log_context(self) -> dict[str, object]:
        """What every log line about this job carries."""
        return {"job": self.id, "repo": self.repo.full_name, "number": self.number}


@dataclass(frozen=True, kw_only=True)
class Waiting:
    """Why a queued job does not run yet; the first of these that is set is the reason."""

    unserved: tuple[str, ...] = ()  # capabilities that no host which is there has
    no_host: bool = False  # no worker host at all is there
    here: int = 0  # other jobs of its conversation that come first
    limit: str = ""  # "user", "repository" or "installation": as many as may run there do
    running: int = 0  # of that
    settling: bool = False  # a review started it, and others may still join it
    position: int = 1  # in the whole line; 1: the next


class AttemptState(enum.StrEnum):
    """Where one try at a job is."""

    starting = "starting"  # claimed, its container is not running yet
    running = "running"  # its container runs
    paused = "paused"  # its container is frozen, a human was asked
    publishing = "publishing"  # the agent is done; the result is on this host's disk
    ended = "ended"


@dataclass(frozen=True, kw_only=True)
class Attempt:
    """One try at a job on one host. ``fence`` is its number: the job's newest number wins."""

    id: str  # "<job id>-<fence>": also the container's name and label
    job_id: str
    fence: int
    host: str
    state: AttemptState
    claimed_at: datetime
    deadline: datetime


class ApprovalKind(enum.StrEnum):
    """What a person is asked to approve."""

    plan = "plan"  # start the work as planned
    network = "network"  # let the agent reach a host
    budget = "budget"  # let the job cost more
    path = "path"  # change protected paths
    text = "text"  # whatever the agent asks in its own words
    protected = "protected"  # push the part of a change that was held back


class ApprovalState(enum.StrEnum):
    """What became of an approval that was asked for. All but ``pending`` are final."""

    pending = "pending"
    approved = "approved"
    refused = "refused"
    expired = "expired"  # nobody decided in time
    withdrawn = "withdrawn"  # the job ended
    stale = "stale"  # the branch moved: what was asked about is not what is there


@dataclass(frozen=True, kw_only=True)
class Approval:
    """A question that only a pull request review can answer, bound to the commit that the reviewer must have seen."""

    id: str
    kind: ApprovalKind
    job_id: str
    repo: Repo
    pull_number: int
    subject: str  # what is asked, in Markdown
    sha: str  # the head of the pull request that a review must be on, in full
    state: ApprovalState
    asked_at: datetime
    expires_at: datetime
    details: Mapping[str, Any] = dataclasses.field(default_factory=dict)  # host, dollars, paths: by its kind
    reminded_at: datetime | None = None
    decided_at: datetime | None = None
    decided_by: str | None = None  # a login, or "operator:NAME"
    decided_by_id: int | None = None
    words: str = ""  # of the reviewer
    review_id: int | None = None
    settled_at: datetime | None = None  # whoever has to know its state was told
    used_at: datetime | None = None  # what was approved was done
    used_by: str | None = None  # by that job, the last one that was let use it: nobody else goes unchecked


@dataclass(frozen=True, kw_only=True)
class Result:
    """What the agent says about its work, from its ``<result>`` block."""

    status: str  # "done", "failed", "blocked" or "question"
    title: str = ""
    summary: str = ""
    replies: Sequence[
        Mapping[str, Any]
    ] = ()  # to threads of a review: {"thread", "text", "resolved"}, not checked
    comments: Sequence[Mapping[str, Any]] = ()  # of a review of ours: {"path", "line", "body" …}, not checked


def job_id_for(delivery_id: str, ordinal: int = 0) -> str:
    """The id of the job that a delivery starts: the same delivery never makes two jobs."""
    digest = hashlib.sha256(f"{delivery_id}/{ordinal}".encode()).hexdigest()
    return f"j{digest[:12]}"


def attempt_id(job_id: str, fence: int) -> str:
    """The id, container name and label of attempt number ``fence``."""
    return f"{job_id}-{fence}"
