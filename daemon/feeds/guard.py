"""The HTTP client of the feeds, which limits the servers that are asked and the size of answers.

A host is resolved here, every address of it is checked, and the connection goes to the checked address, so
that a name which resolves differently a moment later changes nothing. Redirects are followed by hand, each
as strictly as the first URL. Answers are bounded in time, from the look-up of the name to the last byte, and
in decompressed size. Proxies named in the
environment are not used.
"""

import ipaddress
import zlib
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Self
from urllib.parse import urljoin, urlsplit

import httpcore
import httpx

from daemon.core.config.feeds import HttpFeedConfig, RssFeedConfig, WikidataFeedConfig
from daemon.core.errors import ConfigError, FeedError
from daemon.core.text import printable
from daemon.core.tokens import read_token
from daemon.core.version import version
from daemon.feeds.deadline import Deadline, look_up, transport

_REDIRECTS = 5  # in a row; a feed needs one or two
_MOVED = frozenset({301, 302, 303, 307, 308})
_NAT64 = ipaddress.ip_network("64:ff9b::/96")  # IPv6 addresses that stand for IPv4 ones (RFC 6052)
_URL_CHARACTERS = 2_000  # longer ones are refused by many servers too
Address = ipaddress.IPv4Address | ipaddress.IPv6Address
WebConfig = HttpFeedConfig | RssFeedConfig | WikidataFeedConfig


@dataclass(frozen=True)
class Limits:
    """Which hosts a feed may ask, and how long and large an answer may be."""

    hosts: frozenset[str]
    allow_private: bool = False
    max_bytes: int = 16 << 20
    timeout_seconds: float = 30.0

    @classmethod
    def of(cls, config: WebConfig, *urls: str) -> Self:
        """Return a section's limits, whose hosts are those of its URLs where it lists none."""
        hosts = config.hosts or tuple(urlsplit(url).hostname or "" for url in urls)
        folded = frozenset(host.casefold() for host in hosts)
        return cls(folded, config.allow_private, config.max_bytes, config.timeout_seconds)


@dataclass(frozen=True)
class Answer:
    """An answer within the limits, with its URL after redirects."""

    status: int
    headers: httpx.Headers
    body: bytes
    url: str


class Web:
    """The HTTP client of one feed, with a bearer token for one host."""

    def __init__(self, limits: Limits, token_file: Path | None = None, token_host: str = "") -> None:
        self._limits, self._token_file, self._token_host = limits, token_file, token_host.casefold()
        self._clients: dict[str, httpx.Client] = {}
        self._deadline = Deadline()

    @classmethod
    def of(cls, config: WebConfig, *urls: str) -> Self:
        """Make the client of a section that asks ``urls``, with the token for the host of the first."""
        return cls(Limits.of(config, *urls), config.token_file, urlsplit(urls[0]).hostname or "")

    def get(self, url: str, headers: Mapping[str, str] | None = None) -> Answer:
        """Return the whole answer to a GET.

        Raises FeedError if that is not allowed, or the answer is missing, an error, too long or too slow.
        """
        sent = {"accept-encoding": "gzip", **(headers or {})}
        with self._answer(url, sent) as response:
            pieces, size = [], 0
            for piece in _inflated(response, self._limits.max_bytes):
                size += len(piece)
                if size > self._limits.max_bytes:
                    raise FeedError(
                        f"the answer is longer than {self._limits.max_bytes} bytes", hint="raise max_bytes"
                    )
                pieces.append(piece)
            return Answer(response.status_code, response.headers, b"".join(pieces), str(response.url))

    @contextmanager
    def stream(self, url: str, headers: Mapping[str, str]) -> Iterator[httpx.Response]:
        """Yield the answer to a GET while it comes in, without an end. Its headers must come in time.

        Raises FeedError as ``get``.
        """
        with self._answer(url, headers) as response:
            self._deadline.lift()
            yield response

    @contextmanager
    def _answer(self, url: str, headers: Mapping[str, str]) -> Iterator[httpx.Response]:
        """Yield the answer to a GET before its body, after following and checking redirects.

        Raises FeedError if that is not allowed, without an answer in time, or at an error status.
        """
        with self._deadline.within(self._limits.timeout_seconds), self._errors(url):
            for _ in range(_REDIRECTS + 1):
                host, client = self._client(url)
                request = client.build_request("GET", url, headers={**headers, **self._credentials(host)})
                response = client.send(request, stream=True)
                try:
                    if response.status_code not in _MOVED:
                        if response.status_code >= 400:
                            raise FeedError(f"{_shown(url)} answers {response.status_code}")
                        yield response
                        return
                    url = urljoin(url, response.headers.get("location", ""))
                finally:
                    response.close()
            raise FeedError(f"more than {_REDIRECTS} redirects, the last to {_shown(url)}")

    @contextmanager
    def _errors(self, url: str) -> Iterator[None]:
        """Turn the errors of the client into ours."""
        try:
            yield
        except (httpx.TimeoutException, httpcore.TimeoutException) as error:
            seconds = self._limits.timeout_seconds
            raise FeedError(
                f"{_shown(url)} gives no complete answer within {seconds:g} s", hint="raise timeout_seconds"
            ) from error
        except (httpx.HTTPError, httpx.InvalidURL, httpx.StreamError) as error:
            raise FeedError(f"{_shown(url)} cannot be read: {type(error).__name__}: {error}") from error

    def close(self) -> None:
        """Close all connections."""
        while self._clients:
            self._clients.popitem()[1].close()

    def _client(self, url: str) -> tuple[str, httpx.Client]:
        """Return the host of a URL that may be asked, and a client that connects to its checked addresses."""
        host = checked_host(url, self._limits)
        if host not in self._clients:
            self._clients[host] = httpx.Client(
                transport=_Pinned(self._limits, self._deadline),
                timeout=self._limits.timeout_seconds,
                headers={"user-agent": f"errata/{version()}"},
                trust_env=False,
                follow_redirects=False,
            )
        return host, self._clients[host]

    def _credentials(self, host: str) -> dict[str, str]:
        """Return the token's header for the configured host, and nothing for others."""
        if self._token_file is None or host != self._token_host:
            return {}
        try:
            return {"authorization": f"Bearer {read_token(self._token_file)}"}
        except ConfigError as error:
            raise FeedError(error.message, hint=error.hint) from error


