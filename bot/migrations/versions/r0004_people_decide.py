"""people decide: approvals, audit, words for agents that work, installations, cursors; kinds of jobs.

Revision ID: 0004
Revises: 0003
"""

from __future__ import annotations

import sqlalchemy as sa
from alembic import op

from bot.schema import UtcDateTime

revision = "0004"
down_revision = "0003"

#: What a program that merely uses the database cannot do: change or remove rows of the audit trail. Whoever owns the
#: tables can drop these triggers; `conductor audit verify` is for that.
KEEP_AUDIT = {
    "sqlite": (
        """CREATE TRIGGER audit_no_update BEFORE UPDATE ON audit
        BEGIN SELECT RAISE(ABORT, 'the audit trail is append-only'); END""",
        """CREATE TRIGGER audit_no_delete BEFORE DELETE ON audit
        BEGIN SELECT RAISE(ABORT, 'the audit trail is append-only'); END""",
        # INSERT OR REPLACE deletes without asking the trigger above: https://www.sqlite.org/lang_conflict.html
        """CREATE TRIGGER audit_no_replace BEFORE INSERT ON audit
        WHEN EXISTS (SELECT 1 FROM audit WHERE seq = NEW.seq)
        BEGIN SELECT RAISE(ABORT, 'the audit trail is append-only'); END""",
        """CREATE TRIGGER audit_head_stays BEFORE DELETE ON audit_head
        BEGIN SELECT RAISE(ABORT, 'the audit trail is append-only'); END""",
        """CREATE TRIGGER audit_head_rises BEFORE UPDATE ON audit_head
        WHEN NEW.seq < OLD.seq OR NEW.id <> OLD.id
        BEGIN SELECT RAISE(ABORT, 'the audit trail is append-only'); END""",
    ),
    "postgresql": (
        """CREATE FUNCTION audit_refuse() RETURNS trigger LANGUAGE plpgsql AS
        $$ BEGIN RAISE EXCEPTION 'the audit trail is append-only'; END $$""",
        """CREATE TRIGGER audit_no_change BEFORE UPDATE OR DELETE OR TRUNCATE ON audit
        FOR EACH STATEMENT EXECUTE FUNCTION audit_refuse()""",
        """CREATE TRIGGER audit_head_stays BEFORE DELETE OR TRUNCATE ON audit_head
        FOR EACH STATEMENT EXECUTE FUNCTION audit_refuse()""",
        """CREATE TRIGGER audit_head_rises BEFORE UPDATE ON audit_head
        FOR EACH ROW WHEN (NEW.seq < OLD.seq OR NEW.id <> OLD.id) EXECUTE FUNCTION audit_refuse()""",
    ),
}


