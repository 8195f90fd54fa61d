"""The route ``POST /v1/alerts`` for the webhooks of Alertmanager and Grafana."""

import json
from typing import Any

from fastapi import FastAPI, Request
from fastapi.concurrency import run_in_threadpool
from fastapi.exceptions import RequestValidationError

from daemon.core.config.settings import Config
from daemon.core.ledger.ledger import Ledger
from daemon.watch.alerts import Delivery, receive

ALERTS_PATH = "/v1/alerts"
MAX_ALERTS_BYTES = 32 << 20  # ten thousand alerts of 3 KiB fit
_SCHEMA = {
    "requestBody": {
        "required": True,
        "content": {
            "application/json": {
                "schema": {
                    "type": "object",
                    "required": ["alerts"],
                    "properties": {"alerts": {"type": "array", "items": {"type": "object"}}},
                }
            }
        },
    }
}


def add_alerts(app: FastAPI, ledger: Ledger, config: Config) -> None:
    """Add the route, which ``Guard`` protects like every other change."""

    @app.post(ALERTS_PATH, openapi_extra=_SCHEMA)
    async def post_alerts(request: Request) -> dict[str, Any]:
        """React to the alerts, and answer with the reaction and the number of alerts that were odd."""
        return await run_in_threadpool(_answer, await request.body())

    def _answer(body: bytes) -> dict[str, Any]:
        delivery = Delivery.read(_elements(body))
        reaction = receive(ledger, config, delivery)
        counts = {"alerts": len(delivery.alerts), "unreadable": delivery.unreadable}
        return {"model": config.model.name, "reaction": str(reaction), **counts}


def _elements(body: bytes) -> list[object]:
    """The elements of ``alerts`` in a body, or RequestValidationError if there is no such list."""
    try:
        document = json.loads(body)
    except (ValueError, RecursionError) as error:
        raise _invalid("the body is not JSON") from error
    alerts = document.get("alerts") if isinstance(document, dict) else None
    if not isinstance(alerts, list):
        raise _invalid("the body has no list of alerts")
    return alerts


def _invalid(message: str) -> RequestValidationError:
    return RequestValidationError([{"loc": ("body",), "msg": message, "type": "value_error"}])
