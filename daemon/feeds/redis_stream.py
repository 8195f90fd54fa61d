"""A feed that reads a Redis stream in a consumer group and acknowledges admitted entries."""

import json
from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any

import redis

from daemon.core.config.feeds import RedisStreamFeedConfig
from daemon.core.errors import FeedError
from daemon.feeds.base import Cursor, Pull, RawItem
from daemon.feeds.deadline import OneAtATime

_CONSUMER = "errata"  # one name, since one scheduler leads: entries given to a killed one come again
_START = "0-0"
_PULL_SECONDS = 15.0  # for all commands of a pull: Redis answers one in milliseconds, or something is wrong


class RedisStreamFeed:
    """Entries of a stream, first those that were delivered but not admitted, then new ones.

    An entry is acknowledged by the pull after the one that returned it, because by then the cursor, which is
    committed with the admitted items, has passed it.
    """

    def __init__(self, config: RedisStreamFeedConfig) -> None:
        self.name, self.trust, self._config = config.name, config.trust, config
        self._redis = redis.Redis.from_url(
            config.url.get_secret_value(), socket_timeout=5, socket_connect_timeout=5
        )
        self._reader = OneAtATime()

    def pull(self, cursor: Cursor, limit: int) -> Pull:
        """Return at most ``limit`` entries behind the cursor.

        Raises FeedError if Redis does not answer, or too slowly, or the key is not a stream.
        """
        with self._errors():
            return self._reader.run(lambda: self._pull(cursor, limit), _PULL_SECONDS)

    def _pull(self, cursor: Cursor, limit: int) -> Pull:
        last = str(cursor.get("id", _START))
        self._join()
        self._acknowledge(last)
        entries = self._read(last, limit) or self._read(">", limit)
        items = [RawItem(self._raw(fields), f"entry {entry.decode()}") for entry, fields in entries]
        reached = entries[-1][0].decode() if entries else last
        return Pull(items, {"id": reached}, more=len(entries) == limit)

    def _join(self) -> None:
        try:
            self._redis.xgroup_create(self._config.stream, self._config.group, id="0", mkstream=True)
        except redis.ResponseError as error:
            if "BUSYGROUP" not in str(error):
                raise

    def _acknowledge(self, last: str) -> None:
        """Acknowledge all entries up to ``last``, which are admitted."""
        stream, group = self._config.stream, self._config.group
        while True:
            waiting = self._redis.xpending_range(stream, group, "-", last, 1_000, _CONSUMER)
            if not waiting:
                return
            self._redis.xack(stream, group, *[entry["message_id"] for entry in waiting])

    def _read(self, after: str, limit: int) -> list[tuple[bytes, dict[bytes, bytes]]]:
        answer: Any = self._redis.xreadgroup(
            self._config.group, _CONSUMER, {self._config.stream: after}, count=limit
        )
        streams = list(answer.values()) if isinstance(answer, dict) else [entries for _, entries in answer]
        flat = [entry for entries in streams for entry in entries]
        if flat and isinstance(flat[0], list):  # the newer protocol nests the entries one list deeper
            flat = [entry for entries in flat for entry in entries]
        return [(entry, fields or {}) for entry, fields in flat]

    def _raw(self, fields: dict[bytes, bytes]) -> bytes:
        """Return the field that holds the correction, or all fields as the correction's keys."""
        whole = fields.get(self._config.field.encode())
        if whole is not None:
            return whole
        named = {
            key.decode("utf-8", "replace"): value.decode("utf-8", "replace") for key, value in fields.items()
        }
        return json.dumps(named).encode()

    @contextmanager
    def _errors(self) -> Iterator[None]:
        try:
            yield
        except (redis.RedisError, OSError) as error:
            raise FeedError(f"stream {self._config.stream!r} cannot be read: {error}") from error
