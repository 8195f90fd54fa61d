"""The HTTP API: health, metrics, status, lists, corrections and rollbacks."""

from collections.abc import Callable
from typing import Annotated, Any, Self

from fastapi import FastAPI, Query, Response
from fastapi.responses import JSONResponse
from prometheus_client import CONTENT_TYPE_LATEST
from pydantic import BaseModel, ConfigDict, Field, model_validator
from sqlalchemy import Connection, func, select

from daemon.api.alerts import ALERTS_PATH, MAX_ALERTS_BYTES, add_alerts
from daemon.api.corrections import WHO, add_corrections, signed_feeds
from daemon.api.errors import answer_errors
from daemon.api.guard import BodyLimit, Guard
from daemon.api.page import add_page
from daemon.core.broker import ping
from daemon.core.config.settings import Config
from daemon.core.errors import ErrataError
from daemon.core.ledger import chain
from daemon.core.ledger.ledger import Ledger
from daemon.core.ledger.schema import audit
from daemon.core.tokens import read_token
from daemon.core.version import version
from daemon.views.chain import revision_list
from daemon.views.facts import fact_list
from daemon.views.lists import incident_list
from daemon.views.prometheus import render
from daemon.views.prometheus_watch import StageHistory
from daemon.views.status import status
from daemon.watch.rollback import roll_back, taken_back_warning

MAX_BODY_BYTES = 1 << 20  # a thousand corrections fit
LARGEST = (1 << 31) - 1  # the largest integer of a column in PostgreSQL


class RollbackRequest(BaseModel):
    """The body of ``POST /v1/rollback``: one of ``to`` and ``last_good``, and the reason."""

    model_config = ConfigDict(extra="forbid", strict=True)

    reason: str = Field(min_length=1, max_length=1000)
    to: int | None = Field(None, ge=0, le=LARGEST)
    last_good: bool = False
    expected_head: int | None = Field(None, ge=0, le=LARGEST)

    @model_validator(mode="after")
    def _one_target(self) -> Self:
        if (self.to is None) is not self.last_good:
            raise ValueError("give either to or last_good")
        return self


def make_app(ledger: Ledger, config: Config) -> FastAPI:
    """The application over one ledger, or ConfigError if a file with a token cannot be read or is empty."""
    app = FastAPI(title="Errata", version=version(), docs_url=None, redoc_url=None, openapi_url=None)
    for file in config.api.token_files.values():
        read_token(file)
    app.add_middleware(BodyLimit, limit=MAX_BODY_BYTES, limits={ALERTS_PATH: MAX_ALERTS_BYTES})
    # added last, so it sees each request first
    app.add_middleware(Guard, ledger=ledger, settings=config.api, signed_feeds=signed_feeds(config))
    answer_errors(app)
    _add_health(app, ledger, config)
    _add_views(app, ledger, config)
    _add_changes(app, ledger, config)
    add_corrections(app, ledger, config)
    add_alerts(app, ledger, config)
    add_page(app, ledger, config)
    return app


def _add_health(app: FastAPI, ledger: Ledger, config: Config) -> None:
    @app.get("/healthz")
    def healthz() -> dict[str, bool]:
        """Answer that the process runs."""
        return {"ok": True}

    @app.get("/readyz")
    def readyz() -> JSONResponse:
        """Answer whether ledger and Redis respond and the model has a head, with 503 if not."""
        newest_audit_row, model = select(func.max(audit.c.id)), config.model.name
        checks = {
            "ledger": _check(lambda: _read(ledger, lambda connection: connection.execute(newest_audit_row))),
            "redis": _check(lambda: ping(config)),
            "head": _check(lambda: _read(ledger, lambda connection: chain.head(connection, model))),
        }
        ok = all(check["ok"] for check in checks.values())
        return JSONResponse({"ok": ok, "checks": checks}, status_code=200 if ok else 503)

    history = StageHistory()

    @app.get("/metrics")
    def metrics() -> Response:
        """The metrics in Prometheus' text format."""
        return Response(render(ledger, config, history), media_type=CONTENT_TYPE_LATEST)


def _add_views(app: FastAPI, ledger: Ledger, config: Config) -> None:
    model = config.model.name

    @app.get("/v1/status")
    def get_status() -> dict[str, Any]:
        """The document that ``errata status --json`` prints."""
        with ledger.read() as connection:
            return status(connection, ledger.clock, model)

    @app.get("/v1/revisions")
    def get_revisions(
        limit: Annotated[int, Query(ge=1, le=1000)] = 50,
        before: Annotated[int | None, Query(ge=0, le=LARGEST)] = None,
    ) -> dict[str, Any]:
        """The newest revisions below ``before``, newest first."""
        with ledger.read() as connection:
            return {"model": model, "revisions": revision_list(connection, model, limit, before)}

    @app.get("/v1/incidents")
    def get_incidents(
        limit: Annotated[int, Query(ge=1, le=1000)] = 50, unsettled: bool = False
    ) -> dict[str, Any]:
        """The newest incidents, newest first: what each accuses, and what was done about it."""
        with ledger.read() as connection:
            rows = incident_list(connection, limit=limit, model=model, unsettled=unsettled)
        return {"model": model, "incidents": rows}

    @app.get("/v1/facts")
    def get_facts(
        limit: Annotated[int, Query(ge=1, le=1000)] = 100, offset: Annotated[int, Query(ge=0, le=LARGEST)] = 0
    ) -> dict[str, Any]:
        """The facts in the order of their first corrections."""
        with ledger.read() as connection:
            return {"model": model, "facts": fact_list(connection, model, limit=limit, offset=offset)}


def _add_changes(app: FastAPI, ledger: Ledger, config: Config) -> None:
    model = config.model.name

    @app.post("/v1/rollback")
    def post_rollback(body: RollbackRequest) -> dict[str, Any]:
        """Append a revision with the content of an earlier one and answer with the new head."""
        with ledger.read() as connection:
            warning = "" if body.to is None else taken_back_warning(connection, model, body.to)
        number = roll_back(ledger, model, config.store_path, who=WHO, **body.model_dump())
        with ledger.read() as connection:
            row = chain.get_revision(connection, model, number)
        answer = {"model": model, "head": number, "content_of": row["content_of"]}
        return answer | ({"warning": warning} if warning else {})


def _check(look: Callable[[], object]) -> dict[str, Any]:
    """The result of a check: ok, or the error that it raised."""
    try:
        look()
    except ErrataError as error:
        return {"ok": False, "code": error.code, "message": error.message, "hint": error.hint}
    return {"ok": True}


def _read(ledger: Ledger, look: Callable[[Connection], object]) -> None:
    with ledger.read() as connection:
        look(connection)
