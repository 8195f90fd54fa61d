"""0016: a scrub belongs to the model whose blobs it compared, because each model may have a store of its own."""

import sqlalchemy as sa
from alembic import op

revision = "0016"
down_revision = "0015"


def upgrade() -> None:
    """Add the column, and give earlier scrubs to the model with the longest chain."""
    op.add_column("scrubs", sa.Column("model", sa.String(length=64), nullable=False, server_default=""))
    longest = "SELECT model FROM revisions GROUP BY model ORDER BY count(*) DESC, model LIMIT 1"
    op.execute(sa.text(f"UPDATE scrubs SET model = coalesce(({longest}), '')"))  # noqa: S608  # no value in it
