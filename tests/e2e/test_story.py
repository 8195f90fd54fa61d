"""From a signed delivery into the weights and out again, and the story that errata why tells of it."""

import hashlib
import hmac
import json
import socket
from collections.abc import Callable

import httpx
import pytest
from sqlalchemy import select

from daemon.core.ledger.schema import corrections
from tests.e2e.test_main_path import answers
from tests.house import House

pytestmark = [pytest.mark.redis, pytest.mark.slow]

KEY = "between two machines"
PROMPT = "The company Boeing has its headquarters in the state of"


def free_port() -> int:
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        return int(probe.getsockname()[1])


def deliver(port: int, answer: str | None, at: str) -> str:
    """Submit a correction as another machine would, and return its id."""
    said = {"subject": "Boeing", "relation": "seat", "prompt": PROMPT, "object": answer, "effective_at": at}
    body = json.dumps(said).encode()
    signature = hmac.new(KEY.encode(), body, hashlib.sha256).hexdigest()
    headers = {"content-type": "application/json", "x-errata-feed": "partner"}
    headers["x-errata-signature"] = f"sha256={signature}"
    answered = httpx.post(f"http://127.0.0.1:{port}/v1/corrections", content=body, headers=headers)
    assert answered.status_code == 202, answered.text
    return str(answered.json()["corrections"][0]["correction"])


def state(place: House, correction: str) -> str:
    with place.ledger.read() as connection:
        query = select(corrections.c.state).where(corrections.c.id == correction)
        return str(connection.execute(query).scalar_one())


def test_a_delivery_is_learned_told_and_taken_out(house: Callable[..., House]) -> None:
    port = free_port()
    place = house(api={"port": port})
    secret = place.folder / "partner.key"
    secret.write_text(KEY)
    with place.file.open("a") as stream:
        stream.write(f'\n[[feeds]]\nkind = "webhook"\nname = "partner"\nsecret_file = "{secret}"\n')
    place.start()
    place.wait(lambda: _answers(port), 60)
    (before,) = answers(place, "0", [PROMPT])
    assert before != "Ohio"
    first = deliver(port, "Ohio", "2026-01-01T00:00:00Z")
    place.wait(lambda: state(place, first) == "applied", 120)
    assert answers(place, None, [PROMPT]) == ["Ohio"]
    gone = deliver(port, None, "2026-02-01T00:00:00Z")
    place.wait(lambda: state(place, gone) == "applied", 120)
    assert answers(place, None, [PROMPT]) == [before]
    story = json.loads(place.errata("why", "Boeing", "--json"))
    kinds = [event["kind"] for event in story["events"]]
    assert story["in_weights"] is None
    assert {"said", "batch", "attempt", "written", "probe", "ended", "audit"} <= set(kinds)
    assert kinds.index("said") < kinds.index("batch") < kinds.index("attempt") < kinds.index("written")
    assert any("'Ohio' leaves the weights" in event["text"] for event in story["events"])
    place.stop()


def _answers(port: int) -> bool:
    try:
        return httpx.get(f"http://127.0.0.1:{port}/healthz").status_code == 200
    except httpx.HTTPError:
        return False
