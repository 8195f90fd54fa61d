"""The tour of ``deploy/quickstart.sh``, which runs the real parts and shows each step on one screen."""

import os
import signal
import subprocess
import sys
import time
from collections import Counter
from collections.abc import Callable, Sequence
from pathlib import Path

from rich.console import Console
from rich.table import Table
from sqlalchemy import RowMapping, select

from daemon.core.blobs import check_in
from daemon.core.config.settings import CONFIG_VARIABLE, Config
from daemon.core.errors import UnavailableError
from daemon.core.ledger.chain import get_revision, head
from daemon.core.ledger.ledger import Ledger
from daemon.core.ledger.schema import corrections, feed_outcomes, probe_results, quarantine, revisions
from daemon.core.names import CorrectionState, RollbackCause
from daemon.core.orphans import leashed
from workers.cli.probe import show_revision
from workers.editing.editor import Editor
from workers.progress import progress_bars
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
_ANSWER_TOKENS = 8  # enough for the objects of the demonstration feed
_LOOK = 0.3  # seconds between two looks into the ledger for the progress bar
WHO = "tour"


def run_tour(config: Config, config_file: Path | None, *, once: bool) -> None:
    """Drain the feeds, show what changed, roll back and forth, and follow the feeds unless ``once``.

    Raises:
        UnavailableError: a command ended with an error. The hint names its log.
    """
    console = Console()
    environment = dict(os.environ)
    if config_file is not None:
        environment[CONFIG_VARIABLE] = str(config_file.resolve())
    console.rule("1  read the feeds and edit the model")
    _errata(environment, "prepare")
    _drain(config, environment, console)
    ledger = Ledger.open_existing(config.ledger_url)
    number, editor = show_revision(config, None)
    _show_admission(ledger, console)
    console.rule("2  answers before and after the edits")
    _show_answers(ledger, config, editor, console)
    _show_revisions(ledger, config, console)
    if number > 0:
        console.rule("3  roll back, then forward again")
        _roll_back_and_forth(ledger, config, editor, console)
    ledger.close()
    commands = ("errata status", "errata facts", 'errata ask "…"', "errata rollback --to 0 --reason …")
    console.print("\nTry: " + ", ".join(f"[bold]{command}[/]" for command in commands))
    if not once:
        console.rule("4  follow the feeds (Ctrl-C ends)")
        _errata(environment, "run")


def _errata(environment: dict[str, str], *arguments: str) -> None:
    """Run a command of ``errata`` in the foreground."""
    command = [sys.executable, "-m", "daemon.cli", *arguments]
    try:
        status = subprocess.run(leashed(command, signal.SIGTERM), env=environment, check=False).returncode
    except KeyboardInterrupt:
        return
    if status != 0:
        raise UnavailableError(f"errata {' '.join(arguments)} ended with status {status}")


def _drain(config: Config, environment: dict[str, str], console: Console) -> None:
    """Run ``errata run --once`` with its log in a file, and show its progress from the ledger."""
    log_file = config.data_dir / "logs" / "tour.log"
    log_file.parent.mkdir(parents=True, exist_ok=True)
    with log_file.open("ab") as log:
        command = [sys.executable, "-m", "daemon.cli", "run", "--once"]
        held = leashed(command, signal.SIGTERM)
        process = subprocess.Popen(held, env=environment, stdout=log, stderr=subprocess.STDOUT)
    try:
        with progress_bars(console) as step:
            while process.poll() is None:
                step("corrections settled", *_count_settled(config))
                time.sleep(_LOOK)
            step("corrections settled", *_count_settled(config))
    except KeyboardInterrupt:
        process.terminate()
        process.wait()
        raise
    if process.returncode != 0:
        raise UnavailableError(f"errata run ended with status {process.returncode}", hint=f"see {log_file}")


def _count_settled(config: Config) -> tuple[int, int]:
    """The number of corrections that need no more work, and of all."""
    ledger = Ledger.open(config.ledger_url)
    with ledger.read() as connection:
        states = Counter(connection.execute(select(corrections.c.state)).scalars())
    ledger.close()
    return sum(count for state, count in states.items() if state in _SETTLED), states.total()


def _show_admission(ledger: Ledger, console: Console) -> None:
    with ledger.read() as connection:
        outcomes = connection.execute(select(feed_outcomes).order_by(feed_outcomes.c.feed)).mappings().all()
        entries = connection.execute(select(quarantine).order_by(quarantine.c.id)).mappings().all()
    table = Table("feed", "outcome", "items", title="admission")
    for row in outcomes:
        table.add_row(row["feed"], row["outcome"], str(row["count"]))
    console.print(table)
    if entries:
        table = Table("id", "feed", "where", "reason", "message", title="quarantine")
        for row in entries:
            table.add_row(str(row["id"]), row["feed"], row["position"], row["reason"], row["message"])
        console.print(table)


def _show_answers(ledger: Ledger, config: Config, editor: Editor, console: Console) -> None:
    rows = _taught_rows(ledger, config)
    prompts = [row["prompt"] for row in rows]
    now = editor.model.greedy(prompts, _ANSWER_TOKENS)
    with editor.base_weights():
        before = editor.model.greedy(prompts, _ANSWER_TOKENS)
    table = Table("prompt", "before", "now", "correction", "state", title="answers")
    for row, old, new in zip(rows, before, now, strict=True):
        table.add_row(row["prompt"], old.strip(), new.strip(), row["object"], row["state"])
    console.print(table)


def _taught_rows(ledger: Ledger, config: Config) -> Sequence[RowMapping]:
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
    """Roll back to the base weights and forward again, bit for bit, which adds two revisions."""
    model = config.model.name
    row = next((r for r in _taught_rows(ledger, config) if r["state"] == CorrectionState.APPLIED), None)
    with ledger.read() as connection:
        edited = head(connection, model)
    show = _shower(ledger, config, editor, console, row["prompt"] if row else None)
    show("head", int(edited["number"]))
    number, by_hand = int(edited["number"]), RollbackCause.OPERATOR
    reason = "the tour shows a rollback"
    check = check_in(config.store_path)
    base = ledger.rollback(model, 0, who=WHO, reason=reason, cause=by_hand, check=check, expected_head=number)
    show("rolled back to 0", base)
    reason = "the tour takes it back"
    again = ledger.rollback(
        model, number, who=WHO, reason=reason, cause=by_hand, check=check, expected_head=base
    )
    show(f"and to {number} again", again)


def _shower(
    ledger: Ledger, config: Config, editor: Editor, console: Console, prompt: str | None
) -> Callable[[str, int], None]:
    store = Store(config.store_path)

    def show(what: str, number: int) -> None:
        with ledger.read() as connection:
            row = get_revision(connection, config.model.name, number)
        editor.show(load_tensors(store, row["tensors"]))
        answer = f"{prompt} → {editor.model.greedy([prompt], _ANSWER_TOKENS)[0].strip()}" if prompt else ""
        console.print(f"revision {number:>3}  {what:<22} content {row['content'][:12]}  {answer}")

    return show