def upgrade() -> None:
    op.add_column("deliveries", sa.Column("server", sa.String(160)))
    op.add_column("deliveries", sa.Column("subject", sa.String(60)))
    op.add_column("jobs", sa.Column("kind", sa.String(12), nullable=False, server_default="task"))
    op.add_column("jobs", sa.Column("left_out", sa.JSON(), nullable=False, server_default="[]"))
    op.add_column("jobs", sa.Column("fork", sa.Boolean(), nullable=False, server_default=sa.false()))
    op.add_column("jobs", sa.Column("recent_log", sa.Text(), nullable=False, server_default=""))
    op.add_column("jobs", sa.Column("marker_sha", sa.String(64)))
    op.add_column("jobs", sa.Column("approval_id", sa.String(40)))
    op.create_table(
        "approvals",
        sa.Column("id", sa.String(40), primary_key=True),
        sa.Column("kind", sa.String(12), nullable=False),
        sa.Column("job_id", sa.String(40), sa.ForeignKey("jobs.id"), nullable=False),
        sa.Column("repo_id", sa.BigInteger(), nullable=False),
        sa.Column("repo_owner", sa.String(120), nullable=False),
        sa.Column("repo_name", sa.String(120), nullable=False),
        sa.Column("installation_id", sa.BigInteger(), nullable=False),
        sa.Column("pull_number", sa.Integer(), nullable=False),
        sa.Column("subject", sa.Text(), nullable=False),
        sa.Column("details", sa.JSON(), nullable=False, server_default="{}"),
        sa.Column("sha", sa.String(64), nullable=False),
        sa.Column("state", sa.String(12), nullable=False),
        sa.Column("asked_at", UtcDateTime(), nullable=False),
        sa.Column("expires_at", UtcDateTime(), nullable=False),
        sa.Column("reminded_at", UtcDateTime()),
        sa.Column("decided_at", UtcDateTime()),
        sa.Column("decided_by", sa.String(120)),
        sa.Column("decided_by_id", sa.BigInteger()),
        sa.Column("words", sa.Text(), nullable=False, server_default=""),
        sa.Column("review_id", sa.BigInteger()),
        sa.Column("settled_at", UtcDateTime()),
        sa.Column("used_at", UtcDateTime()),
        sa.Column("used_by", sa.String(40)),
    )
    op.create_index("ix_approvals_state_expires_at", "approvals", ["state", "expires_at"])
    op.create_index("ix_approvals_repo_id_pull_number", "approvals", ["repo_id", "pull_number"])
    op.create_index("ix_approvals_job_id", "approvals", ["job_id"])
    op.create_index(
        "uq_approvals_pending_job_id",
        "approvals",
        ["job_id"],
        unique=True,
        sqlite_where=sa.text("state = 'pending'"),
        postgresql_where=sa.text("state = 'pending'"),
    )
    op.create_table(
        "audit",
        sa.Column(
            "seq",
            sa.BigInteger().with_variant(sa.Integer(), "sqlite"),
            primary_key=True,
            autoincrement=False,
        ),
        sa.Column("at", sa.String(27), nullable=False),
        sa.Column("kind", sa.String(60), nullable=False),
        sa.Column("actor", sa.String(120), nullable=False),
        sa.Column("actor_id", sa.BigInteger()),
        sa.Column("repo_id", sa.BigInteger()),
        sa.Column("repo", sa.String(250), nullable=False, server_default=""),
        sa.Column("number", sa.Integer()),
        sa.Column("job_id", sa.String(40)),
        sa.Column("delivery_id", sa.String(80)),
        sa.Column("sha", sa.String(64)),
        sa.Column("decision", sa.Text()),
        sa.Column("details", sa.Text(), nullable=False),
        sa.Column("previous", sa.String(64), nullable=False),
        sa.Column("hash", sa.String(64), nullable=False),
    )
    op.create_index("ix_audit_at", "audit", ["at"])
    op.create_index("ix_audit_job_id", "audit", ["job_id"])
    head = op.create_table(
        "audit_head",
        sa.Column("id", sa.Integer(), primary_key=True, autoincrement=False),
        sa.Column("seq", sa.BigInteger(), nullable=False),
        sa.Column("hash", sa.String(64), nullable=False),
    )
    op.bulk_insert(head, [{"id": 1, "seq": 0, "hash": "0" * 64}])
    for statement in KEEP_AUDIT[op.get_bind().dialect.name]:
        op.execute(statement)
    op.create_table(
        "tells",
        sa.Column("event", sa.String(120), primary_key=True),
        sa.Column("job_id", sa.String(40), sa.ForeignKey("jobs.id"), nullable=False),
        sa.Column("words", sa.Text(), nullable=False),
        sa.Column("by", sa.String(120), nullable=False),
        sa.Column("at", UtcDateTime(), nullable=False),
        sa.Column("told_at", UtcDateTime()),
    )
    op.create_index("ix_tells_job_id", "tells", ["job_id"])
    op.create_table(
        "installations",
        sa.Column("id", sa.BigInteger(), primary_key=True),
        sa.Column("account", sa.String(120), nullable=False),
        sa.Column("account_type", sa.String(20), nullable=False),
        sa.Column("suspended", sa.Boolean(), nullable=False, server_default=sa.false()),
        sa.Column("removed", sa.Boolean(), nullable=False, server_default=sa.false()),
        sa.Column("permissions", sa.JSON(), nullable=False, server_default="{}"),
        sa.Column("updated_at", UtcDateTime(), nullable=False),
    )
    op.create_table(
        "cursors",
        sa.Column("name", sa.String(120), primary_key=True),
        sa.Column("value", sa.Text(), nullable=False),
        sa.Column("updated_at", UtcDateTime(), nullable=False),
    )
    op.create_table(
        "failing_heads",
        sa.Column("repo_id", sa.BigInteger(), primary_key=True, autoincrement=False),
        sa.Column("number", sa.Integer(), primary_key=True, autoincrement=False),
        sa.Column("sha", sa.String(64), primary_key=True),
        sa.Column("seen_at", UtcDateTime(), nullable=False),
        sa.Column("look_at", UtcDateTime()),
        sa.Column("job_id", sa.String(40)),
        sa.Column("fingerprint", sa.String(32), nullable=False),
        sa.Column("said", sa.Text(), nullable=False),
    )
    op.create_index("ix_failing_heads_look_at", "failing_heads", ["look_at"])
