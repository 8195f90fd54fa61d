"""Making a model ready to be edited: its folder, its statistics, revision 0."""

from collections.abc import Callable

from daemon.core.config.settings import Config, ModelConfig
from daemon.core.ledger.ledger import Ledger
from workers.models.fetch import fetch_default_model
from workers.queue.assemble import found, make_editor
from workers.revisions.store import Store

Step = Callable[[str, int, int], None]
"""Called with the name of a stage, how much of it is done, and how much there is."""


def prepare_model(config: Config, step: Step) -> None:
    """Do what is missing; everything that is there already is kept.

    Raises:
        ModelError: the default model cannot be fetched, or another model's folder is missing.
    """
    if config.model.path == ModelConfig().path:
        step("model", 0, 1)
        fetch_default_model(config.model_path, lambda text: step(f"model: {text}", 1, 1))
        step("model", 1, 1)
    ledger = Ledger.open(config.ledger_url)
    editor = make_editor(config, lambda done, total: step("statistics", done, total))
    found(ledger, Store(config.store_path), editor, config)
    ledger.close()
