"""Revision numbers as an operator types them, and the hash of a revision's content."""

import hashlib
import json
import re
from collections.abc import Mapping

from daemon.core.errors import NotFoundError

_NUMBER = re.compile(r"(?:r)?(0|[1-9][0-9]{0,11})")


def parse_revision(text: str) -> int:
    """The number in ``17`` or ``r17``, or NotFoundError for any other text."""
    match = _NUMBER.fullmatch(text)
    if match is None:
        raise NotFoundError(f"{text[:40]!r} is no revision number", hint="errata revisions lists them")
    return int(match.group(1))


def content_hash(tensors: Mapping[str, str]) -> str:
    """One hash over the names and sha256 of a revision's tensors: equal content, equal hash."""
    return hashlib.sha256(json.dumps(sorted(tensors.items())).encode()).hexdigest()
