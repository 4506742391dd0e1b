"""Conversations as the tokenizer's chat template writes them: a prompt and a completion for each assistant turn."""

from __future__ import annotations

import json
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

from ..errors import InputError, reason_of

if TYPE_CHECKING:
    from transformers import PreTrainedTokenizerBase

Message = Mapping[str, Any]
_SPOKEN = ("content", "reasoning_content", "thinking", "tool_calls")
"""The keys of a message under which something is said or done."""


@dataclass(frozen=True)
class ChatTemplate:
    """The chat template of a tokenizer."""

    tokenizer: PreTrainedTokenizerBase

    def turns(
        self, messages: Sequence[Message], index: int, row: Mapping[str, Any], begin: int = 0
    ) -> list[tuple[str, str]]:
        """The assistant's turns from message `begin` on, each as a prompt and the completion that answers it.

        A prompt is the conversation before the turn with the generation prompt at its end. A completion is what the
        template adds for the turn, up to the eos token that ends it, which is left out (as is the white space at
        the end of a turn that no eos token ends).

        Args:
            messages: the conversation.
            index: the example's place in its data set, for messages.
            row: the example; `tools` (a list or JSON text) and `chat_template_kwargs` (a mapping) go to the template.
            begin: the first message that may be imitated.

        Raises:
            InputError: no assistant turn, an empty or unprompted one, or a template that cannot write the conversation
                or writes it otherwise once a turn is answered.
        """
        turns = [n for n in range(begin, len(messages)) if messages[n]["role"] == "assistant"]
        if not turns:
            raise InputError(f"example {index} has no assistant turn to imitate; remove it, or add the turn")
        options = _options(row, index)
        return [self._turn(messages, n, index, options) for n in turns]

    def _turn(self, messages: Sequence[Message], n: int, index: int, options: dict[str, Any]) -> tuple[str, str]:
        if n == 0:
            raise InputError(
                f"example {index} begins with an assistant turn, which has no prompt; put another message before it"
            )
        prompt = self._render(messages[:n], index, add_generation_prompt=True, **options)
        answered = self._render(messages[: n + 1], index, **options)
        if not answered.startswith(prompt):
            raise InputError(
                f"the chat template writes the prompt of message {n} of example {index} differently once it is "
                "answered (it changes earlier turns, or its generation prompt is not how an answer begins); set "
                "chat_template_path to a template that only adds to what it wrote, or fitting chat_template_kwargs"
            )
        completion = answered[len(prompt) :].rstrip().removesuffix(self.tokenizer.eos_token)
        if not completion.strip() or not any(_is_said(messages[n].get(key)) for key in _SPOKEN):
            raise InputError(
                f"message {n} of example {index} is an empty assistant turn; remove it, or give it a content"
            )
        return prompt, completion

    def _render(self, messages: Sequence[Message], index: int, **options: Any) -> str:
        # Data sets fill the keys that a message lacks with None, which templates take for something given.
        given = [{key: value for key, value in message.items() if value is not None} for message in messages]
        try:
            return str(self.tokenizer.apply_chat_template(given, tokenize=False, **options))
        except Exception as error:  # templates raise what they like, on roles in an order that they do not know
            raise InputError(
                f"the chat template cannot write example {index}: {reason_of(error)}; change its messages, or set "
                "another template with chat_template_path"
            ) from error


def check_messages(messages: Any, column: str, index: int) -> list[Message]:
    """`messages`, if it is a list of messages and not empty.

    Raises InputError otherwise, or if a message is no mapping with a `role` and a `content` (or `tool_calls`).
    """
    if not isinstance(messages, list) or not messages:
        raise InputError(f"example {index} has no {column}; every example needs a non-empty list of messages there")
    for n, message in enumerate(messages):
        if (
            not isinstance(message, Mapping)
            or not isinstance(message.get("role"), str)
            or all(message.get(key) is None for key in _SPOKEN)
        ):
            raise InputError(
                f"message {n} in the {column} of example {index} is not of the form "
                '{"role": "user", "content": "..."}; give every message a role and a content'
            )
    return messages


def _is_said(value: Any) -> bool:
    return bool(value.strip() if isinstance(value, str) else value)


def _options(row: Mapping[str, Any], index: int) -> dict[str, Any]:
    """What an example gives to the template beside its messages."""
    tools, options = row.get("tools"), row.get("chat_template_kwargs")
    if isinstance(tools, str):
        try:
            tools = json.loads(tools)
        except json.JSONDecodeError as error:
            raise InputError(f"the tools of example {index} are no valid JSON: {error}") from None
    if not isinstance(tools, list | None):
        raise InputError(f"the tools of example {index} must be a list, or one as JSON text, not {tools!r}")
    if not isinstance(options, Mapping | None):
        raise InputError(f"the chat_template_kwargs of example {index} must be a mapping, not {options!r}")
    given = {key: value for key, value in (options or {}).items() if value is not None}
    # Some templates write a heading for tools even if there are none in the list.
    return {**given, "tools": tools or None}
