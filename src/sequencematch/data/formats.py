"""Which columns a data set has, and how its rows become texts: one `Reader` for each format."""

from __future__ import annotations

from collections.abc import Collection, Mapping
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any, Protocol

from ..errors import InputError
from .chat import ChatTemplate, check_messages

if TYPE_CHECKING:
    from transformers import PreTrainedTokenizerBase

Texts = list[tuple[str, str]]
"""Prompts and their completions, the latter without `<eos>`; an empty prompt stands for the start token."""


class Reader(Protocol):
    """Makes texts of the rows of a data set in one format."""

    @property
    def columns(self) -> tuple[str, ...]:
        """The columns that it reads, where a data set has them."""

    @property
    def templated(self) -> bool:
        """Whether a chat template has written the special tokens that a prompt begins with."""

    def read(self, row: Mapping[str, Any], index: int) -> Texts:
        """The texts of one row, the data set's number `index`. Raises InputError for a bad row."""


@dataclass(frozen=True)
class TextReader:
    """A text column: a completion of the empty prompt."""

    text_field: str
    templated = False

    @property
    def columns(self) -> tuple[str, ...]:
        """The text column."""
        return (self.text_field,)

    def read(self, row: Mapping[str, Any], index: int) -> Texts:
        """One text."""
        return [("", _string(row, self.text_field, index))]


@dataclass(frozen=True)
class PairReader:
    """`prompt` and `completion` strings."""

    completion_only: bool
    columns = ("prompt", "completion")
    templated = False

    def read(self, row: Mapping[str, Any], index: int) -> Texts:
        """One pair, or one text of both where the prompt is imitated as well."""
        _check_pair(row, index, str)
        prompt, completion = _string(row, "prompt", index), _string(row, "completion", index)
        return [(prompt, completion)] if self.completion_only else [("", prompt + completion)]


@dataclass(frozen=True)
class ChatPairReader:
    """`prompt` and `completion` as lists of messages: the completion's assistant turns are imitated."""

    template: ChatTemplate
    columns = ("prompt", "completion", "tools", "chat_template_kwargs")
    templated = True

    def read(self, row: Mapping[str, Any], index: int) -> Texts:
        """As many pairs as the completion has assistant turns, which is commonly one."""
        _check_pair(row, index, list)
        prompt = check_messages(row.get("prompt"), "prompt", index)
        completion = check_messages(row.get("completion"), "completion", index)
        return self.template.turns([*prompt, *completion], index, row, begin=len(prompt))


@dataclass(frozen=True)
class ConversationReader:
    """`messages`: every assistant turn is imitated, given the conversation before it."""

    template: ChatTemplate
    columns = ("messages", "tools", "chat_template_kwargs")
    templated = True

    def read(self, row: Mapping[str, Any], index: int) -> Texts:
        """As many pairs as the conversation has assistant turns."""
        return self.template.turns(check_messages(row.get("messages"), "messages", index), index, row)


def reader_of(
    columns: Collection[str],
    first_row: Mapping[str, Any],
    tokenizer: PreTrainedTokenizerBase,
    text_field: str = "text",
    completion_only: bool = True,
) -> Reader:
    """The reader for a data set with these columns, whose first row tells strings from lists of messages.

    Raises:
        InputError: missing or mixed columns, conversations without a chat template, or whose prompts are to be
            imitated.
    """
    paired = {"prompt", "completion"} <= set(columns)
    if paired and "messages" in columns:
        raise InputError(
            "the data set has mixed formats, 'messages' beside 'prompt' and 'completion'; remove the columns that are "
            "not meant (remove_columns)"
        )
    if paired:
        chats = any(isinstance(first_row.get(column), list) for column in ("prompt", "completion"))
        _check_pair(first_row, 0, list if chats else str)
        return ChatPairReader(_template(tokenizer, completion_only)) if chats else PairReader(completion_only)
    if "messages" in columns:
        return ConversationReader(_template(tokenizer, completion_only))
    if text_field in columns:
        return TextReader(text_field)
    raise InputError(
        f"the data set has the columns {sorted(columns)}; it needs '{text_field}', or 'prompt' and 'completion', "
        "or 'messages'"
    )


def _template(tokenizer: PreTrainedTokenizerBase, completion_only: bool) -> ChatTemplate:
    if not tokenizer.chat_template:
        raise InputError(
            "the data set holds conversations and the tokenizer has no chat template; set chat_template_path to a "
            "Jinja file, or to a folder or id whose tokenizer has one"
        )
    if not completion_only:
        raise InputError(
            "completion_only_loss: false would imitate the prompts of conversations as well, whose turns may end with "
            "the eos token, an action that ends the completion; leave it out for conversations"
        )
    return ChatTemplate(tokenizer)


def _check_pair(row: Mapping[str, Any], index: int, wanted: type) -> None:
    """Raise InputError if prompt and completion are strings or lists, but not both of them as `wanted`."""
    names: dict[type, str] = {str: "a string", list: "a list of messages"}
    kinds: tuple[type, type] = (type(row.get("prompt")), type(row.get("completion")))
    if not set(kinds) <= set(names):
        return  # what is neither is reported by name
    if kinds[0] != kinds[1]:
        raise InputError(
            f"example {index} has {names[kinds[0]]} as its prompt and {names[kinds[1]]} as its completion; give both "
            "as strings or both as lists of messages"
        )
    if kinds[0] is not wanted:
        raise InputError(
            f"the data set has mixed formats, example {index} with {names[kinds[0]]} as its prompt and the first "
            f"example with {names[wanted]}; give all of them in one format"
        )


def _string(row: Mapping[str, Any], column: str, index: int) -> str:
    text = row.get(column)
    if not isinstance(text, str) or not text:
        raise InputError(f"example {index} has no {column}; every example needs a non-empty string there")
    return text
