"""Module paths of the families of decoder models that can be edited, a row a family."""

from collections.abc import Mapping
from dataclasses import dataclass
from types import MappingProxyType

from daemon.core.errors import ModelError


@dataclass(frozen=True)
class Architecture:
    """Paths of modules, by default those of Llama."""

    decoder: str = "model"  # below the causal LM, runs everything but the head
    layers: str = "layers"  # below the decoder
    projection: str = "mlp.down_proj"  # below the layer, from key to value: the last linear map of its MLP
    post_norm: str = ""  # below the layer, a norm that the value passes before it joins the residual stream
    transposed: bool = False  # weights are [d_in, d_out] (Conv1D)
    tuples: bool = False  # a layer returns a tuple


_LLAMA = Architecture()
_POST_NORM = Architecture(post_norm="post_feedforward_layernorm")

ARCHITECTURES: Mapping[str, Architecture] = MappingProxyType(
    {
        "llama": _LLAMA,
        "mistral": _LLAMA,
        "qwen2": _LLAMA,
        "qwen3": _LLAMA,
        "phi3": _LLAMA,
        "olmo": _LLAMA,
        "olmo2": _POST_NORM,
        "gemma2": _POST_NORM,
        "gemma3_text": _POST_NORM,
        "gemma3": Architecture(decoder="model.language_model", post_norm="post_feedforward_layernorm"),
        "gpt2": Architecture(decoder="transformer", layers="h", projection="mlp.c_proj", transposed=True),
        "gptj": Architecture(decoder="transformer", layers="h", projection="mlp.fc_out", tuples=True),
        "gpt_neox": Architecture(decoder="gpt_neox", projection="mlp.dense_4h_to_h"),
    }
)


def architecture_of(model_type: str) -> Architecture:
    """Return the row of a Hugging Face ``model_type``, or raise ModelError where there is none."""
    if model_type not in ARCHITECTURES:
        raise ModelError(
            f"models of type {model_type!r} are not known",
            hint=f"add a row to workers/editing/architectures.py; known: {', '.join(sorted(ARCHITECTURES))}",
        )
    return ARCHITECTURES[model_type]
