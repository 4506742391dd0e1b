"""From columns of text to token ids."""

import pytest
from datasets import Dataset, DatasetDict, IterableDataset

from sequencematch.data import Example, tokenize_dataset
from sequencematch.errors import InputError

EOS, BOS = 1, 2


def ids(text):
    """The ids of letters: `a` is 4."""
    return [4 + "abcdefghijkl =+".index(character) for character in text]


def rows(dataset):
    return [Example.from_row(row) for row in dataset]


def test_prompt_and_completion_are_tokenized_apart(tokenizer):
    texts = {"prompt": ["ab=", "c"], "completion": ["de", " f"], "note": ["x", "y"]}
    tokenized = tokenize_dataset(Dataset.from_dict(texts), tokenizer)
    assert sorted(tokenized.column_names) == ["completion", "completion_ids", "prompt", "prompt_ids"]
    assert rows(tokenized) == [
        Example(tuple(ids("ab=")), (*ids("de"), EOS), "ab=", "de"),
        Example(tuple(ids("c")), (*ids(" f"), EOS), "c", " f"),
    ]


def merging_tokenizer():
    """It merges `ab`, and puts a bos before whatever it is asked to mark."""
    from tokenizers import Tokenizer, models, processors
    from transformers import PreTrainedTokenizerFast

    vocabulary = {"<bos>": 0, "<eos>": 1, "a": 2, "b": 3, "ab": 4}
    core = Tokenizer(models.BPE(vocab=vocabulary, merges=[("a", "b")]))
    core.post_processor = processors.TemplateProcessing(single="<bos> $A", special_tokens=[("<bos>", 0)])
    return PreTrainedTokenizerFast(tokenizer_object=core, bos_token="<bos>", eos_token="<eos>")


def test_the_boundary_is_a_token_boundary():
    tokenizer = merging_tokenizer()
    assert tokenizer("aab")["input_ids"] == [0, 2, 4]
    texts = {"prompt": ["aa"], "completion": ["bab"]}
    tokenized = rows(tokenize_dataset(Dataset.from_dict(texts), tokenizer))
    assert tokenized == [Example((0, 2, 2), (3, 4, 1), "aa", "bab")]


def test_text_is_a_completion_of_bos(tokenizer):
    tokenized = rows(tokenize_dataset(Dataset.from_dict({"text": ["abc", "d"]}), tokenizer))
    assert tokenized == [Example((BOS,), (*ids("abc"), EOS), "", "abc"), Example((BOS,), (*ids("d"), EOS), "", "d")]
    merging = rows(tokenize_dataset(Dataset.from_dict({"text": ["ab"]}), merging_tokenizer()))
    assert merging == [Example((0,), (4, 1), "", "ab")]


def test_text_is_a_completion_of_eos_where_there_is_no_bos(tokenizer):
    tokenizer.bos_token = None
    tokenized = rows(tokenize_dataset(Dataset.from_dict({"text": ["abc"]}), tokenizer))
    assert tokenized == [Example((EOS,), (*ids("abc"), EOS), "", "abc")]


def test_the_text_column_can_have_another_name(tokenizer):
    texts = Dataset.from_dict({"text": ["abc"], "story": ["d"]})
    assert rows(tokenize_dataset(texts, tokenizer, text_field="story"))[0].completion == "d"


def test_pairs_come_before_text(tokenizer):
    texts = Dataset.from_dict({"text": ["abc"], "prompt": ["d"], "completion": ["e"]})
    assert rows(tokenize_dataset(texts, tokenizer)) == [Example(tuple(ids("d")), (*ids("e"), EOS), "d", "e")]


CHAT = [{"role": "user", "content": "a"}, {"role": "assistant", "content": "b"}]


@pytest.mark.parametrize(
    ("columns", "message"),
    [
        ({"text": []}, "data set is empty"),
        ({"prompt": ["a"]}, r"\['prompt'\]; it needs 'text', or 'prompt' and 'completion', or 'messages'"),
        ({"completion": ["a"]}, r"\['completion'\]"),
        ({"body": ["a"]}, r"\['body'\]"),
        ({"prompt": ["a", ""], "completion": ["b", "c"]}, "example 1 has no prompt"),
        ({"prompt": ["a", "b"], "completion": ["b", ""]}, "example 1 has no completion"),
        ({"prompt": ["a", None], "completion": ["b", "c"]}, "example 1 has no prompt"),
        ({"prompt": ["a"], "completion": [3]}, "example 0 has no completion"),
        ({"prompt": ["a"], "completion": [CHAT]}, "example 0 has a string as its prompt and a list of messages as"),
        ({"prompt": [CHAT], "completion": ["a"]}, "example 0 has a list of messages as its prompt and a string as"),
        ({"messages": [CHAT], "prompt": ["a"], "completion": ["a"]}, "mixed formats, 'messages' beside 'prompt' and"),
        ({"text": ["a", "b", ""]}, "example 2 has no text"),
        ({"text": [1.5]}, "example 0 has no text"),
    ],
)
def test_refuses(tokenizer, columns, message):
    with pytest.raises(InputError, match=message):
        tokenize_dataset(Dataset.from_dict(columns), tokenizer)


