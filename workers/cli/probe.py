"""Looking at a revision in this process: its weights in the model, its probes."""

from daemon.core.config.settings import Config
from daemon.core.ledger.chain import get_revision, head
from daemon.core.ledger.ledger import Ledger
from daemon.core.ledger.proposals import ProbeRow
from daemon.core.ledger.revision import parse_revision
from workers.editing.editor import Editor
from workers.probes import BaseAnswers, ProbeContext, full
from workers.probes.survey import survey
from workers.queue.assemble import make_editor
from workers.revisions.facts import active_facts, active_pairs
from workers.revisions.loading import load_tensors
from workers.revisions.store import Store


def show_revision(config: Config, revision: str | None) -> tuple[int, Editor]:
    """An editor whose model has the published tensors of a revision; None is head.

    Raises:
        NotFoundError: no such revision. CorruptBlobError: a tensor is damaged and was not loaded.
    """
    ledger = Ledger.open_existing(config.ledger_url)
    with ledger.read() as connection:
        model = config.model.name
        row = (
            head(connection, model)
            if revision is None
            else get_revision(connection, model, parse_revision(revision))
        )
    tensors = load_tensors(Store(config.store_path), row["tensors"])
    editor = make_editor(config)
    editor.show(tensors)
    return int(row["number"]), editor


def probe_revision(config: Config, revision: str | None) -> tuple[int, list[ProbeRow]]:
    """Measure a revision by all probes, into the ledger; all its active facts count as older ones."""
    number, editor = show_revision(config, revision)
    ledger = Ledger.open_existing(config.ledger_url)
    with ledger.read() as connection:
        older = active_facts(connection, active_pairs(connection, config.model.name, number))
    context = ProbeContext(editor, [], older, config.watch, BaseAnswers(editor), seed=number)
    rows = survey(ledger, config.model.name, number, full(config.watch), context)
    return number, rows
