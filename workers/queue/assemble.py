"""Assemble the parts of a worker: model, statistics, editor, store, ledger and session."""

import torch

from daemon.core.broker import celery_app
from daemon.core.config.settings import Config
from daemon.core.errors import ConfigError
from daemon.core.ledger.database import open_engine
from daemon.core.ledger.heartbeats import Heart
from daemon.core.ledger.ledger import Ledger
from daemon.core.log import get_logger
from daemon.core.names import ProcessRole
from workers.bench.baselines.registry import method, resolve
from workers.editing.editor import Editor
from workers.editing.model import EditableModel
from workers.editing.recipes import Recipe
from workers.editing.statistics import Progress, Statistics, load_or_compute
from workers.editing.targets import Finder, find_targets
from workers.models.open import open_model
from workers.queue.fanout import FanOut
from workers.revisions.store import Store
from workers.session.session import Session

log = get_logger("errata.worker")


class SessionHolder:
    """Makes the session of this process on first use, which is after the fork."""

    def __init__(self, config: Config, heart: Heart | None = None) -> None:
        self._config, self._heart = config, heart
        self._session: Session | None = None
        self.model = config.model.name

    def session(self) -> Session:
        """The session, loading the model on the first call.

        Raises:
            ModelError: the model's folder is missing or not editable.
        """
        if self._session is None:
            self.tell("loading")
            ledger = Ledger.open(self._config.ledger_url)
            editor = make_editor(self._config, find=finder(self._config))
            store = Store(self._config.store_path)
            write_base_revision(ledger, store, editor, self._config)
            self._session = Session(ledger, store, editor, self._config)
            log.info("ready", model=self._config.model.name, device=str(editor.model.device))
            if self._heart is not None:
                self._heart.device = str(editor.model.device)
            self.tell("busy")
        return self._session

    def tell(self, state: str) -> None:
        """Tell by the heartbeat of this process, if it has one, what it does now."""
        if self._heart is not None:
            self._heart.state = state

    def forget(self) -> None:
        """Drop the session after an error that may have left its weights wrong."""
        self._session = None


def make_heart(config: Config, role: ProcessRole) -> Heart:
    """The heartbeat of a worker process, which sends nothing yet."""
    ledger = Ledger(open_engine(config.ledger_url))  # connects when it beats, which is after the fork
    return Heart(ledger, config.model.name, role, config.schedule.heartbeat_seconds, gpu_bytes=gpu_bytes)


def gpu_bytes() -> int:
    """The memory of a GPU that this process has reserved, in bytes, or 0 without one."""
    ready = torch.cuda.is_initialized()  # type: ignore[no-untyped-call]
    return int(torch.cuda.memory_reserved()) if ready else 0


def make_editor(config: Config, progress: Progress | None = None, find: Finder = find_targets) -> Editor:
    """An editor at the base weights, with its statistics computed or read from the cache."""
    model = open_model(config)
    recipe = chosen_recipe(config, model)
    editor = method(recipe.name).load()
    return editor(model, statistics_for(config, model, recipe, progress), recipe, find=find)


def finder(config: Config) -> Finder:
    """The function that finds targets: in this process, or with the help of target workers."""
    return FanOut(config, celery_app(config)) if config.edit.fan_out else find_targets


def chosen_recipe(config: Config, model: EditableModel) -> Recipe:
    """The configured recipe with its overrides.

    Raises:
        ConfigError: unknown recipe or setting, or a recipe whose edits cannot be removed exactly.
    """
    recipe = resolve(config.edit.recipe, config.edit.recipe_overrides, model.n_layers)
    if not recipe.exact:
        raise ConfigError(
            f"recipe {recipe.name} cannot remove a fact exactly",
            hint="it is for errata bench; set edit.recipe to one that keeps history, such as encore-blue",
        )
    return recipe


def statistics_for(
    config: Config, model: EditableModel, recipe: Recipe, progress: Progress | None = None
) -> Statistics:
    """Second moments, prefixes and norm anchors of the unedited model, cached in data_dir by model hash."""
    return load_or_compute(
        model, recipe.layers, config.data_dir / "statistics", config.model.corpus, progress
    )


def write_base_revision(ledger: Ledger, store: Store, editor: Editor, config: Config) -> None:
    """Write revision 0, the unedited weights, if it is missing."""
    tensors = {name: store.put({name: tensor}) for name, tensor in editor.published().items()}
    ledger.found(config.model.name, tensors, editor.recipe.name)
