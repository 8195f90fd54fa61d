"""Where the parts of an installation lie."""

from pathlib import Path

from sqlalchemy.engine import make_url

from daemon.core.config import Config


def ledger_file(config: Config) -> Path | None:
    """The file of an SQLite ledger; None for a ledger on a server or in memory."""
    url = make_url(config.ledger_url)
    if url.get_backend_name() != "sqlite" or not url.database or url.database == ":memory:":
        return None
    return Path(url.database)
