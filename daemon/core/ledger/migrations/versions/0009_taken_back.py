"""0009: a rollback records its cause and who made it, and a revision which rollback took it back."""

import sqlalchemy as sa
from alembic import op
from sqlalchemy import Connection

revision = "0009"
down_revision = "0008"

_CAUSES = {"judge": "judge", "alertmanager": "alert", "store": "recovery"}  # by the name in the audit


def upgrade() -> None:
    """Add the columns, and fill them for the rollbacks that were made before."""
    op.add_column("revisions", sa.Column("cause", sa.String(length=16), nullable=True))
    op.add_column("revisions", sa.Column("who", sa.Text(), nullable=True))
    op.add_column("revisions", sa.Column("taken_back_by", sa.Integer(), nullable=True))
    op.add_column("revisions", sa.Column("state_before", sa.String(length=16), nullable=True))
    connection = op.get_bind()
    for model in connection.execute(sa.text("SELECT DISTINCT model FROM revisions")).scalars().all():
        _name_the_rollbacks(connection, model)
        _mark_taken_back(connection, model)


def _name_the_rollbacks(connection: Connection, model: str) -> None:
    """Copy from the audit who made each rollback."""
    audit = sa.table(
        "audit", sa.column("who"), sa.column("target"), sa.column("action"), sa.column("details", sa.JSON)
    )
    query = sa.select(audit.c.who, audit.c.details).where(audit.c.action == "rollback")
    query = query.where(audit.c.target.startswith(f"{model}@", autoescape=True))
    statement = sa.text(
        "UPDATE revisions SET who = :who, cause = :cause WHERE model = :model AND number = :number "
        "AND kind = 'rollback'"
    )
    for row in connection.execute(query).all():
        cause = _CAUSES.get(row.who, "operator")
        values = {"who": row.who, "cause": cause, "model": model, "number": row.details.get("head")}
        connection.execute(statement, values)


def _mark_taken_back(connection: Connection, model: str) -> None:
    """Reject the revisions that head does not hold, each in the name of the rollback that left it."""
    query = sa.text("SELECT number, parent, content_of FROM revisions WHERE model = :model ORDER BY number")
    steps: dict[int, int | None] = {}
    taken_back: dict[int, int] = {}
    for row in connection.execute(query, {"model": model}).all():
        steps[row.number] = row.parent if row.content_of is None else row.content_of
        if row.content_of is None:
            continue
        held, at = set(), row.number
        while at is not None:
            held.add(at)
            at = steps[at]
        taken_back = {number: by for number, by in taken_back.items() if number not in held}
        taken_back |= {one: row.number for one in steps if one not in held and one not in taken_back}
    statement = sa.text(
        "UPDATE revisions SET taken_back_by = :by, state_before = state, state = 'rejected' "
        "WHERE model = :model AND number = :number"
    )
    for number, by in taken_back.items():
        connection.execute(statement, {"by": by, "model": model, "number": number})
