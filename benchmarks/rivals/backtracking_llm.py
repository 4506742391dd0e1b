"""Runs `backtracking-llm` (https://github.com/matee8/backtracking_llm) with an operator of its extension point.

The operator has a sampled backspace removed together with the token before it; the library crops its cache by as many.
The library always keeps the `top_k` best tokens, so all of them here, sorted at each step. Nothing of it can change
logits: that the backspace is impossible in an empty completion is up to a hook on the model.

Not exact: after a deletion that empties the completion, the library feeds the whole prompt again onto a cache that
still holds all of it but the last token, and goes on with both in the context.
"""

from __future__ import annotations

import contextlib

from backtracking_llm.generation import Generator
from torch import Tensor, nn
from transformers import PreTrainedModel, PreTrainedTokenizerFast

from rivals import Job
from rivals.child import Complete, OutOfActionsError, Tally, serve


class BackspaceOperator:
    """Deletes the last token when the backspace is sampled."""

    def __init__(self, backspace: int, word: str, tally: Tally) -> None:
        self.backspace, self.word, self.tally = backspace, word, tally
        self.length = 0

    def __call__(self, logits: Tensor, probabilities: Tensor, position: int, token: str) -> int:
        """How many tokens to remove, of which the one just sampled is the last."""
        deletion = token == self.word
        self.length += 1
        self.tally.count(deletion)
        return 2 * deletion

    def backtrack(self, n_tokens: int) -> None:
        """The library has removed tokens."""
        self.length -= n_tokens

    def forbid(self, _head: nn.Module, _inputs: object, logits: Tensor) -> None:
        """No backspace in an empty completion: a hook on the output layer."""
        if not self.length:
            logits[:, -1, self.backspace] = float("-inf")


def prepare(model: PreTrainedModel, tokenizer: PreTrainedTokenizerFast, job: Job, tally: Tally) -> Complete:
    """One generator for all prompts."""
    operator = BackspaceOperator(job.backspace, tokenizer.decode(job.backspace), tally)
    model.lm_head.register_forward_hook(operator.forbid)
    generator = Generator(model, tokenizer)

    def complete(text: str) -> None:
        operator.length = 0
        with contextlib.suppress(OutOfActionsError):
            generator.generate(
                text,
                operator,
                max_new_tokens=job.max_completion_length,
                temperature=1.0,
                top_k=model.config.vocab_size,
            )

    return complete


if __name__ == "__main__":
    serve(prepare)
