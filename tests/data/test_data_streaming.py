"""Streamed data sets give the examples that loaded ones give, as they are read."""

from itertools import islice

import pytest
from data_chats import CHATML, assistant, chat_tokenizer, user
from datasets import Dataset, IterableDataset
from datasets.distributed import split_dataset_by_node

from sequencematch.data import tokenize_dataset
from sequencematch.errors import InputError

TURNS = [user("a"), assistant("b"), user("c"), assistant("d")]
ROWS = {
    "text": [{"text": "a b", "id": 0}, {"text": "c", "id": 1}],
    "pairs": [{"prompt": "a", "completion": "bc"}, {"prompt": "d e", "completion": "f"}],
    "chat pairs": [{"prompt": TURNS[:1], "completion": TURNS[1:2]}, {"prompt": TURNS[:3], "completion": TURNS[3:]}],
    "messages": [{"messages": TURNS[:2], "prompt": "a"}, {"messages": TURNS, "prompt": "b"}],
}


def stream(rows):
    """A data set that does not know its columns."""
    return IterableDataset.from_generator(lambda: iter(rows))


@pytest.mark.parametrize("rows", ROWS.values(), ids=ROWS)
@pytest.mark.parametrize("typed", [True, False])
def test_streamed_rows_are_the_loaded_ones(rows, typed):
    tokenizer = chat_tokenizer(CHATML)
    loaded = Dataset.from_list(rows)
    streamed = loaded.to_iterable_dataset() if typed else stream(rows)
    expected, tokenized = tokenize_dataset(loaded, tokenizer), tokenize_dataset(streamed, tokenizer)
    assert tokenized.column_names == expected.column_names
    for _ in range(2):  # and again in the next epoch
        assert list(tokenized) == expected.to_list()


@pytest.mark.parametrize("streaming", [False, True])
def test_tokens_are_plain_numbers_whatever_the_format_of_the_rows(streaming):
    rows = Dataset.from_list(ROWS["text"])
    formatted = (rows.to_iterable_dataset() if streaming else rows).with_format("torch")
    tokenizer = chat_tokenizer(CHATML)
    assert list(tokenize_dataset(formatted, tokenizer)) == tokenize_dataset(rows, tokenizer).to_list()


def test_one_row_is_looked_at_and_none_is_lost():
    read = []

    def rows():
        for number in range(5):
            read.append(number)
            yield {"text": "abcde"[number]}

    tokenized = tokenize_dataset(IterableDataset.from_generator(rows), chat_tokenizer(CHATML))
    assert read == [0]
    read.clear()
    assert [row["completion"] for row in islice(tokenized, 2)] == ["a", "b"]
    assert read == [0, 1]


def test_columns_that_come_later():
    rows = [{"messages": TURNS}, {"messages": TURNS, "note": "x", "tools": None}, {"messages": TURNS[:2]}]
    tokenized = list(tokenize_dataset(stream(rows), chat_tokenizer(CHATML)))
    assert [row["completion"] for row in tokenized] == ["b", "d", "b", "d", "b"]
    assert all(set(row) == {"prompt", "completion", "prompt_ids", "completion_ids"} for row in tokenized)


def test_a_stream_resumes_between_the_turns_of_a_row():
    tokenized = tokenize_dataset(stream(ROWS["messages"] * 3), chat_tokenizer(CHATML))
    everything = list(tokenized)
    assert len(everything) == 9
    for done in (1, 2, 5):
        rows = iter(tokenized)
        assert list(islice(rows, done)) == everything[:done]
        resumed = tokenize_dataset(stream(ROWS["messages"] * 3), chat_tokenizer(CHATML))
        resumed.load_state_dict(tokenized.state_dict())
        assert list(resumed) == everything[done:]


def test_processes_share_a_stream():
    rows = [{"text": letter} for letter in "abcdef"]
    tokenized = tokenize_dataset(Dataset.from_list(rows).to_iterable_dataset(num_shards=2), chat_tokenizer(CHATML))
    shares = [[row["completion"] for row in split_dataset_by_node(tokenized, rank, 2)] for rank in range(2)]
    assert sorted(shares[0] + shares[1]) == list("abcdef")
    assert len(shares[0]) == len(shares[1])


def test_a_bad_row_raises_when_it_is_reached():
    rows = [{"prompt": "a", "completion": "b"}] * 3
    long, empty = [*rows, {"prompt": "a", "completion": "bcd"}], [*rows, {"prompt": "a", "completion": ""}]
    for bad, sentence in (
        (long, r"example 3 has 5 tokens \(prompt 1\), more than max_length=4"),
        (empty, "example 3 has"),
    ):
        tokenized = iter(tokenize_dataset(stream(bad), chat_tokenizer(CHATML), max_length=4))
        assert [row["completion"] for row in islice(tokenized, 3)] == ["b"] * 3
        with pytest.raises(InputError, match=sentence):
            next(tokenized)


def failing():
    raise OSError("the disk is gone. Details follow")
    yield


@pytest.mark.parametrize(
    ("dataset", "sentence"),
    [
        (stream([]), "data set is empty"),
        (stream([{"body": "a"}]), r"columns \['body'\]; it needs 'text', or 'prompt' and 'completion', or 'messages'"),
        (stream([{"messages": TURNS, "prompt": "a", "completion": "b"}]), "mixed formats"),
        (IterableDataset.from_generator(failing), "data set cannot be read: the disk is gone$"),
    ],
)
def test_what_is_found_before_anything_is_asked_for(dataset, sentence):
    with pytest.raises(InputError, match=sentence):
        tokenize_dataset(dataset, chat_tokenizer(CHATML))
