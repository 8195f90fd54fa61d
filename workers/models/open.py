"""Open the configured model from its folder."""

import torch

from daemon.core.config.settings import Config
from daemon.core.errors import ModelError
from workers.editing.model import EditableModel, load_model


def open_model(config: Config) -> EditableModel:
    """Load the configured model from its folder.

    Raises:
        ModelError: the folder is missing, unreadable, or of an unknown architecture.
    """
    if config.model.threads:
        torch.set_num_threads(config.model.threads)
    if not (config.model_path / "config.json").is_file():
        raise ModelError(f"no model at {config.model_path}", hint="run errata prepare, or set model.path")
    return load_model(config.model_path, device=config.model.device, dtype=config.model.dtype)
