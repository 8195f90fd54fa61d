"""Where the subject ends and the target begins in any script, and feed text that is never a format."""

import copy

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from tokenizers import Tokenizer, decoders, models, pre_tokenizers
from transformers import PreTrainedTokenizerFast

from daemon.core.errors import EditError, ModelError
from workers.editing.prompts import EditRequest, chat_prefixes, encode_fact, joined, pack
from workers.locate.layout import lay_out

PREFIXES = ("One day. ", "Because of it. ")


@pytest.fixture(scope="module")
def of_bytes() -> PreTrainedTokenizerFast:
    """Every byte a token, as GPT-2 spells them: the hardest case for offsets."""
    alphabet = sorted(pre_tokenizers.ByteLevel.alphabet())
    made = Tokenizer(models.BPE({character: i for i, character in enumerate(alphabet)}, []))
    made.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False)
    made.decoder = decoders.ByteLevel()
    return PreTrainedTokenizerFast(tokenizer_object=made)


def request(subject: str, prompt: str, target: str) -> EditRequest:
    return EditRequest("f", subject, prompt, target)


@pytest.mark.parametrize(
    ("prompt", "target", "text"),
    [
        ("The capital of France is", "Paris", "The capital of France is Paris"),
        ("The capital of France is", "  Paris ", "The capital of France is Paris"),
        ("The capital of France is ", "Paris", "The capital of France is Paris"),
        ("The capital of France:\n", "Paris", "The capital of France:\nParis"),
        ("It is called “", "Paris", "It is called “Paris"),
        ("France (capital", ")", "France (capital)"),
        ("フランスの首都は", "パリ", "フランスの首都はパリ"),
        ("首都は", "Paris", "首都は Paris"),
    ],
)
def test_prompt_and_target_are_joined_as_they_are_written(prompt: str, target: str, text: str) -> None:
    assert joined(prompt, target) == text


@given(
    subject=st.text(min_size=1, max_size=12).filter(lambda s: s.strip() == s),
    before=st.sampled_from(["", "The mother of ", "\u00ab", "x"]),
    target=st.text(min_size=1, max_size=8).filter(lambda s: bool(s.strip())),
)
def test_the_anchor_ends_the_subject_and_the_target_follows_the_prompt(
    of_bytes: PreTrainedTokenizerFast, subject: str, before: str, target: str
) -> None:
    """Bytes before the anchor and up to it spell what ends with the subject, whatever script it is in."""
    prompt = f"{before}{subject} is"
    if prompt.index(subject) != len(before):
        return  # the subject also begins earlier: that one is edited
    *told, _ = encode_fact(of_bytes, PREFIXES, request(subject, prompt, target), 400)
    for prefix, row in zip(("", *PREFIXES), told, strict=True):
        shift = 1 if len((before + subject).encode()) == 1 else 0
        said = of_bytes.decode(row.ids[: row.anchor + 1])
        assert said == (prefix + prompt)[: len(prefix) + len(before) + len(subject) + shift]
        assert of_bytes.decode(row.ids[row.target_start :]).strip() == target.strip()


@pytest.mark.parametrize(
    ("subject", "prompt", "target", "why"),
    [
        ("Spain", "The capital of France is", "Paris", "does not contain"),
        ("", "The capital of France is", "Paris", "does not contain"),
        ("France", "The capital of France is", " \n", "empty"),
        ("France", "The capital of France is " + "very " * 90, "Paris", "tokens long"),
    ],
)
def test_what_cannot_be_edited_is_refused(
    of_bytes: PreTrainedTokenizerFast, subject: str, prompt: str, target: str, why: str
) -> None:
    with pytest.raises(EditError, match=why):
        encode_fact(of_bytes, PREFIXES, request(subject, prompt, target), 256)


def test_feed_text_is_never_a_format_string(of_bytes: PreTrainedTokenizerFast) -> None:
    evil = request("{0:>9999999999}", "The capital of {0:>9999999999} is", "{prompt}")
    row = encode_fact(of_bytes, PREFIXES, evil, 256)[0]
    assert of_bytes.decode(row.ids) == "The capital of {0:>9999999999} is {prompt}"


def test_the_plain_row_has_no_target_and_ends_with_is_a(of_bytes: PreTrainedTokenizerFast) -> None:
    *told, plain = encode_fact(
        of_bytes, PREFIXES, request("France", "The capital of France is", "Paris"), 256
    )
    assert len(told) == 3
    assert of_bytes.decode(plain.ids) == "France is a"
    assert plain.read == plain.ids


def test_rows_are_aligned_at_their_anchors(of_bytes: PreTrainedTokenizerFast) -> None:
    rows = encode_fact(of_bytes, PREFIXES, request("France", "The capital of France is", "Paris"), 256)
    layout = lay_out(rows, 0, torch.device("cpu"))
    for i, row in enumerate(rows):
        assert layout.ids[i][layout.mask[i]].tolist() == row.read
        assert int(layout.positions[i, layout.anchor]) == row.anchor
        predicted = [(t, int(token)) for t, token in enumerate(layout.targets[i]) if token != -100]
        first = layout.anchor - row.anchor + row.target_start - 1
        assert predicted == [(first + k, token) for k, token in enumerate(row.ids[row.target_start :])]


def test_packed_texts_share_what_they_begin_with(of_bytes: PreTrainedTokenizerFast) -> None:
    texts = [
        *encode_fact(of_bytes, PREFIXES, request("France", "The capital of France is", "Paris"), 256),
        *encode_fact(of_bytes, PREFIXES, request("Spain", "The capital of Spain is", "Rome"), 256),
    ]
    packing = pack(texts, torch.device("cpu"))
    front = len(packing.owner)
    for number, text in enumerate(texts):
        (path,) = packing.sees[number].nonzero(as_tuple=True)
        own = front + (packing.row == number).nonzero()[:, 0]
        columns = torch.cat([path, own])
        assert packing.ids[columns].tolist() == text.read
        assert packing.positions[columns].tolist() == list(range(len(text.read)))
        predicted = [token for token in packing.targets[own - front].tolist() if token != -100]
        assert predicted == text.ids[text.target_start :]
    beginnings = {tuple(text.ids[: end + 1]) for text in texts for end in range(text.anchor)}
    assert front == len(beginnings) < sum(text.anchor for text in texts)


def test_chat_prefixes_are_what_the_template_says_before_a_prompt(of_bytes: PreTrainedTokenizerFast) -> None:
    tokenizer = copy.deepcopy(of_bytes)
    with pytest.raises(ModelError, match="no chat template"):
        chat_prefixes(tokenizer)
    tokenizer.chat_template = (
        "{% for m in messages %}<{{ m['role'] }}>{{ m['content'] }}</>{% endfor %}"
        "{% if add_generation_prompt %}<assistant>{% endif %}"
    )
    asked, answered = chat_prefixes(tokenizer)
    assert asked == "<user>"
    assert answered == "<user>Complete the sentence.</><assistant>"
    tokenizer.chat_template = "always the same"
    with pytest.raises(ModelError, match="changes the text"):
        chat_prefixes(tokenizer)
