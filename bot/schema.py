"""The tables. SQL is the truth about deliveries, jobs, attempts, turns and threads; Redis may be lost."""

from __future__ import annotations

from datetime import UTC, datetime

from sqlalchemy import (
    JSON,
    BigInteger,
    Boolean,
    Column,
    DateTime,
    Dialect,
    Float,
    ForeignKey,
    Index,
    Integer,
    LargeBinary,
    MetaData,
    String,
    Table,
    Text,
    TypeDecorator,
    false,
    text,
)


class UtcDateTime(TypeDecorator[datetime]):
    """An aware datetime in UTC. SQLite has no time zones, so they are dropped and put back here."""

    impl = DateTime(timezone=True)
    cache_ok = True

    def process_bind_param(self, value: datetime | None, dialect: Dialect) -> datetime | None:
        """Refuse naive datetimes: they mean a different moment on every machine."""
        if value is None:
            return None
        if value.tzinfo is None:
            raise ValueError("naive datetime")
        value = value.astimezone(UTC)
        return value.replace(tzinfo=None) if dialect.name == "sqlite" else value

    def process_result_value(self, value: datetime | None, dialect: Dialect) -> datetime | None:
        """Give the time zone back."""
        if value is None:
            return None
        return value.replace(tzinfo=UTC) if value.tzinfo is None else value.astimezone(UTC)


metadata = MetaData(
    naming_convention={
        "ix": "ix_%(table_name)s_%(column_0_N_name)s",
        "uq": "uq_%(table_name)s_%(column_0_N_name)s",
        "fk": "fk_%(table_name)s_%(column_0_name)s_%(referred_table_name)s",
        "pk": "pk_%(table_name)s",
    }
)

deliveries = Table(
    "deliveries",
    metadata,
    Column("id", String(80), primary_key=True),  # X-GitHub-Delivery: a redelivery has the same one
    Column("event", String(60), nullable=False),
    Column("action", String(60)),
    Column("installation_id", BigInteger),
    Column("received_at", UtcDateTime, nullable=False),
    Column("body", LargeBinary, nullable=False),  # the raw JSON, deflated
    Column("state", String(12), nullable=False),  # received, done, failed
    Column("tries", Integer, nullable=False, default=0),
    Column("error", Text),
    Column("finished_at", UtcDateTime),
    Column("server", String(160)),  # which one works it off; none: whoever finds it
    Column("subject", String(60)),  # "<repository id>-<number>"; those of one are worked off in turn
    Index("ix_deliveries_state_received_at", "state", "received_at"),
)

threads = Table(
    "threads",
    metadata,
    Column("id", String(60), primary_key=True),  # "<repository id>-<number>"
    Column("agent", String(60), primary_key=True),
    Column("session_id", String(80)),  # what the agent calls its session; resume needs it
    Column("updated_at", UtcDateTime, nullable=False),
)

jobs = Table(
    "jobs",
    metadata,
    Column("id", String(40), primary_key=True),
    Column("repo_id", BigInteger, nullable=False),
    Column("repo_owner", String(120), nullable=False),
    Column("repo_name", String(120), nullable=False),
    Column("installation_id", BigInteger, nullable=False),
    Column("number", Integer, nullable=False),
    Column("target", String(20), nullable=False),
    Column("trigger", JSON, nullable=False),
    Column("agent", String(60), nullable=False),
    Column("model", String(120)),
    Column("instructions", Text, nullable=False),
    Column("title", Text, nullable=False),
    Column("body", Text, nullable=False),
    Column("timeout", Integer, nullable=False),
    Column("base", String(250)),
    Column("retry_of", String(40)),
    Column("state", String(12), nullable=False),
    Column("fence", Integer, nullable=False, default=0),
    Column("phase", String(12)),
    Column("failure", String(20)),
    Column("message", Text, nullable=False, default=""),
    Column("summary", Text, nullable=False, default=""),
    Column("branch", String(250)),
    Column("base_sha", String(64)),
    Column("head_sha", String(64)),
    Column("pull_number", Integer),
    Column("comment_id", BigInteger),
    Column("check_run_id", BigInteger),
    Column("cancel_requested_by", String(120)),
    Column("created_at", UtcDateTime, nullable=False),
    Column("started_at", UtcDateTime),
    Column("finished_at", UtcDateTime),
    Column("reported", String(12)),  # the state that GitHub was last told; differs: to be reported again
    Column("input_tokens", BigInteger, nullable=False, default=0),
    Column("output_tokens", BigInteger, nullable=False, default=0),
    Column("cached_tokens", BigInteger, nullable=False, default=0),
    Column("cache_write_tokens", BigInteger, nullable=False, default=0),
    Column("llm_requests", Integer, nullable=False, default=0),
    Column("cost", Float, default=0.0),
    Column("thread_id", String(60), nullable=False, server_default=""),
    Column("actor_id", BigInteger, nullable=False, server_default="0"),  # who asked, for limits
    Column("config", JSON, nullable=False, server_default="{}"),
    Column("queue", String(200), nullable=False, server_default=""),
    Column("priority", Integer, nullable=False, server_default="0"),
    Column("budget", Float),
    Column("go_on", Boolean, nullable=False, server_default=false()),
    Column("question", Text, nullable=False, server_default=""),
    Column("asked_at", UtcDateTime),
    Column("answer", Text),
    Column("answered_by", String(120)),
    Column("hibernated", Boolean, nullable=False, server_default=false()),
    Column("held_back", Text, nullable=False, server_default=""),
    Column("blocked", JSON, nullable=False, server_default="{}"),
    Column("waits", Text, nullable=False, server_default=""),  # what its comment says about why it waits
    Column("kind", String(12), nullable=False, server_default="task"),
    Column("left_out", JSON, nullable=False, server_default="[]"),
    Column("fork", Boolean, nullable=False, server_default=false()),
    Column("recent_log", Text, nullable=False, server_default=""),  # what its agent said last
    Column("marker_sha", String(64)),  # the empty commit that a review must be on
    Column("approval_id", String(40)),  # the approved plan that it carries out
    Index("ix_jobs_state", "state"),
    Index("ix_jobs_state_repo_id", "state", "repo_id"),  # how many run
    Index("ix_jobs_repo_id_started_at", "repo_id", "started_at"),  # when it was served last
    Index("ix_jobs_actor_id_created_at", "actor_id", "created_at"),  # how often somebody asked
    Index("ix_jobs_repo_id_number", "repo_id", "number"),
    Index("ix_jobs_thread_id", "thread_id"),
)

