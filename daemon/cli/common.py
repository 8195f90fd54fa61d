"""Open the ledger, and print tables and lines, for the daemon's commands."""

from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from typing import TYPE_CHECKING, Annotated, Any

import typer

from daemon.core.command import print_json
from daemon.core.terminal import make_console
from daemon.core.text import printable

if TYPE_CHECKING:  # imported where they are used, so that a command starts fast
    from daemon.core.config.settings import Config
    from daemon.core.ledger.ledger import Ledger

Limit = Annotated[int, typer.Option(min=1, max=1_000_000, help="at most this many rows")]
Reason = Annotated[str, typer.Option(help="why, for the audit")]
_CELL = 2_000  # characters of a table cell or line
_WHOLE = frozenset(
    {"fact", "id", "fact_id", "correction", "correction_id", "content", "state", "probe", "result"}
    | {"since", "created", "at", "opened", "closed", "admitted"}
)
"""Columns that a narrow terminal does not fold, because they are copied or read at a glance."""


@contextmanager
def open_ledger(config: "Config") -> "Iterator[Ledger]":
    """The existing ledger of the configuration, closed at the end of the block.

    Raises:
        LedgerError: there is no ledger, or it is damaged. UnavailableError: its database does not answer.
    """
    from daemon.core.ledger.ledger import Ledger

    ledger = Ledger.open_existing(config.ledger_url)
    try:
        yield ledger
    finally:
        ledger.close()


def need_reason(text: str) -> str:
    """The reason without white space around it, or a usage error when it is empty."""
    if not text.strip():
        raise typer.BadParameter("a reason is required", param_hint="--reason")
    return text.strip()


def say(text: str) -> None:
    """Print a line on stdout, with control characters escaped."""
    make_console().print(printable(text, _CELL), markup=False, highlight=False, soft_wrap=True)


def answer(document: Any, line: str, as_json: bool) -> None:
    """Print a command's answer, as JSON or as a line."""
    print_json(document) if as_json else say(line)


def answer_table(
    document: Any, title: str, columns: Sequence[str], rows: Sequence[Mapping[str, Any]], as_json: bool
) -> None:
    """Print a command's answer, as JSON or as a table."""
    print_json(document) if as_json else print_table(title, columns, rows)


def print_table(title: str, columns: Sequence[str], rows: Sequence[Mapping[str, Any]]) -> None:
    """Print rows as a table, in a pipe without colour, borders or cuts."""
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
    """The text of a value in a table, with control characters escaped."""
    if value is None:
        return "-"
    if isinstance(value, bool):
        return "yes" if value else "no"
    if isinstance(value, float):
        return f"{value:.4g}"
    return printable(str(value), _CELL)


def moment(text: str | None) -> str | None:
    """A time of the ledger, to the second."""
    return None if text is None else f"{text[:10]} {text[11:19]}Z"


def lost_lines(processes: Sequence[Mapping[str, Any]]) -> list[str]:
    """A line about each role whose processes were all lost."""
    lost: dict[str, str] = {}
    for row in processes:  # those that live come first
        text = f"{row['role']} {row['name']} was last heard of {age(row['heartbeat_age_seconds'])} ago"
        lost.setdefault(row["role"], f"{text} and did not end in order" if row["life"] == "lost" else "")
    return [line for line in lost.values() if line]


def object_text(value: str | None) -> str:
    """The object of a correction, or a note that the fact is retracted."""
    return "(no longer true)" if value is None else value


def age(seconds: float | None) -> str:
    """A duration in at most two units, such as 42s, 5m10s, 3h02m or 4d06h."""
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
