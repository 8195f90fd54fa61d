"""GUARANTEES.md and SECURITY.md are no prose: every promise names tests that exist, every guard one."""

import ast
import re
from functools import cache
from pathlib import Path

import pytest

from tests.bench.guards import GUARDS, Guard
from tests.bench.mutations import table

ROOT = Path(__file__).parents[2]
PAGES = {name: (ROOT / name).read_text(encoding="utf-8") for name in ("GUARANTEES.md", "SECURITY.md")}
NAMED = re.compile(r"`(tests/[\w/]+\.py)::(\w+)[^`]*`")


def rows(page: str, section: str) -> list[list[str]]:
    """The cells of the table below a heading, without its head."""
    part = PAGES[page].split(f"\n## {section}\n")[1].split("\n## ")[0]
    table = [line for line in part.splitlines() if line.startswith("|")]
    return [[cell.strip() for cell in line.strip("|").split(" | ")] for line in table[2:]]


@cache
def functions_in(file: str) -> frozenset[str]:
    tree = ast.parse((ROOT / file).read_text(encoding="utf-8"))
    return frozenset(node.name for node in ast.walk(tree) if isinstance(node, ast.FunctionDef))


@pytest.mark.parametrize("page", list(PAGES))
def test_every_test_that_is_named_exists(page: str) -> None:
    named = NAMED.findall(PAGES[page])
    assert len(named) > 20
    missing = [f"{file}::{name}" for file, name in named if name not in functions_in(file)]
    assert missing == []


@pytest.mark.parametrize(
    ("page", "section", "at_least"),
    [
        ("GUARANTEES.md", "Promises", 35),
        ("GUARANTEES.md", "Guards", 40),
        ("GUARANTEES.md", "Track record", 5),
        ("SECURITY.md", "What is promised", 12),
    ],
)
def test_every_row_says_what_proves_it(page: str, section: str, at_least: int) -> None:
    found = rows(page, section)
    assert len(found) >= at_least
    for cells in found:
        assert len(cells) == 3, cells
        assert all(cells), cells
        assert NAMED.search(cells[-1]), cells


def test_the_table_of_guards_is_that_of_the_mutations() -> None:
    assert table(GUARDS) in PAGES["GUARANTEES.md"], "python -m tests.bench.mutations --table"


@pytest.mark.parametrize("guard", GUARDS, ids=lambda guard: guard.name)
def test_a_guard_is_where_the_mutations_look_for_it(guard: Guard) -> None:
    assert (ROOT / guard.file).read_text(encoding="utf-8").count(guard.old) == 1
    file, name = guard.test.split("[")[0].split("::")
    assert name in functions_in(file)
