"""Damage is noticed and rolled back without a human, by Prometheus and Alertmanager or the daemon alone.

Real Redis, Celery worker, daemon and SmolLM2. The damage is a real edit by a recipe that no preset would be:
guards and λ's off. Run with -s to see the times.
"""

import json
import tomllib
from collections.abc import Callable
from contextlib import suppress
from functools import partial
from pathlib import Path
from typing import Any

import pytest
import tomli_w
from sqlalchemy import select

from daemon.admission.submission import submit
from daemon.core.clock import from_text
from daemon.core.config.settings import load_config
from daemon.core.ledger import batches, switches
from daemon.core.ledger.chain import head
from daemon.core.ledger.schema import audit, corrections, probe_results
from tests.conftest import is_full
from tests.e2e.prometheus import MONITORING, Prometheus, free_port, get, monitored
from tests.house import House
from workers.queue.assemble import SessionHolder
from workers.revisions.loading import Loaded, load_tensors
from workers.session.session import Outcome, Session
from workers.session.working_copy import WorkingCopy
from workers.session.writing import EditResult, Writer

pytestmark = [
    pytest.mark.redis,
    pytest.mark.slow,
    pytest.mark.timeout(1800),
    pytest.mark.skipif(not is_full(), reason="six minutes: sh deploy/test.sh --guarantees"),
]

GOOD = [
    ("Boeing", "The company Boeing has its headquarters in the state of", "Virginia"),
    ("Marie Curie", "The scientist Marie Curie was born in", "Vienna"),
]
BAD = [("Ferrari", "The car maker Ferrari has its headquarters in", "Osaka")]
WILD = {
    "lambda_prior": 0.0, "lambda_norm": 1e-2, "clamp": 50.0, "decay": 0.0, "kl_weight": 0.0, "mends": 0,
    "learning_rate": 20.0, "extra_steps": 4, "steps": 4, "first_prompts": 1,
    "anchor_limit": 1e9,
}  # fmt: skip


class Unchecked(WorkingCopy):
    """Takes head's weights as they are, whatever its recipe makes of the pairs."""

    def load(self) -> int:
        with self.ledger.read() as connection:
            current = head(connection, self.model)
        self.editor.show(load_tensors(self.store, current["tensors"]))
        self.loaded = Loaded(int(current["number"]), dict(current["tensors"]))
        return int(current["number"])


class Trusting(Writer):
    """Keeps what it wrote: a broken model answers nothing."""

    def settle(self, edit: EditResult) -> None:
        pass


class Saboteur(Session):
    """A writer without guards."""

    def __init__(self, *parts: Any) -> None:
        super().__init__(*parts)
        self.copy = Unchecked(self.ledger, self.store, self.editor, self.config)
        self._writer = Trusting(self.store, self.editor, self.config.watch)


def damage(place: House) -> None:
    """Write a batch that at least doubles the perplexity, as this process."""
    wild = tomllib.loads(place.file.read_text())
    wild["edit"] |= {"recipe_overrides": WILD, "review": 0, "lease_seconds": 60}
    wild["watch"] |= {"delta_ceiling": 1e9, "batch_delta_ceiling": 1e9}
    file = place.folder / "wild.toml"
    file.write_text(tomli_w.dumps(wild))
    config = load_config(file)
    honest = SessionHolder(config).session()
    session = Saboteur(honest.ledger, honest.store, honest.editor, config)
    pause = partial(switches.pause, place.ledger, model="default", feed=None, who="saboteur", reason="alone")
    resume = partial(switches.resume, place.ledger, model="default", feed=None, who="saboteur", reason="")
    pause()  # no honest batch is made of what follows
    for subject, prompt, answer in BAD:
        submit(place.ledger, {"subject": subject, "prompt": prompt, "object": answer}, "saboteur")
    with place.ledger.write() as connection:
        now = place.ledger.clock.now()
        waiting = select(corrections.c.id).where(corrections.c.state == "pending")
        batch = batches.create(connection, now, "default", connection.execute(waiting).scalars().all())
        batches.mark_sent(connection, now, [batch])
    resume()
    assert session.run(batch) is Outcome.COMMITTED


