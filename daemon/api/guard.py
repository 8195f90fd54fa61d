"""Access control, rate limits and the size limit of HTTP requests, applied before a body is parsed."""

import ipaddress
from collections.abc import Mapping, MutableMapping
from types import MappingProxyType
from typing import Any
from urllib.parse import urlsplit

from fastapi.concurrency import run_in_threadpool
from fastapi.responses import JSONResponse
from starlette.datastructures import Headers
from starlette.types import ASGIApp, Message, Receive, Scope, Send

from daemon.api.errors import problem
from daemon.core.config.settings import ApiConfig
from daemon.core.errors import ConfigError, ErrataError
from daemon.core.ledger import audit
from daemon.core.ledger.ledger import Ledger
from daemon.core.log import get_logger
from daemon.core.names import Role
from daemon.core.text import printable
from daemon.core.token_bucket import TokenBucket
from daemon.core.tokens import Failures, Keys, bearer_token, changes, needed_role

log = get_logger("errata.api")
_MEDIA = frozenset({"application/json", "application/cloudevents+json", "application/cloudevents-batch+json"})
_LOCAL_NAMES = frozenset({"localhost"})
_FORBIDDEN = frozenset({401, 403})
# Refused changes that are recorded: 30, then one a minute, so that strangers cannot fill the ledger.
_AUDITED_PER_SECOND, _AUDITED = 1 / 60, 30
_SHOWN = 200  # characters of an address or path in the audit


class Guard:
    """Refuses requests whose sender lacks the role, and records refused changes in the audit.

    With tokens, the role of the bearer decides (``daemon.core.tokens``). Without tokens, only clients on this
    host may make changes, if they address it by a loopback name and come from no page of another origin.
    Deliveries of a feed with a key of its own pass to the route, which checks their signature. A body must
    always be declared as JSON, which an HTML form cannot do.
    """

    def __init__(
        self, app: ASGIApp, ledger: Ledger, settings: ApiConfig, signed_feeds: frozenset[str] = frozenset()
    ) -> None:
        self._app, self._ledger, self._signed_feeds = app, ledger, signed_feeds
        self._keys = Keys(settings.token_files)
        rate = settings.changes_per_second
        self._rates = {role: TokenBucket(ledger.clock, rate, max(1, int(10 * rate))) for role in Role}
        self._failures = Failures(ledger.clock)
        self._audited = TokenBucket(ledger.clock, _AUDITED_PER_SECOND, _AUDITED)

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        """Pass the request on, or answer with a refusal."""
        if scope["type"] == "http":
            refusal = self._refusal(scope)
            if refusal is not None:
                if refusal.status_code in _FORBIDDEN:
                    await self._note(scope, refusal.status_code)
                await refusal(scope, receive, send)
                return
        await self._app(scope, receive, send)

    def _refusal(self, scope: Scope) -> JSONResponse | None:
        method, path, headers = scope["method"], scope["path"], Headers(scope=scope)
        needed = needed_role(method, path)
        if needed is None or (needed is Role.READ and Role.READ not in self._keys):
            return None
        if path == "/v1/corrections" and headers.get("x-errata-feed") in self._signed_feeds:
            return _media_refusal(headers)  # the route checks the signature, which needs the body
        role = self._role(scope, headers)
        if not isinstance(role, Role):
            return role
        if not role.includes(needed):
            return problem(403, "forbidden", f"the token has the role {role}, this request needs {needed}")
        return self._limited(role, headers) if changes(method) else None

    def _role(self, scope: Scope, headers: Headers) -> Role | JSONResponse:
        """The sender's role, or the refusal if it has none."""
        if not self._keys:
            if _is_local(scope, headers):
                return Role.OPERATE
            hint = "set api.token_file to allow other clients"
            return problem(403, "forbidden", "without a token only this machine may make changes", hint=hint)
        if self._failures.too_many(_address(scope)):
            return problem(429, "rate_limited", "too many requests with a wrong token", retryable=True)
        try:
            role = self._keys.role_of(bearer_token(headers.get("authorization", "")))
        except ConfigError as error:
            return problem(503, "unavailable", "the token cannot be checked", hint=error.hint, retryable=True)
        if role is None:
            answer = problem(401, "unauthorised", "a valid token is needed", hint="see api.token_file")
            answer.headers["WWW-Authenticate"] = "Bearer"
            return answer
        return role

    def _limited(self, role: Role, headers: Headers) -> JSONResponse | None:
        """A refusal if changes come too often or the body is not JSON, else None."""
        bucket = self._rates[role]
        if not bucket.available(1):
            return problem(429, "rate_limited", "more changes than api.changes_per_second", retryable=True)
        bucket.take(1)
        return _media_refusal(headers)

    async def _note(self, scope: Scope, status: int) -> None:
        """Count a refusal against its sender, and record a refused change in the audit, at a limited rate."""
        self._failures.add(_address(scope))
        if changes(scope["method"]) and self._audited.available(1):
            self._audited.take(1)
            await run_in_threadpool(self._write_down, scope, status)

    def _write_down(self, scope: Scope, status: int) -> None:
        who = printable(_address(scope), _SHOWN)
        target = printable(f"{scope['method']} {scope['path']}", _SHOWN)
        try:
            with self._ledger.write() as connection:
                now = self._ledger.clock.now()
                audit.record(connection, now, who, "refused", target, f"answered {status}")
        except ErrataError as error:
            log.warning("refusal not recorded in the audit", target=target, status=status, error=str(error))


