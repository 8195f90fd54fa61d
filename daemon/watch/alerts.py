"""Alerts from an Alertmanager that call for a rollback.

An alert about one of our probes opens no incident, because the judge has opened one. Any other, such as one
about a metric of the serving side, opens an incident of head, unless it began before head existed.
"""

from collections.abc import Sequence
from datetime import datetime

from pydantic import AwareDatetime, BaseModel, ConfigDict, Field
from sqlalchemy import Connection, select

from daemon.core.clock import from_text, to_text
from daemon.core.config.settings import Config
from daemon.core.errors import NotFoundError
from daemon.core.ledger import audit
from daemon.core.ledger.chain import head
from daemon.core.ledger.incidents import open_incident
from daemon.core.ledger.ledger import Ledger
from daemon.core.ledger.schema import incidents
from daemon.core.names import Reaction, RollbackCause
from daemon.core.text import printable
from daemon.watch.judge import react

WHO = "alertmanager"
ACTION = "rollback"
_SHOWN = 20  # alerts that an audit row names


class Alert(BaseModel):
    """One alert of a delivery, with the fields that are used here."""

    model_config = ConfigDict(extra="ignore")

    status: str = Field(max_length=32)
    labels: dict[str, str] = Field(max_length=64)
    startsAt: AwareDatetime  # noqa: N815  # Alertmanager's name
    fingerprint: str = Field("", max_length=64)

    @property
    def name(self) -> str:
        """The name of its rule, made safe to show."""
        return printable(self.labels.get("alertname", "unnamed"), 50)

    @property
    def episode(self) -> str:
        """A key that is the same for every delivery of one firing."""
        return f"{printable(self.fingerprint, 64)}@{to_text(self.startsAt)}"

    def wants_rollback(self, model: str) -> bool:
        """Whether it fires, calls for a rollback, and is not about another model."""
        ours = self.labels.get("model", model) == model
        return self.status == "firing" and ours and self.labels.get("action") == ACTION


class Delivery(BaseModel):
    """The body that Alertmanager posts to a webhook (version 4)."""

    model_config = ConfigDict(extra="ignore")

    alerts: list[Alert] = Field(max_length=1000)


def receive(ledger: Ledger, config: Config, delivery: Delivery) -> Reaction:
    """Answer a delivery with at most one rollback for an incident, and record it in the audit."""
    model = config.model.name
    asking = [alert for alert in delivery.alerts if alert.wants_rollback(model)]
    _open_incidents(ledger, model, asking)
    reaction = react(ledger, config, WHO, RollbackCause.ALERT) if asking else Reaction.NOTHING
    with ledger.write() as connection:
        names = sorted({alert.name for alert in delivery.alerts})[:_SHOWN]
        details = {"alerts": len(delivery.alerts), "asking": len(asking), "reaction": str(reaction)}
        details |= {"names": names, "episodes": sorted({alert.episode for alert in asking})[:_SHOWN]}
        audit.record(connection, ledger.clock.now(), WHO, "alert", model, ", ".join(names), details)
    return reaction


def _open_incidents(ledger: Ledger, model: str, asking: Sequence[Alert]) -> None:
    """Open incidents for the alerts that are not about our probes."""
    foreign = [alert for alert in asking if "probe" not in alert.labels]
    if foreign:
        with ledger.write() as connection:
            for alert in foreign:
                _open(connection, ledger.clock.now(), model, alert)


def _open(connection: Connection, now: datetime, model: str, alert: Alert) -> None:
    """Open an incident of head, unless the alert was answered or began before head was made."""
    try:
        current = head(connection, model)
    except NotFoundError:
        return
    probe = f"alert:{alert.name}"
    same = (incidents.c.revision == current["number"]) & (incidents.c.probe == probe)
    answered = (incidents.c.alert == alert.episode) | same
    if connection.execute(select(incidents.c.id).where(incidents.c.model == model, answered)).first():
        return
    if current["number"] == 0 or alert.startsAt < from_text(current["created_at"]):
        return  # head holds no edit, or is newer than the alert
    number, message = current["number"], f"the alert {alert.name} fires"
    open_incident(connection, now, model, number, probe, message, since=number - 1, alert=alert.episode)
