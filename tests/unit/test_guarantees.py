"""GUARANTEES.md is no prose: every promise names tests that exist, and every guard one that misses it."""

import ast
import re
from functools import cache
from pathlib import Path

import pytest

ROOT = Path(__file__).parents[2]
TEXT = (ROOT / "GUARANTEES.md").read_text(encoding="utf-8")
NAMED = re.compile(r"`(tests/[\w/]+\.py)::(\w+)[^`]*`")


def rows(section: str) -> list[list[str]]:
    """The cells of the table below a heading, without its head."""
    part = TEXT.split(f"\n## {section}\n")[1].split("\n## ")[0]
    table = [line for line in part.splitlines() if line.startswith("|")]
    return [[cell.strip() for cell in line.strip("|").split(" | ")] for line in table[2:]]


@cache
def tests_of(file: str) -> frozenset[str]:
    tree = ast.parse((ROOT / file).read_text(encoding="utf-8"))
    return frozenset(node.name for node in ast.walk(tree) if isinstance(node, ast.FunctionDef))


def test_every_test_that_is_named_exists() -> None:
    named = NAMED.findall(TEXT)
    assert len(named) > 80
    missing = [f"{file}::{name}" for file, name in named if name not in tests_of(file)]
    assert missing == []


@pytest.mark.parametrize(("section", "at_least"), [("Promises", 30), ("Track record", 5)])
def test_every_row_says_what_proves_it(section: str, at_least: int) -> None:
    found = rows(section)
    assert len(found) >= at_least
    for cells in found:
        assert len(cells) == 3, cells
        assert all(cells), cells
        assert NAMED.search(cells[-1]), cells
