"""Address and health of Redis, and the settings of Celery on top of it."""

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
ROLE_VARIABLE = "ERRATA_ROLE"
"""Tells a worker process which ProcessRole its heartbeats bear."""


def redis_url(config: Config) -> str:
    """Return the URL for redis clients, from the configuration or from the private server of ``errata run``.

    Raises UnavailableError if no URL is configured and no private server has been started.
    """
    return _configured(config) or _from_file(config.run_path / URL_FILE)


def broker_url(config: Config) -> str:
    """Return the same address in the form that Celery expects, or raise UnavailableError likewise."""
    configured = _configured(config)
    return _from_file(config.run_path / CELERY_URL_FILE) if configured is None else _for_celery(configured)


def ping(config: Config) -> None:
    """Check that Redis answers within 3 seconds, else raise UnavailableError."""
    try:
        client = redis.Redis.from_url(redis_url(config), socket_timeout=3, socket_connect_timeout=3)
        with client:
            client.ping()
    except (redis.RedisError, OSError, ValueError) as error:
        raise UnavailableError(
            f"Redis does not answer: {error}",
            hint="start it, or correct redis_url; accepted corrections are kept",
        ) from error


def celery_app(config: Config) -> Celery:
    """Return a Celery application that delivers every message at least once."""
    app = Celery("errata", broker=broker_url(config), set_as_current=False)
    app.conf.update(celery_settings(config))
    return app


def worker_arguments(config: Config, *, targets: bool = False) -> list[str]:
    """Return Python's arguments that start the editing worker, or with ``targets`` a target worker."""
    name = config.model.name
    queue, kind = (targets_queue(name), f"targets-{os.getpid()}") if targets else (edit_queue(name), "edit")
    return [
        "-m", "celery", "--app", "workers.queue.app", "worker", "--pool", "prefork", "--concurrency", "1",
        "--queues", queue, "--hostname", f"{kind}-{name}@%h", "--without-gossip",
        "--without-mingle", "--loglevel", config.log.level,
    ]  # fmt: skip


def celery_settings(config: Config) -> dict[str, Any]:
    """Return Celery's settings for delivery at least once.

    A message is acknowledged after its work, and a worker takes one at a time. The message of a killed child
    returns to the queue at once, that of a dead worker after the visibility timeout. Only JSON is accepted.
    No results are stored. Measured on Celery 5.7.
    """
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
    """Translate a redis-py URL for Celery, which has another scheme for sockets and does not read ``?db=``.

    Celery ignores what it does not know, so an untranslated URL would make the worker listen on database 0.
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
