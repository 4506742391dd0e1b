"""The text of a completion while it is written and taken back."""

from functools import cache
from os.path import commonprefix
from typing import Any

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st
from tokenizers import Tokenizer, decoders, models, pre_tokenizers
from transformers import PreTrainedTokenizerFast
from transformers.convert_slow_tokenizer import bytes_to_unicode

from sequencematch.errors import InputError
from sequencematch.mdp import Trajectory
from sequencematch.rollouts.events import Append, Delete, End
from sequencematch.rollouts.result import Rollout
from sequencematch.rollouts.streaming import TextChange, TextStream
from sequencematch.tasks import build_tokenizer

ALPHABET = " ab,\nä€🎉\ufffd"
KINDS = ["byte-level", "byte-fallback", "metaspace", "characters", "words"]
INDEX = 3
NOTHING = TextChange(0, "")
A, INVALID = ord("a"), 0xFF
EURO = list("€".encode())
UMLAUT = list("ä".encode())


@cache
def tokenizer_of(kind):
    """A tokenizer for texts over ALPHABET. If it has bytes, ids 0 to 255 are theirs."""
    if kind == "characters":
        return build_tokenizer(ALPHABET)
    symbols = [bytes_to_unicode()[byte] for byte in range(256)]
    if kind == "byte-level":  # with tokens that are parts of two or three characters
        space, euro = symbols[0x20], [symbols[byte] for byte in EURO]
        merges = [(space, euro[0]), (euro[2], "a"), (euro[2], euro[0]), (euro[2] + euro[0], euro[1])]
        vocabulary = [*symbols, *("".join(pair) for pair in merges)]
        tokenizer = Tokenizer(models.BPE({token: i for i, token in enumerate(vocabulary)}, merges))
        tokenizer.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False, use_regex=False)
        tokenizer.decoder = decoders.ByteLevel()
    elif kind == "byte-fallback":
        vocabulary = [*(f"<0x{byte:02X}>" for byte in range(256)), *"▁ab,\ufffd", "▁a", "▁▁"]
        merges = [("▁", "a"), ("▁", "▁")]
        tokenizer = Tokenizer(models.BPE({token: i for i, token in enumerate(vocabulary)}, merges, byte_fallback=True))
        tokenizer.pre_tokenizer = pre_tokenizers.Metaspace(split=False)
        steps = [decoders.Replace("▁", " "), decoders.ByteFallback(), decoders.Fuse(), decoders.Strip(" ", 1, 0)]
        tokenizer.decoder = decoders.Sequence(steps)
    elif kind == "metaspace":
        vocabulary = [("<unk>", 0.0), *((token, -1.0) for token in [*"▁ab,\nä€🎉\ufffd", "▁a", "▁▁"])]
        tokenizer = Tokenizer(models.Unigram(vocabulary, unk_id=0))
        tokenizer.pre_tokenizer, tokenizer.decoder = pre_tokenizers.Metaspace(), decoders.Metaspace()
    else:  # no decoder: words are joined by spaces
        tokenizer = Tokenizer(models.WordLevel({"<unk>": 0, "a": 1, "b": 2, ",": 3, "ä": 4, "€": 5}, unk_token="<unk>"))
        tokenizer.pre_tokenizer = pre_tokenizers.Whitespace()
    return PreTrainedTokenizerFast(tokenizer_object=tokenizer, pad_token="<pad>", clean_up_tokenization_spaces=False)


def full_text(kind, token_ids, skip=True):
    return tokenizer_of(kind).decode(list(token_ids), skip_special_tokens=skip)


def visible_text(kind, token_ids, skip=True):
    """What is to be shown of these tokens while more may follow, by decoding all of them."""
    text = full_text(kind, token_ids, skip)
    if kind != "byte-fallback":
        return text.rstrip("\ufffd")
    # An incomplete character makes all bytes before it U+FFFD, so what was there before they came counts.
    while text.endswith("\ufffd"):
        token_ids = token_ids[:-1]
        text = full_text(kind, token_ids, skip)
    return text


def end(completion, index=INDEX):
    actions = np.array(completion, dtype=np.int64)
    trajectory = Trajectory(np.array([1]), actions, terminated=False, source="policy", policy_version=0)
    return End(index, Rollout(trajectory, np.zeros(len(actions)), tuple(completion), "max_actions"))


def append(stream, *token_ids):
    return [stream.feed(Append(INDEX, token_id)) for token_id in token_ids]


def delete(stream, count):
    return stream.feed(Delete(INDEX, 0, count))


