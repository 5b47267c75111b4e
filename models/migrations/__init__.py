"""Alembic migrations of the built-in tables."""
