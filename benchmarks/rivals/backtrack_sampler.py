"""Runs `backtrack_sampler` (https://github.com/Mihaiii/backtrack_sampler) with a strategy of its extension point.

The strategy forbids the backspace where nothing can be deleted, and pops a sampled backspace with the token before it;
the library crops its cache by as many. Without filters, at temperature 1, it samples from the model's distribution.
"""

from __future__ import annotations

import torch
from backtrack_sampler import BacktrackSampler
from backtrack_sampler.provider.transformers_provider import TransformersProvider
from backtrack_sampler.strategy.base_strategy import BaseStrategy
from torch import Tensor
from transformers import PreTrainedModel, PreTrainedTokenizerFast

from rivals import Job
from rivals.child import Complete, OutOfActionsError, Tally, serve


class BackspaceStrategy(BaseStrategy):
    """Deletes the last token when the backspace is sampled."""

    def __init__(self, backspace: int, tally: Tally) -> None:
        self.backspace, self.tally = backspace, tally

    def get_keep_index(self) -> int:
        """Any token may still be deleted, so none is released before the end."""
        return 0

    def on_logits(self, logits: Tensor, continuation_tokens: list[int]) -> Tensor:
        """No backspace in an empty completion."""
        if not continuation_tokens:
            logits[:, self.backspace] = float("-inf")
        return logits

    def on_probs(self, probs: Tensor, continuation_tokens: list[int]) -> Tensor:
        """As they are."""
        return probs

    def on_next_token(self, continuation_tokens: list[int], probs: Tensor) -> None:
        """Count the action."""
        self.tally.count(deletion=continuation_tokens[-1] == self.backspace)

    def backtrack(self, continuation_tokens: list[int]) -> list[int]:
        """Without the backspace and what it deletes."""
        if continuation_tokens[-1] == self.backspace:
            del continuation_tokens[-2:]
        return continuation_tokens

    def reset(self) -> None:
        """Nothing is kept."""


def prepare(model: PreTrainedModel, tokenizer: PreTrainedTokenizerFast, job: Job, tally: Tally) -> Complete:
    """One sampler for all prompts."""
    provider = TransformersProvider(model, tokenizer, torch.device("cpu"))
    sampler = BacktrackSampler(provider, BackspaceStrategy(job.backspace, tally))

    def complete(text: str) -> None:
        try:
            list(sampler.generate(text, max_new_tokens=job.max_completion_length, temperature=1.0, top_k=None))
        except OutOfActionsError:
            provider.reset()

    return complete


if __name__ == "__main__":
    serve(prepare)
