"""Roles of the API: what each token opens, what a wrong one costs, what the audit says of who was refused."""

from collections.abc import Iterator
from typing import Any

import httpx
import pytest
from fastapi.testclient import TestClient
from sqlalchemy import select

from daemon.api.app import make_app
from daemon.core import tokens
from daemon.core.errors import ConfigError
from daemon.core.ledger.audit import first_broken_row
from daemon.core.ledger.ledger import Ledger
from daemon.core.ledger.schema import audit
from daemon.core.names import Role
from tests.installation import Installation
from tests.ledgers import FakeClock, held, statement

TOKENS = {"read": "r" * 32, "submit": "s" * 32, "operate": "o" * 32}
FILES = {"read": "read_token_file", "submit": "submit_token_file", "operate": "token_file"}
BACK = {"to": 0, "reason": "demo"}
LOOKS = ("/", "/metrics", "/v1/status", "/v1/facts", "/v1/revisions", "/v1/incidents")


@pytest.fixture
def ledger(installation: Installation) -> Iterator[Ledger]:
    opened = Ledger(installation.tell_story().engine, FakeClock())
    yield opened
    opened.close()


def client_of(
    installation: Installation, ledger: Ledger, *roles: str, address: str = "203.0.113.9", more: str = ""
) -> TestClient:
    """A client from elsewhere, to an API that has a token for each of ``roles``."""
    lines = ["[api]", more]
    for role in roles:
        file = installation.folder / f"{role}.token"
        file.write_text(TOKENS[role] + "\n")
        lines.append(f'{FILES[role]} = "{file}"')
    installation.write("\n".join(lines))
    app = make_app(ledger, installation.config)
    return TestClient(
        app, base_url="http://errata.example", client=(address, 5), raise_server_exceptions=False
    )


def bearing(role: str) -> dict[str, str]:
    return {"authorization": f"Bearer {TOKENS[role]}"}


def refused(ledger: Ledger) -> list[tuple[str, str, str]]:
    with ledger.read() as connection:
        query = select(audit.c.who, audit.c.target, audit.c.reason).where(audit.c.action == "refused")
        return [tuple(row) for row in connection.execute(query.order_by(audit.c.id))]


def statuses(client: TestClient, headers: dict[str, str]) -> dict[str, int]:
    """What looking, submitting and operating are answered with."""

    def said(response: httpx.Response) -> int:
        return response.status_code

    return {
        "read": said(client.get("/v1/status", headers=headers)),
        "submit": said(client.post("/v1/corrections", json=statement("Togo", "Lomé"), headers=headers)),
        "operate": said(client.post("/v1/rollback", json=BACK, headers=headers)),
    }


def test_each_role_may_do_its_part_and_what_is_below_it(installation: Installation, ledger: Ledger) -> None:
    client = client_of(installation, ledger, "read", "submit", "operate")
    assert statuses(client, {}) == {"read": 401, "submit": 401, "operate": 401}
    assert statuses(client, bearing("read")) == {"read": 200, "submit": 403, "operate": 403}
    assert statuses(client, bearing("submit")) == {"read": 200, "submit": 202, "operate": 403}
    assert held(ledger) != {}
    assert statuses(client, bearing("operate")) == {"read": 200, "submit": 202, "operate": 200}
    assert held(ledger) == {}


def test_a_single_token_opens_everything_and_looking_stays_free(
    installation: Installation, ledger: Ledger
) -> None:
    client = client_of(installation, ledger, "operate")
    assert statuses(client, {}) == {"read": 200, "submit": 401, "operate": 401}
    assert statuses(client, bearing("operate")) == {"read": 200, "submit": 202, "operate": 200}
    assert statuses(client, bearing("submit")) == {"read": 200, "submit": 401, "operate": 401}


@pytest.mark.parametrize("path", LOOKS)
def test_with_a_token_for_reading_nobody_looks_without_one(
    installation: Installation, ledger: Ledger, path: str
) -> None:
    client = client_of(installation, ledger, "read", "operate")
    assert client.get(path).status_code == 401
    assert client.head(path).status_code in (401, 405)
    assert client.get(path, headers=bearing("read")).status_code == 200
    assert client.get("/healthz").status_code == 200
    assert client.get("/readyz").status_code in (200, 503)


def test_what_is_not_known_to_be_harmless_needs_everything() -> None:
    for method in ("POST", "PUT", "PATCH", "DELETE", "BREW"):
        assert tokens.needed_role(method, "/v1/anything") is Role.OPERATE
    assert tokens.needed_role("POST", "/v1/corrections/") is Role.OPERATE
    assert tokens.needed_role("GET", "/v1/anything") is Role.READ
    assert tokens.needed_role("POST", "/healthz") is Role.OPERATE


