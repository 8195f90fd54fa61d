"""The route ``POST /v1/corrections``: one correction, a list or CloudEvents 1.0, idempotent by key."""

import hashlib
import hmac
import json
from collections.abc import Mapping
from typing import Any

from fastapi import FastAPI, Request
from fastapi.concurrency import run_in_threadpool
from fastapi.exceptions import RequestValidationError
from fastapi.responses import JSONResponse

from daemon.admission.admit import backlog
from daemon.admission.auto_pause import pause_if_poisoned
from daemon.admission.policy import Policy
from daemon.admission.record import OPERATOR_TRUST
from daemon.admission.submission import Submission, submit_all
from daemon.api.errors import problem
from daemon.core.config.feeds import WebhookFeedConfig
from daemon.core.config.settings import Config
from daemon.core.errors import NotFoundError, RateLimitedError, UnavailableError
from daemon.core.ledger.ledger import Ledger
from daemon.core.ledger.switches import is_feed_paused
from daemon.core.names import API_FEED
from daemon.core.token_bucket import TokenBucket
from daemon.core.tokens import read_token

WHO = "api"
FEED_HEADER, SIGNATURE_HEADER, KEY_HEADER = "x-errata-feed", "x-errata-signature", "idempotency-key"
_EVENT, _EVENTS = "application/cloudevents+json", "application/cloudevents-batch+json"
_KEY_CHARACTERS = 128  # longest idempotency key: the ledger keeps each one


def signed_feeds(config: Config) -> frozenset[str]:
    """The names of the feeds whose deliveries are authenticated by a signature."""
    return frozenset(
        feed.name for feed in config.feeds if isinstance(feed, WebhookFeedConfig) and feed.secret_file
    )


def add_corrections(app: FastAPI, ledger: Ledger, config: Config) -> None:
    """Add the route ``POST /v1/corrections``."""
    hooks = {feed.name: feed for feed in config.feeds if isinstance(feed, WebhookFeedConfig)}
    buckets = {
        name: TokenBucket(ledger.clock, feed.items_per_second, feed.burst_items)
        for name, feed in hooks.items()
    }
    policy = Policy.of(config.admission)

    @app.post("/v1/corrections", status_code=202)
    async def post_corrections(request: Request) -> Any:
        """Admit all of a delivery or none of it, and answer with each outcome and its ids, in order."""
        body = await request.body()
        name = request.headers.get(FEED_HEADER)
        hook = None if name is None else hooks.get(name)
        if name is not None and hook is None:
            raise NotFoundError(f"there is no webhook feed {name[:64]!r}", hint="configure it in [[feeds]]")
        if hook is not None and not _is_signed(hook, body, request.headers.get(SIGNATURE_HEADER, "")):
            return problem(401, "unauthorised", f"{SIGNATURE_HEADER} does not match body and key")
        items, key = _items(body, request.headers)
        submission = Submission(WHO, API_FEED, OPERATOR_TRUST, key)
        if hook is not None:
            submission = Submission(f"feed {hook.name}", hook.name, hook.trust, key, policy)
        rows = await run_in_threadpool(_take, hook, items, submission)
        return JSONResponse({"corrections": rows}, status_code=202)

    def _take(
        hook: WebhookFeedConfig | None, items: list[Any], submission: Submission
    ) -> list[dict[str, Any]]:
        model = config.model.name
        if hook is None:
            return submit_all(ledger, model, items, submission)
        _require_allowance(ledger, config, hook, buckets[hook.name], len(items))
        rows = submit_all(ledger, model, items, submission)
        buckets[hook.name].take(len(items))
        pause_if_poisoned(ledger, model, hook.name, hook.quarantine_limit)
        return rows


def _require_allowance(
    ledger: Ledger, config: Config, hook: WebhookFeedConfig, bucket: TokenBucket, count: int
) -> None:
    """Raise UnavailableError or RateLimitedError unless the feed may deliver this number of items now."""
    with ledger.read() as connection:
        if is_feed_paused(connection, config.model.name, hook.name):
            raise UnavailableError(f"feed {hook.name} is paused", hint="errata feeds list shows the reason")
        if backlog(connection, config.model.name) >= config.edit.queue_bound:
            raise UnavailableError("too many corrections are waiting", hint="send it again later")
    if bucket.available(count) < count:
        raise RateLimitedError(f"feed {hook.name} exceeds items_per_second", hint="send it again later")


def _is_signed(hook: WebhookFeedConfig, body: bytes, header: str) -> bool:
    """Whether the body has the feed's signature, true for a feed without a key."""
    if hook.secret_file is None:
        return True
    key = read_token(hook.secret_file).encode()
    wanted = "sha256=" + hmac.new(key, body, hashlib.sha256).hexdigest()
    return hmac.compare_digest(header.strip().lower().encode(), wanted.encode())


def _items(body: bytes, headers: Mapping[str, str]) -> tuple[list[Any], str]:
    """The corrections of a body, and the idempotency key of the delivery."""
    try:
        document = json.loads(body)
    except (ValueError, RecursionError) as error:
        raise _invalid("the body is not JSON") from error
    if not isinstance(document, dict | list):
        raise _invalid("the body must be a JSON object or a list")
    key = headers.get(KEY_HEADER, "")
    if len(key) > _KEY_CHARACTERS or not key.isprintable():
        raise _invalid(f"{KEY_HEADER} must be printable, of at most {_KEY_CHARACTERS} characters")
    kind = headers.get("content-type", "").split(";")[0].strip().lower()
    if kind == _EVENTS:
        return [_unwrapped(event) for event in (document if isinstance(document, list) else [document])], key
    if kind == _EVENT:
        return [_unwrapped(document)], key or _event_key(document)
    if "ce-specversion" in headers:
        event = {name: headers.get(f"ce-{name}") for name in ("specversion", "id", "source", "time", "type")}
        event = {name: value for name, value in event.items() if value is not None}
        return [_unwrapped({**event, "data": document})], key or _event_key(event)
    return document if isinstance(document, list) else [document], key


def _unwrapped(event: Any) -> Any:
    """The correction in a CloudEvent, with source and time of the event where it has none."""
    needed = ("id", "source", "type")
    if not isinstance(event, dict) or event.get("specversion") != "1.0":
        raise _invalid("a CloudEvent must have specversion 1.0")
    if not all(isinstance(event.get(name), str) and event[name] for name in needed):
        raise _invalid(f"a CloudEvent must have {', '.join(needed)}")
    data = event.get("data")
    if not isinstance(data, dict):
        return data
    correction = {"source": event["source"], **data}
    if "time" in event and not {"observed_at", "effective_at"} & data.keys():
        correction["observed_at"] = event["time"]
    return correction


def _event_key(event: Any) -> str:
    """The idempotency key of a CloudEvent, made of its source and id."""
    if not isinstance(event, dict):
        return ""
    return "ce:" + hashlib.sha256(json.dumps([event.get("source"), event.get("id")]).encode()).hexdigest()


def _invalid(message: str) -> RequestValidationError:
    return RequestValidationError([{"loc": ("body",), "msg": message, "type": "value_error"}])
