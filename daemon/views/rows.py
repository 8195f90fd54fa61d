"""Rows of the ledger as plain dictionaries, ready for JSON."""

from typing import Any

from sqlalchemy import Connection, Select

Row = dict[str, Any]


def fetch(connection: Connection, query: Select[Any]) -> list[Row]:
    """Run a query and return its rows in order."""
    return [dict(row) for row in connection.execute(query).mappings()]
