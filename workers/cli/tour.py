"""The tour of ``deploy/quickstart.sh``: the whole way on one screen, real parts underneath."""

import os
import subprocess
import sys
import time
from collections import Counter
from collections.abc import Callable, Sequence
from pathlib import Path

from rich.console import Console
from rich.progress import (
    BarColumn,
    MofNCompleteColumn,
    Progress,
    SpinnerColumn,
    TaskID,
    TextColumn,
    TimeElapsedColumn,
)
from rich.table import Table
from sqlalchemy import RowMapping, select

from daemon.core.config.settings import CONFIG_VARIABLE, Config
from daemon.core.errors import UnavailableError
from daemon.core.ledger.chain import get_revision, head
from daemon.core.ledger.ledger import Ledger
from daemon.core.ledger.schema import corrections, feed_outcomes, probe_results, quarantine, revisions
from daemon.core.names import CorrectionState
from workers.cli.probe import show_revision
from workers.editing.editor import Editor
from workers.revisions.loading import load_tensors
from workers.revisions.store import Store

_SETTLED = {
    CorrectionState.APPLIED,
    CorrectionState.CONFIRMED,
    CorrectionState.SUPERSEDED,
    CorrectionState.RETRACTED,
    CorrectionState.REVERTED,
    CorrectionState.QUARANTINED,
}
_ANSWER_TOKENS = 8
WHO = "tour"


def run_tour(config: Config, config_file: Path | None, *, once: bool) -> None:
    """Drain the feeds, show what changed, roll back and forth, and go on watching unless ``once``.

    Raises:
        UnavailableError: the embedded set-up ended with an error; its log is named.
    """
    console = Console()
    environment = dict(os.environ)
    if config_file is not None:
        environment[CONFIG_VARIABLE] = str(config_file.resolve())
    console.rule("1  the feeds are read and the model is edited")
    _errata(environment, "prepare")
    _drain(config, environment, console)
    ledger = Ledger.open_existing(config.ledger_url)
    number, editor = show_revision(config, None)
    _show_admission(ledger, console)
    console.rule("2  what the model said before, and says now")
    _show_answers(ledger, config, editor, console)
    _show_revisions(ledger, config, console)
    if number > 0:
        console.rule("3  a rollback, and back again")
        _roll_back_and_forth(ledger, config, editor, console)
    ledger.close()
    commands = ("errata status", "errata facts", 'errata ask "…"', "errata rollback --to 0 --reason …")
    console.print("\nTry: " + ", ".join(f"[bold]{command}[/]" for command in commands))
    if not once:
        console.rule("4  watching the feeds; Ctrl-C ends it")
        _errata(environment, "run")


def _errata(environment: dict[str, str], *arguments: str) -> None:
    """Run a command of errata in the foreground."""
    command = [sys.executable, "-m", "daemon.cli", *arguments]
    try:
        status = subprocess.run(command, env=environment, check=False).returncode
    except KeyboardInterrupt:
        return
    if status != 0:
        raise UnavailableError(f"errata {' '.join(arguments)} ended with status {status}")


def _drain(config: Config, environment: dict[str, str], console: Console) -> None:
    """``errata run --once`` with its log in a file and its progress, read from the ledger, on the screen."""
    log_file = config.data_dir / "logs" / "tour.log"
    log_file.parent.mkdir(parents=True, exist_ok=True)
    with log_file.open("ab") as log:
        command = [sys.executable, "-m", "daemon.cli", "run", "--once"]
        process = subprocess.Popen(command, env=environment, stdout=log, stderr=subprocess.STDOUT)
    columns = (
        SpinnerColumn(),
        TextColumn("{task.description}"),
        BarColumn(),
        MofNCompleteColumn(),
        TimeElapsedColumn(),
    )
    try:
        with Progress(*columns, console=console) as bar:
            task = bar.add_task("starting", total=None)
            while process.poll() is None:
                _update(bar, task, config)
                time.sleep(0.3)
            _update(bar, task, config)
    except KeyboardInterrupt:
        process.terminate()
        process.wait()
        raise
    if process.returncode != 0:
        raise UnavailableError(f"errata run ended with status {process.returncode}", hint=f"see {log_file}")


