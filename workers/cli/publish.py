"""The commands ``export`` and ``publish``, which write revisions as model folders."""

import json
from dataclasses import asdict
from functools import partial
from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import typer

from daemon.core.command import Json, load
from daemon.core.names import ProcessRole

if TYPE_CHECKING:
    from daemon.core.config.settings import Config
    from daemon.core.ledger.ledger import Ledger
    from workers.publishing.revision_facts import RevisionFacts


def add_commands(app: typer.Typer) -> None:
    """Add the commands to ``errata``."""
    app.command("export")(export)
    app.command("publish")(publish)


def export(
    context: typer.Context,
    revision: Annotated[str, typer.Argument(help="revision number, live or head")],
    folder: Annotated[Path, typer.Argument(help="folder to create")],
    lora: Annotated[
        bool, typer.Option("--lora", help="write a PEFT LoRA adapter instead of a whole model")
    ] = False,
    energy: Annotated[
        float, typer.Option(min=0.5, max=1.0, help="share of the change (its Σσ²) that the adapter keeps")
    ] = 0.999,
    as_json: Json = False,
) -> None:
    """Write a revision as a Hugging Face folder that other programs load without Errata.

    Examples: errata export live ./model | errata export 12 ./adapter --lora --energy 0.99
    """
    from workers.publishing.export import Exporter
    from workers.revisions.store import Store

    config = load(context)
    facts = _read(config, revision)
    if lora:
        _export_adapter(config, facts, folder, energy, as_json=as_json)
        return
    Exporter(config.model_path, Store(config.store_path)).export(facts, folder)
    _report(facts, folder, as_json=as_json)


def publish(
    context: typer.Context,
    follow: Annotated[
        bool, typer.Option("--follow", help="keep running and publish each new live revision")
    ] = False,
    as_json: Json = False,
) -> None:
    """Publish the live revision: write its folder, point the link ``live`` to it and notify the consumers.

    Examples: errata publish | errata publish --follow
    """
    from daemon.core.ending import Ending
    from daemon.core.ledger.heartbeats import ENDING, Heart
    from daemon.core.tracing import configure_tracing
    from workers.publishing.consumers import make_consumers
    from workers.publishing.publisher import Publisher

    config = load(context)
    configure_tracing("errata-publish")
    ledger = _ledger(config)
    publisher = Publisher(ledger, config, make_consumers(config.consumers))
    if follow:
        seconds = config.schedule.heartbeat_seconds
        with Heart(ledger, config.model.name, ProcessRole.PUBLISHER, seconds) as heart:
            ending = Ending(on_ask=partial(setattr, heart, "state", ENDING))
            ending.listen()
            heart.state = "follows"
            publisher.follow(ending.asked, config.publish.poll_seconds)
        return
    publisher.tick()
    _report(_read(config, "live"), config.published_path / "live", as_json=as_json)


def _export_adapter(
    config: "Config", revision: "RevisionFacts", folder: Path, energy: float, *, as_json: bool
) -> None:
    """Write the adapter and print for each layer how closely it reproduces the change."""
    from workers.publishing.lora import ADAPTER, export_adapter
    from workers.revisions.store import Store

    store = Store(config.store_path)
    rows = export_adapter(store, _read(config, "0"), revision, config.model_path, folder, energy)
    size = (folder / ADAPTER).stat().st_size
    if as_json:
        layers = [asdict(row) for row in rows]
        document = {"path": str(folder), "revision": revision.number, "bytes": size, "layers": layers}
        typer.echo(json.dumps(document, ensure_ascii=False))
        return
    typer.echo(f"revision {revision.number}, {len(revision.facts)} facts: {folder}, {size / 2**20:.2f} MiB")
    for row in rows:
        kept = f"rank {row.rank} of {row.of_rank}, energy {row.energy:.5f}, error {row.error:.4f}"
        typer.echo(f"{row.module}: {kept}")


def _report(revision: "RevisionFacts", folder: Path, *, as_json: bool) -> None:
    if as_json:
        typer.echo(json.dumps({"path": str(folder), **revision.manifest()}, ensure_ascii=False))
    else:
        typer.echo(f"revision {revision.number}, {len(revision.facts)} facts: {folder}")


def _read(config: "Config", name: str) -> "RevisionFacts":
    """The revision that the user named."""
    from workers.publishing.revision_facts import read_revision
    from workers.revisions.loading import named_revision

    with _ledger(config).read() as connection:
        model = config.model.name
        return read_revision(connection, model, named_revision(connection, model, name)["number"])


def _ledger(config: "Config") -> "Ledger":
    from daemon.core.ledger.ledger import Ledger

    return Ledger.open_existing(config.ledger_url)
