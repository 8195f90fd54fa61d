"""0005: answers to deliveries that bear an idempotency key."""

import sqlalchemy as sa
from alembic import op

revision = "0005"
down_revision = "0004"


def upgrade() -> None:
    """Apply."""
    op.create_table(
        "deliveries",
        sa.Column("feed", sa.String(length=64), nullable=False),
        sa.Column("key", sa.String(length=128), nullable=False),
        sa.Column("digest", sa.String(length=64), nullable=False),
        sa.Column("answer", sa.JSON(), nullable=False),
        sa.Column("at", sa.String(length=32), nullable=False),
        sa.PrimaryKeyConstraint("feed", "key", name=op.f("pk_deliveries")),
    )
    op.create_index("ix_deliveries_at", "deliveries", ["at"])