class _Pinned(httpx.BaseTransport):
    """Connect to a checked address, with the name in the Host header and in TLS."""

    def __init__(self, limits: Limits, deadline: Deadline) -> None:
        self._limits, self._deadline = limits, deadline
        self._inner = transport(deadline)

    def handle_request(self, request: httpx.Request) -> httpx.Response:
        name, url = request.url.host, request.url
        extensions = {**request.extensions, "sni_hostname": name}
        failed: httpx.ConnectError | None = None
        port, seconds = url.port or (443 if url.scheme == "https" else 80), self._limits.timeout_seconds
        for address in resolve(name, port, self._limits, self._deadline.left(seconds)):
            pinned = httpx.Request(
                request.method,
                url.copy_with(host=str(address)),
                headers=request.headers,
                stream=request.stream,
                extensions=extensions,
            )
            try:
                return self._inner.handle_request(pinned)
            except httpx.ConnectError as error:
                failed = error
        raise failed or httpx.ConnectError(f"{name} has no address")

    def close(self) -> None:
        self._inner.close()


def checked_host(url: str, limits: Limits) -> str:
    """Return the host of a URL that the limits allow, without resolving it.

    Raises FeedError at another scheme, another host, credentials in the URL, or no URL.
    """
    try:
        parts = urlsplit(url)
        host, port = (parts.hostname or "").casefold(), parts.port
    except ValueError as error:
        raise FeedError(f"{_shown(url)} is not a URL") from error
    schemes = ("https", "http") if limits.allow_private else ("https",)
    if parts.scheme not in schemes:
        hint = "https only; allow_private also allows http"
        raise FeedError(f"{_shown(url)} is not {' or '.join(schemes)}", hint=hint)
    if host not in limits.hosts or not host or port == 0:
        hint = "add it to hosts in [[feeds]]"
        raise FeedError(f"{_shown(url)} leads to a host that is not allowed", hint=hint)
    if parts.username is not None or parts.password is not None or len(url) > _URL_CHARACTERS:
        raise FeedError(f"a URL may not carry credentials or be longer than {_URL_CHARACTERS} characters")
    return host


def resolve(host: str, port: int, limits: Limits, seconds: float | None = None) -> list[Address]:
    """Return the addresses of a host, all of which must be public unless private ones are allowed.

    Raises FeedError if there is no such host, it is not known within ``seconds``, or one of its addresses may
    not be asked.
    """
    try:
        entries = look_up(host, port, seconds)
    except (OSError, UnicodeError) as error:
        raise FeedError(f"{_shown(host)} has no address: {error}") from error
    addresses = [ipaddress.ip_address(str(entry[4][0]).partition("%")[0]) for entry in entries]
    for address in addresses:
        if not limits.allow_private and not is_public(address):
            hint = "set allow_private = true if this feed is your own"
            raise FeedError(f"{_shown(host)} leads to {address}, which is not a public address", hint=hint)
    return list(dict.fromkeys(addresses))


def is_public(address: Address) -> bool:
    """Whether an address and every IPv4 address embedded in it belong to the public internet."""
    if isinstance(address, ipaddress.IPv6Address):
        inner = [address.ipv4_mapped, address.sixtofour, *(address.teredo or ())]
        if address in _NAT64:
            inner.append(ipaddress.IPv4Address(int(address) & 0xFFFFFFFF))
        if not all(is_public(one) for one in inner if one is not None):
            return False
        if address.ipv4_mapped is not None:
            return True
    return address.is_global and not address.is_multicast


def _inflated(response: httpx.Response, limit: int) -> Iterator[bytes]:
    """Yield the body, decompressed to at most ``limit`` bytes, which httpx itself would not bound."""
    encoding = response.headers.get("content-encoding", "identity").strip().lower()
    if encoding in ("identity", ""):
        yield from response.iter_raw()
        return
    if encoding not in ("gzip", "x-gzip"):
        raise FeedError(f"the answer is encoded as {_shown(encoding)}, which was not asked for")
    inflater = zlib.decompressobj(wbits=31)
    try:
        for piece in response.iter_raw():
            yield inflater.decompress(piece, limit + 1)
        if not inflater.eof:
            raise FeedError("the compressed answer is cut off")
    except zlib.error as error:
        raise FeedError(f"the answer is not gzip: {error}") from error


def _shown(text: str) -> str:
    return printable(text.partition("?")[0], 200)
