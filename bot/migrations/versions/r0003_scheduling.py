"""scheduling: what hosts serve, why jobs wait, and which conversation each job belongs to.

Revision ID: 0003
Revises: 0002
"""

from __future__ import annotations

import sqlalchemy as sa
from alembic import op

revision = "0003"
down_revision = "0002"

#: As bot.store.Store.thread_of: a pull request of ours belongs to the conversation of its issue.
FILL_THREADS = """
UPDATE jobs SET thread_id = CAST(repo_id AS VARCHAR(20)) || '-' || CAST(COALESCE(
    (SELECT first.number FROM jobs AS first
     WHERE first.repo_id = jobs.repo_id AND first.pull_number = jobs.number
     ORDER BY first.created_at LIMIT 1),
    number) AS VARCHAR(20))
WHERE thread_id = ''
"""


def upgrade() -> None:
    op.add_column("hosts", sa.Column("serves", sa.JSON(), nullable=False, server_default="[]"))
    op.add_column("jobs", sa.Column("waits", sa.Text(), nullable=False, server_default=""))
    op.create_index("ix_jobs_state_repo_id", "jobs", ["state", "repo_id"])
    op.create_index("ix_jobs_repo_id_started_at", "jobs", ["repo_id", "started_at"])
    op.create_index("ix_jobs_actor_id_created_at", "jobs", ["actor_id", "created_at"])
    op.execute(FILL_THREADS)
