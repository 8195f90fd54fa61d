"""Who may deliver to the webhook, in which forms and how often, and that a repeated delivery counts once."""

import hashlib
import hmac
import json
from collections.abc import Iterator
from typing import Any

import httpx
import pytest
from fastapi.testclient import TestClient
from sqlalchemy import select

from daemon.api.app import make_app
from daemon.core.ledger.ledger import Ledger
from daemon.core.ledger.schema import corrections, quarantine
from daemon.core.ledger.switches import pause
from tests.installation import Installation
from tests.ledgers import statement, states

KEY = "a key between two machines"


@pytest.fixture
def ledger(installation: Installation) -> Iterator[Ledger]:
    opened = installation.tell_story()
    yield opened
    opened.close()


def client_of(installation: Installation, ledger: Ledger, *, far: bool = True, rules: str = "") -> TestClient:
    secret = installation.folder / "hook.key"
    secret.write_text(KEY + "\n")
    installation.write(f"""{rules}
[[feeds]]
kind = "webhook"
name = "signed"
trust = 70
secret_file = "{secret}"
[[feeds]]
kind = "webhook"
name = "slow"
items_per_second = 0.001
burst_items = 2
quarantine_limit = 2
""")
    address, base = ("203.0.113.9", "http://errata.example") if far else ("127.0.0.1", "http://127.0.0.1")
    app = make_app(ledger, installation.config)
    return TestClient(app, base_url=base, client=(address, 5), raise_server_exceptions=False)


def signed(client: TestClient, body: object, key: str = KEY, **headers: str) -> httpx.Response:
    raw = body if isinstance(body, bytes) else json.dumps(body).encode()
    signature = "sha256=" + hmac.new(key.encode(), raw, hashlib.sha256).hexdigest()
    sent = {"content-type": "application/json", "x-errata-feed": "signed", "x-errata-signature": signature}
    return client.post("/v1/corrections", content=raw, headers=sent | headers)


def rows(response: httpx.Response) -> list[dict[str, Any]]:
    assert response.status_code == 202, response.text
    return list(response.json()["corrections"])


def stored(ledger: Ledger, correction: str) -> dict[str, Any]:
    with ledger.read() as connection:
        query = select(corrections).where(corrections.c.id == correction)
        return dict(connection.execute(query).mappings().one())


def test_a_signed_delivery_is_admitted_from_anywhere_under_its_feeds_trust(
    installation: Installation, ledger: Ledger
) -> None:
    client = client_of(installation, ledger)
    (row,) = rows(signed(client, {"subject": "Togo", "relation": "P36", "object": "Lomé"}))
    found = stored(ledger, row["correction"])
    assert (found["feed"], found["trust"], found["state"]) == ("signed", 70, "pending")
    assert found["prompt"] == "The capital of Togo is"


@pytest.mark.parametrize(
    ("headers", "status"),
    [
        ({"x-errata-signature": ""}, 401),
        ({"x-errata-signature": "sha256=" + "0" * 64}, 401),
        ({"x-errata-signature": "sha1=abc"}, 401),
        ({"x-errata-feed": "slow"}, 403),
        ({"x-errata-feed": "nobody"}, 403),
        ({"x-errata-feed": ""}, 403),
        ({"content-type": "text/plain"}, 415),
    ],
)
def test_what_is_not_signed_by_its_feed_is_refused(
    installation: Installation, ledger: Ledger, headers: dict[str, str], status: int
) -> None:
    before = states(ledger)
    response = signed(client_of(installation, ledger), statement("Togo", "Lomé"), **headers)
    assert response.status_code == status
    assert states(ledger) == before


def test_a_signature_of_another_body_or_key_and_other_routes_are_refused(
    installation: Installation, ledger: Ledger
) -> None:
    client, before = client_of(installation, ledger), states(ledger)
    assert signed(client, statement("Togo", "Lomé"), key="another").status_code == 401
    good = hmac.new(KEY.encode(), b"{}", hashlib.sha256).hexdigest()
    changed = signed(client, statement("Togo", "Lomé"), **{"x-errata-signature": "sha256=" + good})
    assert changed.status_code == 401
    headers = {"x-errata-feed": "signed", "x-errata-signature": "sha256=" + good}
    assert client.post("/v1/rollback", json={"to": 0, "reason": "x"}, headers=headers).status_code == 403
    assert states(ledger) == before


