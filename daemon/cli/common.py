"""What the daemon's commands share: opening the ledger, and printing tables and lines."""

from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from typing import TYPE_CHECKING, Annotated, Any

import typer

from daemon.core.terminal import make_console
from daemon.core.text import printable

if TYPE_CHECKING:  # imported where they are used, so that a command starts fast
    from daemon.core.config.settings import Config
    from daemon.core.ledger.ledger import Ledger

Limit = Annotated[int, typer.Option(min=1, max=1_000_000, help="at most this many rows")]
Reason = Annotated[str, typer.Option(help="why; it stands in the audit")]
_CELL = 2_000
_WHOLE = frozenset(
    {"fact", "id", "fact_id", "correction", "correction_id", "content", "state", "probe", "result"}
    | {"since", "created", "at", "opened", "closed", "admitted"}
)
"""Columns that are copied from the screen, or read at a glance: a narrow terminal folds others first."""


@contextmanager
def open_ledger(config: "Config") -> "Iterator[Ledger]":
    """The ledger that is there; a command never founds one by mistake.

    Raises:
        LedgerError: there is none, or it is damaged. UnavailableError: no answer.
    """
    from daemon.core.ledger.ledger import Ledger

    ledger = Ledger.open_existing(config.ledger_url)
    try:
        yield ledger
    finally:
        ledger.close()


def need_reason(text: str) -> str:
    """The reason that was given; an empty one is a usage error."""
    if not text.strip():
        raise typer.BadParameter("say why", param_hint="--reason")
    return text.strip()


def say(text: str) -> None:
    """A line for people on stdout; foreign text in it cannot steer the terminal."""
    make_console().print(printable(text, _CELL), markup=False, highlight=False, soft_wrap=True)


def print_table(title: str, columns: Sequence[str], rows: Sequence[Mapping[str, Any]]) -> None:
    """A table on a terminal; in a pipe the same columns, without colour, borders or cuts."""
    from rich import box
    from rich.table import Table
    from rich.text import Text

    out = make_console()
    if not rows:
        say(f"no {title}")
        return
    look = {"title": title, "box": box.SIMPLE_HEAD} if out.is_terminal else {"box": None}
    table = Table(**look, pad_edge=False, collapse_padding=True)
    for column in columns:
        table.add_column(column, overflow="fold", no_wrap=column in _WHOLE)
    for row in rows:
        table.add_row(*(Text(cell(row.get(key))) for key in columns))
    out.print(table)


def cell(value: object) -> str:
    """A value as a table shows it, with nothing in it that could steer a terminal."""
    if value is None:
        return "-"
    if isinstance(value, bool):
        return "yes" if value else "no"
    if isinstance(value, float):
        return f"{value:.4g}"
    return printable(str(value), _CELL)


def moment(text: str | None) -> str | None:
    """A moment of the ledger for people: to the second."""
    return None if text is None else f"{text[:10]} {text[11:19]}Z"


def age(seconds: float | None) -> str:
    """A duration for people: 42s, 5m10s, 3h02m, 4d06h."""
    if seconds is None:
        return "-"
    whole = int(seconds)
    if whole < 60:
        return f"{seconds:.1f}s" if whole < 10 else f"{whole}s"
    if whole < 3600:
        return f"{whole // 60}m{whole % 60:02d}s"
    if whole < 86_400:
        return f"{whole // 3600}h{whole % 3600 // 60:02d}m"
    return f"{whole // 86_400}d{whole % 86_400 // 3600:02d}h"
