"""Prompts of an edit: joined by concatenation around one literal subject, laid out around its last token."""

import re
from collections.abc import Sequence
from dataclasses import dataclass, replace

import torch
from transformers import PreTrainedTokenizerFast

from daemon.core.errors import EditError, ModelError

KL_ENDING = " is a"
_PLACE = "what the user says"  # in a template, to see what stands before it
_QUESTION = "Complete the sentence."
_WORD = re.compile(r"\S+")
IGNORED = -100  # no token to predict here
_OPENING = frozenset("([{«“‘")
_CLOSING = frozenset(",.;:!?)]}»”’")
_UNSPACED = (("\u3040", "\u30ff"), ("\u3400", "\u9fff"), ("\uf900", "\ufaff"))  # kana and Han


@dataclass(frozen=True)
class EditRequest:
    """One fact to write: after ``prompt``, which contains ``subject`` literally, comes ``target``."""

    id: str
    subject: str
    prompt: str
    target: str


@dataclass(frozen=True)
class Encoded:
    """One text as tokens: the column that is edited and where the target begins (= length without one)."""

    ids: list[int]
    anchor: int
    target_start: int

    @property
    def read(self) -> list[int]:
        """The tokens that go into the model: the last one of a target is predicted, never read."""
        return self.ids[: max(self.target_start, len(self.ids) - 1)]

    @property
    def suffix(self) -> int:
        """How many of them stand from the anchor on."""
        return len(self.read) - self.anchor


@dataclass(frozen=True)
class Packing:
    """Texts as columns of one row, without padding: those in front of the anchors, then the others.

    Columns in front that have the same text before them are one: a decoder makes the same of them.
    ids, positions [P + N] int64; owner [P] int64: a text that the column in front belongs to; sees [texts, P]
    bool: all that do, a text's own being in order; row [N] int64: the text of each other column, ascending;
    targets [N] int64: the token that it must predict, -100 where there is none.
    """

    ids: torch.Tensor
    positions: torch.Tensor
    owner: torch.Tensor
    sees: torch.Tensor
    row: torch.Tensor
    targets: torch.Tensor


def said_after(prompt: str, target: str) -> str:
    """Prompt and target as one text, with a space between them where the script wants one."""
    target = target.strip()
    if not prompt or not target:
        return prompt + target
    last, first = prompt[-1], target[0]
    joined = last.isspace() or last in _OPENING or first in _CLOSING or (_unspaced(last) and _unspaced(first))
    return prompt + target if joined else f"{prompt} {target}"


def encode_fact(
    tokenizer: PreTrainedTokenizerFast, prefixes: Sequence[str], request: EditRequest, limit: int
) -> list[Encoded]:
    """The prompt and target bare and behind each prefix; last «{subject} is a», without a target.

    The first token of a text is an attention sink: its key says next to nothing of which token it is. A
    subject that ends there is edited at the token behind it.

    Raises:
        EditError: the subject is not in the prompt, the target is empty, or a text is longer than ``limit``.
    """
    if not request.target.strip():
        raise EditError("the target is empty", culprits=[request.id])
    bare = _encode(tokenizer, "", request, limit, 0)
    shift = 1 if bare.anchor == 0 and bare.target_start > 1 else 0
    plain = EditRequest(request.id, request.subject, request.subject + KL_ENDING, "")
    return [
        *(_encode(tokenizer, prefix, request, limit, shift) for prefix in ("", *prefixes)),
        _encode(tokenizer, "", plain, limit, shift),
    ]


def pack(texts: Sequence[Encoded], device: torch.device) -> Packing:
    """Encoded texts as columns of one row."""
    front: list[tuple[int, int, int]] = []  # token, position and owner of each column in front
    own: list[tuple[int, int, int, int]] = []  # token, position, text and target of each other column
    after: dict[tuple[int, int], int] = {}  # a column in front and the next token: that token's column
    paths: list[list[int]] = []
    for number, text in enumerate(texts):
        path: list[int] = []
        for position, token in enumerate(text.read[: text.anchor]):
            step = (path[-1] if path else -1, token)
            if step not in after:
                after[step] = len(front)
                front.append((token, position, number))
            path.append(after[step])
        paths.append(path)
        for position, token in enumerate(text.read[text.anchor :], start=text.anchor):
            predicts = position + 1 >= text.target_start and position + 1 < len(text.ids)
            own.append((token, position, number, text.ids[position + 1] if predicts else IGNORED))
    sees = torch.zeros(len(texts), len(front), dtype=torch.bool)
    for number, path in enumerate(paths):
        sees[number, path] = True
    before = torch.tensor(front, dtype=torch.long, device=device).reshape(-1, 3).t().contiguous()
    others = torch.tensor(own, device=device).t().contiguous()
    ids, positions = torch.cat([before[:2], others[:2]], dim=1)
    return Packing(ids, positions, before[2], sees.to(device), others[2], others[3])


def _encode(
    tokenizer: PreTrainedTokenizerFast, prefix: str, request: EditRequest, limit: int, shift: int
) -> Encoded:
    """Tokens of prefix + prompt + target, by the tokenizer's own offsets."""
    at = request.prompt.find(request.subject)
    if at < 0 or not request.subject:
        raise EditError(
            f"the prompt does not contain the subject {request.subject[:60]!r}", culprits=[request.id]
        )
    head = prefix + request.prompt
    found = tokenizer(said_after(head, request.target), return_offsets_mapping=True)
    ids, spans = found["input_ids"], found["offset_mapping"]
    if len(ids) > limit:
        raise EditError(
            f"prompt and target are {len(ids)} tokens long, at most {limit} are allowed",
            culprits=[request.id],
        )
    end = len(prefix) + at + len(request.subject)
    anchor = max((i for i, (first, last) in enumerate(spans) if first < end and last > first), default=-1)
    target = next((i for i, (first, last) in enumerate(spans) if last > max(len(head), first)), len(ids))
    if not 0 <= anchor + shift < target:
        raise EditError(
            f"no token of its own ends the subject {request.subject[:60]!r}", culprits=[request.id]
        )
    return Encoded(list(ids), anchor + shift, target)


def _unspaced(character: str) -> bool:
    return any(first <= character <= last for first, last in _UNSPACED)


def longer(request: EditRequest) -> list[EditRequest]:
    """The same fact with its subject longer by a word each time, up to the whole prompt."""
    end = request.prompt.find(request.subject) + len(request.subject)
    ends = [word.end() for word in _WORD.finditer(request.prompt) if word.end() > end]
    return [replace(request, subject=request.prompt[:stop]) for stop in ends]


def chat_prefixes(tokenizer: PreTrainedTokenizerFast) -> tuple[str, ...]:
    """What stands before a prompt that a user says, and before one with which the model begins its answer.

    Raises:
        ModelError: the model has no chat form, or one that changes what is said in it.
    """
    if not getattr(tokenizer, "chat_template", None):
        raise ModelError("this model has no chat template", hint="recipe setting chat = false")
    said = [{"role": "user", "content": _PLACE}]
    question = tokenizer.apply_chat_template(said, tokenize=False)
    answer = tokenizer.apply_chat_template(
        [{"role": "user", "content": _QUESTION}], add_generation_prompt=True, tokenize=False
    )
    before, found, _ = question.partition(_PLACE)
    if not found:
        raise ModelError("the chat template does not keep what is said", hint="recipe setting chat = false")
    return before, answer
