"""Alerts from an Alertmanager or Grafana that call for a rollback.

An alert accuses the revision that its label ``revision`` names, or else head, unless it began before head was
made. It opens an incident of that revision, if head holds it. An alert about one of our probes opens none,
because the judge has opened one. Each alert of a delivery is read on its own.
"""

from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from datetime import datetime
from typing import Any, Self

from pydantic import AwareDatetime, BaseModel, ConfigDict, Field
from sqlalchemy import Connection, RowMapping

from daemon.core.clock import from_text, to_text
from daemon.core.config.settings import Config
from daemon.core.errors import NotFoundError
from daemon.core.ledger import audit
from daemon.core.ledger.chain import head, newest_edit, path
from daemon.core.ledger.incidents import find_incident, incidents_of_alerts, open_incident
from daemon.core.ledger.ledger import Ledger
from daemon.core.ledger.revision import parse_revision
from daemon.core.log import get_logger
from daemon.core.names import UNSETTLED, ProbeResult, Reaction, RollbackCause, Subject
from daemon.core.text import printable
from daemon.watch.judge import react

log = get_logger("errata.alerts")
WHO = "alertmanager"
ACTION = "rollback"
_SHOWN = 20  # alerts that an audit row names
# Grafana sends these in the place of an alert whose query gave no data or failed, with the rule's labels.
_NO_DATA_NAMES = frozenset({"datasourcenodata", "datasourceerror"})
_NO_DATA_LABELS = frozenset({"rulename", "datasource_uid"})
_NO_DATA_REASONS = ("nodata", "error", "missingseries")  # of a rule that is set to fire without data


class Alert(BaseModel):
    """One alert of a delivery, with the fields that are used here."""

    model_config = ConfigDict(extra="ignore")

    status: str = Field(max_length=32)
    labels: dict[str, str]
    annotations: Any = None
    startsAt: AwareDatetime  # noqa: N815  # Alertmanager's name
    fingerprint: Any = None

    @property
    def name(self) -> str:
        """The name of its rule, made safe to show."""
        return printable(self.labels.get("alertname", "unnamed"), 50)

    @property
    def probe(self) -> str:
        """The name under which its incidents are kept."""
        return f"alert:{self.name}"

    @property
    def episode(self) -> str:
        """A key that is the same for every delivery of one firing."""
        mark = self.fingerprint if isinstance(self.fingerprint, str) and self.fingerprint else self.name
        return f"{printable(mark, 64)}@{to_text(self.startsAt)}"

    @property
    def revision(self) -> int | None:
        """The revision that it names, or NotFoundError if that is no number."""
        named = self.labels.get("revision", "").strip()
        return parse_revision(named) if named else None

    @property
    def lacks_data(self) -> bool:
        """Whether it fires because there were no data, which says nothing about the model."""
        notes = self.annotations if isinstance(self.annotations, dict) else {}
        reason = str(notes.get("grafana_state_reason", "")).lower()
        return (
            self.labels.get("alertname", "").lower() in _NO_DATA_NAMES
            or self.labels.keys() >= _NO_DATA_LABELS
            or any(word in reason for word in _NO_DATA_REASONS)
        )

    def wants_rollback(self, model: str) -> bool:
        """Whether it fires, calls for a rollback, is not about another model, and there were data."""
        ours = (self.labels.get("model") or model) == model
        asks = self.status == "firing" and ours and self.labels.get("action") == ACTION
        return asks and not self.lacks_data


@dataclass(frozen=True)
class Delivery:
    """The alerts of a delivery that could be read, and how many could not."""

    alerts: Sequence[Alert]
    unreadable: int = 0

    @classmethod
    def read(cls, elements: Iterable[object]) -> Self:
        """Read each element on its own, so that an odd one costs no other."""
        alerts, unreadable = [], 0
        for element in elements:
            try:
                alert = Alert.model_validate(element)
                _ = alert.revision, alert.episode
            except (ValueError, OverflowError, NotFoundError):  # pydantic's error is a ValueError
                unreadable += 1
            else:
                alerts.append(alert)
        return cls(alerts, unreadable)


