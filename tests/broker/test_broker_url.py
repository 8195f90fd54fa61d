"""The configured Redis is one place for both clients: same server, same database, same password."""

from pathlib import Path
from urllib.parse import quote

import pytest
import redis
from kombu import Connection
from pydantic import SecretStr

from daemon.core.broker import broker_url, redis_url
from daemon.core.config.settings import Config
from daemon.embedded.redis_server import PrivateRedis


def config_for(url: str, folder: Path) -> Config:
    return Config(data_dir=folder, redis_url=SecretStr(url))


@pytest.mark.parametrize(
    ("configured", "for_celery"),
    [
        ("redis://host:6380/3", "redis://host:6380/3"),
        ("rediss://user:pass@host/2", "rediss://user:pass@host/2"),
        ("redis://host:6380?db=3", "redis://host:6380/3"),
        ("unix:///run/redis.sock", "redis+socket:///run/redis.sock?virtual_host=0"),
        ("unix:///run/redis.sock?db=5", "redis+socket:///run/redis.sock?virtual_host=5"),
        ("unix://:pass@/run/redis.sock?db=5", "redis+socket://:pass@/run/redis.sock?virtual_host=5"),
        ("unix:///r.sock?password=a%2Fb&db=1", "redis+socket://:a%2Fb@/r.sock?virtual_host=1"),
    ],
)
def test_celery_is_sent_where_the_other_client_goes(configured: str, for_celery: str, tmp_path: Path) -> None:
    assert broker_url(config_for(configured, tmp_path)) == for_celery


@pytest.mark.redis
def test_both_clients_meet_in_a_numbered_database(private_redis: PrivateRedis, tmp_path: Path) -> None:
    config = config_for(private_redis.url.replace("db=0", "db=7"), tmp_path)
    seen = redis.Redis.from_url(redis_url(config))
    with Connection(broker_url(config)) as connection:
        connection.SimpleQueue("numbered").put({"id": 1})
    assert seen.llen("numbered") == 1
    assert redis.Redis.from_url(private_redis.url).llen("numbered") == 0
    seen.flushdb()


@pytest.mark.redis
def test_a_password_in_the_query_reaches_celery(private_redis: PrivateRedis, tmp_path: Path) -> None:
    head, _, rest = private_redis.url.partition("@")
    password = head.partition("://:")[2]
    path = rest.partition("?")[0]
    config = config_for(f"unix://{path}?db=6&password={quote(password, safe='')}", tmp_path)
    with Connection(broker_url(config)) as connection:
        connection.SimpleQueue("secret").put({"id": 1})
    seen = redis.Redis.from_url(redis_url(config))
    assert seen.llen("secret") == 1
    seen.flushdb()