@st.composite
def walks(draw, kind):
    """Token ids to append and negative numbers of tokens to delete, all legal."""
    tokenizer = tokenizer_of(kind)
    texts = st.text(ALPHABET, max_size=12).map(lambda text: tokenizer.encode(text, add_special_tokens=False))
    ids = st.integers(0, len(tokenizer) + 1)  # the last are of no token
    repeated = st.builds(lambda ids, times: ids * times, st.lists(ids, min_size=1, max_size=3), st.integers(1, 12))
    deletions = st.integers(1, 8).map(lambda count: [-count])
    walk, length = [], 0
    for part in draw(st.lists(st.one_of(texts, texts, st.lists(ids, max_size=4), repeated, deletions), max_size=12)):
        if part and part[0] < 0:
            part = [max(part[0], -length)] if length else []
        length += sum(part) if part and part[0] < 0 else len(part)
        walk += part
    return walk


@pytest.mark.parametrize("kind", KINDS)
@given(data=st.data(), hold_back=st.one_of(st.just(0), st.integers(0, 5), st.just(10**9)), skip=st.booleans())
def test_the_shown_text_is_that_of_the_surviving_tokens_which_are_old_enough(kind, data, hold_back, skip):
    stream = TextStream(tokenizer_of(kind), hold_back, skip)
    survivors: list[tuple[int, int]] = []
    text = ""
    for number, move in enumerate(data.draw(walks(kind))):
        if move < 0:
            del survivors[move:]
            change = delete(stream, -move)
        else:
            survivors.append((move, number))
            change = stream.feed(Append(INDEX, move))
        shown = visible_text(kind, [token_id for token_id, born in survivors if number - born >= hold_back], skip)
        kept = len(commonprefix([text, shown]))  # noqa: RUF071
        assert change == TextChange(len(text) - kept, shown[kept:])
        assert stream.text == change.apply(text) == shown
        assert not shown.endswith("\ufffd")
        text = shown
    completion = [token_id for token_id, _ in survivors]
    change = stream.feed(end(completion))
    assert stream.text == change.apply(text) == full_text(kind, completion, skip)


@pytest.mark.parametrize("kind", KINDS)
@given(data=st.data(), text=st.text(ALPHABET, min_size=1, max_size=40), hold_back=st.integers(0, 3))
def test_of_a_text_only_a_beginning_is_ever_shown(kind, data, text, hold_back):
    """Back and forth along the tokens of a valid text."""
    token_ids = tokenizer_of(kind).encode(text, add_special_tokens=False)
    whole = full_text(kind, token_ids)
    stream, length = TextStream(tokenizer_of(kind), hold_back), 0
    for count in data.draw(st.lists(st.integers(0, 6), max_size=10)):
        if length and count:
            count = min(count, length)
            delete(stream, count)
            length -= count
            assert whole.startswith(stream.text)
        for token_id in token_ids[length : length + 9]:
            stream.feed(Append(INDEX, token_id))
            length += 1
            assert whole.startswith(stream.text)
    append(stream, *token_ids[length:])
    stream.feed(end(token_ids))
    assert stream.text == whole


def test_what_is_deleted_is_erased():
    stream = TextStream(tokenizer_of("characters"))
    token_ids = tokenizer_of("characters").encode("ab,a")
    assert append(stream, *token_ids) == [TextChange(0, character) for character in "ab,a"]
    assert delete(stream, 3) == TextChange(3, "")
    assert append(stream, token_ids[2]) == [TextChange(0, ",")]
    assert stream.text == "a,"
    assert delete(stream, 2) == TextChange(2, "")
    assert stream.feed(end([])) == NOTHING


@pytest.mark.parametrize("kind", ["byte-level", "byte-fallback"])
def test_a_character_of_several_tokens_is_shown_and_hidden_as_a_whole(kind):
    stream = TextStream(tokenizer_of(kind))
    assert append(stream, *UMLAUT, *EURO) == [NOTHING, TextChange(0, "ä"), NOTHING, NOTHING, TextChange(0, "€")]
    assert delete(stream, 1) == TextChange(1, "")
    assert append(stream, EURO[2]) == [TextChange(0, "€")]
    assert delete(stream, 4) == TextChange(2, "")
    assert append(stream, UMLAUT[1]) == [TextChange(0, "ä")]


def test_the_complete_part_of_a_token_is_shown():
    tokenizer = tokenizer_of("byte-level")
    stream = TextStream(tokenizer)
    token_ids = tokenizer.encode("b € €")
    assert len(token_ids) == 7
    assert append(stream, *token_ids) == [TextChange(0, part) for part in ("b", " ", "", "€", " ", "", "€")]


