"""A toy in place of the language model, with which an edit takes milliseconds.

Each prompt has a key and each answer a value, drawn from the hash of its text. The edited layers are real
memories. Greedy decoding returns the answer whose value is nearest to W k in every layer. Layers of different
revisions disagree, and then the answer is GARBLED. The subjects of POISON get bad values.
"""

import hashlib
import os
import signal
from collections.abc import Sequence
from dataclasses import dataclass
from functools import cache
from pathlib import Path
from typing import Any

import torch

from daemon.core.config.settings import Config
from workers.editing.editor import Associations, Editor, Reading
from workers.editing.prompts import EditRequest
from workers.editing.recipes import Recipe

LAYERS = (0, 1)
D_IN, D_OUT = 128, 16
WIDE = 512  # key size at which the facts of all tests stay below watch.capacity_ceiling
ANSWERS = tuple(f"City {number}" for number in range(100))
GARBLED, UNKNOWN = "garbled", "no idea"
POISON = {"Unland": -1.0, "Nan": float("nan"), "Infinite": float("inf"), "Huge": 1e9}
RECIPE = Recipe(layers=LAYERS, lambda_prior=1e-3, lambda_norm=1e-3)


@cache
def drawn(text: str, size: int) -> torch.Tensor:
    """Return a unit vector [size], fp64, that depends on ``text`` alone."""
    seed = int.from_bytes(hashlib.sha256(text.encode()).digest()[:6], "big")
    vector = torch.randn(size, generator=torch.Generator().manual_seed(seed), dtype=torch.float64)
    return vector / vector.norm()


@cache
def codebook() -> torch.Tensor:
    """Return the values of all answers, [answers, d_out], fp64."""
    return torch.stack([drawn(answer, D_OUT) for answer in ANSWERS])


@dataclass(frozen=True)
class ToyStatistics:
    width: int = D_IN
    prefixes: tuple[str, ...] = ()

    @property
    def moments(self) -> dict[int, torch.Tensor]:
        return {layer: torch.eye(self.width, dtype=torch.float64) for layer in LAYERS}


class ToyModel:
    """Two fp32 matrices that answer prompts."""

    device = "cpu"
    max_tokens = 10_000

    @staticmethod
    def tokenizer(text: str, **_options: bool) -> dict[str, list[tuple[int, int]]]:
        return {"offset_mapping": [(at, at + 1) for at in range(len(text))]}

    def __init__(self, width: int = D_IN) -> None:
        self.keys = width
        self._weights = {layer: torch.zeros(D_OUT, width) for layer in LAYERS}
        for layer, weight in self._weights.items():
            weight[:] = 1e-3 * torch.randn(weight.shape, generator=torch.Generator().manual_seed(layer))

    def weight(self, layer: int) -> torch.Tensor:
        return self._weights[layer]

    stored_weight = weight

    def set_weight(self, layer: int, weight: torch.Tensor) -> None:
        self._weights[layer].copy_(weight)

    def tensor_name(self, layer: int) -> str:
        return f"layers.{layer}.down_proj.weight"

    def greedy(self, prompts: Sequence[str], _tokens: int) -> list[str]:
        return [self.answer(prompt) for prompt in prompts]

    def answer(self, prompt: str) -> str:
        said = set()
        for layer in LAYERS:
            value = self._weights[layer].double() @ drawn(f"{layer}:{prompt}", self.keys)
            if not torch.isfinite(value).all():
                return GARBLED
            distance, nearest = (codebook() - value).norm(dim=1).min(dim=0)
            said.add(ANSWERS[int(nearest)] if distance < 0.4 else UNKNOWN)
        return said.pop() if len(said) == 1 else GARBLED

    def target_scores(
        self, prompts: Sequence[str], targets: Sequence[str]
    ) -> tuple[torch.Tensor, torch.Tensor]:
        holds = [self.answer(prompt) == target for prompt, target in zip(prompts, targets, strict=True)]
        return torch.tensor([0.0 if held else 9.0 for held in holds]), torch.tensor(holds)

    def target_nll(self, prompts: Sequence[str], targets: Sequence[str]) -> torch.Tensor:
        return self.target_scores(prompts, targets)[0]

    def token_nll(self, _texts: Sequence[str]) -> float:
        return 1.0


class ToyEditor(Editor):
    """The real editor with keys of size ``width`` and with targets from the codebook."""

    def __init__(self, width: int = D_IN) -> None:
        super().__init__(ToyModel(width), ToyStatistics(width), RECIPE)  # type: ignore[arg-type]

    def write_pairs(self, requests: Sequence[EditRequest]) -> Associations:
        written = Associations([request.id for request in requests], {}, {})
        for layer in self.layers:
            width = self.model.weight(layer).shape[1]
            keys = torch.stack([drawn(f"{layer}:{r.prompt}", width) for r in requests])
            values = torch.stack([self._target(r) for r in requests])
            self.write_layer(written, layer, keys, values)
        return written

    def _target(self, request: EditRequest) -> torch.Tensor:
        if request.subject == "Deadly":
            os.kill(os.getpid(), signal.SIGKILL)
        if request.subject == "Breathless":
            raise RuntimeError("DefaultCPUAllocator: can't allocate memory")
        return POISON.get(request.subject, 1.0) * drawn(request.target, D_OUT)

    def mend(self, _requests: Sequence[EditRequest], written: Associations) -> Associations:
        return written

    def verify(self, requests: Sequence[EditRequest]) -> list[Reading]:
        answers = self.model.greedy([request.prompt for request in requests], 8)
        return [Reading(answer == r.target, answer) for answer, r in zip(answers, requests, strict=True)]


def said(subject: str, answer: str | None, day: int, **more: Any) -> dict[str, Any]:
    """Return the statement that ANSWER is the capital of SUBJECT, true since day ``day`` of January 2026.

    An answer of None states that the fact is no longer true.
    """
    return {
        "subject": subject,
        "relation": "capital",
        "prompt": prompt_of(subject),
        "object": answer,
        "source": "atlas",
        "effective_at": f"2026-01-{day:02d}T00:00:00Z",
        **more,
    }


def prompt_of(subject: str) -> str:
    return f"The capital of {subject} is"


def toy_config(folder: Path, **sections: Any) -> Config:
    """Return a configuration under ``folder`` with short times and small batches."""
    settings: dict[str, Any] = {
        "data_dir": folder,
        "edit": {"batch_size": 4, "batch_age_seconds": 0, "lease_seconds": 1.0, "resend_seconds": 1.0},
        "store": {"reserve_bytes": 0, "grace_seconds": 0},
        "watch": {"delta_ceiling": 1e6, "batch_delta_ceiling": 1e6},
    }
    for name, values in sections.items():
        settings[name] = {**settings[name], **values} if isinstance(settings.get(name), dict) else values
    return Config.model_validate(settings)
