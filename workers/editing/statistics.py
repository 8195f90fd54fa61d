"""Statistics of the clean model: second moments of keys, prompt prefixes and mean norms.

C = E[k kᵀ] over positions of text, attention sinks (the first token) left out. Some 10·d_in tokens suffice
(FastMEMIT, arXiv 2506.04226); without a corpus the text is sampled from the clean model itself.
"""

import hashlib
import json
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path

import torch
from safetensors import SafetensorError, safe_open
from safetensors.torch import save

from daemon.core.errors import ModelError
from daemon.core.fsio import sha256_of, write_durably
from workers.editing.model import EditableModel
from workers.editing.partial import Hook, first_of, hooked, stepped_over

Progress = Callable[[int, int], None]
"""Called with the amount done and the total."""

_SEED = 17  # any: the same for all, so that statistics repeat
_TOKENS_PER_KEY = 10  # tokens of text per row of C (FastMEMIT)
_WIDTH = 256  # tokens in one sampled text
_ROWS = 16  # texts in one pass
_OPENINGS = ("The", "Because", "In", "I", "You")
_PREFIX_TOKENS = 9  # MEMIT takes 5 to 10
_FORMAT = 2  # of the cached file: part of its name


@dataclass(frozen=True)
class Statistics:
    """Second moment C [d_in, d_in] fp32 and mean norm of the clean output (anchor) of each edited layer.

    ``prefixes`` come before prompts in the target search. ``split_half_error`` estimates the error of C: the
    relative Frobenius distance between the moments of two halves of the text, at the worst layer.
    """

    moments: dict[int, torch.Tensor]
    anchors: dict[int, float]
    prefixes: tuple[str, ...]
    tokens: int
    split_half_error: float


def load_or_compute(
    model: EditableModel,
    layers: Sequence[int],
    folder: Path,
    corpus: Path | None = None,
    progress: Progress | None = None,
) -> Statistics:
    """Read the statistics of a model, layers and corpus from the cache in ``folder``, or compute them.

    Raises ModelError if the cached file is damaged or the corpus cannot be read.
    """
    path = folder / f"{_cache_key(model, layers, corpus)}.safetensors"
    if path.exists():
        return _read(path, layers)
    statistics = compute(model, layers, corpus, progress)
    _write(path, statistics)
    return statistics