def receive(ledger: Ledger, config: Config, delivery: Delivery) -> Reaction:
    """Answer a delivery with at most one rollback, and record it in the audit."""
    model = config.model.name
    asking = [alert for alert in delivery.alerts if alert.wants_rollback(model)]
    accused = _open_incidents(ledger, model, asking) if asking else frozenset()
    # an alert about a probe that names no revision means whatever the judge found degraded
    every = any(_is_about_probe(alert) and alert.revision is None for alert in asking)
    reaction = Reaction.NOTHING
    if every or accused:
        reaction = react(ledger, config, WHO, RollbackCause.ALERT, None if every else accused)
    with ledger.write() as connection:
        names = sorted({alert.name for alert in delivery.alerts})[:_SHOWN]
        details = {
            "alerts": len(delivery.alerts), "unreadable": delivery.unreadable, "asking": len(asking),
            "accused": sorted(accused)[:_SHOWN], "reaction": str(reaction), "names": names,
            "episodes": sorted({alert.episode for alert in asking})[:_SHOWN],
        }  # fmt: skip
        audit.record(connection, ledger.clock.now(), WHO, "alert", model, ", ".join(names), details)
    if delivery.unreadable:
        log.warning("alerts that cannot be read", model=model, count=delivery.unreadable)
    return reaction


def _is_about_probe(alert: Alert) -> bool:
    return bool(alert.labels.get("probe"))


def _open_incidents(ledger: Ledger, model: str, asking: Sequence[Alert]) -> frozenset[int]:
    """Open incidents for alerts that are not about our probes, and return the revisions that all accuse."""
    accused = {alert.revision for alert in asking if _is_about_probe(alert)}
    foreign = [alert for alert in asking if not _is_about_probe(alert)]
    if foreign:
        with ledger.write() as connection:
            try:
                desk = _Desk(connection, model, ledger.clock.now())
            except NotFoundError:
                return frozenset()
            accused |= {desk.accuse(alert) for alert in foreign}
    return frozenset(number for number in accused if number is not None)


class _Desk:
    """Opens the incidents of one delivery, with a view of head and of the incidents of earlier alerts."""

    def __init__(self, connection: Connection, model: str, now: datetime) -> None:
        self._connection, self._model, self._now = connection, model, now
        self._head = head(connection, model)
        self._held = path(connection, model, self._head["number"])
        self._newest_edit = newest_edit(connection, model, self._held)
        self._known: dict[tuple[int, str], RowMapping] = {}
        self._by_episode: dict[str, int] = {}
        self._answered: dict[str, int] = {}  # alert -> the rollback that took back what it accused last
        for row in incidents_of_alerts(connection, model):
            self._note(row)

    def accuse(self, alert: Alert) -> int | None:
        """Open the incident of the revision that an alert accuses, and return its number, or None."""
        number = self._accused(alert)
        if number is None:
            return None
        there = self._known.get((number, alert.probe))
        if there is None or _fires_anew(alert, there):
            message = f"the alert {alert.name} fires"
            open_incident(
                self._connection, self._now, self._model, number, alert.probe, message,
                subject=Subject.REVISION, result=ProbeResult.DEGRADED, since=number - 1,
                alert=alert.episode,
            )  # fmt: skip
            opened = find_incident(self._connection, self._model, number, alert.probe)
            if opened is not None:
                self._note(opened)
        return number

    def _note(self, row: RowMapping) -> None:
        self._known[row["revision"], row["probe"]] = row
        self._by_episode[row["alert"]] = row["revision"]
        if row["rollback_revision"] is not None and row["revision"] not in self._held:
            newest = max(self._answered.get(row["probe"], 0), row["rollback_revision"])
            self._answered[row["probe"]] = newest

    def _accused(self, alert: Alert) -> int | None:
        """The revision that an alert means, if head holds it and an edit made it."""
        number = alert.revision
        if number is None:
            number = self._by_episode.get(alert.episode)
        if number is None:
            number = self._head["number"] if self._means_head(alert) else 0
        return number if number in self._held and self._newest_edit > 0 and number > 0 else None

    def _means_head(self, alert: Alert) -> bool:
        """Whether an alert that names no revision is about what head holds.

        It began after head was made, and an edit came since a rollback that took back what it accused before.
        """
        began_after = alert.startsAt >= from_text(self._head["created_at"])
        return began_after and self._newest_edit > self._answered.get(alert.probe, 0)


def _fires_anew(alert: Alert, there: RowMapping) -> bool:
    """Whether an alert began to fire again after its incident was settled."""
    if there["state"] in UNSETTLED or there["alert"] == alert.episode:
        return False
    return there["closed_at"] is None or alert.startsAt > from_text(there["closed_at"])
