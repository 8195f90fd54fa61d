"""``POST /v1/alerts``: where Alertmanager's webhook arrives."""

from fastapi import FastAPI

from daemon.alerts import Delivery, receive
from daemon.core.config import Config
from daemon.core.ledger import Ledger


def add_alerts(app: FastAPI, ledger: Ledger, config: Config) -> None:
    """Add the route; who may post to it is decided before, as for every change."""

    @app.post("/v1/alerts")
    def post_alerts(delivery: Delivery) -> dict[str, str]:
        """Take a delivery; says what was done about it."""
        return {"model": config.model.name, "reaction": str(receive(ledger, config, delivery))}