def test_refuses_a_tokenizer_without_eos(tokenizer):
    tokenizer.eos_token = None
    with pytest.raises(InputError, match="no eos token"):
        tokenize_dataset(Dataset.from_dict({"text": ["a"]}), tokenizer)


def test_bad_examples_are_named_by_their_place_in_the_whole_data_set(tokenizer):
    """Beyond the first of the batches that rows are mapped in."""
    texts = ["a"] * 2500
    with pytest.raises(InputError, match="example 2400 has no text"):
        tokenize_dataset(Dataset.from_dict({"text": [*texts[:2400], "", *texts[2400:]]}), tokenizer)
    with pytest.raises(InputError, match=r"example 1700 has 5 tokens \(prompt 1\), more than max_length=4"):
        tokenize_dataset(Dataset.from_dict({"text": [*texts[:1700], "abc", *texts]}), tokenizer, max_length=4)


def test_max_length_counts_prompt_completion_and_eos(tokenizer):
    texts = Dataset.from_dict({"prompt": ["abc"], "completion": ["de"]})
    for truncate in (False, True):
        kept = rows(tokenize_dataset(texts, tokenizer, max_length=6, truncate_long=truncate))
        assert kept == [Example(tuple(ids("abc")), (*ids("de"), EOS), "abc", "de")]
    with pytest.raises(InputError, match=r"example 0 has 6 tokens \(prompt 3\), more than max_length=5"):
        tokenize_dataset(texts, tokenizer, max_length=5)


def test_prompts_can_be_imitated_as_well(tokenizer):
    texts = Dataset.from_dict({"prompt": ["ab", "c"], "completion": ["d", "e"], "text": ["f", "f"]})
    tokenized = rows(tokenize_dataset(texts, tokenizer, completion_only=False))
    assert tokenized == [Example((BOS,), (*ids("abd"), EOS), "", "abd"), Example((BOS,), (*ids("ce"), EOS), "", "ce")]
    merged = tokenize_dataset(
        Dataset.from_dict({"prompt": ["a"], "completion": ["b"]}), merging_tokenizer(), completion_only=False
    )
    assert rows(merged) == [Example((0,), (4, 1), "", "ab")]  # one text: tokens across the boundary
    with pytest.raises(InputError, match="example 0 has no prompt"):
        tokenize_dataset(Dataset.from_dict({"prompt": [""], "completion": ["b"]}), tokenizer, completion_only=False)


def test_rows_in_another_format_than_the_first(tokenizer):
    tokenizer.chat_template = "{% for message in messages %}{{ message.content }}{% endfor %}"
    strings, chat = {"prompt": "a", "completion": "b"}, {"prompt": CHAT[:1], "completion": CHAT[1:]}
    for examples, first, other in (
        ([strings, strings, chat], "a string", "a list of messages"),
        ([chat, chat, strings], "a list of messages", "a string"),
    ):
        dataset = IterableDataset.from_generator(lambda examples=examples: iter(examples))
        sentence = f"mixed formats, example 2 with {other} as its prompt and the first example with {first}; give all"
        with pytest.raises(InputError, match=sentence):
            list(tokenize_dataset(dataset, tokenizer))


@pytest.mark.parametrize("dataset", [DatasetDict(train=Dataset.from_dict({"text": ["a"]})), [{"text": "a"}]])
def test_refuses_what_is_no_data_set(tokenizer, dataset):
    with pytest.raises(InputError, match=f"is a {type(dataset).__name__}; give one split"):
        tokenize_dataset(dataset, tokenizer)


@pytest.mark.parametrize("max_length", [4, 5])
def test_cutting_leaves_no_eos(tokenizer, max_length):
    texts = Dataset.from_dict({"prompt": ["abc", "a"], "completion": ["de", "b"]})
    cut, short = rows(tokenize_dataset(texts, tokenizer, max_length=max_length, truncate_long=True))
    assert cut.prompt_ids == tuple(ids("abc"))
    assert cut.completion_ids == tuple(ids("de")[: max_length - 3])
    assert short.completion_ids == (*ids("b"), EOS)


@pytest.mark.parametrize("truncate", [True, False])
@pytest.mark.parametrize("max_length", [2, 3])
def test_a_prompt_is_never_cut(tokenizer, max_length, truncate):
    texts = Dataset.from_dict({"prompt": ["a", "abc"], "completion": ["", "de"]}).select([1])
    sentence = f"prompt of example 0 has 3 tokens, which leaves no room for a completion in max_length={max_length}; "
    with pytest.raises(InputError, match=sentence):
        tokenize_dataset(texts, tokenizer, max_length=max_length, truncate_long=truncate)


@pytest.mark.parametrize("row", [{"text": "abc"}, {"prompt": "ab", "completion": "c"}])
def test_an_end_that_is_written_already_is_not_added_again(row, tokenizer):
    plain = Dataset.from_list([row])
    column = "completion" if "completion" in row else "text"
    ended = Dataset.from_list([row | {column: row[column] + tokenizer.eos_token}])
    assert tokenize_dataset(ended, tokenizer).to_list() == tokenize_dataset(plain, tokenizer).to_list()
