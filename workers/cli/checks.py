"""The checks of ``errata doctor`` that need the model's host: base weights and GPU memory."""

import torch

from daemon.core.config.settings import Config
from daemon.core.errors import ErrataError
from daemon.core.findings import Finding
from daemon.core.ledger.chain import find_revision
from daemon.core.ledger.database import is_founded
from daemon.core.ledger.ledger import Ledger
from workers.publishing.shards import file_name_of, files_of, same_tensor
from workers.revisions.store import Store

_SPACE = 1.5  # GPU memory, in sizes of the model: activations and fp64 memories of the edited layers


def examine(config: Config) -> list[Finding]:
    """Run the checks, where one that fails with an error is a finding too."""
    findings = []
    for name, check in (("base weights", _base_weights), ("gpu memory", _gpu)):
        try:
            findings.append(check(config))
        except ErrataError as error:
            findings.append(
                Finding(name, False, error.message, error.hint or "restore the model's folder as it was")
            )
    return findings


def _base_weights(config: Config) -> Finding:
    """Whether the model's folder still contains the weights of revision 0."""
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
                f"{tensor} in {config.model_path} differs from revision 0",
                "restore the model, or give the other model a name and data_dir of its own",
            )
    return Finding(name, True, f"{len(row['tensors'])} edited tensors are those of revision 0")


def _gpu(config: Config) -> Finding:
    """Whether the model fits into the memory of the configured device."""
    name, device = "gpu memory", config.model.device
    if not torch.cuda.is_available():
        if device.startswith("cuda"):
            fix = "install the driver and a CUDA build of torch, or set model.device to auto"
            return Finding(name, False, f"model.device is {device}, but torch sees no GPU", fix)
        return Finding(name, True, "no GPU; the model runs on the CPU")
    if device == "cpu":
        return Finding(name, True, "there is a GPU, but model.device is cpu")
    free, total = torch.cuda.mem_get_info(device if device.startswith("cuda") else "cuda")
    size = sum(path.stat().st_size for path in config.model_path.glob("*.safetensors"))
    text = f"{free >> 20} of {total >> 20} MiB free, the model has {size >> 20} MiB"
    if free >= _SPACE * size:
        return Finding(name, True, text)
    fix = "end other programs on the GPU (nvidia-smi); a running worker has the model loaded already"
    return Finding(name, total >= _SPACE * size, text, fix)
