"""Requests drawn from the API's own description, good and bad: no answer is a crash, no book is torn."""

import json
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
import schemathesis
from fastapi import FastAPI
from fastapi.testclient import TestClient
from hypothesis import HealthCheck, Phase, given, settings
from hypothesis import strategies as st
from schemathesis import GenerationMode

from daemon.api.app import make_app
from daemon.core.ledger.audit import first_broken_row
from daemon.core.ledger.ledger import Ledger
from tests.conftest import is_full
from tests.installation import Installation

ROUTES = {
    ("GET", "/healthz"), ("GET", "/readyz"), ("GET", "/metrics"), ("GET", "/v1/status"),
    ("GET", "/v1/revisions"), ("GET", "/v1/facts"), ("GET", "/v1/incidents"),
    ("POST", "/v1/rollback"), ("POST", "/v1/corrections"), ("POST", "/v1/alerts"),
}  # fmt: skip
EACH = settings(
    max_examples=200 if is_full() else 12,
    database=None,
    deadline=None,
    derandomize=True,
    suppress_health_check=list(HealthCheck),
    phases=[Phase.explicit, Phase.generate],
)
JSON = st.recursive(
    st.none() | st.booleans() | st.integers() | st.floats(allow_nan=False) | st.text(),
    lambda inner: st.lists(inner, max_size=4) | st.dictionaries(st.text(), inner, max_size=4),
    max_leaves=12,
)


@pytest.fixture
def ledger(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[Ledger]:
    monkeypatch.delenv("REDIS_URL", raising=False)
    opened = Installation(tmp_path).tell_story()
    yield opened
    opened.close()


@pytest.fixture
def app(ledger: Ledger, tmp_path: Path) -> FastAPI:
    installation = Installation(tmp_path)
    installation.write("[api]\nchanges_per_second = 0")
    return make_app(ledger, installation.config)


@pytest.fixture
def client(app: FastAPI) -> TestClient:
    here = ("127.0.0.1", 5)
    return TestClient(app, base_url="http://127.0.0.1", client=here, raise_server_exceptions=False)


def require_sane(response: Any) -> None:
    """An answer, and where it is a refusal the one form of all refusals."""
    ready = response.request.url.path == "/readyz"
    assert response.status_code < 500 or (ready and response.status_code == 503), response.request.url
    if response.status_code >= 400 and not ready:
        assert {"code", "message", "hint", "retryable"} <= response.json().keys()


def test_the_description_has_every_route(app: FastAPI) -> None:
    paths = app.openapi()["paths"]
    described = {(method.upper(), path) for path, methods in paths.items() for method in methods}
    assert described >= ROUTES


def ask(client: TestClient, operation: Any, mode: GenerationMode) -> int:
    """Send requests that the description allows or forbids, and return their number."""
    count = 0

    @EACH
    @given(case=operation.as_strategy(generation_mode=mode))
    def send(case: Any) -> None:
        nonlocal count
        body = case.body if isinstance(case.body, dict | list | str | int | None) else None
        response = client.request(
            case.method,
            case.formatted_path,
            params=dict(case.query or {}),
            content=None if case.method == "GET" else json.dumps(body),
            headers={"content-type": "application/json"},
        )
        require_sane(response)
        count += 1

    send()
    return count


def test_no_request_of_the_description_or_against_it_is_a_crash(
    app: FastAPI, client: TestClient, ledger: Ledger
) -> None:
    schema = schemathesis.openapi.from_dict(app.openapi())
    for found in schema.get_all_operations():
        operation = found.ok()
        assert ask(client, operation, GenerationMode.POSITIVE)
        if operation.query or operation.body:  # else there is nothing to ask wrongly
            assert ask(client, operation, GenerationMode.NEGATIVE)
    with ledger.read() as connection:
        assert first_broken_row(connection) is None


def test_any_json_is_admitted_or_refused(client: TestClient) -> None:
    @EACH
    @given(body=JSON)
    def send(body: Any) -> None:
        for path in ("/v1/corrections", "/v1/rollback", "/v1/alerts"):
            headers = {"content-type": "application/json"}
            require_sane(client.post(path, content=json.dumps(body), headers=headers))

    send()
