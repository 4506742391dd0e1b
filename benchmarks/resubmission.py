"""A baseline for sampling with a backspace: transformers' continuous batching, which cannot delete, and resubmission.

The backspace is a stop token. A request that it ends loses its last token and is submitted again, prompt and surviving
completion, with the budget that is left; shared blocks of the cache spare most of the second prefill.
"""

from __future__ import annotations

import time
from collections import deque
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, field
from inspect import signature
from math import ceil
from typing import Any

from transformers import PreTrainedModel
from transformers.generation import ContinuousBatchingConfig, GenerationConfig
from transformers.generation.continuous_batching import ContinuousBatchingManager

CPU_PAGE, CUDA_PAGE = 8, 256
PAGE = "page_size" if "page_size" in signature(ContinuousBatchingConfig).parameters else "block_size"
"""Its name changed after transformers 5.17."""
CPU_BATCH_TOKENS = 256
SPARE = 1.5
"""Blocks of the cache, as a multiple of what requests of full length need: room to keep the blocks of those that end.

At a free share under 15% the scheduler drops every block it has kept, and resubmissions are computed anew.
"""


@dataclass
class _Row:
    """One prompt's walk."""

    prompt: list[int]
    completion: list[int] = field(default_factory=list)
    actions: int = 0
    deletions: int = 0


class Resubmission:
    """Samples at temperature 1 from a causal language model of transformers, a round of prompts at a time.

    Each round has a manager of its own, which starts and stops outside the timed part. So no thread lives between
    rounds (it would wake ten times a second), the model may change between them, and prompts that come again are
    not found in the cache. The model is put back as it was: its attention and its training mode. The global random
    state does change: a manager draws its seed from it and sets it.
    """

    def __init__(
        self, model: PreTrainedModel, eos: int, backspace: int, max_completion_length: int, batch_size: int
    ) -> None:
        self.model, self.backspace, self.eos = model, backspace, eos
        self.length, self.batch_size = max_completion_length, batch_size
        self.limit = 4 * max_completion_length + 16
        self.generation = GenerationConfig(
            do_sample=True,
            temperature=1.0,
            top_k=0,
            top_p=1.0,
            eos_token_id=[eos, backspace],
            max_new_tokens=max_completion_length,
        )

    def round(self, prompts: Sequence[list[int]]) -> dict[str, Any]:
        """Complete all prompts.

        Returns:
            `seconds`, `actions` (appends, backspaces and ends), `deletions` (backspaces, those on an empty completion
            included), and `completions`: the surviving tokens, without the end token, in the order of the prompts.
        """
        rows = [_Row(list(prompt)) for prompt in prompts]
        with self._manager(max(map(len, prompts))) as manager:
            start = time.perf_counter()
            self._run(manager, rows)
            seconds = time.perf_counter() - start
        return {
            "seconds": seconds,
            "actions": sum(row.actions for row in rows),
            "deletions": sum(row.deletions for row in rows),
            "completions": [row.completion for row in rows],
        }

    def close(self) -> None:
        """Nothing is left to stop: a round stops its own manager."""

    @contextmanager
    def _manager(self, longest: int) -> Iterator[ContinuousBatchingManager]:
        """A running manager for prompts up to a length, ready to take them."""
        training = self.model.training
        config = self._config(longest)
        try:
            with self.model.continuous_batching_context_manager(
                generation_config=self.generation, continuous_batching_config=config
            ) as manager:
                # The thread makes the cache when it starts, and nothing tells when it has: an answer does.
                manager.add_request([self.eos], max_new_tokens=1)
                _result(manager)
                yield manager
        finally:
            self.model.train(training)

    def _config(self, longest: int) -> ContinuousBatchingConfig:
        """Options for the model's device, the cache as large as a full batch needs.

        Left to itself the manager takes 60% of a CPU machine's memory, or 90% of a GPU's, and writes all of it first.
        """
        tokens = longest + self.length
        if self.model.device.type == "cuda":
            # The defaults are meant for it: flash attention if there is any (then with CUDA graphs and asynchronous
            # batches), sdpa otherwise. Flash attention's block tables want pages of 256 tokens, their default.
            return ContinuousBatchingConfig(
                **{PAGE: CUDA_PAGE},
                num_blocks=self._blocks(tokens, CUDA_PAGE),
                max_requests_per_batch=self.batch_size,
            )
        # Small pages: only whole ones are shared, so a resubmission computes half a page again on average. Without
        # sharing a round takes twice as long; pages of 4 or 16 tokens do not differ by more than the noise.
        # Few tokens per batch: requests lie end to end in one row under a mask, and sdpa computes what the mask hides,
        # all tokens of the batch against all keys. 256 tokens save a fifth over 512; 64 or fewer gain nothing more.
        # sdpa is faster than `paged|eager`. Compilation takes over a minute and makes it slower: sizes are padded, and
        # the cache's update breaks the graph in every layer. Asynchronous batches and graphs are for accelerators.
        return ContinuousBatchingConfig(
            **{PAGE: CPU_PAGE},
            num_blocks=self._blocks(tokens, CPU_PAGE),
            max_batch_tokens=max(CPU_BATCH_TOKENS, self.batch_size),
            max_requests_per_batch=self.batch_size,
            auto_switch_to_flash=False,
        )

    def _blocks(self, tokens: int, page: int) -> int:
        """Blocks for a full batch of requests of so many tokens."""
        return ceil(SPARE * self.batch_size * (ceil(tokens / page) + 1))

    def _run(self, manager: ContinuousBatchingManager, rows: list[_Row]) -> None:
        """Complete all rows, at most `batch_size` of them at a time."""
        waiting = deque(rows)
        running: dict[str | None, _Row] = {}
        while waiting or running:
            while waiting and len(running) < self.batch_size:
                row = waiting.popleft()
                running[self._submit(manager, row)] = row
            output = _result(manager)
            row = running.pop(output.request_id)
            if self._take(row, output.generated_tokens):
                running[self._submit(manager, row)] = row

    def _submit(self, manager: ContinuousBatchingManager, row: _Row) -> str | None:
        budget = min(self.length - len(row.completion), self.limit - row.actions)
        return manager.add_request(row.prompt + row.completion, max_new_tokens=budget)

    def _take(self, row: _Row, tokens: list[int]) -> bool:
        """Add what a request has sampled to its row; True if the row goes on."""
        row.actions += len(tokens)
        row.completion += tokens
        if row.completion[-1] == self.backspace:
            del row.completion[-1]
            del row.completion[-1:]
            row.deletions += 1
            return row.actions < self.limit
        if row.completion[-1] == self.eos:
            del row.completion[-1]
        return False


def _result(manager: ContinuousBatchingManager) -> Any:
    """The next finished request."""
    while (output := manager.get_result(timeout=1.0)) is None:
        if not manager.is_running():
            raise RuntimeError("continuous batching has stopped")
    if output.error is not None:
        raise RuntimeError(f"continuous batching has failed: {output.error}")
    return output
