"""What the HTTP API shows and accepts over a real ledger, from whom, and how it refuses."""

import asyncio
import json
from collections.abc import Iterator
from typing import Any

import pytest
from fastapi.testclient import TestClient
from sqlalchemy import select

from daemon.api import app as api_app
from daemon.api.app import MAX_BODY_BYTES, make_app
from daemon.core.config.settings import Config
from daemon.core.errors import ConfigError, UnavailableError
from daemon.core.ledger.ledger import Ledger
from daemon.core.ledger.schema import audit
from tests.installation import Installation
from tests.ledgers import held, statement, states

TOKEN = "t0ken-of-the-test"
HERE = "http://127.0.0.1:8765"


@pytest.fixture
def ledger(installation: Installation) -> Iterator[Ledger]:
    opened = installation.tell_story()
    yield opened
    opened.close()


@pytest.fixture
def client(ledger: Ledger, installation: Installation) -> TestClient:
    """A client on this machine without a configured token."""
    return connect(ledger, installation.config)


@pytest.fixture
def guarded(ledger: Ledger, installation: Installation) -> TestClient:
    """A client that bears no token yet, to an API that wants one."""
    token = installation.folder / "token"
    token.write_text(f"{TOKEN}\n")
    installation.write(f'[api]\ntoken_file = "{token}"')
    return connect(ledger, installation.config, address="203.0.113.9", base="http://errata.example")


def connect(ledger: Ledger, config: Config, address: str = "127.0.0.1", base: str = HERE) -> TestClient:
    app = make_app(ledger, config)
    return TestClient(app, base_url=base, client=(address, 50000), raise_server_exceptions=False)


def actions(ledger: Ledger) -> list[tuple[str, str]]:
    with ledger.read() as connection:
        return [(row.who, row.action) for row in connection.execute(select(audit).order_by(audit.c.id))]


def problem(response: Any, status: int, code: str) -> dict[str, Any]:
    body: dict[str, Any] = response.json()
    assert (response.status_code, body["code"]) == (status, code), body
    assert {"code", "message", "hint", "retryable"} <= body.keys()
    return body


def test_health_needs_nothing(client: TestClient) -> None:
    assert client.get("/healthz").json() == {"ok": True}


def test_ready_only_when_ledger_redis_and_head_are(
    client: TestClient, monkeypatch: pytest.MonkeyPatch
) -> None:
    response = client.get("/readyz")
    assert response.status_code == 503
    checks = response.json()["checks"]
    assert (checks["ledger"]["ok"], checks["head"]["ok"], checks["redis"]["ok"]) == (True, True, False)
    assert checks["redis"]["code"] == "unavailable"
    monkeypatch.setattr(api_app, "ping", lambda config: None)
    response = client.get("/readyz")
    assert (response.status_code, response.json()["ok"]) == (200, True)


@pytest.mark.redis
def test_ready_with_a_real_redis(installation: Installation, ledger: Ledger, redis_url: str) -> None:
    installation.write(f'redis_url = "{redis_url}"')
    assert connect(ledger, installation.config).get("/readyz").status_code == 200