#: What every LLM call cost: budgets are sums over it.
spend = Table(
    "spend",
    metadata,
    Column("id", BigInteger().with_variant(Integer, "sqlite"), primary_key=True, autoincrement=True),
    Column("job_id", String(40), nullable=False),
    Column("attempt_id", String(60), nullable=False),
    Column("thread_id", String(60), nullable=False),
    Column("repo_id", BigInteger, nullable=False),
    Column("actor_id", BigInteger, nullable=False),
    Column("at", UtcDateTime, nullable=False),
    Column("day", String(10), nullable=False),  # "2026-11-21", UTC
    Column("model", String(200), nullable=False),
    Column("input_tokens", BigInteger, nullable=False),
    Column("output_tokens", BigInteger, nullable=False),
    Column("cached_tokens", BigInteger, nullable=False),
    Column("cache_write_tokens", BigInteger, nullable=False),
    Column("cost", Float),  # None: the model has no known price
    Index("ix_spend_job_id", "job_id"),
    Index("ix_spend_thread_id", "thread_id"),
    Index("ix_spend_day", "day"),
)

#: Files of threads (bot.shelf): which edition of each is the one, and the editions in compressed pieces.
shelf = Table(
    "shelf",
    metadata,
    Column("thread_id", String(60), primary_key=True),
    Column("name", String(120), primary_key=True),
    Column("edition", String(40), nullable=False),
    Column("size", BigInteger, nullable=False),
    Column("sha256", String(64), nullable=False),
    Column("kept_at", UtcDateTime, nullable=False),
)
shelf_pieces = Table(
    "shelf_pieces",
    metadata,
    Column("edition", String(40), primary_key=True),
    Column("number", Integer, primary_key=True),
    Column("data", LargeBinary, nullable=False),
    Column("kept_at", UtcDateTime, nullable=False),
)

attempts = Table(
    "attempts",
    metadata,
    Column("id", String(60), primary_key=True),
    Column("job_id", String(40), ForeignKey("jobs.id"), nullable=False),
    Column("fence", Integer, nullable=False),
    Column("host", String(120), nullable=False),
    Column("state", String(12), nullable=False),
    Column("claimed_at", UtcDateTime, nullable=False),
    Column("deadline", UtcDateTime, nullable=False),
    Column("ended_at", UtcDateTime),
    Index("ix_attempts_host_state", "host", "state"),
    Index("ix_attempts_job_id", "job_id"),
)

turns = Table(
    "turns",
    metadata,
    Column("attempt_id", String(60), ForeignKey("attempts.id"), primary_key=True),
    Column("number", Integer, primary_key=True),
    Column("prompt", Text, nullable=False),
    Column("started_at", UtcDateTime, nullable=False),
    Column("finished_at", UtcDateTime),
    Column("outcome", JSON),
)

hosts = Table(
    "hosts",
    metadata,
    Column("name", String(120), primary_key=True),
    Column("slots", Integer, nullable=False),
    Column("started_at", UtcDateTime, nullable=False),
    Column("seen_at", UtcDateTime, nullable=False),
    Column("serves", JSON, nullable=False, server_default="[]"),  # its capabilities, sorted
)

#: Things said once to somebody (a polite refusal), so that they are not said again.
answers = Table(
    "answers",
    metadata,
    Column("key", String(200), primary_key=True),
    Column("said_at", UtcDateTime, nullable=False),
)

