"""Tiny random models of every family in fp64, and a tokenizer of words: known answers need no training."""

import torch
from tokenizers import Tokenizer, models, pre_tokenizers
from transformers import AutoModelForCausalLM, PreTrainedTokenizerFast
from transformers.models.auto.configuration_auto import CONFIG_MAPPING

from workers.editing.model import EditableModel

WORDS = [f"w{i}" for i in range(40)] + ["is", "a", "the", "of", "."]
_COMMON = {
    "vocab_size": len(WORDS) + 3,
    "hidden_size": 32,
    "intermediate_size": 48,
    "num_hidden_layers": 4,
    "num_attention_heads": 4,
    "num_key_value_heads": 2,
    "head_dim": 8,
    "max_position_embeddings": 64,
    "pad_token_id": 2,
    "bos_token_id": 1,
    "eos_token_id": 2,
}
_GPT = {"n_embd": 32, "n_inner": 48, "n_layer": 4, "n_head": 4, "n_positions": 64, "rotary_dim": 4}


def tokenizer() -> PreTrainedTokenizerFast:
    """One token a word."""
    vocabulary = {word: i for i, word in enumerate(["<unk>", "<s>", "</s>", *WORDS])}
    made = Tokenizer(models.WordLevel(vocabulary, unk_token="<unk>"))
    made.pre_tokenizer = pre_tokenizers.WhitespaceSplit()
    return PreTrainedTokenizerFast(
        tokenizer_object=made, unk_token="<unk>", bos_token="<s>", eos_token="</s>", pad_token="</s>"
    )


def random_model(family: str = "llama", seed: int = 0) -> EditableModel:
    """Four layers of width 32 in fp64; weights large enough that every layer matters."""
    torch.manual_seed(seed)
    if family == "gemma3":  # text and images: the text model lies one module deeper
        text = {**_COMMON, "sliding_window": 64}
        vision = {"hidden_size": 8, "intermediate_size": 8, "num_hidden_layers": 1, "num_attention_heads": 1}
        config = CONFIG_MAPPING[family](text_config=text, vision_config={**vision, "image_size": 28})
    else:
        config = CONFIG_MAPPING[family](**(_COMMON | _GPT if family in ("gpt2", "gptj") else _COMMON))
    model = AutoModelForCausalLM.from_config(config, dtype=torch.float64)
    with torch.no_grad():
        for parameter in model.parameters():
            if parameter.dim() > 1:
                parameter.normal_(std=0.25)
    return EditableModel(model, tokenizer())