def test_not_ready_without_a_head(installation: Installation, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(api_app, "ping", lambda config: None)
    ledger = Ledger.open(installation.config.ledger_url)
    response = connect(ledger, installation.config).get("/readyz")
    assert (response.status_code, response.json()["checks"]["head"]["code"]) == (503, "not_found")
    ledger.close()


def test_metrics_are_the_exporters(client: TestClient) -> None:
    response = client.get("/metrics")
    assert response.headers["content-type"].startswith("text/plain")
    assert 'errata_revision_head{model="default"} 4.0' in response.text


def test_status_revisions_and_facts_agree(client: TestClient) -> None:
    assert client.get("/v1/status").json()["head"] == 4
    numbers = [row["number"] for row in client.get("/v1/revisions?limit=2").json()["revisions"]]
    assert numbers == [4, 3]
    assert [r["number"] for r in client.get("/v1/revisions?before=2").json()["revisions"]] == [1, 0]
    facts = client.get("/v1/facts?limit=2&offset=1").json()["facts"]
    assert [row["subject"] for row in facts] == ["Chad", "Fiji"]


@pytest.mark.parametrize(
    "path",
    [
        "/v1/facts?limit=0",
        "/v1/facts?limit=99999",
        "/v1/facts?offset=99999999999999999999",
        "/v1/revisions?before=x",
        "/v1/revisions?before=99999999999999999999",
    ],
)
def test_a_query_out_of_range_is_refused(client: TestClient, path: str) -> None:
    problem(client.get(path), 422, "invalid_request")


@pytest.mark.parametrize("path", ["/docs", "/redoc", "/openapi.json", "/v1/secrets"])
def test_what_is_not_there_is_404_in_the_same_form(client: TestClient, path: str) -> None:
    problem(client.get(path), 404, "http")


def test_one_correction_is_admitted_and_audited(client: TestClient, ledger: Ledger) -> None:
    response = client.post("/v1/corrections", json=statement("Togo", "Lomé"))
    assert response.status_code == 202
    (row,) = response.json()["corrections"]
    assert row["outcome"] == "accepted"
    assert states(ledger)[row["correction"]] == "pending"
    assert actions(ledger)[-1] == ("api", "submit")


def test_a_list_answers_in_its_order(client: TestClient) -> None:
    said = statement("Togo", "Lomé", day=1)
    body = [said, statement("Peru", "cusco"), said]
    rows = client.post("/v1/corrections", json=body).json()["corrections"]
    assert [row["outcome"] for row in rows] == ["accepted", "confirmed", "duplicate"]


def test_one_bad_item_refuses_the_whole_list(client: TestClient, ledger: Ledger) -> None:
    before = states(ledger)
    body = [statement("Togo", "Lomé"), {"subject": "Oman", "object": "Muscat"}]
    answer = problem(client.post("/v1/corrections", json=body), 422, "invalid_correction")
    assert answer["reason"] == "schema"
    assert answer["message"].startswith("item 2: ")
    assert states(ledger) == before


@pytest.mark.parametrize(
    ("said", "reason"),
    [
        (statement("Togo", "Lomé", effective_at="2999-01-01T00:00:00Z"), "future"),
        (statement("Togo", "Lomé", prompt="The capital is"), "subject_not_in_prompt"),
        (statement("Togo", "Lo\x07mé"), "charset"),
        (statement("Togo", "Lomé", model="another"), "schema"),
        (statement("Togo", "Lomé", surprise=1), "schema"),
    ],
)
def test_a_refused_correction_has_its_reason(
    client: TestClient, ledger: Ledger, said: dict[str, Any], reason: str
) -> None:
    before = states(ledger)
    response = client.post("/v1/corrections", json=said)
    assert problem(response, 422, "invalid_correction")["reason"] == reason
    assert states(ledger) == before


@pytest.mark.parametrize("body", ['"text"', "7", "null", "{", "[" * 100_000])
def test_what_is_no_object_is_refused(client: TestClient, body: str) -> None:
    response = client.post("/v1/corrections", content=body, headers={"content-type": "application/json"})
    assert response.status_code in (400, 422)
    assert response.json()["code"] in ("invalid_request", "http")


def test_an_item_that_is_no_object_names_its_place(client: TestClient) -> None:
    answer = problem(client.post("/v1/corrections", json=[statement("A", "B"), 5]), 422, "invalid_correction")
    assert answer["message"].startswith("item 2: ")


def test_rollback_to_a_revision(client: TestClient, ledger: Ledger) -> None:
    response = client.post("/v1/rollback", json={"to": 0, "reason": "demo", "expected_head": 4})
    assert (response.status_code, response.json()) == (200, {"model": "default", "head": 5, "content_of": 0})
    assert held(ledger) == {}
    assert actions(ledger)[-1] == ("api", "rollback")


def test_rollback_to_the_last_good_one(client: TestClient) -> None:
    response = client.post("/v1/rollback", json={"last_good": True, "reason": "demo"})
    assert response.json()["content_of"] == 1, "2 holds what head holds"


def test_incidents_say_what_they_accuse(client: TestClient) -> None:
    (row,) = client.get("/v1/incidents").json()["incidents"]
    assert (row["subject"], row["revision"], row["rollback_revision"]) == ("revision", 3, 4)
    assert client.get("/v1/incidents?unsettled=true").json() == {"model": "default", "incidents": []}


def test_a_rollback_to_what_was_taken_back_says_who_did_and_why(client: TestClient) -> None:
    answer = client.post("/v1/rollback", json={"to": 3, "reason": "I insist"}).json()
    assert answer["content_of"] == 3
    assert answer["warning"].startswith("revision 3 was taken back by judge (judge) in revision 4: ")


def test_a_wrong_expected_head_is_a_conflict(client: TestClient, ledger: Ledger) -> None:
    body = {"to": 0, "reason": "demo", "expected_head": 3}
    answer = problem(client.post("/v1/rollback", json=body), 409, "stale_head")
    assert answer["retryable"] is True
    assert held(ledger) == {"Peru": "Cusco", "Chad": "Abéché"}


def test_an_unknown_revision_is_not_found(client: TestClient) -> None:
    problem(client.post("/v1/rollback", json={"to": 99, "reason": "demo"}), 404, "not_found")


@pytest.mark.parametrize(
    "body",
    [
        {"to": 0},
        {"to": 0, "reason": ""},
        {"reason": "x"},
        {"to": 0, "last_good": True, "reason": "x"},
        {"to": -1, "reason": "x"},
        {"to": "0", "reason": "x"},
        {"to": 0, "reason": "x", "force": True},
    ],
)
def test_an_unclear_rollback_is_refused(client: TestClient, ledger: Ledger, body: dict[str, Any]) -> None:
    problem(client.post("/v1/rollback", json=body), 422, "invalid_request")
    assert client.get("/v1/status").json()["head"] == 4


# -- who may ----------------------------------------------------------------------------------------


def test_with_a_token_file_only_its_token_opens(guarded: TestClient, ledger: Ledger) -> None:
    body = {"to": 0, "reason": "demo"}
    wrong = ["", "Bearer", "Bearer ", "Bearer wrong", f"Basic {TOKEN}", f"Bearer {TOKEN}x", TOKEN, "Bearer é"]
    for header in wrong:
        headers = {"authorization": header.encode("latin-1")} if header else {}
        response = guarded.post("/v1/rollback", json=body, headers=headers)
        problem(response, 401, "unauthorised")
        assert response.headers["www-authenticate"] == "Bearer"
    assert held(ledger) != {}
    response = guarded.post("/v1/rollback", json=body, headers={"authorization": f"Bearer {TOKEN}"})
    assert response.status_code == 200


def test_this_machine_needs_the_token_too(
    ledger: Ledger, installation: Installation, guarded: TestClient
) -> None:
    here = connect(ledger, installation.config)
    problem(here.post("/v1/rollback", json={"to": 0, "reason": "demo"}), 401, "unauthorised")


def test_looking_needs_no_token(guarded: TestClient) -> None:
    for path in ("/healthz", "/metrics", "/v1/status", "/v1/facts", "/v1/revisions"):
        assert guarded.get(path).status_code == 200, path


def test_a_new_token_holds_at_once(guarded: TestClient, installation: Installation) -> None:
    (installation.folder / "token").write_text("another")
    body = {"to": 0, "reason": "demo"}
    old, new = ({"authorization": f"Bearer {token}"} for token in (TOKEN, "another"))
    problem(guarded.post("/v1/rollback", json=body, headers=old), 401, "unauthorised")
    assert guarded.post("/v1/rollback", json=body, headers=new).status_code == 200


@pytest.mark.parametrize("content", ["", " \n", None])
def test_without_a_token_in_its_file_nobody_gets_in(
    guarded: TestClient, ledger: Ledger, installation: Installation, content: str | None
) -> None:
    file = installation.folder / "token"
    file.unlink() if content is None else file.write_text(content)
    for header in ("Bearer ", "Bearer"):
        response = guarded.post(
            "/v1/rollback", json={"to": 0, "reason": "x"}, headers={"authorization": header}
        )
        problem(response, 503, "unavailable")
    with pytest.raises(ConfigError, match="token_file"):
        make_app(ledger, installation.config)


@pytest.mark.parametrize("address", ["192.0.2.1", "::ffff:192.0.2.1", "testclient", "0.0.0.0", ""])
def test_without_a_token_file_others_may_only_look(
    ledger: Ledger, installation: Installation, address: str
) -> None:
    far = connect(ledger, installation.config, address=address)
    assert far.get("/v1/status").status_code == 200
    problem(far.post("/v1/rollback", json={"to": 0, "reason": "demo"}), 403, "forbidden")
    problem(far.post("/v1/corrections", json=statement("Togo", "Lomé")), 403, "forbidden")


@pytest.mark.parametrize(
    ("address", "base"),
    [("::1", "http://[::1]:8765"), ("::ffff:127.0.0.1", HERE), ("127.0.0.1", "http://localhost:1")],
)
def test_every_way_to_this_machine_is_local(
    ledger: Ledger, installation: Installation, address: str, base: str
) -> None:
    near = connect(ledger, installation.config, address=address, base=base)
    assert near.post("/v1/corrections", json=statement("Togo", "Lomé")).status_code == 202


@pytest.mark.parametrize(
    "headers",
    [
        {"host": "evil.example"},  # a name that was bound to 127.0.0.1 from outside
        {"host": "[::1"},
        {"host": ""},
        {"origin": "https://evil.example"},
        {"origin": "null"},
        {"origin": "http://127.0.0.1:9999"},
    ],
)
def test_a_page_of_another_origin_cannot_use_a_browser_here(
    client: TestClient, ledger: Ledger, headers: dict[str, str]
) -> None:
    response = client.post("/v1/rollback", json={"to": 0, "reason": "demo"}, headers=headers)
    problem(response, 403, "forbidden")
    assert held(ledger) != {}


def test_a_page_of_this_origin_may(client: TestClient) -> None:
    response = client.post("/v1/rollback", json={"to": 0, "reason": "demo"}, headers={"origin": HERE})
    assert response.status_code == 200


@pytest.mark.parametrize(
    "kind", ["text/plain", "application/x-www-form-urlencoded", "multipart/form-data", ""]
)
def test_a_body_that_a_form_could_send_is_refused(client: TestClient, ledger: Ledger, kind: str) -> None:
    body = json.dumps({"to": 0, "reason": "demo"})
    headers = {"content-type": kind} if kind else {}
    problem(client.post("/v1/rollback", content=body, headers=headers), 415, "media_type")
    assert held(ledger) != {}


def test_a_refusal_comes_before_the_body_is_read(guarded: TestClient) -> None:
    response = guarded.post("/v1/rollback", content="{ no json", headers={"content-type": "application/json"})
    problem(response, 401, "unauthorised")


# -- limits and errors ------------------------------------------------------------------------------


def test_a_body_above_the_limit_is_refused_declared_or_not(client: TestClient, ledger: Ledger) -> None:
    before = states(ledger)
    large = b" " * MAX_BODY_BYTES + json.dumps(statement("Togo", "Lomé")).encode()

    def pieces() -> Iterator[bytes]:
        yield from (large[start : start + 65536] for start in range(0, len(large), 65536))

    for content in (large, pieces()):
        headers = {"content-type": "application/json"}
        response = client.post("/v1/corrections", content=content, headers=headers)
        problem(response, 413, "too_large")
    assert states(ledger) == before


def test_a_body_that_is_declared_too_large_is_not_read(ledger: Ledger, installation: Installation) -> None:
    sent: list[Any] = []

    async def receive() -> Any:
        raise AssertionError("the body was read")

    async def send(message: Any) -> None:
        sent.append(message)

    headers = [(b"host", b"127.0.0.1"), (b"content-type", b"application/json")]
    headers.append((b"content-length", str(MAX_BODY_BYTES + 1).encode()))
    scope = {
        "type": "http", "method": "POST", "path": "/v1/corrections", "query_string": b"", "headers": headers,
        "client": ("127.0.0.1", 1), "http_version": "1.1", "scheme": "http",
    }  # fmt: skip
    asyncio.run(make_app(ledger, installation.config)(scope, receive, send))
    assert sent[0]["status"] == 413


def test_a_body_at_the_limit_is_taken(client: TestClient) -> None:
    said = json.dumps(statement("Togo", "Lomé")).encode()
    body = b" " * (MAX_BODY_BYTES - len(said)) + said
    response = client.post("/v1/corrections", content=body, headers={"content-type": "application/json"})
    assert response.status_code == 202


def test_a_ledger_that_does_not_answer_is_503(client: TestClient, monkeypatch: pytest.MonkeyPatch) -> None:
    def read(self: Ledger) -> None:
        raise UnavailableError("the ledger does not answer", hint="check the disk")

    monkeypatch.setattr(Ledger, "read", read)
    answer = problem(client.get("/v1/status"), 503, "unavailable")
    assert (answer["hint"], answer["retryable"]) == ("check the disk", True)
    assert client.get("/metrics").status_code == 200
    assert client.get("/readyz").json()["checks"]["ledger"]["ok"] is False


def test_a_bug_says_nothing_of_its_insides(client: TestClient, monkeypatch: pytest.MonkeyPatch) -> None:
    def broken(*_: object) -> None:
        raise RuntimeError("secret path /home/x")

    monkeypatch.setattr(api_app, "status", broken)
    response = client.get("/v1/status")
    problem(response, 500, "internal")
    assert "secret" not in response.text
