"""`studies/prepare_text.py`: what the text study reads, made of a plain text file."""

import inspect
import json
import random
import sys
from pathlib import Path

import pytest

from sequencematch import load_tokenizer
from sequencematch.study import Study
from sequencematch.training.run import Run, make_trainer

STUDIES = Path(__file__).parents[2] / "studies"
WORDS = ["the", "cat", "saw", "a", "big", "red", "ball", "and", "then", "it", "ran", "home", "to", "sleep"]


@pytest.fixture(scope="module")
def prepare_text():
    sys.path.insert(0, str(STUDIES))
    try:
        import prepare_text

        yield prepare_text
    finally:
        sys.path.remove(str(STUDIES))


@pytest.fixture
def stories(tmp_path):
    """A file of 40 stories of two lines, every second of them short, and the stories."""
    draw = random.Random(0)
    texts = [
        f"Story {i}: {' '.join(draw.choices(WORDS, k=30))}.\nThe end."
        if i % 2
        else f"Story {i}\u2026"  # an ellipsis is three bytes
        for i in range(40)
    ]
    path = tmp_path / "stories.txt"
    path.write_text("".join(f"{text}\n<|endoftext|>\n" for text in texts), encoding="utf-8")
    return path, texts


def read(output, split):
    lines = (output / "data" / f"{split}.jsonl").read_text(encoding="utf-8").splitlines()
    return [json.loads(line)["text"] for line in lines]


def run(prepare_text, train, output, *flags):
    base = ["--train", str(train), "--output", str(output), "--vocab_size", "300", "--held_out", "10"]
    return prepare_text.main([*base, "--min_tokens", "30", *flags])


def test_documents_are_split_and_short_ones_held_out_are_dropped(prepare_text, stories, tmp_path, capsys):
    path, texts = stories
    assert run(prepare_text, path, tmp_path / "out") == 0
    train, test = read(tmp_path / "out", "train"), read(tmp_path / "out", "test")
    assert train == [text for text in texts if text in train]  # whole, in their order
    assert len(train) == 30
    assert set(test) <= set(texts) - set(train)
    dropped = set(texts) - set(train) - set(test)
    assert test
    assert all(text.endswith("The end.") for text in test)
    assert dropped
    assert not any(text.endswith("The end.") for text in dropped)
    said = capsys.readouterr().out
    assert f"300 tokens; 30 documents to train on, {len(test)} held out ({len(dropped)} more had fewer" in said


def test_the_validation_file_is_held_out_too(prepare_text, stories, tmp_path):
    valid = tmp_path / "valid.txt"
    valid.write_text(f"{' '.join(WORDS * 3)}\n<|endoftext|>\nshort\n", encoding="utf-8")
    assert run(prepare_text, stories[0], tmp_path / "alone") == 0
    assert run(prepare_text, stories[0], tmp_path / "both", "--valid", str(valid)) == 0
    assert read(tmp_path / "both", "test") == [*read(tmp_path / "alone", "test"), " ".join(WORDS * 3)]
    assert read(tmp_path / "both", "train") == read(tmp_path / "alone", "train")


def test_the_same_again_gives_the_same_bytes(prepare_text, stories, tmp_path):
    for name, seed in (("one", "0"), ("two", "0"), ("other", "1")):
        assert run(prepare_text, stories[0], tmp_path / name, "--seed", seed) == 0
    files = [path.relative_to(tmp_path / "one") for path in (tmp_path / "one").rglob("*") if path.is_file()]
    assert len(files) == 4
    assert all((tmp_path / "one" / file).read_bytes() == (tmp_path / "two" / file).read_bytes() for file in files)
    assert read(tmp_path / "one", "test") != read(tmp_path / "other", "test")


