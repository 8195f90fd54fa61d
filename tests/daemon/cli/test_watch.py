"""errata diff and errata top, on the story that tests/installation.py tells."""

import json
from collections.abc import Iterator
from pathlib import Path

import pytest

from tests.installation import Installation


@pytest.fixture(scope="module")
def installation(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Installation]:
    made = Installation(tmp_path_factory.mktemp("watch"))
    ledger = made.tell_story()
    yield made
    ledger.close()


def changes(installation: Installation, first: str, second: str) -> dict[str, tuple[str, str, str]]:
    found = installation.errata_json("diff", first, second)
    return {row["subject"]: (row["change"], row["before"], row["after"]) for row in found["facts"]}


def test_diff_tells_what_was_added_changed_and_removed(installation: Installation) -> None:
    assert changes(installation, "0", "1") == {
        "Peru": ("added", None, "Lima"),
        "Chad": ("added", None, "Abéché"),
    }
    assert changes(installation, "1", "2") == {"Peru": ("changed", "Lima", "Cusco")}
    assert changes(installation, "3", "4") == {"Fiji": ("removed", "Suva", None)}
    assert changes(installation, "4", "3") == {"Fiji": ("added", None, "Suva")}


def test_diff_shows_norms_and_probes_of_both(installation: Installation) -> None:
    found = installation.errata_json("diff", "2", "3")
    assert found["norms"]["3"] == {"before": 0.02, "after": 0.02}
    assert found["probes"]["perplexity_ratio"] == {"before": 1.01, "after": 2.0}
    assert found["tensors_changed"] == ["down_proj"]
    assert not found["same_content"]
    shown = installation.errata("diff", "2", "4").stdout
    assert "the same weights" in shown
    assert "no changed facts" in shown


def test_diff_of_what_is_not_there(installation: Installation) -> None:
    assert installation.errata("diff", "1", "99").exit_code == 5
    assert installation.errata("diff", "../1", "2").exit_code == 5


def test_top_looks_once(installation: Installation) -> None:
    shown = installation.errata("top", "--once").stdout
    for word in ("head 4", "1 pending", "rollback", "perplexity_ratio", "sample"):
        assert word in shown, word
    seen = json.loads(installation.errata("top", "--once", "--json").stdout)
    assert [row["number"] for row in seen["revisions"]] == [4, 3, 2, 1, 0]


def test_top_without_a_ledger_says_so(tmp_path: Path) -> None:
    assert Installation(tmp_path).errata("top", "--once").exit_code == 4
