import pytest

from sequencematch.evaluation import Transcript, transcribe
from sequencematch.models.backspace import action_space
from sequencematch.tasks import build_tokenizer


@pytest.fixture(scope="module")
def parts():
    """A tokenizer of three letters and its action space with deletions of lengths 1, 2 and all."""
    from transformers import GPT2Config, GPT2LMHeadModel

    from sequencematch.models import add_backspace_token

    tokenizer = build_tokenizer("abc")
    model = GPT2LMHeadModel(GPT2Config(vocab_size=len(tokenizer), n_embd=4, n_layer=1, n_head=1, n_positions=8))
    add_backspace_token(model, tokenizer, {"<bksp>": 1, "<pair>": 2, "<reset>": "all"})
    return tokenizer, action_space(model, tokenizer)


def ids(tokenizer, text):
    return tokenizer(text, add_special_tokens=False)["input_ids"]


@pytest.mark.parametrize(
    ("actions", "fates"),
    [
        ("ab<eos>", "kept kept end"),
        ("ab", "kept kept"),
        ("ab<bksp>c<eos>", "kept deleted deletion kept end"),
        ("ab<bksp><bksp>c<eos>", "deleted deleted deletion deletion kept end"),
        ("abc<pair>a<eos>", "kept deleted deleted deletion kept end"),
        ("abc<reset>ab<eos>", "deleted deleted deleted deletion kept kept end"),
        ("a<bksp>b<bksp>c<eos>", "deleted deletion deleted deletion kept end"),
        ("ab<bksp>c<pair>b<eos>", "deleted deleted deletion deleted deletion kept end"),
        ("abc<bksp><reset><eos>", "deleted deleted deleted deletion deletion end"),
        ("", ""),
    ],
)
def test_what_became_of_each_token(actions, fates, parts):
    tokenizer, space = parts
    found = transcribe(ids(tokenizer, actions), tokenizer, space)
    assert [piece["fate"] for piece in found] == fates.split()
    assert "".join(piece["text"] for piece in found) == actions


def test_kept_text_is_the_completion(parts):
    tokenizer, space = parts
    found = transcribe(ids(tokenizer, "ab<bksp>ca<pair>bb<eos>"), tokenizer, space)
    assert "".join(piece["text"] for piece in found if piece["fate"] == "kept") == "abb"


def test_a_live_transcript_changes_its_mind(parts):
    tokenizer, space = parts
    transcript = Transcript(tokenizer, space)
    fates = []
    for action in ids(tokenizer, "ab<bksp>"):
        transcript.add(action)
        fates.append([piece.fate for piece in transcript.pieces])
    assert fates == [["kept"], ["kept", "kept"], ["kept", "deleted", "deletion"]]
