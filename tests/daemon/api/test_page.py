"""The status page shows the history, escapes text from feeds, and works without a script."""

import os
import re
import shutil
import subprocess
import threading
from collections.abc import Iterator
from datetime import timedelta
from pathlib import Path

import pytest
import uvicorn
from fastapi.testclient import TestClient
from sqlalchemy import insert

from daemon.api.app import make_app
from daemon.core.clock import to_text
from daemon.core.config.settings import Config
from daemon.core.ledger.ledger import Ledger
from daemon.core.ledger.schema import workers
from tests.conftest import absent
from tests.installation import Installation, edit
from tests.ledgers import statement
from tests.watching import commit_and_judge, right, suite_row


@pytest.fixture
def story(installation: Installation) -> Iterator[Ledger]:
    ledger = installation.tell_story()
    yield ledger
    ledger.close()


def page(ledger: Ledger, config: Config) -> str:
    http = TestClient(make_app(ledger, config), base_url="http://127.0.0.1:8765", client=("127.0.0.1", 5))
    answer = http.get("/")
    assert answer.status_code == 200
    assert "default-src 'none'" in answer.headers["content-security-policy"]
    assert http.get("/page.css").status_code == 200
    return answer.text


def cells(html: str) -> list[list[str]]:
    """The rows of all tables."""
    rows = re.findall(r"<tr[^>]*>(.*?)</tr>", html, re.DOTALL)
    return [[c.strip() for c in re.findall(r"<td>(.*?)</td>", row, re.DOTALL)] for row in rows]


def test_it_tells_the_story(story: Ledger, installation: Installation) -> None:
    html = page(story, installation.config)
    rows = cells(html)
    assert ["2", "Peru", "capital", "Lima", "Cusco"] in rows, "before and after"
    assert any(row[:4] == ["1", "revision 3", "perplexity_ratio", "rolled_back"] for row in rows)
    assert any(row[0] == "4" and row[2] == "rollback to 2" for row in rows if len(row) == 7)
    assert html.count("<svg") == 2
    assert "ceiling 1.1" in html
    assert "floor 0.9" in html


def test_nothing_comes_from_elsewhere_and_no_script_is_needed(
    story: Ledger, installation: Installation
) -> None:
    html = page(story, installation.config)
    assert "<script" not in html
    assert not re.findall(r'(?:src|href)="(?!page\.css")', html)
    assert "http" not in html.replace("http-equiv", "")


def test_what_a_feed_says_stays_text(installation: Installation) -> None:
    ledger = installation.open()
    edit(ledger, statement("<script>alert(1)</script>", "<b>bold</b>"))
    html = page(ledger, installation.config)
    assert "<script" not in html
    assert "&lt;script&gt;" in html
    assert "<b>bold" not in html
    ledger.close()


def test_an_empty_ledger_and_many_revisions_are_shown(sqlite_ledger: Ledger) -> None:
    assert "Nothing has been measured yet" in page(sqlite_ledger, Config())
    for number in range(40):
        commit_and_judge(sqlite_ledger, Config(), suite_row(right(50, [number % 3]), floor=0.5))
    html = page(sqlite_ledger, Config())
    assert len(re.findall(r"[\d.]+,[\d.]+", html.split('class="score" points="')[1].split('"')[0])) == 40
    assert "revisions 1 to 40" in html


def test_a_browser_draws_it(story: Ledger, installation: Installation, tmp_path: Path) -> None:
    """A screenshot in headless Chromium, kept where ERRATA_TEST_SCREENSHOTS says."""
    browser = shutil.which("chromium") or shutil.which("chromium-browser") or shutil.which("google-chrome")
    if browser is None:
        absent("no chromium here: apt-get install chromium")
    server = uvicorn.Server(
        uvicorn.Config(make_app(story, installation.config), port=0, log_config=None, access_log=False)
    )
    thread = threading.Thread(target=server.run, daemon=True)
    thread.start()
    while not server.started:
        assert thread.is_alive()
    port = server.servers[0].sockets[0].getsockname()[1]
    folder = Path(os.environ.get("ERRATA_TEST_SCREENSHOTS", tmp_path))
    folder.mkdir(parents=True, exist_ok=True)
    picture = folder / "page.png"
    command = [str(browser), "--headless", "--no-sandbox", "--disable-gpu", "--disable-background-networking",
               f"--user-data-dir={tmp_path / 'profile'}", "--window-size=1300,1800",
               "--virtual-time-budget=2000",
               f"--screenshot={picture}", f"http://127.0.0.1:{port}/"]  # fmt: skip
    done = subprocess.run(command, capture_output=True, timeout=120, check=False)
    server.should_exit = True
    thread.join(10)
    assert picture.is_file(), done.stderr.decode()[-2000:]
    assert picture.stat().st_size > 20_000, "an empty page is smaller"


def test_it_shows_which_processes_live(story: Ledger, installation: Installation) -> None:
    assert "None has been seen yet." in page(story, installation.config)
    for role, name, silent in (("daemon", "h:1", 35), ("worker", "h:2", 5)):
        row = {"name": name, "role": role, "state": "busy", "seconds": 10, "memory_bytes": 64 << 20}
        at = to_text(story.clock.now() - timedelta(seconds=silent))
        with story.write() as connection:
            connection.execute(insert(workers).values(**row, model="default", device="", seen_at=at))
    html = page(story, installation.config)
    assert ["worker", "h:2", "alive", "busy", "5 s ago", "64"] in cells(html)
    assert any(row[:3] == ["daemon", "h:1", "lost"] for row in cells(html))
    assert "<b>lost</b> daemon" in html
