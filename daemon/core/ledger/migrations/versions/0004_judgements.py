"""0004: outcomes item by item, what the judge made of them, and where an incident leads back to."""

import sqlalchemy as sa
from alembic import op

revision = "0004"
down_revision = "0003"


def upgrade() -> None:
    """Apply."""
    with op.batch_alter_table("probe_results", schema=None) as batch_op:
        batch_op.add_column(sa.Column("outcomes", sa.JSON(), nullable=True))
    with op.batch_alter_table("incidents", schema=None) as batch_op:
        batch_op.add_column(
            sa.Column("result", sa.String(length=16), nullable=False, server_default="degraded")
        )
        batch_op.add_column(sa.Column("since", sa.Integer(), nullable=True))
        batch_op.add_column(sa.Column("alert", sa.Text(), nullable=True))
    with op.batch_alter_table("workers", schema=None) as batch_op:
        batch_op.add_column(
            sa.Column("gpu_memory_bytes", sa.BigInteger(), nullable=False, server_default="0")
        )
    op.create_table(
        "judgements",
        sa.Column("model", sa.String(length=64), nullable=False),
        sa.Column("revision", sa.Integer(), autoincrement=False, nullable=False),
        sa.Column("probe", sa.String(length=64), nullable=False),
        sa.Column("result", sa.String(length=16), nullable=False),
        sa.Column("reference", sa.Integer(), nullable=True),
        sa.Column("loss", sa.Float(), nullable=True),
        sa.Column("p_value", sa.Float(), nullable=True),
        sa.Column("drift", sa.Float(), nullable=True),
        sa.Column("since", sa.Integer(), nullable=True),
        sa.Column("measurement", sa.Integer(), nullable=False),
        sa.Column("message", sa.Text(), nullable=False),
        sa.Column("judged_at", sa.String(length=32), nullable=False),
        sa.PrimaryKeyConstraint("model", "revision", "probe", name=op.f("pk_judgements")),
    )
