"""0010: leases are measured by the monotonic clock of a boot, not by the wall clock."""

import sqlalchemy as sa
from alembic import op

revision = "0010"
down_revision = "0009"


def upgrade() -> None:
    """Apply."""
    with op.batch_alter_table("leases", schema=None) as batch_op:
        batch_op.add_column(sa.Column("seconds", sa.Float(), nullable=True))
        batch_op.add_column(sa.Column("boot", sa.String(length=64), nullable=False, server_default=""))
        batch_op.add_column(sa.Column("renewed", sa.Float(), nullable=False, server_default="0"))
