"""Each table of the ledger is written by one module, the one that ARCHITECTURE.md names for it."""

import ast
import re
from collections.abc import Iterator
from pathlib import Path

import pytest

from daemon.core.ledger.schema import metadata

ROOT = Path(__file__).parents[4]
LEDGER = "daemon/core/ledger"
ROW = re.compile(r"^\| `(\w+)` \| `(\w+\.py)` \|", re.M)
WRITES = {"insert", "update", "delete"}
SQL = re.compile(r"\b(?:INSERT INTO|UPDATE|DELETE FROM)\s+[\"`]?(\w+)")


def owners() -> dict[str, str]:
    """The writing module of each table, as the table in ARCHITECTURE.md names it."""
    rows = ROW.findall((ROOT / "ARCHITECTURE.md").read_text(encoding="utf-8"))
    return {table: f"{LEDGER}/{module}" for table, module in rows}


def sources() -> Iterator[tuple[str, str]]:
    """Path and text of each module of daemon and workers but the migrations."""
    for folder in ("daemon", "workers"):
        for path in sorted((ROOT / folder).rglob("*.py")):
            if "migrations" not in path.parts:
                yield path.relative_to(ROOT).as_posix(), path.read_text(encoding="utf-8")


def tables_written(source: str) -> set[str]:
    """The tables that a module inserts into, updates or deletes from, whatever it calls them."""
    tree = ast.parse(source)
    names: dict[str, str] = {}
    for node in ast.walk(tree):
        if isinstance(node, ast.ImportFrom | ast.Import):
            names |= {one.asname: one.name.rsplit(".")[-1] for one in node.names if one.asname}
        elif isinstance(node, ast.Assign) and isinstance(node.value, ast.Name | ast.Attribute):
            meant = _last_name(node.value, names)
            names |= {target.id: meant for target in node.targets if isinstance(target, ast.Name)}
    written = set()
    for node in ast.walk(tree):
        if isinstance(node, ast.Call):
            written |= _written_by(node, names)
        elif isinstance(node, ast.Constant) and isinstance(node.value, str):
            written |= set(SQL.findall(node.value))
    return written & set(metadata.tables)


def _written_by(call: ast.Call, names: dict[str, str]) -> set[str]:
    """The tables of ``insert(table)`` and of ``table.insert()``."""
    if _last_name(call.func, names) not in WRITES:
        return set()
    at = {_last_name(argument, names) for argument in call.args[:1]}
    return at | ({_last_name(call.func.value, names)} if isinstance(call.func, ast.Attribute) else set())


def _last_name(node: ast.expr, names: dict[str, str]) -> str:
    """What ``a.b.c`` ends in, under the name that it was imported by."""
    if isinstance(node, ast.Attribute):
        return node.attr
    return names.get(node.id, node.id) if isinstance(node, ast.Name) else ""


def test_the_document_names_one_module_for_each_table() -> None:
    named = owners()
    assert set(named) == set(metadata.tables)
    assert all((ROOT / module).is_file() for module in named.values())


def test_each_table_is_written_by_its_module_alone() -> None:
    writers: dict[str, set[str]] = {table: set() for table in metadata.tables}
    for module, text in sources():
        for table in tables_written(text):
            writers[table].add(module)
    assert writers == {table: {module} for table, module in owners().items()}


@pytest.mark.parametrize(
    "source",
    [
        "from daemon.core.ledger.schema import feeds\nconnection.execute(insert(feeds).values(a=1))",
        "from daemon.core.ledger.schema import feeds as feed_table\nupdate(feed_table).where(x)",
        "from daemon.core.ledger import schema\nconnection.execute(delete(schema.feeds))",
        "from daemon.core.ledger import schema as tables\nsqlalchemy.delete(tables.feeds)",
        "from sqlalchemy import insert as add\nadd(feeds)",
        "from sqlalchemy.dialects.sqlite import insert\ninsert(feeds).on_conflict_do_nothing()",
        "from daemon.core.ledger import schema\nmine = schema.feeds\ninsert(mine)",
        "from daemon.core.ledger.schema import feeds\nfeeds.insert()",
        "from daemon.core.ledger import schema\nschema.feeds.update().values(a=1)",
        'connection.exec_driver_sql("UPDATE feeds SET cursor = 1")',
        'text("""DELETE FROM "feeds" WHERE name = :name""")',
    ],
)
def test_a_write_is_found_whatever_the_table_is_called(source: str) -> None:
    assert tables_written(source) == {"feeds"}


@pytest.mark.parametrize(
    "source",
    [
        "from daemon.core.ledger.schema import feeds\nselect(feeds).where(feeds.c.name == name)",
        "counts.update(other)",
        '"""Update feeds and delete from feeds."""',
    ],
)
def test_reading_is_no_write(source: str) -> None:
    assert tables_written(source) == set()
