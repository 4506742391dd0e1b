"""Data sets from files and folders, each split in its place."""

import json

import datasets
import pytest
from datasets import Dataset, DatasetDict, IterableDatasetDict

from sequencematch.data import load_splits, tokenize_dataset
from sequencematch.errors import InputError

ROWS = [{"prompt": "ab", "completion": "c"}, {"prompt": "d", "completion": "e, f"}]
MORE = [{"prompt": "g", "completion": "h"}]


@pytest.fixture(autouse=True)
def own_cache(tmp_path_factory, monkeypatch):
    monkeypatch.setattr(datasets.config, "HF_DATASETS_CACHE", tmp_path_factory.mktemp("cache"))


def write_jsonl(path, rows):
    path.write_text("".join(json.dumps(row) + "\n" for row in rows))


WRITERS = {
    "jsonl": write_jsonl,
    "json": lambda path, rows: path.write_text(json.dumps(rows)),
    "csv": lambda path, rows: Dataset.from_list(rows).to_csv(path),
    "parquet": lambda path, rows: Dataset.from_list(rows).to_parquet(path),
}


def contents(splits, kind=DatasetDict):
    assert isinstance(splits, kind)
    return {name: list(split) for name, split in splits.items()}


@pytest.fixture(params=[False, True], ids=["loaded", "streamed"])
def read(request):
    """The rows of every split, by either way of reading them."""
    kind = IterableDatasetDict if request.param else DatasetDict
    return lambda path: contents(load_splits(str(path), streaming=request.param), kind)


@pytest.mark.parametrize("kind", WRITERS)
def test_one_file_is_the_train_split(tmp_path, kind, read):
    path = tmp_path / f"rows.{kind}"
    WRITERS[kind](path, ROWS)
    assert read(path) == {"train": ROWS}


def test_a_text_file_is_a_text_column(tmp_path):
    path = tmp_path / "lines.txt"
    path.write_text("one line\nanother\n")
    assert contents(load_splits(str(path))) == {"train": [{"text": "one line"}, {"text": "another"}]}


def test_a_saved_data_set(tmp_path, read):
    Dataset.from_list(ROWS).save_to_disk(tmp_path / "saved")
    assert read(tmp_path / "saved") == {"train": ROWS}


def test_saved_splits(tmp_path, read):
    splits = DatasetDict(train=Dataset.from_list(ROWS), test=Dataset.from_list(MORE))
    splits.save_to_disk(tmp_path / "saved")
    assert read(tmp_path / "saved") == {"train": ROWS, "test": MORE}


def test_a_folder_of_files(tmp_path, read):
    write_jsonl(tmp_path / "train.jsonl", ROWS)
    write_jsonl(tmp_path / "test.jsonl", MORE)
    assert read(tmp_path) == {"train": ROWS, "test": MORE}


@pytest.mark.parametrize("name", ["nowhere", "nowhere/data.jsonl", "some/deep/nowhere"])
@pytest.mark.parametrize("streaming", [False, True])
def test_nothing_there(tmp_path, name, streaming):
    with pytest.raises(InputError, match="nowhere"):
        load_splits(str(tmp_path / name), streaming=streaming)


def test_an_unknown_hub_id():
    with pytest.raises(InputError, match="the data set 'sequencematch-tests/nowhere' cannot be loaded: "):
        load_splits("sequencematch-tests/nowhere")


def test_files_that_cannot_be_read(tmp_path):
    (tmp_path / "rows.xlsx").write_text("?")
    with pytest.raises(InputError, match=r"rows.xlsx' is none of .*\.jsonl"):
        load_splits(str(tmp_path / "rows.xlsx"))
    (tmp_path / "rows.jsonl").write_text('{"prompt": ')
    with pytest.raises(InputError, match=r"rows.jsonl' cannot be loaded: \w+"):
        load_splits(str(tmp_path / "rows.jsonl"))
    (tmp_path / "empty").mkdir()
    with pytest.raises(InputError, match="empty"):
        load_splits(str(tmp_path / "empty"))


def test_a_stream_of_a_file_without_rows(tmp_path, tokenizer):
    """A stream is found empty, or broken, when it is opened or first looked at."""
    for name, text, sentence in (
        ("empty.jsonl", "", r"data set .*is empty"),
        ("header.csv", "prompt,completion\n", r"data set .*is empty"),
        ("broken.jsonl", '{"prompt": ', "data set cannot be read: "),
    ):
        (tmp_path / name).write_text(text)
        with pytest.raises(InputError, match=sentence):
            tokenize_dataset(load_splits(str(tmp_path / name), streaming=True)["train"], tokenizer)
