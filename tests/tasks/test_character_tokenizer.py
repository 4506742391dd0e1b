import subprocess
import sys

import pytest
from hypothesis import given
from hypothesis import strategies as st
from transformers import AutoTokenizer

from sequencematch.errors import InputError
from sequencematch.tasks import AddOrSubInBase, StarGraphs, build_tokenizer

ALPHABET = AddOrSubInBase().alphabet
TOKENIZER = build_tokenizer(ALPHABET)


@given(st.text(ALPHABET))
def test_one_token_per_character_and_back(text):
    ids = TOKENIZER(text)["input_ids"]
    assert ids == [4 + ALPHABET.index(character) for character in text]
    assert TOKENIZER.decode(ids) == text
    assert TOKENIZER.decode([*ids, TOKENIZER.eos_token_id], skip_special_tokens=True) == text


def test_special_tokens():
    assert len(TOKENIZER) == 4 + len(ALPHABET)
    ids = [TOKENIZER.pad_token_id, TOKENIZER.eos_token_id, TOKENIZER.bos_token_id, TOKENIZER.unk_token_id]
    assert ids == [0, 1, 2, 3]
    assert TOKENIZER("z\tI é")["input_ids"] == [3, 3, *TOKENIZER("I ")["input_ids"], 3]
    assert TOKENIZER("I<eos>")["input_ids"][-1] == 1
    assert list(TOKENIZER("I")) == ["input_ids", "attention_mask"]
    batch = TOKENIZER(["In", "I"], padding=True)
    assert batch["attention_mask"] == [[1, 1], [1, 0]]
    assert batch["input_ids"][1][1] == 0


def test_saved_loaded_and_extended(tmp_path):
    build_tokenizer(ALPHABET).save_pretrained(tmp_path)
    loaded = AutoTokenizer.from_pretrained(tmp_path)
    text = "In base 6,  what is\n\n12 - -5? \n"
    assert loaded.get_vocab() == TOKENIZER.get_vocab()
    assert loaded(text) == TOKENIZER(text)
    assert loaded.decode(loaded(text)["input_ids"]) == text

    assert loaded.add_special_tokens({"extra_special_tokens": ["<bksp>"]}) == 1
    loaded.save_pretrained(tmp_path / "extended")
    extended = AutoTokenizer.from_pretrained(tmp_path / "extended")
    new = len(TOKENIZER)
    assert extended("1<bksp>2")["input_ids"] == [*TOKENIZER("1")["input_ids"], new, *TOKENIZER("2")["input_ids"]]
    assert extended.decode(extended("1<bksp>2")["input_ids"]) == "1<bksp>2"
    assert extended.decode(extended("1<bksp>2")["input_ids"], skip_special_tokens=True) == "12"
    assert extended(text) == TOKENIZER(text)


def test_every_task_has_a_tokenizer():
    for task in (StarGraphs(nodes=62), AddOrSubInBase(bases=(2, 36)), AddOrSubInBase(digits=2, compact=True)):
        assert len(build_tokenizer(task.alphabet)) == 4 + len(task.alphabet)


@pytest.mark.parametrize("alphabet", ["", "aba"])
def test_bad_alphabets(alphabet):
    with pytest.raises(InputError, match="each of its characters once"):
        build_tokenizer(alphabet)


def test_tasks_import_lightly():
    code = "import sequencematch.tasks, sys; print(*{'torch', 'transformers', 'datasets'} & set(sys.modules))"
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert done.stdout.strip() == ""
