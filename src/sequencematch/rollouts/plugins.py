"""Logits processors and stopping criteria of transformers, row by row: each sees the surviving string and no other.

Shapes: R rows, V actions, L tokens of one string.
"""

from __future__ import annotations

import copy
from collections.abc import Callable, Sequence
from typing import TYPE_CHECKING, Any

import numpy as np
import torch
from torch import Tensor

from ..errors import InputError, reason_of
from .row import Row

if TYPE_CHECKING:
    from transformers import PreTrainedTokenizerBase

REFUSED = (
    "ClassifierFreeGuidanceLogitsProcessor",
    "UnbatchedClassifierFreeGuidanceLogitsProcessor",
    "EncoderNoRepeatNGramLogitsProcessor",
    "EncoderRepetitionPenaltyLogitsProcessor",
)
"""Processors that run a model of their own, whose cache cannot be rolled back, or look at another batch."""


class Plugins:
    """What the user has plugged in. A processor with state is copied for each state on a row's way, and goes back."""

    def __init__(
        self,
        processors: Sequence[Any] = (),
        criteria: Sequence[Any] = (),
        stop_strings: Sequence[str] = (),
        tokenizer: PreTrainedTokenizerBase | None = None,
        own: Callable[[Any, int], Any] = lambda processor, index: processor,
    ) -> None:
        """Take over processors, criteria (called as in `model.generate`, on one row), and strings to stop at.

        own: what of a processor is the row's of an index, where it holds something for each of them.

        Raises InputError for a processor that cannot be rolled back, or stop strings without a tokenizer.
        """
        for processor in processors:
            if type(processor).__name__ in REFUSED:
                raise InputError(
                    f"{type(processor).__name__} cannot be rolled back when tokens are deleted; generate without it"
                )
        self.processors = list(processors)
        self._own = own
        self.criteria = list(criteria)
        self.stop_strings = _stop_strings(tokenizer, stop_strings)
        self._stateful: list[bool] | None = None

    def process(self, rows: Sequence[Row], scores: Tensor) -> tuple[Tensor, list[Any]]:
        """What the processors make of scores, float [R, V], and their own state then, to be kept with the draws."""
        if self._stateful is None:
            string = torch.tensor([rows[0].context], device=scores.device)
            first = self._processors_of(rows[0])
            self._stateful = [_has_state(processor, string, scores[:1]) for processor in first]
        states, results = [], []
        for row, own in zip(rows, scores.split(1), strict=True):
            string = torch.tensor([row.context], device=scores.device)
            before = row.draws[-1].state if row.draws else self._processors_of(row)
            after = [
                copy.deepcopy(processor) if stateful else processor
                for processor, stateful in zip(before, self._stateful, strict=True)
            ]
            for processor in after:
                own = processor(string, own)
            states.append(after)
            results.append(own)
        return torch.cat(results), states

    def _processors_of(self, row: Row) -> list[Any]:
        return [self._own(processor, row.index) for processor in self.processors]

    def stops(self, rows: Sequence[Row]) -> list[bool]:
        """Whether each row, which has just appended a token, stops there."""
        found = [False] * len(rows)
        if self.stop_strings is not None and rows:
            found = self._at_stop_string(rows)
        if self.criteria:
            for place, row in enumerate(rows):
                string = torch.tensor([row.context])
                found[place] |= any(bool(criterion(string, None).all()) for criterion in self.criteria)
        return found

    def _at_stop_string(self, rows: Sequence[Row]) -> list[bool]:
        criterion: Any = self.stop_strings
        width = criterion.maximum_token_len
        tails = [row.completion[-width:] for row in rows]
        nothing = len(criterion.embedding_vec) - 1  # what it takes ids beyond the vocabulary for
        padded = torch.tensor([[nothing] * (width - len(tail)) + tail for tail in tails])
        return criterion(padded, None).tolist()


def _stop_strings(tokenizer: Any, strings: Sequence[str]) -> Any:
    if not strings:
        return None
    if tokenizer is None:
        raise InputError("stop_strings need the engine's tokenizer: HFRolloutEngine(model, space, tokenizer=tokenizer)")
    from transformers import StopStringCriteria

    try:
        return StopStringCriteria(tokenizer, list(strings))
    except ValueError as error:
        raise InputError(
            f"the stop strings {list(strings)} cannot be found with this tokenizer: {reason_of(error)}"
        ) from error


def _has_state(processor: Any, string: Tensor, scores: Tensor) -> bool:
    """Whether calls change a processor, beyond what it sets up in the first. Raises InputError if none can tell."""
    try:
        trial = copy.deepcopy(processor)
        trial(string, scores.clone())
        before = copy.deepcopy(vars(trial))
    except (TypeError, AttributeError, RuntimeError, NotImplementedError) as error:
        raise InputError(
            f"{type(processor).__name__} cannot be copied, so it cannot be rolled back when tokens are deleted "
            f"({reason_of(error)}); give it __deepcopy__, or generate without it"
        ) from error
    trial(torch.cat([string, string[:, -1:]], -1), scores.clone())
    return not _same(before, vars(trial))


def _same(one: Any, other: Any) -> bool:
    """Whether two objects hold the same, however deep."""
    if one is other:
        return True
    if type(one) is not type(other):
        return False
    if isinstance(one, Tensor):
        return one.shape == other.shape and bool((one == other).all())
    if isinstance(one, np.ndarray):
        return np.array_equal(one, other)
    if isinstance(one, dict):
        return one.keys() == other.keys() and all(_same(one[key], other[key]) for key in one)
    if isinstance(one, list | tuple):
        return len(one) == len(other) and all(map(_same, one, other))
    if hasattr(one, "__dict__") and type(one).__eq__ is object.__eq__:
        return _same(vars(one), vars(other))
    return bool(one == other)