def _update(bar: Progress, task: TaskID, config: Config) -> None:
    ledger = Ledger.open(config.ledger_url)
    with ledger.read() as connection:
        states = Counter(connection.execute(select(corrections.c.state)).scalars())
    ledger.close()
    settled = sum(count for state, count in states.items() if state in _SETTLED)
    waiting = sum(states.values()) - settled
    text = f"editing {waiting} corrections" if waiting else "corrections settled"
    bar.update(task, description=text, completed=settled, total=sum(states.values()) or None)


def _show_admission(ledger: Ledger, console: Console) -> None:
    with ledger.read() as connection:
        outcomes = connection.execute(select(feed_outcomes).order_by(feed_outcomes.c.feed)).mappings().all()
        held = connection.execute(select(quarantine).order_by(quarantine.c.id)).mappings().all()
    table = Table("feed", "outcome", "items", title="admission")
    for row in outcomes:
        table.add_row(row["feed"], row["outcome"], str(row["count"]))
    console.print(table)
    if held:
        table = Table("id", "feed", "where", "reason", "message", title="quarantine")
        for row in held:
            table.add_row(str(row["id"]), row["feed"], row["position"], row["reason"], row["message"])
        console.print(table)


def _show_answers(ledger: Ledger, config: Config, editor: Editor, console: Console) -> None:
    rows = _taught(ledger, config)
    prompts = [row["prompt"] for row in rows]
    now = editor.model.greedy(prompts, _ANSWER_TOKENS)
    with editor.base_weights():
        before = editor.model.greedy(prompts, _ANSWER_TOKENS)
    table = Table("prompt", "before", "now", "correction", "state")
    for row, old, new in zip(rows, before, now, strict=True):
        table.add_row(row["prompt"], old.strip(), new.strip(), row["object"], row["state"])
    console.print(table)


def _taught(ledger: Ledger, config: Config) -> Sequence[RowMapping]:
    mine = (corrections.c.model == config.model.name) & corrections.c.object.is_not(None)
    with ledger.read() as connection:
        return (
            connection.execute(select(corrections).where(mine).order_by(corrections.c.seq)).mappings().all()
        )


def _show_revisions(ledger: Ledger, config: Config, console: Console) -> None:
    model = config.model.name
    with ledger.read() as connection:
        chain = connection.execute(
            select(revisions).where(revisions.c.model == model).order_by(revisions.c.number)
        ).mappings()
        table = Table("revision", "kind", "state", "facts", "content", "probes", title="revisions")
        for row in chain.all():
            mine = (probe_results.c.model == model) & (probe_results.c.revision == row["number"])
            probes = connection.execute(select(probe_results).where(mine)).mappings()
            text = ", ".join(f"{p['probe']} {p['score']:.3f}" for p in probes if p["score"] is not None)
            number, facts = str(row["number"]), str(row["active_facts"])
            table.add_row(number, row["kind"], row["state"], facts, row["content"][:12], text)
    console.print(table)


def _roll_back_and_forth(ledger: Ledger, config: Config, editor: Editor, console: Console) -> None:
    """Base weights, then the edited ones again, bit for bit; the chain grows by two revisions."""
    model = config.model.name
    row = next((r for r in _taught(ledger, config) if r["state"] == CorrectionState.APPLIED), None)
    with ledger.read() as connection:
        edited = head(connection, model)
    say = _speaker(ledger, config, editor, console, row["prompt"] if row else None)
    say("head", int(edited["number"]))
    base = ledger.rollback(model, 0, WHO, "the tour shows a rollback", expected_head=edited["number"])
    say("rolled back to 0", base)
    again = ledger.rollback(model, edited["number"], WHO, "the tour takes it back", expected_head=base)
    say(f"and to {edited['number']} again", again)


def _speaker(
    ledger: Ledger, config: Config, editor: Editor, console: Console, prompt: str | None
) -> Callable[[str, int], None]:
    store = Store(config.store_path)

    def say(what: str, number: int) -> None:
        with ledger.read() as connection:
            row = get_revision(connection, config.model.name, number)
        editor.show(load_tensors(store, row["tensors"]))
        answer = f"{prompt} → {editor.model.greedy([prompt], _ANSWER_TOKENS)[0].strip()}" if prompt else ""
        console.print(f"revision {number:>3}  {what:<22} content {row['content'][:12]}  {answer}")

    return say
