"""0007: drop the second index by fact, which slowed admission down as the ledger grew."""

from alembic import op

revision = "0007"
down_revision = "0006"


def upgrade() -> None:
    """Apply."""
    op.drop_index("ix_corrections_fact_order", "corrections")