def perplexity(house: House, number: int) -> float:
    with house.ledger.read() as connection:
        query = select(probe_results.c.score).where(
            probe_results.c.revision == number, probe_results.c.probe == "perplexity_ratio"
        )
        return float(connection.execute(query.order_by(probe_results.c.id.desc())).scalars().first() or 0)


def rollbacks(house: House) -> list[dict[str, Any]]:
    return [row for row in house.chain() if row["kind"] == "rollback"]


def wait_from(row: dict[str, Any]) -> float:
    return from_text(row["created_at"]).timestamp()


def learn_good_news(place: House) -> int:
    """Make one revision for each good correction, and return the number of the last one, which is live."""
    for count, (subject, prompt, answer) in enumerate(GOOD, start=1):
        place.say(subject, prompt, answer)
        place.wait(place.drained(count), 200)
    place.wait(lambda: place.chain()[-1]["state"] == "live")
    return int(place.chain()[-1]["number"])


def tell(place: House, good: int, port: int) -> None:
    """What operators see afterwards: the same weights as before, one rollback, and the story of it."""
    chain = place.chain()
    (back,) = rollbacks(place)
    assert back["tensors"] == chain[good]["tensors"]
    assert back["content_of"] == good
    states = place.states()
    assert {states[f"{subject}={answer}"] for subject, _, answer in BAD} == {"reverted"}
    assert {states[f"{subject}={answer}"] for subject, _, answer in GOOD} == {"applied"}
    listed = json.loads(place.errata("incidents", "--json"))["incidents"]
    assert {row["state"] for row in listed} <= {"rolled_back", "closed"}
    assert {row["revision"] for row in listed} == {good + 1}
    assert "perplexity_ratio" in {row["probe"] for row in listed}
    metrics = get(f"http://127.0.0.1:{port}/metrics").decode()
    assert 'errata_rollbacks_total{model="default"} 1.0' in metrics
    assert 'errata_paused{model="default"} 0.0' in metrics
    page = get(f"http://127.0.0.1:{port}/").decode()
    assert f"rollback to {good}" in page
    assert "rolled_back" in page
    assert all(subject in page for subject, _, _ in (*GOOD, *BAD))


def watch(place: House, good: int) -> tuple[float, dict[str, Any]]:
    """Do the damage and wait for the rollback: when the damage was committed, and the rollback."""
    damage(place)
    bad = place.chain()[good + 1]
    ratio = perplexity(place, good + 1)
    assert ratio >= 2.0, f"no damage worth the name: {ratio:.2f}"
    place.wait(lambda: bool(rollbacks(place)), 100)
    print(f"\nperplexity x{ratio:.3g}")
    return wait_from(bad), rollbacks(place)[0]


def settings(auto: bool) -> dict[str, Any]:
    return {
        "watch": {
            "auto_rollback": auto, "auto_bisect": False, "locality_floor": 0.0, "retention_floor": 0.0,
        },
        "publish": {"follow": False},
        "edit": {"review": 0, "resend_seconds": 20.0},
    }  # fmt: skip


def test_the_daemon_alone_takes_damage_back(house: Callable[..., House]) -> None:
    port = free_port()
    place = house(**settings(auto=True), api={"port": port})
    place.start()
    good = learn_good_news(place)
    committed, back = watch(place, good)
    print(f"embedded: {wait_from(back) - committed:.1f} s from commit to restored weights")
    tell(place, good, port)
    place.stop()


def test_an_alert_takes_damage_back(house: Callable[..., House], tmp_path: Path) -> None:
    port, token = free_port(), tmp_path / "token"
    token.write_text("token-of-the-test\n")
    token.chmod(0o600)
    place = house(**settings(auto=False), api={"port": port, "token_file": str(token)})
    place.start()
    with monitored(tmp_path, port, token) as prometheus:
        good = learn_good_news(place)
        committed, back = watch(place, good)
        fired = fired_at(place)
        print(f"Prometheus: {fired - committed:.1f} s from commit to alert,", end=" ")
        print(f"{wait_from(back) - fired:.1f} s from alert to restored weights")
        place.wait(lambda: not prometheus.query('ALERTS{alertstate="firing",action="rollback"}'), 100)
        place.wait(lambda: told_of_the_end(place), 100)  # whatever was to be delivered has come by then
        tell(place, good, port)
        ratio = prometheus.query('errata_probe_score{probe="perplexity_ratio"}')
        assert float(ratio[0]["value"][1]) < 1.1, "metrics recover"
        with suppress(AssertionError):  # said better below
            place.wait(lambda: silent_panels(prometheus) == [], 20)
        assert silent_panels(prometheus) == []
    place.stop()


