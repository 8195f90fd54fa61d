"""Tiny random models of every family in fp64, and one that was taught a few facts, made without downloads."""

import os
import random
from dataclasses import dataclass, replace
from pathlib import Path

import torch
from tokenizers import Tokenizer, models, pre_tokenizers
from torch import nn
from torch.nn import functional
from transformers import AutoModelForCausalLM, PreTrainedModel, PreTrainedTokenizerFast
from transformers.models.auto.configuration_auto import CONFIG_MAPPING

from workers.editing.model import EditableModel
from workers.editing.prompts import IGNORED, EditRequest, encode_fact

OBJECTS = [f"w{i}" for i in range(20, 30)]
SUBJECTS = [f"w{i} w{j}" for i in range(2) for j in range(5, 9)] + ["w13", "w14", "w15"]
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
    """Make four layers of width 32 in fp64, with weights large enough that every layer matters."""
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


def taught_kinds() -> list[EditRequest]:
    """And of each subject what it is, which decides nothing but the KL term."""
    return [EditRequest(f"{one}/is", one, f"{one} is a", f"w{35 + i % 4}") for i, one in enumerate(SUBJECTS)]


def taught_model(folder: Path) -> EditableModel:
    """GPT-2 in fp64 as ``teach`` left it there: all it computes is fp64, and its weights lie transposed."""
    return EditableModel(AutoModelForCausalLM.from_pretrained(folder, dtype=torch.float64), tokenizer())


SURE = 3.0
"""Nats that every token of every answer leads by: rounding moves a trained model, but not by that much."""


def teach(folder: Path, most_steps: int = 1500) -> None:
    """Train it until it is sure, which takes some 10 s, and save it.

    What tests may rely on is what is trained for, and the training ends when it holds with ``SURE`` to spare:
    every prompt is answered, bare and behind every prefix; and where layer 0 or layer 1 says at the subject
    what it says of another one, that one's answer comes. So the facts lie where the tests edit them.
    ERRATA_TEST_SEED, 0 by default, is the seed of its first weights and of what it is shown in which order.
    """
    seed = int(os.environ.get("ERRATA_TEST_SEED", "0"))
    torch.manual_seed(seed)
    config = CONFIG_MAPPING["gpt2"](
        **(_COMMON | _GPT), resid_pdrop=0.0, embd_pdrop=0.0, attn_pdrop=0.0, initializer_range=0.1
    )
    lessons = _Lessons.of(AutoModelForCausalLM.from_config(config))
    adam = torch.optim.AdamW(lessons.model.parameters(), lr=7e-3, weight_decay=0.0)
    warm = torch.optim.lr_scheduler.LinearLR(adam, 0.05, total_iters=40)
    for step in range(1, most_steps + 1):
        adam.zero_grad()
        functional.cross_entropy(*lessons.said(step % 2, *lessons.drawn(40))).backward()
        adam.step()
        warm.step()
        if step % 25 == 0 and lessons.lead() > SURE:
            lessons.model.save_pretrained(folder)
            return
    raise AssertionError(f"with seed {seed} the model is not sure after {most_steps} steps")


@dataclass(frozen=True)
class _Lessons:
    """Every prompt with every answer of its kind: [kinds · ways, subject asked, subject answered].

    ids, labels [..., tokens] int64, the labels shifted, -100 where nothing is asked; anchor [...] int64.
    """

    model: PreTrainedModel
    ids: torch.Tensor
    labels: torch.Tensor
    anchor: torch.Tensor

    @classmethod
    def of(cls, model: PreTrainedModel) -> "_Lessons":
        words = tokenizer()
        known = taught()
        texts = [
            [
                [encode_fact(words, PREFIXES, replace(asked, target=said.target), 64)[way] for said in kind]
                for asked in kind
            ]
            for kind in (known[::2], known[1::2], taught_kinds())
            for way in range(1 + len(PREFIXES))
        ]
        shape = (len(texts), len(SUBJECTS), len(SUBJECTS))
        flat = [text for kind in texts for row in kind for text in row]
        length = max(len(text.ids) for text in flat)
        ids = torch.full((len(flat), length), 2)
        labels = torch.full((len(flat), length), IGNORED)
        for row, text in enumerate(flat):
            ids[row, : len(text.ids)] = torch.tensor(text.ids)
            asked = slice(text.target_start, len(text.ids))
            labels[row, asked.start - 1 : asked.stop - 1] = ids[row, asked]
        anchor = torch.tensor([text.anchor for text in flat])
        return cls(model, ids.view(*shape, -1), labels.view(*shape, -1), anchor.view(shape))

    def drawn(self, count: int) -> tuple[torch.Tensor, torch.Tensor, torch.Tensor]:
        """Prompts in some way, subjects that are asked for, and subjects in their place."""
        ways, subjects = self.ids.shape[:2]
        way, (asked, instead) = torch.randint(0, ways, (count,)), torch.randint(0, subjects, (2, count))
        return way, asked, instead

    def said(
        self, layer: int, way: torch.Tensor, asked: torch.Tensor, instead: torch.Tensor
    ) -> tuple[torch.Tensor, torch.Tensor]:
        """Logits [tokens, vocabulary] and labels [tokens] of ``instead``'s own prompts, then of ``asked``'s.

        In these the layer says at the subject what it says in those, and the answers are ``instead``'s too.
        """
        count = len(way)
        at = torch.cat([way, way]), torch.cat([instead, asked]), torch.cat([instead, instead])
        anchor, row = self.anchor[at], torch.arange(count)

        def exchange(_module: nn.Module, _inputs: object, output: torch.Tensor) -> torch.Tensor:
            changed = output.clone()
            changed[count + row, anchor[count:]] = output[row, anchor[:count]]
            return changed

        handle = self.model.transformer.h[layer].register_forward_hook(exchange)
        try:
            logits = self.model(input_ids=self.ids[at], use_cache=False).logits
        finally:
            handle.remove()
        labels = self.labels[at]
        return logits[labels != IGNORED], labels[labels != IGNORED]

    @torch.no_grad()
    def lead(self) -> float:
        """By how many nats the least sure token leads, subjects as they are and each as the third next."""
        ways, subjects = self.ids.shape[:2]
        way, asked = torch.cartesian_prod(torch.arange(ways), torch.arange(subjects)).T
        said = [self.said(layer, way, asked, (asked + 3) % subjects) for layer in (0, 1)]
        logits, labels = (torch.cat(part) for part in zip(*said, strict=True))
        right = logits.gather(1, labels[:, None])[:, 0]
        return float((right - logits.scatter(1, labels[:, None], float("-inf")).amax(1)).min())
