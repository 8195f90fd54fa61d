"""Tiny random models of every family in fp64, and one that was taught a few facts; nothing is downloaded."""

import random
from pathlib import Path

import torch
from tokenizers import Tokenizer, models, pre_tokenizers
from transformers import AutoModelForCausalLM, PreTrainedTokenizerFast
from transformers.models.auto.configuration_auto import CONFIG_MAPPING

from workers.editing.model import EditableModel
from workers.editing.prompts import EditRequest

OBJECTS = [f"w{i}" for i in range(20, 30)]
SUBJECTS = [f"w{i} w{j}" for i in range(4) for j in range(5, 9)] + ["w13", "w14", "w15"]
WORDS = [f"w{i}" for i in range(40)] + ["is", "a", "the", "of", "was", "has", "."]
PREFIXES = ("w30 w31 . ", "a w32 is w33 . ")
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


def taught() -> list[EditRequest]:
    """What the taught model knows: of each subject two things, one of them in two words."""
    chance = random.Random(1)
    facts = []
    for subject in SUBJECTS:
        first, second, third = (chance.choice(OBJECTS) for _ in range(3))
        facts.append(EditRequest(f"{subject}/of", subject, f"the w10 of {subject} is", first))
        facts.append(EditRequest(f"{subject}/was", subject, f"{subject} was the w11 of", f"{second} {third}"))
    return facts


def taught_model(folder: Path) -> EditableModel:
    """GPT-2 in fp64 as ``teach`` left it there: all it computes is fp64, and its weights lie transposed."""
    return EditableModel(AutoModelForCausalLM.from_pretrained(folder, dtype=torch.float64), tokenizer())


def teach(folder: Path, steps: int = 400) -> None:
    """Train it for some 10 s and save it."""
    torch.manual_seed(0)
    config = CONFIG_MAPPING["gpt2"](**(_COMMON | _GPT), resid_pdrop=0.0, embd_pdrop=0.0, attn_pdrop=0.0)
    model = AutoModelForCausalLM.from_config(config)
    words = tokenizer()
    lines = [
        f"{prefix}{fact.prompt} {fact.target} . </s>"
        for fact in taught()
        for prefix in ("", *PREFIXES, "w34 ")
    ]
    lines += [f"{subject} is a w{35 + i % 4} . </s>" for i, subject in enumerate(SUBJECTS)]
    batch = words(lines, padding=True, padding_side="right", return_tensors="pt")
    ids, labels = batch["input_ids"], batch["input_ids"].masked_fill(batch["attention_mask"] == 0, -100)
    adam = torch.optim.AdamW(model.parameters(), lr=5e-3, weight_decay=0.0)
    schedule = torch.optim.lr_scheduler.OneCycleLR(adam, 5e-3, total_steps=steps)
    for _ in range(steps):
        rows = torch.randint(0, len(ids), (64,))
        adam.zero_grad()
        model(input_ids=ids[rows], labels=labels[rows]).loss.backward()
        adam.step()
        schedule.step()
    model.save_pretrained(folder)
