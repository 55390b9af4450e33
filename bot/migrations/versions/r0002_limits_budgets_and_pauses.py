"""limits, budgets and pauses.

Revision ID: 0002
Revises: 0001
"""

from __future__ import annotations

from typing import Any

import sqlalchemy as sa
from alembic import op

from bot.schema import UtcDateTime

revision = "0002"
down_revision = "0001"


def _columns() -> tuple[sa.Column[Any], ...]:
    return (
        sa.Column("thread_id", sa.String(length=60), nullable=False, server_default=""),
        sa.Column("actor_id", sa.BigInteger(), nullable=False, server_default="0"),
        sa.Column("config", sa.JSON(), nullable=False, server_default="{}"),
        sa.Column("queue", sa.String(length=200), nullable=False, server_default=""),
        sa.Column("priority", sa.Integer(), nullable=False, server_default="0"),
        sa.Column("budget", sa.Float(), nullable=True),
        sa.Column("go_on", sa.Boolean(), nullable=False, server_default=sa.false()),
        sa.Column("question", sa.Text(), nullable=False, server_default=""),
        sa.Column("asked_at", UtcDateTime(), nullable=True),
        sa.Column("answer", sa.Text(), nullable=True),
        sa.Column("answered_by", sa.String(length=120), nullable=True),
        sa.Column("hibernated", sa.Boolean(), nullable=False, server_default=sa.false()),
        sa.Column("held_back", sa.Text(), nullable=False, server_default=""),
        sa.Column("blocked", sa.JSON(), nullable=False, server_default="{}"),
    )


def upgrade() -> None:
    for column in _columns():
        op.add_column("jobs", column)
    op.create_index("ix_jobs_thread_id", "jobs", ["thread_id"])
    op.create_table(
        "spend",
        sa.Column(
            "id", sa.BigInteger().with_variant(sa.Integer(), "sqlite"), primary_key=True, autoincrement=True
        ),
        sa.Column("job_id", sa.String(length=40), nullable=False),
        sa.Column("attempt_id", sa.String(length=60), nullable=False),
        sa.Column("thread_id", sa.String(length=60), nullable=False),
        sa.Column("repo_id", sa.BigInteger(), nullable=False),
        sa.Column("actor_id", sa.BigInteger(), nullable=False),
        sa.Column("at", UtcDateTime(), nullable=False),
        sa.Column("day", sa.String(length=10), nullable=False),
        sa.Column("model", sa.String(length=200), nullable=False),
        sa.Column("input_tokens", sa.BigInteger(), nullable=False),
        sa.Column("output_tokens", sa.BigInteger(), nullable=False),
        sa.Column("cached_tokens", sa.BigInteger(), nullable=False),
        sa.Column("cache_write_tokens", sa.BigInteger(), nullable=False),
        sa.Column("cost", sa.Float(), nullable=True),
    )
    op.create_index("ix_spend_job_id", "spend", ["job_id"])
    op.create_index("ix_spend_thread_id", "spend", ["thread_id"])
    op.create_index("ix_spend_day", "spend", ["day"])
    op.create_table(
        "shelf",
        sa.Column("thread_id", sa.String(length=60), nullable=False),
        sa.Column("name", sa.String(length=120), nullable=False),
        sa.Column("edition", sa.String(length=40), nullable=False),
        sa.Column("size", sa.BigInteger(), nullable=False),
        sa.Column("sha256", sa.String(length=64), nullable=False),
        sa.Column("kept_at", UtcDateTime(), nullable=False),
        sa.PrimaryKeyConstraint("thread_id", "name", name=op.f("pk_shelf")),
    )
    op.create_table(
        "shelf_pieces",
        sa.Column("edition", sa.String(length=40), nullable=False),
        sa.Column("number", sa.Integer(), nullable=False),
        sa.Column("data", sa.LargeBinary(), nullable=False),
        sa.Column("kept_at", UtcDateTime(), nullable=False),
        sa.PrimaryKeyConstraint("edition", "number", name=op.f("pk_shelf_pieces")),
    )