def test_an_alert_may_lead_to_a_rollback_and_needs_the_highest_role(
    installation: Installation, ledger: Ledger
) -> None:
    client = client_of(installation, ledger, "submit", "operate")
    assert client.post("/v1/alerts", json={}, headers=bearing("submit")).status_code == 403


def test_who_was_refused_stands_in_the_audit_without_the_token(
    installation: Installation, ledger: Ledger
) -> None:
    client = client_of(installation, ledger, "submit", "operate")
    client.post("/v1/rollback", json=BACK, headers=bearing("submit"))
    client.post("/v1/rollback", json=BACK, headers={"authorization": "Bearer guess"})
    assert refused(ledger) == [
        ("203.0.113.9", "POST /v1/rollback", "answered 403"),
        ("203.0.113.9", "POST /v1/rollback", "answered 401"),
    ]
    with ledger.read() as connection:
        everything = str(connection.execute(select(audit)).all())
        assert first_broken_row(connection) is None
    assert "guess" not in everything
    assert not any(token in everything for token in TOKENS.values())


def test_guesses_do_not_fill_the_ledger_and_shut_nobody_else_out(
    installation: Installation, ledger: Ledger
) -> None:
    client = client_of(installation, ledger, "operate")
    wrong = {"authorization": "Bearer guess"}
    seen = [client.post("/v1/rollback", json=BACK, headers=wrong).status_code for _ in range(100)]
    assert seen == [401] * 30 + [429] * 70
    assert client.post("/v1/rollback", json=BACK, headers=bearing("operate")).status_code == 429
    elsewhere = client_of(installation, ledger, "operate", address="198.51.100.7")
    assert elsewhere.post("/v1/rollback", json=BACK, headers=bearing("operate")).status_code == 200
    ledger.clock.advance(2)  # type: ignore[attr-defined]
    assert client.post("/v1/rollback", json=BACK, headers=bearing("operate")).status_code == 200
    assert len(refused(ledger)) == 30


def test_failures_of_endless_addresses_are_forgotten() -> None:
    failures = tokens.Failures(FakeClock())
    for number in range(5_000):
        failures.add(f"2001:db8::{number:x}")
    assert len(failures._left) <= 1024


def test_changes_are_limited_by_role_and_looking_is_not(installation: Installation, ledger: Ledger) -> None:
    client = client_of(installation, ledger, "submit", "operate", more="changes_per_second = 0.2")
    said = [statement(f"Land {number}", "Town") for number in range(4)]
    seen = [client.post("/v1/corrections", json=one, headers=bearing("submit")).status_code for one in said]
    assert seen == [202, 202, 429, 429]
    assert client.get("/v1/status").status_code == 200
    assert client.post("/v1/rollback", json=BACK, headers=bearing("operate")).status_code == 200
    ledger.clock.advance(5)  # type: ignore[attr-defined]
    assert client.post("/v1/corrections", json=said[2], headers=bearing("submit")).status_code == 202


def test_every_token_is_compared_in_constant_time(
    installation: Installation, ledger: Ledger, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Also after the right one was found, and whatever was offered."""
    compared: list[tuple[Any, Any]] = []

    class Watched:
        @staticmethod
        def compare_digest(one: Any, other: Any) -> bool:
            compared.append((one, other))
            return bool(one == other)

    client = client_of(installation, ledger, "read", "submit", "operate")
    monkeypatch.setattr(tokens, "hmac", Watched)
    for offered in ("", "Bearer x", f"Bearer {TOKENS['read']}", f"Bearer {TOKENS['operate']}"):
        compared.clear()
        client.get("/v1/status", headers={"authorization": offered})
        assert [other.decode() for _, other in compared] == list(TOKENS.values())


def test_lesser_tokens_make_no_sense_alone(installation: Installation, ledger: Ledger) -> None:
    with pytest.raises(ConfigError, match=r"need api\.token_file"):
        client_of(installation, ledger, "submit")


@pytest.mark.parametrize("role", ["read", "submit", "operate"])
def test_an_empty_file_opens_nothing(installation: Installation, ledger: Ledger, role: str) -> None:
    client = client_of(installation, ledger, "read", "submit", "operate")
    (installation.folder / f"{role}.token").write_text(" \n")
    assert client.post("/v1/rollback", json=BACK, headers={"authorization": "Bearer "}).status_code == 503
    assert held(ledger) != {}
    with pytest.raises(ConfigError, match="is empty"):
        make_app(ledger, installation.config)
