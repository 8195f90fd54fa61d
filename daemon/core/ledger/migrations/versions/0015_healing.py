"""0015: a batch may be a portion of a rollback that is to be bisected, and a correction may have come back."""

import sqlalchemy as sa
from alembic import op

revision = "0015"
down_revision = "0014"


def upgrade() -> None:
    """Add the columns. What was rolled back before this version stays as it is."""
    op.add_column("batches", sa.Column("rollback", sa.Integer(), nullable=True))
    op.add_column("corrections", sa.Column("came_back", sa.Integer(), nullable=True))
