"""``POST /v1/alerts``: where Alertmanager's webhook arrives."""

from fastapi import FastAPI

from daemon.core.config.settings import Config
from daemon.core.ledger.ledger import Ledger
from daemon.watch.alerts import Delivery, receive


def add_alerts(app: FastAPI, ledger: Ledger, config: Config) -> None:
    """Add the route; who may post to it is decided before, as for every change."""

    @app.post("/v1/alerts")
    def post_alerts(delivery: Delivery) -> dict[str, str]:
        """Take a delivery; says what was done about it."""
        return {"model": config.model.name, "reaction": str(receive(ledger, config, delivery))}
