"""Measure what an edit costs by stage, in forward units, and whether it grows with the facts held."""

import shutil
import tempfile
import time
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path
from statistics import median

import torch
from transformers import AutoModelForCausalLM, LlamaConfig, PreTrainedTokenizerFast

from workers.bench.baselines.registry import method
from workers.bench.facts import BenchFact
from workers.bench.lab import Lab, forward_unit, timed, wait_for_device
from workers.bench.report import Report
from workers.editing.editor import Associations, Editor
from workers.editing.model import EditableModel
from workers.editing.prompts import EditRequest, encode_fact, pack
from workers.editing.recipes import Recipe
from workers.editing.statistics import Statistics
from workers.progress import Step
from workers.revisions.store import Store

SHAPES = {
    "llama-3-8b": {
        "hidden_size": 4096, "intermediate_size": 14336, "num_hidden_layers": 32,
        "num_attention_heads": 32, "num_key_value_heads": 8, "vocab_size": 128256,
    },
    "small": {
        "hidden_size": 256, "intermediate_size": 896, "num_hidden_layers": 12,
        "num_attention_heads": 8, "num_key_value_heads": 2, "vocab_size": 49152,
    },
}  # fmt: skip
# Random weights: 10 and 2 steps, as a real search takes them, with nothing that ends or refuses one earlier.
_FIXED = {"steps": 10, "later_steps": 2, "extra_steps": 10, "mends": 0, "clamp": 1e9, "anchor_limit": 1e9}
_GROWTH_BATCHES = 200  # enough that a cost that grows with history would double
_UNIT = "forward unit"  # stage of the last row of a write


class StageClock:
    """Measures seconds by stage, the device's queue included."""

    def __init__(self) -> None:
        self.seconds: dict[str, float] = {}

    @contextmanager
    def measure(self, stage: str) -> Iterator[None]:
        """Add the time of the block to ``stage``, without that of the stages within it."""
        before, start = sum(self.seconds.values()), time.perf_counter()
        try:
            yield
        finally:
            wait_for_device()
            inner = sum(self.seconds.values()) - before
            spent = time.perf_counter() - start - inner
            self.seconds[stage] = self.seconds.get(stage, 0.0) + spent


def run_cost(lab: Lab, facts: Sequence[BenchFact], recipe: Recipe, report: Report, step: Step) -> None:
    """Measure one batch stage by stage, after a first write that warms the process up."""
    editor = lab.editor(recipe)
    if not report.has(stage=_UNIT):
        step("warm up", 0, 3)
        requests = [fact.request for fact in facts]
        editor.write(requests[:2])
        lab.release(editor)
        step("write", 1, 3)
        _write_in_stages(editor, requests, forward_unit(lab.model), report)
        lab.release(editor)
    step("growth", 2, 3)
    _growth(editor, len(facts), report)
    lab.release(editor)
    step("growth", 3, 3)


def run_shape(
    shape: str,
    tokenizer: PreTrainedTokenizerFast,
    facts: Sequence[BenchFact],
    recipe: Recipe,
    report: Report,
    step: Step,
) -> None:
    """Measure one batch on random weights of a model's shape, which take 10 and 2 steps a target."""
    step(f"build {shape}", 0, 2)
    model = _random(shape, tokenizer)
    fixed = recipe.changed(_FIXED | {"layers": _boundary(recipe, model.n_layers)}, model.n_layers)
    requests = [fact.request for fact in facts]
    statistics = _flat_statistics(model, fixed.layers)
    editor = method(recipe.name).load()(model, statistics, fixed)
    editor.write(requests[:2])
    editor.restore(Associations([], {}, {}))
    step(f"write on {shape}", 1, 2)
    if torch.cuda.is_available():
        torch.cuda.reset_peak_memory_stats()
    _write_in_stages(editor, requests, forward_unit(model), report)
    peak = torch.cuda.max_memory_allocated() / 2**30 if torch.cuda.is_available() else None
    report.add(
        stage="floor by FLOPs", tera_flops=_floor(model, statistics, requests, fixed) / 1e12, peak_gib=peak
    )
    step(f"write on {shape}", 2, 2)


