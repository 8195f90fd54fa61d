"""Tokens in files: which role the bearer of one has, what a request needs, who guesses too often."""

import hmac
from collections import OrderedDict
from collections.abc import Mapping
from pathlib import Path

from daemon.core.clock import Clock
from daemon.core.errors import ConfigError
from daemon.core.names import Role
from daemon.core.token_bucket import TokenBucket

_SAFE = frozenset({"GET", "HEAD", "OPTIONS"})
_OPEN = frozenset({"/healthz", "/readyz"})  # who starts and stops processes bears no token
_SUBMITS = frozenset({"/v1/corrections"})
_FAILURES_PER_SECOND, _FAILURES, _ADDRESSES = 0.5, 30, 1024
_MAKE = "openssl rand -hex 32 makes one"


class Keys:
    """The tokens of all roles; the files are read each time, so a new token holds at once."""

    def __init__(self, files: Mapping[Role, Path]) -> None:
        self._files = files

    def __contains__(self, role: Role) -> bool:
        """Whether the role has a token of its own."""
        return role in self._files

    def __bool__(self) -> bool:
        """Whether there is any token at all."""
        return bool(self._files)

    def role_of(self, header: str) -> Role | None:
        """The highest role whose token an ``Authorization`` header bears; None: it bears none.

        Every token is compared, each in a time that says nothing about where they differ.

        Raises:
            ConfigError: a file cannot be read, or holds no token.
        """
        scheme, _, given = header.partition(" ")
        offered = given.strip().encode()
        found = None
        for role in Role:
            if role in self._files and hmac.compare_digest(offered, read_token(self._files[role]).encode()):
                found = role
        return found if scheme.lower() == "bearer" else None


class Failures:
    """Who came without a right token, and how often; a few of the newest addresses are remembered."""

    def __init__(self, clock: Clock) -> None:
        self._clock = clock
        self._left: OrderedDict[str, TokenBucket] = OrderedDict()

    def too_many(self, address: str) -> bool:
        """Whether an address has failed so often that its next token is not even looked at."""
        bucket = self._left.get(address)
        return bucket is not None and not bucket.available(1)

    def add(self, address: str) -> None:
        """Count a failure."""
        bucket = self._left.setdefault(address, TokenBucket(self._clock, _FAILURES_PER_SECOND, _FAILURES))
        self._left.move_to_end(address)
        bucket.available(1)  # refills
        bucket.take(1)
        while len(self._left) > _ADDRESSES:
            self._left.popitem(last=False)


def needed_role(method: str, path: str) -> Role | None:
    """What a request needs; None: nothing. What is not known to be harmless needs everything."""
    if method in _SAFE:
        return None if path in _OPEN else Role.READ
    return Role.SUBMIT if path in _SUBMITS else Role.OPERATE


def changes(method: str) -> bool:
    """Whether a request may change something."""
    return method not in _SAFE


def read_token(file: Path) -> str:
    """The token in a file, without the white space around it.

    Raises:
        ConfigError: the file cannot be read, or holds no token.
    """
    try:
        token = file.read_text(encoding="utf-8").strip()
    except (OSError, UnicodeDecodeError) as error:
        raise ConfigError(f"token_file {file} cannot be read", hint=_MAKE) from error
    if not token:
        raise ConfigError(f"token_file {file} is empty", hint=_MAKE)
    return token