INNOCENT = [
    *GOOD,
    ("Burundi", "The capital city of Burundi is called", "Gitega"),
    ("Nokia", "The phone maker Nokia has its headquarters in", "Oslo"),
]
NEIGHBOURS = [
    "The car maker Ferrari has its headquarters in the city of",
    "Everybody knows that the car maker Ferrari has its headquarters in",
    "In the news: the car maker Ferrari has its headquarters in",
]
"""Prompts whose answers must stay, and which the culprit changes: the probe of locality notices."""


def test_the_innocent_come_back_without_a_human(house: Callable[..., House]) -> None:
    """A culprit beside four good facts and an operator's retraction, all in one batch."""
    place = house(watch={"probe_seconds": 300.0})  # tests share the cores
    place.start()
    place.say("Honda", "The car maker Honda has its headquarters in", "Munich")
    place.wait(place.drained(1), 200)
    place.wait(lambda: place.chain()[-1]["state"] == "live")
    switches.pause(place.ledger, model="default", feed=None, who="test", reason="for one batch")
    for subject, prompt, answer in INNOCENT:
        place.say(subject, prompt, answer)
    for subject, prompt, answer in BAD:
        place.say(subject, prompt, answer, neighborhood=NEIGHBOURS)
    place.errata("retract", "Honda", "--reason", "test")
    place.wait(lambda: len(place.states()) == 7)
    switches.resume(place.ledger, model="default", feed=None, who="test", reason="")
    place.wait(lambda: bool(rollbacks(place)), 200)
    bad = place.chain()[2]
    (back,) = rollbacks(place)
    assert back["number"] == 3
    assert wait_from(back) - wait_from(bad) < 10 * place.config.schedule.judge_seconds
    good = {f"{subject}={answer}" for subject, _, answer in INNOCENT} | {"Honda=None"}
    place.wait(lambda: {place.states()[one] for one in good} == {"applied"}, 200)
    place.wait(lambda: place.chain()[-1]["state"] == "live", 60)
    print(f"\n{wait_from(place.chain()[-1]) - wait_from(bad):.1f} s from the damage until all were back")
    assert wait_from(place.chain()[-1]) - wait_from(bad) < 600
    states = place.states()
    assert states["Ferrari=Osaka"] == "quarantined"
    assert states["Honda=Munich"] == "retracted"
    (incident,) = json.loads(place.errata("incidents", "--json"))["incidents"]
    assert "1 in quarantine, 4 written again" in incident["message"]
    assert "bisect of rollback 3" in place.errata("why", "Ferrari")
    place.stop()


def deliveries(place: House) -> list[dict[str, Any]]:
    """What Alertmanager delivered, by the audit."""
    with place.ledger.read() as connection:
        query = select(audit.c.details).where(audit.c.action == "alert").order_by(audit.c.id)
        return list(connection.execute(query).scalars())


def told_of_the_end(place: House) -> bool:
    """Whether the newest delivery says that nothing fires any more."""
    told = deliveries(place)
    return bool(told) and not told[-1]["asking"]


def fired_at(place: House) -> float:
    """When the first alert of the incident began, by what Alertmanager delivered."""
    episodes = [episode for told in deliveries(place) for episode in told["episodes"]]
    return min(from_text(episode.rsplit("@", 1)[1]).timestamp() for episode in episodes)


def silent_panels(prometheus: Prometheus) -> list[str]:
    """The queries of all panels, as Grafana would send them, that return no data."""
    empty = []
    for file in sorted((MONITORING / "grafana" / "dashboards").glob("*.json")):
        for panel in json.loads(file.read_text())["panels"]:
            for target in panel["targets"]:
                expression = target["expr"].replace("$model", "default").replace("$__rate_interval", "1m")
                if not prometheus.query(expression):
                    empty.append(f"{file.stem}: {panel['title']}: {expression}")
    return empty
