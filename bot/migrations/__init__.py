"""Alembic migrations of the schema in ``bot.schema``."""
