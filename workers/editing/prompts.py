"""Prompts of an edit, built by concatenation and laid out around the subject's last token."""

import re
from collections.abc import Sequence
from dataclasses import dataclass, replace

import torch
from transformers import PreTrainedTokenizerFast

from daemon.core.errors import EditError, ModelError

KL_ENDING = " is a"
_PLACE = "what the user says"  # stands for a prompt in a chat template, to find the text before it
_QUESTION = "Complete the sentence."
_WORD = re.compile(r"\S+")
IGNORED = -100  # no token to predict here
_OPENING = frozenset("([{\u00ab“‘")  # no space follows
_CLOSING = frozenset(",.;:!?)]}\u00bb”’")  # no space precedes
_UNSPACED = (("\u3040", "\u30ff"), ("\u3400", "\u9fff"), ("\uf900", "\ufaff"))  # kana and Han


@dataclass(frozen=True)
class EditRequest:
    """A fact to write: ``prompt``, which contains ``subject`` literally, is to be followed by ``target``."""

    id: str
    subject: str
    prompt: str
    target: str


@dataclass(frozen=True)
class Encoded:
    """A text as tokens, with the edited column and the start of the target (without one, the length)."""

    ids: list[int]
    anchor: int
    target_start: int

    @property
    def read(self) -> list[int]:
        """The tokens that go into the model, without a target's last one, which is only predicted."""
        return self.ids[: max(self.target_start, len(self.ids) - 1)]

    @property
    def suffix(self) -> int:
        """The number of tokens from the anchor on."""
        return len(self.read) - self.anchor


@dataclass(frozen=True)
class Packing:
    """Texts as columns of one row without padding, P columns before the anchors and then the N others.

    Columns before the anchors that follow the same tokens are one, for a decoder computes the same for them.
    All int64: ids, positions [P + N]; owner [P]: one text of each of the first (sees [texts, P] bool: all of
    them); row [N]: the text of each other column, ascending; targets [N]: the token to predict, or -100.
    """

    ids: torch.Tensor
    positions: torch.Tensor
    owner: torch.Tensor
    sees: torch.Tensor
    row: torch.Tensor
    targets: torch.Tensor


def joined(prompt: str, target: str) -> str:
    """Return prompt and target as one text, with a space between them where the script has one."""
    target = target.strip()
    if not prompt or not target:
        return prompt + target
    last, first = prompt[-1], target[0]
    adjacent = (
        last.isspace() or last in _OPENING or first in _CLOSING or (_unspaced(last) and _unspaced(first))
    )
    return prompt + target if adjacent else f"{prompt} {target}"


def encode_fact(
    tokenizer: PreTrainedTokenizerFast, prefixes: Sequence[str], request: EditRequest, limit: int
) -> list[Encoded]:
    """Encode prompt and target bare and after each prefix, and last "{subject} is a" without a target.

    The first token of a text is an attention sink, whose key hardly depends on the token. A subject that ends
    there is edited at the next token. Raises EditError if the subject is not in the prompt, the target is
    empty, or a text is longer than ``limit``.
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
    """Lay encoded texts out as columns of one row."""
    front: list[tuple[int, int, int]] = []  # token, position and owner of each column before an anchor
    own: list[tuple[int, int, int, int]] = []  # token, position, text and target of each other column
    after: dict[tuple[int, int], int] = {}  # the column of such a token by its predecessor's and itself
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
    """Encode prefix + prompt + target by the tokenizer's own offsets."""
    at = request.prompt.find(request.subject)
    if at < 0 or not request.subject:
        raise EditError(
            f"the prompt does not contain the subject {request.subject[:60]!r}", culprits=[request.id]
        )
    head = prefix + request.prompt
    encoded = tokenizer(joined(head, request.target), return_offsets_mapping=True)
    ids, spans = encoded["input_ids"], encoded["offset_mapping"]
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
    """Return the same fact with its subject longer by a word each time, up to the whole prompt."""
    end = request.prompt.find(request.subject) + len(request.subject)
    ends = [word.end() for word in _WORD.finditer(request.prompt) if word.end() > end]
    return [replace(request, subject=request.prompt[:stop]) for stop in ends]


def chat_prefixes(tokenizer: PreTrainedTokenizerFast) -> tuple[str, ...]:
    """Return the chat form's text before a user's prompt and before the start of the model's answer.

    Raises ModelError if the model has no chat form, or one that changes the text put into it.
    """
    if not getattr(tokenizer, "chat_template", None):
        raise ModelError("this model has no chat template", hint="recipe setting chat = false")
    question = tokenizer.apply_chat_template([{"role": "user", "content": _PLACE}], tokenize=False)
    answer = tokenizer.apply_chat_template(
        [{"role": "user", "content": _QUESTION}], add_generation_prompt=True, tokenize=False
    )
    before, place, _ = question.partition(_PLACE)
    if not place:
        raise ModelError(
            "the chat template changes the text that is put into it", hint="recipe setting chat = false"
        )
    return before, answer