@pytest.mark.parametrize("kind", ["byte-level", "byte-fallback"])
def test_bytes_that_are_no_character_are_shown_once_more_text_follows(kind):
    stream = TextStream(tokenizer_of(kind))
    a, b = tokenizer_of(kind).convert_tokens_to_ids(["a", "b"])
    assert append(stream, a, INVALID, INVALID, b) == [
        TextChange(0, "a"),
        NOTHING,
        NOTHING,
        TextChange(0, "\ufffd\ufffdb"),
    ]
    assert delete(stream, 1) == TextChange(3, "")
    assert stream.feed(end([a, INVALID, INVALID])) == TextChange(0, "\ufffd\ufffd")


@pytest.mark.parametrize("kind", ["byte-level", "byte-fallback"])
def test_the_end_shows_an_incomplete_character_as_decoding_does(kind):
    stream = TextStream(tokenizer_of(kind))
    append(stream, *UMLAUT, EURO[0])
    assert stream.text == "ä"
    stream.feed(end([*UMLAUT, EURO[0]]))
    assert stream.text == {"byte-level": "ä\ufffd", "byte-fallback": "\ufffd\ufffd\ufffd"}[kind]


@pytest.mark.parametrize("text", ["€" * 20, " " * 16, " " * 17, "€" + " " * 20])
def test_text_that_later_tokens_decode_differently_is_replaced_and_comes_back(text):
    """Byte fallback decodes a run of bytes to U+FFFD if any of it is not UTF-8."""
    stream = TextStream(tokenizer_of("byte-fallback"))
    b = tokenizer_of("byte-fallback").convert_tokens_to_ids("b")
    append(stream, b, *text.encode(), INVALID)
    assert stream.text == "b" + text
    replaced = "\ufffd" * (len(text.encode()) + 1) + "b"
    assert append(stream, b) == [TextChange(len(text), replaced)]
    assert delete(stream, 1) == TextChange(len(replaced), text)


def test_a_token_may_do_nothing_but_erase():
    class ErasingTokenizer:
        def decode(self, token_ids, **options):
            text = ""
            for token_id in token_ids:
                text = text + chr(token_id) if token_id else text[:-1]
            return text

    tokenizer: Any = ErasingTokenizer()
    stream = TextStream(tokenizer)
    assert append(stream, ord("a"), ord("b"), 0) == [TextChange(0, "a"), TextChange(0, "b"), TextChange(1, "")]
    assert append(stream, ord("c")) == [TextChange(0, "c")]
    assert delete(stream, 2) == TextChange(1, "b")


def test_a_held_back_token_is_shown_when_so_many_actions_have_not_deleted_it():
    stream = TextStream(tokenizer_of("characters"), hold_back=2)
    a, b, comma = tokenizer_of("characters").encode("ab,")
    assert append(stream, a, b, comma) == [NOTHING, NOTHING, TextChange(0, "a")]
    assert delete(stream, 1) == TextChange(0, "b")  # a deletion is an action too
    assert append(stream, comma) == [NOTHING]
    assert delete(stream, 2) == TextChange(1, "")  # shown, and deleted all the same
    assert append(stream, b) == [NOTHING]
    assert stream.feed(end([a, b])) == TextChange(0, "b")


def test_nothing_is_shown_before_the_end_if_all_is_held_back():
    stream = TextStream(tokenizer_of("metaspace"), hold_back=100)
    token_ids = tokenizer_of("metaspace").encode("a  bä a" * 5)
    assert set(append(stream, *token_ids)) == {NOTHING}
    assert stream.feed(end(token_ids)) == TextChange(0, "a  bä a" * 5)


@pytest.mark.parametrize("kind", ["byte-fallback", "metaspace"])
def test_only_the_space_at_the_beginning_is_dropped(kind):
    tokenizer = tokenizer_of(kind)
    stream = TextStream(tokenizer)
    word = tokenizer.convert_tokens_to_ids("▁a")
    assert append(stream, word, tokenizer.pad_token_id, word) == [TextChange(0, "a"), NOTHING, TextChange(0, " a")]
    assert delete(stream, 2) == TextChange(2, "")
    assert append(stream, *[word] * 40) == [TextChange(0, " a")] * 40


def test_special_tokens_can_be_shown():
    tokenizer = tokenizer_of("byte-level")
    for skip, shown in ((True, "ab"), (False, "a<pad>b")):
        stream = TextStream(tokenizer, skip_special_tokens=skip)
        append(stream, *tokenizer.convert_tokens_to_ids(["a", "<pad>", "b"]))
        assert stream.text == shown


class CountingTokenizer:
    """Counts the tokens that are decoded, and the calls."""

    def __init__(self, kind):
        self.tokenizer = tokenizer_of(kind)
        self.decoded = self.calls = 0

    def decode(self, token_ids, **options):
        self.decoded += len(token_ids)
        self.calls += 1
        return self.tokenizer.decode(token_ids, **options)


