"""What an expert demonstration is, as token ids and as text."""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from transformers import PreTrainedTokenizerBase


@dataclass(frozen=True)
class Example:
    """One expert demonstration before any noise."""

    prompt_ids: tuple[int, ...]
    """The initial state."""
    completion_ids: tuple[int, ...]
    """The expert's actions; the last is `<eos>` unless the text was cut at `max_length`."""
    prompt: str
    """The prompt as text, for a conversation as the chat template writes it; empty for a `text` column."""
    completion: str
    """The completion as text, which task noise reads."""

    @classmethod
    def from_row(cls, row: dict) -> Example:
        """An example from a row of a data set that `tokenize_dataset` returned."""
        return cls(tuple(row["prompt_ids"]), tuple(row["completion_ids"]), row["prompt"], row["completion"])


def start_token(tokenizer: PreTrainedTokenizerBase) -> int:
    """The prompt of a text that has none: the tokenizer's bos, or else its eos token."""
    return tokenizer.eos_token_id if tokenizer.bos_token_id is None else tokenizer.bos_token_id