def test_the_tokenizer_gives_every_text_back_and_begins_prompts(prepare_text, stories, tmp_path):
    assert run(prepare_text, stories[0], tmp_path / "out") == 0
    tokenizer = load_tokenizer(str(tmp_path / "out" / "tokenizer"))
    assert [tokenizer.pad_token_id, tokenizer.eos_token_id, tokenizer.bos_token_id] == [0, 1, 2]
    assert "<bksp>" not in tokenizer.get_vocab()
    for text in (" Two  spaces,\nlines\t and \u6f22\U0001f600 ", *stories[1]):
        assert tokenizer.decode(tokenizer(text, add_special_tokens=False)["input_ids"]) == text
    assert tokenizer("the")["input_ids"][0] == tokenizer.bos_token_id


@pytest.mark.parametrize(
    ("pattern", "found"), [("= .* =", ["A b", "= c", "d"]), ("= [^=].* =", ["A b", "= c\n \n = = Part = = \nd"])]
)
def test_wikitext_at_headings_or_at_titles(prepare_text, tmp_path, pattern, found):
    path = tmp_path / "wiki.txt"
    path.write_text(" \n = One = \n \n A b \n = Two = \n = c\n \n = = Part = = \nd\n", encoding="utf-8")
    assert prepare_text.read_documents(path, prepare_text.re.compile(pattern)) == found


@pytest.mark.parametrize(
    ("content", "flags", "message"),
    [
        (None, [], "there is no file"),
        (b"\xff\xfe", [], "cannot be read as UTF-8 text"),
        (b"\n<|endoftext|>\n", [], "there are no documents in"),
        (b"one\n<|endoftext|>\ntwo\n", [], "leave a document to train on, of 2, not 10"),
        (b"one\n<|endoftext|>\ntwo\n", ["--held_out", "-1"], "held_out must be at least 0"),
        (b"one\n<|endoftext|>\ntwo\n", ["--held_out", "1"], "none of the 1 held-out documents has 30 tokens"),
        (b"one\n<|endoftext|>\ntwo\n", ["--held_out", "1", "--vocab_size", "258"], "vocab_size must be at least 259"),
        (b"one\n", ["--separator_pattern", "("], "separator_pattern is no regular expression"),
    ],
)
def test_what_cannot_be_used_is_one_sentence(prepare_text, tmp_path, capsys, content, flags, message):
    path = tmp_path / "given.txt"
    if content is not None:
        path.write_bytes(content)
    assert run(prepare_text, path, tmp_path / "out", *flags) == 1
    error = capsys.readouterr().err
    assert error.startswith("prepare_text: error: ")
    assert message in error
    assert error.count("\n") == 1
    assert not (tmp_path / "out").exists()


def test_a_new_model_is_trained_on_what_it_makes(prepare_text, stories, tmp_path):
    """The study's own options for pretraining, but for sizes."""
    assert run(prepare_text, stories[0], tmp_path / "out") == 0
    options = Study.load(STUDIES / "text.yaml", quick=True).pretraining()
    sizes = {"hidden_size": 16, "intermediate_size": 16, "num_hidden_layers": 1, "num_attention_heads": 2}
    options |= {
        "model_name_or_path": str(tmp_path / "out" / "tokenizer"),
        "dataset_name": str(tmp_path / "out" / "data"),
        "from_scratch": {**options["from_scratch"], **sizes, "num_key_value_heads": 2},
        "per_device_train_batch_size": 2,
        "max_steps": 1,
        "output_dir": str(tmp_path / "run"),
    }
    trainer = make_trainer(Run.from_options(options))
    trainer.train()
    config = trainer.model.config
    assert (config.vocab_size, config.pad_token_id, config.eos_token_id, config.bos_token_id) == (300, 0, 1, 2)
    assert len(trainer.train_dataset) == 30


def test_held_out_documents_are_long_enough_for_the_study(prepare_text):
    study = Study.load(STUDIES / "text.yaml")
    least = inspect.signature(prepare_text.prepare).parameters["min_tokens"].default
    assert least == study.evaluation.prompt_tokens + study.evaluation.mauve_length
    assert 1 + study.evaluation.prompt_tokens + study.options["max_completion_length"] <= study.options["max_length"]
