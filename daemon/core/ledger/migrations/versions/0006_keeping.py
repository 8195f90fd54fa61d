"""0006: revisions whose tensors were given up, and what the scrub found."""

import sqlalchemy as sa
from alembic import op

revision = "0006"
down_revision = "0005"


def upgrade() -> None:
    """Apply."""
    op.add_column("revisions", sa.Column("kept", sa.Boolean(), server_default=sa.true(), nullable=False))
    op.create_table(
        "scrubs",
        sa.Column("id", sa.Integer(), autoincrement=True, nullable=False),
        sa.Column("blobs", sa.Integer(), nullable=False),
        sa.Column("bytes", sa.BigInteger(), nullable=False),
        sa.Column("unsound", sa.JSON(), nullable=False),
        sa.Column("seconds", sa.Float(), nullable=False),
        sa.Column("at", sa.String(length=32), nullable=False),
        sa.PrimaryKeyConstraint("id", name=op.f("pk_scrubs")),
    )
