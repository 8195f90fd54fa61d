"""A feed whose file never existed is refused at the start, unless it was read before."""

from pathlib import Path

import pytest
import tomli_w

from daemon.core.config.settings import load_config
from daemon.core.errors import ConfigError
from daemon.core.ledger.ledger import Ledger
from daemon.embedded.run import _require_feeds


def test_a_path_that_does_not_exist_is_named(ledger: Ledger, tmp_path: Path) -> None:
    file, feed = tmp_path / "errata.toml", tmp_path / "feed.jsonl"
    file.write_text(tomli_w.dumps({"feeds": [{"kind": "jsonl", "name": "news", "path": str(feed)}]}))
    config = load_config(file)
    with pytest.raises(ConfigError, match=r"news.*feed\.jsonl"):
        _require_feeds(ledger, config)
    feed.touch()
    _require_feeds(ledger, config)
