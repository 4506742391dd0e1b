"""What a trained model is asked: held-out prompts, what the data has for them, and who tells what is right."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass, replace
from typing import TYPE_CHECKING, Any

from ..data import Example, tokenize_dataset
from ..errors import InputError
from ..mdp import ActionSpace

if TYPE_CHECKING:
    from datasets import Dataset

    from ..tasks import Task

IsCorrect = Callable[[str, str, str], bool]
"""`(prompt, the completion in the data, the model's completion) -> whether it is right`."""


@dataclass(frozen=True)
class Questions:
    """Held-out prompts with their completions."""

    examples: list[Example]
    """As token ids and as text; the completion's text is what its ids decode to, without `<eos>`."""
    is_correct: IsCorrect
    """Tells whether an answer is right."""
    groups: list[str]
    """The label under which each question's accuracy is broken down; empty where there are no groups."""


def make_questions(
    dataset: Dataset,
    tokenizer: Any,
    space: ActionSpace,
    *,
    task: Task | None = None,
    text_field: str = "text",
    max_length: int | None = None,
    prompt_tokens: int | None = None,
) -> Questions:
    """Questions from a task, or from any data set that `tokenize_dataset` reads, where an exact match is right.

    Args:
        dataset: prompts with their completions, conversations, or texts.
        tokenizer: the model's.
        space: the model's actions.
        task: whose questions they are; tells right answers, and groups.
        text_field: the column of texts.
        max_length: longer completions are cut.
        prompt_tokens: how many tokens of each completion, or text, belong to the prompt; None for none.

    Raises InputError if there are none, for unreadable data, or if nothing is left after a prompt.
    """
    found = tokenize_dataset(
        dataset, tokenizer, text_field=text_field, max_length=max_length, truncate_long=True, space=space
    )
    examples = [Example.from_row(row) for row in found]
    if prompt_tokens:
        examples = [_prompted(index, example, prompt_tokens, tokenizer) for index, example in enumerate(examples)]
    examples = [replace(e, completion=_text(e.completion_ids, tokenizer)) for e in examples]
    if task is None:
        return Questions(examples, lambda _, expected, completion: completion == expected, [""] * len(examples))
    groups = [task.group(example.prompt) for example in examples]
    return Questions(examples, lambda prompt, _, completion: task.is_correct(prompt, completion), groups)


def _prompted(index: int, example: Example, prompt_tokens: int, tokenizer: Any) -> Example:
    """The example with its first tokens as a part of the prompt."""
    ids = example.completion_ids
    if len(ids) <= prompt_tokens:
        raise InputError(
            f"held-out text {index} has {len(ids)} tokens, which leaves nothing after a prompt of {prompt_tokens}; "
            "lower prompt_tokens, or leave short texts out"
        )
    beginning = ids[:prompt_tokens]
    prompt = example.prompt + _text(beginning, tokenizer)
    return replace(
        example, prompt_ids=(*example.prompt_ids, *beginning), completion_ids=ids[prompt_tokens:], prompt=prompt
    )


def _text(ids: tuple[int, ...], tokenizer: Any) -> str:
    return str(tokenizer.decode(list(ids[:-1] if ids[-1] == tokenizer.eos_token_id else ids)))
