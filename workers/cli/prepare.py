"""Make a model ready to be edited: its folder, its statistics and revision 0."""

from daemon.core.config.settings import Config, ModelConfig
from daemon.core.ledger.ledger import Ledger
from workers.models.fetch import fetch_default_model
from workers.progress import Step
from workers.queue.assemble import make_editor, write_base_revision
from workers.revisions.store import Store


def prepare_model(config: Config, step: Step) -> None:
    """Fetch the default model, compute statistics and write revision 0, each where it is missing.

    Raises:
        ModelError: the default model cannot be fetched, or another model's folder is missing.
    """
    if config.model.path == ModelConfig().path:
        step("model", 0, 1)
        fetch_default_model(config.model_path, lambda text: step(f"model: {text}", 1, 1))
        step("model", 1, 1)
    ledger = Ledger.open(config.ledger_url)
    editor = make_editor(config, lambda done, total: step("statistics", done, total))
    write_base_revision(ledger, Store(config.store_path), editor, config)
    ledger.close()
