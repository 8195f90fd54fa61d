"""Write a revision as a low-rank adapter: the change of each edited layer, cut to its main directions.

The change is ΔW = W − W0 = U Σ Vᵀ (fp64). Its largest singular values are kept, up to the asked share of the
energy Σσ². B = U √Σ [d_out, r] and A = √Σ Vᵀ [r, d_in] are written as a PEFT LoRA adapter with scale 1. By
Eckart and Young (1936) no other matrices of that rank are nearer to ΔW.
"""

import json
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

import torch
from safetensors.torch import save

from daemon.core.errors import StoreError
from daemon.core.fsio import write_durably
from workers.editing.architectures import architecture_of
from workers.publishing.export import whole_folder, write_json
from workers.publishing.revision_facts import RevisionFacts
from workers.revisions.loading import load_tensors
from workers.revisions.store import Store

ADAPTER = "adapter_model.safetensors"
_PREFIX = "base_model.model."


@dataclass(frozen=True)
class Reduced:
    """A layer of an adapter, where ``error`` is ‖ΔW − B A‖ / ‖ΔW‖ (Frobenius) of the written matrices."""

    module: str
    rank: int
    of_rank: int
    energy: float
    error: float


def export_adapter(
    store: Store,
    base: RevisionFacts,
    revision: RevisionFacts,
    model_folder: Path,
    target: Path,
    energy: float,
) -> list[Reduced]:
    """Write the adapter that turns ``base`` into ``revision``, and return its accuracy for each layer.

    Raises:
        StoreError: a blob is damaged or missing, ``target`` is not empty, or the revision changes nothing.
    """
    before, after = load_tensors(store, base.tensors), load_tensors(store, revision.tensors)
    config = json.loads((model_folder / "config.json").read_text(encoding="utf-8"))
    transposed = architecture_of(config["model_type"]).transposed
    rows: list[Reduced] = []
    tensors: dict[str, torch.Tensor] = {}
    for name in sorted(after):
        change = after[name].double() - before[name].double()
        if not change.any():
            continue
        delta = change.t() if transposed else change
        module = name.removesuffix(".weight")
        low, high, kept = factors(delta, energy)
        error = float((high.double() @ low.double() - delta).norm() / delta.norm())
        rows.append(Reduced(module, len(low), min(delta.shape), kept, error))
        tensors[f"{_PREFIX}{module}.lora_A.weight"] = low
        tensors[f"{_PREFIX}{module}.lora_B.weight"] = high
    if not rows:
        raise StoreError(f"revision {revision.number} has the weights of its base, so no adapter is needed")
    with whole_folder(target) as folder:
        write_durably(folder / ADAPTER, save(tensors, metadata={"format": "pt"}))
        write_json(folder / "adapter_config.json", _peft_config(rows, model_folder, transposed=transposed))
        write_json(folder / "errata.json", revision.manifest() | {"layers": [asdict(row) for row in rows]})
    return rows


def factors(delta: torch.Tensor, energy: float) -> tuple[torch.Tensor, torch.Tensor, float]:
    """A [r, d_in] and B [d_out, r] in fp32 for ΔW [d_out, d_in], and the share of Σσ² that they keep."""
    left, values, right = torch.linalg.svd(delta.double(), full_matrices=False)
    shares = values.square().cumsum(0) / values.square().sum()
    rank = min(int((shares < energy).sum()) + 1, len(values))
    root = values[:rank].sqrt()
    low, high = root[:, None] * right[:rank], left[:, :rank] * root
    return low.float().contiguous(), high.float().contiguous(), float(shares[rank - 1])


def _peft_config(rows: list[Reduced], model_folder: Path, *, transposed: bool) -> dict[str, Any]:
    """The configuration for PEFT, with a rank for each layer, and alpha = rank for scale 1."""
    ranks = {row.module: row.rank for row in rows}
    highest = max(ranks.values())
    return {
        "peft_type": "LORA",
        "task_type": "CAUSAL_LM",
        "base_model_name_or_path": str(model_folder),
        "inference_mode": True,
        "r": highest,
        "lora_alpha": highest,
        "rank_pattern": ranks,
        "alpha_pattern": ranks,
        "target_modules": sorted(ranks),
        "fan_in_fan_out": transposed,
        "lora_dropout": 0.0,
        "bias": "none",
    }
