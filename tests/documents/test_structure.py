"""The packages keep their floors: few folders, few import arrows, none of them running back up."""

import pytest

from tests.documents.structure import ROOT, SIDES, arrows, floors, folders

MOST_FOLDERS, MOST_ARROWS = 12, 36
ALONE = {"__init__.py", "version.py", "progress.py"}
"""The Python files that may lie directly in daemon/ or workers/."""
PREFIXES = ("cli_", "api_", "exporter_", "config_")
"""Beginnings of file names that stand for a folder."""


@pytest.mark.parametrize("side", SIDES)
def test_a_side_has_few_folders_and_few_arrows(side: str) -> None:
    found = arrows(side)
    assert len(folders(side)) <= MOST_FOLDERS
    assert sum(map(len, found.values())) <= MOST_ARROWS, found


@pytest.mark.parametrize("side", SIDES)
def test_every_folder_has_its_floor_and_imports_only_lower_ones(side: str) -> None:
    floor = {name: number for number, layer in enumerate(floors(side)) for name in layer}
    assert folders(side) == set(floor)
    wrong = [
        (one, other) for one, others in arrows(side).items() for other in others if floor[other] <= floor[one]
    ]
    assert wrong == []


@pytest.mark.parametrize("side", SIDES)
def test_folders_and_not_prefixes_group_the_files(side: str) -> None:
    names = {file.name for file in (ROOT / side).rglob("*.py")}
    assert [name for name in names if name.startswith(PREFIXES)] == []
    assert {file.name for file in (ROOT / side).glob("*.py")} <= ALONE
