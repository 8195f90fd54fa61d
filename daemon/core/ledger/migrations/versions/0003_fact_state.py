"""0003: what still counts about a fact is found without reading what was superseded."""

from alembic import op

revision = "0003"
down_revision = "0002"


def upgrade() -> None:
    """Apply."""
    op.create_index("ix_corrections_fact_state", "corrections", ["fact_id", "state"])
