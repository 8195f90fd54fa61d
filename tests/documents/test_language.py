"""No guillemets anywhere, docstrings that begin with one plain sentence, and bounds of size."""

import ast
import subprocess
from collections.abc import Iterator
from pathlib import Path

import pytest

from tests.documents.structure import ROOT, SIDES, functions, line_count, modules, tree

GUILLEMETS = {"\u00ab", "\u00bb"}
WRITTEN = {
    ".py", ".md", ".toml", ".sh", ".yaml", ".yml", ".html", ".css", ".conf", ".json", ".jsonl", ".txt",
    ".example", ".service", ".mako", ".sql", "",
}  # fmt: skip
"""Suffixes of the files that we write."""
MODULE_LINES, FUNCTION_LINES, MOST_FUNCTION_LINES = 400, 60, 22  # the last one holds for 90% of functions


def tracked() -> list[str]:
    """The files that git keeps, or would: untracked ones that it does not ignore count too."""
    command = ("git", "ls-files", "--cached", "--others", "--exclude-standard")
    done = subprocess.run(command, cwd=ROOT, capture_output=True, text=True, check=False)
    if done.returncode:  # a copy of the files without git's folder
        return [str(path.relative_to(ROOT)) for path in ROOT.rglob("*") if path.is_file()]
    return sorted(name for name in done.stdout.splitlines() if (ROOT / name).is_file())


TRACKED = tracked()
TEXTS = [name for name in TRACKED if Path(name).suffix in WRITTEN]
PYTHON = [name for name in TRACKED if name.endswith(".py")]


def docstrings(file: Path) -> Iterator[tuple[int, str]]:
    """Line number and first line of each docstring of a file."""
    for node in ast.walk(tree(file)):
        if isinstance(node, ast.Module | ast.ClassDef | ast.FunctionDef | ast.AsyncFunctionDef):
            text = ast.get_docstring(node)
            if text:
                yield node.body[0].lineno, text.splitlines()[0]


def test_no_text_holds_a_guillemet() -> None:
    wrong = []
    for name in TEXTS:
        text = (ROOT / name).read_text(encoding="utf-8")
        wrong += [f"{name}:{at}" for at, line in enumerate(text.splitlines(), 1) if set(line) & GUILLEMETS]
    assert wrong == []


@pytest.mark.parametrize("name", PYTHON)
def test_the_first_line_of_a_docstring_is_one_sentence(name: str) -> None:
    lines = docstrings(ROOT / name)
    assert [f"{at}: {line}" for at, line in lines if not line.endswith(".") or ";" in line] == []


@pytest.mark.parametrize("side", SIDES)
def test_modules_and_functions_stay_within_their_bounds(side: str) -> None:
    files = modules(side)
    assert [str(file.relative_to(ROOT)) for file in files if line_count(file) > MODULE_LINES] == []
    every = [function for file in files for function in functions(file)]
    assert [function for function in every if function.lines > FUNCTION_LINES] == []
    short = sum(function.lines <= MOST_FUNCTION_LINES for function in every)
    assert short >= 0.9 * len(every), f"{short} of {len(every)}"
