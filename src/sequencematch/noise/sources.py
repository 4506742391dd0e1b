"""Noise sources that need no model: uniform tokens, and a task's own mistakes."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, Protocol

import numpy as np

from ..data import Example
from ..errors import InputError
from ..mdp import ActionSpace
from .demonstrate import Mistake

if TYPE_CHECKING:
    from transformers import PreTrainedTokenizerBase

    from ..tasks import Task


class NoiseSource(Protocol):
    """Where wrong tokens come from."""

    def mistakes(self, examples: Sequence[Example], rng: np.random.Generator) -> list[list[Mistake]]:
        """For each example the mistakes to make in it, at ascending positions."""
        ...


@dataclass(frozen=True)
class NoNoise:
    """The expert makes no mistakes."""

    def mistakes(self, examples: Sequence[Example], rng: np.random.Generator) -> list[list[Mistake]]:
        """No mistakes."""
        return [[] for _ in examples]


def draw_runs(steps: int, rate: float, max_run: int, rng: np.random.Generator) -> list[tuple[int, int]]:
    """Where mistakes go: `(position, run length)`, each of `steps` positions with probability `rate`.

    Run lengths are uniform on 1..max_run.
    """
    positions = np.flatnonzero(rng.random(steps) < rate)
    return [(int(position), int(rng.integers(1, max_run + 1))) for position in positions]


@dataclass(frozen=True)
class UniformNoise:
    """Random vocabulary tokens, as in the paper's text experiments."""

    space: ActionSpace
    """The vocabulary; `<eos>` and deletions are never drawn."""
    rate: float
    """Probability of a mistake at each expert step."""
    max_run: int = 1
    """Longest run of wrong tokens."""

    def mistakes(self, examples: Sequence[Example], rng: np.random.Generator) -> list[list[Mistake]]:
        """Runs of uniform tokens; the first of a run is never the token that the expert has there."""
        special = [self.space.eos_token_id, *self.space.by_token]
        tokens = np.setdiff1d(np.arange(self.space.vocab_size), special)
        if len(tokens) < 2:
            raise InputError("uniform noise needs at least two ordinary tokens in the vocabulary; use another source")
        return [self._mistakes(example, tokens, rng) for example in examples]

    def _mistakes(self, example: Example, tokens: np.ndarray, rng: np.random.Generator) -> list[Mistake]:
        found = []
        for position, run in draw_runs(len(example.completion_ids), self.rate, self.max_run, rng):
            drawn = tokens[rng.integers(len(tokens), size=run)]
            if drawn[0] == example.completion_ids[position]:
                drawn[0] = rng.choice(tokens[tokens != drawn[0]])
            found.append(Mistake(position, tuple(drawn.tolist())))
        return found


@dataclass(frozen=True)
class TaskNoise:
    """The task's own mistakes, such as a wrong digit or a wrong arm: the paper's ground-truth noise."""

    task: Task
    """The task whose `mistakes` are made."""
    tokenizer: PreTrainedTokenizerBase
    """Tokenizes the wrong text; it must have a token for each character."""
    rate: float
    """Passed to the task, which says what it is a rate of."""

    def mistakes(self, examples: Sequence[Example], rng: np.random.Generator) -> list[list[Mistake]]:
        """The task's mistakes in each example, as tokens."""
        texts = [self.task.mistakes(example.prompt, example.completion, self.rate, rng) for example in examples]
        # An example that was cut at max_length has no room for the mistakes in the part that it lost.
        texts = [
            [mistake for mistake in found if mistake.position < len(example.completion_ids)]
            for example, found in zip(examples, texts, strict=True)
        ]
        pairs = [(example, mistake) for example, found in zip(examples, texts, strict=True) for mistake in found]
        before = self._tokenize([example.completion[: mistake.position] for example, mistake in pairs])
        wrong = self._tokenize([mistake.text for _, mistake in pairs])
        for (example, _), ids in zip(pairs, before, strict=True):
            if ids != example.completion_ids[: len(ids)]:
                raise InputError(
                    "task noise needs a tokenizer with a token for each character (see tasks.build_tokenizer)"
                )
        found = iter([Mistake(len(ids), tokens) for ids, tokens in zip(before, wrong, strict=True)])
        return [[next(found) for _ in mistakes] for mistakes in texts]

    def _tokenize(self, texts: list[str]) -> list[tuple[int, ...]]:
        # One call for the whole batch: a call for each text would cost more than the training step's trees.
        encoded = self.tokenizer(texts, add_special_tokens=False)["input_ids"] if texts else []
        return [tuple(ids) for ids in encoded]
