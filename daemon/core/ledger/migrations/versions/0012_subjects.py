"""0012: an incident says what it accuses."""

import sqlalchemy as sa
from alembic import op

revision = "0012"
down_revision = "0011"


def upgrade() -> None:
    """Add the columns, and tell the incidents of feeds and of the store from those of revisions."""
    revision_is_meant = sa.Column("subject", sa.String(length=16), nullable=False, server_default="revision")
    op.add_column("incidents", revision_is_meant)
    op.add_column("incidents", sa.Column("subject_name", sa.Text(), nullable=False, server_default=""))
    of_feed = (
        "UPDATE incidents SET subject = 'feed', subject_name = substr(probe, 6) WHERE probe LIKE 'feed:%'"
    )
    op.execute(sa.text(of_feed.replace(":%", r"\:%")))
    op.execute(sa.text("UPDATE incidents SET subject = 'store' WHERE probe = 'store'"))
