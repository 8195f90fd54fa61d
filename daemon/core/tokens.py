"""Bearer tokens in files, the roles of tokens and requests, and limits on wrong guesses."""

import hmac
from collections import OrderedDict
from collections.abc import Mapping
from pathlib import Path

from daemon.core.clock import Clock
from daemon.core.errors import ConfigError
from daemon.core.names import Role
from daemon.core.token_bucket import TokenBucket

_SAFE = frozenset({"GET", "HEAD", "OPTIONS"})
_OPEN = frozenset({"/healthz", "/readyz"})  # process managers send no token
_SUBMITS = frozenset({"/v1/corrections"})
_FAILURES_PER_SECOND = 0.5  # wrong tokens an address may keep sending: a guess every two seconds
_FAILURES = 30  # wrong tokens at once, enough for a client that was configured wrongly
_ADDRESSES = 1024  # addresses that are remembered: bounds the memory
_MAKE_TOKEN = "openssl rand -hex 32 makes one"  # noqa: S105  # a hint, not a token


class Keys:
    """The tokens of all roles, read from their files at each use so that a new one takes effect at once."""

    def __init__(self, files: Mapping[Role, Path]) -> None:
        self._files = files

    def __contains__(self, role: Role) -> bool:
        """Whether the role has a token of its own."""
        return role in self._files

    def __bool__(self) -> bool:
        """Whether any role has a token."""
        return bool(self._files)

    def role_of(self, token: str) -> Role | None:
        """The highest role that has this token, or None. All are compared, each in constant time.

        Raises ConfigError if a file cannot be read, or holds no token.
        """
        highest = None
        offered = token.encode()
        for role in Role:
            if role in self._files and hmac.compare_digest(offered, read_token(self._files[role]).encode()):
                highest = role
        return highest


class Failures:
    """Counts wrong tokens by address, for the addresses that failed last."""

    def __init__(self, clock: Clock) -> None:
        self._clock = clock
        self._left: OrderedDict[str, TokenBucket] = OrderedDict()

    def too_many(self, address: str) -> bool:
        """Whether the next token of an address is refused without being compared."""
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
    """The role that a request needs, or None, where a change by an unknown path needs ``operate``."""
    if method in _SAFE:
        return None if path in _OPEN else Role.READ
    return Role.SUBMIT if path in _SUBMITS else Role.OPERATE


def changes(method: str) -> bool:
    """Whether a request may change something."""
    return method not in _SAFE


def bearer_token(header: str) -> str:
    """The token in an ``Authorization`` header, or an empty text."""
    scheme, _, token = header.partition(" ")
    return token.strip() if scheme.lower() == "bearer" else ""


def read_token(file: Path) -> str:
    """The token in a file, stripped. Raises ConfigError if the file cannot be read or holds none."""
    try:
        token = file.read_text(encoding="utf-8").strip()
    except (OSError, UnicodeDecodeError) as error:
        raise ConfigError(f"token_file {file} cannot be read", hint=_MAKE_TOKEN) from error
    if not token:
        raise ConfigError(f"token_file {file} is empty", hint=_MAKE_TOKEN)
    return token
