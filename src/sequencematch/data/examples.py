"""From data set columns (`text`, or `prompt` and `completion`) to token ids."""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING

from ..errors import InputError

if TYPE_CHECKING:
    from datasets import Dataset
    from transformers import PreTrainedTokenizerBase


@dataclass(frozen=True)
class Example:
    """One expert demonstration before any noise."""

    prompt_ids: tuple[int, ...]
    """The initial state."""
    completion_ids: tuple[int, ...]
    """The expert's actions; the last is `<eos>` unless the text was cut at `max_length`."""
    prompt: str
    """The prompt as text; empty for a `text` column."""
    completion: str
    """The completion as text, which task noise reads."""

    @classmethod
    def from_row(cls, row: dict) -> Example:
        """An example from a row of a data set that `tokenize_dataset` returned."""
        return cls(tuple(row["prompt_ids"]), tuple(row["completion_ids"]), row["prompt"], row["completion"])


def tokenize_dataset(
    dataset: Dataset,
    tokenizer: PreTrainedTokenizerBase,
    *,
    text_field: str = "text",
    max_length: int | None = None,
    truncate_long: bool = False,
    num_proc: int | None = None,
) -> Dataset:
    """Tokenize a data set into the columns `prompt_ids`, `completion_ids`, `prompt` and `completion`.

    `prompt` + `completion` columns are tokenized each on its own, so that the boundary between them is a token
    boundary. A `text` column is a completion of the empty prompt, which is the tokenizer's bos (or else eos) token.
    Every completion ends with `<eos>`.

    Args:
        dataset: rows with a text column, or with prompt and completion columns (all strings).
        tokenizer: must have an eos token.
        text_field: the text column's name.
        max_length: most tokens of prompt and completion together.
        truncate_long: cut a longer example, which then has no `<eos>`, instead of raising.
        num_proc: processes to tokenize with.

    Raises:
        InputError: empty data set, missing column, empty prompt or completion, no eos token, too long an example.
    """
    if len(dataset) == 0:
        raise InputError("the data set is empty; give at least one example")
    if tokenizer.eos_token_id is None:
        raise InputError("the tokenizer has no eos token; set tokenizer.eos_token to the token that ends a completion")
    columns = set(dataset.column_names)
    if not ({"prompt", "completion"} <= columns or text_field in columns):
        raise InputError(
            f"the data set has the columns {sorted(columns)}; it needs '{text_field}', or 'prompt' and 'completion'"
        )

    def tokenize(row: dict, index: int) -> dict:
        return _tokenize_row(row, index, tokenizer, text_field, max_length, truncate_long)

    return dataset.map(
        tokenize, with_indices=True, remove_columns=dataset.column_names, num_proc=num_proc, desc="Tokenizing"
    )


def _tokenize_row(
    row: dict,
    index: int,
    tokenizer: PreTrainedTokenizerBase,
    text_field: str,
    max_length: int | None,
    truncate_long: bool,
) -> dict:
    if "prompt" in row and "completion" in row:
        prompt, completion = row["prompt"], row["completion"]
        prompt_ids = tokenizer(_checked(prompt, "prompt", index))["input_ids"]
    else:
        prompt, completion = "", row[text_field]
        bos = tokenizer.bos_token_id
        prompt_ids = [tokenizer.eos_token_id if bos is None else bos]
    text = _checked(completion, "completion" if prompt else text_field, index)
    completion_ids = [*tokenizer(text, add_special_tokens=False)["input_ids"], tokenizer.eos_token_id]
    length = len(prompt_ids) + len(completion_ids)
    if max_length is not None and length > max_length:
        if not truncate_long or len(prompt_ids) >= max_length:
            raise InputError(
                f"example {index} has {length} tokens (prompt {len(prompt_ids)}), more than max_length={max_length}; "
                "raise max_length, shorten the example, or cut long ones with truncate_long"
            )
        completion_ids = completion_ids[: max_length - len(prompt_ids)]
    return {"prompt_ids": prompt_ids, "completion_ids": completion_ids, "prompt": prompt, "completion": completion}


def _checked(text: object, column: str, index: int) -> str:
    if not isinstance(text, str) or not text:
        raise InputError(f"example {index} has no {column}; every example needs a non-empty string there")
    return text
