"""Configurations in the documents can be used as they stand."""

import re
from pathlib import Path

import pytest

from daemon.core.config.settings import load_config
from daemon.feeds.base import make_feed

ROOT = Path(__file__).parents[3]


def blocks() -> list[str]:
    return re.findall(r"```toml\n(.*?)```", (ROOT / "README.md").read_text(encoding="utf-8"), re.S)


@pytest.mark.parametrize("text", blocks())
def test_a_configuration_of_the_readme_is_accepted(text: str, tmp_path: Path) -> None:
    (tmp_path / "errata.toml").write_text(text)
    config = load_config(tmp_path / "errata.toml")
    assert [make_feed(feed).name for feed in config.feeds]


def test_a_public_source_needs_five_lines() -> None:
    lines = next(text for text in blocks() if "wikidata" in text).strip().splitlines()
    assert len(lines) == 5
