"""From data set columns (`text`, or `prompt` and `completion`) to token ids."""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING

from ..errors import InputError
from ..mdp import ActionSpace

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


def start_token(tokenizer: PreTrainedTokenizerBase) -> int:
    """The prompt of a text that has none: the tokenizer's bos, or else its eos token."""
    return tokenizer.eos_token_id if tokenizer.bos_token_id is None else tokenizer.bos_token_id


def tokenize_dataset(
    dataset: Dataset,
    tokenizer: PreTrainedTokenizerBase,
    *,
    text_field: str = "text",
    max_length: int | None = None,
    truncate_long: bool = False,
    space: ActionSpace | None = None,
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
        space: the model's actions, to check that every token has a row in its embeddings, and that no completion
            contains the text of `<eos>` or of a deletion action.
        num_proc: processes to tokenize with.

    Raises:
        InputError: empty data set, missing column, empty prompt or completion, no eos token, too long an example.
    """
    if len(dataset) == 0:
        raise InputError("the data set is empty; give at least one example")
    if tokenizer.eos_token_id is None:
        raise InputError("the tokenizer has no eos token; set tokenizer.eos_token to the token that ends a completion")
    columns = set(dataset.column_names)
    paired = {"prompt", "completion"} <= columns
    if not (paired or text_field in columns):
        raise InputError(
            f"the data set has the columns {sorted(columns)}; it needs '{text_field}', or 'prompt' and 'completion'"
        )

    rules = _Rules(text_field, max_length, truncate_long, space)

    def tokenize(rows: dict, indices: list[int]) -> dict:
        return _tokenize_rows(rows, indices, tokenizer, rules, paired)

    return dataset.map(
        tokenize,
        with_indices=True,
        batched=True,
        remove_columns=dataset.column_names,
        num_proc=num_proc,
        desc="Tokenizing",
    )


@dataclass(frozen=True)
class _Rules:
    text_field: str
    max_length: int | None
    truncate_long: bool
    space: ActionSpace | None


def _tokenize_rows(
    rows: dict, indices: list[int], tokenizer: PreTrainedTokenizerBase, rules: _Rules, paired: bool
) -> dict:
    column = "completion" if paired else rules.text_field
    completions = _checked(rows[column], column, indices)
    if paired:
        prompts = _checked(rows["prompt"], "prompt", indices)
        prompt_ids = tokenizer(prompts)["input_ids"]
    else:
        prompts, prompt_ids = [""] * len(indices), [[start_token(tokenizer)]] * len(indices)
    completion_ids = [
        [*ids, tokenizer.eos_token_id] for ids in tokenizer(completions, add_special_tokens=False)["input_ids"]
    ]
    cut = [_fit(*ids, rules) for ids in zip(indices, prompt_ids, completion_ids, strict=True)]
    return {"prompt_ids": prompt_ids, "completion_ids": cut, "prompt": prompts, "completion": completions}


def _fit(index: int, prompt_ids: list[int], completion_ids: list[int], rules: _Rules) -> list[int]:
    """The completion as `max_length` allows it."""
    if rules.space is not None:
        _check_tokens(index, prompt_ids, completion_ids, rules.space)
    length = len(prompt_ids) + len(completion_ids)
    if rules.max_length is None or length <= rules.max_length:
        return completion_ids
    if not rules.truncate_long or len(prompt_ids) >= rules.max_length:
        raise InputError(
            f"example {index} has {length} tokens (prompt {len(prompt_ids)}), more than max_length={rules.max_length}; "
            "raise max_length, shorten the example, or cut long ones with truncate_long"
        )
    return completion_ids[: rules.max_length - len(prompt_ids)]


def _check_tokens(index: int, prompt_ids: list[int], completion_ids: list[int], space: ActionSpace) -> None:
    space.check_tokens(prompt_ids, f"prompt of example {index}")
    space.check_tokens(completion_ids, f"completion of example {index}")
    if not {space.eos_token_id, *space.by_token}.isdisjoint(completion_ids[:-1]):
        raise InputError(
            f"the completion of example {index} contains the text of the eos token or of a deletion action; remove it, "
            "since both are actions that training adds by itself"
        )


def _checked(texts: list, column: str, indices: list[int]) -> list[str]:
    for text, index in zip(texts, indices, strict=True):
        if not isinstance(text, str) or not text:
            raise InputError(f"example {index} has no {column}; every example needs a non-empty string there")
    return texts
