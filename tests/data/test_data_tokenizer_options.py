"""Options that change a tokenizer: its special tokens and its chat template."""

import pytest
from data_chats import CHATML, GEMMA, chat_tokenizer

from sequencematch.data import apply_tokenizer_options
from sequencematch.errors import InputError


def test_nothing_given_changes_nothing(tokenizer):
    before = dict(tokenizer.special_tokens_map)
    apply_tokenizer_options(tokenizer)
    assert (tokenizer.special_tokens_map, tokenizer.chat_template) == (before, None)


def test_tokens_are_set():
    tokenizer = chat_tokenizer(CHATML, eos_token="<eos>")
    apply_tokenizer_options(tokenizer, eos_token="<|im_end|>", pad_token="<eos>")
    ids = tokenizer.convert_tokens_to_ids(["<|im_end|>", "<eos>"])
    assert [tokenizer.eos_token_id, tokenizer.pad_token_id] == ids


@pytest.mark.parametrize("name", ["template.jinja", "template.j2"])
def test_a_template_from_a_file(tokenizer, tmp_path, name):
    (tmp_path / name).write_text(CHATML)
    apply_tokenizer_options(tokenizer, chat_template_path=str(tmp_path / name))
    assert tokenizer.chat_template == CHATML


def test_a_template_from_another_tokenizers_folder(tokenizer, tmp_path):
    chat_tokenizer(GEMMA).save_pretrained(tmp_path)
    apply_tokenizer_options(tokenizer, chat_template_path=str(tmp_path))
    assert tokenizer.chat_template == GEMMA
    assert tokenizer.eos_token == "<eos>"


@pytest.fixture
def folder(tmp_path, tokenizer):
    """What is no chat template: a tokenizer without one, an empty file and one that is no text."""
    tokenizer.save_pretrained(tmp_path / "plain")
    (tmp_path / "empty.jinja").write_text(" \n")
    (tmp_path / "bytes.jinja").write_bytes(b"\xff\xfe\x00\xd8")
    return tmp_path


@pytest.mark.parametrize(
    ("path", "sentence"),
    [
        ("nowhere.jinja", r"chat template '.*nowhere.jinja' cannot be read: .*No such file"),
        ("bytes.jinja", r"chat template '.*bytes.jinja' cannot be read"),
        ("empty.jinja", r"empty.jinja' is empty; give a file"),
        ("nowhere", r"no chat template can be loaded from '.*nowhere': .*; chat_template_path is a .jinja file"),
        ("plain", r"tokenizer of '.*plain' has no chat template; name another in chat_template_path"),
    ],
)
def test_no_template_there(tokenizer, folder, path, sentence):
    with pytest.raises(InputError, match=sentence):
        apply_tokenizer_options(tokenizer, eos_token="a", chat_template_path=str(folder / path))
    assert (tokenizer.eos_token, tokenizer.chat_template) == ("<eos>", None)  # all of it or nothing


@pytest.mark.parametrize("option", ["eos_token", "pad_token"])
def test_a_token_that_is_not_in_the_vocabulary(tokenizer, option):
    with pytest.raises(InputError, match=f"{option} '<nowhere>' is not in the tokenizer's vocabulary"):
        apply_tokenizer_options(tokenizer, **{"pad_token": "a", option: "<nowhere>"})
    assert (tokenizer.eos_token, tokenizer.pad_token) == ("<eos>", "<pad>")