def _write_in_stages(editor: Editor, requests: Sequence[EditRequest], unit: float, report: Report) -> None:
    clock = StageClock()
    timed_editor = type(editor)(editor.model, editor.statistics, editor.recipe, clock.measure)
    seconds = timed(lambda: timed_editor.write(requests))
    clock.seconds["other"] = max(0.0, seconds - sum(clock.seconds.values()))
    for stage, spent in [*clock.seconds.items(), ("all", seconds)]:
        report.add(
            stage=stage,
            seconds=spent,
            units_per_fact=spent / unit / len(requests),
            facts_per_second=len(requests) / seconds if stage == "all" else None,
        )
    report.add(stage=_UNIT, seconds=unit)


def _growth(editor: Editor, size: int, report: Report) -> None:
    """Solve, publish and save 200 batches of random pairs, and compare the last with the first."""
    generator = torch.Generator().manual_seed(0)
    folder = Path(tempfile.mkdtemp(prefix="errata-bench-"))
    store = Store(folder)

    def one() -> None:
        pairs = _random_pairs(editor, size, generator)
        editor.remember(pairs)
        for name, tensor in editor.published().items():
            store.put({name: tensor})

    try:
        spent = [timed(one) for _ in range(_GROWTH_BATCHES)]
    finally:
        shutil.rmtree(folder)
    early, late = median(spent[1:12]), median(spent[-11:])
    report.add(stage=f"solve and save, batch 2 to 12 of {size}", seconds=early)
    report.add(stage="the same, batch 190 to 200", seconds=late, growth=late / early)


def _random_pairs(editor: Editor, size: int, generator: torch.Generator) -> Associations:
    keys, values = {}, {}
    for layer in editor.layers:
        d_out, d_in = editor.model.weight(layer).shape
        keys[layer] = torch.randn(size, d_in, generator=generator)
        values[layer] = torch.randn(size, d_out, generator=generator)
    return Associations([str(i) for i in range(size)], keys, values)


def _random(shape: str, tokenizer: PreTrainedTokenizerFast) -> EditableModel:
    cuda = torch.cuda.is_available()
    torch.manual_seed(0)
    config = LlamaConfig(**SHAPES[shape], max_position_embeddings=8192, rope_theta=500000.0)
    with torch.device("cuda" if cuda else "cpu"):
        model = AutoModelForCausalLM.from_config(config, dtype=torch.bfloat16 if cuda else torch.float32)
    return EditableModel(model, tokenizer)


def _boundary(recipe: Recipe, n_layers: int) -> tuple[int, ...]:
    """Return the layers that correspond to 4 and 8 of 32, or the recipe's where they share one target."""
    return (round(4 * n_layers / 32), round(8 * n_layers / 32)) if recipe.own_targets else recipe.layers


def _flat_statistics(model: EditableModel, layers: Sequence[int]) -> Statistics:
    """Return statistics with C = I and no norm limit, for real ones of random weights say nothing."""
    moments = {layer: torch.eye(model.weight(layer).shape[1]) for layer in layers}
    prefixes = (
        "The weather has been fine today. ",
        "Because of the long journey. ",
        "In the first year of it. ",
        "I think that we should go. ",
        "You will find the house there. ",
    )
    return Statistics(moments, dict.fromkeys(layers, 1e9), prefixes, 0, 0.0)


def _floor(
    model: EditableModel, statistics: Statistics, requests: Sequence[EditRequest], recipe: Recipe
) -> float:
    """Return the FLOPs that the method needs at least: 2 a parameter and token forward, 2 more back to δ."""
    per_layer = sum(p.numel() for p in model.layers[0].parameters())
    head = model.lm.get_output_embeddings().weight.numel()
    texts = [
        text
        for request in requests
        for text in encode_fact(model.tokenizer, statistics.prefixes, request, model.max_tokens)
    ]
    packing = pack(texts, torch.device("cpu"))
    before, suffix = len(packing.owner), len(packing.row)
    predicted = sum(max(1, len(text.ids) - text.target_start) for text in texts)
    total = 0.0
    for layer in recipe.layers:
        above = (model.n_layers - layer - 1) * per_layer
        total += 2 * (before + suffix) * (layer + 1) * per_layer + 2 * before * above
        total += 4 * recipe.steps_at(layer) * (suffix * above + predicted * head)
    return total
