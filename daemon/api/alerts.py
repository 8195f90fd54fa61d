"""The route ``POST /v1/alerts`` for the webhook of Alertmanager."""

from fastapi import FastAPI

from daemon.core.config.settings import Config
from daemon.core.ledger.ledger import Ledger
from daemon.watch.alerts import Delivery, receive


def add_alerts(app: FastAPI, ledger: Ledger, config: Config) -> None:
    """Add the route, which ``Guard`` protects like every other change."""

    @app.post("/v1/alerts")
    def post_alerts(delivery: Delivery) -> dict[str, str]:
        """React to the alerts and answer with the reaction."""
        return {"model": config.model.name, "reaction": str(receive(ledger, config, delivery))}
