"""Ask a URL now and then, and only for what changed: times and validators that a cursor keeps."""

import time

from daemon.feeds.base import Cursor
from daemon.feeds.guard import Answer

_HEADERS = (("etag", "etag", "if-none-match"), ("modified", "last-modified", "if-modified-since"))
_VALIDATOR_CHARACTERS = 500  # of a header that the cursor keeps


def is_too_early(cursor: Cursor, every_seconds: float) -> bool:
    """Whether the URL was asked less than ``every_seconds`` ago, by a clock that was not set back since."""
    return 0 <= float(cursor.get("asked_at", 0)) + every_seconds - time.time() <= every_seconds


def conditions(cursor: Cursor) -> dict[str, str]:
    """Return the headers that ask the server for an answer only if it changed."""
    return {header: str(cursor[key]) for key, _, header in _HEADERS if cursor.get(key)}


def validators(answer: Answer) -> dict[str, str]:
    """Return what the cursor keeps of an answer for the next ``conditions``."""
    return {key: answer.headers.get(header, "")[:_VALIDATOR_CHARACTERS] for key, header, _ in _HEADERS}
