"""Alembic's entry: runs the migrations on the connection that ``bot.database.upgrade`` hands over."""

from __future__ import annotations

from alembic import context

from bot.schema import metadata

context.configure(
    connection=context.config.attributes["connection"],
    target_metadata=metadata,
    transaction_per_migration=False,
    render_as_batch=True,
)
context.run_migrations()
