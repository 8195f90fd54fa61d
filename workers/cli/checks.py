"""What only a host with the model can see of its installation; ``errata doctor`` asks it."""

import torch

from daemon.core.config.settings import Config
from daemon.core.errors import ErrataError
from daemon.core.findings import Finding
from daemon.core.ledger.chain import find_revision
from daemon.core.ledger.database import is_founded
from daemon.core.ledger.ledger import Ledger
from workers.publishing.shards import file_name_of, files_of, same_tensor
from workers.revisions.store import Store

_ROOM = 1.5  # times the model's own size: activations, and the fp64 memories of the edited layers


def examine(config: Config) -> list[Finding]:
    """The checks; each that cannot be made is a finding, too."""
    found = []
    for name, check in (("base weights", _base_weights), ("gpu memory", _gpu)):
        try:
            found.append(check(config))
        except ErrataError as error:
            found.append(Finding(name, False, error.message, error.hint or "put the model back as it was"))
    return found


def _base_weights(config: Config) -> Finding:
    """Whether the model's folder still holds the weights on which the chain was founded."""
    name = "base weights"
    if not is_founded(config.ledger_url) or not (config.model_path / "config.json").is_file():
        return Finding(name, True, "no chain or no model yet")
    ledger = Ledger.open_existing(config.ledger_url)
    with ledger.read() as connection:
        row = find_revision(connection, config.model.name, 0)
    ledger.close()
    if row is None:
        return Finding(name, True, "no chain yet")
    store, files = Store(config.store_path), files_of(config.model_path)
    for tensor, blob in row["tensors"].items():
        file = file_name_of(tensor, files)
        if not same_tensor(store.path(blob), tensor, files[file], file):
            return Finding(
                name,
                False,
                f"{tensor} in {config.model_path} is not what revision 0 was founded on",
                "put the model back, or give the other model a name and data_dir of its own",
            )
    return Finding(name, True, f"{len(row['tensors'])} edited tensors are those of revision 0")


def _gpu(config: Config) -> Finding:
    """Whether the model fits on the device that is configured."""
    name, device = "gpu memory", config.model.device
    if not torch.cuda.is_available():
        if device.startswith("cuda"):
            fix = "install the driver and a CUDA build of torch, or set model.device to auto"
            return Finding(name, False, f"model.device is {device}, and torch sees no GPU", fix)
        return Finding(name, True, "no GPU; the model runs on the CPU")
    if device == "cpu":
        return Finding(name, True, "there is a GPU, model.device says cpu")
    free, total = torch.cuda.mem_get_info(device if device.startswith("cuda") else "cuda")
    size = sum(path.stat().st_size for path in config.model_path.glob("*.safetensors"))
    text = f"{free >> 20} of {total >> 20} MiB free, the model has {size >> 20} MiB"
    if free >= _ROOM * size:
        return Finding(name, True, text)
    fix = "end what else uses the GPU (nvidia-smi); a running worker holds the model already"
    return Finding(name, total >= _ROOM * size, text, fix)