#: What people are asked to approve by a pull request review (bot.approval_store).
approvals = Table(
    "approvals",
    metadata,
    Column("id", String(40), primary_key=True),
    Column("kind", String(12), nullable=False),
    Column("job_id", String(40), ForeignKey("jobs.id"), nullable=False),
    Column("repo_id", BigInteger, nullable=False),
    Column("repo_owner", String(120), nullable=False),
    Column("repo_name", String(120), nullable=False),
    Column("installation_id", BigInteger, nullable=False),
    Column("pull_number", Integer, nullable=False),
    Column("subject", Text, nullable=False),
    Column("details", JSON, nullable=False, server_default="{}"),
    Column("sha", String(64), nullable=False),
    Column("state", String(12), nullable=False),
    Column("asked_at", UtcDateTime, nullable=False),
    Column("expires_at", UtcDateTime, nullable=False),
    Column("reminded_at", UtcDateTime),
    Column("decided_at", UtcDateTime),
    Column("decided_by", String(120)),
    Column("decided_by_id", BigInteger),
    Column("words", Text, nullable=False, server_default=""),
    Column("review_id", BigInteger),
    Column("settled_at", UtcDateTime),
    Column("used_at", UtcDateTime),
    Column("used_by", String(40)),  # the job that did
    Index("ix_approvals_state_expires_at", "state", "expires_at"),
    Index(
        "uq_approvals_pending_job_id",  # a job asks one thing at a time
        "job_id",
        unique=True,
        sqlite_where=text("state = 'pending'"),
        postgresql_where=text("state = 'pending'"),
    ),
    Index("ix_approvals_repo_id_pull_number", "repo_id", "pull_number"),
    Index("ix_approvals_job_id", "job_id"),
)

#: Who did what, for ever: each row's hash covers the row before it (bot.audit). What is hashed is what is stored,
#: so moments and JSON are texts here. Triggers (migration 0004) refuse to change or delete rows.
audit = Table(
    "audit",
    metadata,
    Column("seq", BigInteger().with_variant(Integer, "sqlite"), primary_key=True, autoincrement=False),
    Column("at", String(27), nullable=False),
    Column("kind", String(60), nullable=False),
    Column("actor", String(120), nullable=False),
    Column("actor_id", BigInteger),
    Column("repo_id", BigInteger),
    Column("repo", String(250), nullable=False, server_default=""),
    Column("number", Integer),
    Column("job_id", String(40)),
    Column("delivery_id", String(80)),
    Column("sha", String(64)),
    Column("decision", Text),
    Column("details", Text, nullable=False),
    Column("previous", String(64), nullable=False),
    Column("hash", String(64), nullable=False),
    Index("ix_audit_at", "at"),
    Index("ix_audit_job_id", "job_id"),
)

#: The newest row of ``audit``: writers queue up here, and a cut-off end shows.
audit_head = Table(
    "audit_head",
    metadata,
    Column("id", Integer, primary_key=True, autoincrement=False),  # there is one row: 1
    Column("seq", BigInteger, nullable=False),
    Column("hash", String(64), nullable=False),
)

#: Words for an agent that works: it gets them when its turn is over (`/agent tell`).
tells = Table(
    "tells",
    metadata,
    Column("event", String(120), primary_key=True),  # which trigger: the same one says nothing twice
    Column("job_id", String(40), ForeignKey("jobs.id"), nullable=False),
    Column("words", Text, nullable=False),
    Column("by", String(120), nullable=False),
    Column("at", UtcDateTime, nullable=False),
    Column("told_at", UtcDateTime),  # when it became part of a turn
    Index("ix_tells_job_id", "job_id"),
)

#: Where the App is installed, as GitHub's events told.
installations = Table(
    "installations",
    metadata,
    Column("id", BigInteger, primary_key=True),
    Column("account", String(120), nullable=False),
    Column("account_type", String(20), nullable=False),
    Column("suspended", Boolean, nullable=False, server_default=false()),
    Column("removed", Boolean, nullable=False, server_default=false()),
    Column("permissions", JSON, nullable=False, server_default="{}"),
    Column("updated_at", UtcDateTime, nullable=False),
)

#: How far something was read: GitHub's delivery log, the search for unanswered commands.
cursors = Table(
    "cursors",
    metadata,
    Column("name", String(120), primary_key=True),
    Column("value", Text, nullable=False),
    Column("updated_at", UtcDateTime, nullable=False),
)

#: Commits of ours on which a check failed: what becomes of them, when nobody asked.
failing_heads = Table(
    "failing_heads",
    metadata,
    Column("repo_id", BigInteger, primary_key=True, autoincrement=False),
    Column("number", Integer, primary_key=True, autoincrement=False),  # of the pull request
    Column("sha", String(64), primary_key=True),
    Column("seen_at", UtcDateTime, nullable=False),
    Column("look_at", UtcDateTime),  # when it is worth looking again; NULL: never
    Column("job_id", String(40)),  # the job that shall fix it; not accepted, perhaps
    Column("fingerprint", String(32), nullable=False, default=""),  # of what failed when that was started
    Column("said", Text, nullable=False, default=""),  # why nothing was done, for the log
    Index("ix_failing_heads_look_at", "look_at"),
)
