"""Who may change something over HTTP, and how much may be sent: decided before a body is looked at."""

import hmac
import ipaddress
from collections.abc import MutableMapping
from pathlib import Path
from typing import Any
from urllib.parse import urlsplit

from fastapi.responses import JSONResponse
from starlette.datastructures import Headers
from starlette.types import ASGIApp, Message, Receive, Scope, Send

from daemon.api_errors import problem
from daemon.core.errors import ConfigError

_SAFE = frozenset({"GET", "HEAD", "OPTIONS"})
_MEDIA = frozenset({"application/json", "application/cloudevents+json", "application/cloudevents-batch+json"})
_LOCAL_NAMES = frozenset({"localhost"})
_MAKE = "openssl rand -hex 32 makes one"


class Guard:
    """Refuses every request that could change something, unless its sender may.

    With a token file: the bearer token in it; the file is read each time, so a new token holds at once.
    Without: clients of this machine only, that name it by a loopback address, from no page of another origin.
    Deliveries of a feed with a key of its own are let through to the route, which checks their signature.
    In every case the body must be declared as JSON, which no HTML form can do.
    """

    def __init__(
        self, app: ASGIApp, token_file: Path | None, signed_feeds: frozenset[str] = frozenset()
    ) -> None:
        self._app, self._token_file, self._signed_feeds = app, token_file, signed_feeds

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        """Pass the request on, or answer it with a refusal."""
        if scope["type"] == "http" and scope["method"] not in _SAFE:
            refusal = self._refusal(scope)
            if refusal is not None:
                await refusal(scope, receive, send)
                return
        await self._app(scope, receive, send)

    def _refusal(self, scope: Scope) -> JSONResponse | None:
        headers = Headers(scope=scope)
        if scope["path"] == "/v1/corrections" and headers.get("x-errata-feed") in self._signed_feeds:
            return _media_refusal(headers)  # the route checks the signature, which needs the body
        if self._token_file is not None:
            try:
                token = read_token(self._token_file)
            except ConfigError as error:
                return problem(
                    503, "unavailable", "the token cannot be checked", hint=error.hint, retryable=True
                )
            if not _bears(headers.get("authorization", ""), token):
                answer = problem(401, "unauthorised", "a bearer token is needed", hint="see api.token_file")
                answer.headers["WWW-Authenticate"] = "Bearer"
                return answer
        elif not _is_local(scope, headers):
            return problem(
                403,
                "forbidden",
                "only this machine may change things",
                hint="set api.token_file to allow others",
            )
        return _media_refusal(headers)


class BodyLimit:
    """Refuses bodies above ``limit`` bytes, declared or not; reads no more than that into memory."""

    def __init__(self, app: ASGIApp, limit: int) -> None:
        self._app, self._limit = app, limit

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        """Read the body, then pass it on, or answer that it is too large."""
        if scope["type"] != "http":
            await self._app(scope, receive, send)
            return
        messages = await self._read(scope, receive)
        if messages is None:
            too_large = problem(413, "too_large", f"the body is longer than {self._limit} bytes")
            await too_large(scope, receive, send)
            return

        async def again() -> Message:
            return messages.pop(0) if messages else await receive()

        await self._app(scope, again, send)

    async def _read(self, scope: Scope, receive: Receive) -> list[Message] | None:
        """The messages of the body; None when there is too much of it."""
        declared = Headers(scope=scope).get("content-length", "")
        if declared.isdecimal() and int(declared) > self._limit:
            return None
        messages: list[Message] = []
        size = 0
        while True:
            message: MutableMapping[str, Any] = await receive()
            messages.append(message)
            size += len(message.get("body", b""))
            if size > self._limit:
                return None
            if message["type"] != "http.request" or not message.get("more_body", False):
                return messages


def read_token(file: Path) -> str:
    """The token in a file, without the white space around it.

    Raises:
        ConfigError: the file cannot be read, or holds no token.
    """
    try:
        token = file.read_text(encoding="utf-8").strip()
    except (OSError, UnicodeDecodeError) as error:
        raise ConfigError(
            f"api.token_file {file} cannot be read", hint="openssl rand -hex 32 makes one"
        ) from error
    if not token:
        raise ConfigError(f"api.token_file {file} is empty", hint=_MAKE)
    return token


def _media_refusal(headers: Headers) -> JSONResponse | None:
    if headers.get("content-type", "").split(";")[0].strip().lower() not in _MEDIA:
        return problem(415, "media_type", "the body must be application/json")
    return None


def _bears(header: str, token: str) -> bool:
    """Whether the header bears the token; the time it takes says nothing about where they differ."""
    scheme, _, given = header.partition(" ")
    return scheme.lower() == "bearer" and hmac.compare_digest(given.strip().encode(), token.encode())


def _is_local(scope: Scope, headers: Headers) -> bool:
    """A client on this machine, which asked for this machine (no name that was bound to it from outside)."""
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
