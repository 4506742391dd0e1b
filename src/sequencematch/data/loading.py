"""Loading data sets from a hub id, a local folder or a file."""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING

from ..errors import InputError, reason_of

if TYPE_CHECKING:
    from datasets import DatasetDict, IterableDatasetDict

_FILE_LOADERS = {".json": "json", ".jsonl": "json", ".csv": "csv", ".parquet": "parquet", ".txt": "text"}


def load_splits(name: str, config: str | None = None, streaming: bool = False) -> DatasetDict | IterableDatasetDict:
    """Load every split of a data set.

    Args:
        name: a hub id, a folder that `load_dataset` or `load_from_disk` reads, or one JSON, CSV, Parquet or text file
            (which becomes the split `train`).
        config: the data set's configuration, for those that have several.
        streaming: read rows as they are needed, as an `IterableDatasetDict`, in place of loading all of them first.

    Raises:
        InputError: nothing readable is there. A stream is read later, and raises then.
    """
    try:
        return _load(name, config, streaming)
    except InputError:
        raise
    except (IndexError, StopIteration) as error:  # what the loaders raise for no rows at all
        raise InputError(f"the data set '{name}' is empty; give at least one example") from error
    except Exception as error:  # the loaders raise many kinds; each means that the data cannot be read
        if "corresponds to no data" in str(error):
            raise InputError(f"the data set '{name}' is empty; give at least one example") from error
        raise InputError(f"the data set '{name}' cannot be loaded: {reason_of(error)}") from error


def _load(name: str, config: str | None, streaming: bool) -> DatasetDict | IterableDatasetDict:
    from datasets import DatasetDict, IterableDatasetDict, load_dataset, load_from_disk

    path = Path(name)
    if path.is_file():
        loader = _FILE_LOADERS.get(path.suffix)
        if loader is None:
            raise InputError(f"'{name}' is none of {', '.join(_FILE_LOADERS)}; convert it to one of these")
        return load_dataset(loader, data_files={"train": str(path)}, streaming=streaming)
    if (path / "dataset_dict.json").exists():
        saved = load_from_disk(name)
    elif (path / "state.json").exists():
        saved = DatasetDict(train=load_from_disk(name))
    else:
        return load_dataset(name, config, streaming=streaming)
    return IterableDatasetDict({key: rows.to_iterable_dataset() for key, rows in saved.items()}) if streaming else saved
