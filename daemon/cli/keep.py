"""The commands scrub, gc, backup, restore and migrate."""

from collections.abc import Callable, Iterator
from contextlib import closing, contextmanager
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import typer

from daemon.cli.common import Reason, answer, need_reason, open_ledger, print_table, say
from daemon.core.command import Json, load, print_json, who

if TYPE_CHECKING:
    from daemon.core.ledger.ledger import Ledger

Folder = Annotated[Path, typer.Argument(metavar="FOLDER", help="the backup's folder")]


def add_commands(app: typer.Typer) -> None:
    """Add these commands."""
    for command in (scrub, gc, backup, restore, migrate):
        app.command(command.__name__)(command)


def scrub(context: typer.Context, as_json: Json = False) -> None:
    """Compare every blob of the kept revisions with its sha256.

    Exit status 1 if one differs.

    Example: errata scrub
    """
    from daemon.upkeep.store import scrub as act

    config = load(context)
    with open_ledger(config) as ledger, _bar("blobs") as progress:
        unsound = act(ledger, config, progress)
        _record(ledger, "scrub", config.model.name, "by hand", {"unsound": len(unsound)})
    if as_json:
        print_json({"ok": not unsound, "unsound": unsound})
    elif unsound:
        print_table("unsound blobs", ("blob", "why"), [{"blob": b, "why": w} for b, w in unsound.items()])
    else:
        say("every blob matches its sha256")
    if unsound:
        raise typer.Exit(1)


def gc(context: typer.Context, as_json: Json = False) -> None:
    """Drop the tensors beyond store.keep_revisions and delete blobs that nothing needs, as errata run does.

    Example: errata gc
    """
    from daemon.upkeep.store import collect_garbage

    config = load(context)
    with open_ledger(config) as ledger:
        swept = collect_garbage(ledger, config)
        details = {"files": swept.files, "bytes": swept.freed_bytes}
        _record(ledger, "gc", config.model.name, "by hand", details)
    answer(details, f"{swept.files} blobs deleted, {swept.freed_bytes >> 10} KiB freed", as_json)


def backup(context: typer.Context, folder: Folder, as_json: Json = False) -> None:
    """Copy ledger and blobs into a new folder while everything runs.

    Blobs become hard links where that is possible.

    Example: errata backup /backups/errata-monday
    """
    from daemon.upkeep.backup import back_up

    config = load(context)
    with open_ledger(config) as ledger:
        _record(ledger, "backup", str(folder), "by hand", {})
    with _bar("blobs") as progress:
        copied = back_up(config, folder, progress)
    line = f"{folder} holds the ledger and {copied.blobs} blobs ({copied.linked} as hard links)"
    answer({"folder": str(folder), "blobs": copied.blobs, "linked": copied.linked}, line, as_json)


def restore(context: typer.Context, folder: Folder, reason: Reason, as_json: Json = False) -> None:
    """Restore a backup and keep the current ledger beside it.

    Stop errata run first.

    Example: errata restore /backups/errata-monday --reason "the disk failed"
    """
    from daemon.embedded.lock import only_one
    from daemon.upkeep.backup import restore as act

    config = load(context)
    why = need_reason(reason)
    with only_one(config.run_path), _bar("blobs") as progress:
        copied = act(config, folder, progress)
    with open_ledger(config) as ledger:
        _record(ledger, "restore", str(folder), why, {"blobs": copied.blobs})
    line = f"restored from {folder}: the ledger and {copied.blobs} blobs"
    answer({"folder": str(folder), "blobs": copied.blobs, "replaced": copied.linked}, line, as_json)


def migrate(
    context: typer.Context,
    force: Annotated[
        bool, typer.Option("--force", help="also while a lease says that an older Errata still works")
    ] = False,
    as_json: Json = False,
) -> None:
    """Bring the ledger of an older Errata to the schema of this one.

    Stop errata run and all workers first. Besides this command only errata run migrates; all others refuse
    a ledger of another schema and leave it as it is.

    Examples: errata migrate | errata migrate --force
    """
    from daemon.core.errors import LedgerError
    from daemon.core.ledger.database import is_founded, open_engine
    from daemon.core.ledger.ledger import Ledger
    from daemon.core.ledger.upgrade import upgrade
    from daemon.embedded.lock import only_one

    config = load(context)
    if not is_founded(config.ledger_url):
        raise LedgerError("there is no ledger yet", hint="errata run creates it; check data_dir")
    with only_one(config.run_path), closing(Ledger(open_engine(config.ledger_url))) as ledger:
        before, after = upgrade(ledger.engine, ledger.clock.now(), beside_others=force)
        if before != after:
            _record(ledger, "migrate", config.model.name, "by hand", {"from": before, "to": after})
    line = f"the ledger has schema {after}" + ("" if before == after else f", it had {before}")
    answer({"before": before, "after": after}, line, as_json)


def _record(ledger: "Ledger", action: str, target: str, why: str, details: dict[str, Any]) -> None:
    from daemon.core.ledger import audit

    with ledger.write() as connection:
        audit.record(connection, ledger.clock.now(), who(), action, target, why, details)


@contextmanager
def _bar(what: str) -> Iterator[Callable[[int, int], None]]:
    """A progress bar on stderr if that is a terminal."""
    from rich.console import Console
    from rich.progress import Progress

    with Progress(console=Console(stderr=True), transient=True) as shown:
        task = shown.add_task(what, total=None)
        yield lambda done, of: shown.update(task, completed=done, total=of)
