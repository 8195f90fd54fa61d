"""The commands scrub, gc, backup, restore and migrate."""

from collections.abc import Callable, Iterator
from contextlib import closing, contextmanager
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import typer

from daemon.cli.common import Reason, answer, need_reason, open_ledger, print_table, say
from daemon.core.command import Json, load, print_json, who

if TYPE_CHECKING:
    from daemon.core.config.settings import Config
    from daemon.core.ledger.ledger import Ledger
    from daemon.upkeep.backup import Copied

INCOMPLETE = 8
"""The exit status of a backup or restore from which blobs are missing."""
Folder = Annotated[Path, typer.Argument(metavar="FOLDER", help="the backup's folder")]


def add_commands(app: typer.Typer) -> None:
    """Add these commands."""
    for command in (scrub, gc, backup, restore, migrate):
        app.command(command.__name__)(command)


def scrub(context: typer.Context, as_json: Json = False) -> None:
    """Compare every blob of the kept revisions with its sha256, and the published folders with the ledger.

    Exit status 1 if one differs. The publisher writes such a folder again by itself.

    Example: errata scrub
    """
    from daemon.core.blobs import REPAIR
    from daemon.upkeep.store import scrub as act
    from daemon.upkeep.store import scrub_published

    config = load(context)
    with open_ledger(config) as ledger, _bar("blobs") as progress:
        unsound = act(ledger, config, progress)
        folders = scrub_published(ledger, config)
        details = {"unsound": len(unsound), "published": len(folders)}
        _record(ledger, "scrub", config.model.name, "by hand", details)
    wrong = unsound or folders
    if as_json:
        print_json({"ok": not wrong, "unsound": unsound, "published": folders})
    elif wrong:
        rows = [{"what": what, "why": why} for what, why in {**unsound, **folders}.items()]
        print_table("unsound blobs and published folders", ("what", "why"), rows)
        say(f"hint: for blobs {REPAIR}; for folders errata publish" if unsound else "hint: errata publish")
    else:
        say("every blob matches its sha256, and every published folder its record")
    if wrong:
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


def backup(
    context: typer.Context,
    folder: Folder,
    hard_links: Annotated[
        bool,
        typer.Option(
            "--hard-links", help="link blobs instead of copying them: damage to one then damages both"
        ),
    ] = False,
    as_json: Json = False,
) -> None:
    """Copy ledger and blobs into a new folder while everything runs.

    The blobs are files of their own, whose blocks are shared until written where the file system can (btrfs,
    XFS). Damaged and missing blobs are listed and left out; everything else is saved, and the exit status
    is 8.

    Examples: errata backup /backups/errata-monday | errata backup /data/errata-monday --hard-links
    """
    from daemon.upkeep.backup import back_up

    config = load(context)
    with open_ledger(config) as ledger:
        _record(ledger, "backup", str(folder), "by hand", {"hard_links": hard_links})
    with _bar("blobs") as progress:
        copied = back_up(config, folder, progress, hard_links=hard_links)
    line = f"{folder} holds the ledger and {copied.blobs} blobs"
    if copied.linked:
        line += f" ({copied.linked} as hard links: damage to one of these damages the store too)"
    document = {"folder": str(folder), "blobs": copied.blobs, "linked": copied.linked}
    _report(copied, document, "left_out", line, as_json)


def restore(
    context: typer.Context,
    folder: Folder,
    reason: Reason,
    blobs: Annotated[
        bool, typer.Option("--blobs", help="replace only damaged blobs of the present ledger, as all runs")
    ] = False,
    as_json: Json = False,
) -> None:
    """Restore a backup and keep the current ledger beside it.

    Stop errata run first. Blobs that are sound neither in the backup nor in the store are listed, and the
    exit status is 8: no rollback goes to a revision that needs one of them.

    Examples: errata restore /backups/errata-monday --reason "the disk failed"
    | errata restore /backups/errata-monday --blobs --reason "the scrub found a damaged blob"
    """
    from daemon.embedded.lock import only_one
    from daemon.upkeep.backup import restore as act
    from daemon.upkeep.backup import restore_blobs

    config = load(context)
    why = need_reason(reason)
    if blobs:
        with open_ledger(config) as ledger, _bar("blobs") as progress:
            copied = restore_blobs(ledger, config, folder, progress)
    else:
        with only_one(config.run_path), _bar("blobs") as progress:
            copied = act(config, folder, progress)
    warning = _record_restore(config, folder, why, {"blobs": copied.blobs, "missing": len(copied.unsound)})
    line = f"restored from {folder}: {'' if blobs else 'the ledger and '}{copied.blobs} blobs are sound"
    _report(copied, {"folder": str(folder), "blobs": copied.blobs}, "missing", line + warning, as_json)


def _record_restore(config: "Config", folder: Path, why: str, details: dict[str, Any]) -> str:
    """Record the restore in the audit, or say what an older ledger needs first."""
    from daemon.core.errors import LedgerError

    try:
        with open_ledger(config) as ledger:
            _record(ledger, "restore", str(folder), why, details)
    except LedgerError as error:
        return f"; the restore is not in the audit: {error}"
    return ""


def _report(copied: "Copied", document: dict[str, Any], key: str, line: str, as_json: bool) -> None:
    """Print what was copied and what was not, and end with a status of its own where blobs lack."""
    answer({**document, key: dict(copied.unsound)}, line, as_json)
    if not copied.unsound:
        return
    if not as_json:
        rows = [{"blob": blob, "why": why} for blob, why in copied.unsound.items()]
        print_table(key.replace("_", " "), ("blob", "why"), rows)
        say("hint: errata rebuild --mend writes again what follows from the facts; the others are in older")
        say("backups, if anywhere: errata restore FOLDER --blobs takes them from there")
    raise typer.Exit(INCOMPLETE)


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