def costs_of(stream, tokenizer, events):
    """How many tokens are decoded for each event."""
    costs = []
    for event in events:
        before = tokenizer.decoded
        stream.feed(event)
        costs.append(tokenizer.decoded - before)
    return costs


@pytest.mark.parametrize("kind", KINDS)
@pytest.mark.parametrize("text", ["a", " a", "€", "a🎉" + 40 * "\n", "ab ä€🎉, ", "<pad>", "a<pad>", "a\ufffd"])
def test_an_event_costs_the_same_after_many_tokens(kind, text):
    token_ids = tokenizer_of(kind).encode(text * (500 // len(text)), add_special_tokens=False)
    token_ids *= 500 // len(token_ids) or 1  # a word of many letters may be one token
    tokenizer: Any = CountingTokenizer(kind)
    stream = TextStream(tokenizer)
    costs = costs_of(stream, tokenizer, [Append(INDEX, token_id) for token_id in token_ids])
    most = max(costs[:100])
    assert max(costs[100:]) <= most
    assert stream.text == visible_text(kind, token_ids)
    again = [Delete(INDEX, 0, 9), *(Append(INDEX, token_id) for token_id in token_ids[-9:]), end(token_ids)]
    costs = costs_of(stream, tokenizer, again)
    assert costs[0] == 0
    assert max(costs) <= most


@pytest.mark.parametrize("kind", ["byte-level", "byte-fallback"])
@pytest.mark.parametrize("run", [[INVALID], UMLAUT[1:], EURO[:1], EURO[:2]])
def test_a_long_run_of_bytes_that_are_no_characters_costs_the_same_too(kind, run):
    tokenizer: Any = CountingTokenizer(kind)
    stream = TextStream(tokenizer)
    costs = costs_of(stream, tokenizer, [Append(INDEX, token_id) for token_id in [A, *run * 300]])
    assert max(costs[100:]) <= max(costs[:100])
    assert stream.text == "a"


@pytest.mark.parametrize("kind", ["byte-level", "byte-fallback", "metaspace"])
def test_tokens_without_text_do_not_matter(kind):
    tokenizer: Any = CountingTokenizer(kind)
    stream = TextStream(tokenizer)
    a, space = tokenizer_of(kind).encode("a ", add_special_tokens=False)[-2:]
    append(stream, a, *[tokenizer_of(kind).pad_token_id] * 300)
    before = tokenizer.decoded
    assert append(stream, space) == [TextChange(0, " ")]
    assert tokenizer.decoded - before < 10


def test_a_token_takes_about_one_call_of_the_tokenizer():
    tokenizer: Any = CountingTokenizer("characters")
    stream = TextStream(tokenizer)
    append(stream, *tokenizer_of("characters").encode("ab, " * 40))
    assert len(stream.text) <= tokenizer.calls <= 1.3 * len(stream.text)


def test_events_that_do_not_fit_are_refused_and_change_nothing():
    stream = TextStream(tokenizer_of("characters"))
    a, b = tokenizer_of("characters").encode("ab")
    append(stream, a, b)
    for event in (Append(INDEX + 1, a), Delete(INDEX + 1, 0, 1), end([a, b], INDEX + 1)):
        with pytest.raises(InputError, match=f"rollout {INDEX}, not {INDEX + 1}"):
            stream.feed(event)
    for count in (3, 0, -1):
        with pytest.raises(InputError, match=f"{count} tokens cannot be deleted from a completion of 2"):
            delete(stream, count)
    assert stream.text == "ab"
    stream.feed(end([a, b]))
    for event in (Append(INDEX, a), Delete(INDEX, 0, 1), end([a, b])):
        with pytest.raises(InputError, match="nothing can follow the end"):
            stream.feed(event)
    assert stream.text == "ab"


@pytest.mark.parametrize("hold_back", [-1, 1.0, True, None, "2"])
def test_tokens_are_held_back_for_a_whole_number_of_actions(hold_back):
    with pytest.raises(InputError, match="hold_back must be a whole number of at least 0"):
        TextStream(tokenizer_of("characters"), hold_back)


def test_a_change_does_not_erase_more_than_there_is():
    assert TextChange(2, "xy").apply("ab") == "xy"
    with pytest.raises(InputError, match="erases 3 characters does not fit a text of 2"):
        TextChange(3, "").apply("ab")


def test_finishing_shows_what_is_left_once():
    tokenizer = tokenizer_of("characters")
    stream = TextStream(tokenizer, hold_back=9)
    for token_id in tokenizer.encode("ab"):
        assert stream.feed(Append(INDEX, token_id)) == NOTHING
    assert stream.finish() == TextChange(0, "ab")
    assert stream.finish() == NOTHING
    assert stream.text == "ab"
    with pytest.raises(InputError, match="follow the end"):
        stream.feed(Append(INDEX, 1))
