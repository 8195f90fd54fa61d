"""Redis carries ids: where it is, whether it answers, and how Celery is set up to speak over it."""

import os
from pathlib import Path
from typing import Any
from urllib.parse import parse_qsl, quote, urlencode, urlsplit

import redis
from celery import Celery

from daemon.core.config.settings import Config
from daemon.core.errors import UnavailableError
from daemon.core.names import edit_queue, targets_queue

URL_FILE = "redis.url"
CELERY_URL_FILE = "redis.celery.url"


def redis_url(config: Config) -> str:
    """The URL for redis clients: configured, or that of the private server that ``errata run`` started.

    Raises:
        UnavailableError: none is configured and no private server has been started.
    """
    return _configured(config) or _from_file(config.run_path / URL_FILE)


def broker_url(config: Config) -> str:
    """The same place as Celery spells it.

    Raises:
        UnavailableError: as ``redis_url``.
    """
    configured = _configured(config)
    return _from_file(config.run_path / CELERY_URL_FILE) if configured is None else _for_celery(configured)


def ping(config: Config) -> None:
    """Ask Redis for a sign of life.

    Raises:
        UnavailableError: it does not answer within a few seconds.
    """
    try:
        client = redis.Redis.from_url(redis_url(config), socket_timeout=3, socket_connect_timeout=3)
        with client:
            client.ping()
    except (redis.RedisError, OSError, ValueError) as error:
        raise UnavailableError(
            f"Redis does not answer: {error}", hint="start it, or correct redis_url; nothing accepted is lost"
        ) from error


def celery_app(config: Config) -> Celery:
    """A Celery application with the settings that make delivery at least once and never silent.

    Acks after the work, one message at a time, a killed child's message goes back, a dead worker's comes
    back by the visibility timeout, JSON only, no results (ECOSYSTEM: measured on Celery 5.7).
    """
    app = Celery("errata", broker=broker_url(config), set_as_current=False)
    app.conf.update(celery_settings(config))
    return app


def worker_arguments(config: Config, *, targets: bool = False) -> list[str]:
    """What Python is called with to be the editing worker of the configured model, or one of its helpers."""
    name = config.model.name
    queue, kind = (targets_queue(name), f"targets-{os.getpid()}") if targets else (edit_queue(name), "edit")
    return [
        "-m", "celery", "--app", "workers.queue.app", "worker", "--pool", "prefork", "--concurrency", "1",
        "--queues", queue, "--hostname", f"{kind}-{name}@%h", "--without-gossip",
        "--without-mingle", "--loglevel", config.log.level,
    ]  # fmt: skip


def celery_settings(config: Config) -> dict[str, Any]:
    """The settings behind ``celery_app``."""
    return {
        "task_serializer": "json",
        "result_serializer": "json",
        "accept_content": ["json"],
        "task_ignore_result": True,
        "task_acks_late": True,
        "task_reject_on_worker_lost": True,
        "task_time_limit": config.edit.task_seconds,
        "task_default_queue": "errata",
        "worker_prefetch_multiplier": 1,
        "worker_concurrency": 1,
        "worker_cancel_long_running_tasks_on_connection_loss": False,
        "worker_hijack_root_logger": False,
        "worker_proc_alive_timeout": 60.0,
        "broker_connection_retry_on_startup": True,
        "broker_connection_max_retries": None,
        "broker_transport_options": {
            "visibility_timeout": config.edit.visibility_seconds,
            "unacked_restore_interval": 10,
            "unacked_restore_throttle": 1,
            "socket_timeout": 30,
            "socket_connect_timeout": 5,
        },
        "task_publish_retry": False,
        "timezone": "UTC",
    }


def _configured(config: Config) -> str | None:
    return config.redis_url.get_secret_value() if config.redis_url else None


def _for_celery(url: str) -> str:
    """A redis-py URL as Celery reads it: another scheme for sockets, the database not as ``?db=``.

    Celery would ignore what it does not know, and the worker would listen on database 0.
    """
    parts = urlsplit(url)
    query = dict(parse_qsl(parts.query))
    database = query.pop("db", None)
    given = {key: query.pop(key) for key in ("username", "password") if key in query}
    where = parts.netloc
    if given:
        credentials = (given.get(key, "") for key in ("username", "password"))
        where = ":".join(quote(one, safe="") for one in credentials) + "@" + where.rpartition("@")[2]
    scheme, path = parts.scheme, parts.path
    if scheme == "unix":
        scheme = "redis+socket"
        query["virtual_host"] = database or "0"
    elif database is not None:
        path = f"/{database}"
    return f"{scheme}://{where}{path}" + (f"?{urlencode(query)}" if query else "")


def _from_file(path: Path) -> str:
    try:
        return path.read_text(encoding="utf-8").strip()
    except OSError as error:
        raise UnavailableError(
            "no Redis: redis_url is not set and no private server runs",
            hint="start errata run, or set redis_url in errata.toml or REDIS_URL",
        ) from error
