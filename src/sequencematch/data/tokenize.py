"""From the columns of a data set, strings or conversations, to token ids."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any, TypeVar

from ..errors import InputError, reason_of
from ..mdp import ActionSpace
from .examples import start_token
from .formats import Reader, reader_of

if TYPE_CHECKING:
    from datasets import Dataset, IterableDataset
    from transformers import PreTrainedTokenizerBase

    AnyDataset = TypeVar("AnyDataset", Dataset, IterableDataset)


def tokenize_dataset(
    dataset: AnyDataset,
    tokenizer: PreTrainedTokenizerBase,
    *,
    text_field: str = "text",
    completion_only: bool = True,
    max_length: int | None = None,
    truncate_long: bool = False,
    space: ActionSpace | None = None,
    num_proc: int | None = None,
) -> AnyDataset:
    """Tokenize a data set into the columns `prompt_ids`, `completion_ids`, `prompt` and `completion`.

    | columns | prompt | completion |
    | --- | --- | --- |
    | `text_field` | the tokenizer's bos (or else eos) token | the text |
    | `prompt`, `completion`: strings | the prompt | the completion |
    | `prompt`, `completion`: lists of messages | the prompt with the generation prompt | what the template adds |
    | `messages` | the conversation before an assistant turn, with the generation prompt | the turn |

    Prompt and completion are tokenized each on its own, so that the boundary between them is a token boundary, and
    every completion ends with one `<eos>`, written in the text or not. A conversation gives as many examples as it has
    assistant turns. Its columns `tools` (a list or JSON text) and `chat_template_kwargs` (a mapping) are passed to the
    chat template.

    A streamed data set is tokenized as it is read; only its first row is looked at here. A bad row raises when it is
    reached, with its place in the stream (in the process's share of it, where several processes read one stream).

    Args:
        dataset: rows in one of the formats above. The first one tells strings from conversations.
        tokenizer: must have an eos token, and for conversations a chat template.
        text_field: the text column's name.
        completion_only: False makes one text of prompt and completion strings, which is imitated as a whole.
        max_length: most tokens of prompt and completion together.
        truncate_long: cut a longer completion, which then has no `<eos>`, instead of raising. Prompts are never cut.
        space: the model's actions, to check that every token has a row in its embeddings, and that no completion
            contains the text of `<eos>` or of a deletion action.
        num_proc: processes to tokenize with; a stream is tokenized where it is read.

    Raises:
        InputError: empty or unreadable data set, missing or mixed columns, no eos token or chat template, a bad row (an
            empty prompt or completion, a conversation without an assistant turn, too long an example).
    """
    from datasets import Dataset, IterableDataset

    if not isinstance(dataset, Dataset | IterableDataset):
        raise InputError(
            f"the data set is a {type(dataset).__name__}; give one split, as a datasets.Dataset or IterableDataset"
        )
    first_row: Mapping[str, Any] = _first_row(dataset)
    if tokenizer.eos_token_id is None:
        raise InputError("the tokenizer has no eos token; set eos_token to the token that ends a completion")
    # A stream may not know its columns beforehand.
    columns = {*first_row, *(dataset.column_names or ())}
    reader = reader_of(columns, first_row, tokenizer, text_field, completion_only)
    tokenize = _Tokenize(tokenizer, reader, _Limits(max_length, truncate_long, space))
    return _map_stream(dataset, tokenize) if isinstance(dataset, IterableDataset) else _map(dataset, tokenize, num_proc)


def _map(dataset: Dataset, tokenize: _Tokenize, num_proc: int | None) -> Dataset:
    tokenized = dataset.map(
        tokenize,
        with_indices=True,
        batched=True,
        remove_columns=dataset.column_names,
        features=_features(),
        num_proc=num_proc,
        desc="Tokenizing",
    )
    return tokenized.with_format(None)  # `map` reads rows in the user's format; examples are plain lists


def _map_stream(dataset: IterableDataset, tokenize: _Tokenize) -> IterableDataset:
    """One row at a time: nothing is tokenized ahead, and a bad row raises when its turn comes."""
    plain, replace, features = dataset.with_format(None), _Replace(tokenize), _features()
    streamed = plain.map(replace, with_indices=True, batched=True, batch_size=1, features=features)
    return streamed.select_columns(list(features))


def _first_row(dataset: Dataset | IterableDataset) -> Mapping[str, Any]:
    try:
        return next(iter(dataset))
    except StopIteration:
        raise InputError("the data set is empty; give at least one example") from None
    except Exception as error:  # streams are opened here, and raise many kinds; each means that they cannot be read
        raise InputError(f"the data set cannot be read: {reason_of(error)}") from error


def _features() -> Any:
    from datasets import Features, List, Value

    ids, text = List(Value("int64")), Value("string")
    return Features({"prompt_ids": ids, "completion_ids": ids, "prompt": text, "completion": text})


@dataclass(frozen=True)
class _Limits:
    max_length: int | None
    truncate_long: bool
    space: ActionSpace | None


@dataclass(frozen=True)
class _Tokenize:
    """A batch of rows as a batch of examples, of which there may be more."""

    tokenizer: PreTrainedTokenizerBase
    reader: Reader
    limits: _Limits

    def __call__(self, rows: Mapping[str, list], indices: list[int]) -> dict[str, list]:
        names = [name for name in self.reader.columns if name in rows]
        places: list[int] = []
        texts: list[tuple[str, str]] = []
        for index, values in zip(indices, zip(*(rows[name] for name in names), strict=True), strict=True):
            read = self.reader.read(dict(zip(names, values, strict=True)), index)
            texts += read
            places += [index] * len(read)
        prompts = [prompt for prompt, _ in texts]
        completions = [completion for _, completion in texts]
        if not self.reader.templated:  # many data sets write the end themselves; it is the last action either way
            completions = [completion.removesuffix(self.tokenizer.eos_token) for completion in completions]
        prompt_ids = self._prompt_ids(prompts)
        completion_ids = [
            [*ids, self.tokenizer.eos_token_id]
            for ids in self.tokenizer(completions, add_special_tokens=False)["input_ids"]
        ]
        cut = [_fit(*ids, self.limits) for ids in zip(places, prompt_ids, completion_ids, strict=True)]
        return {"prompt_ids": prompt_ids, "completion_ids": cut, "prompt": prompts, "completion": completions}

    def _prompt_ids(self, prompts: list[str]) -> list[list[int]]:
        tokenized = self.tokenizer(prompts, add_special_tokens=not self.reader.templated)["input_ids"]
        start = [start_token(self.tokenizer)]
        return [ids if prompt else start for prompt, ids in zip(prompts, tokenized, strict=True)]


@dataclass(frozen=True)
class _Replace:
    """The same for a stream, whose rows may have columns that nobody knew of: all of them give way to the examples'."""

    tokenize: _Tokenize

    def __call__(self, rows: Mapping[str, list], indices: list[int]) -> dict[str, list]:
        examples = self.tokenize(rows, indices)
        return {**dict.fromkeys(rows, [None] * len(examples["prompt"])), **examples}


def _fit(index: int, prompt_ids: list[int], completion_ids: list[int], limits: _Limits) -> list[int]:
    """The completion as `max_length` allows it."""
    if limits.space is not None:
        _check_tokens(index, prompt_ids, completion_ids, limits.space)
    length = len(prompt_ids) + len(completion_ids)
    if limits.max_length is None or length <= limits.max_length:
        return completion_ids
    if len(prompt_ids) >= limits.max_length:
        raise InputError(
            f"the prompt of example {index} has {len(prompt_ids)} tokens, which leaves no room for a completion in "
            f"max_length={limits.max_length}; raise max_length as far as the model allows, or shorten the prompt "
            "(prompts are never cut)"
        )
    if not limits.truncate_long:
        raise InputError(
            f"example {index} has {length} tokens (prompt {len(prompt_ids)}), more than max_length="
            f"{limits.max_length}; raise max_length, shorten the example, or cut long ones with truncate_long"
        )
    return completion_ids[: limits.max_length - len(prompt_ids)]


def _check_tokens(index: int, prompt_ids: list[int], completion_ids: list[int], space: ActionSpace) -> None:
    space.check_tokens(prompt_ids, f"prompt of example {index}")
    space.check_tokens(completion_ids, f"completion of example {index}")
    if not {space.eos_token_id, *space.by_token}.isdisjoint(completion_ids[:-1]):
        raise InputError(
            f"the completion of example {index} contains the text of the eos token or of a deletion action; remove it, "
            "since both are actions that training adds by itself"
        )
