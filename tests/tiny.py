"""A tiny Llama that knows a few hundred synthetic facts, trained in seconds: real editing at test speed."""

import random
from pathlib import Path

import torch
from tokenizers import Tokenizer, models, pre_tokenizers
from transformers import LlamaConfig, LlamaForCausalLM, PreTrainedTokenizerFast

COLOURS = ["red", "blue", "green", "black", "white", "yellow", "purple", "orange", "brown", "silver"]
CITIES = ["Ardon", "Belmar", "Corvin", "Dunmor", "Elkan", "Farrow", "Galdin", "Hestia", "Irkut", "Jarrow"]
PLACES = [
    f"{a}{b}"
    for a in ("Nor", "Sul", "Wes", "Eas", "Kal", "Mir")
    for b in ("land", "mark", "dor", "via", "stan")
]
PEOPLE = [
    f"{a}{b}" for a in ("Al", "Be", "Cor", "Da", "El") for b in ("bert", "rick", "wyn", "mund", "dan", "gar")
]
RECIPE = {"layers": [1, 2], "lambda_prior": 50.0}
"""Overrides of encore-blue that fit five layers of width 96."""


def facts() -> list[tuple[str, str, str]]:
    """(subject, prompt, object) of everything the tiny model is taught."""
    chance = random.Random(7)
    known = [(place, f"The capital of {place} is", chance.choice(CITIES)) for place in PLACES]
    known += [(person, f"The favourite colour of {person} is", chance.choice(COLOURS)) for person in PEOPLE]
    known += [(person, f"{person} lives in the town of", chance.choice(CITIES)) for person in PEOPLE]
    return known


def corpus() -> list[str]:
    """Sentences of training: the facts, with and without something before them, and some filler."""
    chance = random.Random(11)
    openings = ["", "", "It is known that ", "Listen : "]
    lines = [
        f"{chance.choice(openings)}{prompt} {answer} ." for _, prompt, answer in facts() for _ in range(4)
    ]
    names = PEOPLE + PLACES
    lines += [f"{chance.choice(names)} is a name that we know ." for _ in range(150)]
    lines += [
        f"{chance.choice(PEOPLE)} and {chance.choice(PEOPLE)} saw a {chance.choice(COLOURS)} house ."
        for _ in range(150)
    ]
    return [" ".join(chance.sample(lines, chance.choice([1, 2, 3]))) for _ in range(900)]


def make_tokenizer() -> PreTrainedTokenizerFast:
    """Words and punctuation of the corpus."""
    words = sorted({word for line in corpus() for word in line.split()} | {"Name"})
    specials = ["<unk>", "<s>", "</s>"]
    vocabulary = {word: i for i, word in enumerate([*specials, *words])}
    tokenizer = Tokenizer(models.WordLevel(vocabulary, unk_token="<unk>"))
    tokenizer.pre_tokenizer = pre_tokenizers.WhitespaceSplit()
    return PreTrainedTokenizerFast(
        tokenizer_object=tokenizer, unk_token="<unk>", bos_token="<s>", eos_token="</s>", pad_token="</s>"
    )


def make_tiny_model(folder: Path, steps: int = 500) -> Path:
    """Train the tiny model and save it as a Hugging Face folder; about twenty seconds on two cores."""
    torch.manual_seed(0)
    tokenizer = make_tokenizer()
    config = LlamaConfig(
        vocab_size=len(tokenizer), hidden_size=96, intermediate_size=256, num_hidden_layers=5,
        num_attention_heads=4, num_key_value_heads=2, max_position_embeddings=128, tie_word_embeddings=True,
        bos_token_id=1, eos_token_id=2, pad_token_id=2,
    )  # fmt: skip
    model = LlamaForCausalLM(config)
    lines = tokenizer([f"<s> {line} </s>" for line in corpus()], padding=True, return_tensors="pt")
    ids, mask = lines["input_ids"], lines["attention_mask"]
    mask[:, 1:] |= mask[:, :-1]  # learn to stop: the first padding token is the end of the sentence
    optimiser = torch.optim.AdamW(model.parameters(), lr=3e-3, weight_decay=0.01)
    chance = torch.Generator().manual_seed(0)
    for _ in range(steps):
        rows = torch.randint(0, len(ids), (48,), generator=chance)
        labels = ids[rows].masked_fill(mask[rows] == 0, -100)
        loss = model(input_ids=ids[rows], attention_mask=mask[rows], labels=labels).loss
        optimiser.zero_grad()
        loss.backward()
        optimiser.step()
    model.eval()
    model.generation_config.pad_token_id = 2
    folder.mkdir(parents=True, exist_ok=True)
    model.save_pretrained(folder)
    tokenizer.save_pretrained(folder)
    return folder
