"""Measure the packages of a side: folders, import arrows, lines of modules and functions.

python -m tests.documents.structure     prints the map and the sizes of daemon/ and workers/
"""

import ast
import tomllib
from collections import defaultdict
from collections.abc import Iterator
from dataclasses import dataclass
from functools import cache
from pathlib import Path

ROOT = Path(__file__).parents[2]
SIDES = ("daemon", "workers")


@dataclass(frozen=True)
class Function:
    """A function or method and its length from ``def`` to its last line, docstring included."""

    place: str
    lines: int


def modules(side: str) -> list[Path]:
    """Every Python file below a side."""
    return sorted((ROOT / side).rglob("*.py"))


@cache
def tree(file: Path) -> ast.Module:
    """The syntax tree of a file."""
    return ast.parse(file.read_text(encoding="utf-8"))


def folder_of(side: str, file: Path) -> str:
    """The first-level folder, or the module's name for a file directly below the side."""
    first = file.relative_to(ROOT / side).parts[0]
    return first.removesuffix(".py")


def folders(side: str) -> set[str]:
    """The first-level folders, and modules other than ``__init__`` directly below the side."""
    return {folder_of(side, file) for file in modules(side)} - {"__init__"}


def imports(file: Path) -> Iterator[str]:
    """The absolute names of all modules that a file imports, in functions and type checks too."""
    package = file.relative_to(ROOT).parts[:-1]
    for node in ast.walk(tree(file)):
        if isinstance(node, ast.Import):
            yield from (alias.name for alias in node.names)
        elif isinstance(node, ast.ImportFrom):
            above = package[: len(package) + 1 - node.level] if node.level else ()
            base = ".".join([*above, *([node.module] if node.module else [])])
            yield base
            yield from (f"{base}.{alias.name}" for alias in node.names)  # for ``from daemon import views``


def arrows(side: str) -> dict[str, set[str]]:
    """For each folder the other folders of its side that it imports."""
    known, found = folders(side), defaultdict(set)
    for file in modules(side):
        own = folder_of(side, file)
        for name in imports(file):
            top, _, rest = name.partition(".")
            target = rest.partition(".")[0]
            if top == side and target in known and own in known and target != own:
                found[own].add(target)
    return dict(found)


def floors(side: str) -> list[list[str]]:
    """The layers of import-linter's contract for a side, the uppermost first."""
    settings = tomllib.loads((ROOT / "pyproject.toml").read_text(encoding="utf-8"))
    contracts = settings["tool"]["importlinter"]["contracts"]
    layers = next(one["layers"] for one in contracts if one.get("containers") == [side])
    return [[name.strip() for name in layer.split("|")] for layer in layers]


def functions(file: Path) -> Iterator[Function]:
    """Every function of a file, methods and nested ones included."""
    for node in ast.walk(tree(file)):
        if isinstance(node, ast.FunctionDef | ast.AsyncFunctionDef):
            length = (node.end_lineno or node.lineno) - node.lineno + 1
            yield Function(f"{file.relative_to(ROOT)}:{node.lineno} {node.name}", length)


def line_count(file: Path) -> int:
    """The lines of a file."""
    return len(file.read_text(encoding="utf-8").splitlines())


def main() -> None:
    """Print the map and the sizes of both sides."""
    for side in SIDES:
        found, files = arrows(side), modules(side)
        count = sum(map(len, found.values()))
        print(f"{side}: {len(folders(side))} folders, {count} arrows, {sum(map(line_count, files))} lines")
        for number, layer in zip(range(len(floors(side)), 0, -1), floors(side), strict=True):
            for name in layer:
                print(f"  {number}  {name:<12} {' '.join(sorted(found.get(name, ())))}")
        lengths = sorted(one.lines for file in files for one in functions(file))
        print(f"  {len(files)} modules, the longest {max(map(line_count, files))} lines")
        ninety = lengths[int(0.9 * len(lengths))]
        print(f"  {len(lengths)} functions, 90% at most {ninety} lines, the longest {lengths[-1]}")


if __name__ == "__main__":
    main()
