"""Multiple choice by the likelihood of the answers, with shipped suites and those of an operator."""

import hashlib
import json
from collections.abc import Sequence
from dataclasses import dataclass
from functools import cache
from importlib import resources
from pathlib import Path
from typing import Any

from daemon.core.errors import ProbeError
from daemon.core.ledger.outcomes import Outcomes
from workers.editing.model import EditableModel
from workers.probes.base import Measurement, Probe, ProbeContext

SHIPPED = ("knowledge", "sentiment", "entailment", "inference", "grammar", "rewording")
"""Suites in the style of MMLU, SST-2, RTE, NLI, CoLA and MRPC, with items of our own."""

_MAX_BYTES, _MAX_ITEMS = 16 << 20, 5_000  # of an operator's suite: more would take minutes on a CPU


@dataclass(frozen=True)
class Question:
    """A prompt, the possible continuations, and the index of the right one."""

    prompt: str
    choices: tuple[str, ...]
    answer: int


@dataclass(frozen=True)
class Suite:
    """Questions in a fixed order, identified by ``key``."""

    key: str
    questions: tuple[Question, ...]


def read_suite(path: Path) -> Suite:
    """Read a suite from JSON lines: ``{"prompt": "...", "choices": ["...", "..."], "answer": 0}``.

    ``question`` may be used instead of ``prompt``, as in MMLU.

    Raises:
        ProbeError: the file cannot be read, is too large, or a line is not a question.
    """
    try:
        data = path.read_bytes()
    except OSError as error:
        raise ProbeError(f"the suite {path} cannot be read: {error.strerror}") from error
    if len(data) > _MAX_BYTES:
        raise ProbeError(f"the suite {path} is larger than {_MAX_BYTES >> 20} MiB")
    return _suite(path.stem, data)


@cache
def shipped_suite(name: str) -> Suite:
    """A suite that comes with Errata."""
    return _suite(
        name, (resources.files("workers.probes") / "data" / "suites" / f"{name}.jsonl").read_bytes()
    )


def _suite(name: str, data: bytes) -> Suite:
    lines = [line for line in data.splitlines() if line.strip()]
    if not 0 < len(lines) <= _MAX_ITEMS:
        raise ProbeError(f"the suite {name} has {len(lines)} items, but 1 to {_MAX_ITEMS} are allowed")
    questions = tuple(_question(name, number, line) for number, line in enumerate(lines, start=1))
    return Suite(f"{name}@{hashlib.sha256(data).hexdigest()[:12]}", questions)


def _question(name: str, number: int, line: bytes) -> Question:
    try:
        item: dict[str, Any] = json.loads(line)
        prompt = item["prompt"] if "prompt" in item else item["question"]
        choices, answer = tuple(item["choices"]), item["answer"]
        good = isinstance(prompt, str) and len(choices) > 1 and all(isinstance(c, str) and c for c in choices)
        if good and type(answer) is int and 0 <= answer < len(choices):
            return Question(prompt, choices, answer)
    except (ValueError, TypeError, KeyError):  # reported below, with the line
        pass
    raise ProbeError(
        f"line {number} of the suite {name} needs a prompt, two or more choices and the answer's index"
    )


def margins(model: EditableModel, questions: Sequence[Question]) -> list[float]:
    """The lead in nats a token of the right choice of each question over the likeliest other one."""
    prompts = [q.prompt for q in questions for _ in q.choices]
    nll = model.target_nll(prompts, [choice for q in questions for choice in q.choices]).tolist()
    leads, at = [], 0
    for question in questions:
        own = nll[at : at + len(question.choices)]
        at += len(question.choices)
        right = own.pop(question.answer)
        leads.append(min(own) - right)
    return leads


def answer_all(model: EditableModel, questions: Sequence[Question]) -> list[bool]:
    """Whether the right choice of each question is the likeliest, by the mean NLL of its tokens."""
    return [margin > 0 for margin in margins(model, questions)]


def measure_suite(context: ProbeContext, suite: Suite) -> Measurement:
    """The share of right answers, with a share of the base model's as floor."""
    model = context.editor.model
    hits = answer_all(model, suite.questions)
    before = context.base.of(("suite", suite.key), lambda: answer_all(model, suite.questions))
    lost = [i for i, (then, now) in enumerate(zip(before, hits, strict=True)) if then and not now]
    floor = context.watch.suite_share * sum(before) / len(before)
    return Measurement(
        sum(hits) / len(hits), len(hits), {"lost": lost[:20]}, Outcomes.of_hits(suite.key, hits), floor
    )


def shipped_probe(name: str) -> Probe:
    """The probe of a shipped suite."""
    return Probe(name, 1, lambda c: measure_suite(c, shipped_suite(name)), lambda watch: watch.suite_share)


def own_probe(name: str, path: Path) -> Probe:
    """The probe of an operator's suite, whose file is read at each run."""
    return Probe(name, 1, lambda c: measure_suite(c, read_suite(path)), lambda watch: watch.suite_share)