def test_cloud_events_in_all_three_forms(installation: Installation, ledger: Ledger) -> None:
    client = client_of(installation, ledger)
    said = {"subject": "Togo", "relation": "capital", "object": "Lomé"}
    event = {
        "specversion": "1.0", "id": "1", "source": "https://news.example", "type": "correction",
        "time": "2026-01-02T03:04:05Z", "data": said,
    }  # fmt: skip
    (row,) = rows(signed(client, event, **{"content-type": "application/cloudevents+json"}))
    found = stored(ledger, row["correction"])
    assert found["source"] == "https://news.example"
    assert found["order_key"].startswith("2026-01-02T03:04:05")
    both = [event, {**event, "id": "2", "data": {**said, "subject": "Cuba", "object": "Havana"}}]
    batch = rows(signed(client, both, **{"content-type": "application/cloudevents-batch+json"}))
    assert [one["outcome"] for one in batch] == ["duplicate", "accepted"]
    binary = {f"ce-{key}": str(event[key]) for key in ("specversion", "source", "type", "time")}
    (row,) = rows(signed(client, {**said, "subject": "Oman", "object": "Muscat"}, **binary, **{"ce-id": "3"}))
    assert row["outcome"] == "accepted"
    for broken in ({**event, "specversion": "0.3"}, {**event, "id": ""}, {**event, "data": 5}, [], 5, {}):
        answer = signed(client, broken, **{"content-type": "application/cloudevents+json"})
        assert answer.status_code == 422, broken


def test_the_same_key_gives_the_same_answer_and_nothing_new(
    installation: Installation, ledger: Ledger
) -> None:
    client, said = client_of(installation, ledger), statement("Togo", "Lomé")
    first = rows(signed(client, said, **{"idempotency-key": "k1"}))
    before = states(ledger)
    assert rows(signed(client, said, **{"idempotency-key": "k1"})) == first
    assert states(ledger) == before
    other = signed(client, statement("Togo", "Kara"), **{"idempotency-key": "k1"})
    assert other.status_code == 422
    assert signed(client, said, **{"idempotency-key": "k" * 129}).status_code == 422
    event = {"specversion": "1.0", "id": "9", "source": "s", "type": "t", "data": {**said, "subject": "Mali",
             "prompt": "The capital of Mali is"}}  # fmt: skip
    kind = {"content-type": "application/cloudevents+json"}
    assert rows(signed(client, event, **kind)) == rows(signed(client, event, **kind))


def test_a_feed_brings_no_more_than_its_rate_and_is_paused_when_it_is_poisoned(
    installation: Installation, ledger: Ledger
) -> None:
    rules = '[admission]\ndeny_relations = ["capital"]\n'
    client = client_of(installation, ledger, far=False, rules=rules)
    headers = {"x-errata-feed": "slow"}
    three = [statement(f"Land {n}", "Town", relation="anthem") for n in range(3)]
    refused = client.post("/v1/corrections", json=three, headers=headers)
    assert (refused.status_code, refused.json()["code"]) == (429, "rate_limited")
    denied = client.post("/v1/corrections", json=[statement("A", "B"), statement("C", "D")], headers=headers)
    assert [row["outcome"] for row in rows(denied)] == ["quarantined", "quarantined"]
    with ledger.read() as connection:
        assert "denied" in connection.execute(select(quarantine.c.reason)).scalars().all()
    paused = client.post("/v1/corrections", json=three[:1], headers=headers)
    assert (paused.status_code, paused.json()["retryable"]) == (503, True)


def test_a_paused_feed_is_told_to_come_back(installation: Installation, ledger: Ledger) -> None:
    client = client_of(installation, ledger)
    pause(ledger, model="default", feed="signed", who="ann", reason="looking")
    assert signed(client, statement("Togo", "Lomé")).status_code == 503
