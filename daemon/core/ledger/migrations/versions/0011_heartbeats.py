"""0011: heartbeats of every process, with its role, its interval and the monotonic clock of its boot.

The table keeps its name: a worker of an older Errata that is still at work writes it too.
"""

import sqlalchemy as sa
from alembic import op

revision = "0011"
down_revision = "0010"


def upgrade() -> None:
    """Apply."""
    with op.batch_alter_table("workers", schema=None) as batch_op:
        batch_op.add_column(sa.Column("role", sa.String(length=16), nullable=False, server_default="worker"))
        batch_op.add_column(sa.Column("seconds", sa.Float(), nullable=False, server_default="20"))
        batch_op.add_column(sa.Column("boot", sa.String(length=64), nullable=False, server_default=""))
        batch_op.add_column(sa.Column("renewed", sa.Float(), nullable=False, server_default="0"))
