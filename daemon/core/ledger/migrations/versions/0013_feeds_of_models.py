"""0013: feeds, their outcomes, deliveries, refusals and switches belong to a model.

A row of before is given to the model for which its feed brought corrections, to each of them where there are
several, and otherwise to the ledger's first model. No cursor is lost. Counts go to the first of them alone.
"""

import json
from collections.abc import Mapping
from typing import Any

import sqlalchemy as sa
from alembic import op

revision = "0013"
down_revision = "0012"

_DEFAULT = "default"
_KEYS = {"feeds": ["name"], "feed_outcomes": ["feed", "outcome"], "deliveries": ["feed", "key"]}
_KEYS["switches"] = ["name"]


def upgrade() -> None:
    """Add the column, fill it, and make it part of the keys."""
    for table in (*_KEYS, "quarantine"):
        with op.batch_alter_table(table, schema=None) as batch_op:
            batch_op.add_column(sa.Column("model", sa.String(length=64), nullable=False, server_default=""))
    for table, columns in _KEYS.items():
        with op.batch_alter_table(table, schema=None) as batch_op:
            batch_op.drop_constraint(f"pk_{table}", type_="primary")
            batch_op.create_primary_key(f"pk_{table}", ["model", *columns])
    _fill(op.get_bind())


def _fill(connection: sa.Connection) -> None:
    models = _models(connection)
    first = models[0] if models else _DEFAULT
    of_feed = _models_by_feed(connection)
    for row in _rows(connection, "SELECT * FROM feeds"):
        readers = of_feed.get(row["name"], [first])
        for reader in readers[1:]:
            _insert(connection, "feeds", {**row, "model": reader, "items": 0})
    for table, name in (("feeds", "name"), ("feed_outcomes", "feed"), ("quarantine", "feed")):
        for feed, readers in of_feed.items():
            connection.execute(
                sa.text(f"UPDATE {table} SET model = :model WHERE {name} = :feed AND model = ''"),  # noqa: S608
                {"model": readers[0], "feed": feed},
            )
    connection.execute(
        sa.text(
            "UPDATE quarantine SET model = (SELECT model FROM corrections WHERE id = correction_id)"
            " WHERE correction_id IN (SELECT id FROM corrections)"
        )
    )
    _fill_switches(connection, of_feed, models or [_DEFAULT])
    _fill_deliveries(connection, of_feed, first)
    for table in ("feeds", "feed_outcomes", "quarantine"):
        connection.execute(
            sa.text(f"UPDATE {table} SET model = :model WHERE model = ''"),  # noqa: S608
            {"model": first},
        )


def _models(connection: sa.Connection) -> list[str]:
    """The models of the ledger, first those with the longest chains."""
    query = "SELECT model, count(*) AS n FROM revisions GROUP BY model ORDER BY n DESC, model"
    founded = [row["model"] for row in _rows(connection, query)]
    others = [
        row["model"] for row in _rows(connection, "SELECT DISTINCT model FROM corrections ORDER BY model")
    ]
    return list(dict.fromkeys((*founded, *others)))


def _models_by_feed(connection: sa.Connection) -> dict[str, list[str]]:
    """The models for which each feed brought corrections, first those with most."""
    query = (
        "SELECT feed, model, count(*) AS n FROM corrections GROUP BY feed, model ORDER BY feed, n DESC, model"
    )
    of_feed: dict[str, list[str]] = {}
    for row in _rows(connection, query):
        of_feed.setdefault(row["feed"], []).append(row["model"])
    return of_feed


def _fill_switches(connection: sa.Connection, of_feed: Mapping[str, list[str]], models: list[str]) -> None:
    """Give a model's switch to the model, and a feed's to each model that reads the feed."""
    for row in _rows(connection, "SELECT * FROM switches"):
        kind, _, name = str(row["name"]).partition(":")
        owners = [name] if kind == "paused" else of_feed.get(name, models)
        key = {"name": row["name"]}
        connection.execute(sa.text("DELETE FROM switches WHERE name = :name AND model = ''"), key)
        for owner in owners:
            _insert(connection, "switches", {**row, "model": owner})


def _fill_deliveries(connection: sa.Connection, of_feed: Mapping[str, list[str]], first: str) -> None:
    """Give an answer to the model of the first correction that it names."""
    for row in _rows(connection, "SELECT feed, key, answer FROM deliveries"):
        answer = json.loads(row["answer"]) if isinstance(row["answer"], str) else row["answer"]
        named = next((one.get("correction") for one in answer if one.get("correction")), None)
        query = sa.text("SELECT model FROM corrections WHERE id = :id")
        model = connection.execute(query, {"id": named}).scalar() or of_feed.get(row["feed"], [first])[0]
        key = {"model": model, "feed": row["feed"], "key": row["key"]}
        change = "UPDATE deliveries SET model = :model WHERE feed = :feed AND key = :key"
        connection.execute(sa.text(change), key)


def _rows(connection: sa.Connection, query: str) -> list[dict[str, Any]]:
    return [dict(row) for row in connection.execute(sa.text(query)).mappings()]


def _insert(connection: sa.Connection, table: str, row: Mapping[str, Any]) -> None:
    columns = [sa.column(name, sa.JSON() if name == "cursor" else None) for name in row]
    values = {k: json.loads(v) if k == "cursor" and isinstance(v, str) else v for k, v in row.items()}
    connection.execute(sa.insert(sa.table(table, *columns)).values(**values))