def compute(
    model: EditableModel, layers: Sequence[int], corpus: Path | None = None, progress: Progress | None = None
) -> Statistics:
    """Sample or read text and run it through the lower layers once."""
    report = progress or (lambda _done, _total: None)
    keys = int(model.weight(layers[0]).shape[1])
    texts = max(2 * _ROWS, -(-keys * _TOKENS_PER_KEY // _WIDTH))
    prefixes = make_prefixes(model)
    batches = list(
        _corpus_batches(model, corpus, texts) if corpus else _sampled_batches(model, texts, report)
    )
    return _moments(model, layers, batches, prefixes)


def make_prefixes(model: EditableModel) -> tuple[str, ...]:
    """Sample five short beginnings of text from the clean model with a fixed seed."""
    prefixes = []
    with torch.random.fork_rng(), torch.no_grad():
        torch.manual_seed(_SEED)
        for opening in _OPENINGS:
            words = model.tokenizer(opening, add_special_tokens=False)["input_ids"]
            start = torch.tensor([[_start_token(model), *words]], device=model.device)
            ids = model.lm.generate(
                input_ids=start,
                attention_mask=torch.ones_like(start),
                do_sample=True,
                top_k=40,
                temperature=0.9,
                max_new_tokens=_PREFIX_TOKENS,
                pad_token_id=model.pad,
            )
            text = " ".join(model.tokenizer.decode(ids[0], skip_special_tokens=True).split())
            prefixes.append(f"{text} . " if _spaced(model) else f"{text}. ")
    return tuple(prefixes)


def _spaced(model: EditableModel) -> bool:
    """Return whether the tokenizer knows a full stop only as a word of its own."""
    return bool(model.tokenizer.unk_token_id in model.tokenizer("word.")["input_ids"])


def _sampled_batches(model: EditableModel, texts: int, report: Progress) -> Iterator[torch.Tensor]:
    """Yield token ids [rows, width] sampled from the model at temperature 1 without a prompt."""
    passes = -(-texts // (4 * _ROWS))
    rows = -(-texts // passes)
    width = min(_WIDTH, int(getattr(model.lm.config, "max_position_embeddings", _WIDTH)))
    for done in range(passes):
        with torch.random.fork_rng(), torch.no_grad():
            torch.manual_seed(_SEED + done)
            start = torch.full((rows, 1), _start_token(model), device=model.device)
            ids = start
            cache = None
            for column in range(width - 1):
                out = model.lm(input_ids=ids[:, -1:], past_key_values=cache, use_cache=True)
                cache = out.past_key_values
                chances = out.logits[:, -1].float().softmax(-1)
                ids = torch.cat([ids, torch.multinomial(chances, 1)], dim=1)
                if column % 16 == 0:
                    report(done * width + column, passes * width)
        yield from torch.split(ids, _ROWS)
    report(passes * width, passes * width)


def _start_token(model: EditableModel) -> int:
    """Return the token after which the model writes plain text."""
    tokenizer = model.tokenizer
    separator = tokenizer.convert_tokens_to_ids("<|endoftext|>")
    known = (separator, tokenizer.bos_token_id, tokenizer.eos_token_id)
    return int(next(token for token in known if token is not None and token >= 0))


def _corpus_batches(model: EditableModel, corpus: Path, texts: int) -> Iterator[torch.Tensor]:
    """Yield the first tokens of a text file in rows of equal width."""
    try:
        text = corpus.read_text(encoding="utf-8")
    except (OSError, UnicodeDecodeError) as error:
        raise ModelError(f"the corpus {corpus} cannot be read: {error}") from error
    ids = torch.tensor(model.tokenizer(text)["input_ids"][: texts * _WIDTH], device=model.device)
    rows = len(ids) // _WIDTH
    if rows < 2:
        raise ModelError(f"the corpus {corpus} is shorter than {2 * _WIDTH} tokens")
    yield from torch.split(ids[: rows * _WIDTH].view(rows, _WIDTH), _ROWS)


@torch.no_grad()
def _moments(
    model: EditableModel, layers: Sequence[int], batches: Sequence[torch.Tensor], prefixes: tuple[str, ...]
) -> Statistics:
    """Compute statistics from batches of token ids, C as sums of k kᵀ in fp64 over two halves."""
    size = int(model.weight(layers[0]).shape[1])
    halves = {layer: torch.zeros(2, size, size, dtype=torch.float64, device=model.device) for layer in layers}
    counts = [0, 0]
    norms = dict.fromkeys(layers, 0.0)
    for number, ids in enumerate(batches):
        for layer, (keys, output) in _keys_and_outputs(model, ids, layers).items():
            flat = keys[:, 1:].flatten(0, 1).double()
            halves[layer][number % 2] += flat.T @ flat
            norms[layer] += float(output[:, 1:].float().norm(dim=-1).sum())
        counts[number % 2] += ids[:, 1:].numel()
    total = sum(counts)
    moments = {layer: (both.sum(0) / total).float().cpu() for layer, both in halves.items()}
    error = 0.0
    if min(counts):
        error = max(_distance(both[0] / counts[0], both[1] / counts[1]) for both in halves.values())
    anchors = {layer: norm / total for layer, norm in norms.items()}
    return Statistics(moments, anchors, prefixes, total, error)


def _distance(one: torch.Tensor, other: torch.Tensor) -> float:
    return float((one - other).norm() / (one + other).norm())


def _keys_and_outputs(
    model: EditableModel, ids: torch.Tensor, layers: Sequence[int]
) -> dict[int, tuple[torch.Tensor, torch.Tensor]]:
    """Return keys [rows, T, d_in] and layer outputs [rows, T, d_model] of some layers."""
    keys: dict[int, torch.Tensor] = {}
    outputs: dict[int, torch.Tensor] = {}

    def hooks(layer: int) -> Iterator[Hook]:
        yield model.projection(layer), lambda _m, inputs, _out: keys.update({layer: inputs[0]})
        yield model.layers[layer], lambda _m, _in, out: outputs.update({layer: first_of(out)})

    every = (hook for layer in layers for hook in hooks(layer))
    with hooked(*every), stepped_over(model, range(max(layers) + 1, model.n_layers), None):
        model.decoder(input_ids=ids, use_cache=False)
    return {layer: (keys[layer], outputs[layer]) for layer in layers}


def _cache_key(model: EditableModel, layers: Sequence[int], corpus: Path | None) -> str:
    """Return a hash of the edited layers' weights, the layers, the corpus and the format."""
    digest = hashlib.sha256()
    for layer in layers:
        digest.update(
            model.stored_weight(layer).detach().cpu().contiguous().view(torch.uint8).numpy().tobytes()
        )
    source = sha256_of(corpus) if corpus else f"sampled {_SEED}"
    digest.update(json.dumps([list(layers), source, _FORMAT, str(model.dtype)]).encode())
    return digest.hexdigest()[:24]


def _write(path: Path, statistics: Statistics) -> None:
    tensors = {f"moment.{layer}": moment.contiguous() for layer, moment in statistics.moments.items()}
    about = {
        "anchors": statistics.anchors,
        "prefixes": statistics.prefixes,
        "tokens": statistics.tokens,
        "split_half_error": statistics.split_half_error,
    }
    write_durably(path, save(tensors, metadata={"errata": json.dumps(about)}))


def _read(path: Path, layers: Sequence[int]) -> Statistics:
    try:
        with safe_open(path, framework="pt") as stream:
            about = json.loads(stream.metadata()["errata"])
            moments = {layer: stream.get_tensor(f"moment.{layer}") for layer in layers}
    except (OSError, SafetensorError, KeyError, TypeError, ValueError) as error:
        raise ModelError(
            f"the statistics in {path} are damaged: {error}",
            hint="delete the file; errata prepare makes it again",
        ) from error
    anchors = {int(layer): norm for layer, norm in about["anchors"].items()}
    return Statistics(moments, anchors, tuple(about["prefixes"]), about["tokens"], about["split_half_error"])
