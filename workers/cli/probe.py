"""Load a revision into the model of this process, and run the probes on it."""

from daemon.core.config.settings import Config
from daemon.core.ledger.ledger import Ledger
from daemon.core.ledger.proposals import ProbeRow
from workers.editing.editor import Editor
from workers.probes import BaseAnswers, ProbeContext, full
from workers.probes.survey import survey
from workers.queue.assemble import make_editor
from workers.revisions.facts import active_facts, active_pairs
from workers.revisions.loading import load_tensors, named_revision
from workers.revisions.store import Store


def show_revision(config: Config, revision: str | None) -> tuple[int, Editor]:
    """The number of a revision (None means head) and an editor with its published tensors.

    Raises:
        NotFoundError: there is no such revision.
        CorruptBlobError: a tensor is damaged and was not loaded.
    """
    ledger = Ledger.open_existing(config.ledger_url)
    with ledger.read() as connection:
        row = named_revision(connection, config.model.name, revision)
    tensors = load_tensors(Store(config.store_path), row["tensors"])
    editor = make_editor(config)
    editor.show(tensors)
    return int(row["number"]), editor


def probe_revision(config: Config, revision: str | None) -> tuple[int, list[ProbeRow]]:
    """Run all probes on a revision and record the results, where all its facts count as older ones."""
    number, editor = show_revision(config, revision)
    ledger = Ledger.open_existing(config.ledger_url)
    with ledger.read() as connection:
        older = active_facts(connection, active_pairs(connection, config.model.name, number))
    context = ProbeContext(editor, [], older, config.watch, BaseAnswers(editor), seed=number)
    rows = survey(ledger, config.model.name, number, full(config.watch), context)
    return number, rows
