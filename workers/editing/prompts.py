"""Prompts of an edit: joined by concatenation around one literal subject, laid out around its last token."""

from collections.abc import Sequence
from dataclasses import dataclass

import torch
from transformers import PreTrainedTokenizerFast

from daemon.core.errors import EditError

KL_ENDING = " is a"
_MAX_TOKENS = 256


@dataclass(frozen=True)
class EditRequest:
    """One fact to write: after ``prompt``, which contains ``subject`` literally, comes ``target``."""

    id: str
    subject: str
    prompt: str
    target: str


@dataclass(frozen=True)
class Encoded:
    """One text as tokens: where the subject ends and where the target begins (= length without a target)."""

    ids: list[int]
    anchor: int
    target_start: int


@dataclass(frozen=True)
class Layout:
    """Rows of tokens aligned so that every subject's last token stands in column ``anchor``.

    ids [rows, T] int64; mask [rows, T] bool, True at real tokens; positions [rows, T] int64;
    targets [rows, T] int64: the token that column t must predict, -100 elsewhere.
    """

    ids: torch.Tensor
    mask: torch.Tensor
    positions: torch.Tensor
    targets: torch.Tensor
    anchor: int


def encode(tokenizer: PreTrainedTokenizerFast, prefix: str, request: EditRequest) -> Encoded:
    """Tokens of prefix + prompt + target, by the tokenizer's own offsets.

    Raises:
        EditError: the subject is not in the prompt, the target is empty, or the text is too long.
    """
    at = request.prompt.find(request.subject)
    if at < 0 or not request.subject:
        raise EditError(f"the prompt does not contain the subject {request.subject[:60]!r}")
    head = prefix + request.prompt
    text = f"{head} {request.target.strip()}" if request.target.strip() else head
    found = tokenizer(text, return_offsets_mapping=True)
    ids, spans = found["input_ids"], found["offset_mapping"]
    if len(ids) > _MAX_TOKENS:
        raise EditError(f"prompt and target are {len(ids)} tokens long, at most {_MAX_TOKENS} are allowed")
    subject_end = len(prefix) + at + len(request.subject)
    anchor = max(
        (i for i, (start, end) in enumerate(spans) if start < subject_end and end > start), default=-1
    )
    if anchor < 0:
        raise EditError(f"the subject {request.subject[:60]!r} has no token")
    target_start = next(
        (i for i, (start, end) in enumerate(spans) if end > len(head) and end > start), len(ids)
    )
    return Encoded(list(ids), anchor, target_start)


def require_target(encoded: Encoded) -> Encoded:
    """Refuse a text without a target token.

    Raises:
        EditError: the target is empty.
    """
    if encoded.target_start >= len(encoded.ids):
        raise EditError("the target is empty")
    return encoded


def lay_out(rows: Sequence[Encoded], pad: int, device: torch.device) -> Layout:
    """Align encoded texts at their anchors; the last token of a target is predicted, not read."""
    anchor = max(row.anchor for row in rows)
    kept = [row.ids[: max(row.target_start, len(row.ids) - 1)] for row in rows]
    width = anchor + max(len(ids) - row.anchor for ids, row in zip(kept, rows, strict=True))
    ids = torch.full((len(rows), width), pad)
    mask = torch.zeros((len(rows), width), dtype=torch.bool)
    targets = torch.full((len(rows), width), -100)
    for i, (row, tokens) in enumerate(zip(rows, kept, strict=True)):
        start = anchor - row.anchor
        ids[i, start : start + len(tokens)] = torch.tensor(tokens)
        mask[i, start : start + len(tokens)] = True
        for at in range(row.target_start, len(row.ids)):
            targets[i, start + at - 1] = row.ids[at]
    positions = (mask.cumsum(1) - 1).clamp(min=0)
    return Layout(ids.to(device), mask.to(device), positions.to(device), targets.to(device), anchor)
