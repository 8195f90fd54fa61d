"""Generate text token by token, greedy or sampled, and yield each piece once it decodes cleanly."""

from collections.abc import Iterator, Sequence
from dataclasses import dataclass

import torch

from daemon.core.errors import PromptError
from workers.editing.model import EditableModel

_UNFINISHED = "\N{REPLACEMENT CHARACTER}"  # what an incomplete UTF-8 sequence decodes to


@dataclass(frozen=True)
class Sampling:
    """How to choose tokens and when to stop.

    ``temperature`` 0 is greedy decoding. ``skip`` are characters to cut from the answer's beginning.
    """

    max_tokens: int = 16
    temperature: float = 1.0
    top_p: float = 1.0
    seed: int | None = None
    stop: tuple[str, ...] = ()
    skip: str = ""


@dataclass(frozen=True)
class Piece:
    """A piece of the answer, the number of tokens so far, and at the end ``stop`` or ``length`` as reason."""

    text: str
    tokens: int
    finish: str | None = None


def encode(model: EditableModel, prompt: str) -> list[int]:
    """The tokens of a plain prompt.

    Raises:
        PromptError: it is empty or longer than the model's window.
    """
    return _fitting(model, model.tokenizer(prompt)["input_ids"])


def encode_chat(model: EditableModel, messages: Sequence[dict[str, str]]) -> list[int]:
    """The tokens of a conversation by the model's chat template, up to where the answer begins.

    Raises:
        PromptError: the model has no chat template, it refuses the messages, or they are too long.
    """
    if not getattr(model.tokenizer, "chat_template", None):
        raise PromptError("this model has no chat template", hint="use /v1/completions")
    try:
        text = model.tokenizer.apply_chat_template(list(messages), add_generation_prompt=True, tokenize=False)
    except Exception as error:  # a template is a program of the model's author and may raise anything
        raise PromptError(f"the chat template refuses these messages: {error}") from error
    return _fitting(model, model.tokenizer(text, add_special_tokens=False)["input_ids"])


@torch.no_grad()
def stream(model: EditableModel, prompt: Sequence[int], sampling: Sampling) -> Iterator[Piece]:
    """Generate text after ``prompt`` (token ids), with the reason of the end in the last piece."""
    ends = _ends(model)
    limit = min(sampling.max_tokens, window(model) - len(prompt))
    generator = None if sampling.seed is None else torch.Generator().manual_seed(sampling.seed)
    tokens: list[int] = []
    shown = 0
    cache = None
    ids = torch.tensor([list(prompt)], device=model.device)
    while len(tokens) < limit:
        output = model.lm(input_ids=ids, past_key_values=cache, use_cache=True)
        cache = output.past_key_values
        token = _choose(output.logits[0, -1].float().cpu(), sampling, generator)
        if token in ends:
            break
        tokens.append(token)
        text = model.tokenizer.decode(tokens, skip_special_tokens=True).lstrip(sampling.skip)
        sure, stopped = _until_stop(text, sampling.stop)
        if stopped:
            yield Piece(text[shown:sure], len(tokens), "stop")
            return
        if sure > shown:
            yield Piece(text[shown:sure], len(tokens))
            shown = sure
        ids = torch.tensor([[token]], device=model.device)
    text = model.tokenizer.decode(tokens, skip_special_tokens=True).lstrip(sampling.skip)
    yield Piece(text[shown:], len(tokens), "length" if len(tokens) >= limit else "stop")


def window(model: EditableModel) -> int:
    """The longest input of the model in tokens."""
    return int(getattr(model.lm.config.get_text_config(), "max_position_embeddings", 0) or 1 << 20)


def _fitting(model: EditableModel, ids: list[int]) -> list[int]:
    if not ids:
        raise PromptError("the prompt is empty", hint="send at least one character")
    if len(ids) >= window(model):
        raise PromptError(f"the prompt has {len(ids)} tokens, the model takes at most {window(model) - 1}")
    return ids


def _ends(model: EditableModel) -> frozenset[int]:
    """The tokens that end an answer."""
    named = getattr(model.lm.generation_config, "eos_token_id", None)
    ids = named if isinstance(named, list) else [named, model.tokenizer.eos_token_id]
    return frozenset(one for one in ids if one is not None)


def _choose(logits: torch.Tensor, sampling: Sampling, generator: torch.Generator | None) -> int:
    """Choose a token by its logits [vocabulary]: the likeliest, or one drawn from the nucleus."""
    if sampling.temperature == 0:
        return int(logits.argmax())
    shares = torch.softmax(logits / sampling.temperature, dim=-1)
    if sampling.top_p < 1:
        ordered, index = shares.sort(descending=True)
        tail = ordered.cumsum(-1) - ordered >= sampling.top_p  # the token that crosses the line stays
        shares = torch.zeros_like(shares).scatter(0, index, ordered.masked_fill(tail, 0))
    return int(torch.multinomial(shares, 1, generator=generator))


def _until_stop(text: str, stops: Sequence[str]) -> tuple[int, bool]:
    """How many characters of the text may be shown, and whether a stop word ends it there."""
    cuts = [text.find(stop) for stop in stops if stop in text]
    if cuts:
        return min(cuts), True
    sure = len(text.rstrip(_UNFINISHED))
    for stop in stops:  # an end that may become a stop word is not shown yet
        for length in range(min(len(stop) - 1, sure), 0, -1):
            if text[:sure].endswith(stop[:length]):
                sure -= length
                break
    return sure, False
