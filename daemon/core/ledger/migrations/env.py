"""Alembic's environment, in which migrations run on the connection of ``database.migrate``."""

from alembic import context

from daemon.core.ledger.schema import metadata

connection = context.config.attributes["connection"]
context.configure(connection=connection, target_metadata=metadata, render_as_batch=True)
context.run_migrations()
