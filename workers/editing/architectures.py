"""Where each family of decoder models keeps what an edit needs. A new family is a new row here."""

from collections.abc import Mapping
from dataclasses import dataclass
from types import MappingProxyType

from daemon.core.errors import ModelError


@dataclass(frozen=True)
class Architecture:
    """Paths of modules below the causal LM.

    ``projection`` is the last linear map of a layer's MLP, below the layer: its input is the key, its output
    the value. ``transposed`` weights are [d_in, d_out] (GPT-2's Conv1D).
    """

    layers: str = "model.layers"
    projection: str = "mlp.down_proj"
    embedding: str = "model.embed_tokens"
    norm: str = "model.norm"
    rotary: str = "model.rotary_emb"
    transposed: bool = False


_LLAMA = Architecture()

ARCHITECTURES: Mapping[str, Architecture] = MappingProxyType(
    {
        "llama": _LLAMA,
        "mistral": _LLAMA,
        "qwen2": _LLAMA,
        "qwen3": _LLAMA,
        "phi3": _LLAMA,
        "olmo": _LLAMA,
        "olmo2": _LLAMA,
    }
)


def architecture_of(model_type: str) -> Architecture:
    """The row of a Hugging Face ``model_type``.

    Raises:
        ModelError: there is none; says what to add.
    """
    if model_type not in ARCHITECTURES:
        raise ModelError(
            f"models of type {model_type!r} are not known",
            hint=f"add a row to workers/editing/architectures.py; known: {', '.join(sorted(ARCHITECTURES))}",
        )
    return ARCHITECTURES[model_type]
