"""The status page: its routes, its content read in one transaction, its security headers."""

from functools import cache
from importlib import resources
from typing import Any

from fastapi import FastAPI, Response
from jinja2 import Environment, StrictUndefined
from sqlalchemy import Connection

from daemon.api.page_curves import HEIGHT, WIDTH, curves
from daemon.core.config.settings import Config
from daemon.core.ledger.ledger import Ledger
from daemon.core.text import printable
from daemon.core.version import version
from daemon.views.chain import revision_detail, revision_list
from daemon.views.lists import accused, incident_list
from daemon.views.status import status

_REVISIONS, _INCIDENTS, _CORRECTIONS = 30, 10, 20  # newest rows that one page shows
_CELL = 200  # characters of a cell
_HEADERS = {
    "Content-Security-Policy": "default-src 'none'; style-src 'self'; img-src 'self'",
    "X-Content-Type-Options": "nosniff",
    "Referrer-Policy": "no-referrer",
    "Cache-Control": "no-store",
}


def add_page(app: FastAPI, ledger: Ledger, config: Config) -> None:
    """Add the routes of the page and its style sheet."""

    @app.get("/", include_in_schema=False)
    def page() -> Response:
        """The status page as HTML."""
        with ledger.read() as connection:
            shown = _content(connection, ledger, config.model.name)
        return Response(_template().render(**shown), media_type="text/html", headers=_HEADERS)

    @app.get("/page.css", include_in_schema=False)
    def style() -> Response:
        """The style sheet of the page."""
        return Response(_file("page.css"), media_type="text/css")


def _content(connection: Connection, ledger: Ledger, model: str) -> dict[str, Any]:
    now = status(connection, ledger.clock, model)
    head = now["head"]
    rows = revision_list(connection, model, _REVISIONS)
    return {
        "version": version(),
        "status": now,
        "revisions": rows,
        "curves": [] if head is None else curves(connection, model, head),
        "size": (WIDTH, HEIGHT),
        "incidents": incident_list(connection, limit=_INCIDENTS, model=model),
        "changes": _changes(connection, model, [row["number"] for row in rows]),
    }


def _changes(connection: Connection, model: str, numbers: list[int]) -> list[dict[str, Any]]:
    """The newest changes of facts, newest first, with the object before and after."""
    changes: list[dict[str, Any]] = []
    for number in numbers:
        detail = revision_detail(connection, model, number)
        before = {row["fact_id"]: row["object"] for row in detail["ended"]}
        after = {row["fact_id"]: row["object"] for row in detail["written"]}
        rows = {row["fact_id"]: row for row in (*detail["ended"], *detail["written"])}
        for fact, row in rows.items():
            change = {"before": before.get(fact), "after": after.get(fact), "revision": number}
            changes.append({"subject": row["subject"], "relation": row["relation"], **change})
            if len(changes) == _CORRECTIONS:
                return changes
    return changes


@cache
def _template() -> Any:
    environment = Environment(
        autoescape=True, undefined=StrictUndefined, trim_blocks=True, lstrip_blocks=True
    )
    environment.filters["shown"] = lambda value: "–" if value is None else printable(str(value), _CELL)
    environment.filters["accused"] = accused
    environment.filters["score"] = lambda value: "–" if value is None else f"{value:.4g}"
    environment.filters["moment"] = lambda text: "–" if text is None else f"{text[:10]} {text[11:19]}"
    return environment.from_string(_file("page.html"))


def _file(name: str) -> str:
    return (resources.files("daemon.api") / name).read_text(encoding="utf-8")
