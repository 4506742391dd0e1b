"""What a synthetic task is, and how its questions become a data set."""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING, Protocol

import numpy as np

from ..errors import InputError

if TYPE_CHECKING:
    from datasets import DatasetDict

_MAX_REPEATS = 10_000
"""So many draws in a row without a new prompt, and the task counts as exhausted."""


@dataclass(frozen=True)
class TextMistake:
    """Wrong text that a demonstration writes, and then takes back, before it goes on with the completion."""

    position: int
    """The wrong text comes before the completion's character of this index."""
    text: str
    """The wrong text."""


class Task(Protocol):
    """A source of questions, each of which has one right answer that follows from the question."""

    @property
    def name(self) -> str:
        """The name that `get_task` knows it by."""
        ...

    @property
    def alphabet(self) -> str:
        """Every character that its prompts, completions and mistakes use, once each."""
        ...

    def sample(self, rng: np.random.Generator) -> tuple[str, str]:
        """Draw a prompt and its completion. The same state of `rng` gives the same texts."""
        ...

    def is_correct(self, prompt: str, completion: str) -> bool:
        """Whether `completion` is the answer to `prompt`. Raises InputError if `prompt` is not of this task."""
        ...

    def mistakes(self, prompt: str, completion: str, rate: float, rng: np.random.Generator) -> list[TextMistake]:
        """Draw mistakes typical of the task, in ascending order of position, each chance taken with probability `rate`.

        Raises InputError if `prompt` is not of this task or `rate` is not a probability.
        """
        ...

    def group(self, prompt: str) -> str:
        """The label under which accuracy is broken down. Raises InputError if `prompt` is not of this task."""
        ...


def split(task: Task, train_size: int, test_size: int, seed: int) -> DatasetDict:
    """Draw a data set with splits `train` and `test` and columns `prompt` and `completion`.

    No prompt occurs twice, neither within a split nor across them. The test split depends on the task, its size
    and the seed only; a larger train split starts with the rows of a smaller one.

    Raises InputError if a size or the seed is negative, or if the task does not have so many different prompts.
    """
    from datasets import Dataset, DatasetDict, Features, Value

    for what, number in (("train_size", train_size), ("test_size", test_size), ("seed", seed)):
        check_whole_number(what, number, 0)
    wanted = train_size + test_size
    rng = np.random.default_rng(seed)
    answers: dict[str, str] = {}
    repeats = 0
    while len(answers) < wanted:
        prompt, completion = task.sample(rng)
        repeats = repeats + 1 if prompt in answers else 0
        if repeats == _MAX_REPEATS:
            raise InputError(
                f"the {task.name} task with these options gave only {len(answers)} different prompts where {wanted} "
                "are needed; ask for fewer, or choose options that allow more"
            )
        answers.setdefault(prompt, completion)
    rows = list(answers.items())
    features = Features({"prompt": Value("string"), "completion": Value("string")})

    def dataset(part: list[tuple[str, str]]) -> Dataset:
        columns = {"prompt": [prompt for prompt, _ in part], "completion": [completion for _, completion in part]}
        return Dataset.from_dict(columns, features=features)

    return DatasetDict({"train": dataset(rows[test_size:]), "test": dataset(rows[:test_size])})


def check_whole_number(what: str, value: object, minimum: int, maximum: int | None = None) -> None:
    """Raise InputError unless `value` is a whole number from `minimum` to `maximum` (no end if None)."""
    whole = isinstance(value, int | np.integer) and not isinstance(value, bool)
    if not whole or value < minimum or (maximum is not None and value > maximum):  # type: ignore[operator]
        allowed = f"of at least {minimum}" if maximum is None else f"from {minimum} to {maximum}"
        raise InputError(f"{what} must be a whole number {allowed}, not {value!r}")


def check_rate(rate: float) -> None:
    """Raise InputError unless `rate` is a probability."""
    if not 0 <= rate <= 1:
        raise InputError(f"the rate of mistakes must lie between 0 and 1, not {rate!r}")