class BodyLimit:
    """Refuses bodies above ``limit`` bytes, or above that of a path of its own, without reading more."""

    def __init__(self, app: ASGIApp, limit: int, limits: Mapping[str, int] = MappingProxyType({})) -> None:
        self._app, self._limit, self._limits = app, limit, limits

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        """Read the body and pass it on, or answer that it is too large."""
        if scope["type"] != "http":
            await self._app(scope, receive, send)
            return
        limit = self._limits.get(scope["path"], self._limit)
        messages = await self._read(scope, receive, limit)
        if messages is None:
            too_large = problem(413, "too_large", f"the body exceeds {limit} bytes")
            await too_large(scope, receive, send)
            return

        async def again() -> Message:
            return messages.pop(0) if messages else await receive()

        await self._app(scope, again, send)

    async def _read(self, scope: Scope, receive: Receive, limit: int) -> list[Message] | None:
        """The messages of the body, or None if it is too large."""
        declared = Headers(scope=scope).get("content-length", "")
        if declared.isdecimal() and int(declared) > limit:
            return None
        messages: list[Message] = []
        size = 0
        while True:
            message: MutableMapping[str, Any] = await receive()
            messages.append(message)
            size += len(message.get("body", b""))
            if size > limit:
                return None
            if message["type"] != "http.request" or not message.get("more_body", False):
                return messages


def _media_refusal(headers: Headers) -> JSONResponse | None:
    if headers.get("content-type", "").split(";")[0].strip().lower() not in _MEDIA:
        return problem(415, "media_type", "the body must be application/json")
    return None


def _address(scope: Scope) -> str:
    return str(scope["client"][0]) if scope.get("client") else "unknown"


def _is_local(scope: Scope, headers: Headers) -> bool:
    """Whether the client is here and used a loopback name, not one that resolves to it (DNS rebinding)."""
    client = scope.get("client")
    host, origin = headers.get("host", ""), headers.get("origin")
    try:
        asked_for = urlsplit(f"//{host}").hostname or ""
        foreign = origin is not None and urlsplit(origin).netloc != host
    except ValueError:
        return False
    return client is not None and _is_loopback(client[0]) and _is_loopback(asked_for) and not foreign


def _is_loopback(name: str) -> bool:
    if name in _LOCAL_NAMES:
        return True
    try:
        address = ipaddress.ip_address(name)
    except ValueError:
        return False
    mapped = getattr(address, "ipv4_mapped", None)
    return (mapped or address).is_loopback
