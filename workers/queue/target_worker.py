"""A target worker: find the targets of a chunk with the model at the weights that the job names."""

import torch

from daemon.core.config.settings import Config
from daemon.core.errors import EditError, StoreError
from daemon.core.log import get_logger
from workers.editing.model import EditableModel
from workers.editing.targets import find_targets
from workers.models.open import open_model
from workers.queue.fanout import TargetJob, done_file, save_done
from workers.revisions.loading import load_tensors
from workers.revisions.store import Store

log = get_logger("errata.targets")


class TargetWorker:
    """The model of this process, loaded on the first job (after the fork), and its present weights."""

    def __init__(self, config: Config) -> None:
        self._config = config
        self._root = config.exchange_path / config.model.name
        self._model: EditableModel | None = None
        self._shown: dict[str, str] = {}

    def run(self, name: str) -> None:
        """Do one job, unless it is done already or its batch has ended."""
        store = Store(self._root)
        if done_file(store.root, name).exists():
            return
        try:
            job = TargetJob.load(store, name)
            model = self._model_at(store, job.weights)
            save_done(store, name, find_targets(model, job.requests, job.layer, job.recipe, job.prefixes))
        except EditError as error:
            save_done(store, name, None, error)
        except StoreError as error:
            log.info("batch of the job has ended", job=name[:12], why=str(error))
        except Exception:  # the process's edge: the editing worker is told, and does the chunk itself
            log.exception("job failed", job=name[:12])
            save_done(store, name, None)

    def _model_at(self, store: Store, weights: dict[str, str]) -> EditableModel:
        """The model with these weights (tensor name to blob)."""
        if self._model is None:
            self._model = open_model(self._config)
        changed = {tensor: blob for tensor, blob in weights.items() if self._shown.get(tensor) != blob}
        with torch.no_grad():
            for tensor, value in load_tensors(store, changed).items():
                self._model.lm.get_parameter(tensor).copy_(value)
        self._shown |= changed
        return self._model
