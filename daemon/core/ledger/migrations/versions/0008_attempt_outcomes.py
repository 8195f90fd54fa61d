"""0008: how an attempt ended, its error and its probe are columns of their own."""

import sqlalchemy as sa
from alembic import op

revision = "0008"
down_revision = "0007"

_CONVERSIONS = (
    "UPDATE attempts SET probe = substr(outcome, 9), outcome = 'running' WHERE outcome LIKE 'probing %'",
    "UPDATE attempts SET error = substr(outcome, 9), outcome = 'failed' WHERE outcome LIKE 'failed%'",
    "UPDATE attempts SET error = substr(outcome, 8), outcome = 'later' WHERE outcome LIKE 'later%'",
    "UPDATE attempts SET outcome = 'running' WHERE outcome = ''",
)


def upgrade() -> None:
    """Take the free text of ``outcome`` apart, then narrow its column."""
    with op.batch_alter_table("attempts", schema=None) as batch_op:
        batch_op.add_column(sa.Column("error", sa.Text(), nullable=False, server_default=""))
        batch_op.add_column(sa.Column("probe", sa.String(length=64), nullable=True))
    for statement in _CONVERSIONS:
        op.execute(sa.text(statement))
    with op.batch_alter_table("attempts", schema=None) as batch_op:
        batch_op.alter_column(
            "outcome", existing_type=sa.Text(), type_=sa.String(length=16), existing_nullable=False
        )
